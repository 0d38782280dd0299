"""What is wrong with a dataset before it is built: nothing could be learned from it, or nothing could be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.reduce import check_fit
from featurestore.errors import shortened
from featurestore.schema import ACTIVATIONS

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.datasets.raw import Probed
    from featurestore.splits.split import Split


def obstacle(probed: Probed) -> str:
    """Say why a dataset cannot be built at all, or nothing."""
    selected, kept = probed.selected, probed.kept
    if not len(kept):
        return f"no sentence is left of those that have {_asked(probed)}; choose others"
    n_bad = len(probed.nonfinite)
    if n_bad and not probed.plan.drop_nonfinite:
        n = len(np.unique(selected.sentences))
        return f"{n_bad} of {n} sentences have NaN or infinite values; drop_nonfinite: true leaves them out"
    if not kept.any():
        return "no sentence has finite values throughout"
    if not np.any(kept & probed.training):
        lacks = "finite values throughout" if n_bad else _asked(probed)
        return f"no training sentence has {lacks}" if lacks else "no training sentence is selected"
    if (asked := probed.plan.choices.reduce) and not probed.plan.stats_from:
        return check_fit(asked, int(np.count_nonzero(kept & probed.training)), selected.width)
    return ""


def problem(probed: Probed, min_active: int) -> str:
    """Say why a dataset is unfit, or nothing.

    Parameters
    ----------
    probed : Probed
        The dataset, as far as it has been read.
    min_active : int
        A target feature that is active in fewer training rows is nearly dead.
    """
    if found := obstacle(probed):
        return found
    y, kept, rows = probed.selected.aligned.y, probed.kept, "sentences"
    if probed.selected.own_outcome:
        rows = "tokens"
    elif probed.selected.tokens is not None:  # all of a sentence have the same y
        kept = kept & _firsts(probed.selected.sentences)
    if y.name == "label" and y.ndim == 1:
        return _unfit_labels(probed, kept, rows)
    if empty := _empty_parts(probed, kept):
        return f"no sentence is left in {empty}"
    training = probed.y[kept & probed.training]
    columns, rows = training.reshape(len(training), -1).T, f"training {rows}"
    faults = (
        _inactive(column, min_active, rows) if y.name == ACTIVATIONS else _constant(column, rows) for column in columns
    )
    return "; ".join(f"{_name(y, i)} is {fault}" for i, fault in enumerate(faults) if fault)


def _firsts(sentences: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows are the first of their sentence, (k,) bool."""
    return np.isin(np.arange(len(sentences)), np.unique(sentences, return_index=True)[1])


def _asked(probed: Probed) -> str:
    """Say what sentences must have to be rows, if anything."""
    choices = probed.plan.choices
    asked = [shortened(condition) for condition in choices.where]
    asked += [f"a label of the classes {shortened(choices.classes)}"] if choices.classes else []
    return " and ".join([*asked, *["enough tokens"] * choices.drop_short])


def _empty_parts(probed: Probed, kept: NDArray[np.bool_]) -> str:
    """Name the parts of a split that have no row, such as those that a population leaves empty."""
    divided = probed.view.split(probed.plan)
    if divided is None:
        return ""
    return _parts(divided, np.setdiff1d(divided.sides, divided.sides[probed.selected.positions[kept]]))


def _parts(divided: Split, sides: NDArray[Any]) -> str:
    if divided.fold is None:
        return " and ".join("the test part" if side < 0 else "the training part" for side in sides.tolist())
    return ", ".join("the test part" if side < 0 else f"fold {side}" for side in sides.tolist())


def _unfit_labels(probed: Probed, kept: NDArray[np.bool_], rows: str) -> str:
    labels, divided = probed.y[kept], probed.view.split(probed.plan)
    if fault := _constant(labels, rows):
        return f"y is {fault}"
    return _missing_labels(labels, divided, probed.selected.positions[kept], rows) if divided else ""


def _constant(column: NDArray[Any], rows: str) -> str:
    return f"constant: {column[0]} in all {len(column)} {rows}" if np.all(column == column[0]) else ""


def _inactive(column: NDArray[Any], min_active: int, rows: str) -> str:
    n, active = len(column), int(np.count_nonzero(column))
    if not active:
        return f"dead: active in none of {n} {rows}"
    few = f"nearly dead: active in {active} of {n} {rows}, fewer than min_active: {min_active}"
    return _constant(column, rows) or (few if active < min_active else "")


def _missing_labels(labels: NDArray[Any], divided: Split, positions: NDArray[np.intp], rows: str) -> str:
    """Say which labels some part lacks: they have fewer sentences, or groups of them, than there are parts."""
    sides = divided.sides
    values, counts = np.unique(labels, return_counts=True)
    faults = []
    for value, count in zip(values, counts, strict=True):
        lacking = np.setdiff1d(sides, sides[positions[labels == value]])
        if len(lacking):
            faults.append(f"label {value} ({count} of {len(labels)} {rows}) is missing in {_parts(divided, lacking)}")
    return "; ".join(faults)


def _name(y: xr.DataArray, column: int) -> str:
    if y.name != ACTIVATIONS or not {"layer", "feature"} <= set(y.coords):
        return "y" if y.ndim == 1 else f"column {column} of y"
    layer, feature = (
        np.ravel(y[name].values) for name in ("layer", "feature")
    )  # repeated where tokens stand side by side
    return f"feature {feature[column % len(feature)]} of layer {layer[column % len(layer)]}"
