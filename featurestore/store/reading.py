"""How a store is read: with labels, and lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.paths import PathLike
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

    The same as ``xr.open_dataset(path, engine="featurestore")``, which takes the same options.

    Parameters
    ----------
    path : str or PathLike
        The store: a folder, a zip of it, or a URL that fsspec reads, such as ``s3://bucket/dishonesty.zarr``.
    chunks : int, dict, "auto", optional
        By default xarray's own lazy indexing: selections are composed, and what they leave is read when its values are
        needed, at once and into memory. With chunks the variables are dask arrays, so that more than the memory holds
        can be reduced chunk by chunk: ``{}`` for chunks that suit the store (1,024 sentences at one token and layer),
        others as of `xarray.open_dataset`.
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
        If `path` is a URL of an unknown protocol, or there are `storage_options` without a URL.
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


def labelled(snapshot: Snapshot, **options: Any) -> xr.Dataset:
    """Label the arrays of a store as it was committed; options as of `open_store`."""
    import xarray as xr

    from featurestore.store.backend import FeatureStoreBackend

    ds = xr.open_dataset(snapshot, engine=FeatureStoreBackend, **options)  # type: ignore[arg-type]
    flat = ds.drop_vars([name for name, variable in ds.variables.items() if variable.ndim > 1])
    return ds.assign_coords(flat.load(scheduler="synchronous").coords)
