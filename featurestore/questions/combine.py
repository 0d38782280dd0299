"""Layers combined: blocks of X added up, averaged or subtracted, before anything else becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, spelled
from featurestore.questions.lazy import by_chunk
from featurestore.schema import COMBINATIONS

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    Array = np.ndarray[Any, Any]


def check_combinable(how: str, blocks: Sequence[xr.DataArray]) -> None:
    """Refuse blocks that cannot be combined so.

    Raises
    ------
    ParameterError
        If there are too few or too many, or they are of different shapes.
    """
    if how == COMBINATIONS[0]:
        return
    asked, n = spelled("combine", how), len(blocks)
    if n < 2 or (how == "difference" and n != 2):
        expected = "exactly two layers" if how == "difference" else "two layers or more"
        raise ParameterError(f"{asked}: expected X of {expected}, found {n}; name as many, such as 5,15")
    if len(shapes := {(block.dims, block.shape) for block in blocks}) > 1:
        sizes = [" x ".join(f"{size} {dim}" for dim, size in zip(*shape, strict=True)) for shape in shapes]
        found = f"found {' and '.join(sorted(sizes))}"
        raise ParameterError(f"{asked}: expected blocks of X of one shape, {found}; combine those of one shape")


def combined(how: str, blocks: Sequence[da.Array]) -> list[da.Array]:
    """Combine blocks of one shape. Lazy.

    Returns
    -------
    list of dask array
        One, in float64: their sum, their mean, or the second less the first; with ``"concat"`` the blocks themselves.
    """
    if how == "concat":
        return list(blocks)
    dims = tuple(range(blocks[0].ndim))
    parts = [(block, dims) for block in blocks]
    return [by_chunk(partial(_combined, _COMBINED[how]), dims, *parts, dtype=np.float64)]


def _combined(combine: Callable[[Sequence[Array]], Array], *blocks: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of values that are not finite, which are looked for later
        return combine([block.astype(np.float64) for block in blocks])


def _sum(blocks: Sequence[Array]) -> Array:
    return reduce(np.add, blocks)


def _mean(blocks: Sequence[Array]) -> Array:
    return np.asarray(_sum(blocks) / len(blocks))


def _difference(blocks: Sequence[Array]) -> Array:
    return np.subtract(blocks[1], blocks[0])


_COMBINED = {"mean": _mean, "difference": _difference, "sum": _sum}
