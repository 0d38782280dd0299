"""Zarr's handles on the arrays of a store; imported late, as Zarr takes long to import."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, StorePath

from featurestore.errors import StoreError
from featurestore.store.layout import Metadata, file_shape
from featurestore.store.location import Location, ReadOnlyPath

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
    check_missing : callable
        Called with the name of a file that is not there; raises if it has to be.
    """

    def __init__(self, path: Path, check_missing: Callable[[str], None]) -> None:
        super().__init__(path, read_only=True)
        self._check_missing = check_missing

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file or a part of it; None for one that need not be there."""
        content = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        if content is None:
            self._check_missing(key)
        return content


class CompleteObjects(FsspecStore):
    """The same behind a URL or in a zip, where whatever cannot be read is one clear error, too.

    Parameters
    ----------
    path : ReadOnlyPath
        The store.
    check_missing : callable
        Called with the name of a file that is not there; raises if it has to be.
    """

    def __init__(self, path: ReadOnlyPath, check_missing: Callable[[str], None]) -> None:
        fs, root = path.opened
        super().__init__(fs, read_only=True, path=root)
        self._location, self._check_missing = path, check_missing

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a file or a part of it; None for one that need not be there."""
        with self._location.errors():
            # From the first byte on instead of whole, because s3fs asks for the size of what is wanted whole.
            content = await super().get(key + self._location.query, prototype, byte_range or OffsetByteRequest(0))
        if content is None:
            self._check_missing(key)
        if content is not None and len(content) > _longest(byte_range):
            expected = "expected a server that sends parts of files (HTTP range requests), found one that sends all"
            raise StoreError(f"{self._location}: {expected}; use another, or download the store")
        return content

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read parts of a file; a clear error does not become one of a group."""
        try:
            async for parts in super().get_ranges(key, byte_ranges, **options):
                yield parts
        except ExceptionGroup as group:
            if clear := group.subgroup(StoreError):
                raise clear.exceptions[0] from None
            raise


def _longest(byte_range: ByteRequest | None) -> float:
    """Return how many bytes answer a request at most."""
    match byte_range:
        case RangeByteRequest():
            return byte_range.end - byte_range.start
        case SuffixByteRequest():
            return byte_range.suffix
    return float("inf")


def complete_files(place: Location, check_missing: Callable[[str], None]) -> Store:
    """Return the files of a store, of which those that have to be there are an error if they are not."""
    kind: Callable[..., Store] = CompleteFiles if isinstance(place, Path) else CompleteObjects
    return kind(place, check_missing)


def read_object(path: ReadOnlyPath, name: str) -> bytes | None:
    """Read a file of a store behind a URL or in a zip; None if it is not there."""
    content = sync(CompleteObjects(path, lambda _: None).get(name, default_buffer_prototype()))
    return None if content is None else content.to_bytes()
