"""How a store is read: with labels, and lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ParameterError, brief, some
from featurestore.paths import PathLike
from featurestore.store.joined import Pool
from featurestore.store.location import ReadOnlyPath, StorageOptions, location
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import xarray as xr

    Chunks = int | str | Mapping[Any, Any] | None


def open_store(
    path: PathLike | ReadOnlyPath,
    *,
    chunks: Chunks = None,
    max_bytes: float | None = None,
    storage_options: StorageOptions | None = None,
) -> xr.Dataset:
    """Open a store as one labelled, lazy dataset; warn if its ingest is not complete.

    The same as ``xr.open_dataset(path, engine="featurestore")``, which takes the same options, but for coordinates with
    `chunks`: here they are no dask arrays.

    Parameters
    ----------
    path : str or PathLike
        The store: a folder, a zip of it, or a URL that fsspec reads, such as ``s3://bucket/dishonesty.zarr``.
    chunks : int, dict, "auto", optional
        By default xarray's own lazy indexing: selections are composed, and what they leave is read when its values are
        needed, at once and into memory. With chunks the variables are dask arrays, so that more than the memory holds
        can be reduced chunk by chunk: ``{}`` for chunks that suit the store (many sentences at one token and layer),
        others as of `xarray.open_dataset`, which warns of those that do not fit these.
    max_bytes : float, optional
        What one selection, or one chunk, may read into memory; by default half of the memory that is available.
    storage_options : mapping, optional
        What fsspec needs to open a URL, such as credentials; by default it finds them in its configuration or the
        environment.

    Returns
    -------
    xarray.Dataset
        Coordinates of one dim are read, all others are lazy. Variables, as far as the source has them, in its dtypes
        (float16 or float32):

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
        If it is something else, foreign, damaged, or of another schema, or cannot be reached; also later, when values
        are read.
    ParameterError
        If `path` is a URL of an unknown protocol, there are `storage_options` without a URL, or `chunks` or `max_bytes`
        are no such thing.
    TooLargeError
        Later, when a selection would read more than `max_bytes`.

    Examples
    --------
    >>> ds = open_store("stores/dishonesty.zarr")
    >>> ds.hidden_states.sel(layer=12, token=-1).dims
    ('sentence', 'hidden')
    """
    from featurestore.store.backend import warn_if_incomplete

    snapshot = Snapshot.read(location(path, storage_options))
    warn_if_incomplete(snapshot)
    return labelled(snapshot, chunks=chunks, max_bytes=max_bytes)


def labelled(store: Snapshot | Pool, *, chunks: Chunks = None, max_bytes: float | None = None) -> xr.Dataset:
    """Label the arrays of a store as it was committed, or of several; options as of `open_store`.

    Coordinates never are dask arrays: of text as such, xarray warns whenever it writes it, and cannot tell its size.
    """
    import xarray as xr

    from featurestore.store.backend import FeatureStoreBackend

    options: Any = {"engine": FeatureStoreBackend, "max_bytes": max_bytes}
    ds = xr.open_dataset(store, **options)  # type: ignore[arg-type]
    for variable in ds.variables.values():
        if variable.ndim == 1:
            variable.load()  # in memory it is, and then it is shown
    if chunks is None:
        return ds
    chunks = _checked_chunks(chunks, store.sizes)
    in_chunks = xr.open_dataset(store, chunks=chunks, drop_variables=[*ds.coords], **options)  # type: ignore[arg-type]
    return ds.assign(in_chunks.data_vars)


def _checked_chunks(chunks: object, sizes: Mapping[str, int]) -> Any:
    """Refuse what is no size of chunks, of which xarray would pass over some and say little of others."""
    by_dim = dict(chunks) if isinstance(chunks, Mapping) else dict.fromkeys(sizes, chunks)
    if unknown := by_dim.keys() - sizes:
        raise ParameterError(f"chunks: no dim is named {some(map(brief, unknown))}; expected some of {some(sizes)}")
    for size in by_dim.values():
        is_number = isinstance(size, int | np.integer) and (size > 0 or size == -1)
        if not (is_number or size in ("auto", None) or isinstance(size, tuple)):
            expected = "a number above 0, -1 or 'auto', or a dict of these by dim"
            raise ParameterError(f"chunks: expected {expected}, found {brief(chunks)}")
    return by_dim if isinstance(chunks, Mapping) else chunks
