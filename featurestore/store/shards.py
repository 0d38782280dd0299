"""Shards written chunk by chunk, so that none is ever dense in memory.

Zarr's own writing of a shard wants all of it at once, a hundred times what it has to hold of sparse activations. What
is written here is what Zarr's sharding codec writes [1]_: the chunks one after the other, then their places and sizes.

.. [1] https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd

from featurestore.store.layout import Metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EMPTY = 2**64 - 1
"""Place and size of a chunk that is not there, and so reads as padding."""

_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


class ShardWriter:
    """A shard on its way to disk; a context manager, which writes the index when it ends well.

    Parameters
    ----------
    path : Path
        Its file; folders that it lacks are made.
    metadata : dict
        Of its array.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        (sharding,) = metadata["codecs"]
        shard, chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"], sharding["configuration"]["chunk_shape"]
        self._grid = tuple(size // step for size, step in zip(shard, chunk, strict=True))
        self._index = np.full((math.prod(self._grid), 2), _EMPTY, "<u8")
        self._compress = _compressor(sharding["configuration"]["codecs"][1])
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file as file:
            if kind is None:
                index = self._index.tobytes()
                file.write(index + _checksum(index))

    def add(self, place: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write a chunk.

        Parameters
        ----------
        place : tuple of int
            Its place in the grid of the shard's chunks.
        values : ndarray
            Of the chunk's shape and the array's dtype, contiguous.
        """
        compressed = self._compress(values)
        self._file.write(compressed)
        self._file.write(_checksum(compressed))
        size = len(compressed) + 4
        self._index[np.ravel_multi_index(place, self._grid)] = self._size, size
        self._size += size


def _compressor(codec: dict[str, Any]) -> Callable[[NDArray[Any]], bytes]:
    settings = codec["configuration"]
    if codec["name"] == "zstd":
        encode = Zstd(settings["level"]).encode
    else:
        shuffle = _SHUFFLES[settings["shuffle"]]
        encode = Blosc(settings["cname"], settings["clevel"], shuffle, settings["blocksize"]).encode
    return lambda values: bytes(encode(values))


def _checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(4, "little")
