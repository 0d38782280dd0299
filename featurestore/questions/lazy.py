"""Lazy arrays made chunk by chunk, each from the chunks beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dask.array as da
    import numpy as np

Dims = tuple[int, ...]


def by_chunk(
    function: Callable[..., np.ndarray[Any, Any]], dims: Dims, *parts: tuple[da.Array, Dims], dtype: Any, **options: Any
) -> da.Array:
    """Apply a function to the chunks of some arrays that belong together, each of its own dims. Lazy.

    Parameters
    ----------
    function : callable
        Of a chunk of each array.
    dims : tuple of int
        Of the result; a dim that it lacks is whole in each call.
    *parts : (dask array, tuple of int)
        Arrays and their dims.
    dtype : dtype
        Of the result.
    **options
        As of `dask.array.blockwise`.
    """
    import dask.array as da

    flat = [item for part in parts for item in part]
    array: da.Array = da.blockwise(function, dims, *flat, dtype=dtype, concatenate=True, **options)
    return array
