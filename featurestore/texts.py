"""Text files that others wrote, and the tables in them: CSV as pandas and Excel write it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurestore.errors import ParameterError, brief, shortened, shown


def read_text(path: Path, kind: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, its line ends as they are.

    Parameters
    ----------
    path : Path
        The file; what is none, such as a pipe that nobody may write to, is never opened.
    kind : str
        What is expected, for the message.

    Raises
    ------
    ParameterError
        If it cannot be read, or is something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise ParameterError(f"{shown(path)}: cannot be read; expected {kind}, found no regular file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ParameterError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        found = f"found something else ({error.reason})"
        raise ParameterError(f"{shown(path)}: expected {kind} in UTF-8, {found}") from error
    if "\0" in text:
        raise ParameterError(f"{shown(path)}: expected {kind} in UTF-8, found a NUL character")
    return text


class Table:
    """A CSV file with a header; blanks around cells do not count.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    header : list of str
        The names of its columns.

    Raises
    ------
    ParameterError
        If it cannot be read, or is no CSV in UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._file = shown(path)
        self._lines = csv.reader(io.StringIO(read_text(path, "a CSV file"), newline=""), skipinitialspace=True)
        self.header = next((cells for _, cells in self._filled()), [])

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield of each row that is not empty where it stands, and its cells in some columns.

        Raises
        ------
        ParameterError
            If a column is missing or there twice, or a row has more cells than the header.
        """
        if missing := [name for name in columns if name not in self.header]:
            names = f"column{'s' * (len(missing) > 1)} {shortened(', '.join(missing))}"
            raise ParameterError(f"{self._file}: expected the {names}, {self._found()}")
        if twice := [name for name in columns if self.header.count(name) > 1]:
            raise ParameterError(f"{self._file}: the column {shortened(twice[0])} is there twice; name each once")
        positions = [self.header.index(name) for name in columns]
        for where, cells in self._filled():
            if any(cells[len(self.header) :]):
                found = f"found {len(cells)} cells, expected {len(self.header)}"
                raise ParameterError(f"{where}: {found} as in the header; put texts with commas in quotes")
            cells += [""] * (len(self.header) - len(cells))
            yield where, [cells[position] for position in positions]

    def _filled(self) -> Iterator[tuple[str, list[str]]]:
        try:
            for cells in self._lines:
                if any(stripped := [cell.strip() for cell in cells]):
                    yield f"{self._file}:{self._lines.line_num}", stripped
        except csv.Error as error:
            where = f"{self._file}:{self._lines.line_num}"
            raise ParameterError(f"{where}: expected a CSV file in UTF-8, found something else ({error})") from error

    def _found(self) -> str:
        if len(self.header) == 1 and re.search("[;\t]", self.header[0]):
            return f"found one column {brief(self.header[0])}; separate the cells by commas"
        return f"found {shortened(', '.join(self.header)) or 'none'}"


def number(where: str, column: str, cell: str) -> int | float:
    """Read a number, such as an average L0; a whole one as int.

    Raises
    ------
    ParameterError
        If `cell` is something else.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", cell):
        raise ParameterError(f"{where}: {column}: expected a number, found {brief(cell)}")
    value = float(cell)
    return int(value) if value.is_integer() else value


def whole_number(where: str, column: str, cell: str) -> int:
    """Read an integer, also one that became a float on the way, such as 3.0.

    Raises
    ------
    ParameterError
        If `cell` is something else.
    """
    if re.fullmatch(r"[+-]?[0-9]{1,18}", cell):
        return int(cell)
    number = float(cell) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", cell) else 0.5
    if not number.is_integer() or abs(number) >= 2**53:
        raise ParameterError(f"{where}: {column}: expected an integer, found {brief(cell)}")
    return int(number)
