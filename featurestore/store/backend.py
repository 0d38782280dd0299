"""The store as a backend of xarray: ``xr.open_dataset(path, engine="featurestore")``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from featurestore import memory
from featurestore.errors import ParameterError, StoreError, TooLargeError, brief
from featurestore.paths import as_path
from featurestore.store.layout import ROOT
from featurestore.store.location import ReadOnlyPath, StorageOptions, location, remedy
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.store.arrays import Index

SENTENCES_PER_CHUNK = 1024
"""Sentences of a dask chunk: fewer cost more in dask than in reading."""

_CHUNK_BYTES = 16 << 20
"""Size of a dask chunk above which it has fewer: memory beyond some 32 MiB is not reused, but faulted in anew."""

_NOTICEABLE = 1 << 26
"""Bytes below which nobody asks how much memory there is."""

_SHOWN_FIRST = ("label", "n_tokens", "text")
"""Coordinates that users look for: of many, xarray shows the first and the last ones."""

_IS_TOKEN = "whether the sentence has a token here; beyond it all values are NaN"

_AT_ONCE = 16
"""Coordinates that are read at once where each takes its time to arrive."""

logger = logging.getLogger(__name__)


class FeatureStoreBackend(BackendEntrypoint):
    """Opens stores for xarray, as `open_store` does."""

    description = "Open feature stores of language-model activations"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "max_bytes", "storage_options")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether something is the path of a store, sound or not; not of a copy that xarray has written.

        Of a URL it never is, as that would have to be asked.
        """
        try:
            root = as_path(filename_or_obj) / ROOT
            return root.is_file() and b'"featurestore_checksum"' in root.read_bytes()
        except (ParameterError, OSError):
            return False

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        max_bytes: float | None = None,
        storage_options: StorageOptions | None = None,
    ) -> xr.Dataset:
        """Label the arrays of a store, given by its path or URL or by a `Snapshot` of it; see `open_store`."""
        if isinstance(filename_or_obj, Snapshot):
            snapshot = filename_or_obj
        else:
            snapshot = Snapshot.read(location(filename_or_obj, storage_options))
            warn_if_incomplete(snapshot)
        dropped = {drop_variables} if isinstance(drop_variables, str) else {*(drop_variables or ())}
        variables = _variables(snapshot, _checked_limit(max_bytes), dropped)
        data = {name: variables.pop(name) for name in snapshot.data_arrays if name in variables}
        coords = sorted(variables.items(), key=lambda item: (item[0] not in _SHOWN_FIRST, item[0]))
        ds = xr.Dataset(data, dict(coords), snapshot.described)
        ds.set_close(_close)
        if isinstance(snapshot.location, ReadOnlyPath):  # otherwise xarray notes it, but would with all of a URL
            ds.encoding["source"] = snapshot.location.absolute
        return ds


def _close() -> None:
    """Do nothing: no file stays open; but `xarray.open_mfdataset` calls it of each dataset."""


def warn_if_incomplete(snapshot: Snapshot) -> None:
    """Say so if a store does not have all its sentences yet."""
    if expected := snapshot.expected_sentences:
        found = f"{snapshot.sizes['sentence']} of {expected} sentences"
        where = snapshot.location
        logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", where, found)


def _checked_limit(max_bytes: object) -> float | None:
    if max_bytes is None or (isinstance(max_bytes, int | float) and max_bytes > 0):
        return max_bytes
    raise ParameterError(f"max_bytes: expected a number of bytes above 0, found {brief(max_bytes)}")


def _variables(snapshot: Snapshot, max_bytes: float | None, dropped: set[str]) -> dict[str, xr.Variable]:
    """Label the arrays: those along one dim are read, the others lazy."""
    n_tokens = _checked_lengths(snapshot, snapshot.coord("n_tokens"))
    chunks = _preferred_chunks(snapshot)

    def lazy(name: str, array: _Readable) -> indexing.LazilyIndexedArray:
        return indexing.LazilyIndexedArray(_Guarded(array, f"{snapshot.location}: {name}", max_bytes))

    flat = {name for name, one in snapshot.arrays.items() if len(one["shape"]) == 1}
    data: dict[str, Any] = {"n_tokens": n_tokens.copy()}  # as users may change it
    data |= _coords(snapshot, flat - {*data, *dropped})
    for name in snapshot.arrays.keys() - flat - dropped:
        data[name] = lazy(name, snapshot.array(name, n_tokens))
    described = {name: (one["dimension_names"], one["attributes"]) for name, one in snapshot.arrays.items()}
    if "is_token" not in dropped:
        data["is_token"] = lazy("is_token", _IsToken(n_tokens, snapshot.sizes["token"]))
        described["is_token"] = ("sentence", "token"), {"long_name": _IS_TOKEN}

    def variable(name: str) -> xr.Variable:
        dims, attributes = described[name]
        encoding = {"preferred_chunks": {dim: chunks[dim] for dim in dims if dim in chunks}}
        return xr.Variable(dims, data[name], attributes, encoding)

    return {name: variable(name) for name in described if name in data and name not in dropped}


