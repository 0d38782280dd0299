"""What there is now of what datasets are made of, compared with what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.datasets import dataset as datasets
from featurestore.datasets import journal
from featurestore.datasets.fingerprints import fingerprint, sentences_digest, stores_digest
from featurestore.datasets.journal import File, located
from featurestore.errors import NpzError, StoreError, StoreNotFoundError, shown
from featurestore.store.location import Location, location
from featurestore.store.snapshot import Snapshot, is_store, store_name
from featurestore.strategies import list_strategies

logger = logging.getLogger(__name__)

_FURTHER = ("parameters", "groups_digest", "split_version", "labels_digest")
"""What goes into a fingerprint besides sentences and code."""


class Present:
    """What there is now of what datasets are made of; each thing is looked at once."""

    def __init__(self, stores: Location) -> None:
        self._sentences = cache(partial(_sentences, stores))
        self._content = cache(journal.content_digest)
        self._files = cache(journal.read)
        self._fingerprint = cache(_fingerprint)
        self._strategies = list_strategies()

    def compared(self, path: Path, recorded: Mapping[str, Any]) -> tuple[str, str]:
        """Return the state of a dataset and the reason, as far as its statistics don't matter."""
        store, name, made_of = (recorded_text(recorded, key) for key in ("store", "strategy", "fingerprint"))
        sentences, code = self._digest(store, recorded), recorded_text(recorded, "strategy_code")
        now = self._strategies[name].code if name in self._strategies else code
        reasons = list(self._changed(path, made_of))
        if now != code:
            reasons.insert(0, f"{name} has other code")
        if sentences not in (None, recorded_text(recorded, "store_digest", sentences or "")):
            reasons.insert(0, "the store has other sentences")
        if not made_of or (sentences is None and not reasons):
            return "unknown", "no such store" if made_of else "no fingerprint"
        plan, groups, version, labels = (recorded_text(recorded, key) for key in _FURTHER)
        expected = fingerprint(plan, sentences or "", groups, now, version, labels)
        if not reasons and expected != made_of:
            reasons = ["the fingerprint is another"]
        if not reasons and code and name not in self._strategies:
            return "unknown", f"the code of {name} is not known here; name its plugin"
        if not reasons and labels and not any(file.kind == "labels" for file in self._used(path, made_of)):
            return "unknown", "where the file of its labels is, is not noted beside it"
        return "stale" if reasons else "current", "; ".join(reasons)

    def _digest(self, store: str, recorded: Mapping[str, Any]) -> str | None:
        """Return what identifies the sentences of a store, or of several together, or None where one is gone."""
        if "stores" not in recorded:
            return self._sentences(store)
        of_each = {name: self._sentences(name) for name in map(str, recorded["stores"])}
        known = {name: digest for name, digest in of_each.items() if digest is not None}
        return stores_digest(known) if known.keys() == of_each.keys() else None

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


def recorded_text(recorded: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a text of a dataset's metadata.

    Raises
    ------
    ValueError
        If it is something else.
    """
    value = recorded.get(name, np.array(default))
    if value.dtype.kind != "U" or value.ndim:
        raise ValueError(f"meta_{name}: expected text, found {value.dtype} of shape {value.shape}")
    return str(value)


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
        return recorded_text(datasets.read_metadata(dataset, ["fingerprint"]), "fingerprint")
    except (NpzError, OSError, ValueError):
        return ""
