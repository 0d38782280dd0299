"""Rows divided into parts, every label in the same proportion, units of rows kept whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def assign(units: Rows, labels: Rows, shares: NDArray[np.float64], rng: np.random.Generator) -> Rows:
    """Divide rows into parts of given shares, for each label; return the part of each row.

    The largest units first, each goes to the part that lacks most of its labels. Lacks are counted in whole rows, so
    that the last rows of a label, which fit nowhere exactly, even the sizes of the parts; of unequal parts in pieces of
    the unit's size, because the larger part would get the last piece of every label.
    """
    return _greedy(_by_size_and_label(_shuffled(units, rng), labels), labels, shares)


def assign_two(units: Rows, labels: Rows, share: float, rng: np.random.Generator) -> tuple[Rows, bool]:
    """Divide rows into part 0 and, of a given share, part 1, whose size is the nearest that the units permit.

    As `assign` divides them, if that is the nearest. Otherwise once more, and a unit goes where the rest can still
    make up the size; then units of one size are not in the order of labels, lest the last label makes it up alone.
    The second value returned says whether it was divided once more.
    """
    order, shares, asked = _shuffled(units, rng), np.array([1 - share, share]), share * len(units)
    part = _greedy(_by_size_and_label(order, labels), labels, shares)
    off = abs(np.count_nonzero(part) - asked)
    if off <= 0.5:
        return part, False
    fewest, possible = _fillings(Counter(map(len, order)), len(units))
    nearest = int(possible[abs(possible - asked).argmin()])
    if off <= abs(nearest - asked) + 1e-9 or nearest in (0, len(units)):
        return part, False
    return _greedy(sorted(order, key=len, reverse=True), labels, shares, nearest, fewest), True


def _greedy(
    order: Sequence[Rows],
    labels: Rows,
    shares: NDArray[np.float64],
    size: int = 0,
    fewest: Mapping[int, Rows] | None = None,
) -> Rows:
    """Assign unit after unit, the largest first; with `fewest`, so that part 1 of two has `size` rows in the end."""
    unequal = bool(np.ptp(shares))
    part = np.zeros(len(labels), np.int64)
    _, label, totals = np.unique(labels, return_inverse=True, return_counts=True)
    lacking, placed, done = np.outer(shares, totals), np.zeros(len(shares)), 0
    left = Counter(map(len, order))
    for rows in order:
        own, counts = np.unique(label[rows], return_counts=True)
        done += len(rows)
        piece = counts if unequal else np.ones_like(counts)
        fit = (np.ceil(lacking[:, own] / piece - 1e-9) * piece * counts / totals[own]).sum(axis=1)
        lag = shares * done - placed
        chosen = int(np.lexsort((-lag.round(9), -fit.round(9)))[0])
        if fewest:
            left[len(rows)] -= 1
            missing = size - int(placed[1]) - chosen * len(rows)
            if missing < 0 or fewest[len(rows)][missing] > left[len(rows)]:
                chosen = 1 - chosen
        lacking[chosen, own] -= counts
        placed[chosen] += len(rows)
        part[rows] = chosen
    return part


def _fillings(units: Mapping[int, int], n: int) -> tuple[dict[int, Rows], Rows]:
    """Tell what can be filled by units, given as how many there are of each size: a subset sum by dynamic programming.

    Returns
    -------
    dict of int to ndarray, (n + 1,) int
        By size, how many units of it, at least, fill so many rows together with smaller ones; more than n where no
        number does.
    ndarray of int
        How many rows can be filled at all.
    """
    fewest, possible = {}, np.arange(n + 1) == 0
    for size in sorted(units):
        times = np.arange(-(-(n + 1) // size))[:, None]  # a column holds what differs by multiples of the size
        columns = np.resize(possible, times.size * size).reshape(-1, size)
        columns.ravel()[n + 1 :] = False
        fewest[size] = (times - np.maximum.accumulate(np.where(columns, times, -n - 1))).ravel()[: n + 1]
        possible = fewest[size] <= units[size]
    return fewest, np.flatnonzero(possible)


def _shuffled(units: Rows, rng: np.random.Generator) -> list[Rows]:
    """Return the rows of each unit, units at random."""
    sizes = np.unique(units, return_counts=True)[1]
    rows = np.split(np.argsort(units, kind="stable"), np.cumsum(sizes)[:-1])
    return [rows[unit] for unit in rng.permutation(len(sizes)).tolist()]


def _by_size_and_label(order: Sequence[Rows], labels: Rows) -> list[Rows]:
    return sorted(order, key=lambda rows: (-len(rows), labels[rows[0]]))
