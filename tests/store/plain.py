"""Stores as plain Zarr reads them, compared with the sentence NPZs by numpy and zlib alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

Arrays = dict[str, np.ndarray[Any, Any]]

DATA = ("embeddings", "hidden_states", "activations")

SEVERAL: dict[str, Any] = {"layers": [0, 5, 5], "average_l0s": [3, 2.5, 9]}
"""Options of sentences that have several SAEs a layer."""


def turned(arrays: Arrays, name: str) -> np.ndarray[Any, Any]:
    """Values of a sentence as they are on disk: (token, ...), the final token first."""
    values = arrays[name]
    return np.ascontiguousarray((values if name == "embeddings" else values.swapaxes(0, 1))[::-1])


def assert_zarr_holds(path: Path, expected: Sequence[Arrays]) -> None:
    """Compare what plain Zarr reads with the sentences, by bytes, and their checksums with zlib's."""
    group: Any = zarr.open_group(path, mode="r")
    assert group["sentence"][:].tolist() == [arrays["sentence_index"].item() for arrays in expected]
    for name in [name for name in DATA if name in expected[0]]:
        stored = group[name][:]
        for row, arrays in enumerate(expected):
            values = turned(arrays, name)
            assert stored.dtype == values.dtype
            assert stored[row, : len(values)].tobytes() == values.tobytes(), (row, name)
            assert np.isnan(stored[row, len(values) :]).all()
            assert int(group[f"{name}_crc32"][row]) % 2**32 == zlib.crc32(values.tobytes())  # it is signed
    longest = max(len(arrays["fragments"]) for arrays in expected)
    for row, arrays in enumerate(expected):
        fragments = arrays["fragments"][::-1].tolist()
        assert group["fragment"][row].tolist() == fragments + [""] * (longest - len(fragments))
