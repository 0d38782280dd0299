"""What the labels are: those of the store or of a file, as they are or mapped to classes."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import ParameterError, SelectionError, brief, shortened, spelled
from featurestore.ranges import integer
from featurestore.splits.sentence_table import sentence_cells
from featurestore.texts import whole_number

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of sentences in place of those of the store: from a file, or which store they are of.

    Attributes
    ----------
    values : ndarray, (n,) int64
        The label of each sentence; -1 where there is none.
    has : ndarray, (n,) bool
        Whether there is one.
    names : tuple of str
        What the labels 0, 1, ... are called, sorted; empty where they are numbers.
    column : str
        Where in the file they are.
    digest : str
        SHA-256 of each sentence_index with its label, and of the names, in hex; whatever the order of the sentences.
    """

    values: NDArray[np.int64]
    has: NDArray[np.bool_]
    names: tuple[str, ...]
    column: str
    digest: str

    @property
    def said(self) -> str:
        """What they are, in words."""
        return f"the labels {self.column}" if self.digest else "the store and the label"


def read_labels(ds: xr.Dataset, labels_from: str) -> Labels:
    """Read the labels of the sentences of a store from a file.

    They are whole numbers if every sentence that has any has one, and otherwise names, which are numbered from 0 in
    sorted order. An empty cell and NaN are no label, and 3 and 3.0 are the same. Rows of other sentences don't count.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store; of it `sentence`, and where the file has no such column, `text` is read.
    labels_from : str
        ``FILE.csv:COLUMN``; its other column is `sentence_index` or `sentence`, the text.

    Returns
    -------
    Labels
        In the order of the sentences of `ds`.

    Raises
    ------
    ParameterError
        If the file cannot be read, does not name every sentence, has a label for none, or numbers that are not whole.
    """
    if not isinstance(labels_from, str):
        raise ParameterError(f"{spelled('labels_from')}: expected FILE.csv:COLUMN, found {brief(labels_from)}")
    cells = sentence_cells(ds, "labels_from", labels_from, what="label", twice="has two labels")
    path, _, column = labels_from.rpartition(":")
    column = column.strip()
    where, sentences = f"{spelled('labels_from')}: {shortened(path)}", ds["sentence"].values.tolist()
    first = dict(zip(reversed(cells), reversed(sentences), strict=True))
    first.pop("", None)
    if not first:
        found = f"none of the {len(cells)} sentences has a {shortened(column)}"
        raise ParameterError(f"{where}: {found}; fill in some, or name another column")
    names: tuple[str, ...] = ()
    if all(map(_NUMBER.fullmatch, first)):
        numbers = {cell: whole_number(f"{where}: sentence_index {first[cell]}", column, cell) for cell in first}
    else:
        names = tuple(sorted(first))
        if some_numbers := [name for name in names if _NUMBER.fullmatch(name)]:
            others = next(name for name in names if name not in some_numbers)
            logger.warning("%s: %s: labels are names, numbers too, as %s is none", where, column, brief(others))
        numbers = {name: number for number, name in enumerate(names)}
    labels = sorted(zip(sentences, map(numbers.get, cells), strict=True))
    return Labels(
        values=np.array([numbers.get(cell, -1) for cell in cells], np.int64),
        has=np.array([cell in numbers for cell in cells], np.bool_),
        names=names,
        column=column,
        digest=hashlib.sha256(repr((labels, names)).encode()).hexdigest(),
    )


def store_labels(ds: xr.Dataset, names: Sequence[str]) -> Labels:
    """Return the store of each sentence as its label, numbered in the order of the names.

    Raises
    ------
    ParameterError
        If there is but one.
    """
    if len(names) < 2:
        raise ParameterError(
            f"{spelled('y', 'store')}: expected several stores to tell apart, found one; name one more"
        )
    numbers = {name: number for number, name in enumerate(names)}
    values = np.array([numbers[name] for name in ds["store"].values.tolist()], np.int64)
    return Labels(values=values, has=np.ones(len(values), np.bool_), names=tuple(names), column="store", digest="")


def crossed(labels: Labels, ds: xr.Dataset) -> Labels:
    """Return a label for each pair of a label and one of a store, by which a split divides both evenly."""
    pairs = np.stack([labels.values, ds["label"].values])
    return replace(labels, names=(), values=np.unique(pairs, axis=1, return_inverse=True)[1].astype(np.int64))


