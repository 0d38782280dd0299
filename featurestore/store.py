"""What a store is on disk, and how to open it.

A store is one Zarr v3 group. Its root ``zarr.json`` holds, as consolidated metadata, the shapes and codecs of all
arrays: that one file says what the store contains, and replacing it is what commits an ingest. Tokens count back
from the final one (-1), which comes first on disk, so longer sentences grow the far end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import StoreError, StoreNotFoundError
from featurestore.schema import (
    ACTIVATIONS,
    ARRAY_DIMS,
    EMBEDDINGS,
    HIDDEN_STATES,
    SCHEMA_VERSION,
    Extraction,
    __version__,
)

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from numpy.typing import NDArray

Root = dict[str, Any]
"""The parsed root ``zarr.json``."""

ROOT = "zarr.json"
_CHECKSUM = "featurestore_checksum"
MAX_ROWS = 64
SENTENCES_PER_CHUNK = 4096
_BATCH_BYTES = 256 << 20
_SHARD_BYTES = 128 << 20
_CHUNK_BYTES = 2 << 20

SENTENCE_COORDS = {
    "sentence": "int64",
    "label": "int64",
    "n_tokens": "int64",
    "n_nonfinite": "int64",
    "text": "string",
    "source": "string",
    "source_digest": "string",
}
"""Coordinates along `sentence`, with their dtypes."""


def open_store(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a store as one labelled, lazy dataset.

    Parameters
    ----------
    path : str or path-like
        The store, as `ingest` made it.

    Returns
    -------
    xarray.Dataset
        Lazy: only the coordinates that are numbers are read; the rest are dask arrays, one chunk a file. Variables,
        in the dtypes of their source (float16 or float32):

        - `embeddings` (sentence, token, hidden): before the first block;
        - `hidden_states` (sentence, token, layer, hidden): residual stream after the layer;
        - `activations` (sentence, token, layer, feature): SAE features, 0 where inactive.

        Coordinates: `sentence` (the sentence_index), `token` (in reading order, the final one last, labelled -1),
        `layer` (a layer with several SAEs several times), `average_l0` (layer), `feature`, and for each sentence
        `label`, `text`, `n_tokens`, `n_nonfinite`, `source` (file name), `source_digest`; `fragment` (sentence,
        token). Tokens that a sentence does not have are NaN.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `path`.
    StoreError
        If it is something else, or of a newer schema.

    Examples
    --------
    >>> ds = open_store("stores/dishonesty.zarr")  # doctest: +SKIP
    >>> ds.hidden_states.sel(layer=12, token=-1)  # doctest: +SKIP
    """
    import dask.array as da
    import xarray as xr

    path = Path(path)
    root = read_root(path)
    variables = {}
    n_tokens = read_coord(path, root, "n_tokens")
    for name, metadata in array_metadata(root).items():
        dims = metadata["dimension_names"]
        array = _Lazy(path, root, name, n_tokens)
        if name in ARRAY_DIMS or metadata["data_type"] == "string":
            chunks = tuple(max(1, min(sizes)) for sizes in zip(array.shape, chunk_shape(root, name), strict=True))
            # Named at random, as no content is known yet: an appended store must not be mistaken for the earlier one.
            variables[name] = dims, da.from_array(array, chunks, name=False)
        else:
            variables[name] = dims, array[(slice(None),)]
    data = {name: variables.pop(name) for name in ARRAY_DIMS}
    attributes = {name: value for name, value in root["attributes"].items() if name != "coordinates"}
    return xr.Dataset(data, variables, attributes).isel()


def is_store(path: Path) -> bool:
    """Whether an ingest has made something at this path."""
    return (path / ROOT).is_file()


def read_root(path: Path) -> Root:
    """Read a store's committed metadata.

    Raises
    ------
    StoreNotFoundError, StoreError
        As `open_store`.
    """
    try:
        data = (path / ROOT).read_bytes()
        root: Root = json.loads(data)
        version = root["attributes"]["featurestore_schema"]
        root["attributes"].pop(_CHECKSUM, None)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.exists():
            raise StoreNotFoundError(f"{path}: no such store; make it with: ingest FOLDER --store {path}") from error
        raise StoreError(f"{path}: expected a feature store, found something else; check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: its {ROOT} is not that of a feature store, or damaged; check the path") from error
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has schema version {version}, this featurestore {__version__} reads {SCHEMA_VERSION}; "
            "upgrade featurestore, or ingest again"
        )
    if encode_root(root) != data:
        raise StoreError(f"{path}: its {ROOT} is damaged (checksum); restore it, or ingest into a new store")
    return root


