"""Layout 1: what a store is on disk, down to the metadata of its arrays, and what must be so in a root that is read.

A store is one Zarr v3 group. Its root ``zarr.json`` holds, as consolidated metadata, the shapes and codecs of all
arrays: that one file says what the store contains, and replacing it is what commits an ingest. Tokens count back
from the final one (-1), which comes first on disk, so longer sentences grow the far end.

All of it is written here rather than by Zarr, whose defaults depend on its version and on its user's configuration.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.schema import (
    ACTIVATIONS,
    ARRAY_DIMS,
    EMBEDDINGS,
    HIDDEN_STATES,
    LIMITS,
    SCHEMA_VERSION,
    Extraction,
    __version__,
)

ROOT = "zarr.json"
"""Name of the file of metadata, of the store and of each array."""

Root = dict[str, Any]
"""The parsed root ``zarr.json``."""

Metadata = dict[str, Any]
"""The ``zarr.json`` of one array."""

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

COORDINATES = " ".join([*SENTENCE_COORDS, "average_l0", "fragment"]).removeprefix("sentence ")
"""What plain xarray takes for coordinates besides those that are named like their dim."""

ROWS = 64
"""Sentences of a shard."""

_CHECKSUM_KEY = "featurestore_checksum"
_SHARD_BYTES = 128 << 20
_CHUNK_BYTES = 2 << 20
_MAX_ROWS = 4096
COORD_ROWS = 4096
"""Sentences of a chunk of the coordinates."""
_FRAGMENTS_PER_CHUNK = 64
_LABELS_PER_CHUNK = 1024

_CHECKSUM = [{"name": "crc32c"}]
_NUMBERS = {"name": "bytes", "configuration": {"endian": "little"}}
_TEXTS = {"name": "vlen-utf8", "configuration": {}}
_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
_FILL = {"int64": 0, "string": "", "float16": "NaN", "float32": "NaN"}


@dataclass(frozen=True)
class Layout:
    """What is free in a store's layout; all else follows.

    Attributes
    ----------
    sizes : dict
        Of each dim.
    dtypes : tuple of str
        Of `embeddings`, `hidden_states` and `activations`.
    rows : int
        Sentences of a shard.
    shard_layers : int
        Layers of a shard of activations.
    slices : int
        Chunks into which the features of a layer are cut.
    coord_rows : int
        Sentences of a chunk of the coordinates.
    """

    sizes: dict[str, int]
    dtypes: tuple[str, ...]
    rows: int
    shard_layers: int
    slices: int
    coord_rows: int

    @classmethod
    def fitting(cls, extraction: Extraction) -> Layout:
        """Lay out an empty store.

        One shard holds 64 sentences at one token, of as many layers as fit in 128 MiB (at least one); one chunk of it
        holds them at one layer, all of hidden or at most 2 MiB of features.
        """
        layers, features = len(extraction.layers), extraction.features
        layer_bytes = ROWS * features * int(extraction.dtypes[2].removeprefix("float")) // 8
        return cls(
            sizes={"sentence": 0, "token": 0, "layer": layers, "hidden": extraction.hidden, "feature": features},
            dtypes=extraction.dtypes,
            rows=ROWS,
            shard_layers=max(1, min(layers, _SHARD_BYTES // layer_bytes)),
            slices=math.ceil(layer_bytes / _CHUNK_BYTES),
            coord_rows=COORD_ROWS,
        )

    @classmethod
    def of(cls, arrays: dict[str, Metadata]) -> Layout:
        """Read off what is free; KeyError, TypeError or the like where there is nothing to read."""
        sentence, token, hidden = arrays[EMBEDDINGS]["shape"]
        *_, layer, feature = arrays[ACTIVATIONS]["shape"]
        shard = arrays[ACTIVATIONS]["chunk_grid"]["configuration"]["chunk_shape"]
        (sharding,) = arrays[ACTIVATIONS]["codecs"]
        return cls(
            sizes={"sentence": sentence, "token": token, "layer": layer, "hidden": hidden, "feature": feature},
            dtypes=tuple(arrays[name]["data_type"] for name in ARRAY_DIMS),
            rows=shard[0],
            shard_layers=shard[2],
            slices=shard[3] // sharding["configuration"]["chunk_shape"][3],
            coord_rows=arrays["sentence"]["chunk_grid"]["configuration"]["chunk_shape"][0],
        )

    def check(self) -> None:
        """Raise ValueError for what no store has."""
        ranges = {dim: (0 if dim in ("sentence", "token") else 1, limit) for dim, limit in LIMITS.items()}
        for dim, size in self.sizes.items():
            _check_between(f"size of {dim}", size, *ranges[dim])
        _check_between("number of sentences in a shard", self.rows, 1, _MAX_ROWS)
        _check_between("number of sentences in a chunk", self.coord_rows, 1, _MAX_ROWS)
        _check_between("number of layers in a shard", self.shard_layers, 1, self.sizes["layer"])
        _check_between("number of chunks of a layer", self.slices, 1, self.sizes["feature"])
        for name, dtype in zip(ARRAY_DIMS, self.dtypes, strict=True):
            if dtype not in ("float16", "float32"):
                raise ValueError(f"expected {name} to be float16 or float32, found {_brief(dtype)}")

    def arrays(self) -> dict[str, Metadata]:
        """Metadata of each array, in the order of their names."""
        layers, hidden, features = (self.sizes[dim] for dim in ("layer", "hidden", "feature"))
        rows, sliced = self.rows, math.ceil(features / self.slices)
        dtypes = dict(zip(ARRAY_DIMS, self.dtypes, strict=True))
        chunks = {
            EMBEDDINGS: ([rows, 1, hidden], None),
            HIDDEN_STATES: ([rows, 1, layers, hidden], [rows, 1, 1, hidden]),
            ACTIVATIONS: ([rows, 1, self.shard_layers, self.slices * sliced], [rows, 1, 1, sliced]),
        }
        arrays = {name: self._array(dims, dtypes[name], *chunks[name]) for name, dims in ARRAY_DIMS.items()}
        for name, dtype in SENTENCE_COORDS.items():
            arrays[name] = self._array(("sentence",), dtype, [self.coord_rows])
        arrays["fragment"] = self._array(("sentence", "token"), "string", [rows, _FRAGMENTS_PER_CHUNK])
        arrays["token"] = self._array(("token",), "int64", [_LABELS_PER_CHUNK])
        for name, dim in (("layer", "layer"), ("average_l0", "layer"), ("feature", "feature")):
            arrays[name] = self._array((dim,), "int64", [self.sizes[dim]])
        return dict(sorted(arrays.items()))

    def _array(self, dims: tuple[str, ...], dtype: str, file: list[int], inner: list[int] | None = None) -> Metadata:
        """Metadata of an array, in files of one shape, which hold chunks of the `inner` one."""
        codecs = [_TEXTS if dtype == "string" else _NUMBERS, _ZSTD, *_CHECKSUM]
        if inner:
            index = {"index_codecs": [_NUMBERS, *_CHECKSUM], "index_location": "end"}
            configuration = {"chunk_shape": inner, "codecs": codecs, **index}
            codecs = [{"name": "sharding_indexed", "configuration": configuration}]
        return {
            "shape": [self.sizes[dim] for dim in dims],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": file}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _FILL[dtype],
            "codecs": codecs,
            "attributes": {},
            "dimension_names": list(dims),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def new_root(extraction: Extraction) -> Root:
    """Return the root of an empty store."""
    versions = {"featurestore_schema": SCHEMA_VERSION, "featurestore_version": __version__}
    return root_of(Layout.fitting(extraction).arrays(), versions)


def file_name(array: str, index: Sequence[int]) -> str:
    """Name the file of an array that has this place in the grid of its files, below the store."""
    return f"{array}/c/{'/'.join(map(str, index))}"


def encode(metadata: dict[str, Any]) -> bytes:
    """Write metadata as they are on disk."""
    return json.dumps(metadata, indent=2).encode()


def encode_root(root: Root) -> bytes:
    """Write the root metadata as they are on disk, with a checksum of themselves."""
    checksum = hashlib.sha256(encode(root)).hexdigest()
    return encode(root | {"attributes": root["attributes"] | {_CHECKSUM_KEY: checksum}})


def decode_root(data: bytes) -> tuple[Root, bool]:
    """Read the root metadata, without their checksum; tell whether that fits.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError, RecursionError
        If they are not those of a store.
    """
    root: Root = json.loads(data)
    root["attributes"].pop(_CHECKSUM_KEY, None)
    return root, encode_root(root) == data


def root_of(arrays: dict[str, Metadata], attributes: dict[str, Any]) -> Root:
    """Put a root together."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return {
        "attributes": attributes | {"expected_sentences": None, "skipped": [], "coordinates": COORDINATES},
        "zarr_format": 3,
        "consolidated_metadata": consolidated,
        "node_type": "group",
    }


