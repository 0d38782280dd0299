"""Several stores as one dataset: sentences of several traits, each under a number of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ParameterError, StoreError, brief, spelled
from featurestore.paths import PathLike, real_path
from featurestore.schema import ATTRIBUTES
from featurestore.store.joined import Pool
from featurestore.store.location import Location, ReadOnlyPath, StorageOptions, location
from featurestore.store.reading import labelled
from featurestore.store.snapshot import Snapshot, store_name

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.store.reading import Chunks


def open_stores(
    stores: Sequence[PathLike | ReadOnlyPath],
    *,
    chunks: Chunks = None,
    max_bytes: float | None = None,
    storage_options: StorageOptions | None = None,
) -> xr.Dataset:
    """Open several stores of one extraction as one labelled, lazy dataset; warn of those whose ingest is not complete.

    Sentences are in the order of the stores, and in each in its own. Tokens line up at the final one; where a sentence
    has none, values are NaN, texts empty, `is_token` and `is_special` False.

    Parameters
    ----------
    stores : list of str or PathLike
        The stores, each a folder, a zip or a URL as of `open_store`; no two of one name.
    chunks, max_bytes
        As of `open_store`. With ``chunks={}`` no chunk is of two stores.
    storage_options : mapping, optional
        What fsspec needs to open the URLs, which then all have to be.

    Returns
    -------
    xarray.Dataset
        As of `open_store`, but for these coordinates along `sentence`:

        - `sentence`, int64: number of the store (0, 1, ... in the order given) times 10,000,000, plus sentence_index;
        - `sentence_index`, int64: as in its store;
        - `store`, text: the name of its store, which is that of its folder without ``.zarr``.

        Attributes are those that all stores share.

    Raises
    ------
    ParameterError
        If `stores` is no list, or empty, or has a store twice or two of one name; and as by `open_store`.
    StoreError
        If the stores are of different extractions, or of different models or SAEs by what they say; if a
        sentence_index is not within 0 to 9,999,999; and as by `open_store`.
    TooLargeError
        Later, when a selection would read more than `max_bytes`.

    Examples
    --------
    >>> ds = open_stores(["stores/dishonesty.zarr"])  # and of other traits
    >>> ds.sel(sentence=ds.store == "dishonesty").activations.sel(token=-1, layer=12).dims
    ('sentence', 'feature')
    """
    from featurestore.store.backend import warn_if_incomplete

    if not isinstance(stores, list | tuple) or not stores:
        raise ParameterError(f"stores: expected a list of one store or more, found {brief(stores)}")
    snapshots = [Snapshot.read(location(store, storage_options)) for store in stores]
    for snapshot in snapshots:
        warn_if_incomplete(snapshot)
    return pooled(snapshots, chunks=chunks, max_bytes=max_bytes)


def pooled(snapshots: Sequence[Snapshot], *, chunks: Chunks = None, max_bytes: float | None = None) -> xr.Dataset:
    """Label the arrays of one store or more as they were committed; options and errors as of `open_stores`."""
    pool = Pool(tuple(snapshots))
    for first, other in combinations(pool.snapshots, 2):
        _check_names(first.location, other.location)
    for other in pool.snapshots[1:]:
        _check_same_origin(pool.snapshots[0], other)
    return labelled(pool, chunks=chunks, max_bytes=max_bytes)


def _check_names(first: Location, other: Location) -> None:
    """Refuse two stores of one name, by which users tell them apart."""
    if _real(first) == _real(other):
        raise ParameterError(f"{other}: expected each store once, found it twice; leave one out")
    if (name := store_name(first)) == store_name(other):
        expected = "expected stores of different names"
        raise ParameterError(f"{first} and {other}: {expected}, found {brief(name)} twice; rename one")


def _real(place: Location) -> str:
    return str(real_path(place)) if isinstance(place, Path) else place.absolute


def _check_same_origin(first: Snapshot, other: Snapshot) -> None:
    """Refuse values that are not of the same layers, sizes, dtypes, model and SAEs."""
    subject = f"{other.location} and {first.location}"
    if found := first.extraction.differences(other.extraction):
        raise StoreError(f"{subject}: expected one extraction, found {'; '.join(found)}; open each by itself")
    said = [(name, first.described.get(name), other.described.get(name)) for name in ATTRIBUTES]
    if differing := [(name, ours, theirs) for name, ours, theirs in said if ours != theirs]:
        found = [f"{name} {_brief(theirs)} instead of {_brief(ours)}" for name, ours, theirs in differing]
        remedy = f"if they are the same, say so by an ingest with {spelled(differing[0][0])}"
        raise StoreError(f"{subject}: expected values of one origin, found {'; '.join(found)}; {remedy}")


def _brief(said: object) -> str:
    return "none" if said is None else brief(said)
