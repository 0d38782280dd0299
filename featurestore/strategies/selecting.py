"""Selecting the final token: what strategies share, those of others too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.errors import SelectionError, spelled
from featurestore.ranges import format_numbers
from featurestore.schema import ACTIVATIONS, FINAL_TOKEN, HIDDEN_STATES

if TYPE_CHECKING:
    import xarray as xr


def final(array: xr.DataArray, **positions: int | slice) -> xr.DataArray:
    """Select the final token of every sentence, and positions along other dims. Lazy.

    All in one step, because dask merges one selection with the reading of a chunk, but not always two.
    """
    return array.isel({"token": array.get_index("token").get_loc(FINAL_TOKEN), **positions})


def final_hidden_states(ds: xr.Dataset, layers: Sequence[int | None]) -> list[xr.DataArray]:
    """Select hidden states at the final token. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layers : sequence of int
        In the order in which they are to be concatenated. The residual stream after a layer does not depend on the
        SAE, so where a layer has several, the first one's copy is taken.

    Returns
    -------
    list of xarray.DataArray, (sentence, hidden)
        One for each layer, with the scalar coordinate `layer`.

    Raises
    ------
    SelectionError
        If a layer is not in the store.
    """
    return [final(ds[HIDDEN_STATES], layer=sae_positions(ds, layer)[0]) for layer in layers]


def final_activation(ds: xr.Dataset, layer: int, feature: int, average_l0: int | None) -> xr.DataArray:
    """Select one SAE feature's activation at the final token. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or None
        Which SAE, where the layer has several.

    Returns
    -------
    xarray.DataArray, (sentence,)
        Scalar coordinates `layer`, `feature` and `average_l0` say what it is.

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store, or the layer has several SAEs and none was chosen.
    """
    position = sae_position(ds, layer, average_l0)
    check_feature(ds, feature)
    return final(ds[ACTIVATIONS], layer=position, feature=feature)


def check_feature(ds: xr.Dataset, feature: int) -> None:
    """Raise SelectionError if a store has no such feature."""
    if not 0 <= feature < ds.sizes["feature"]:
        raise SelectionError(f"has no feature {feature}: choose from 0-{ds.sizes['feature'] - 1}")


def sae_position(ds: xr.Dataset, layer: int, average_l0: int | None) -> int:
    """Return the position along `layer` of a layer's only SAE, or of the one of that average L0.

    Raises
    ------
    SelectionError
        If there is none, or the layer has several SAEs and none was chosen.
    """
    positions = sae_positions(ds, layer)
    choices = [int(ds["average_l0"].values[position]) for position in positions]
    if average_l0 is not None and average_l0 not in choices:
        raise SelectionError(f"layer {layer} has no SAE of average L0 {average_l0}: choose from {choices}")
    if average_l0 is None and len(choices) > 1:
        raise SelectionError(f"layer {layer} has {len(choices)} SAEs: choose {spelled('average_l0')} from {choices}")
    return positions[0] if average_l0 is None else positions[choices.index(average_l0)]


def sae_positions(ds: xr.Dataset, layer: int | None) -> list[int]:
    """Return the positions along `layer` that a layer has, one for each of its SAEs.

    Raises
    ------
    SelectionError
        If it has none.
    """
    layers = ds["layer"].values.tolist()
    positions = [position for position, value in enumerate(layers) if value == layer]
    if not positions:
        available = format_numbers(tuple(dict.fromkeys(layers)))
        raise SelectionError(f"has no layer {layer}: choose from {available}")
    return positions
