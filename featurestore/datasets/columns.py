"""X before it is in memory: columns side by side, and sequences of their rows, calculated when they are sliced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.normalize import consecutive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.datasets.normalize import Normalization


class Columns:
    """Blocks of columns side by side, of some rows; like a 2-D array, but calculated when it is sliced.

    Parameters
    ----------
    blocks : sequence of ndarray, (m, d_i)
        Raw values.
    rows : ndarray, (n,) int
        Which of their rows, in this order.
    columns : ndarray, (d,) int, or slice
        Which of their columns.
    normalization : Normalization, optional
        Applied to what is sliced; without it the values are raw.
    """

    ndim = 2

    def __init__(
        self,
        blocks: Sequence[NDArray[Any]],
        rows: NDArray[np.intp],
        columns: NDArray[np.intp] | slice = slice(None),
        normalization: Normalization | None = None,
    ) -> None:
        self._blocks, self._rows, self._columns, self._normalization = blocks, rows, columns, normalization
        self.shape = len(rows), len(np.arange(sum(block.shape[1] for block in blocks))[columns])
        self.dtype = np.dtype(np.float32) if normalization else np.result_type(*blocks)

    def __getitem__(self, key: slice | tuple[slice, ...]) -> NDArray[Any]:
        part, *further = key if isinstance(key, tuple) else (key,)
        rows = consecutive(self._rows[part])
        parts = [block[rows] for block in self._blocks]
        values = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))[:, self._columns]
        if self._normalization:
            values = self._normalization.transform(values)
        return values[:, *further]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


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
