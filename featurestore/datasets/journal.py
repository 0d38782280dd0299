"""The files that datasets depend on besides their stores, a line for each dataset in a journal beside it.

Datasets hold no paths, so that they are the same bytes everywhere; here is where they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "files.jsonl"

_MAX_BYTES = 1 << 30
"""Of files that are read whole; those that are meant are tables and journals."""

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""Name of a dataset's file, and its fingerprint."""


@dataclass(frozen=True)
class File:
    """A file that a dataset depends on.

    Attributes
    ----------
    kind : str
        ``"groups"``, ``"labels"``, ``"ranking"`` or ``"statistics"``.
    path : str
        Absolute, or relative to the working folder; of what was read from a journal, to the journal's folder.
    identity : str
        SHA-256 of its content; of a dataset whose statistics are used, the fingerprint.
    """

    kind: str
    path: str
    identity: str


def tables(
    group_by: str | None = None, ranking: str | os.PathLike[str] | None = None, labels_from: str | None = None
) -> list[File]:
    """Return the files of groups, labels and a ranking as they are now; what is no file is for its reader to refuse."""
    columns = {"groups": group_by, "labels": labels_from}
    paths = {kind: (column or "").rpartition(":")[0] for kind, column in columns.items()}
    paths["ranking"] = os.fspath(ranking or "")
    return [File(kind, path, digest) for kind, path in paths.items() if path and (digest := content_digest(path))]


def statistics_file(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> File:
    """Return the file of a dataset whose statistics are used."""
    return File("statistics", os.fspath(path), str(metadata.get("fingerprint", "")))


def content_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hex; nothing if it cannot be read, or is no file."""
    return hashlib.sha256(content).hexdigest() if (content := _content(path)) is not None else ""


class Journal:
    """The journals of folders of datasets, to be continued; each is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[Key, list[File]]] = {}

    def add(self, dataset: Path, fingerprint: str, files: Iterable[File]) -> None:
        """Note what a dataset depends on, unless that is the last word on it already; a failure is only warned of."""
        key, files = (dataset.name, fingerprint), [_relative(file, dataset.parent) for file in files]
        known = self._of(dataset.parent)
        if known.get(key, []) == files:
            return
        known[key] = files
        used = {file.kind: [file.path, file.identity] for file in files}
        line = json.dumps({"dataset": dataset.name, "fingerprint": fingerprint, "files": used})
        try:
            _append(path := dataset.parent / NAME, line)
        except OSError as error:
            found = f"cannot be written ({error.strerror}), so no listing will notice when its files change"
            logger.warning("%s: %s: %s", path, dataset.name, found)

    def has_same(self, kind: str, dataset: Path, fingerprint: str, files: Iterable[File]) -> bool:
        """Tell whether a dataset has its groups, or labels, from the same file, as far as it is noted."""
        then = self._of(dataset.parent).get((dataset.name, fingerprint), [])
        now = [_relative(file, dataset.parent) for file in files if file.kind == kind]
        return any(file.path == other.path for file in now for other in then if other.kind == kind)

    def _of(self, folder: Path) -> dict[Key, list[File]]:
        if folder not in self._known:
            self._known[folder] = read(folder)
        return self._known[folder]


def read(folder: Path) -> dict[Key, list[File]]:
    """Return what the datasets of a folder depend on, by their journal; what is no line of one is passed over."""
    found = {}
    for line in (_content(folder / NAME) or b"").splitlines():
        try:
            match json.loads(line):
                case {"dataset": str(name), "fingerprint": str(fingerprint), "files": dict(files)}:
                    found[name, fingerprint] = [_file(kind, *value) for kind, value in files.items()]
        except (ValueError, TypeError, RecursionError):
            continue
    return found


def located(file: File, folder: Path) -> Path:
    """Return where a file of a folder's journal is."""
    return folder.resolve() / file.path


def _file(kind: str, path: Any, identity: Any) -> File:
    if not isinstance(path, str) or not isinstance(identity, str) or "\0" in path:
        raise TypeError("expected a path and what identifies the content")
    return File(kind, path, identity)


def _relative(file: File, folder: Path) -> File:
    """Let a relative path count from the journal, so that a study can be moved; an absolute one stays."""
    path = Path(file.path).expanduser()
    if not path.is_absolute():
        path = (path.parent.resolve() / path.name).relative_to(folder.resolve(), walk_up=True)
    return File(file.kind, str(path), file.identity)


def _append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)  # which does not wait for a FIFO
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, f"{'\n' * torn}{line}\n".encode())
    finally:
        os.close(fd)


def _content(path: str | os.PathLike[str]) -> bytes | None:
    try:
        path = Path(path).expanduser()
        return path.read_bytes() if path.is_file() and path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError, RuntimeError):  # the last: no home folder
        return None
