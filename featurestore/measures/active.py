"""Activations of which most are zero: the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Active(NamedTuple):
    """The activations of some sentences that are not zero; all others are.

    Attributes
    ----------
    values : ndarray, (k,) float
        In any order.
    rows, features : ndarray, (k,) int32
        The sentence and the feature of each.
    n_rows, n_features : int
        How many sentences and features there are.
    """

    values: NDArray[Any]
    rows: NDArray[np.int32]
    features: NDArray[np.int32]
    n_rows: int
    n_features: int

    @classmethod
    def of(cls, activations: NDArray[Any]) -> Active:
        """Find them in an array, (sentence, feature)."""
        # Of bools, which numpy searches many times as fast as floats.
        found = np.flatnonzero(activations != 0)
        rows, features = np.divmod(found, max(1, activations.shape[1]))
        values = activations.reshape(-1)[found]
        return cls(values, rows.astype(np.int32), features.astype(np.int32), *activations.shape)

    @classmethod
    def joined(cls, parts: Sequence[Active]) -> Active:
        """Put sentences after sentences; the features are the same."""
        starts = np.cumsum([0, *(part.n_rows for part in parts)])
        rows = [part.rows + np.int32(start) for part, start in zip(parts, starts[:-1], strict=True)]
        values, features = ([getattr(part, name) for part in parts] for name in ("values", "features"))
        return cls(
            np.concatenate(values), np.concatenate(rows), np.concatenate(features), int(starts[-1]), parts[0].n_features
        )

    def of_rows(self, chosen: NDArray[np.bool_]) -> Active:
        """Leave out the other sentences, and count those that are left anew."""
        if chosen.all():
            return self
        kept = chosen[self.rows]
        rows = (np.cumsum(chosen, dtype=np.int32) - 1)[self.rows[kept]]
        return Active(self.values[kept], rows, self.features[kept], int(np.count_nonzero(chosen)), self.n_features)

    def of_first(self, n_features: int) -> Active:
        """Leave out all features but the first."""
        kept = self.features < n_features
        return Active(self.values[kept], self.rows[kept], self.features[kept], self.n_rows, n_features)

    def sums(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Add up a weight of each value, (k,), feature by feature; without weights, count them. Returns (feature,)."""
        sums: NDArray[np.float64] = np.bincount(self.features, weights, self.n_features).astype(np.float64, copy=False)
        return sums
