"""Train and test rows, and folds, that keep near-duplicates and groups of sentences together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, SelectionError, spelled
from featurestore.splits.duplicates import DisjointSets, group_near_duplicates, is_invisible
from featurestore.splits.groups import group_names
from featurestore.splits.options import SplitOptions
from featurestore.splits.stratify import assign, assign_two

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Which of n sentences are for training, and in which fold each is.

    Attributes
    ----------
    train : ndarray, (n,) bool
        False for the test rows.
    fold : ndarray, (n,) int64, or None
        From 0; test rows that are in no fold have -1.
    near, groups : ndarray, (n,) int64
        Equal numbers for near-duplicates, and for members of one group; another for each of the rest.
    careless : ndarray, (n,) int64
        On which side each would be, numbered in any way, had the same split ignored near-duplicates.
    groups_digest : str
        SHA-256 of the sentences' groups, in hex; empty without `group_by`.
    out : ndarray, (n,) bool
        Test sentences that are left out, as they belong together with a training sentence, which is of another store.
    stratified_by : str
        What the labels are, if not those of the store.
    version : str
        ``"2"`` where sentences may be on other sides than by the first version of this calculation: where that missed
        the nearest size, or texts hold invisible characters. Otherwise empty.
    """

    train: NDArray[np.bool_]
    fold: NDArray[np.int64] | None
    near: NDArray[np.int64]
    groups: NDArray[np.int64]
    careless: NDArray[np.int64]
    groups_digest: str
    out: NDArray[np.bool_]
    stratified_by: str = ""
    version: str = ""

    @property
    def sides(self) -> NDArray[np.int64]:
        """On which side each is, (n,): the fold, without folds 0 for training; -1 for test rows outside of folds."""
        return _sides(self.train, self.fold)

    @cached_property
    def across(self) -> int:
        """Sentences with a near-duplicate, or another member of their group, on another side; counted from the result.

        Sides are the test part, the training part, and each fold. Counted once, as every dataset records it.
        """
        near, groups, sides = (values[~self.out] for values in (self.near, self.groups, self.sides))
        return int(np.count_nonzero(_torn(near, sides) | _torn(groups, sides)))

    @property
    def report(self) -> str:
        """The split in two lines of plain English."""
        return self.report_of(np.ones(len(self.train), np.bool_))

    def report_of(self, kept: NDArray[np.bool_]) -> str:
        """Report on the sentences that a dataset keeps, (n,) bool, as `report` does on all."""
        kept = kept & ~self.out
        train, near, groups = self.train[kept], self.near[kept], self.groups[kept]
        n, n_train, sides = len(train), np.count_nonzero(train), self.sides[kept]
        sizes, across = f"{n_train} sentences for training, {n - n_train} for testing", "training and testing"
        if self.fold is not None:
            counts = np.bincount(sides[sides >= 0], minlength=self.fold.max() + 1)
            sizes += f"; {len(counts)} folds of {counts.min()}" + f" to {counts.max()}" * bool(np.ptp(counts))
            across = "training, testing and folds"
        if self.stratified_by:
            sizes += f"; stratified by {self.stratified_by}"
        if apart := np.count_nonzero(self.out):
            sizes += f"; {apart} test sentences left out, as near-duplicates (or of the group) of training sentences"
        if n + apart < len(kept):
            sizes += f"; {len(kept) - n - apart} left out"
        if alike := np.count_nonzero(_sizes(near) > 1):
            careless, leaking = (np.count_nonzero(_torn(near, where)) for where in (self.careless[kept], sides))
            found = f"{alike} sentences are nearly the same as another (near-duplicates): if that were ignored,"
            found += f" {careless or 'none'} would leak between {across}; here {leaking or 'none'} do"
        else:
            found = f"no sentence is nearly the same as another (a near-duplicate), so none can leak between {across}"
        if self.groups_digest:
            divided = np.count_nonzero(_torn(groups, sides))
            found += f"; {divided} sentences are apart from their group" if divided else "; no group is divided"
        return f"{sizes}\n{found}"


