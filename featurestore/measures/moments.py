"""Moments of activations and labels, which parts of the sentences can be described by, one after the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurestore.measures.active import Active

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """What describes some sentences, of each feature, (feature,) float64.

    Sums of squares and products are about the means of these sentences, so that a small spread is not lost beside a
    large offset.

    Attributes
    ----------
    n, active : ndarray
        How many sentences, and how many in which the feature is active.
    low, high : ndarray
        Smallest and largest activation; infinite where there is no sentence.
    mean, mean_label : ndarray
        Mean activation and label.
    squares, label_squares, products : ndarray
        Sums of the squared activations and labels, and of their products, about the means.
    """

    n: Array
    active: Array
    low: Array
    high: Array
    mean: Array
    mean_label: Array
    squares: Array
    label_squares: Array
    products: Array

    @classmethod
    def of(cls, active: Active, labels: Array) -> Moments:
        """Describe sentences by their activations and labels, (sentence,)."""
        n, values = max(1, active.n_rows), active.values.astype(np.float64)
        counts = active.sums()
        some_zero = counts < active.n_rows
        low, high = (np.where(some_zero, 0.0, sign * np.inf) for sign in (1, -1))
        np.minimum.at(low, active.features, values)
        np.maximum.at(high, active.features, values)
        mean = active.sums(values) / n
        mean_label = labels.sum() / n
        label = labels - mean_label
        centred, weights = values - mean[active.features], label[active.rows]
        of_zeros = np.where(some_zero, label.sum() - active.sums(weights), 0)
        return cls(
            n=np.full_like(mean, active.n_rows),
            active=counts,
            low=low,
            high=high,
            mean=mean,
            mean_label=np.full_like(mean, mean_label),
            squares=active.sums(centred**2) + (active.n_rows - counts) * mean**2,
            label_squares=np.full_like(mean, (label**2).sum()),
            products=active.sums(centred * weights) - mean * of_zeros,
        )

    @classmethod
    def merged(cls, parts: Array) -> Moments:
        """Describe all sentences by what describes parts of them, (part, moment, feature) [1]_.

        .. [1] Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances. 1979.
        """
        n, active, low, high, means, labels, squares, label_squares, products = parts.swapaxes(0, 1)
        total = n.sum(axis=0)
        mean, label = ((n * part).sum(axis=0) / np.maximum(total, 1) for part in (means, labels))
        return cls(
            n=total,
            active=active.sum(axis=0),
            low=low.min(axis=0),
            high=high.max(axis=0),
            mean=mean,
            mean_label=label,
            squares=(squares + n * (means - mean) ** 2).sum(axis=0),
            label_squares=(label_squares + n * (labels - label) ** 2).sum(axis=0),
            products=(products + n * (means - mean) * (labels - label)).sum(axis=0),
        )

    @property
    def density(self) -> Array:
        """Share of the sentences in which the feature is active; NaN without a sentence."""
        return np.divide(self.active, self.n, out=np.full_like(self.n, np.nan), where=self.n > 0)

    @property
    def scale(self) -> Array:
        """What divides a sum of products with the labels to give a correlation; NaN where either is constant."""
        varies = (self.low < self.high) & (self.label_squares > 0)
        return np.sqrt(np.where(varies, self.squares * self.label_squares, np.nan))

    @property
    def pearson(self) -> Array:
        """Pearson correlation of the activation with the label; NaN where either is constant."""
        return np.clip(self.products / self.scale, -1, 1)
