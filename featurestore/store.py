"""What a store is on disk: its layout and its metadata.

A store is one Zarr v3 group. Its root ``zarr.json`` holds, as consolidated metadata, the shapes and codecs of all
arrays: that one file says what the store contains, and replacing it is what commits an ingest. Tokens count back
from the final one (-1), which comes first on disk, so longer sentences grow the far end.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import StoreError, StoreNotFoundError, spelled
from featurestore.schema import (
    ACTIVATIONS,
    ARRAY_DIMS,
    EMBEDDINGS,
    HIDDEN_STATES,
    SCHEMA_VERSION,
    Extraction,
    __version__,
)

Root = dict[str, Any]
"""The parsed root ``zarr.json``."""

ROOT = "zarr.json"
_CHECKSUM = "featurestore_checksum"
MAX_ROWS = 64
SENTENCES_PER_CHUNK = 4096
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


def is_store(path: Path) -> bool:
    """Whether an ingest has made something at this path."""
    return (path / ROOT).is_file()


def is_complete(path: Path) -> bool:
    """Whether there is a store that no ingest has to go on with, not even with its metadata."""
    if not is_store(path):
        return False
    root = read_root(path)
    return root["attributes"]["expected_sentences"] is None and not stale_metadata(path, root)


def stale_metadata(path: Path, root: Root) -> list[str]:
    """Name the arrays whose own metadata, which plain Zarr readers use, are not what the root says."""

    def is_current(name: str, metadata: dict[str, Any]) -> bool:
        file = path / name / ROOT
        return file.is_file() and file.read_bytes() == encode(metadata)

    return [name for name, metadata in array_metadata(root).items() if not is_current(name, metadata)]


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
            raise StoreNotFoundError(
                f"{path}: no such store; make it by an ingest with {spelled('store', str(path))}"
            ) from error
        found = (
            "a folder of sentence NPZs; ingest it first"
            if any(path.glob("sentence_*.npz"))
            else "something else; check the path"
        )
        raise StoreError(f"{path}: expected a feature store, found {found}") from error
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


def inner_chunk_shape(root: Root, name: str) -> tuple[int, ...]:
    """Shape of what is compressed as one: of the chunks within the shards of an array, or of its chunks."""
    for codec in array_metadata(root)[name]["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(codec["configuration"]["chunk_shape"])
    return chunk_shape(root, name)


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


def new_root(extraction: Extraction) -> Root:
    """Lay out an empty store.

    One shard holds 64 sentences at one token, of as many layers as fit in 128 MiB (at least one); one chunk of it holds
    them at one layer, all of hidden or at most 2 MiB of features.

    Parameters
    ----------
    extraction : Extraction
        Layers, sizes, dtypes.
    """
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    dtypes = dict(zip(ARRAY_DIMS, extraction.dtypes, strict=True))
    layers, hidden, features = len(extraction.layers), extraction.hidden, extraction.features
    rows = MAX_ROWS
    layer_bytes = rows * features * np.dtype(dtypes[ACTIVATIONS]).itemsize
    shard_layers = max(1, min(layers, _SHARD_BYTES // layer_bytes))
    slices = math.ceil(layer_bytes / _CHUNK_BYTES)
    slice_features = math.ceil(features / slices)

    store = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # consolidated metadata is an extension of Zarr v3
        group = zarr.create_group(
            store,
            attributes={
                "featurestore_schema": SCHEMA_VERSION,
                "featurestore_version": __version__,
                "expected_sentences": None,
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
        create("fragment", ("sentence", "token"), "string", (rows, 64))
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