def split(ds: xr.Dataset, options: SplitOptions) -> Split:
    """Split the sentences of a store without leakage.

    Near-duplicates (see `featurestore.splits.duplicates.group_near_duplicates`: texts whose sets of character 4-grams
    have a Jaccard similarity of at least 0.6, found exactly by prefix filtering) and members of one group are never on
    two sides. Otherwise every label is divided in the same proportion: to the row without near-duplicates and groups,
    else as nearly as they permit, by giving the largest first, each to the part that lacks most of its labels [1]_.

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
    names = [""] * len(near) if options.group_by is None else group_names(ds, options.group_by)
    named = [names[position] for position in order.tolist()]
    groups = _first_members(named)
    units = _connected(near, groups)
    is_test = None if options.test_store is None else _of_store(ds, options.test_store)[order]
    out = np.zeros(len(units), np.bool_) if is_test is None else is_test & np.isin(units, units[~is_test])
    if len(np.unique(units[~out])) < _n_sides(options):
        raise _impossible(units, options)
    train, fold, again = _divide(units, label, options, is_test)
    sides = _sides(train, fold)
    if not _met(sides[~out], options):
        raise _impossible(units, options)
    careless = _sides(*_divide(groups, label, options, is_test)[:2]) if len(np.unique(near)) < len(near) else sides
    changed = again or any(is_invisible(char) for one in text.tolist() if not one.isascii() for char in one)
    back = np.argsort(order)
    return Split(
        train=train[back],
        fold=None if fold is None else fold[back],
        near=near[back],
        groups=groups[back],
        careless=careless[back],
        groups_digest="" if options.group_by is None else _digest(sentence.tolist(), named),
        out=out[back],
        version="2" if changed else "",
    )


def _of_store(ds: xr.Dataset, name: str) -> NDArray[np.bool_]:
    """Tell which sentences are of a store, one of several."""
    asked = spelled("test_store", name)
    if "store" not in ds.coords:
        raise ParameterError(
            f"{asked}: expected several stores, found one; name one more, or use {spelled('test_size')}"
        )
    stores: NDArray[Any] = ds["store"].values
    if name not in (known := dict.fromkeys(stores.tolist())):
        raise ParameterError(f"{asked}: expected the name of one of the stores, {', '.join(known)}")
    return np.asarray(stores == name, np.bool_)


def _divide(
    units: NDArray[np.int64],
    labels: NDArray[np.int64],
    options: SplitOptions,
    is_test: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None, bool]:
    """Return the training rows, the folds, and whether the test part took a second attempt."""
    rng = np.random.default_rng(options.seed)
    train, again = np.ones(len(units), np.bool_) if is_test is None else ~is_test, False
    if options.test_size is not None:
        part, again = assign_two(units, labels, options.test_size, rng)
        train = part == 0
    if options.folds is None:
        return train, None, again
    fold = np.full(len(units), -1)
    # The largest unit goes to the first of equal parts: without the permutation always to the test part.
    shares = np.full(options.folds, 1 / options.folds)
    fold[train] = rng.permutation(options.folds)[assign(units[train], labels[train], shares, rng)]
    return (fold != 0 if options.test_size is None and is_test is None else train), fold, again


def _connected(near: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join two groupings, each given, as the result, by the smallest position in a group."""
    components = DisjointSets(len(near))
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
    _, inverse, counts = np.unique(grouping, return_inverse=True, return_counts=True)
    return counts[inverse]


def _sides(train: NDArray[np.bool_], fold: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.where(train, 0, -1) if fold is None else fold


def _torn(grouping: NDArray[np.int64], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which have a member of their group on another side."""
    _, first, inverse = np.unique(grouping, return_index=True, return_inverse=True)
    return np.isin(inverse, inverse[sides != sides[first[inverse]]])


def _n_sides(options: SplitOptions) -> int:
    return (options.folds or 1) + (options.test_size is not None or options.test_store is not None)


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
    sizes = {"test_size": options.test_size, "folds": options.folds, "test_store": options.test_store}
    asked = ", ".join(spelled(name, value) for name, value in sizes.items() if value is not None)
    if largest < 2:
        return SelectionError(f"{asked}: {n} sentences are too few; ask for fewer or larger parts, or ingest more")
    if options.test_store is not None and options.folds is None:
        return SelectionError(
            f"{asked}: every test sentence has a near-duplicate (or a member of its group) in training: none is left; "
            "choose another store"
        )
    kin = "near-duplicates" if options.group_by is None else "near-duplicates or members of one group"
    return SelectionError(
        f"{asked}: the {n} sentences form {len(np.unique(units))} groups of {kin}, and the largest holds {largest}: "
        "no split keeps them together; ask for fewer or larger parts, or add sentences that differ"
    )
