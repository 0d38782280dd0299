"""What a store is on disk: its layout and its metadata.

A store is one Zarr v3 group. Its root ``zarr.json`` holds, as consolidated metadata, the shapes and codecs of all
arrays: that one file says what the store contains, and replacing it is what commits an ingest. Tokens count back
from the final one (-1), which comes first on disk, so longer sentences grow the far end.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from featurestore.errors import StoreError, StoreNotFoundError, spelled
from featurestore.paths import real_path
from featurestore.schema import SCHEMA_VERSION, Extraction, __version__
from featurestore.store.layout import Layout, Root, check_root, root_of

ROOT = "zarr.json"
_CHECKSUM = "featurestore_checksum"
MAX_ROWS = 64
SENTENCES_PER_CHUNK = 4096
_SHARD_BYTES = 128 << 20
_CHUNK_BYTES = 2 << 20


def store_name(path: Path) -> str:
    """Name of a store: that of its folder, without a final ``.zarr``."""
    name = real_path(path).name
    return name.removesuffix(".zarr") or name


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
    """Read a store's committed metadata, checked completely.

    Raises
    ------
    StoreNotFoundError, StoreError
        As `open_store`.
    """
    try:
        data = _root_bytes(path)
        root: Root = json.loads(data)
        version = root["attributes"]["featurestore_schema"]
        root["attributes"].pop(_CHECKSUM, None)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: its {ROOT} is not that of a feature store, or damaged; check the path") from error
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: has schema version {version}, this featurestore {__version__} reads {SCHEMA_VERSION}; "
            "upgrade featurestore, or ingest again"
        )
    if encode_root(root) != data:
        raise StoreError(f"{path}: its {ROOT} is damaged (checksum); restore it, or ingest into a new store")
    try:
        check_root(root)
    except ValueError as error:
        raise StoreError(f"{path}: its {ROOT} is foreign: {error}; restore it, or ingest into a new store") from error
    return root


def _root_bytes(path: Path) -> bytes:
    if is_store(path):
        with suppress(FileNotFoundError):  # its writer has just given it up
            return (path / ROOT).read_bytes()
    if not path.exists():
        raise StoreNotFoundError(f"{path}: no such store; make it by an ingest with {spelled('store', str(path))}")
    ingestible = path.is_dir() and any(path.glob("sentence_*.npz"))
    found = "a folder of sentence NPZs; ingest it first" if ingestible else "something else; check the path"
    raise StoreError(f"{path}: expected a feature store, found {found}")


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
    layout = Layout.fitting(extraction, MAX_ROWS, SENTENCES_PER_CHUNK, _SHARD_BYTES, _CHUNK_BYTES)
    return root_of(layout.arrays(), {"featurestore_schema": SCHEMA_VERSION, "featurestore_version": __version__})
