"""All measures of some features at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurestore.measures.active import Active
from featurestore.measures.moments import Moments
from featurestore.measures.ranks import auc, in_order, spearman
from featurestore.measures.significance import p_values, strongest_by_chance

Array = NDArray[np.float64]


def measured(active: Active, labels: Array, kinds: Array, *, permutations: int, seed: int) -> dict[str, Array]:
    """Measure features by themselves, and against the labels of those sentences that have one.

    Parameters
    ----------
    active : Active
        Their activations.
    labels : ndarray, (sentence,) float64
        NaN without one.
    kinds : ndarray, (label,) float64
        The labels that there may be, each once, ascending.
    permutations, seed : int
        Of the labels.

    Returns
    -------
    dict of ndarray, (feature,) float64
        Of all sentences `density`, `mean`, `max`; against the label `active`, `mean_by_label` (feature, label),
        `pearson`, `spearman`, `auc`, `monotonic` and `p`, NaN where activation or label are constant;
        `chance` (permutation,) as of `strongest_by_chance`.
    """
    has_label = ~np.isnan(labels)
    whole, active, labels = active, in_order(active.of_rows(has_label)), labels[has_label]
    moments = Moments.of(active, labels)
    alone = moments if has_label.all() else Moments.of(whole, np.zeros(whole.n_rows))
    lowest, highest = (labels.min(), labels.max()) if len(labels) else (np.nan, np.nan)
    ends = (labels == lowest) | (labels == highest)
    by_label = mean_by_label(active, labels, kinds)
    pearson = moments.pearson
    varies = ~np.isnan(pearson)
    return {
        "density": alone.density,
        "mean": np.where(alone.n > 0, alone.mean, np.nan),
        "max": np.where(alone.n > 0, alone.high, np.nan),
        "active": moments.active,
        "mean_by_label": by_label,
        "pearson": pearson,
        "spearman": np.where(varies, spearman(active, labels), np.nan),
        "auc": np.where(varies, auc(active.of_rows(ends), labels[ends] == highest), np.nan),
        "monotonic": np.where(varies, monotonic(by_label), np.nan),
        "p": p_values(pearson, len(labels)),
        "chance": strongest_by_chance(active, labels, moments, permutations, seed),
    }


def mean_by_label(active: Active, labels: Array, kinds: Array) -> Array:
    """Return the mean activation in the sentences of each kind of label, (feature, label); NaN where there are none."""
    kind = np.searchsorted(kinds, labels)
    counts = np.bincount(kind, minlength=len(kinds))
    cells = active.features.astype(np.int64) * len(kinds) + kind[active.rows]
    sums = np.bincount(cells, active.values, active.n_features * len(kinds)).reshape(active.n_features, len(kinds))
    means: Array = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def monotonic(by_label: Array) -> Array:
    """Tell how far means rise with the label: Kendall's tau-a of label and mean.

    Of all pairs of labels, the share in which the higher label has the larger mean less the share in which it has the
    smaller: 1 if the mean rises with each label, -1 if it falls with each.

    Parameters
    ----------
    by_label : ndarray, (feature, label) float64
        By ascending labels; those without a mean, NaN, do not count.

    Returns
    -------
    ndarray, (feature,) float64
        NaN with fewer than two labels.
    """
    known = by_label[:, ~np.isnan(by_label).all(axis=0)]
    n = known.shape[1]
    if n < 2:
        return np.full(len(by_label), np.nan)
    signs = sum((np.sign(known[:, i + 1 :] - known[:, [i]]).sum(axis=1) for i in range(n - 1)), np.zeros(len(known)))
    return np.asarray(signs / (n * (n - 1) / 2))


def best_first(scores: Array, top: int | None = None, ties: Array | None = None) -> NDArray[np.intp]:
    """Return positions in the flattened scores, the highest first, without those that are NaN.

    Rounded to 12 digits, so that equal ones stay in their order on every machine; or the higher of `ties` is first.
    """
    keys = [-each.round(12).ravel() for each in (ties, scores) if each is not None]
    order = np.lexsort(keys)  # stable, by the last key first, NaN last
    return order[: np.count_nonzero(~np.isnan(scores))][:top]