def check_root(root: Root) -> None:
    """Raise ValueError, saying what is wrong, for a root that is not wholly one of layout 1.

    Nothing in it needs to be doubted afterwards: there are all arrays and no others, by our names, with our dims,
    dtypes, chunks and codecs, in sizes that agree.
    """
    _check_attributes(root["attributes"])
    try:
        found = root["consolidated_metadata"]["metadata"]
        layout = Layout.of(found)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"expected the metadata of {', '.join(ARRAY_DIMS)}, found others") from error
    layout.check()
    expected = layout.arrays()
    if strange := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"expected the arrays {', '.join(expected)}; lacks or has besides: {_brief(strange)}")
    for name, metadata in expected.items():
        _check_same(f"array '{name}'", found[name], metadata)
    _check_same("the group", root, root_of(found, {}) | {"attributes": root["attributes"]})


def _check_attributes(attributes: dict[str, Any]) -> None:
    expected = attributes.get("expected_sentences", "none")
    if expected is not None:
        _check_between("expected_sentences", expected, 1, LIMITS["sentence"])
    skipped = attributes.get("skipped")
    if not isinstance(skipped, list) or not all(map(_is_skipped, skipped)):
        raise ValueError(f"expected a list of files with reasons as skipped, found {_brief(skipped)}")
    if not isinstance(version := attributes.get("featurestore_version"), str):
        raise ValueError(f"expected a featurestore_version, found {_brief(version)}")
    if attributes.get("coordinates") != COORDINATES:
        raise ValueError(f"expected the coordinates {COORDINATES}, found {_brief(attributes.get('coordinates'))}")


def _is_skipped(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"file", "reason"}
        and all(isinstance(text, str) for text in entry.values())
    )


def _check_between(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected a {what} of {low} to {high:,}, found {_brief(value)}")


def _check_same(what: str, found: object, expected: dict[str, Any]) -> None:
    """Compare as JSON, in which 1, 1.0 and true differ."""
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError(f"expected {what} to have {', '.join(expected)}, found {_brief(found)}")
    for key, value in expected.items():
        if _canonical(found[key]) != _canonical(value):
            raise ValueError(f"expected {what} to have {key} {_canonical(value)}, found {_brief(found[key])}")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _brief(value: object) -> str:
    text = _canonical(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
