"""The sentences that a model is to be run over, from a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from featurestore.errors import ParameterError, shown
from featurestore.sources.contents import LABEL
from featurestore.texts import Table, whole_number

_LABELS = (LABEL, "label")
"""Columns that can hold the label; the first that is there counts."""


class Listed(NamedTuple):
    """One sentence: its index, text and label."""

    sentence_index: int
    text: str
    label: int | None


def listed(path: Path) -> list[Listed]:
    """Read the columns `sentence`, and if they are there `concept_strength_label` or `label`, and `sentence_index`.

    Without `sentence_index` sentences are counted from 0, in the order of the file.

    Raises
    ------
    ParameterError
        If the file is no such CSV, a sentence is empty, or an index comes twice.
    """
    table = Table(path)
    label = next((name for name in _LABELS if name in table.header), None)
    optional = [name for name in ("sentence_index", label) if name in table.header and name is not None]
    found: dict[int, Listed] = {}
    for where, (text, *cells) in table.rows(["sentence", *optional]):
        if not text:
            raise ParameterError(f"{where}: sentence: expected a text, found none; fill it in, or leave the row out")
        said = dict(zip(optional, cells, strict=True))
        number = said.get("sentence_index")
        index = len(found) if number is None else whole_number(where, "sentence_index", number)
        if index in found:
            raise ParameterError(f"{where}: sentence_index {index} is there twice; number each sentence once")
        cell = said.get(label or "", "")
        found[index] = Listed(index, text, whole_number(where, label, cell) if label and cell else None)
    if not found:
        raise ParameterError(f"{shown(path)}: expected sentences, found none; check the file")
    return [*found.values()]
