"""The datasets that there are, as their files describe themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.datasets import dataset as datasets
from featurestore.datasets import journal
from featurestore.datasets.fingerprints import fingerprint, sentences_digest
from featurestore.datasets.journal import File, located
from featurestore.errors import DatasetError, FeatureStoreError, NpzError, StoreError, StoreNotFoundError, shown
from featurestore.paths import PathLike, as_path
from featurestore.schema import STORES
from featurestore.splits.split import SplitOptions
from featurestore.store.location import Location, StorageOptions, location
from featurestore.store.snapshot import Snapshot, is_store, store_name
from featurestore.strategies import list_strategies

logger = logging.getLogger(__name__)

_NAMES = [
    "store",
    "strategy",
    "parameters",
    "input_layers",
    "target_layer",
    "target_feature",
    "store_digest",
    "strategy_code",
    "groups_digest",
    "split_version",
    "fingerprint",
]


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset file.

    Attributes
    ----------
    file : str
        Its path, below the folder that was listed.
    store, strategy, normalize : str
        What it was built from, and how.
    layers : tuple of int
        Layers of X; none for embeddings.
    target_layer : int or None
        Layer of the features that are y.
    target_features : tuple of int
        Those features.
    rows, columns : int
        Shape of X.
    split : dict
        Options of the split; empty without one.
    state : str
        ``"current"``; ``"stale"``, where the store has other sentences now, a file of groups, of a ranking or of
        statistics is another or gone, or a registered strategy has other code; or ``"unknown"`` (there is no such
        store). X and y are not compared with their checksums.
    fingerprint : str
        Identifies what it was made of.
    reason : str
        Why it is not current.
    """

    file: str
    store: str
    strategy: str
    normalize: str
    layers: tuple[int, ...]
    target_layer: int | None
    target_features: tuple[int, ...]
    rows: int
    columns: int
    split: dict[str, Any]
    state: str
    fingerprint: str
    reason: str = ""


def list_datasets(
    folder: PathLike,
    stores: PathLike = STORES,
    *,
    strategy: str | None = None,
    layer: int | None = None,
    feature: int | None = None,
    stale: bool | None = None,
    storage_options: StorageOptions | None = None,
) -> list[DatasetEntry]:
    """List the datasets below a folder, by what their files say; X and y are not read.

    Parameters
    ----------
    folder : str or PathLike
        Searched with all its folders. Other NPZ files are left out, with one warning.
    stores : str or PathLike
        Folder of the stores, or its URL, with which datasets are compared.
    strategy : str, optional
        Only those of this strategy.
    layer : int, optional
        Only those with this layer, in X or y.
    feature : int, optional
        Only those with this SAE feature as y.
    stale : bool, optional
        Only those that are stale, or with false only those that are current.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).

    Returns
    -------
    list of DatasetEntry
        In the order of their paths.

    Raises
    ------
    DatasetError
        If there is no such folder.
    """
    folder, found = as_path(folder), location(stores, storage_options)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of datasets, found none; build some first")
    if isinstance(found, Path) and not found.is_dir():
        logger.warning("%s: no such folder of stores, so no dataset can be compared with its store", found)
    return [
        entry
        for entry in _all_entries(folder, _Present(found))
        if strategy in (None, entry.strategy)
        and (layer is None or layer in (*entry.layers, entry.target_layer))
        and (feature is None or feature in entry.target_features)
        and (stale is None or entry.state == ("stale" if stale else "current"))
    ]


def _all_entries(folder: Path, present: _Present) -> list[DatasetEntry]:
    """List all datasets below a folder, each compared with what it is made of, other datasets too."""
    entries: list[DatasetEntry] = []
    statistics: list[str] = []
    foreign = []
    for path in sorted(path for path in folder.rglob("*.npz") if path.is_file()):
        try:
            recorded = datasets.read_metadata(path, _NAMES)
            plan = _plan(recorded)
            entries.append(_entry(str(path.relative_to(folder)), recorded, plan, *present.compared(path, recorded)))
            statistics.append(str(plan.get("stats_from", "")))
        except (FeatureStoreError, OSError, ValueError, TypeError, RecursionError) as error:
            foreign.append(f"{shown(path)} ({shown(error)})")
    if foreign:
        logger.warning("left out %d NPZ files that are no datasets, such as %s", len(foreign), foreign[0])
    known = {entry.fingerprint for entry in entries}
    for i, (entry, used) in enumerate(zip(entries, statistics, strict=True)):
        if used and (reason := present.statistics(folder / entry.file, entry.fingerprint, used in known)):
            entries[i] = _stale(entry, reason)
    return _carried(entries, statistics)


