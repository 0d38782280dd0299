"""Zarr's handles on the arrays of a store; imported late, as Zarr takes long to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore, StorePath

from featurestore.errors import StoreError
from featurestore.store.layout import Metadata, file_shape

_CONFIG = ArrayConfig("C", write_empty_chunks=True)


def open_array(files: Store, name: str, metadata: Metadata) -> zarr.Array[Any]:
    """Return a handle on an array with the shape that `metadata` say, whatever is on disk.

    Nor does it matter how Zarr is configured: no chunk is left out for being all fill value, and the pipeline is the
    one without a coroutine for each chunk, which takes two thirds of the other's time to write.
    """
    parsed = ArrayV3Metadata.from_dict(metadata)
    array = zarr.AsyncArray(parsed, StorePath(files, name), _CONFIG)
    spec = ArraySpec(file_shape(metadata), parsed.dtype, parsed.fill_value, _CONFIG, default_buffer_prototype())
    pipeline = FusedCodecPipeline.from_codecs(parsed.codecs).evolve_from_array_spec(spec)
    object.__setattr__(array, "codec_pipeline", pipeline)  # Zarr takes it from its global configuration only
    return zarr.Array(array)


class CompleteFiles(LocalStore):
    """The files of a store, of which one that has to be there is an error if it is not: Zarr would read fill values.

    Parameters
    ----------
    path : Path
        The store.
    is_needed : callable
        Tells by its name whether a file has to be there.
    """

    def __init__(self, path: Path, is_needed: Callable[[str], bool]) -> None:
        super().__init__(path, read_only=True)
        self._is_needed = is_needed

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file or a part of it; None for one that need not be there."""
        content = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        if content is None and self._is_needed(key):
            raise StoreError(f"{self.root}: {key} is missing; see `verify`, ingest into a new store")
        return content
