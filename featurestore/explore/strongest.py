"""Which features come first, as recipes rank them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from featurestore.errors import SelectionError, lacking
from featurestore.explore.features import features
from featurestore.measures.measured import best_first
from featurestore.paths import PathLike
from featurestore.schema import MIN_ACTIVE, Progress
from featurestore.store.location import StorageOptions, location
from featurestore.store.reading import open_store
from featurestore.strategies import sae_dim, sae_positions

if TYPE_CHECKING:
    import xarray as xr

_ALONE = ("density", "mean", "max")
"""Measures that need no label."""


def strongest_of_store(
    store: PathLike,
    by: str,
    top: int,
    *,
    layer: int | None = None,
    tokens: Literal["final", "any"] = "final",
    min_active: int = MIN_ACTIVE,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
) -> xr.Dataset:
    """Measure the features of a store, or of one layer, and select those that come first; see `strongest`."""
    path = location(store, storage_options)
    ds = open_store(path)
    with lacking(path):
        if layer is not None:
            ds = ds.isel({sae_dim(ds): sae_positions(ds, layer)})
        return strongest(features(ds, tokens=tokens, progress=progress), by, top, min_active)


def strongest(found: xr.Dataset, by: str, top: int, min_active: int) -> xr.Dataset:
    """Select the features that come first; by correlation or density, these are what a recipe's `rank_by` chooses.

    Parameters
    ----------
    found : xarray.Dataset
        As of `features`.
    by : str
        One of `featurestore.schema.FEATURE_ORDERS`. Correlations and `monotonic` count by their absolute value, `auc`
        by its distance from 0.5. Of equal ones by `monotonic`, which takes few values, the larger absolute Spearman
        correlation is first; all others are in the order of layer and feature.
    top : int
        How many; fewer if there are not so many.
    min_active : int
        Features that are active in fewer sentences (of those with a label, unless `by` needs none) are left out.

    Returns
    -------
    xarray.Dataset
        What is known of each of them, along `rank`, the first one first. Attributes, beside those that there are: `by`,
        `min_active`, and `features`: how many were measured.

    Raises
    ------
    SelectionError
        If there is none.
    """
    import xarray as xr

    measure = found["pearson" if by == "correlation" else by]
    if by in _ALONE:
        scores, active = measure, (found["density"] * found.attrs["sentences"]).round()
    else:
        scores, active = abs(measure - 0.5 if by == "auc" else measure), found["active"]
    ties = abs(found["spearman"]).values if by == "monotonic" else None
    order = best_first(scores.where(active >= min_active).values, top, ties)
    if not len(order):
        if by not in _ALONE and len(found["label"]) < 2:
            raise SelectionError(f"has fewer than two labels, so no feature can be ranked by {by}")
        raise SelectionError(f"has no feature that is active in {min_active} sentences or more, and not constant")
    places = zip(scores.dims, np.unravel_index(order, scores.shape), strict=True)
    best = found.isel({dim: xr.DataArray(place, dims="rank") for dim, place in places})
    return best.assign_attrs(by=by, min_active=min_active, features=scores.size)
