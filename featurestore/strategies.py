"""What a dataset is made of: each strategy selects X and y from a store, lazily.

A strategy is one decorated function. It takes the labelled dataset and keyword-only options, annotated with their type
and help text, and returns a `Selection`. Registering it gives it its place in `build`, in ``--help`` and in the
conformance tests; nothing else has to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from featurestore.errors import SelectionError, spelled
from featurestore.plugins import get_strategy, list_strategies, load_plugin
from featurestore.ranges import Numbers, format_numbers
from featurestore.registry import Selection, strategy
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, FINAL_TOKEN, HIDDEN_STATES

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Selection",
    "activation_to_concept",
    "check_feature",
    "embedding_to_concept",
    "embedding_to_feature",
    "final",
    "final_activation",
    "final_hidden_states",
    "get_strategy",
    "hidden_to_concept",
    "hidden_to_feature",
    "hidden_to_features",
    "list_strategies",
    "load_plugin",
    "sae_position",
    "sae_positions",
    "strategy",
]

TargetLayer = Annotated[int, "Layer of the SAE feature that is y."]
TargetFeature = Annotated[int, "SAE feature that is y."]
AverageL0 = Annotated[int | None, "Which SAE of the target layer, by its average L0, where it has several."]
InputLayer = Annotated[int | None, "Layer of the hidden states that are X; by default the target layer."]


@strategy("embedding-to-feature")
def embedding_to_feature(
    ds: xr.Dataset,
    *,
    target_layer: TargetLayer,
    target_feature: TargetFeature,
    average_l0: AverageL0 = None,
) -> Selection:
    """Predict the activation of an SAE feature from the embedding."""
    return Selection(X=final(ds[EMBEDDINGS]), y=final_activation(ds, target_layer, target_feature, average_l0))


@strategy("hidden-to-feature")
def hidden_to_feature(
    ds: xr.Dataset,
    *,
    target_layer: TargetLayer,
    target_feature: TargetFeature,
    average_l0: AverageL0 = None,
    input_layer: InputLayer = None,
) -> Selection:
    """Predict the activation of an SAE feature from the hidden states of one layer."""
    layer = target_layer if input_layer is None else input_layer
    return Selection(
        X=final_hidden_states(ds, [layer]), y=final_activation(ds, target_layer, target_feature, average_l0)
    )


@strategy("hidden-to-concept", one_of=("layer", "layers"))
def hidden_to_concept(
    ds: xr.Dataset,
    *,
    layer: Annotated[int | None, "The one layer of the hidden states that are X."] = None,
    layers: Annotated[Numbers | None, "Layers whose hidden states are concatenated as X, such as 0-2,10,15-17."] = None,
) -> Selection:
    """Predict the concept label from the hidden states of one layer, or of several concatenated."""
    return Selection(X=final_hidden_states(ds, layers or [layer]), y=ds["label"])


@strategy("embedding-to-concept")
def embedding_to_concept(ds: xr.Dataset) -> Selection:
    """Predict the concept label from the embedding: the baseline that knows nothing but the final token itself."""
    return Selection(X=final(ds[EMBEDDINGS]), y=ds["label"])


@strategy("activation-to-concept")
def activation_to_concept(
    ds: xr.Dataset,
    *,
    layer: Annotated[int, "Layer of the SAE whose activations are X."],
    average_l0: Annotated[int | None, "Which SAE of the layer, by its average L0, where it has several."] = None,
    densest: Annotated[int | None, "Only so many features: those active in most training sentences."] = None,
) -> Selection:
    """Predict the concept label from the activations of all SAE features of a layer, or of the densest."""
    if densest is not None and not 0 < densest <= ds.sizes["feature"]:
        raise SelectionError(
            f"has {ds.sizes['feature']} features, found {spelled('densest', densest)}: ask for 1 to that many"
        )
    return Selection(
        X=final(ds[ACTIVATIONS], layer=sae_position(ds, layer, average_l0)), y=ds["label"], densest=densest
    )


@strategy("hidden-to-features")
def hidden_to_features(
    ds: xr.Dataset,
    *,
    target_layer: TargetLayer,
    target_features: Annotated[Numbers, "SAE features that are the columns of y, such as 5,100-103."],
    average_l0: AverageL0 = None,
    input_layer: InputLayer = None,
) -> Selection:
    """Predict the activations of several SAE features at once from the hidden states of one layer."""
    import xarray as xr

    layer = target_layer if input_layer is None else input_layer
    columns = [final_activation(ds, target_layer, feature, average_l0) for feature in target_features]
    return Selection(
        X=final_hidden_states(ds, [layer]), y=xr.concat(columns, "feature", coords="minimal").transpose("sentence", ...)
    )


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
