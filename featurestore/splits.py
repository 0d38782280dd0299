"""Train and test rows, and folds, that keep near-duplicates and groups of sentences together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.duplicates import Components, group_near_duplicates
from featurestore.errors import ParameterError, SelectionError, brief, shortened, spelled
from featurestore.paths import as_path
from featurestore.ranges import integer
from featurestore.texts import Table, whole_number

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

_KEYS = {"sentence_index": "sentence", "sentence": "text"}
"""How a file of groups may name the sentences, and the coordinates that hold the same."""

_FLOAT = re.compile(r"[+-]?[0-9]{1,15}\.0*|nan", re.IGNORECASE)
"""What pandas makes of integers, and of what is missing."""


@dataclass(frozen=True)
class SplitOptions:
    """How to split; validated when made.

    Attributes
    ----------
    test_size : float or None
        Fraction of the sentences that are for testing, between 0 and 1.
    folds : int or None
        Number of folds, at least 2.
    seed : int
        Of the shuffling, at least 0.
    group_by : str or None
        What else belongs together: a coordinate of the sentences, such as ``n_tokens``, or ``FILE.csv:COLUMN``. An
        empty cell and NaN are no group, and 3 and 3.0 are the same.

    Raises
    ------
    ParameterError
        If one is of the wrong type or out of range, or neither `test_size` nor `folds` is given.
    """

    test_size: float | None = None
    folds: int | None = None
    seed: int = 0
    group_by: str | None = None

    def __post_init__(self) -> None:
        size: object = self.test_size
        if size is None and self.folds is None:
            raise ParameterError(
                "{} and {} need {} or {}".format(*map(spelled, ("seed", "group_by", "test_size", "folds")))
            )
        number = isinstance(size, int | float | np.floating) and not isinstance(size, bool)
        if size is not None and not (number and 0 < size < 1):  # type: ignore[operator]
            expected = "expected a fraction between 0 and 1, such as 0.2"
            raise ParameterError(f"{spelled('test_size')}: {expected}, found {brief(size)}")
        folds = None if self.folds is None else integer(spelled("folds"), self.folds)
        if folds is not None and folds < 2:
            raise ParameterError(f"{spelled('folds')}: expected at least 2, found {brief(folds)}")
        if (seed := integer(spelled("seed"), self.seed)) < 0:
            raise ParameterError(f"{spelled('seed')}: expected 0 or more, found {brief(seed)}")
        if self.group_by is not None and not (isinstance(self.group_by, str) and self.group_by):
            expected = "expected a coordinate or FILE.csv:COLUMN"
            raise ParameterError(f"{spelled('group_by')}: {expected}, found {brief(self.group_by)}")
        # Plain numbers in place of numpy's, which JSON does not know.
        plain = {"test_size": None if size is None else float(size), "folds": folds, "seed": seed}  # type: ignore[arg-type]
        for name, value in plain.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Split:
    """Which of n sentences are for training, and in which fold each is.

    Attributes
    ----------
    train : ndarray, (n,) bool
        False for the test rows.
    fold : ndarray, (n,) int64, or None
        From 0; test rows that are in no fold have -1.
    duplicate_groups, duplicates : int
        Groups of two or more near-duplicates, and the sentences in them.
    across : int
        Sentences with a near-duplicate, or another member of their group, on another side: in the test part, in the
        training part, in another fold. Counted from the result.
    across_if_ignored : int
        Sentences that would have a near-duplicate on another side, had the same split ignored near-duplicates.
    groups_digest : str
        SHA-256 of the sentences' groups, in hex; empty without `group_by`.
    """

    train: NDArray[np.bool_]
    fold: NDArray[np.int64] | None
    duplicate_groups: int
    duplicates: int
    across: int
    across_if_ignored: int
    groups_digest: str

    @property
    def report(self) -> str:
        """The split in two lines of plain English."""
        n_train = np.count_nonzero(self.train)
        sizes = f"{n_train} sentences for training, {len(self.train) - n_train} for testing"
        if self.fold is not None:
            counts = np.bincount(self.fold[self.fold >= 0])
            sizes += f"; {len(counts)} folds of {counts.min()}" + f" to {counts.max()}" * bool(np.ptp(counts))
        kin = "a near-duplicate or a member of their group" if self.groups_digest else "a near-duplicate"
        found = f"{self.duplicates} sentences in {self.duplicate_groups} groups of near-duplicates"
        ignored = f"{self.across_if_ignored} if near-duplicates were ignored"
        return f"{sizes}\n{found}; {self.across} sentences have {kin} on another side ({ignored})"


def split(ds: xr.Dataset, options: SplitOptions) -> Split:
    """Split the sentences of a store without leakage.

    Near-duplicates (see `featurestore.duplicates.group_near_duplicates`: texts whose sets of character 4-grams have a
    Jaccard similarity of at least 0.6, found exactly by prefix filtering) and members of one group are never on two
    sides. Otherwise every label is divided in the same proportion: to the row without near-duplicates and groups, else
    as nearly as they permit, by giving the largest first, each to the part that lacks most of its labels [1]_.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store; of it `sentence`, `label`, `text` and the coordinate of `group_by` are read.
    options : SplitOptions
        With `test_size`, the folds divide the training rows; without, all rows, and fold 0 is the test part.

    Returns
    -------
    Split
        In the order of the sentences of `ds`. Where a sentence goes depends on the sentences, not on their order.

    Raises
    ------
    ParameterError
        If `group_by` names no coordinate, or a file that cannot be read or does not say the group of every sentence.
    SelectionError
        If what belongs together is too large, or the sentences are too few, for such a split.

    References
    ----------
    .. [1] Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data. ECML PKDD 2011.
    """
    order = np.argsort(ds["sentence"].values, kind="stable")
    sentence, label, text = (ds[name].values[order] for name in ("sentence", "label", "text"))
    near = group_near_duplicates(text.tolist())
    names = [""] * len(near) if options.group_by is None else _group_names(ds, options.group_by)
    named = [names[position] for position in order.tolist()]
    groups = _first_members(named)
    units = _connected(near, groups)
    if len(np.unique(units)) < _n_sides(options):
        raise _impossible(units, options)
    train, fold = _divide(units, label, options)
    sides = _sides(train, fold)
    if not _met(sides, options):
        raise _impossible(units, options)
    duplicates = _sizes(near) > 1
    back = np.argsort(order)
    return Split(
        train=train[back],
        fold=None if fold is None else fold[back],
        duplicate_groups=len(np.unique(near[duplicates])),
        duplicates=int(np.count_nonzero(duplicates)),
        across=int(np.count_nonzero(_torn(near, sides) | _torn(groups, sides))),
        across_if_ignored=_torn_if_ignored(near, groups, label, options) if duplicates.any() else 0,
        groups_digest="" if options.group_by is None else _digest(sentence.tolist(), named),
    )


def _torn_if_ignored(
    near: NDArray[np.int64], groups: NDArray[np.int64], label: NDArray[np.int64], options: SplitOptions
) -> int:
    return int(np.count_nonzero(_torn(near, _sides(*_divide(groups, label, options)))))


def _divide(
    units: NDArray[np.int64], labels: NDArray[np.int64], options: SplitOptions
) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    rng = np.random.default_rng(options.seed)
    train = np.ones(len(units), np.bool_)
    if options.test_size is not None:
        train = _assign(units, labels, np.array([1 - options.test_size, options.test_size]), rng) == 0
    if options.folds is None:
        return train, None
    fold = np.full(len(units), -1)
    # The largest unit goes to the first of equal parts: without the permutation always to the test part.
    shares = np.full(options.folds, 1 / options.folds)
    fold[train] = rng.permutation(options.folds)[_assign(units[train], labels[train], shares, rng)]
    return (train if options.test_size is not None else fold != 0), fold


def _assign(
    units: NDArray[np.int64], labels: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Divide rows into parts of given shares, for each label; return the part of each row.

    The largest units first, each goes to the part that lacks most of its labels. Lacks are counted in whole rows, so
    that the last rows of a label, which fit nowhere exactly, even the sizes of the parts; of unequal parts in pieces of
    the unit's size, because the larger part would get the last piece of every label.
    """
    unequal = bool(np.ptp(shares))
    part = np.zeros(len(units), np.int64)
    _, label, totals = np.unique(labels, return_inverse=True, return_counts=True)
    lacking, placed, done = np.outer(shares, totals), np.zeros(len(shares)), 0
    for rows in _large_to_small(units, label, rng):
        own, counts = np.unique(label[rows], return_counts=True)
        done += len(rows)
        piece = counts if unequal else np.ones_like(counts)
        fit = (np.ceil(lacking[:, own] / piece - 1e-9) * piece * counts / totals[own]).sum(axis=1)
        lag = shares * done - placed
        chosen = np.lexsort((-lag.round(9), -fit.round(9)))[0]
        lacking[chosen, own] -= counts
        placed[chosen] += len(rows)
        part[rows] = chosen
    return part


