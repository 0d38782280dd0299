"""How a store is read: lazily, with labels, and never a wrong value for a damaged or missing file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import StoreError
from featurestore.paths import PathLike, as_path
from featurestore.schema import ARRAY_DIMS, Extraction
from featurestore.store.layout import Root
from featurestore.store.snapshot import array_metadata, chunk_shape, dim_sizes, inner_chunk_shape, read_root

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_SENTENCES = 1024
"""Sentences of a dask chunk where datasets are built: fewer cost more in dask than in reading."""


def open_store(path: PathLike) -> xr.Dataset:
    """Open a store as one labelled, lazy dataset; warn if its ingest is not complete.

    Parameters
    ----------
    path : str or PathLike
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
        token). Tokens that a sentence does not have are NaN. Attributes: `featurestore_schema` and
        `featurestore_version`.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `path`.
    StoreError
        If it is something else, foreign, damaged, or of a newer schema.

    Examples
    --------
    >>> ds = open_store("stores/dishonesty.zarr")
    >>> ds.hidden_states.sel(layer=12, token=-1).dims
    ('sentence', 'hidden')
    """
    path = as_path(path)
    root = read_root(path)
    _warn_if_incomplete(path, root)
    return labelled(path, root)


def open_chunks(path: Path) -> xr.Dataset:
    """Open a store as `open_store` does, but with dask chunks of many sentences, and little of everything else.

    For what is known to need few of them: a selection then reads no more than it needs, and two that need the same
    chunk share it, also where dask does not merge selecting with reading.
    """

    def many_sentences(root: Root, name: str) -> tuple[int, ...]:
        rows, *rest = inner_chunk_shape(root, name)
        return rows * max(1, _SENTENCES // rows), *rest

    root = read_root(path)
    _warn_if_incomplete(path, root)
    return labelled(path, root, many_sentences)


def _warn_if_incomplete(path: Path, root: Root) -> None:
    if expected := root["attributes"]["expected_sentences"]:
        found = f"{dim_sizes(root)['sentence']} of {expected} sentences"
        logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", path, found)


def labelled(path: Path, root: Root, chunks_of: Callable[[Root, str], tuple[int, ...]] = chunk_shape) -> xr.Dataset:
    """Label the arrays of a store, in dask chunks as `chunks_of` says."""
    import dask.array as da
    import xarray as xr

    arrays = array_metadata(root)
    lazy = [name for name, metadata in arrays.items() if name in ARRAY_DIMS or metadata["data_type"] == "string"]
    numbers = {name: read_coord(path, root, name) for name in arrays if name not in lazy}
    n_tokens, tokens = numbers["n_tokens"], dim_sizes(root)["token"]
    if n_tokens.size and not (n_tokens.min() >= 1 and n_tokens.max() == tokens):
        raise StoreError(
            f"{path}: n_tokens do not fit its {tokens} tokens: damaged; see `verify`, ingest into a new store"
        )
    variables: dict[str, Any] = {name: (arrays[name]["dimension_names"], values) for name, values in numbers.items()}
    for name in lazy:
        array = _Lazy(path, root, name, n_tokens)
        chunks = tuple(max(1, min(sizes)) for sizes in zip(array.shape, chunks_of(root, name), strict=True))
        # Named at random, as no content is known yet: an appended store must not be mistaken for the earlier one.
        variables[name] = arrays[name]["dimension_names"], da.from_array(array, chunks, name=False)
    data = {name: variables.pop(name) for name in ARRAY_DIMS}
    attributes = {name: root["attributes"][name] for name in ("featurestore_schema", "featurestore_version")}
    return xr.Dataset(data, variables, attributes).isel()


def outlined(extraction: Extraction, coords: Mapping[str, Sequence[Any]]) -> xr.Dataset:
    """Label what a store will hold, for plans that are made before it is there: its data are all 0.

    Parameters
    ----------
    extraction : Extraction
        Layers, sizes, dtypes.
    coords : mapping of str to sequence
        Values of coordinates along `sentence`.
    """
    import dask.array as da
    import xarray as xr

    tokens = max(coords["n_tokens"])
    sizes = {"sentence": len(coords["sentence"]), "token": tokens, "layer": len(extraction.layers)}
    sizes |= {"hidden": extraction.hidden, "feature": extraction.features}
    chunks = {"sentence": _SENTENCES, "token": 1, "layer": 1}
    data = {
        name: (dims, da.zeros([sizes[dim] for dim in dims], dtype, chunks=tuple(chunks.get(dim, -1) for dim in dims)))
        for (name, dims), dtype in zip(ARRAY_DIMS.items(), extraction.dtypes, strict=True)
    }
    numbers: dict[str, Any] = {name: ("sentence", np.array(values)) for name, values in coords.items()}
    numbers |= {"token": np.arange(-tokens, 0), "layer": np.array(extraction.layers)}
    numbers |= {"average_l0": ("layer", np.array(extraction.average_l0s)), "feature": np.arange(extraction.features)}
    return xr.Dataset(data, numbers)


def open_array(path: Path, root: Root, name: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Return a handle on an array with the shape that `root` says, whatever is committed on disk.

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
    metadata = ArrayV3Metadata.from_dict(array_metadata(root)[name])
    array = zarr.AsyncArray(metadata, place, config)
    spec = ArraySpec(chunk_shape(root, name), metadata.dtype, metadata.fill_value, config, default_buffer_prototype())
    pipeline = FusedCodecPipeline.from_codecs(metadata.codecs).evolve_from_array_spec(spec)
    object.__setattr__(array, "codec_pipeline", pipeline)  # Zarr takes it from its global configuration only
    return zarr.Array(array)


def read_coord(path: Path, root: Root, name: str) -> NDArray[Any]:
    """Read a coordinate whole."""
    return _Lazy(path, root, name)[(slice(None),)]


def extraction_of(path: Path, root: Root) -> Extraction:
    """What all sentences of a store share."""
    sizes = dim_sizes(root)
    layers, average_l0s = (read_coord(path, root, name).tolist() for name in ("layer", "average_l0"))
    dtypes = tuple(array_metadata(root)[name]["data_type"] for name in ARRAY_DIMS)
    return Extraction(tuple(layers), tuple(average_l0s), sizes["hidden"], sizes["feature"], dtypes)


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
        if self._token_axis and n_tokens is not None and len(n_tokens):
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
            padding = self._longest is not None and index[1] * self._files[1] >= self._longest[index[0]]
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
