"""Which SAE features to predict: read from a ranking of others, or ranked here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, SelectionError, shown
from featurestore.strategies import activations_at, sae_layers, sae_positions
from featurestore.texts import Table, number, whole_number

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

Target = dict[str, int | float]
"""A feature, as options of a strategy: target_layer, target_feature, average_l0."""

_ROWS = 64
"""Rows of a chunk that are counted at once, so that their copies stay small."""

_N_MOMENTS = 8

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


def _by_label(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    _, _, low, high, _, _, squares, products = moments
    scores: NDArray[np.float64] = np.abs(products) / np.sqrt(np.where(low < high, squares, np.nan))
    return scores


def _by_density(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = moments[1] / moments[0]
    return shares


RANKINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "label": _by_label,
    "density": _by_density,
}
"""`label`: absolute Pearson correlation of the activation with the label (up to a factor that is the same for all
features); `density`: share of the sentences in which the feature is active."""


def rank(
    ds: xr.Dataset, by: str, layers: Sequence[int], top: int, rows: NDArray[np.bool_], min_active: int
) -> list[Target]:
    """Find the features of some layers that rank first at the final token. Reads their activations, in bounded memory.

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

    Raises
    ------
    SelectionError
        If a layer is not in the store, there are fewer features, no sentence counts, or but one label is to tell apart.
    """
    positions = [position for layer in layers for position in sae_positions(ds, layer)]
    moments = _moments_of(ds, positions, _centred_labels(ds, by, rows))
    scores = np.stack([RANKINGS[by](values) for values in moments])
    scores[np.stack([values[1] for values in moments]) < min_active] = np.nan
    # Rounded, so that equal ones are in the order of layer and feature on every machine.
    order = np.argsort(-scores.round(12), axis=None, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    if len(order) < top:
        found = f"only {len(order)} features are active in {min_active} sentences or more, and not constant"
        raise SelectionError(f"expected {top} features to rank, {found}; ask for fewer")
    best = zip(*np.unravel_index(order[:top], scores.shape), strict=True)
    return [_target(ds, positions[i], int(feature)) for i, feature in best]


def _centred_labels(ds: xr.Dataset, by: str, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the label of each sentence about their mean, (sentence, 1); NaN for one that does not count."""
    counted = rows & (ds["n_nonfinite"].values == 0)
    if by == "label":
        counted &= ds["has_label"].values
    labels = ds["label"].values.astype(np.float64)
    if not counted.any():
        raise SelectionError("has no training sentence with finite values, so no feature can be ranked")
    if by == "label" and len(np.unique(labels[counted])) < 2:
        raise SelectionError("has but one label in the training sentences, so no feature can be ranked by it")
    return np.where(counted, labels - labels[counted].mean(), np.nan)[:, None]


def _moments_of(ds: xr.Dataset, positions: Sequence[int], labels: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Read the activations of some SAEs at the final token, and describe each as `_moments` does."""
    import dask.array as da

    from featurestore.datasets import workers

    reduced = [
        da.reduction(
            activations_at(ds, position).data,
            chunk=_moments, combine=_merged, aggregate=_merged, axis=0, keepdims=True, output_size=_N_MOMENTS,
            dtype=np.float64, weights=labels,
        )
        for position in positions
    ]  # fmt: skip
    return workers.compute(reduced)


def _target(ds: xr.Dataset, position: int, feature: int) -> Target:
    return {
        "target_layer": sae_layers(ds)[position],
        "target_feature": feature,
        "average_l0": ds["average_l0"].values[position].item(),
    }


def _moments(activations: NDArray[Any], labels: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    """Describe the sentences of one chunk whose label is no NaN, for each feature.

    Returns
    -------
    ndarray, (8, feature) float64
        How many sentences, how many of them active, the smallest and the largest activation, the mean activation and
        label, and the sums of squares and of products with the label about these means: so a small spread is not lost
        beside a large offset.
    """
    n_features = activations.shape[1]
    moments = np.repeat(np.array([0, 0, np.inf, -np.inf, 0, 0, 0, 0])[:, None], n_features, axis=1)
    for start in range(0, len(activations), _ROWS):
        part = slice(start, start + _ROWS)
        counted = ~np.isnan(labels[part, 0])
        if counted.any():
            values, label = activations[part][counted].astype(np.float64), labels[part][counted, :1]
            mean, mean_label = values.mean(axis=0), label.mean()
            centred, n = values - mean, len(label)
            rows = [
                np.full(n_features, n), np.count_nonzero(values, axis=0), values.min(axis=0), values.max(axis=0), mean,
                np.full(n_features, mean_label), (centred**2).sum(axis=0), (centred * (label - mean_label)).sum(axis=0),
            ]  # fmt: skip
            moments = _merged(np.concatenate([moments, rows]))
    return moments


def _merged(moments: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    """Describe all sentences by what describes parts of them [1]_.

    .. [1] Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances. 1979.
    """
    n, active, low, high, means, labels, squares, products = moments.reshape(
        -1, _N_MOMENTS, moments.shape[-1]
    ).swapaxes(0, 1)
    total = n.sum(axis=0)
    mean, label = ((n * part).sum(axis=0) / np.maximum(total, 1) for part in (means, labels))
    squares = (squares + n * (means - mean) ** 2).sum(axis=0)
    products = (products + n * (means - mean) * (labels - label)).sum(axis=0)
    return np.stack([total, active.sum(axis=0), low.min(axis=0), high.max(axis=0), mean, label, squares, products])
