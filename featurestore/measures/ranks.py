"""Measures of order: they see which activations are larger, not by how much."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurestore.measures.active import Active

Array = NDArray[np.float64]


def in_order(active: Active) -> Active:
    """Sort by feature, and each feature by its values, as the measures below need them."""
    order = np.argsort(active.values)
    # In the smallest type, as numpy sorts by radix what has two bytes.
    features = active.features.astype(np.min_scalar_type(active.n_features))
    order = order[np.argsort(features[order], kind="stable")]
    return active._replace(values=active.values[order], rows=active.rows[order], features=active.features[order])


def spearman(ordered: Active, labels: Array) -> Array:
    """Spearman correlation of the activation with the label, ties at their mean rank; NaN where either is constant.

    Parameters
    ----------
    ordered : Active
        As of `in_order`.
    labels : ndarray, (sentence,) float64

    Returns
    -------
    ndarray, (feature,) float64
    """
    label = _doubled_ranks(labels)
    ranks, of_zeros = _centred_ranks(ordered)
    zeros = ordered.n_rows - ordered.sums()
    weights = label[ordered.rows]
    products = ordered.sums(ranks * weights) - of_zeros * ordered.sums(weights)
    squares = (ordered.sums(ranks**2) + zeros * of_zeros**2) * (label**2).sum()
    return np.clip(products / np.sqrt(np.where(squares > 0, squares, np.nan)), -1, 1)


def auc(ordered: Active, high: NDArray[np.bool_]) -> Array:
    """Area under the ROC curve: how often a sentence of the `high` ones has the larger activation; equal ones half.

    By the statistic U of Mann and Whitney.

    Parameters
    ----------
    ordered : Active
        As of `in_order`.
    high : ndarray, (sentence,) bool

    Returns
    -------
    ndarray, (feature,) float64
        NaN where all or none are high.
    """
    n_high, n = np.count_nonzero(high), len(high)
    if n_high in (0, n):
        return np.full(ordered.n_features, np.nan)
    ranks, of_zeros = _centred_ranks(ordered)
    weights = high[ordered.rows].astype(np.float64)
    # Centred, doubled ranks of the high ones, zero if they are like the others.
    above = ordered.sums(ranks * weights) + of_zeros * (n_high - ordered.sums(weights))
    return np.asarray(0.5 + above / 2 / (n_high * (n - n_high)))


def _centred_ranks(ordered: Active) -> tuple[Array, Array]:
    """Return twice the mid-rank of each value among all of its feature, and of the zeros, about the mean rank.

    Doubled, ranks are whole numbers, and sums of them exact.

    Returns
    -------
    ndarray, (k,) float64
        Of the values.
    ndarray, (feature,) float64
        Of the zeros of each feature.
    """
    values, features = ordered.values, ordered.features
    counts = ordered.sums()
    zeros, below = ordered.n_rows - counts, ordered.sums((values < 0).astype(np.float64))
    starts = np.ones(len(values) + 1, bool)
    starts[1:-1] = (features[1:] != features[:-1]) | (values[1:] != values[:-1])
    bounds = np.flatnonzero(starts)
    group = np.cumsum(starts[:-1]) - 1
    # First and last place of the equal ones, counted from the first value of the feature.
    places = bounds[:-1][group] + bounds[1:][group] - 1 - 2 * (np.cumsum(counts) - counts)[features]
    ranks = places + 2 + 2 * np.where(values > 0, zeros[features], 0) - (ordered.n_rows + 1)
    return ranks, 2 * below + zeros - ordered.n_rows


def _doubled_ranks(labels: Array) -> Array:
    """Return twice the mid-rank of each label, about the mean rank."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (2 * ends - counts - len(labels))[inverse].astype(np.float64)
    return ranks