def _large_to_small(
    units: NDArray[np.int64], label: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each unit: the largest first, those of one size by label, and otherwise shuffled."""
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    rows = np.split(np.argsort(units, kind="stable"), np.cumsum(sizes)[:-1])
    shuffled = rng.permutation(len(sizes))
    for unit in shuffled[np.lexsort((label[first[shuffled]], -sizes[shuffled]))].tolist():
        yield rows[unit]


def _connected(near: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join two groupings, each given, as the result, by the smallest position in a group."""
    components = Components(len(near))
    for grouping in (near, groups):
        for position in np.flatnonzero(grouping != np.arange(len(near))).tolist():
            components.join(position, int(grouping[position]))
    _, first, inverse = np.unique(components.of, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _first_members(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the smallest position of the same name; without a name, its own."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, i) if name else i for i, name in enumerate(names)], np.int64)


def _digest(sentence: Sequence[int], names: Sequence[str]) -> str:
    return hashlib.sha256(repr(list(zip(sentence, names, strict=True))).encode()).hexdigest()


def _sizes(grouping: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the size of each one's group."""
    return np.bincount(grouping, minlength=len(grouping))[grouping]


def _sides(train: NDArray[np.bool_], fold: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.where(train, 0, -1) if fold is None else fold


def _torn(grouping: NDArray[np.int64], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which have a member of their group on another side."""
    torn = np.zeros(len(grouping), np.bool_)
    torn[grouping[sides != sides[grouping]]] = True
    return torn[grouping]


def _n_sides(options: SplitOptions) -> int:
    return (options.folds or 1) + (options.test_size is not None)


def _met(sides: NDArray[np.int64], options: SplitOptions) -> bool:
    """Say whether no side is empty, and the test part near the size that was asked for."""
    if len(np.unique(sides)) < _n_sides(options):
        return False
    if options.test_size is None:
        return True
    off = abs(np.count_nonzero(sides < 0) - len(sides) * options.test_size)
    return bool(off < max(1, len(sides) * min(options.test_size, 1 - options.test_size) / 2))


def _impossible(units: NDArray[np.int64], options: SplitOptions) -> SelectionError:
    n, largest = len(units), int(_sizes(units).max(initial=0))
    sizes = {"test_size": options.test_size, "folds": options.folds}
    asked = ", ".join(spelled(name, value) for name, value in sizes.items() if value is not None)
    if largest < 2:
        return SelectionError(f"{asked}: {n} sentences are too few; ask for fewer or larger parts, or ingest more")
    kin = "near-duplicates" if options.group_by is None else "near-duplicates or members of one group"
    return SelectionError(
        f"{asked}: the {n} sentences form {len(np.unique(units))} groups of {kin}, and the largest holds {largest}: "
        "no split keeps them together; ask for fewer or larger parts, or add sentences that differ"
    )


def _group_names(ds: xr.Dataset, group_by: str) -> list[str]:
    """Return the name of each sentence's group; an empty one belongs to none."""
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
        some = "; ".join(map(shortened, unnamed[:3])) + "; ..." * (len(unnamed) > 3)
        found = f"{len(unnamed)} of {len(sentences)} sentences are not in it ({key} {some})"
        add = f"add them, with an empty {shortened(column.strip())} where there is no group"
        raise ParameterError(f"{spelled('group_by', path)}: {found}; {add}")
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
