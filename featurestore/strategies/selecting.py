"""Selecting from a store: what strategies share, those of others too.

What keeps the dim `token` leaves it to whoever builds what becomes of it: the final token, a mean, a row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.errors import SelectionError, spelled
from featurestore.ranges import format_numbers
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, FINAL_TOKEN, HIDDEN_STATES

if TYPE_CHECKING:
    import xarray as xr


def final(array: xr.DataArray) -> xr.DataArray:
    """Select the final token of every sentence. Lazy."""
    return array.isel(token=array.get_index("token").get_loc(FINAL_TOKEN))


def labelled(ds: xr.Dataset) -> xr.Dataset:
    """Leave out the sentences that have no label. Lazy.

    Raises
    ------
    SelectionError
        If none has one.
    """
    has_label = ds["has_label"].values
    if not has_label.any():
        raise SelectionError("has no labels, so no concept can be predicted")
    return ds if has_label.all() else ds.isel(sentence=has_label)


def embeddings(ds: xr.Dataset) -> xr.DataArray:
    """Select embeddings. Lazy.

    Returns
    -------
    xarray.DataArray, (sentence, token, hidden)

    Raises
    ------
    SelectionError
        If the store has no embeddings.
    """
    return _data(ds, EMBEDDINGS)


def final_embeddings(ds: xr.Dataset) -> xr.DataArray:
    """Select what `embeddings` does at the final token, (sentence, hidden). Lazy."""
    return final(embeddings(ds))


def hidden_states(ds: xr.Dataset, layers: Sequence[int | None]) -> list[xr.DataArray]:
    """Select hidden states. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layers : sequence of int
        In the order in which they are to be concatenated.

    Returns
    -------
    list of xarray.DataArray, (sentence, token, hidden)
        One for each layer, with the scalar coordinate `layer`.

    Raises
    ------
    SelectionError
        If the store has no hidden states, or not of a layer.
    """
    data = _data(ds, HIDDEN_STATES)
    known = data["layer"].values.tolist()
    for layer in layers:
        if layer not in known:
            raise SelectionError(f"has no hidden states of layer {layer}: choose from {format_numbers(tuple(known))}")
    return [data.isel(layer=known.index(layer)) for layer in layers]


def final_hidden_states(ds: xr.Dataset, layers: Sequence[int | None]) -> list[xr.DataArray]:
    """Select what `hidden_states` does at the final token, (sentence, hidden) each. Lazy."""
    return [final(array) for array in hidden_states(ds, layers)]


def activations(ds: xr.Dataset, layer: int, average_l0: float | None) -> xr.DataArray:
    """Select the activations of all features of an SAE. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layer : int
        Of the SAE.
    average_l0 : int or float or None
        Which SAE, where the layer has several.

    Returns
    -------
    xarray.DataArray, (sentence, token, feature)
        Scalar coordinates `layer` and `average_l0` say what it is.

    Raises
    ------
    SelectionError
        If the SAE is not in the store, or the layer has several and none was chosen.
    """
    return sae_activations(ds, sae_position(ds, layer, average_l0))


def final_activations(ds: xr.Dataset, layer: int, average_l0: float | None) -> xr.DataArray:
    """Select what `activations` does at the final token, (sentence, feature). Lazy."""
    return activations_at(ds, sae_position(ds, layer, average_l0))


def activation(ds: xr.Dataset, layer: int, feature: int, average_l0: float | None) -> xr.DataArray:
    """Select one SAE feature's activation. Lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or float or None
        Which SAE, where the layer has several.

    Returns
    -------
    xarray.DataArray, (sentence, token)
        Scalar coordinates `layer`, `feature` and `average_l0` say what it is.

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store, or the layer has several SAEs and none was chosen.
    """
    position = sae_position(ds, layer, average_l0)
    check_feature(ds, feature)
    return sae_activations(ds, position, feature=feature)


def final_activation(ds: xr.Dataset, layer: int, feature: int, average_l0: float | None) -> xr.DataArray:
    """Select what `activation` does at the final token, (sentence,). Lazy."""
    return final(activation(ds, layer, feature, average_l0))


def activations_at(ds: xr.Dataset, position: int) -> xr.DataArray:
    """Select the final activations of the SAE at a position; `layer` is its layer. Lazy."""
    return final(sae_activations(ds, position))


def sae_activations(ds: xr.Dataset, position: int, **positions: int) -> xr.DataArray:
    """Select the activations of the SAE at a position, and positions along other dims; `layer` is its layer. Lazy."""
    selected = ds[ACTIVATIONS].isel({sae_dim(ds): position, **positions})
    return selected.rename(sae_layer="layer") if "sae_layer" in selected.coords else selected


def check_feature(ds: xr.Dataset, feature: int) -> None:
    """Raise SelectionError if a store has no such feature."""
    n_features = _data(ds, ACTIVATIONS).sizes["feature"]
    if not 0 <= feature < n_features:
        raise SelectionError(f"has no feature {feature}: choose from 0-{n_features - 1}")


def sae_dim(ds: xr.Dataset) -> str:
    """Return the dim of the SAEs: ``"layer"`` where each layer has one, otherwise ``"sae"``."""
    return "sae" if "sae" in ds.dims else "layer"


def sae_layers(ds: xr.Dataset) -> list[int]:
    """Return the layer of each SAE; SelectionError if there are none."""
    layers: list[int] = _data(ds, ACTIVATIONS)["sae_layer" if sae_dim(ds) == "sae" else "layer"].values.tolist()
    return layers


def sae_position(ds: xr.Dataset, layer: int, average_l0: float | None) -> int:
    """Return the position along `sae_dim` of a layer's only SAE, or of the one of that average L0.

    Raises
    ------
    SelectionError
        If there is none, or the layer has several SAEs and none was chosen.
    """
    positions = sae_positions(ds, layer)
    choices = [ds["average_l0"].values[position].item() for position in positions]
    if average_l0 is not None and average_l0 not in choices:
        raise SelectionError(f"layer {layer} has no SAE of average L0 {average_l0}: choose from {choices}")
    if average_l0 is None and len(choices) > 1:
        raise SelectionError(f"layer {layer} has {len(choices)} SAEs: choose {spelled('average_l0')} from {choices}")
    return positions[0] if average_l0 is None else positions[choices.index(average_l0)]


def sae_positions(ds: xr.Dataset, layer: int | None) -> list[int]:
    """Return the positions along `sae_dim` of a layer's SAEs.

    Raises
    ------
    SelectionError
        If it has none.
    """
    layers = sae_layers(ds)
    positions = [position for position, value in enumerate(layers) if value == layer]
    if not positions:
        available = format_numbers(tuple(dict.fromkeys(layers)))
        raise SelectionError(f"has no SAE of layer {layer}: choose from {available}")
    return positions


def _data(ds: xr.Dataset, name: str) -> xr.DataArray:
    if name not in ds:
        there = ", ".join(one for one in (EMBEDDINGS, HIDDEN_STATES, ACTIVATIONS) if one in ds)
        raise SelectionError(f"has no {name.replace('_', ' ')}, only {there.replace('_', ' ')}")
    return ds[name]
