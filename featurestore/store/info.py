"""What is in a store, measured from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.paths import PathLike, as_path
from featurestore.schema import ACTIVATIONS, ARRAY_DIMS, FINAL_TOKEN
from featurestore.store.reading import labelled
from featurestore.store.snapshot import Snapshot

L0_TOLERANCE = 2.0
"""Factor by which the measured L0 may differ from the nominal average before it counts as a mismatch."""


@dataclass(frozen=True)
class SAEInfo:
    """One SAE configuration: nominal average L0, and the mean L0 measured at the final tokens."""

    layer: int
    average_l0: int
    measured_l0: float

    @property
    def mismatch(self) -> bool:
        """Whether the two differ by more than `L0_TOLERANCE`, so that something upstream is wrong."""
        low, high = sorted((float(self.average_l0), self.measured_l0))
        return high > L0_TOLERANCE * low


@dataclass(frozen=True)
class StoreInfo:
    """Summary of a store.

    Attributes
    ----------
    path : Path
        The store.
    sentences, hidden, features : int
        Sizes.
    expected_sentences : int or None
        How many sentences it is to have, if its ingest is not complete.
    tokens : tuple of int
        Shortest, median and longest sentence; empty for an empty store.
    dtypes : mapping
        Of the data arrays.
    labels : mapping of int to int
        How many sentences have each label.
    saes : tuple of SAEInfo
        In the store's order.
    nonfinite_values, nonfinite_sentences : int
        NaN and infinite values in the sources, and how many sentences have any.
    bytes_on_disk : int
        Size of all files.
    skipped : tuple of (file, reason)
        Files that were left out when the store was made.
    """

    path: Path
    sentences: int
    expected_sentences: int | None
    hidden: int
    features: int
    tokens: tuple[int, ...]
    dtypes: Mapping[str, str]
    labels: Mapping[int, int]
    saes: tuple[SAEInfo, ...]
    nonfinite_values: int
    nonfinite_sentences: int
    bytes_on_disk: int
    skipped: tuple[tuple[str, str], ...]


def info(store: PathLike) -> StoreInfo:
    """Summarize a store. Reads the activations at the final tokens, in bounded memory.

    Parameters
    ----------
    store : str or PathLike
        The store.

    Returns
    -------
    StoreInfo

    Raises
    ------
    StoreError
        If `store` is not a store.
    """
    path = as_path(store)
    snapshot = Snapshot.read(path)
    ds = labelled(snapshot)
    n_tokens = ds["n_tokens"].values
    nonfinite = ds["n_nonfinite"].values
    n = ds.sizes["sentence"]
    if n:
        active = ds[ACTIVATIONS].sel(token=FINAL_TOKEN) != 0
        measured = (active.sum(("sentence", "feature")) / n).compute(scheduler="threads").values
    else:
        measured = np.full(ds.sizes["layer"], np.nan)
    saes = zip(ds["layer"].values.tolist(), ds["average_l0"].values.tolist(), measured.tolist(), strict=True)
    return StoreInfo(
        path=path,
        sentences=n,
        expected_sentences=snapshot.expected_sentences,
        hidden=ds.sizes["hidden"],
        features=ds.sizes["feature"],
        tokens=(int(n_tokens.min()), int(np.median(n_tokens)), int(n_tokens.max())) if n else (),
        dtypes={name: str(ds[name].dtype) for name in ARRAY_DIMS},
        labels=dict(sorted(Counter(ds["label"].values.tolist()).items())),
        saes=tuple(SAEInfo(*sae) for sae in saes),
        nonfinite_values=int(nonfinite.sum()),
        nonfinite_sentences=int(np.count_nonzero(nonfinite)),
        bytes_on_disk=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        skipped=tuple((entry["file"], entry["reason"]) for entry in snapshot.attributes["skipped"]),
    )
