"""What a dataset is made of: each strategy selects X and y from a store, lazily.

A strategy is one decorated function. It takes the labelled dataset and keyword-only options, annotated with their type
and help text, and returns a `Selection`. Registering it gives it its place in `build`, in ``--help`` and in the
conformance tests; nothing else has to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from featurestore.errors import SelectionError, spelled
from featurestore.ranges import Numbers
from featurestore.strategies.registry import SAE_LAYER, Selection, strategy
from featurestore.strategies.selecting import activation, activations, embeddings, hidden_states, labelled

if TYPE_CHECKING:
    import xarray as xr

TargetLayer = Annotated[int, "Layer of the SAE feature that is y.", SAE_LAYER]
TargetFeature = Annotated[int, "SAE feature that is y."]
AverageL0 = Annotated[int | float | None, "Which SAE of the target layer, by its average L0, where it has several."]
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
    return Selection(X=embeddings(ds), y=activation(ds, target_layer, target_feature, average_l0))


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
    return Selection(X=hidden_states(ds, [layer]), y=activation(ds, target_layer, target_feature, average_l0))


@strategy("hidden-to-concept", one_of=("layer", "layers"))
def hidden_to_concept(
    ds: xr.Dataset,
    *,
    layer: Annotated[int | None, "The one layer of the hidden states that are X."] = None,
    layers: Annotated[Numbers | None, "Layers whose hidden states are concatenated as X, such as 0-2,10,15-17."] = None,
) -> Selection:
    """Predict the concept label from the hidden states of one layer, or of several concatenated."""
    ds = labelled(ds)
    return Selection(X=hidden_states(ds, layers or [layer]), y=ds["label"])


@strategy("embedding-to-concept")
def embedding_to_concept(ds: xr.Dataset) -> Selection:
    """Predict the concept label from the embedding: the baseline that knows nothing but the final token itself."""
    ds = labelled(ds)
    return Selection(X=embeddings(ds), y=ds["label"])


@strategy("activation-to-concept")
def activation_to_concept(
    ds: xr.Dataset,
    *,
    layer: Annotated[int, "Layer of the SAE whose activations are X.", SAE_LAYER],
    average_l0: Annotated[
        int | float | None, "Which SAE of the layer, by its average L0, where it has several."
    ] = None,
    densest: Annotated[int | None, "Only so many features: those active in most training sentences."] = None,
) -> Selection:
    """Predict the concept label from the activations of all SAE features of a layer, or of the densest."""
    ds = labelled(ds)
    X = activations(ds, layer, average_l0)
    if densest is not None and not 0 < densest <= X.sizes["feature"]:
        raise SelectionError(
            f"has {X.sizes['feature']} features, found {spelled('densest', densest)}: ask for 1 to that many"
        )
    return Selection(X=X, y=ds["label"], densest=densest)


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
    columns = [activation(ds, target_layer, feature, average_l0) for feature in target_features]
    return Selection(
        X=hidden_states(ds, [layer]), y=xr.concat(columns, "feature", coords="minimal").transpose("sentence", ...)
    )