def _coords(snapshot: Snapshot, names: set[str]) -> dict[str, NDArray[Any]]:
    """Read coordinates, at once where it is the way to them that takes long."""
    if isinstance(snapshot.location, Path):
        return {name: snapshot.coord(name) for name in names}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(snapshot.coord, names), strict=True))


def _checked_lengths(snapshot: Snapshot, n_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refuse lengths of sentences by which files would be looked for that need not be there, or not be missed."""
    tokens = snapshot.sizes["token"]
    if n_tokens.size and not (n_tokens.min() >= 1 and n_tokens.max() == tokens):
        raise StoreError(
            f"{snapshot.location}: n_tokens do not fit its {tokens} tokens: damaged; {remedy(snapshot.location)}"
        )
    return n_tokens


def _preferred_chunks(snapshot: Snapshot) -> dict[str, int]:
    """Return the size of a dask chunk along each dim, of all arrays: many sentences, and little of everything else."""
    chunks: dict[str, int] = {}
    most = SENTENCES_PER_CHUNK
    for name in snapshot.data_arrays:
        shape, dtype = snapshot.chunk_shape(name), snapshot.array(name).dtype
        chunks |= dict(zip(snapshot.arrays[name]["dimension_names"], shape, strict=True))
        most = min(most, _CHUNK_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    rows = chunks["sentence"]
    return chunks | {"sentence": rows * max(1, most // rows)}


class _Readable(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: tuple[Index, ...], /) -> NDArray[Any]: ...


class _IsToken:
    """Whether each sentence has each token: calculated, (sentence, token) bool."""

    dtype = np.dtype(bool)

    def __init__(self, n_tokens: NDArray[np.int64], tokens: int) -> None:
        self._n_tokens = n_tokens
        self.shape = (len(n_tokens), tokens)

    def __getitem__(self, key: tuple[Index, ...]) -> NDArray[np.bool_]:
        from_end = np.arange(self.shape[1], 0, -1)
        is_token: NDArray[np.bool_] = np.greater_equal.outer(self._n_tokens[key[0]], from_end[key[1]])
        return is_token


class _Guarded(BackendArray):
    """An array for xarray, which refuses to read more than the memory can hold."""

    def __init__(self, array: _Readable, name: str, max_bytes: float | None) -> None:
        self._array, self._name, self._max_bytes = array, name, max_bytes
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        _check_bounds(key.tuple, self.shape)
        if not isinstance(key, indexing.VectorizedIndexer):  # whose other keys the adapter breaks, such as [0:0:-1]
            return self._read(key.tuple)
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Index, ...]) -> NDArray[Any]:
        sizes = [_length(index, size) for index, size in zip(key, self.shape, strict=True)]
        self._check(math.prod(sizes) * self.dtype.itemsize)
        return self._array[key]

    def _check(self, n_bytes: int) -> None:
        if self._max_bytes is not None:
            limit, allowed = self._max_bytes, f"max_bytes={self._max_bytes}"
        elif n_bytes >= _NOTICEABLE and (left := memory.available()) is not None:
            limit, allowed = left / 2, f"half of the {left / 1e9:.2f} GB of memory that is available"
        else:
            return
        if n_bytes > limit:
            remedy = "select less, open the store with chunks={}, or allow more by max_bytes="
            raise TooLargeError(
                f"{self._name}: would read {n_bytes / 1e9:.2f} GB at once, more than {allowed}; {remedy}"
            )


def _check_bounds(key: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    """Refuse what is beyond an axis: of negative indices xarray has made positive ones, and would do so again."""
    for axis, (index, size) in enumerate(zip(key, shape, strict=True)):
        if not isinstance(index, slice) and ((np.asarray(index) < 0) | (np.asarray(index) >= size)).any():
            raise IndexError(f"index is out of bounds for axis {axis} with size {size}")


def _length(index: Index, size: int) -> int:
    if isinstance(index, slice):
        return len(range(*index.indices(size)))
    return 1 if isinstance(index, int | np.integer) else len(index)