class _Present:
    """What there is now of what datasets are made of; each thing is looked at once."""

    def __init__(self, stores: Location) -> None:
        self._sentences = cache(partial(_sentences, stores))
        self._content = cache(journal.content_digest)
        self._files = cache(journal.read)
        self._fingerprint = cache(_fingerprint)
        self._strategies = list_strategies()

    def compared(self, path: Path, recorded: Mapping[str, Any]) -> tuple[str, str]:
        """Return the state of a dataset and the reason, as far as its statistics don't matter."""
        store, name, made_of = (_text(recorded, key) for key in ("store", "strategy", "fingerprint"))
        sentences, code = self._sentences(store), _text(recorded, "strategy_code")
        now = self._strategies[name].code if name in self._strategies else code
        reasons = list(self._changed(path, made_of))
        if now != code:
            reasons.insert(0, f"{name} has other code")
        if sentences not in (None, _text(recorded, "store_digest", sentences or "")):
            reasons.insert(0, "the store has other sentences")
        if not made_of or (sentences is None and not reasons):
            return "unknown", "no such store" if made_of else "no fingerprint"
        plan, groups, version = (_text(recorded, key) for key in ("parameters", "groups_digest", "split_version"))
        expected = fingerprint(plan, sentences or "", groups, now, version)
        if not reasons and expected != made_of:
            reasons = ["the fingerprint is another"]
        if not reasons and code and name not in self._strategies:
            return "unknown", f"the code of {name} is not known here; name its plugin"
        return "stale" if reasons else "current", "; ".join(reasons)

    def statistics(self, path: Path, made_of: str, elsewhere: bool) -> str:
        """Say what is wrong with the file of statistics that a dataset depends on, if that is known.

        One that is gone does no harm where the same statistics are `elsewhere`.
        """
        for file in self._used(path, made_of):
            found = self._fingerprint(located(file, path.parent))
            if file.kind == "statistics" and found != file.identity and (found or not elsewhere):
                return f"statistics: {shown(file.path)} is {'another dataset now' if found else 'gone'}"
        return ""

    def _changed(self, path: Path, made_of: str) -> Iterator[str]:
        for file in self._used(path, made_of):
            found = self._content(located(file, path.parent))
            if file.kind != "statistics" and found != file.identity:
                yield f"{file.kind}: {shown(file.path)} {'has changed' if found else 'is gone'}"

    def _used(self, path: Path, made_of: str) -> list[File]:
        return self._files(path.parent).get((path.name, made_of), [])


def _carried(entries: Sequence[DatasetEntry], statistics: Sequence[str]) -> list[DatasetEntry]:
    """Make stale what has statistics of datasets that are all stale."""
    entries, before = list(entries), None
    while entries != before:
        before = list(entries)
        current = {entry.fingerprint for entry in entries if entry.state != "stale"}
        stale = {entry.fingerprint: entry.file for entry in entries if entry.fingerprint not in current}
        for i, used in enumerate(statistics):
            if used in stale and entries[i].state != "stale":
                entries[i] = _stale(entries[i], f"statistics: {stale[used]} is stale")
    return entries


def _stale(entry: DatasetEntry, reason: str) -> DatasetEntry:
    reasons = [entry.reason, reason] if entry.state == "stale" else [reason]
    return replace(entry, state="stale", reason="; ".join(reasons))


def _sentences(stores: Location, name: str) -> str | None:
    if Path(name).name != name or name == "..":
        return None
    for store in _places(stores, name):
        try:
            snapshot = Snapshot.read(store)
            return sentences_digest(*(snapshot.coord(name) for name in ("sentence", "source_digest")))
        except StoreNotFoundError:
            continue
        except (StoreError, OSError, ValueError) as error:
            logger.warning("%s", error)
            return None
    return None


def _places(stores: Location, name: str) -> Iterator[Location]:
    """Yield where a store of a name may be; what is behind a URL cannot be listed everywhere."""
    usual = [stores / f"{name}.zarr", stores / name, stores / f"{name}.zarr.zip", stores / f"{name}.zip"]
    if not isinstance(stores, Path):
        yield from usual
    elif stores.is_dir():
        others = [path for path in sorted(stores.iterdir()) if store_name(path) == name]  # links of other names
        yield from (place for path in (*usual, *others) if is_store(place := location(path)))


def _fingerprint(dataset: Path) -> str:
    try:
        return _text(datasets.read_metadata(dataset, ["fingerprint"]), "fingerprint")
    except (NpzError, OSError, ValueError):
        return ""


def _entry(file: str, recorded: Mapping[str, Any], plan: Mapping[str, Any], state: str, reason: str) -> DatasetEntry:
    rows, columns = recorded["shape"].tolist()
    target_layer, *_ = (*_integers(recorded, "target_layer"), None)
    return DatasetEntry(
        file=file,
        store=_text(recorded, "store"),
        strategy=_text(recorded, "strategy"),
        normalize=str(recorded["normalize"]),
        layers=_integers(recorded, "input_layers"),
        target_layer=target_layer,
        target_features=_integers(recorded, "target_feature"),
        rows=rows,
        columns=columns,
        split=plan.get("split", {}),
        state=state,
        fingerprint=_text(recorded, "fingerprint"),
        reason=reason,
    )


def _plan(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a dataset was to be, as `Plan.json` says it."""
    plan = json.loads(_text(recorded, "parameters", "{}"))
    if not isinstance(plan, dict) or not isinstance(split := plan.get("split", {}), dict):
        raise ValueError("meta_parameters: expected options by name")
    if split.keys() - {field.name for field in fields(SplitOptions)}:
        raise ValueError("meta_parameters: expected options of a split")
    if split:
        SplitOptions(**split)
    return plan


def _text(recorded: Mapping[str, Any], name: str, default: str = "") -> str:
    value = recorded.get(name, np.array(default))
    if value.dtype.kind != "U" or value.ndim:
        raise ValueError(f"meta_{name}: expected text, found {value.dtype} of shape {value.shape}")
    return str(value)


def _integers(recorded: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return layers or features; none where a strategy calls them by words."""
    values = np.ravel(recorded.get(name, []))
    if values.dtype.kind == "U":
        return ()
    if values.dtype.kind not in "iuf" or not (np.abs(values) < 2**53).all() or (values % 1 != 0).any():
        raise ValueError(f"meta_{name}: expected integers, found {values.dtype}")
    return tuple(map(int, values.tolist()))
