"""Normalization: statistics computed once, kept as a frozen value, applied and inverted anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched, chain, islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from featurestore.errors import ParameterError, brief
from featurestore.schema import NORMALIZATIONS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

PARAMETERS = dict(zip(NORMALIZATIONS, (("mean", "std"), ("min", "max"), ()), strict=True))
"""The methods, and the names of their parameters."""

_ROWS, _MERGED = 256, 4
"""Rows that are summed up by themselves, and how many such sums are then merged: what rounding makes of statistics."""

_COLUMNS = 512
"""Columns that a thread measures at once: of so many rows, a processor's cache can hold them."""

_SMALLEST = np.finfo(np.float32).tiny
"""A column whose values spread less than float32 can tell from 0 in full precision counts as constant."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A fitted normalization of d columns.

    Attributes
    ----------
    method : str
        ``"standardize"``, ``"minmax"`` or ``"none"``.
    parameters : mapping of str to ndarray, (d,) float64
        `mean` and `std` (population, ddof 0; 1 where a column is constant), or `min` and `max`, or nothing. Constant is
        a column whose largest and smallest value differ by less than 1.2e-38, float32's smallest normal number.
    """

    method: str
    parameters: Mapping[str, NDArray[np.float64]]

    @property
    def width(self) -> int | None:
        """Number of columns; None for ``"none"``, which fits any."""
        return next((len(values) for values in self.parameters.values()), None)

    def transform(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Normalize raw values: ``(raw - mean) / std``, or ``(raw - min) / (max - min)``, or by 1 if that is constant.

        Parameters
        ----------
        raw : array_like, (..., d)
            Raw values, of any floating dtype.

        Returns
        -------
        ndarray, (..., d) float32
            Calculated in float64 and rounded once. What float32 cannot hold becomes infinite, with numpy's warning; a
            dataset refuses it.

        Raises
        ------
        ParameterError
            If they are no numbers, or the number of columns is another.
        """
        values = numbers("raw values", raw, self.width)
        if self.method == "none":
            return values.astype(np.float32)
        shift, divisor = self._affine
        values = values.astype(np.float64)
        values -= shift
        values /= divisor
        return values.astype(np.float32)

    def inverse(self, normalized: ArrayLike) -> NDArray[np.float32]:
        """Undo `transform`, up to float32 rounding.

        Parameters
        ----------
        normalized : array_like, (..., d)
            Values as in a dataset's X.

        Returns
        -------
        ndarray, (..., d) float32

        Raises
        ------
        ParameterError
            If they are no numbers, or the number of columns is another.
        """
        values = numbers("normalized values", normalized, self.width)
        if self.method == "none":
            return values.astype(np.float32)
        shift, divisor = self._affine
        return (values.astype(np.float64) * divisor + shift).astype(np.float32)

    def of(self, columns: NDArray[np.intp] | slice) -> Self:
        """Return the normalization of some of the columns."""
        return replace(self, parameters={name: values[columns] for name, values in self.parameters.items()})

    @property
    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        first, second = (self.parameters[name] for name in PARAMETERS[self.method])
        if self.method == "standardize":
            return first, second
        span = _span(first, second)
        return first, np.where(span == 0, 1.0, span)


def numbers(what: str, values: ArrayLike, width: int | None) -> NDArray[Any]:
    """Return values as an array of real numbers, (..., width).

    Raises
    ------
    ParameterError
        If they are something else; with no width, any will do.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ParameterError(f"{what}: expected an array of numbers, found rows of different lengths") from error
    if array.dtype.kind not in "biuf":
        raise ParameterError(f"{what}: expected an array of real numbers, found dtype {array.dtype}")
    if width is not None and array.shape[-1:] != (width,):
        raise ParameterError(f"{what}: expected {width} columns, found shape {array.shape}")
    return array


def _span(smallest: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spread of each column, 0 where it counts as constant."""
    with np.errstate(over="ignore"):  # of values that float32 cannot hold anyway
        span = largest - smallest
    return np.where(span < _SMALLEST, 0.0, span)


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises
    ------
    ParameterError
        If it is none of `PARAMETERS`.
    """
    if not isinstance(method, str) or method not in PARAMETERS:
        raise ParameterError(f"normalize: expected one of {', '.join(PARAMETERS)}, found {brief(method)}")


@dataclass(frozen=True, eq=False)
class Extremes:
    """The smallest and the largest value of d columns of finite values, (d,) float64 each."""

    min: NDArray[np.float64]
    max: NDArray[np.float64]

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which columns count as constant, (d,)."""
        return np.equal(_span(self.min, self.max), 0)


@dataclass(frozen=True, eq=False)
class Statistics(Extremes):
    """What every method needs to know of the columns; `std` has ddof 0."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def measure_extremes(blocks: Sequence[NDArray[Any]], rows: NDArray[np.intp] | None = None) -> list[Extremes]:
    """Find the extremes of several arrays at once, as `measure` does all statistics."""
    return [Extremes(*found) for found in _reduced(blocks, rows, _extremes, _merged_extremes)]


def measure(blocks: Sequence[NDArray[Any]], rows: NDArray[np.intp] | None = None) -> list[Statistics]:
    """Compute the statistics of several arrays at once, in float64, by threads and in little memory.

    Parameters
    ----------
    blocks : sequence of ndarray, (m, d)
        Raw values, finite in those rows; not necessarily in memory.
    rows : ndarray, (n,) int, optional
        Of which rows, in this order; by default of all.

    Returns
    -------
    list of Statistics
        They depend on the values and their order alone, not on what else is computed. A constant column has its value
        as mean and 1 as std, so that it comes out as exactly 0 (or as next to nothing, where it varies by less than
        1.2e-38).
    """
    return [_statistics(*found) for found in _reduced(blocks, rows, _Sums.of, _Sums.merged)]


class _Sums(NamedTuple):
    """What some rows add up to, (w,) each; squares are about their mean, so that no small spread is lost."""

    min: Floats
    max: Floats
    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Sum up rows, (n, w), which are overwritten."""
        smallest, largest = _extremes(values)
        n, total = np.full(values.shape[1], float(len(values))), values.sum(axis=0)
        values -= total / n
        return cls(smallest, largest, n, total, np.square(values, out=values).sum(axis=0))

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """Merge the sums of some parts of the rows (Chan, Golub, LeVeque 1979)."""
        n, totals, squares = (np.stack(values) for values in list(zip(*parts, strict=True))[2:])
        of_all, total = n.sum(axis=0), totals.sum(axis=0)
        between = n * np.square(totals / n - total / of_all)
        return cls(*_merged_extremes(parts), of_all, total, squares.sum(axis=0) + between.sum(axis=0))


def _extremes(values: Floats) -> tuple[Floats, Floats]:
    return values.min(axis=0), values.max(axis=0)


def _merged_extremes(parts: Sequence[tuple[Floats, ...]]) -> tuple[Floats, Floats]:
    smallest, largest, *_ = zip(*parts, strict=True)
    return np.min(smallest, axis=0), np.max(largest, axis=0)


def _reduced[T: tuple[Floats, ...]](
    blocks: Sequence[NDArray[Any]],
    rows: NDArray[np.intp] | None,
    of: Callable[[Floats], T],
    merged: Callable[[Sequence[T]], T],
) -> list[list[Floats]]:
    """Describe some rows of each block, always in the same windows of rows and the same order, side by side."""

    def describe(columns: NDArray[Any]) -> T:
        chosen = np.arange(len(columns)) if rows is None else rows
        windows = (columns[consecutive(chosen[start : start + _ROWS])] for start in range(0, len(chosen), _ROWS))
        parts = [of(window.astype(np.float64)) for window in windows]
        while len(parts) > 1:
            parts = [merged(some) for some in batched(parts, _MERGED)]
        return parts[0]

    tiles = [_tiles(block) for block in blocks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(describe, chain.from_iterable(tiles))
        return [
            [np.concatenate(values)[: block.shape[1]] for values in zip(*islice(found, len(some)), strict=True)]
            for block, some in zip(blocks, tiles, strict=True)
        ]


def _tiles(block: NDArray[Any]) -> list[NDArray[Any]]:
    """Cut an array into columns; a lone one twice, because numpy adds up one in another order than several."""
    if (width := block.shape[1]) == 1:
        return [np.repeat(block, 2, axis=1)]
    bounds = np.linspace(0, width, max(1, width // _COLUMNS) + 1).astype(int)
    return [block[:, start:stop] for start, stop in pairwise(bounds)]


def consecutive(rows: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """Return rows that follow each other as a slice, for which nothing is copied; others as they are."""
    first = rows[0] if len(rows) else 0
    return slice(first, first + len(rows)) if np.array_equal(rows, np.arange(first, first + len(rows))) else rows


def _statistics(*found: Floats) -> Statistics:
    smallest, largest, n, total, squares = found
    constant = _span(smallest, largest) == 0
    mean, std = total / n, np.sqrt(squares / n)
    return Statistics(smallest, largest, np.where(constant, smallest, mean), np.where(constant | (std == 0), 1.0, std))


def fit(method: str, statistics: Sequence[Statistics]) -> Normalization:
    """Make a normalization from the statistics of blocks of columns, side by side.

    Parameters
    ----------
    method : str
        One of `PARAMETERS`.
    statistics : sequence of Statistics
        Not needed for ``"none"``.

    Returns
    -------
    Normalization
    """
    names = PARAMETERS[method]
    return Normalization(method, {name: np.concatenate([getattr(one, name) for one in statistics]) for name in names})
