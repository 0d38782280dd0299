"""Controls: what a probe would find by chance, in random columns, or in the text without the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

N_GRAMS = (1, 2, 3)
"""Characters of the n-grams that are counted, spaces among them."""

TEXT_WIDTH = 4096
"""Columns that the n-grams share; one more holds the length of the text."""

_STEP, _MIX_1, _MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of SplitMix64."""

_SIGN = np.uint64(63)


def shuffled(y: Array, sides: Array, seed: int, sentences: Array | None = None) -> Array:
    """Permute the values of y within each side.

    Parameters
    ----------
    y : ndarray, (n,) or (n, k)
        One value, or one row of values, for each row of a dataset.
    sides : ndarray, (n,) int
        The side of each row, such as its fold; all the same without a split.
    seed : int
        At least 0.
    sentences : ndarray, (n,) int, optional
        The sentence_index of each row, to permute whole sentences: all rows of one, which are equal in y and on one
        side, get the value of another sentence of that side. Then the order of rows makes no difference. Without it
        rows are permuted as they stand, which in a dataset is by sentence_index.

    Returns
    -------
    ndarray
        Shape and dtype of y. The values of a side are the same as before, each as often: counted by sentences, if these
        are given, whose numbers of rows may differ.
    """
    ids = np.arange(len(y)) if sentences is None else sentences
    _, first, unit = np.unique(ids, return_index=True, return_inverse=True)
    source, side = np.empty_like(first), np.asarray(sides)[first]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))  # the split draws from the seed itself
    for one in np.unique(side):
        own = side == one
        source[own] = rng.permutation(first[own])
    return np.asarray(y)[source[unit]]


def random_columns(sentences: Array, tokens: Array | None, width: int, seed: int) -> NDArray[np.float32]:
    """Draw standard normal columns; what a row holds depends on nothing but the seed and what the row is of.

    Parameters
    ----------
    sentences : ndarray, (n,) int
        The sentence_index of each row.
    tokens : ndarray, (n,) int, optional
        The label of its token, if each token is a row.
    width : int
        Number of columns, d. Of fewer, a row holds the first ones.
    seed : int
        At least 0.

    Returns
    -------
    ndarray, (n, d) float32
        The same in whatever blocks rows are asked for.
    """
    keys = np.stack([sentences] if tokens is None else [sentences, tokens], axis=1)
    words = np.ascontiguousarray(keys, "<i8").view("<u4")  # of a fixed number, so that no two keys are alike
    columns = np.empty((len(words), width), np.float32)
    for row, key in zip(columns, words.tolist(), strict=True):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        row[:] = rng.standard_normal(width)  # rounded, so that the last bits of exp and log do not show
    return columns


def text_columns(texts: Sequence[str]) -> NDArray[np.float32]:
    """Count the character n-grams of texts, hashed to a fixed number of columns, and their characters.

    Each n-gram adds 1 or -1 to one column, so that those that share a column cancel out on average: the hashing trick
    [1]_. The hash is SplitMix64 over the Unicode code points, the same on every machine. A text counts with a space
    before and after it, in upper and lower case as it is, because a model sees both.

    Parameters
    ----------
    texts : sequence of str
        One for each row.

    Returns
    -------
    ndarray, (n, 4097) float32
        Signed counts, and in the last column the length in characters. Each row depends on its own text alone.

    References
    ----------
    .. [1] Weinberger, Dasgupta, Langford, Smola, Attenberg: Feature hashing for large scale multitask learning. ICML
       2009.
    """
    columns = np.zeros((len(texts), TEXT_WIDTH + 1), np.float32)
    columns[:, -1] = [len(text) for text in texts]
    joined = "".join(f" {text} " for text in texts).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, "<u4").astype(np.uint64)
    rows = np.repeat(np.arange(len(texts)), [len(text) + 2 for text in texts])
    for n in N_GRAMS:
        starts = np.flatnonzero(rows[: max(0, len(rows) - n + 1)] == rows[n - 1 :])  # of n-grams within one text
        hashes = np.full(len(starts), n, np.uint64)
        for position in range(n):
            hashes = _mixed(hashes * _STEP + codes[starts + position])
        signs = np.where(hashes >> _SIGN, np.float32(-1), np.float32(1))
        np.add.at(columns, (rows[starts], (hashes % np.uint64(TEXT_WIDTH)).astype(np.int64)), signs)
    return columns


def length_columns(texts: Sequence[str], n_tokens: Array) -> NDArray[np.float32]:
    """Tell how long texts are, in characters and in tokens, (n, 2) float32."""
    return np.stack([[len(text) for text in texts], n_tokens], axis=1, dtype=np.float32)


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Let each bit depend on all bits: the finalizer of SplitMix64."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _MIX_1
    hashes = (hashes ^ (hashes >> np.uint64(27))) * _MIX_2
    return hashes ^ (hashes >> np.uint64(31))
