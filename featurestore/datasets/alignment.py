"""What a strategy has selected, checked, with the rows of X and y joined by sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import StrategyError, some
from featurestore.strategies import Selection

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Aligned:
    """X and y of some sentences of a store, lazy; a row of one belongs to the same sentence as that of the other.

    Attributes
    ----------
    positions : ndarray, (k,) int
        Where the sentences stand in the store, ascending.
    sentences : ndarray, (k,) int64
        Their sentence_index.
    X : tuple of xarray.DataArray, (sentence, ...)
        Blocks of columns; `token` is the second dim where the strategy has left all tokens.
    y : xarray.DataArray, (sentence,) or (sentence, target), or with `token` after `sentence`
        What is to be predicted.
    densest : int or None
        As in `Selection`.
    """

    positions: Array
    sentences: Array
    X: tuple[xr.DataArray, ...]
    y: xr.DataArray
    densest: int | None


def align(selection: object, sentences: Array, tokens: Array) -> Aligned:
    """Check a selection, and bring its rows into the order of the store.

    Parameters
    ----------
    selection : Selection
        Rows may be in any order, and be of a subset of the sentences.
    sentences : ndarray, (n,) int64
        The sentence_index of each sentence of the store.
    tokens : ndarray, (T,) int64
        The labels of its tokens.

    Raises
    ------
    StrategyError
        If it is something else, no numbers, empty, or X and y do not say that they are of the same sentences.
    """
    if not isinstance(selection, Selection):
        raise StrategyError(f"expected a Selection of X and y, found {type(selection).__name__}; return one")
    blocks = selection.blocks
    if not blocks:
        raise StrategyError("X: expected at least one block of columns, found none")
    given = {"X" if len(blocks) == 1 else f"X[{i}]": block for i, block in enumerate(blocks)} | {"y": selection.y}
    arrays = {name: _checked(name, array, tokens) for name, array in given.items()}
    if arrays["y"].ndim > 2 + ("token" in arrays["y"].dims):
        raise StrategyError(f"y: expected the dim sentence and at most one more, found {arrays['y'].dims}")
    places = {name: _places(name, array, sentences) for name, array in arrays.items()}
    positions = np.sort(places["y"])
    for name, place in places.items():
        if len(differing := np.setxor1d(place, positions)):
            found = f"{len(differing)} are only in one of them (sentence_index {some(sentences[differing])})"
            raise StrategyError(f"{name} and y name different sentences: {found}; select the same for both")
    *X, y = (
        array if np.array_equal(places[name], positions) else array[np.argsort(places[name])]
        for name, array in arrays.items()
    )
    aligned = Aligned(positions=positions, sentences=sentences[positions], X=tuple(X), y=y, densest=selection.densest)
    _check_densest(aligned)
    return aligned


def representable(values: Any) -> Any:
    """Tell which values a dataset can hold: as float32, or integers as int64; lazy for a dask array."""
    if values.dtype.kind in "iub":
        return values <= np.iinfo(np.int64).max
    finite = np.isfinite(values)
    return finite if values.dtype.itemsize <= 4 else finite & (abs(values) <= np.finfo(np.float32).max)


def _checked(name: str, array: object, tokens: Array) -> xr.DataArray:
    """Return a labelled array of numbers, with sentence as its first dim, and token as its second if it has that."""
    if not isinstance(array, xr.DataArray):
        found = f"{type(array).__name__}, which cannot show whose rows it has"
        raise StrategyError(f"{name}: expected an xarray.DataArray, found {found}; select it from ds")
    if "sentence" not in array.dims or "sentence" not in array.coords:
        lacking = "dim" if "sentence" not in array.dims else "coordinate"
        found = f"dims {array.dims} and coordinates {(*array.coords,)}"
        raise StrategyError(f"{name}: expected the {lacking} sentence, which joins X and y, found {found}")
    if array["sentence"].dtype.kind not in "iu":
        kind = array["sentence"].dtype
        raise StrategyError(f"{name}: expected integers as coordinate sentence, found {kind}; keep that of ds")
    if array.dtype.kind not in "fiub":
        raise StrategyError(f"{name}: expected numbers, found {array.dtype}; convert it with .astype")
    if any(not size > 0 for size in array.shape):
        raise StrategyError(f"{name}: expected rows and columns, found shape {array.shape}; select some")
    if "token" not in array.dims:
        return array if array.dims[0] == "sentence" else array.transpose("sentence", ...)
    if "token" not in array.coords or not np.array_equal(array["token"].values, tokens):
        instead = "select one, leave all, or rename the dim, as in .rename(token='position')"
        raise StrategyError(f"{name}: expected all tokens in the dim token, or no such dim, found some; {instead}")
    return array.transpose("sentence", "token", ...)


def _places(name: str, array: xr.DataArray, sentences: Array) -> Array:
    """Return where the sentences of an array stand in the store."""
    found = array["sentence"].values
    if np.array_equal(found, sentences):
        return np.arange(len(sentences))
    order = np.argsort(sentences, kind="stable")
    at = order[np.minimum(np.searchsorted(sentences, found, sorter=order), len(order) - 1)]
    if len(foreign := found[sentences[at] != found]):
        raise StrategyError(f"{name}: expected sentences of the store, found sentence_index {foreign[0]}")
    if len(np.unique(at)) < len(at):
        values, counts = np.unique(found, return_counts=True)
        raise StrategyError(f"{name}: names sentence {values[counts > 1][0]} twice; name each once")
    return at


def _check_densest(aligned: Aligned) -> None:
    """Refuse a number of features to keep where there are no features, or not so many."""
    densest = aligned.densest
    if densest is None:
        return
    dims = tuple(dim for dim in aligned.X[0].dims if dim != "token")
    if len(aligned.X) > 1 or dims != ("sentence", "feature") or "feature" not in aligned.X[0].coords:
        raise StrategyError("densest: expected X as one block of dims (sentence, feature), with the coordinate feature")
    n = aligned.X[0].sizes["feature"]
    if isinstance(densest, bool) or not isinstance(densest, int | np.integer) or not 0 < densest <= n:
        raise StrategyError(f"densest: expected 1 to {n} features, found {densest!r}")
