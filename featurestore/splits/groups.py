"""Groups of sentences, by a coordinate of the store or a CSV file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ParameterError, brief, shortened, some, spelled
from featurestore.paths import as_path
from featurestore.texts import Table, whole_number

if TYPE_CHECKING:
    import xarray as xr

_KEYS = {"sentence_index": "sentence", "sentence": "text"}
"""How a file of groups may name the sentences, and the coordinates that hold the same."""

_FLOAT = re.compile(r"[+-]?[0-9]{1,15}\.0*|nan", re.IGNORECASE)
"""What pandas makes of integers, and of what is missing."""


def group_names(ds: xr.Dataset, group_by: str) -> list[str]:
    """Return the name of each sentence's group; an empty one belongs to none.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    group_by : str
        See `featurestore.splits.split.SplitOptions`.

    Raises
    ------
    ParameterError
        If `group_by` names no coordinate, or a file that cannot be read or does not say the group of every sentence.
    """
    coordinates = [str(name) for name, values in ds.coords.items() if values.dims == ("sentence",)]
    if group_by in coordinates:
        return [_group_name(value) for value in ds[group_by].values.tolist()]
    path, _, column = group_by.rpartition(":")
    if not path or not column.strip():
        expected = f"expected FILE.csv:COLUMN or one of {', '.join(sorted(coordinates))}"
        raise ParameterError(f"{spelled('group_by')}: {expected}, found {brief(group_by)}")
    try:
        key, named = _read_groups(as_path(path), column.strip())
    except ParameterError as error:
        raise ParameterError(f"{spelled('group_by')}: {error}") from error
    sentences = [str(value).strip() for value in ds[_KEYS[key]].values.tolist()]
    if unnamed := [name for name in sentences if name and name not in named]:
        some_of_them = some(map(shortened, unnamed), separator="; ")
        found = f"{len(unnamed)} of {len(sentences)} sentences are not in it ({key} {some_of_them})"
        add = f"add them, with an empty {shortened(column.strip())} where there is no group"
        raise ParameterError(f"{spelled('group_by')}: {shortened(path)}: {found}; {add}")
    return [named.get(name, "") for name in sentences]


def _read_groups(path: Path, column: str) -> tuple[str, dict[str, str]]:
    """Read the groups of sentences, by sentence_index or else by text; return by which, and the groups."""
    table = Table(path)
    key = next((name for name in _KEYS if name in table.header), " or ".join(_KEYS))
    named: dict[str, str] = {}
    for where, (name, cell) in table.rows([key, column]):
        sentence = str(whole_number(where, key, name)) if key == "sentence_index" else name
        group = _group_name(float(cell)) if _FLOAT.fullmatch(cell) else cell
        if named.setdefault(sentence, group) != group:
            found = f"{key} {shortened(sentence)} is in two groups, {brief(named[sentence])} and {brief(group)}"
            raise ParameterError(f"{where}: {found}")
    return key, named


def _group_name(value: object) -> str:
    """Name the group of a value so that 3 and 3.0 are one, and None and NaN are none."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
