"""One array of a store: opened in the shape that was committed, read without ever a wrong value."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import StoreError
from featurestore.schema import ARRAYS
from featurestore.store.layout import Metadata, file_name

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray


def file_shape(metadata: Metadata) -> tuple[int, ...]:
    """Shape of what one file of an array holds: a shard, or a chunk where there are none."""
    return tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])


def chunk_shape(metadata: Metadata) -> tuple[int, ...]:
    """Shape of what is compressed as one: the chunks within the shards of an array, or its chunks."""
    for codec in metadata["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(codec["configuration"]["chunk_shape"])
    return file_shape(metadata)


def open_array(path: Path, name: str, metadata: Metadata, *, writable: bool = False) -> zarr.Array[Any]:
    """Return a handle on an array with the shape that `metadata` say, whatever is on disk.

    Nor does it matter how Zarr is configured: no chunk is left out for being all fill value, and the pipeline is the
    one without a coroutine for each chunk, which takes two thirds of the other's time to write.
    """
    import zarr
    from zarr.core.array_spec import ArrayConfig, ArraySpec
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.codec_pipeline import FusedCodecPipeline
    from zarr.core.metadata import ArrayV3Metadata
    from zarr.storage import LocalStore, StorePath

    config = ArrayConfig("C", write_empty_chunks=True)
    place = StorePath(LocalStore(path, read_only=not writable), name)
    parsed = ArrayV3Metadata.from_dict(metadata)
    array = zarr.AsyncArray(parsed, place, config)
    spec = ArraySpec(file_shape(metadata), parsed.dtype, parsed.fill_value, config, default_buffer_prototype())
    pipeline = FusedCodecPipeline.from_codecs(parsed.codecs).evolve_from_array_spec(spec)
    object.__setattr__(array, "codec_pipeline", pipeline)  # Zarr takes it from its global configuration only
    return zarr.Array(array)


class StoredArray:
    """An array as readers see it: tokens in reading order (on disk the final one comes first), errors clear.

    Takes a slice, an integer or a list for each dim, as dask gives them.

    Parameters
    ----------
    path : Path
        The store.
    name : str
        The array.
    metadata : dict
        As committed.
    n_tokens : ndarray, (sentence,) int64, optional
        Of each sentence. A file that is not there would read as padding, so with these it is known which have to be.
    reading_order : bool
        Otherwise the final token comes first, as on disk.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        metadata: Metadata,
        n_tokens: NDArray[np.int64] | None = None,
        *,
        reading_order: bool = True,
    ) -> None:
        self._path, self._name, self._reading_order = path, name, reading_order
        self._array = open_array(path, name, metadata)
        self._files = file_shape(metadata)
        dims = metadata["dimension_names"]
        self._token_axis = dims.index("token") if "token" in dims else None
        self._longest = None
        if self._token_axis and n_tokens is not None and len(n_tokens):
            self._longest = np.maximum.reduceat(n_tokens, range(0, len(n_tokens), self._files[0]))
        self.shape, self.ndim = self._array.shape, self._array.ndim
        is_text = metadata["data_type"] == "string"  # numpy's StringDType breaks much of xarray
        self.dtype = np.dtype(object) if is_text else self._array.dtype

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        axis = self._token_axis
        if axis is None or not self._reading_order:
            return self._read(key)
        tokens, on_disk = key[axis], range(self.shape[axis])[::-1]
        if not isinstance(tokens, slice):
            token = on_disk[tokens] if isinstance(tokens, int) else [on_disk[i] for i in tokens]
            return self._read((*key[:axis], token, *key[axis + 1 :]))
        forward = on_disk[tokens][::-1]
        part = slice(forward.start, forward.stop, forward.step) if forward else slice(0)
        values = self._read((*key[:axis], part, *key[axis + 1 :]))
        return np.flip(values, axis - sum(isinstance(index, int) for index in key[:axis]))

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        if (self._longest is not None or self._name not in ARRAYS) and (file := self._missing(key)):
            raise StoreError(f"{self._path}: {file} is missing; see `verify`, ingest into a new store")
        basic = all(isinstance(part, int | slice) for part in key)
        for pause in (0.01, 0.1, None):
            try:
                values = self._array[key] if basic else self._array.oindex[key]
                return np.asarray(values).astype(self.dtype, copy=False)
            except (ValueError, RuntimeError) as error:
                # Its checksum fails: damaged, or just being replaced by a writer who appends to the same shard.
                if pause is None:
                    where = f"{self._path}: array '{self._name}'"
                    raise StoreError(f"{where} is damaged ({error}); see `verify`, ingest into a new store") from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _missing(self, key: tuple[Any, ...]) -> str | None:
        """Name a file that must be there to read `key`, and is not."""
        axes = zip(self.shape, self._files, key, strict=True)
        parts = [np.unique(np.atleast_1d(np.arange(size)[index]) // chunk) for size, chunk, index in axes]
        for index in product(*(part.tolist() for part in parts)):
            file = file_name(self._name, index)
            padding = self._longest is not None and index[1] * self._files[1] >= self._longest[index[0]]
            if not padding and not (self._path / file).is_file():
                return file
        return None
