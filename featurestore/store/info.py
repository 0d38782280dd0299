"""What is in a store, measured from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.paths import PathLike
from featurestore.schema import ACTIVATIONS, FINAL_TOKEN, Extraction
from featurestore.store.location import Location, ReadOnlyPath, StorageOptions, location
from featurestore.store.reading import labelled
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import xarray as xr

L0_TOLERANCE = 2.0
"""Factor by which the measured L0 may differ from the nominal average before it counts as a mismatch."""


def is_mismatch(nominal: Any, measured: Any) -> Any:
    """Tell whether a measured L0 is more than a factor of `L0_TOLERANCE` from the nominal one; of arrays, each."""
    return (measured < nominal / L0_TOLERANCE) | (measured > nominal * L0_TOLERANCE)


@dataclass(frozen=True, kw_only=True)
class SAEInfo:
    """One SAE configuration: nominal average L0, and the mean L0 measured at the final tokens."""

    layer: int
    average_l0: float
    measured_l0: float

    @property
    def mismatch(self) -> bool:
        """Whether the two differ by more than `L0_TOLERANCE`, so that something upstream is wrong."""
        return bool(is_mismatch(self.average_l0, self.measured_l0))


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Summary of a store.

    Attributes
    ----------
    path : Path or ReadOnlyPath
        The store; as text its path, or its URL without passwords and queries.
    described : mapping
        What it says of itself: versions, and the model, tokenizer and SAEs, if that is known.
    sentences, hidden, features : int
        Sizes; 0 for what it does not hold.
    expected_sentences : int or None
        How many sentences it is to have, if its ingest is not complete.
    tokens : tuple of int
        Shortest, median and longest sentence; empty for an empty store.
    dtypes : mapping
        Of the data arrays.
    layers : tuple of int
        Layers of the hidden states.
    labels : mapping of int to int
        How many sentences have each label.
    unlabelled : int
        How many have none.
    saes : tuple of SAEInfo
        In the store's order.
    nonfinite_values, nonfinite_sentences : int
        NaN and infinite values in the sources, and how many sentences have any.
    bytes_on_disk : int or None
        Size of all files, or of the zip; None where they cannot be listed, as over HTTP.
    skipped : tuple of (file, reason)
        Files that were left out when the store was made.
    """

    path: Location
    described: Mapping[str, Any]
    sentences: int
    expected_sentences: int | None
    hidden: int
    features: int
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    dtypes: Mapping[str, str]
    labels: Mapping[int, int]
    unlabelled: int
    saes: tuple[SAEInfo, ...]
    nonfinite_values: int
    nonfinite_sentences: int
    bytes_on_disk: int | None
    skipped: tuple[tuple[str, str], ...]


def info(store: PathLike, *, storage_options: StorageOptions | None = None) -> StoreInfo:
    """Summarize a store. Reads the activations at the final tokens, in bounded memory.

    Parameters
    ----------
    store : str or PathLike
        The store, a zip of it, or its URL.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).

    Returns
    -------
    StoreInfo

    Raises
    ------
    StoreError
        If `store` is not a store, or cannot be reached.
    """
    path = location(store, storage_options)
    snapshot = Snapshot.read(path)
    ds = labelled(snapshot, chunks={})
    n_tokens, nonfinite = ds["n_tokens"].values, ds["n_nonfinite"].values
    labels = ds["label"].values[ds["has_label"].values]
    return StoreInfo(
        path=path,
        described=snapshot.described,
        sentences=ds.sizes["sentence"],
        expected_sentences=snapshot.expected_sentences,
        hidden=ds.sizes.get("hidden", 0),
        features=ds.sizes.get("feature", 0),
        layers=snapshot.extraction.layers,
        tokens=(int(n_tokens.min()), int(np.median(n_tokens)), int(n_tokens.max())) if n_tokens.size else (),
        dtypes={name: str(ds[name].dtype) for name in snapshot.data_arrays},
        labels=dict(sorted(Counter(labels.tolist()).items())),
        unlabelled=ds.sizes["sentence"] - len(labels),
        saes=_saes(ds, snapshot.extraction),
        nonfinite_values=int(nonfinite.sum()),
        nonfinite_sentences=int(np.count_nonzero(nonfinite)),
        bytes_on_disk=bytes_on_disk(path),
        skipped=tuple((entry["file"], entry["reason"]) for entry in snapshot.skipped),
    )


def bytes_on_disk(path: Location) -> int | None:
    """Return the size of all files of a store; None if it cannot be known."""
    if isinstance(path, ReadOnlyPath):
        return path.n_bytes()
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _saes(ds: xr.Dataset, extraction: Extraction) -> tuple[SAEInfo, ...]:
    """Measure the L0 of each SAE at the final tokens."""
    if not extraction.sae_layers:
        return ()
    measured = [np.nan] * len(extraction.sae_layers)
    if n := ds.sizes["sentence"]:
        active = ds[ACTIVATIONS].sel(token=FINAL_TOKEN) != 0
        measured = (active.sum(("sentence", "feature")) / n).compute(scheduler="threads").values.tolist()
    saes = zip(extraction.sae_layers, extraction.average_l0s, measured, strict=True)
    return tuple(SAEInfo(layer=layer, average_l0=l0, measured_l0=found) for layer, l0, found in saes)
