"""What a dataset says of its X and y, as far as it is known without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.questions.tokens import FINAL
from featurestore.schema import ACTIVATIONS, COMBINATIONS, EMBEDDINGS

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.datasets.selected import Selected
    from featurestore.questions.choices import Choices
    from featurestore.questions.labels import Labels

    Array = np.ndarray[Any, Any]

_CHOSEN = {"tokens": "input_tokens", "special": "special", "combine": "combine", "control": "control"}
_ACTIVATIONS = {"input_average_l0": "average_l0", "input_features": "feature"}
_TARGETS = {"target_layer": "layer", "target_feature": "feature", "average_l0": "average_l0"}


_USUAL = {"input_tokens": str(FINAL), "special": False, "combine": COMBINATIONS[0], "control": "none"}
"""What datasets do not say of themselves."""


def about_X(choices: Choices, selected: Selected) -> dict[str, Any]:  # noqa: N802
    """Say what X is, as metadata."""
    blocks = selected.aligned.X
    layers = [_values(block, "layer") for block in blocks if block.name != EMBEDDINGS]
    about: dict[str, Any] = {
        "input_source": "+".join(dict.fromkeys(str(block.name or "unnamed") for block in blocks)),
        "input_layers": np.hstack([np.array([], np.int64), *(found for found in layers if found is not None)]),
        "input_dims": choices.width(selected.width),
    }
    if blocks[0].name == ACTIVATIONS and choices.control in (None, "shuffled-labels"):
        about |= _coords(blocks[0], _ACTIVATIONS)
        if choices.tokens.side_by_side and "input_features" in about:
            about["input_features"] = np.tile(about["input_features"], choices.tokens.count)
    return about | {name: choices.given[key] for key, name in _CHOSEN.items() if key in choices.given}


def other_input(choices: Choices, selected: Selected, other: Mapping[str, Any]) -> str:
    """Say how the X of another dataset, by its metadata, is other than that of what is asked for, or nothing."""
    ours, theirs = _USUAL | about_X(choices, selected), {**_USUAL, **other}
    for name in ("input_source", "input_layers", "input_dims", *_ACTIVATIONS, *_USUAL):
        this, that = (np.asarray(of.get(name, "none")) for of in (ours, theirs))
        if name == "control" and {str(this), str(that)} <= {"none", "shuffled-labels"}:
            continue  # which have the same X
        if name == "input_features" and selected.densest is not None:
            this = this[np.isin(this, that)]  # the ones that it has statistics of
        if not np.array_equal(that, this):
            return f"its X has {name} {that}, this one has {this}"
    return ""


def about_y(choices: Choices, selected: Selected, labels: Labels | None) -> dict[str, Any]:
    """Say what y is, besides the name of its strategy, as metadata: which features, or whose labels."""
    y = selected.aligned.y
    about = _coords(y, _TARGETS) if y.name == ACTIVATIONS else {}
    if choices.target_tokens.side_by_side:
        about = {
            name: np.tile(value, choices.target_tokens.count) if value.ndim else value for name, value in about.items()
        }
    about |= {
        name: choices.given[name] for name in ("target_tokens", "y", "labels_from", "classes") if name in choices.given
    }
    if labels and labels.digest:
        about["labels_digest"] = labels.digest
    if labels and labels.names:
        about["label_names"] = labels.names
    return about


def _coords(array: xr.DataArray, names: dict[str, str]) -> dict[str, Any]:
    found = {name: _values(array, coord) for name, coord in names.items()}
    return {name: values for name, values in found.items() if values is not None}


def _values(array: xr.DataArray, coord: str) -> Array | None:
    """Return a coordinate of the columns, if there is one of numbers."""
    known = array.coords.get(coord)
    if known is None or known.ndim > 1 or "sentence" in known.dims or known.dtype.kind not in "iuf":
        return None
    values: Array = array[coord].values
    return values
