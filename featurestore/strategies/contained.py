"""Whether a store has the layers and features that options name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import SelectionError
from featurestore.ranges import format_numbers
from featurestore.schema import ACTIVATIONS, HIDDEN_STATES
from featurestore.strategies.selecting import check_feature, sae_layers, sae_positions

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.strategies.registry import Option


def contained_layers(ds: xr.Dataset, *, of_sae: bool = False) -> tuple[int, ...]:
    """Return the layers of the hidden states of a store; of its SAEs, each once, if asked or where there are none."""
    if HIDDEN_STATES in ds and not of_sae:
        return tuple(ds["layer"].values.tolist())
    return tuple(dict.fromkeys(sae_layers(ds))) if ACTIVATIONS in ds else ()


def average_l0s(ds: xr.Dataset, layer: int) -> list[float]:
    """Return the average L0 of each SAE of a layer; SelectionError if it has none."""
    return [ds["average_l0"].values[position].item() for position in sae_positions(ds, layer)]


def check_option(ds: xr.Dataset, option: Option, value: Any) -> None:
    """Check the layers or features that an option names; raises SelectionError if the store lacks one."""
    if option.names_layers:
        known = tuple(dict.fromkeys((*contained_layers(ds), *contained_layers(ds, of_sae=True))))
        for layer in np.ravel(value).tolist():
            if known and layer not in known:
                raise SelectionError(f"has no layer {layer}: choose from {format_numbers(known)}")
    elif option.names_features:
        for feature in np.ravel(value).tolist():
            check_feature(ds, feature)
