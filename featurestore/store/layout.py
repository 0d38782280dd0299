"""Layout 2: the arrays of a store, down to their metadata.

Tokens count back from the final one (-1), which comes first on disk, so longer sentences grow the far end.

All of it is written here rather than by Zarr, whose defaults depend on its version and on its user's configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.schema import (
    ACTIVATIONS,
    ARRAYS,
    EMBEDDINGS,
    HIDDEN_STATES,
    LIMITS,
    Extraction,
    array_dims,
)

ROOT = "zarr.json"
"""Name of the file of metadata, of the store and of each array."""

Metadata = dict[str, Any]
"""The ``zarr.json`` of one array."""

SENTENCE_COORDS = {
    "sentence": "int64",
    "label": "int64",
    "has_label": "bool",
    "n_tokens": "int64",
    "n_nonfinite": "int64",
    "text": "string",
    "source": "string",
    "source_digest": "string",
}
"""Coordinates along `sentence`, with their dtypes."""

CHECKSUMS = {name: f"{name}_crc32" for name in ARRAYS}
"""Coordinates along `sentence`, int32: of each data array the CRC-32 of the sentence's values, as they are on disk;
signed, because netCDF-3 knows no other integers."""

TOKEN_COORDS = {"fragment": "string", "token_text": "string", "is_special": "bool"}
"""Coordinates along `sentence` and `token`, with their dtypes."""

ROWS = 32
"""Sentences of a shard."""

TOKENS = 32
"""Tokens of a shard."""

BATCH_ROWS = 64
"""Sentences of a batch, and of a chunk of the coordinates of tokens."""

COORD_ROWS = 4096
"""Sentences of a chunk of the other coordinates."""

_CHUNK_BYTES = 2 << 20
_MAX_ROWS = 4096
_MAX_TOKENS = 4096
_TOKENS_PER_CHUNK = 64
_LABELS_PER_CHUNK = 1024

_CRC = {"name": "crc32c"}
_NUMBERS = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES = {"name": "bytes"}
_TEXTS = {"name": "vlen-utf8", "configuration": {}}
_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
_PLAIN: dict[str, dict[str, Any]] = {"string": _TEXTS, "bool": _BYTES}
_FILL = {"int64": 0, "int32": 0, "bool": False, "string": "", "float16": "NaN", "float32": "NaN", "float64": "NaN"}

_MEANINGS = {
    EMBEDDINGS: "token embeddings, before the first block",
    HIDDEN_STATES: "hidden states: the residual stream after the layer",
    ACTIVATIONS: "activations of SAE features, 0 where inactive",
    "sentence": "sentence_index of the extraction, from 0",
    "token": "position from the end of the sentence, -1 is the final token",
    "layer": "layer of the model, from 0",
    "sae_layer": "layer of the SAE",
    "average_l0": "nominal number of active features a token, which tells the SAEs of a layer apart",
    "feature": "number of the SAE feature",
    "label": "concept strength, -1 where there is none",
    "has_label": "whether there is a label",
    "n_tokens": "tokens of the sentence, up to the final one",
    "n_nonfinite": "NaN and infinite values of the sentence",
    "text": "the sentence",
    "source": "name of the file that the sentence came from",
    "source_digest": "SHA-256 that identifies the content of that file",
    "fragment": "the sentence up to this token",
    "token_text": "what this token adds to the sentence",
    "is_special": "whether this is a special token, such as a BOS",
    **{name: f"CRC-32 of the sentence's {array.replace('_', ' ')}" for array, name in CHECKSUMS.items()},
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is free in a store's layout; all else follows.

    Attributes
    ----------
    sizes : dict
        Of each dim.
    dtypes : tuple of str
        Of `embeddings`, `hidden_states` and `activations`; empty where one is absent.
    sae_dim : str
        Dim of the SAEs, ``"layer"`` or ``"sae"``.
    l0_dtype : str
        Of the average L0s: ``"int64"``, or ``"float64"`` where one is no whole number.
    rows, tokens : int
        Sentences and tokens of a shard.
    slices : int
        Chunks into which the features of an SAE are cut.
    batch_rows : int
        Sentences of a batch, and of a chunk of the coordinates of tokens.
    coord_rows : int
        Sentences of a chunk of the other coordinates.
    """

    sizes: dict[str, int]
    dtypes: tuple[str, ...]
    sae_dim: str
    l0_dtype: str
    rows: int
    tokens: int
    slices: int
    batch_rows: int
    coord_rows: int

    @classmethod
    def fitting(cls, extraction: Extraction) -> Layout:
        """Lay out an empty store.

        A shard holds 32 sentences at up to 32 tokens, all layers or SAEs; a chunk of it holds them at one token and
        layer, all of hidden or at most 2 MiB of features.
        """
        item = int((extraction.dtypes[2] or "float32").removeprefix("float")) // 8
        return cls(
            sizes={"sentence": 0, "token": 0, **extraction.sizes},
            dtypes=extraction.dtypes,
            sae_dim=extraction.sae_dim,
            l0_dtype="int64" if all(isinstance(l0, int) for l0 in extraction.average_l0s) else "float64",
            rows=ROWS,
            tokens=TOKENS,
            slices=max(1, math.ceil(ROWS * extraction.features * item / _CHUNK_BYTES)),
            batch_rows=BATCH_ROWS,
            coord_rows=COORD_ROWS,
        )

    @classmethod
    def of(cls, arrays: dict[str, Metadata]) -> Layout:
        """Read off what is free; KeyError, TypeError or the like where there is nothing to read."""
        dtypes = tuple(arrays[name]["data_type"] if name in arrays else "" for name in ARRAYS)
        sae_dim = "sae" if "sae_layer" in arrays else "layer"
        if not any(dtypes):
            raise ValueError("no data array")
        sizes = {"sentence": arrays["sentence"]["shape"][0], "token": arrays["token"]["shape"][0]}
        for name, dims in array_dims(dtypes, sae_dim).items():
            sizes |= dict(zip(dims[2:], arrays[name]["shape"][2:], strict=True))
            shard = arrays[name]["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = arrays[name]["codecs"]
            slices = shard[-1] // sharding["configuration"]["chunk_shape"][-1] if name == ACTIVATIONS else 1
        return cls(
            sizes=sizes,
            dtypes=dtypes,
            sae_dim=sae_dim,
            l0_dtype=arrays["average_l0"]["data_type"] if dtypes[2] else "int64",
            rows=shard[0],
            tokens=shard[1],
            slices=slices,
            batch_rows=arrays["fragment"]["chunk_grid"]["configuration"]["chunk_shape"][0],
            coord_rows=arrays["sentence"]["chunk_grid"]["configuration"]["chunk_shape"][0],
        )

    def check(self) -> None:
        """Raise ValueError for what no store has."""
        for dim, size in self.sizes.items():
            check_between(f"size of {dim}", size, 0 if dim in ("sentence", "token") else 1, LIMITS[dim])
        check_between("number of sentences in a shard", self.rows, 1, _MAX_ROWS)
        check_between("number of tokens in a shard", self.tokens, 1, _MAX_TOKENS)
        check_between("number of sentences in a batch", self.batch_rows, 1, _MAX_ROWS)
        check_between("number of sentences in a chunk", self.coord_rows, 1, _MAX_ROWS)
        if self.batch_rows % self.rows:
            raise ValueError(
                f"expected batches of whole shards, found {self.batch_rows} sentences, {self.rows} a shard"
            )
        check_between("number of chunks of a layer", self.slices, 1, self.sizes.get("feature", 1))
        for name, dtype in zip(ARRAYS, self.dtypes, strict=True):
            if dtype not in ("float16", "float32", ""):
                raise ValueError(f"expected {name} to be float16 or float32, found {brief(dtype)}")
        if self.l0_dtype not in ("int64", "float64"):
            raise ValueError(f"expected average_l0 to be int64 or float64, found {brief(self.l0_dtype)}")

    def arrays(self) -> dict[str, Metadata]:
        """Metadata of each array, in the order of their names."""
        dims = array_dims(self.dtypes, self.sae_dim)
        dtypes = dict(zip(ARRAYS, self.dtypes, strict=True))
        arrays = {name: self._data(name, dims[name], dtypes[name]) for name in dims}
        for name, dtype in (SENTENCE_COORDS | {CHECKSUMS[name]: "int32" for name in dims}).items():
            arrays[name] = self._coord(name, ("sentence",), dtype, [self.coord_rows])
        for name, dtype in TOKEN_COORDS.items():
            arrays[name] = self._coord(name, ("sentence", "token"), dtype, [self.batch_rows, _TOKENS_PER_CHUNK])
        arrays["token"] = self._coord("token", ("token",), "int64", [_LABELS_PER_CHUNK])
        labels = {"layer": ("layer", "int64"), "feature": ("feature", "int64")}
        if dtypes[ACTIVATIONS]:
            labels["average_l0"] = (self.sae_dim, self.l0_dtype)
        if self.sae_dim == "sae":
            labels["sae_layer"] = ("sae", "int64")
        for name, (dim, dtype) in labels.items():
            if dim in self.sizes:
                arrays[name] = self._coord(name, (dim,), dtype, [self.sizes[dim]])
        return dict(sorted(arrays.items()))

    def _data(self, name: str, dims: tuple[str, ...], dtype: str) -> Metadata:
        """Metadata of a data array: in shards, whose chunks hold one token and layer."""
        sizes = [self.sizes[dim] for dim in dims[2:]]
        inner = [1] * (len(sizes) - 1) + sizes[-1:]
        if name == ACTIVATIONS:
            inner[-1] = math.ceil(sizes[-1] / self.slices)
            sizes[-1] = self.slices * inner[-1]
        configuration = {
            "chunk_shape": [self.rows, 1, *inner],
            "codecs": [_NUMBERS, _ZSTD if name == ACTIVATIONS else _blosc(dtype), _CRC],
            "index_codecs": [_NUMBERS, _CRC],
            "index_location": "end",
        }
        sharding = {"name": "sharding_indexed", "configuration": configuration}
        return self._array(name, dims, dtype, [self.rows, self.tokens, *sizes], [sharding])

    def _coord(self, name: str, dims: tuple[str, ...], dtype: str, chunk: list[int]) -> Metadata:
        return self._array(name, dims, dtype, chunk, [_PLAIN.get(dtype, _NUMBERS), _ZSTD, _CRC])

    def _array(
        self, name: str, dims: tuple[str, ...], dtype: str, chunk: list[int], codecs: list[dict[str, Any]]
    ) -> Metadata:
        return {
            "shape": [self.sizes[dim] for dim in dims],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _FILL[dtype],
            "codecs": codecs,
            "attributes": {"long_name": _MEANINGS[name]},
            "dimension_names": list(dims),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def _blosc(dtype: str) -> dict[str, Any]:
    """Hidden states hardly compress: what reads and writes fastest, and makes little of padding."""
    size = int(dtype.removeprefix("float")) // 8
    configuration = {"typesize": size, "cname": "lz4", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
    return {"name": "blosc", "configuration": configuration}


def file_shape(metadata: Metadata) -> tuple[int, ...]:
    """Shape of what one file of an array holds: a shard, or a chunk where there are none."""
    return tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])


def chunk_shape(metadata: Metadata) -> tuple[int, ...]:
    """Shape of what is compressed as one: the chunks within the shards of an array, or its chunks."""
    for codec in metadata["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(codec["configuration"]["chunk_shape"])
    return file_shape(metadata)


def file_name(array: str, index: Sequence[int]) -> str:
    """Name the file of an array that has this place in the grid of its files, below the store."""
    return f"{array}/c.{'.'.join(map(str, index))}"


def file_index(name: str) -> tuple[int, ...] | None:
    """Return the place of a file of an array by its name without folders; None for what is no such file."""
    first, *numbers = name.split(".")
    return tuple(map(int, numbers)) if first == "c" and numbers and all(map(str.isdecimal, numbers)) else None


def check_between(what: str, value: object, low: int, high: int) -> None:
    """Raise ValueError for what is no integer of a range."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected a {what} of {low} to {high:,}, found {brief(value)}")


def canonical(value: object) -> str:
    """Spell a value so that 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


def brief(value: object) -> str:
    """Spell a value that was found."""
    text = canonical(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
