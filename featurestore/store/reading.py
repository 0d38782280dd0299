"""How a store is read: lazily, and with labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import StoreError
from featurestore.paths import PathLike, as_path
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_IS_TOKEN_CELLS = 1 << 24
"""So many values of `is_token` are calculated at once; more of them lazily."""

_IS_TOKEN = "whether the sentence has a token here; beyond it all values are NaN"

logger = logging.getLogger(__name__)

SENTENCES_PER_CHUNK = 1024
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
        Lazy: only the coordinates of one dim that are no text are read; the rest are dask arrays.
        Variables, as far as the source has them, in its dtypes (float16 or float32):

        - `embeddings` (sentence, token, hidden): before the first block;
        - `hidden_states` (sentence, token, layer, hidden): residual stream after the layer;
        - `activations` (sentence, token, layer, feature): SAE features, 0 where inactive; (sentence, token, sae,
          feature) unless each layer has one SAE.

        Coordinates: `sentence` (the sentence_index), `token` (in reading order, the final one last, labelled -1),
        `layer`, `feature`, `average_l0` (layer, or sae), `sae_layer` (sae); for each sentence `label` (-1 without
        one), `has_label`, `text`, `n_tokens`, `n_nonfinite`, `source` (file name), `source_digest`, and a
        ``<variable>_crc32`` of its values in each variable; for each sentence and token `fragment`, `token_text`,
        `is_token`, `is_special`. Tokens that a sentence does not have are NaN. Attributes: `featurestore_schema`,
        `featurestore_version`, and what `ingest` was told of the model and its SAEs.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `path`.
    StoreError
        If it is something else, foreign, damaged, or of another schema.

    Examples
    --------
    >>> ds = open_store("stores/dishonesty.zarr")
    >>> ds.hidden_states.sel(layer=12, token=-1).dims
    ('sentence', 'hidden')
    """
    snapshot = Snapshot.read(as_path(path))
    _warn_if_incomplete(snapshot)
    return labelled(snapshot)


def open_for_building(path: Path) -> xr.Dataset:
    """Open a store as `open_store` does, but with dask chunks of many sentences, and little of everything else.

    For what is known to need few of them: a selection then reads no more than it needs, and two that need the same
    chunk share it, also where dask does not merge selecting with reading.
    """
    snapshot = Snapshot.read(path)
    _warn_if_incomplete(snapshot)
    return labelled(snapshot, _many_sentences)


def _many_sentences(snapshot: Snapshot, name: str) -> tuple[int, ...]:
    rows, *rest = snapshot.chunk_shape(name)
    return rows * max(1, SENTENCES_PER_CHUNK // rows), *rest


def _warn_if_incomplete(snapshot: Snapshot) -> None:
    if expected := snapshot.expected_sentences:
        found = f"{snapshot.sizes['sentence']} of {expected} sentences"
        where = snapshot.path
        logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", where, found)


def _one_token(snapshot: Snapshot, name: str) -> tuple[int, ...]:
    rows, *rest = snapshot.file_shape(name)
    return (rows, 1, *rest[1:]) if name in snapshot.data_arrays else (rows, *rest)


def labelled(snapshot: Snapshot, chunks_of: Callable[[Snapshot, str], tuple[int, ...]] = _one_token) -> xr.Dataset:
    """Label the arrays of a store, in dask chunks as `chunks_of` says."""
    import dask.array as da
    import xarray as xr

    arrays = snapshot.arrays
    lazy = {
        name for name, one in arrays.items() if "token" in one["dimension_names"][1:] or one["data_type"] == "string"
    }
    variables = {
        name: xr.Variable(arrays[name]["dimension_names"], snapshot.coord(name), arrays[name]["attributes"])
        for name in arrays.keys() - lazy
    }
    n_tokens = _checked_lengths(snapshot, variables["n_tokens"].values)
    for name in lazy:
        array = snapshot.array(name, n_tokens)
        chunks = tuple(max(1, min(sizes)) for sizes in zip(array.shape, chunks_of(snapshot, name), strict=True))
        # Named at random, as no content is known yet: an appended store must not be mistaken for the earlier one.
        data = da.from_array(array, chunks, name=False)
        variables[name] = xr.Variable(arrays[name]["dimension_names"], data, arrays[name]["attributes"])
    lengths = n_tokens[:, None]
    if len(n_tokens) * snapshot.sizes["token"] > _IS_TOKEN_CELLS:
        lengths = da.from_array(lengths, chunks=(max(1, _IS_TOKEN_CELLS // snapshot.sizes["token"]), 1), name=False)
    is_token = variables["token"].values >= -lengths
    variables["is_token"] = xr.Variable(("sentence", "token"), is_token, {"long_name": _IS_TOKEN})
    data = {name: variables.pop(name) for name in snapshot.data_arrays}
    ds = xr.Dataset(data, dict(sorted(variables.items())), snapshot.described)
    return ds.isel()


def _checked_lengths(snapshot: Snapshot, n_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refuse lengths of sentences by which files would be looked for that need not be there, or not be missed."""
    tokens = snapshot.sizes["token"]
    if n_tokens.size and not (n_tokens.min() >= 1 and n_tokens.max() == tokens):
        raise StoreError(
            f"{snapshot.path}: n_tokens do not fit its {tokens} tokens: damaged; see `verify`, ingest into a new store"
        )
    return n_tokens
