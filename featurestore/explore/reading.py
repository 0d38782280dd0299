"""What looking at a store reads: some of its sentences, one layer after another, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, SelectionError, brief, spelled
from featurestore.ranges import integer
from featurestore.schema import FINAL_TOKEN
from featurestore.strategies import labelled

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

MOST_SENTENCES = 2000
"""Sentences that are looked at; of a larger store so many are drawn at random, so that time and memory are bounded."""

_BLOCK = 32
"""Sentences that are drawn together: as many as share a chunk of the store, which is read whole for one of them."""


def check_dataset(ds: object, *needed: str) -> None:
    """Refuse what is no dataset, or lacks the dim of the sentences or a coordinate that is needed."""
    import xarray as xr

    if not isinstance(ds, xr.Dataset):
        found = f"an array, {brief(ds.name)}" if isinstance(ds, xr.DataArray) else brief(ds)
        raise ParameterError(f"expected a dataset as of open_store, found {found}")
    if needed and "sentence" not in ds.dims:
        raise SelectionError("has no dim sentence: select by a list, such as sentence=[...], to keep it")
    if missing := [name for name in needed if name not in ds.coords]:
        raise SelectionError(f"has no coordinate {missing[0]}: use a dataset as open_store returns it")


def at_least(lowest: int, name: str, value: object) -> int:
    """Return an integer; ParameterError if it is none, or a lower one."""
    number = integer(spelled(name), value)
    if number < lowest:
        raise ParameterError(f"{spelled(name)}: expected at least {lowest}, found {number}")
    return number


def drawn(ds: xr.Dataset, most: int = MOST_SENTENCES, seed: int = 0, *, by_label: bool = False) -> xr.Dataset:
    """Draw at most so many sentences at random, in their order; leave out those with NaN or infinity. Lazy.

    Of more, blocks of consecutive ones are drawn, because single ones would have most of the store read. By label,
    those without one are left out, too.

    Raises
    ------
    ParameterError
        If `ds` is no dataset, or a number is too small.
    SelectionError
        If none is left, or the dataset lacks a coordinate.
    """
    most, seed = at_least(1, "most", most), at_least(0, "seed", seed)
    check_dataset(ds, "n_nonfinite", *(("label", "has_label") if by_label else ()))
    ds = labelled(ds) if by_label else ds
    rows = np.flatnonzero(ds["n_nonfinite"].values == 0)
    if not len(rows):
        raise SelectionError("has no sentence whose values are all finite, so there is nothing to look at")
    if len(rows) > most:
        blocks = np.array_split(rows, np.flatnonzero(np.diff(rows // _BLOCK)) + 1)
        order = np.random.default_rng(seed).permutation(len(blocks))
        rows = np.sort(np.concatenate([blocks[position] for position in order])[:most])
    return ds if len(rows) == ds.sizes["sentence"] else ds.isel(sentence=rows)


def drawn_labelled(ds: xr.Dataset, most: int = MOST_SENTENCES, seed: int = 0) -> xr.Dataset:
    """Draw at most so many sentences with a label, as `drawn` does.

    Raises
    ------
    SelectionError
        If they have fewer than two labels.
    """
    ds = drawn(ds, most, seed, by_label=True)
    if len(np.unique(ds["label"].values)) < 2:
        raise SelectionError("has sentences of but one label, so there is nothing to tell apart")
    return ds


def by_layer(array: xr.DataArray) -> Iterator[tuple[int, xr.DataArray]]:
    """Yield each layer and its part of an array, which may be of one layer alone. Lazy."""
    for position, layer in enumerate(np.atleast_1d(array["layer"].values).tolist()):
        yield layer, array.isel(layer=position) if "layer" in array.dims else array


def at_final_token(array: xr.DataArray) -> NDArray[Any]:
    """Read an array at the final token, (sentence, ...), in float32.

    Raises
    ------
    SelectionError
        If it is of other tokens, or values are NaN or infinite.
    """
    tokens = np.atleast_1d(array["token"].values).tolist()
    if FINAL_TOKEN not in tokens:
        raise SelectionError(f"has no final token ({FINAL_TOKEN}), which is what is looked at; select it, too")
    if "token" in array.dims:
        array = array.isel(token=tokens.index(FINAL_TOKEN))
    values: NDArray[Any] = array.values.astype(np.float32)
    check_finite(values)
    return values


def check_finite(values: NDArray[Any]) -> None:
    """Refuse values that a mask has made NaN: sentences where the store has such ones are left out before."""
    if not np.isfinite(values).all():
        raise SelectionError("has NaN or infinite values, as a mask (where) makes them: select by sel or isel instead")
