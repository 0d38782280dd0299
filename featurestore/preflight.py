"""What is wrong with a dataset before it is built: nothing could be learned from it, or nothing could be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.schema import ACTIVATIONS

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.plans import Plan
    from featurestore.sources import Source
    from featurestore.splits import SplitOptions


def problem(source: Source, plan: Plan, min_active: int) -> str:
    """Say why a dataset is unfit, or nothing.

    Parameters
    ----------
    source : Source
        The store; the plan has been probed.
    plan : Plan
        The dataset.
    min_active : int
        A target feature that is active in fewer training sentences is nearly dead.
    """
    finite = source.finite(plan)
    n_bad = int(np.count_nonzero(~finite))
    if n_bad and not plan.drop_nonfinite:
        return f"{n_bad} of {len(finite)} sentences have NaN or infinite values; drop_nonfinite: true leaves them out"
    if n_bad == len(finite):
        return "no sentence has finite values throughout"
    y, target = source.select(plan).y, source.target(plan)
    if target.dtype.kind in "iu":
        return _labels(target[finite], plan.split)
    columns = target[finite & source.training_rows(plan.split)].reshape(-1, *target.shape[1:2] or (1,))
    faults = [(i, fault) for i, column in enumerate(columns.T) if (fault := _activations(column, min_active))]
    return "; ".join(f"{_name(y, i)} is {fault}" for i, fault in faults)


def _labels(labels: NDArray[Any], split: SplitOptions | None) -> str:
    values, counts = np.unique(labels, return_counts=True)
    if len(values) == 1:
        return f"y is constant: {values[0]} for all {len(labels)} sentences"
    parts, what = (1, "") if split is None else (split.folds, "folds") if split.folds else (2, "parts")
    few = [f"{value} ({count})" for value, count in zip(values, counts, strict=True) if count < (parts or 1)]
    return f"fewer sentences than {parts} {what} with label {', '.join(few)}" if few else ""


def _activations(column: NDArray[Any], min_active: int) -> str:
    n, active = len(column), int(np.count_nonzero(column))
    if not active:
        return f"dead: active in none of {n} sentences"
    if np.all(column == column[0]):
        return f"constant: {column[0]} in all {n} sentences"
    return f"nearly dead: active in {active} of {n} sentences" if active < min_active else ""


def _name(y: xr.DataArray, column: int) -> str:
    if y.name != ACTIVATIONS:
        return "y" if y.ndim == 1 else f"column {column} of y"
    layer, feature = (np.broadcast_to(y[name].values, y.shape[1:] or (1,))[column] for name in ("layer", "feature"))
    return f"feature {feature} of layer {layer}"
