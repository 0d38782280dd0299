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
from featurestore.errors import DatasetError, NpzError, StoreError
from featurestore.plans import fingerprint, sentences_digest
from featurestore.reading import read_coord
from featurestore.store import read_root

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
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
        ``"current"``, ``"stale"`` (the store has other sentences now), or ``"unknown"`` (there is no such store).
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


def list_datasets(folder: str | os.PathLike[str], stores: str | os.PathLike[str] = "stores") -> list[Entry]:
    """List the datasets below a folder, by what their files say; X and y are not read.

    Parameters
    ----------
    folder : path-like
        Searched with all its folders. Other NPZ files are left out, with a warning.
    stores : path-like
        Folder of the stores, with which datasets are compared.

    Returns
    -------
    list of Entry
        In the order of their paths.

    Raises
    ------
    DatasetError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of datasets, found none; build some first")
    digests: dict[str, str | None] = {}
    entries = []
    for path in sorted(folder.rglob("*.npz")):
        try:
            recorded = datasets.read_metadata(path)
        except NpzError as error:
            logger.warning("left out: %s", error)
            continue
        store = str(recorded.get("store", ""))
        if store not in digests:
            digests[store] = _digest(Path(stores) / f"{store}.zarr")
        entries.append(_entry(str(path.relative_to(folder)), recorded, digests[store]))
    return entries


def _digest(store: Path) -> str | None:
    try:
        root = read_root(store)
        indices, digests = (read_coord(store, root, name) for name in ("sentence", "source_digest"))
    except StoreError:
        return None
    order = np.argsort(indices)
    return sentences_digest(indices[order], digests[order])


def _entry(file: str, recorded: dict[str, Any], digest: str | None) -> Entry:
    parameters = str(recorded.get("parameters", "{}"))
    state = "unknown"
    if digest is not None and "fingerprint" in recorded:
        expected = fingerprint(parameters, digest, str(recorded.get("groups_digest", "")))
        state = "current" if expected == str(recorded["fingerprint"]) else "stale"
    rows, columns = recorded["shape"].tolist()
    layer = recorded.get("target_layer")
    return Entry(
        file,
        str(recorded.get("store", "")),
        str(recorded.get("strategy", "")),
        str(recorded["norm_method"]),
        tuple(np.atleast_1d(recorded.get("input_layers", [])).tolist()),
        None if layer is None else int(np.ravel(layer)[0]),
        tuple(np.atleast_1d(recorded.get("target_feature", [])).tolist()),
        rows,
        columns,
        json.loads(parameters).get("split", {}),
        state,
        str(recorded.get("fingerprint", "")),
    )
