"""Strategies of your own, such as: build --plugin examples/my_strategies.py --strategy hidden-to-length --layer 12."""

from typing import Annotated

import xarray as xr

from featurestore import Selection, strategy
from featurestore.strategies import hidden_states, labelled


@strategy("hidden-to-length")
def hidden_to_length(ds: xr.Dataset, *, layer: Annotated[int, "Layer of the hidden states that are X."]) -> Selection:
    """Predict the number of tokens from the hidden states of one layer."""
    return Selection(X=hidden_states(ds, [layer]), y=ds["n_tokens"])


@strategy("change-to-concept")
def change_to_concept(
    ds: xr.Dataset,
    *,
    from_layer: Annotated[int, "The earlier layer."],
    to_layer: Annotated[int, "The later layer."],
    absolute: Annotated[bool, "Only how large the change is, not in which direction."] = False,
) -> Selection:
    """Predict the concept label from what the layers between two others change."""
    ds = labelled(ds)  # without the sentences that have no label
    earlier, later = hidden_states(ds, [from_layer, to_layer])
    change = later.astype("f4") - earlier.astype("f4")  # differences of large float16 numbers lose digits
    return Selection(X=abs(change) if absolute else change, y=ds["label"])
