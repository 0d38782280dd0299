"""Normalization: statistics computed once by dask, kept as a frozen value, applied and inverted anywhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError
from featurestore.schema import NORMALIZATIONS

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

PARAMETERS = dict(zip(NORMALIZATIONS, (("mean", "std"), ("min", "max"), ()), strict=True))
"""The methods, and the names of their parameters."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A fitted normalization of d columns.

    Attributes
    ----------
    method : str
        ``"standardize"``, ``"minmax"`` or ``"none"``.
    parameters : mapping of str to ndarray, (d,) float64
        `mean` and `std` (population, ddof 0; 1 where a column is constant), or `min` and `max`, or nothing.
    """

    method: str
    parameters: Mapping[str, NDArray[np.float64]]

    def transform(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Normalize raw values: ``(raw - mean) / std``, or ``(raw - min) / (max - min)``, with divisor 1 for 0.

        Parameters
        ----------
        raw : array_like, (..., d)
            Raw values, of any floating dtype.

        Returns
        -------
        ndarray, (..., d) float32
            Calculated in float64 and rounded once.

        Raises
        ------
        ParameterError
            If the number of columns is another.
        """
        raw = np.asarray(raw)
        if self.method == "none":
            return raw.astype(np.float32)
        shift, divisor = self._affine
        if raw.shape[-1:] != shift.shape:
            raise ParameterError(f"raw values: expected {len(shift)} columns, found shape {raw.shape}")
        values: NDArray[np.float64] = raw.astype(np.float64)
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
        """
        if self.method == "none":
            return np.asarray(normalized, np.float32)
        shift, divisor = self._affine
        return (np.asarray(normalized, np.float64) * divisor + shift).astype(np.float32)

    @property
    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        first, second = (self.parameters[name] for name in PARAMETERS[self.method])
        if self.method == "standardize":
            return first, second
        span = second - first
        return first, np.where(span == 0, 1.0, span)


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises
    ------
    ParameterError
        If it is none of `PARAMETERS`.
    """
    if method not in PARAMETERS:
        raise ParameterError(f"normalize: expected one of {', '.join(PARAMETERS)}, found {method!r}")


def fit(method: str, X: da.Array) -> Normalization:
    """Compute a normalization's parameters from finite raw values, in float64 and chunk by chunk.

    Parameters
    ----------
    method : str
        One of `PARAMETERS`.
    X : dask.array.Array, (n, d)
        Raw values; computed here, once.

    Returns
    -------
    Normalization
        A constant column has its value as mean and 1 as std, so that it comes out as exactly 0.
    """
    from dask.base import compute

    values = X.astype(np.float64)
    statistics: dict[str, Any] = {}
    if method != "none":
        statistics = {"min": values.min(axis=0), "max": values.max(axis=0)}
    if method == "standardize":
        statistics |= {"mean": values.mean(axis=0), "std": values.std(axis=0)}
    (computed,) = compute(statistics)
    if method == "none":
        return Normalization(method, {})
    constant = computed["min"] == computed["max"]
    if n_constant := np.count_nonzero(constant):
        logger.warning("%d of %d columns of X are constant", n_constant, len(constant))
    if method == "standardize":
        computed["mean"] = np.where(constant, computed["min"], computed["mean"])
        computed["std"] = np.where(constant | (computed["std"] == 0), 1.0, computed["std"])
    return Normalization(method, {name: computed[name] for name in PARAMETERS[method]})
