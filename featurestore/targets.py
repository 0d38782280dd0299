"""Which SAE features to predict: read from a ranking of others, or ranked here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, SelectionError, shown
from featurestore.schema import ACTIVATIONS
from featurestore.strategies import final, sae_positions
from featurestore.texts import Table, whole_number

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

Target = dict[str, int]
"""A feature, as options of a strategy: target_layer, target_feature, average_l0."""

_ROWS = 64
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
        If the file cannot be read, a column is missing, a cell is no integer, or there are fewer features.
    """
    targets: dict[tuple[int, ...], Target] = {}
    for where, cells in Table(path).rows(list(_COLUMNS.values())):
        if len(targets) == top:
            break
        named = zip(_COLUMNS.items(), cells, strict=True)
        target = {name: whole_number(where, column, cell) for (name, column), cell in named}
        targets.setdefault(tuple(target.values()), target)
    if len(targets) < (top or 1):
        raise ParameterError(f"{shown(path)}: expected at least {top or 1} features, found {len(targets)}")
    return list(targets.values())


def _by_label(n: int, moments: NDArray[np.float64]) -> NDArray[np.float64]:
    _, total, squares, products = moments
    variance = squares - total**2 / n
    variance[variance <= 1e-9 * squares] = np.nan  # constant, but for rounding
    scores: NDArray[np.float64] = np.abs(products) / np.sqrt(variance)
    return scores


def _by_density(n: int, moments: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = moments[0] / n
    return shares


RANKINGS: dict[str, Callable[[int, NDArray[np.float64]], NDArray[np.float64]]] = {
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
        If a layer is not in the store, there are fewer features, or there is but one label to tell apart.
    """
    import dask.array as da
    from dask.base import compute

    positions = [position for layer in layers for position in sae_positions(ds, layer)]
    rows = rows & (ds["n_nonfinite"].values == 0)
    labels = ds["label"].values.astype(np.float64)
    if by == "label" and len(np.unique(labels[rows])) < 2:
        raise SelectionError("has but one label in the training sentences, so no feature can be ranked by it")
    labels = np.where(rows, labels - labels[rows].mean(), np.nan)[:, None]
    moments = compute(
        *(
            da.reduction(
                final(ds[ACTIVATIONS], layer=position).data,
                chunk=_moments, combine=_sum, aggregate=_sum, axis=0, keepdims=True, output_size=4,
                dtype=np.float64, weights=labels,
            )
            for position in positions
        )
    )  # fmt: skip
    scores = np.stack([RANKINGS[by](int(rows.sum()), values) for values in moments])
    scores[np.stack([values[0] for values in moments]) < min_active] = np.nan
    # Rounded, so that equal ones are in the order of layer and feature on every machine.
    order = np.argsort(-scores.round(12), axis=None, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    if len(order) < top:
        found = f"only {len(order)} features are active in {min_active} sentences or more, and not constant"
        raise SelectionError(f"expected {top} features to rank, {found}; ask for fewer")
    return [
        {
            "target_layer": int(ds["layer"].values[positions[i]]),
            "target_feature": int(feature),
            "average_l0": int(ds["average_l0"].values[positions[i]]),
        }
        for i, feature in zip(*np.unravel_index(order[:top], scores.shape), strict=True)
    ]


def _moments(activations: NDArray[Any], labels: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    """Of one chunk, for each feature: active sentences, sum, sum of squares, sum of products with the label."""
    moments = np.zeros((4, activations.shape[1]))
    for start in range(0, len(activations), _ROWS):
        part = slice(start, start + _ROWS)
        counted = ~np.isnan(labels[part, 0])
        values, centred = activations[part][counted].astype(np.float64), labels[part][counted, :1]
        moments += [np.count_nonzero(values, axis=0), values.sum(0), (values**2).sum(0), (values * centred).sum(0)]
    return moments


def _sum(moments: NDArray[np.float64], **_: Any) -> NDArray[np.float64]:
    return moments.reshape(-1, 4, moments.shape[-1]).sum(axis=0)
