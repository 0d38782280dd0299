"""The store as a backend of xarray: ``xr.open_dataset(path, engine="featurestore")``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from featurestore import memory
from featurestore.errors import ParameterError, StoreError, TooLargeError, brief, spelled
from featurestore.paths import as_path
from featurestore.store.layout import ROOT
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

_IS_TOKEN = "whether the sentence has a token here; beyond it all values are NaN"

logger = logging.getLogger(__name__)


class FeatureStoreBackend(BackendEntrypoint):
    """Opens stores for xarray, as `open_store` does."""

    description = "Open feature stores of language-model activations"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "max_bytes")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether something is the path of a store, sound or not."""
        try:
            root = as_path(filename_or_obj) / ROOT
            return root.is_file() and b'"featurestore_schema"' in root.read_bytes()
        except (ParameterError, OSError):
            return False

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        max_bytes: float | None = None,
    ) -> xr.Dataset:
        """Label the arrays of a store, given by its path or by a `Snapshot` of it; see `open_store`."""
        if isinstance(filename_or_obj, Snapshot):
            snapshot = filename_or_obj
        else:
            snapshot = Snapshot.read(as_path(filename_or_obj))
            warn_if_incomplete(snapshot)
        variables = _variables(snapshot, _checked_limit(max_bytes))
        data = {name: variables.pop(name) for name in snapshot.data_arrays}
        ds = xr.Dataset(data, dict(sorted(variables.items())), snapshot.described)
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
        return ds.drop_vars(dropped, errors="ignore")


def warn_if_incomplete(snapshot: Snapshot) -> None:
    """Say so if a store does not have all its sentences yet."""
    if expected := snapshot.expected_sentences:
        found = f"{snapshot.sizes['sentence']} of {expected} sentences"
        where = snapshot.path
        logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", where, found)


def _checked_limit(max_bytes: object) -> float | None:
    if max_bytes is None or (isinstance(max_bytes, int | float) and max_bytes > 0):
        return max_bytes
    raise ParameterError(f"max_bytes: expected a number of bytes above 0, found {brief(max_bytes)}")


def _variables(snapshot: Snapshot, max_bytes: float | None) -> dict[str, xr.Variable]:
    """Label the arrays: those along one dim are read, the others lazy."""
    n_tokens = _checked_lengths(snapshot, snapshot.coord("n_tokens"))
    variables = {}
    for name, metadata in snapshot.arrays.items():
        dims, encoding = metadata["dimension_names"], {}
        data: Any = n_tokens
        if "token" in dims[1:]:
            encoding["preferred_chunks"] = _preferred_chunks(snapshot, name)
            data = _lazy(snapshot.array(name, n_tokens), snapshot.path, name, max_bytes)
        elif name != "n_tokens":
            data = snapshot.coord(name)
        variables[name] = xr.Variable(dims, data, metadata["attributes"], encoding)
    is_token = _lazy(_IsToken(n_tokens, variables["token"].values), snapshot.path, "is_token", max_bytes)
    variables["is_token"] = xr.Variable(("sentence", "token"), is_token, {"long_name": _IS_TOKEN})
    return variables


def _checked_lengths(snapshot: Snapshot, n_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refuse lengths of sentences by which files would be looked for that need not be there, or not be missed."""
    tokens = snapshot.sizes["token"]
    if n_tokens.size and not (n_tokens.min() >= 1 and n_tokens.max() == tokens):
        raise StoreError(
            f"{snapshot.path}: n_tokens do not fit its {tokens} tokens: damaged; see `verify`, ingest into a new store"
        )
    return n_tokens


def _preferred_chunks(snapshot: Snapshot, name: str) -> dict[str, int]:
    """Return the size of a dask chunk along each dim: many sentences, and little of everything else."""
    rows, *rest = snapshot.chunk_shape(name)
    n_bytes = math.prod((rows, *rest)) * snapshot.array(name).dtype.itemsize
    together = max(1, min(SENTENCES_PER_CHUNK // rows, _CHUNK_BYTES // n_bytes))
    return dict(zip(snapshot.arrays[name]["dimension_names"], (rows * together, *rest), strict=True))


class _Readable(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: tuple[Index, ...], /) -> NDArray[Any]: ...


class _IsToken:
    """Whether each sentence has each token: calculated, (sentence, token) bool."""

    dtype = np.dtype(bool)

    def __init__(self, n_tokens: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self._n_tokens, self._tokens = n_tokens, tokens
        self.shape = (len(n_tokens), len(tokens))

    def __getitem__(self, key: tuple[Index, ...]) -> NDArray[np.bool_]:
        is_token: NDArray[np.bool_] = np.less_equal.outer(-self._n_tokens[key[0]], self._tokens[key[1]])
        return is_token


def _lazy(array: _Readable, store: Path, name: str, max_bytes: float | None) -> indexing.LazilyIndexedArray:
    return indexing.LazilyIndexedArray(_Guarded(array, f"{store}: {name}", max_bytes))


class _Guarded(BackendArray):
    """An array for xarray, which refuses to read more than the memory can hold."""

    def __init__(self, array: _Readable, name: str, max_bytes: float | None) -> None:
        self._array, self._name, self._max_bytes = array, name, max_bytes
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Index, ...]) -> NDArray[Any]:
        sizes = [_length(index, size) for index, size in zip(key, self.shape, strict=True)]
        self._check(math.prod(sizes) * self.dtype.itemsize)
        return self._array[key]

    def _check(self, n_bytes: int) -> None:
        if self._max_bytes is not None:
            limit, allowed = self._max_bytes, spelled("max_bytes", self._max_bytes)
        elif n_bytes >= _NOTICEABLE and (left := memory.available()) is not None:
            limit, allowed = left / 2, f"half of the {left / 1e9:.2f} GB of memory that is available"
        else:
            return
        if n_bytes > limit:
            remedy = (
                f"select less, open the store with {spelled('chunks', {})}, or allow more by {spelled('max_bytes')}"
            )
            raise TooLargeError(
                f"{self._name}: would read {n_bytes / 1e9:.2f} GB at once, more than {allowed}; {remedy}"
            )


def _length(index: Index, size: int) -> int:
    if isinstance(index, slice):
        return len(range(*index.indices(size)))
    return 1 if isinstance(index, int | np.integer) else len(index)
