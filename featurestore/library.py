"""The datasets that there are, as their files describe themselves."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import datasets
from featurestore.errors import DatasetError, NpzError, StoreError, shown
from featurestore.plans import fingerprint, sentences_digest
from featurestore.reading import read_coord
from featurestore.store import is_store, read_root

logger = logging.getLogger(__name__)

_NAMES = [
    "store",
    "strategy",
    "parameters",
    "input_layers",
    "target_layer",
    "target_feature",
    "groups_digest",
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
        ``"current"``, ``"stale"`` (the store has other sentences now), or ``"unknown"`` (there is no such store). Only
        sentences are compared: not the files of groups, nor X and y with their checksums.
    fingerprint : str
        Identifies what it was made of.
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


def list_datasets(folder: str | os.PathLike[str], stores: str | os.PathLike[str] = "stores") -> list[DatasetEntry]:
    """List the datasets below a folder, by what their files say; X and y are not read.

    Parameters
    ----------
    folder : path-like
        Searched with all its folders. Other NPZ files are left out, with one warning.
    stores : path-like
        Folder of the stores, with which datasets are compared.

    Returns
    -------
    list of DatasetEntry
        In the order of their paths.

    Raises
    ------
    DatasetError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of datasets, found none; build some first")
    if not Path(stores).is_dir():
        logger.warning("%s: no such folder of stores, so no dataset can be compared with its store", stores)
    digests: dict[str, str | None] = {}
    entries, foreign = [], []
    for path in sorted(path for path in folder.rglob("*.npz") if path.is_file()):
        try:
            recorded = datasets.read_metadata(path, _NAMES)
            store = str(recorded.get("store", ""))
            if store not in digests:
                digests[store] = _digest(Path(stores), store)
            entries.append(_entry(str(path.relative_to(folder)), recorded, digests[store]))
        except (NpzError, ValueError, TypeError, LookupError, AttributeError) as error:
            foreign.append(f"{shown(path)} ({error})")
    if foreign:
        logger.warning("left out %d NPZ files that are no datasets, such as %s", len(foreign), foreign[0])
    return entries


def _digest(stores: Path, name: str) -> str | None:
    if Path(name).name != name or name == "..":
        return None
    try:
        store = stores / f"{name}.zarr" if is_store(stores / f"{name}.zarr") else stores / name
        root = read_root(store)
        indices, digests = (read_coord(store, root, coord) for coord in ("sentence", "source_digest"))
    except (StoreError, OSError):
        return None
    return sentences_digest(indices, digests)


def _entry(file: str, recorded: dict[str, Any], digest: str | None) -> DatasetEntry:
    parameters = str(recorded.get("parameters", "{}"))
    state = "unknown"
    if digest is not None and "fingerprint" in recorded:
        expected = fingerprint(parameters, digest, str(recorded.get("groups_digest", "")))
        state = "current" if expected == str(recorded["fingerprint"]) else "stale"
    rows, columns = recorded["shape"].tolist()
    target_layers = np.ravel(recorded.get("target_layer", [])).tolist()
    return DatasetEntry(
        file,
        str(recorded.get("store", "")),
        str(recorded.get("strategy", "")),
        str(recorded["normalize"]),
        tuple(map(int, np.ravel(recorded.get("input_layers", [])))),
        int(target_layers[0]) if target_layers else None,
        tuple(map(int, np.ravel(recorded.get("target_feature", [])))),
        rows,
        columns,
        dict(json.loads(parameters).get("split", {})),
        state,
        str(recorded.get("fingerprint", "")),
    )
