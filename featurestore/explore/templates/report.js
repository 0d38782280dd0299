"use strict";

// Sort a table by a column: numbers by their value, texts by the alphabet, what is no number last.
function sort(table, head, column) {
  const ascending = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort");
  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return ascending ? a.localeCompare(b) : b.localeCompare(a);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return ascending ? a - b : b - a;
  };
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((a, b) => compare(value(a), value(b)));
  table.tBodies[0].append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, column));
    head.append(button);
  });
}
