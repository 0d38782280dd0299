"""Which SAE features to predict: read from a ranking of others, or ranked here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, SelectionError, shown
from featurestore.measures.active import Active
from featurestore.measures.measured import best_first
from featurestore.measures.moments import Moments
from featurestore.questions.tokens import FINAL, Tokens, arranged, counted
from featurestore.strategies import sae_activations, sae_layers, sae_positions
from featurestore.texts import Table, number, whole_number

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

Target = dict[str, int | float]
"""A feature, as options of a strategy: target_layer, target_feature, average_l0."""

_ROWS = 256
"""Rows of a chunk that are counted at once, so that their copies stay small."""

_COLUMNS = {"target_layer": "layer", "target_feature": "feature_id", "average_l0": "average_l0"}


def read_ranked(path: Path, top: int | None) -> list[Target]:
    """Read the first features of a ranking.

    Parameters
    ----------
    path : Path
        A CSV file such as ``ranked_features.csv``, the best first. It has the columns `layer`, `feature_id` and
        `average_l0`, in any order and among others.
    top : int or None
        How many; None for all.

    Raises
    ------
    ParameterError
        If the file cannot be read, a column is missing, a cell is no number, or there are fewer features.
    """
    targets: dict[tuple[float, ...], Target] = {}
    for where, cells in Table(path).rows(list(_COLUMNS.values())):
        if len(targets) == top:
            break
        named = zip(_COLUMNS.items(), cells, strict=True)
        target: Target = {
            name: (number if name == "average_l0" else whole_number)(where, column, cell)
            for (name, column), cell in named
        }
        targets.setdefault(tuple(target.values()), target)
    if len(targets) < (top or 1):
        raise ParameterError(f"{shown(path)}: expected at least {top or 1} features, found {len(targets)}")
    return list(targets.values())


RANKINGS: dict[str, Callable[[Moments], NDArray[np.float64]]] = {
    "label": lambda moments: np.abs(moments.pearson),
    "density": lambda moments: moments.density,
}
"""`label`: absolute Pearson correlation of the activation with the label; `density`: share of the sentences in which
the feature is active."""


def rank(
    ds: xr.Dataset,
    by: str,
    layers: Sequence[int],
    top: int,
    rows: NDArray[np.bool_],
    min_active: int,
    *,
    tokens: Tokens = FINAL,
    special: bool = False,
) -> list[Target]:
    """Find the features of some layers that rank first. Reads their activations, in bounded memory.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store.
    by : str
        One of `RANKINGS`.
    layers : sequence of int
        All SAEs of these are ranked together.
    top : int
        How many features.
    rows : ndarray, (sentence,) bool
        The sentences that count: with a split, the training rows alone. Those with values that are not finite do not.
    min_active : int
        Features that are active in fewer sentences are left out.
    tokens : Tokens
        At which the activation of a sentence is ranked: the final one, or their mean or maximum.
    special : bool
        Whether special tokens count among them.

    Raises
    ------
    SelectionError
        If a layer is not in the store, there are fewer features, no sentence counts, or but one label is to tell apart.
    """
    positions = [position for layer in layers for position in sae_positions(ds, layer)]
    counts = counted(ds, special=special) if tokens.needed else np.zeros((len(rows), 1), bool)
    activations = [arranged(sae_activations(ds, position).data, tokens, counts)[0] for position in positions]
    moments = _moments_of(activations, _counted_labels(ds, by, rows))
    scores = np.stack([RANKINGS[by](of_sae) for of_sae in moments])
    scores[np.stack([of_sae.active for of_sae in moments]) < min_active] = np.nan
    order = best_first(scores)
    if len(order) < top:
        found = f"only {len(order)} features are active in {min_active} sentences or more, and not constant"
        raise SelectionError(f"expected {top} features to rank, {found}; ask for fewer")
    best = zip(*np.unravel_index(order[:top], scores.shape), strict=True)
    return [_target(ds, positions[i], int(feature)) for i, feature in best]


def _counted_labels(ds: xr.Dataset, by: str, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the label of each sentence, (sentence, 1); NaN for one that does not count."""
    counted = rows & (ds["n_nonfinite"].values == 0)
    if by == "label":
        counted &= ds["has_label"].values
    labels = ds["label"].values.astype(np.float64)
    if not counted.any():
        lacks = "has no training sentence with finite values among those that are asked for"
        raise SelectionError(f"{lacks}, so no feature can be ranked; choose others")
    if by == "label" and len(np.unique(labels[counted])) < 2:
        raise SelectionError("has but one label in the training sentences, so no feature can be ranked by it")
    return np.where(counted, labels, np.nan)[:, None]


def _moments_of(activations: Sequence[da.Array], labels: NDArray[np.float64]) -> list[Moments]:
    """Read the activations of some SAEs, (sentence, feature) each, and describe each with the labels."""
    import dask.array as da

    from featurestore.datasets import workers

    reduced = [
        da.reduction(
            array,
            chunk=_moments, combine=_merged, aggregate=_merged, axis=0, keepdims=True,
            output_size=len(Moments._fields), dtype=np.float64, weights=labels,
        )
        for array in activations
    ]  # fmt: skip
    return [Moments(*values) for values in workers.compute(reduced)]


def _target(ds: xr.Dataset, position: int, feature: int) -> Target:
    return {
        "target_layer": sae_layers(ds)[position],
        "target_feature": feature,
        "average_l0": ds["average_l0"].values[position].item(),
    }


def _moments(activations: NDArray[Any], labels: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    """Describe the sentences of one chunk whose label is no NaN, (moment, feature)."""
    parts = []
    for start in range(0, len(activations), _ROWS):
        part, label = activations[start : start + _ROWS], labels[start : start + _ROWS, 0]
        counted = ~np.isnan(label)
        parts.append(Moments.of(Active.of(part).of_rows(counted), label[counted]))
    return _merged(np.concatenate(parts))


def _merged(moments: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    """Describe all sentences by what describes parts of them, one below the other."""
    return np.stack(Moments.merged(moments.reshape(-1, len(Moments._fields), moments.shape[-1])))
