"""Sequences of a sentence's tokens, for models that read them in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.datasets.dataset import Columns


class Sequences:
    """Rows put together as sequences, padded with 0 at the front; like a 3-D array, but calculated when it is sliced.

    Parameters
    ----------
    rows : ndarray or Columns, (m, d)
        One for each token, sequence after sequence.
    lengths : ndarray, (n,) int
        Tokens of each sequence, m in all.

    Attributes
    ----------
    mask : ndarray, (n, T) bool
        Where there is a token, and not padding: T are those of the longest.
    """

    ndim = 3

    def __init__(self, rows: NDArray[Any] | Columns, lengths: NDArray[np.intp]) -> None:
        self._rows, self._ends = rows, np.concatenate([[0], np.cumsum(lengths)])
        self.mask = np.arange(lengths.max(), 0, -1) <= lengths[:, None]
        self.shape = (*self.mask.shape, rows.shape[1])
        self.dtype = rows.dtype

    def __getitem__(self, key: slice) -> NDArray[Any]:
        start, stop, _ = key.indices(len(self.mask))  # a step is never asked for
        mask = self.mask[start:stop]
        values = np.zeros((*mask.shape, self.shape[2]), self.dtype)
        values[mask] = self._rows[self._ends[start] : self._ends[max(start, stop)]]
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)
