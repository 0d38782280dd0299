"""Files of an array written and read chunk by chunk, with nothing in between.

Zarr's own writing of a shard wants all of it at once, a hundred times what it has to hold of sparse activations; its
reading copies each chunk twice. What is written here is what Zarr's sharding codec writes [1]_: the chunks one after
the other, then their places and sizes. So plain Zarr reads it, too.

.. [1] https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np
from numcodecs import Blosc, VLenUTF8, Zstd

from featurestore.store.layout import Metadata, chunk_shape, file_shape

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
        self._form = _Form(metadata)
        self._index = np.full((math.prod(self._form.grid), 2), _EMPTY, "<u8")
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
        compressed = bytes(self._form.compressor.encode(values))
        self._file.write(compressed)
        self._file.write(_checksum(compressed))
        size = len(compressed) + 4
        self._index[np.ravel_multi_index(place, self._form.grid)] = self._size, size
        self._size += size


class ShardReader:
    """A shard, or a file that is one chunk; a context manager. What replaces it meanwhile does not show.

    Parameters
    ----------
    path : Path
        Its file.
    metadata : dict
        Of its array.

    Raises
    ------
    ValueError
        If it is damaged, also from `read` and `read_into`.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self._form = _Form(metadata)
        self._file = path.open("rb", buffering=0)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._index = self._read_index() if self._form.is_shard else np.array([[0, self._size]])
        except BaseException:
            self._file.close()
            raise

    def _read_index(self) -> NDArray[Any]:
        n_bytes = 16 * math.prod(self._form.grid)
        index = os.pread(self._file.fileno(), n_bytes + 4, max(0, self._size - n_bytes - 4))
        return np.frombuffer(_intact(index, n_bytes), "<u8").reshape(-1, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each dim."""
        return self._form.grid

    def read(self, place: tuple[int, ...]) -> NDArray[Any] | None:
        """Return the chunk at a place in the grid of chunks, valid until the next is read; None if there is none."""
        compressed = self._compressed(place)
        if compressed is None:
            return None
        self._form.decode(compressed, self._chunk)
        return self._chunk

    def read_into(self, target: NDArray[Any], place: tuple[int, ...], within: tuple[slice, ...]) -> bool:
        """Read a part of the chunk at a place into an array of its shape; False if there is none."""
        compressed = self._compressed(place)
        if compressed is None:
            return False
        if target.shape == self._form.chunk and target.flags.c_contiguous:
            self._form.decode(compressed, target)
        else:
            self._form.decode(compressed, self._chunk)
            target[...] = self._chunk[within]
        return True

    @cached_property
    def _chunk(self) -> NDArray[Any]:
        return np.empty(self._form.chunk, self._form.dtype)  # the same for all: to allocate it takes long

    def _compressed(self, place: tuple[int, ...]) -> bytes | None:
        start, size = self._index[np.ravel_multi_index(place, self._form.grid)].tolist()
        if start == size == _EMPTY:
            return None
        if start + size > self._size:
            raise ValueError("a chunk ends beyond the file")
        return _intact(os.pread(self._file.fileno(), size, start), size - 4)


class _Form:
    """What an array's metadata say of its files."""

    def __init__(self, metadata: Metadata) -> None:
        self.chunk, shape = tuple(chunk_shape(metadata)), file_shape(metadata)
        self.dtype = np.dtype(object if metadata["data_type"] == "string" else metadata["data_type"])
        self.grid = tuple(size // step for size, step in zip(shape, self.chunk, strict=True))
        first, *_ = codecs = metadata["codecs"]
        self.is_shard = first["name"] == "sharding_indexed"
        _, codec, _ = first["configuration"]["codecs"] if self.is_shard else codecs
        settings = codec["configuration"]
        if codec["name"] == "zstd":
            self.compressor = Zstd(settings["level"])
        else:
            shuffle = _SHUFFLES[settings["shuffle"]]
            # Outside of the main thread Blosc works by itself; with threads of its own, the bytes would vary.
            self.compressor = Blosc(settings["cname"], settings["clevel"], shuffle, settings["blocksize"])

    def decode(self, compressed: bytes, target: NDArray[Any]) -> None:
        """Decompress a chunk into an array, which the codecs would leave as it is where they have too little for it."""
        if self.dtype == object:
            target[...] = VLenUTF8().decode(self.compressor.decode(compressed)).reshape(self.chunk)
            return
        size = _zstd_size(compressed) if isinstance(self.compressor, Zstd) else _blosc_size(compressed)
        if size != target.nbytes:
            raise ValueError(f"expected a chunk of {target.nbytes} bytes, found one of {size}")
        self.compressor.decode(compressed, target)


def _zstd_size(frame: bytes) -> int:
    """Return how many bytes a frame holds: RFC 8878, 3.1.1.1."""
    flags = int.from_bytes(frame[4:5])
    is_single = flags >> 5 & 1
    width = (is_single, 2, 4, 8)[flags >> 6]
    start = 6 - is_single + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


def _blosc_size(frame: bytes) -> int:
    """Return how many bytes a frame holds: README_CHUNK_FORMAT of C-Blosc."""
    return int.from_bytes(frame[4:8], "little")


def _intact(data: bytes, size: int) -> bytes:
    """Return data without the checksum that follows them."""
    content = data[:size]
    if len(data) != size + 4 or _checksum(content) != data[size:]:
        raise ValueError("a checksum differs")
    return content


def _checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(4, "little")
