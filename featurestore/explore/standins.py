"""Stand-ins."""

from __future__ import annotations
import numpy as np
import xarray as xr
from featurestore.strategies import sae_dim, sae_position, check_feature


def trajectory(ds: xr.Dataset, layer: int, feature: int, average_l0: float | None = None) -> xr.DataArray:
    p = sae_position(ds, layer, average_l0)
    check_feature(ds, feature)
    return ds.activations.isel({sae_dim(ds): p}).isel(feature=feature).load()


def l0(ds: xr.Dataset) -> xr.DataArray:
    a = ds.activations.load()
    return (a != 0).sum("feature").where(ds.is_token)
