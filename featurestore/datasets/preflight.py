"""What is wrong with a dataset before it is built: nothing could be learned from it, or nothing could be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.schema import ACTIVATIONS

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.datasets.raw import Probed
    from featurestore.splits.split import Split


def obstacle(probed: Probed) -> str:
    """Say why a dataset cannot be built at all, or nothing."""
    finite = probed.finite
    n_bad = int(np.count_nonzero(~finite))
    if n_bad and not probed.plan.drop_nonfinite:
        return f"{n_bad} of {len(finite)} sentences have NaN or infinite values; drop_nonfinite: true leaves them out"
    if n_bad == len(finite):
        return "no sentence has finite values throughout"
    if not np.any(finite & probed.training):
        return "no training sentence has finite values throughout"
    return ""


def problem(probed: Probed, min_active: int) -> str:
    """Say why a dataset is unfit, or nothing.

    Parameters
    ----------
    probed : Probed
        The dataset, as far as it has been read.
    min_active : int
        A target feature that is active in fewer training sentences is nearly dead.
    """
    if found := obstacle(probed):
        return found
    y, finite = probed.selected.y, probed.finite
    if y.name == "label" and y.ndim == 1:
        return _unfit_labels(probed, finite)
    training = probed.y[finite & probed.training]
    columns = training.reshape(len(training), -1).T
    faults = (_inactive(column, min_active) if y.name == ACTIVATIONS else _constant(column) for column in columns)
    return "; ".join(f"{_name(y, i)} is {fault}" for i, fault in enumerate(faults) if fault)


def _unfit_labels(probed: Probed, finite: NDArray[np.bool_]) -> str:
    labels, divided = probed.y[finite], probed.view.split(probed.plan.split)
    if fault := _constant(labels, "sentences"):
        return f"y is {fault}"
    return _missing_labels(labels, divided, probed.selected.positions[finite]) if divided else ""


def _constant(column: NDArray[Any], rows: str = "training sentences") -> str:
    return f"constant: {column[0]} in all {len(column)} {rows}" if np.all(column == column[0]) else ""


def _inactive(column: NDArray[Any], min_active: int) -> str:
    n, active = len(column), int(np.count_nonzero(column))
    if not active:
        return f"dead: active in none of {n} training sentences"
    few = f"nearly dead: active in {active} of {n} training sentences, fewer than min_active: {min_active}"
    return _constant(column) or (few if active < min_active else "")


def _missing_labels(labels: NDArray[Any], divided: Split, positions: NDArray[np.intp]) -> str:
    """Say which labels some part lacks: they have fewer sentences, or groups of them, than there are parts."""
    sides = divided.sides
    values, counts = np.unique(labels, return_counts=True)
    faults = []
    for value, count in zip(values, counts, strict=True):
        lacking = np.setdiff1d(sides, sides[positions[labels == value]])
        if len(lacking):
            parts = ", ".join("the test part" if side < 0 else f"fold {side}" for side in lacking.tolist())
            parts = parts if divided.fold is not None or lacking[0] < 0 else "the training part"
            faults.append(f"label {value} ({count} of {len(labels)} sentences) is missing in {parts}")
    return "; ".join(faults)


def _name(y: xr.DataArray, column: int) -> str:
    if y.name != ACTIVATIONS or not {"layer", "feature"} <= set(y.coords):
        return "y" if y.ndim == 1 else f"column {column} of y"
    layer, feature = (np.broadcast_to(y[name].values, y.shape[1:] or (1,))[column] for name in ("layer", "feature"))
    return f"feature {feature} of layer {layer}"
