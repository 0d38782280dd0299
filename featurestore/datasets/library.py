"""The datasets that there are, as their files describe themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.datasets import dataset as datasets
from featurestore.datasets.staleness import Present, recorded_text
from featurestore.errors import DatasetError, FeatureStoreError, ParameterError, brief, shown, spelled
from featurestore.paths import PathLike, as_path
from featurestore.questions.options import OPTIONS
from featurestore.schema import CONTROLS, STORES
from featurestore.splits.options import SplitOptions
from featurestore.store.location import StorageOptions, location

logger = logging.getLogger(__name__)

_NAMES = [
    "store",
    "stores",
    "strategy",
    "parameters",
    "input_layers",
    "target_layer",
    "target_feature",
    "store_digest",
    "strategy_code",
    "groups_digest",
    "split_version",
    "labels_digest",
    "input_tokens",
    "control",
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
        Of X; of sequences, how many, and how wide their tokens are.
    split : dict
        Options of the split; empty without one.
    tokens : str
        Which tokens X is of; ``"final"`` unless the dataset says otherwise.
    choices : dict
        Further options that compose with every strategy, such as ``{"combine": "difference"}``, as they were given.
    control : str
        Which control it is (see `featurestore.schema.CONTROLS`); empty for the real dataset.
    state : str
        ``"current"``; ``"stale"``, where the store has other sentences now, a file of groups, of labels, of a ranking
        or of statistics is another or gone, or a registered strategy has other code; or ``"unknown"`` (there is no
        such store). X and y are not compared with their checksums.
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
    tokens: str
    choices: dict[str, Any]
    control: str
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
    control: str | None = None,
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
    control : str, optional
        Only those of this control (see `featurestore.schema.CONTROLS`); of ``"none"``, the real ones.
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
    ParameterError
        If there is no such control.
    """
    names = (*CONTROLS, "none")
    if control not in (None, *names):
        raise ParameterError(f"{spelled('control')}: expected one of {', '.join(names)}, found {brief(control)}")
    folder, found = as_path(folder), location(stores, storage_options)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of datasets, found none; build some first")
    if isinstance(found, Path) and not found.is_dir():
        logger.warning("%s: no such folder of stores, so no dataset can be compared with its store", found)
    return [
        entry
        for entry in _all_entries(folder, Present(found))
        if strategy in (None, entry.strategy)
        and (layer is None or layer in (*entry.layers, entry.target_layer))
        and (feature is None or feature in entry.target_features)
        and (stale is None or entry.state == ("stale" if stale else "current"))
        and (control is None or control == (entry.control or "none"))
    ]


def _all_entries(folder: Path, present: Present) -> list[DatasetEntry]:
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


def _entry(file: str, recorded: Mapping[str, Any], plan: Mapping[str, Any], state: str, reason: str) -> DatasetEntry:
    rows, *_, columns = recorded["shape"].tolist()
    target_layer, *_ = (*_integers(recorded, "target_layer"), None)
    return DatasetEntry(
        file=file,
        store=recorded_text(recorded, "store"),
        strategy=recorded_text(recorded, "strategy"),
        normalize=str(recorded["normalize"]),
        layers=_integers(recorded, "input_layers"),
        target_layer=target_layer,
        target_features=_integers(recorded, "target_feature"),
        rows=rows,
        columns=columns,
        split=plan.get("split", {}),
        tokens="all" if len(recorded["shape"]) > 2 else recorded_text(recorded, "input_tokens", "final"),
        choices={name: plan[name] for name in OPTIONS if name in plan and name not in ("tokens", "control")},
        control=recorded_text(recorded, "control"),
        state=state,
        fingerprint=recorded_text(recorded, "fingerprint"),
        reason=reason,
    )


def _plan(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a dataset was to be, as `Plan.json` says it."""
    plan = json.loads(recorded_text(recorded, "parameters", "{}"))
    if not isinstance(plan, dict) or not isinstance(split := plan.get("split", {}), dict):
        raise ValueError("meta_parameters: expected options by name")
    if split.keys() - {field.name for field in fields(SplitOptions)}:
        raise ValueError("meta_parameters: expected options of a split")
    if split:
        SplitOptions(**split)
    return plan


def _integers(recorded: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return layers or features; none where a strategy calls them by words."""
    values = np.ravel(recorded.get(name, []))
    if values.dtype.kind == "U":
        return ()
    if values.dtype.kind not in "iuf" or not (np.abs(values) < 2**53).all() or (values % 1 != 0).any():
        raise ValueError(f"meta_{name}: expected integers, found {values.dtype}")
    return tuple(map(int, values.tolist()))
