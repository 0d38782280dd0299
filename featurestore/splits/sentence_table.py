"""What a CSV file says of sentences, which it names by their index or by their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ParameterError, brief, shortened, some, spelled
from featurestore.paths import as_path
from featurestore.texts import Table, whole_number

if TYPE_CHECKING:
    import xarray as xr

_KEYS = {"sentence_index": "sentence", "sentence": "text"}
"""How a file may name the sentences, and the coordinates that hold the same."""

_FLOAT = re.compile(r"[+-]?[0-9]{1,15}\.0*|nan", re.IGNORECASE)
"""What pandas makes of integers, and of what is missing."""


def sentence_cells(
    ds: xr.Dataset, option: str, given: str, *, what: str, twice: str, expected: str = "FILE.csv:COLUMN"
) -> list[str]:
    """Return what a column says of each sentence, as `value_name` spells it; nothing where its cell is empty.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store; of it `sentence` and `text` are read.
    option, given : str
        The option by which the column was given, and what was given: ``FILE.csv:COLUMN``.
    what, twice, expected : str
        For messages: what a cell holds, that there are two of them, and what may be given.

    Raises
    ------
    ParameterError
        If no column is given, its file cannot be read, or a sentence is not in it, or is there with different cells, or
        another text.
    """
    path, _, column = given.rpartition(":")
    column = column.strip()
    if not path or not column:
        raise ParameterError(f"{spelled(option)}: expected {expected}, found {brief(given)}")
    try:
        keys = ["sentence"] if "store" in ds.coords else [*_KEYS]  # of several stores an index names several sentences
        key, named, texts = _read(as_path(path), keys, column, twice)
    except ParameterError as error:
        raise ParameterError(f"{spelled(option)}: {error}") from error
    sentences = [str(value).strip() for value in ds[_KEYS[key]].values.tolist()]
    if unnamed := [name for name in sentences if name and name not in named]:
        some_of_them = some(map(shortened, unnamed), separator="; ")
        found = f"{len(unnamed)} of {len(sentences)} sentences are not in it ({key} {some_of_them})"
        add = f"add them, with an empty {shortened(column)} where there is no {what}"
        raise ParameterError(f"{spelled(option)}: {shortened(path)}: {found}; {add}")
    for name, text in zip(sentences, ds["text"].values.tolist(), strict=True):
        if texts.get(name, text.strip()) not in (text.strip(), ""):
            found = f"sentence_index {name} is {brief(texts[name])} there, but {brief(text)} in the store"
            remedy = "mend it, or leave one of the columns sentence_index and sentence out"
            raise ParameterError(f"{spelled(option)}: {shortened(path)}: {found}; {remedy}")
    return [named.get(name, "") for name in sentences]


def value_name(value: object) -> str:
    """Spell a value so that 3 and 3.0 are one, and None and NaN are nothing."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _read(path: Path, keys: Sequence[str], column: str, twice: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Read a column, by the first of the keys that is there.

    Returns by which, the cell of each sentence, and of those named by index the text, if the file has that, too.
    """
    table = Table(path)
    key = next((name for name in keys if name in table.header), " or ".join(keys))
    both = key == "sentence_index" and "sentence" in table.header
    named: dict[str, str] = {}
    texts: dict[str, str] = {}
    for where, (name, cell, *text) in table.rows([key, column, *["sentence"] * both]):
        sentence = str(whole_number(where, key, name)) if key == "sentence_index" else name
        value = value_name(float(cell)) if _FLOAT.fullmatch(cell) else cell
        if named.setdefault(sentence, value) != value:
            found = f"{key} {shortened(sentence)} {twice}, {brief(named[sentence])} and {brief(value)}"
            raise ParameterError(f"{where}: {found}")
        if both:
            texts[sentence] = text[0]
    return key, named, texts
