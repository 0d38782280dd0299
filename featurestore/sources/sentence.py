"""What a sentence is, once it is read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.schema import SentenceFile

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SparseActivations:
    """Activations (S, T, F), of which only those that are not zero are held.

    Attributes
    ----------
    shape : tuple of int
        S SAEs, T tokens, F features.
    starts : ndarray, (T + 1,) int64
        Where each token's begin in the other two, in reading order.
    positions : ndarray of uint32 or uint64
        Of each token ascending: where they are in a flat (S, F) array.
    values : ndarray of float16 or float32
        What they are.
    """

    shape: tuple[int, int, int]
    starts: NDArray[np.int64]
    positions: NDArray[np.unsignedinteger]
    values: NDArray[np.floating]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.values.dtype

    def token(self, token: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.floating]]:
        """Return the positions and the values of one token, in memory of their own."""
        part = slice(self.starts[token], self.starts[token + 1])
        return self.positions[part].copy(), self.values[part].copy()

    def dense(self) -> NDArray[np.floating]:
        """Return all of them, (S, T, F)."""
        saes, tokens, features = self.shape
        dense = np.zeros((tokens, saes * features), self.values.dtype)
        dense[np.repeat(np.arange(tokens), np.diff(self.starts)), self.positions] = self.values
        return np.ascontiguousarray(dense.reshape(tokens, saes, features).swapaxes(0, 1))


@dataclass(frozen=True)
class Sentence:
    """One sentence's content, T tokens in reading order, the final token last.

    Attributes
    ----------
    file : SentenceFile
        Where it came from.
    text : str
        The sentence.
    fragments : tuple of str
        The T cumulative fragments.
    label : int or None
        Concept strength, if there is a label.
    special : ndarray, (T,) bool
        Which tokens are special ones, such as a BOS.
    embeddings : ndarray, (T, H), or None
        Before the first block.
    hidden_states : ndarray, (L, T, H), or None
        Residual stream after each layer, each layer once.
    activations : ndarray or SparseActivations, (S, T, F), or None
        SAE features, of each SAE.
    """

    file: SentenceFile
    text: str
    fragments: tuple[str, ...]
    label: int | None
    special: NDArray[np.bool_]
    embeddings: NDArray[np.floating] | None
    hidden_states: NDArray[np.floating] | None
    activations: NDArray[np.floating] | SparseActivations | None