def encode_root(root: Root) -> bytes:
    """Write the root metadata as they are on disk, with a checksum of themselves."""
    checksum = hashlib.sha256(encode(root)).hexdigest()
    return encode(root | {"attributes": root["attributes"] | {_CHECKSUM: checksum}})


def encode(metadata: dict[str, Any]) -> bytes:
    """Write metadata as they are on disk."""
    return json.dumps(metadata, indent=2).encode()


def dim_sizes(root: Root) -> dict[str, int]:
    """Size of each dim, as committed."""
    sizes: dict[str, int] = {}
    for metadata in array_metadata(root).values():
        sizes.update(zip(metadata["dimension_names"], metadata["shape"], strict=True))
    return sizes


def array_metadata(root: Root) -> dict[str, dict[str, Any]]:
    """The consolidated metadata of each array."""
    metadata: dict[str, dict[str, Any]] = root["consolidated_metadata"]["metadata"]
    return metadata


def chunk_shape(root: Root, name: str) -> tuple[int, ...]:
    """Shape of one file of an array: of its shards, or of its chunks where it has none."""
    return tuple(array_metadata(root)[name]["chunk_grid"]["configuration"]["chunk_shape"])


def resized(root: Root, sentences: int, tokens: int) -> Root:
    """Return metadata for other numbers of sentences and tokens; `root` is left as it is."""
    new = {"sentence": sentences, "token": tokens}
    arrays = {
        name: metadata
        | {
            "shape": [
                new.get(dim, size) for dim, size in zip(metadata["dimension_names"], metadata["shape"], strict=True)
            ]
        }
        for name, metadata in array_metadata(root).items()
    }
    return root | {"consolidated_metadata": root["consolidated_metadata"] | {"metadata": arrays}}


