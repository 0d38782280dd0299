"""Normalization: statistics computed once by dask, kept as a frozen value, applied and inverted anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from featurestore.errors import ParameterError, brief
from featurestore.schema import NORMALIZATIONS

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

PARAMETERS = dict(zip(NORMALIZATIONS, (("mean", "std"), ("min", "max"), ()), strict=True))
"""The methods, and the names of their parameters."""

_ROWS = 256
"""Rows of a chunk while statistics are computed."""

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

    def parts(self, widths: Sequence[int]) -> list[Self]:
        """Return those of consecutive blocks of columns."""
        ends = np.cumsum(widths).tolist()
        slices = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return [replace(self, **{name: array[part] for name, array in arrays.items()}) for part in slices]


@dataclass(frozen=True, eq=False)
class Statistics(Extremes):
    """What every method needs to know of the columns; `std` has ddof 0."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def measure_extremes(columns: Sequence[ArrayLike]) -> list[Extremes]:
    """Compute the extremes of several arrays at once, as `measure` does all statistics."""
    wanted = [(array.min(axis=0), array.max(axis=0)) for array in _lazy(columns)]
    return [Extremes(*found) for found in _compute(wanted)]


def measure(columns: Sequence[ArrayLike]) -> list[Statistics]:
    """Compute the statistics of several arrays at once, in float64 and chunk by chunk, by dask.

    Parameters
    ----------
    columns : sequence of array, (n, d)
        Finite raw values: anything that has a shape and a dtype and can be sliced, not necessarily in memory.

    Returns
    -------
    list of Statistics
        They depend on the values and their order alone, not on what else is computed, nor on the user's scheduler. A
        constant column has its value as mean and 1 as std, so that it comes out as exactly 0 (or as next to nothing,
        where it varies by less than 1.2e-38).
    """
    wanted = [(array.min(axis=0), array.max(axis=0), array.mean(axis=0), array.std(axis=0)) for array in _lazy(columns)]
    return [_statistics(*found) for found in _compute(wanted)]


def _lazy(columns: Sequence[ArrayLike]) -> list[da.Array]:
    import dask.array as da

    return [da.from_array(array, chunks=(_ROWS, -1), name=False).astype(np.float64) for array in columns]


def _compute(wanted: Sequence[tuple[da.Array, ...]]) -> tuple[tuple[NDArray[np.float64], ...], ...]:
    from dask.base import compute

    found: tuple[tuple[NDArray[np.float64], ...], ...] = compute(*wanted, scheduler="threads")
    return found


def _statistics(*computed: NDArray[np.float64]) -> Statistics:
    smallest, largest, mean, std = computed
    constant = _span(smallest, largest) == 0
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
