"""What is known of sentence NPZs without opening them: a cache beside the store, which may be deleted at any time."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from featurestore import files
from featurestore.npz import Archive
from featurestore.paths import real_path

_SETTLED_NS = 2_000_000_000
"""A file that was changed so recently may change again within the same time stamp, so it is not remembered."""

Stamp = tuple[int, ...]
"""Size, inode, and times of the last change of content and of anything else, in nanoseconds."""


class Seen:
    """Digests of files, each calculated again only where the file is not the one that was seen.

    Parameters
    ----------
    store : Path
        The store that they are compared with.
    """

    def __init__(self, store: Path) -> None:
        store = real_path(store)
        self._path = store.with_name(f".{store.name}.seen")
        self._before = _read(self._path)
        self._now: dict[str, tuple[Stamp, str]] = {}
        self._settled = time.time_ns() - _SETTLED_NS

    def digest(self, path: Path) -> str:
        """Return the digest of a file's content; NpzError if it is no archive."""
        stamp = _stamp(path)
        known = self._before.get(path.name)
        if known is None or known[0] != stamp:
            with Archive(path) as archive:
                known = (stamp, archive.digest)
        self._now[path.name] = known
        return known[1]

    def save(self) -> None:
        """Remember what was seen; a cache that cannot be written is done without."""
        kept = {name: known for name, known in self._now.items() if max(known[0][2:]) < self._settled}
        if kept != self._before:
            with suppress(OSError):
                files.replace(self._path, json.dumps(kept).encode(), durably=False)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:  # opening it says why
        return (0, 0, 0, 0)
    return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        told = json.loads(path.read_bytes()) if path.is_file() else {}
        return {str(name): ((*map(int, stamp),), str(digest)) for name, (stamp, digest) in told.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
