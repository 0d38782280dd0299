"""One feature along the tokens of each sentence, and how many features are active at each token."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from featurestore.errors import ParameterError, SelectionError, brief, shortened, spelled
from featurestore.explore.reading import check_dataset
from featurestore.ranges import format_numbers, integer
from featurestore.schema import ACTIVATIONS
from featurestore.strategies import sae_dim, sae_layers, sae_position

_NEEDED = ("label", "has_label", "text", "fragment", "token_text", "is_token", "is_special")

_TABLE = ("sentence", "token", "token_text", "label", "fragment", "text")


def trajectory(ds: xr.Dataset, layer: int, feature: int, average_l0: float | None = None) -> xr.DataArray:
    """Select one SAE feature along the tokens of each sentence. As lazy as the dataset is.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of one that keeps its dims.
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or float, optional
        Which SAE, where the layer has several.

    Returns
    -------
    xarray.DataArray, (sentence, token), dtype of the activations
        In the order of the dataset; NaN where a sentence has no token, 0 where the feature is inactive. Coordinates:
        `label`, `text` and all else of the sentences, `token_text`, `fragment`, `is_token` and `is_special` of the
        tokens, and the scalars `layer`, `average_l0` and `feature`.

    Raises
    ------
    SelectionError
        If the dataset has no such layer, feature or SAE, lacks a dim, or the layer has several SAEs and none was
        chosen.
    ParameterError
        If an argument is no number, or `ds` no dataset.

    Examples
    --------
    >>> from featurestore import open_store
    >>> trajectory(open_store("stores/dishonesty.zarr"), layer=12, feature=348).dims
    ('sentence', 'token')
    """
    activations = _activations(ds)
    layer, feature = integer(spelled("layer"), layer), integer(spelled("feature"), feature)
    position = sae_position(ds, layer, average_l0)
    known = activations.get_index("feature")
    if feature not in known:
        choices = shortened(format_numbers(tuple(known.tolist())))
        raise SelectionError(f"has no feature {feature}: choose from {choices}")
    selected = activations.isel({sae_dim(ds): position, "feature": known.get_loc(feature)})
    selected = selected.rename(sae_layer="layer") if "sae_layer" in selected.coords else selected
    digests = [name for name in selected.coords if str(name).endswith(("_crc32", "_digest"))]
    return selected.drop_vars(digests).transpose("sentence", "token")


def onset(
    ds: xr.Dataset, layer: int, feature: int, threshold: float = 0, average_l0: float | None = None
) -> xr.DataArray:
    """Find where a feature starts to fire in each sentence. Read at once, or lazy where the dataset is of dask arrays.

    Parameters
    ----------
    ds, layer, feature, average_l0
        As of `trajectory`.
    threshold : float
        A feature fires where its activation is above this.

    Returns
    -------
    xarray.DataArray, (sentence,) float64
        The label of the first token in reading order where it fires, such as -7: the final one is -1. NaN where it
        never does. Special tokens, such as a BOS, do not count, nor do infinite activations.

    Raises
    ------
    SelectionError, ParameterError
        As `trajectory`.
    """
    if not isinstance(threshold, Real) or math.isnan(threshold):
        raise ParameterError(f"{spelled('threshold')}: expected a number, found {brief(threshold)}")
    return first_above(finite(of_words(trajectory(ds, layer, feature, average_l0))), threshold)


def top_tokens(ds: xr.Dataset, layer: int, feature: int, top: int = 10, average_l0: float | None = None) -> xr.Dataset:
    """Find the tokens at which a feature is strongest, with what led up to them. Read at once.

    Parameters
    ----------
    ds, layer, feature, average_l0
        As of `trajectory`.
    top : int
        How many; fewer where it is active at fewer.

    Returns
    -------
    xarray.Dataset, (rank,)
        From rank 1, the strongest; equal ones in the order of the dataset. Variables: `activation`, `sentence`,
        `token`, `token_text`, `label`, `fragment` (the sentence up to and including the token), `text`. Special tokens,
        such as a BOS, do not count, nor do activations that are not finite; the attribute `nonfinite_sentences` says
        how many sentences have such ones. ``.to_pandas()`` makes it a table; ``ds.sel(sentence=top.sentence,
        token=top.token)`` selects just these tokens.

    Raises
    ------
    SelectionError, ParameterError
        As `trajectory`.
    """
    top = checked_top(top)
    along = trajectory(ds, layer, feature, average_l0)
    along = along.copy(data=along.values)  # read once
    values = finite(of_words(along)).values
    order = np.argsort(-values, axis=None, kind="stable")  # NaN last
    best = np.unravel_index(order[: min(top, np.count_nonzero(values > 0))], values.shape)
    places = {dim: xr.DataArray(places, dims="rank") for dim, places in zip(along.dims, best, strict=True)}
    there = along.isel(places).reset_coords(_TABLE)
    table = there.rename({ACTIVATIONS: "activation"})[["activation", *_TABLE]]
    table = table.drop_vars([name for name, coord in table.coords.items() if coord.ndim])
    table = table.assign_coords(rank=np.arange(1, len(best[0]) + 1)).compute()
    return table.assign_attrs(nonfinite_sentences=nonfinite_sentences(along))


def l0(ds: xr.Dataset) -> xr.DataArray:
    """Count the active features at each token. In bounded memory, SAE by SAE; lazy where the dataset is of dask arrays.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of one that keeps its dims.

    Returns
    -------
    xarray.DataArray, (sentence, token, layer) or (sentence, token, sae), float64
        How many features are not 0, special tokens included. NaN where a sentence has no token, or all its activations
        are NaN, as a selection by `where` leaves them; where only some are NaN, the others are counted. The mean over
        all tokens is the L0 of an SAE, to be compared with its nominal `average_l0`.

    Raises
    ------
    SelectionError
        If the dataset has no activations, or lacks a dim.
    ParameterError
        If `ds` is no dataset.
    """
    activations = _activations(ds)
    is_lazy = activations.chunks is not None
    if not is_lazy:  # by chunks as of the store, so that no more than these are in memory
        sizes = activations.encoding.get("preferred_chunks", {})
        activations = activations.chunk({dim: size for dim, size in sizes.items() if dim in activations.dims})
    known = activations.notnull()
    counts = ((activations != 0) & known).sum("feature").where(ds["is_token"] & known.any("feature"))
    counts = counts.transpose("sentence", "token", ...)
    counts = counts.rename("l0").assign_attrs(long_name="active features")
    return counts if is_lazy else counts.compute()


def of_words(along: xr.DataArray) -> xr.DataArray:
    """Leave out special tokens, such as a BOS, at which activations say nothing of the sentence: NaN. Lazy."""
    return along.where(~along["is_special"])


def finite(along: xr.DataArray) -> xr.DataArray:
    """Leave out activations that are infinite: NaN. Lazy."""
    return along.where(np.isfinite(along))


def nonfinite_sentences(along: xr.DataArray) -> int:
    """Count the sentences with activations that are not finite in the store, too, not by a selection alone."""
    is_finite: xr.DataArray = xr.apply_ufunc(np.isfinite, along)
    lacking = (~is_finite & along["is_token"] & ~along["is_special"]).any("token")
    if "n_nonfinite" in along.coords:
        lacking &= along["n_nonfinite"] > 0
    return int(lacking.sum())


def first_above(along: xr.DataArray, threshold: float) -> xr.DataArray:
    """Return the label of the first token in reading order that is above a threshold; NaN without one."""
    return along["token"].where(along > threshold).min("token").rename("onset")


def checked_top(top: object) -> int:
    """Return how many are to be shown; ParameterError if `top` is no such number."""
    number = integer(spelled("top"), top)
    if number < 1:
        raise ParameterError(f"{spelled('top')}: expected at least 1, found {number}")
    return number


def label_numbers(labelled: xr.Dataset | xr.DataArray) -> NDArray[np.float64]:
    """Return the coordinate `label`, (sentence,); SelectionError if it is no numbers."""
    labels: NDArray[Any] = labelled["label"].values
    try:
        return labels.astype(np.float64)
    except (TypeError, ValueError):
        raise SelectionError("has labels that are no numbers: assign numbers, such as 0, 1, 2") from None


def _activations(ds: xr.Dataset) -> xr.DataArray:
    """Return the activations of an open store, or of a selection that has all that it needs."""
    check_dataset(ds)
    if ACTIVATIONS in ds:
        dims = ("sentence", "token", sae_dim(ds), "feature")
        if missing := [dim for dim in dims if dim not in ds[ACTIVATIONS].dims]:
            raise SelectionError(f"has no dim {missing[0]}: select by a list, such as {missing[0]}=[...], to keep it")
        check_dataset(ds, *_NEEDED)
    sae_layers(ds)  # raises if there are no activations
    return ds[ACTIVATIONS]