def open_array(path: Path, root: Root, name: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Return a handle on an array with the shape that `root` says, whatever is committed on disk."""
    import zarr
    from zarr.storage import LocalStore, StorePath

    return zarr.Array.from_dict(StorePath(LocalStore(path, read_only=not writable), name), array_metadata(root)[name])


def read_coord(path: Path, root: Root, name: str) -> NDArray[Any]:
    """Read a coordinate whole."""
    return _Lazy(path, root, name)[(slice(None),)]


def extraction_of(path: Path, root: Root) -> Extraction:
    """What all sentences of a store share."""
    sizes = dim_sizes(root)
    layers, average_l0s = (read_coord(path, root, name).tolist() for name in ("layer", "average_l0"))
    dtypes = tuple(array_metadata(root)[name]["data_type"] for name in ARRAY_DIMS)
    return Extraction(tuple(layers), tuple(average_l0s), sizes["hidden"], sizes["feature"], dtypes)


def new_root(extraction: Extraction, max_tokens: int) -> Root:
    """Lay out an empty store.

    One shard holds `rows` sentences at one token, of as many layers as fit in 128 MiB; one chunk of it holds them at
    one layer, all of hidden or at most 2 MiB of features. `rows` is 64, or fewer where sentences are so long that
    a batch of their hidden states would exceed 256 MiB.

    Parameters
    ----------
    extraction : Extraction
        Layers, sizes, dtypes.
    max_tokens : int
        Length of the longest sentence, as far as it is known.
    """
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    itemsize = {name: np.dtype(dtype).itemsize for name, dtype in zip(ARRAY_DIMS, extraction.dtypes, strict=True)}
    layers, hidden, features = len(extraction.layers), extraction.hidden, extraction.features
    rows = MAX_ROWS
    while rows > 1 and rows * max_tokens * layers * hidden * itemsize[HIDDEN_STATES] > _BATCH_BYTES:
        rows //= 2
    layer_bytes = rows * features * itemsize[ACTIVATIONS]
    shard_layers = max(1, min(layers, _SHARD_BYTES // layer_bytes))
    slices = math.ceil(layer_bytes / _CHUNK_BYTES)
    slice_features = math.ceil(features / slices)
    dtypes = dict(zip(ARRAY_DIMS, extraction.dtypes, strict=True))

    store = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # consolidated metadata is an extension of Zarr v3
        group = zarr.create_group(
            store,
            attributes={
                "featurestore_schema": SCHEMA_VERSION,
                "featurestore_version": __version__,
                "skipped": [],
                "coordinates": " ".join([*SENTENCE_COORDS, "average_l0", "fragment"]).removeprefix("sentence "),
            },
        )

        def create(name: str, dims: tuple[str, ...], dtype: str, chunks: tuple[int, ...], **options: Any) -> None:
            sizes = {"layer": layers, "hidden": hidden, "feature": features}
            group.create_array(
                name,
                shape=tuple(sizes.get(dim, 0) for dim in dims),
                dimension_names=dims,
                dtype=dtype,
                chunks=chunks,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                **options,
            )

        for name, dtype in SENTENCE_COORDS.items():
            create(name, ("sentence",), dtype, (SENTENCES_PER_CHUNK,))
        create("fragment", ("sentence", "token"), "string", (1024, 64))
        create("token", ("token",), "int64", (1024,))
        create("layer", ("layer",), "int64", (layers,))
        create("average_l0", ("layer",), "int64", (layers,))
        create("feature", ("feature",), "int64", (features,))
        nan = {"fill_value": float("nan")}
        for name, chunks, shards in (
            (EMBEDDINGS, (rows, 1, hidden), None),
            (HIDDEN_STATES, (rows, 1, 1, hidden), (rows, 1, layers, hidden)),
            (ACTIVATIONS, (rows, 1, 1, slice_features), (rows, 1, shard_layers, slices * slice_features)),
        ):
            create(name, ARRAY_DIMS[name], dtypes[name], chunks, shards=shards, **nan)
        zarr.consolidate_metadata(store)
    buffer = store.get_sync(ROOT)
    assert buffer is not None  # just written
    root: Root = json.loads(buffer.to_bytes())
    return root


class _Lazy:
    """An array of a store as dask reads it: tokens in reading order (on disk the final one comes first), errors clear.

    Takes a slice, an integer or a list for each dim. A file that is not there would read as padding, so with `n_tokens`
    (of each sentence) those are looked for that must be.
    """

    def __init__(self, path: Path, root: Root, name: str, n_tokens: NDArray[np.int64] | None = None) -> None:
        self._path, self._name = path, name
        self._array = open_array(path, root, name)
        self._files = chunk_shape(root, name)
        dims = array_metadata(root)[name]["dimension_names"]
        self._token_axis = dims.index("token") if "token" in dims else None
        self._longest = None
        if name in ARRAY_DIMS and n_tokens is not None and len(n_tokens):
            self._longest = np.maximum.reduceat(n_tokens, range(0, len(n_tokens), self._files[0]))
        self.shape, self.dtype, self.ndim = self._array.shape, self._array.dtype, self._array.ndim

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        axis = self._token_axis
        if axis is None:
            return self._read(key)
        tokens, on_disk = key[axis], range(self.shape[axis])[::-1]
        if not isinstance(tokens, slice):
            token = on_disk[tokens] if isinstance(tokens, int) else [on_disk[i] for i in tokens]
            return self._read((*key[:axis], token, *key[axis + 1 :]))
        forward = on_disk[tokens][::-1]
        part = slice(forward.start, forward.stop, forward.step) if forward else slice(0)
        values = self._read((*key[:axis], part, *key[axis + 1 :]))
        return np.flip(values, axis - sum(isinstance(index, int) for index in key[:axis]))

    def _missing(self, key: tuple[Any, ...]) -> str | None:
        """Name a file that must be there to read `key`, and is not."""
        axes = zip(self.shape, self._files, key, strict=True)
        parts = [np.unique(np.atleast_1d(np.arange(size)[index]) // chunk) for size, chunk, index in axes]
        for index in product(*(part.tolist() for part in parts)):
            file = f"{self._name}/c/{'/'.join(map(str, index))}"
            padding = self._longest is not None and index[1] >= self._longest[index[0]]
            if not padding and not (self._path / file).is_file():
                return file
        return None

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        if (self._longest is not None or self._name not in ARRAY_DIMS) and (file := self._missing(key)):
            raise StoreError(f"{self._path}: {file} is missing; see `verify`, ingest into a new store")
        basic = all(isinstance(part, int | slice) for part in key)
        for pause in (0.01, 0.1, None):
            try:
                return np.asarray(self._array[key] if basic else self._array.oindex[key])
            except (ValueError, RuntimeError) as error:
                # Its checksum fails: damaged, or just being replaced by a writer who appends to the same shard.
                if pause is None:
                    where = f"{self._path}: array '{self._name}'"
                    raise StoreError(f"{where} is damaged ({error}); see `verify`, ingest into a new store") from error
                time.sleep(pause)
        raise AssertionError("unreachable")
