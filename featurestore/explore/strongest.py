"""Which features come first, as recipes rank them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import SelectionError
from featurestore.measures.measured import best_first
from featurestore.schema import MIN_ACTIVE

if TYPE_CHECKING:
    import xarray as xr

_ALONE = ("density", "mean", "max")
"""Measures that need no label."""


def strongest(found: xr.Dataset, by: str, top: int, min_active: int = MIN_ACTIVE) -> xr.Dataset:
    """Select the features that come first; by correlation or density, these are what a recipe's `rank_by` chooses.

    Parameters
    ----------
    found : xarray.Dataset
        As of `features`.
    by : str
        One of `featurestore.schema.FEATURE_ORDERS`. Correlations and `monotonic` count by their absolute value, `auc`
        by its distance from 0.5. Equal ones are in the order of layer and feature.
    top : int
        How many; fewer if there are not so many.
    min_active : int
        Features that are active in fewer sentences (of those with a label, unless `by` needs none) are left out.

    Returns
    -------
    xarray.Dataset
        What is known of each of them, along `rank`, the first one first.

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
    order = best_first(scores.where(active >= min_active).values, top)
    if not len(order):
        if by not in _ALONE and len(found["label"]) < 2:
            raise SelectionError(f"has fewer than two labels, so no feature can be ranked by {by}")
        raise SelectionError(f"has no feature that is active in {min_active} sentences or more, and not constant")
    places = zip(scores.dims, np.unravel_index(order, scores.shape), strict=True)
    return found.isel({dim: xr.DataArray(place, dims="rank") for dim, place in places})