@dataclass(frozen=True)
class Classes:
    """Labels mapped to the classes of a dataset; equal where the mappings are.

    Attributes
    ----------
    pairs : tuple of (str, int)
        Each label, a number as text or a name, and its class; numbers first, sorted.
    """

    pairs: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """Write it as `read_classes` reads it, such as ``0=0,3=1``."""
        return ",".join(_quoted(f"{label}={target}") for label, target in self.pairs)

    def apply(
        self, labels: NDArray[np.int64], has: NDArray[np.bool_], names: Sequence[str] = ()
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Map labels to classes.

        Parameters
        ----------
        labels : ndarray, (n,) int64
            The label of each sentence.
        has : ndarray, (n,) bool
            Whether it has one.
        names : sequence of str, optional
            What the labels 0, 1, ... are called, if they are not numbers.

        Returns
        -------
        ndarray, (n,) int64
            The class of each sentence; -1 where there is none.
        ndarray, (n,) bool
            Whether there is one.

        Raises
        ------
        SelectionError
            If no sentence has one of the labels that are mapped.
        """
        there = {names[label] if names else str(label): label for label in np.unique(labels[has]).tolist()}
        if lacking := [label for label, _ in self.pairs if label not in there]:
            known = shortened(", ".join(there)) or "none, as there are no labels"
            raise SelectionError(
                f"{spelled('classes')}: no sentence has the label {shortened(', '.join(lacking))}: choose from {known}"
            )
        mapped = np.full(len(labels), -1, np.int64)
        for label, target in self.pairs:
            mapped[has & (labels == there[label])] = target
        return mapped, mapped >= 0


def read_classes(given: object) -> Classes:
    """Read which labels are which classes.

    Parameters
    ----------
    given : str or mapping
        Text such as ``0=0,3=1`` or ``honest=0,lie=1``, a pair with a comma in quotes as in CSV; or a mapping of labels,
        numbers or names, to whole numbers from 0.

    Raises
    ------
    ParameterError
        If it is something else, empty, or names a label twice.

    Examples
    --------
    >>> str(read_classes({3: 1, 0: 0}))
    '0=0,3=1'
    """
    pairs: list[tuple[str, int]] = []
    if isinstance(given, str):
        pairs = [_pair(part, *part.rpartition("=")[::2]) for part in _parts(given)]
    elif isinstance(given, Mapping):
        pairs = [_pair({label: target}, label, target) for label, target in given.items()]
    if not pairs:
        raise _unreadable(given)
    if repeated := [label for label, count in Counter(label for label, _ in pairs).items() if count > 1]:
        raise ParameterError(
            f"{spelled('classes')}: the label {shortened(', '.join(repeated))} is named twice; name each once"
        )
    return Classes(tuple(sorted(pairs, key=_order)))


def relabelled(ds: xr.Dataset, labels: Labels | None, classes: Classes | None) -> xr.Dataset:
    """Return a store's dataset with other labels: those of a file, if any, mapped to classes, if so.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    labels : Labels or None
        Of its sentences.
    classes : Classes or None
        Sentences of other labels have none then.

    Returns
    -------
    xarray.Dataset
        As lazy as `ds`, which is not changed; its `label` and `has_label` are other ones, which nobody can write to;
        labels that are names are there as `label_name`, too, unless they are mapped.

    Raises
    ------
    SelectionError
        If no sentence has one of the labels that are mapped.
    """
    if labels is None and classes is None:
        return ds
    values, has = (ds["label"].values, ds["has_label"].values) if labels is None else (labels.values, labels.has)
    if classes is not None:
        values, has = classes.apply(values, has, labels.names if labels else ())
    replaced = {"label": values.copy(), "has_label": has.copy()}
    for array in replaced.values():
        array.flags.writeable = False  # all strategies see the same
    coords = {name: ("sentence", array, ds[name].attrs) for name, array in replaced.items()}
    if labels and labels.names and classes is None:
        names = np.array([*labels.names, ""], object)[np.where(has, values, -1)]
        coords["label_name"] = ("sentence", names, {"long_name": "what the label is called"})
    return ds.assign_coords(coords)


def _parts(text: str) -> list[str]:
    """Split text at its commas, but for those in quotes."""
    try:
        rows = [*csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)]
    except csv.Error as error:
        raise _unreadable(text) from error
    return [part for row in rows for part in row]


def _quoted(pair: str) -> str:
    return '"{}"'.format(pair.replace('"', '""')) if re.search('[",\r\n]', pair) else pair


def _pair(given: object, label: object, target: object) -> tuple[str, int]:
    """Read a label and its class; only text may hold a number as text."""
    name = label.strip() if isinstance(label, str) else str(integer(spelled("classes"), label))
    if isinstance(given, str) and isinstance(target, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", target):
        target = int(target)
    if not name or isinstance(target, str):
        raise _unreadable(given)
    number = integer(spelled("classes"), target)
    if not 0 <= number < 2**63:
        raise _unreadable(given)
    return name, number


def _order(pair: tuple[str, int]) -> tuple[bool, int, str]:
    number = re.fullmatch("-?[0-9]{1,99}", pair[0])
    return not number, int(pair[0]) if number else 0, pair[0]


def _unreadable(given: object) -> ParameterError:
    expected = "expected labels and whole numbers from 0, such as 0=0,3=1"
    return ParameterError(f"{spelled('classes')}: {expected}, found {brief(given)}")
