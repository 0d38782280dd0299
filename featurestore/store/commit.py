"""How a store changes: one writer, whole batches, and a single commit point.

A batch is written aside and flushed to disk; then its files are moved into place, which nobody sees, because the
committed shape ends before them, and because a shard that was half full keeps its sentences. Their folders are flushed,
then the root ``zarr.json`` is replaced, and only then the arrays' own metadata, which plain Zarr readers use. What a
killed writer left behind is removed by the next.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from featurestore.errors import StoreBusyError, StoreError, spelled
from featurestore.paths import real_path
from featurestore.schema import (
    ACTIVATIONS,
    Extraction,
    Skipped,
)
from featurestore.store.batch import Batch, Staged
from featurestore.store.layout import Root
from featurestore.store.reading import open_array, read_coord
from featurestore.store.snapshot import (
    ROOT,
    array_metadata,
    chunk_shape,
    dim_sizes,
    encode,
    encode_root,
    is_store,
    new_root,
    read_root,
    stale_metadata,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of files being written, here and in Zarr's LocalStore."""


@contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[Path]:
    """Hold the lock beside a store, which one process at a time can, and yield where the store really is.

    Whatever path leads to it, through symbolic links of itself or of a folder above: the lock is the same.

    Raises
    ------
    StoreBusyError
        If another process holds it and `wait` is false.
    """
    path = real_path(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in missing:
            _fsync(parent.parent)
        with _locked(path, wait):
            yield path
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds something now
                parent.rmdir()


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    lock_path = path.with_name(f"{path.name}.lock")
    lock = filelock.FileLock(lock_path, fallback_to_soft=False, preserve_lock_file=True, on_acquired=_sign)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = "another process"
        with suppress(FileNotFoundError):
            holder = lock_path.read_text(errors="replace") or holder
        if not wait:
            raise StoreBusyError(
                f"{path}: is being written by {holder}; try again later, or use {spelled('wait', True)}"
            ) from None
        logger.info("waiting for %s, who writes %s", holder, path)
        lock.acquire()
    try:
        yield
    finally:
        try:
            lock_path.unlink(missing_ok=True)  # whoever waits notices, and locks a new file
        finally:
            lock.release()


def _sign(fd: int) -> None:
    """Write into the lock file who holds it."""
    with suppress(OSError):  # only the message to others suffers
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


class Writer:
    """Appends batches to a store; only to be used while `exclusive` is held.

    Parameters
    ----------
    path : Path
        A store, as `exclusive` yields it.

    Attributes
    ----------
    root : dict
        The committed metadata.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = read_root(path)
        self._new = False
        self.sweep()
        self._write_array_metadata()

    @classmethod
    def create(cls, path: Path, extraction: Extraction) -> Writer:
        """Make an empty store.

        Raises
        ------
        StoreError
            If there is something else at `path`.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path}: expected a feature store or nothing, found something else; choose another path")
        if outer := next((parent for parent in path.parents if is_store(parent)), None):
            raise StoreError(f"{path}: is inside the store {outer}; choose another path")
        root = new_root(extraction)
        aside = path.with_name(path.name + PARTIAL)
        _remove(aside)
        try:
            aside.mkdir(parents=True)
            for name, values in {
                "layer": extraction.layers,
                "average_l0": extraction.average_l0s,
                "feature": range(extraction.features),
            }.items():
                open_array(aside, root, name, writable=True)[:] = np.array(values)
            for name, metadata in array_metadata(root).items():
                (aside / name).mkdir(exist_ok=True)
                (aside / name / ROOT).write_bytes(encode(metadata))
            (aside / ROOT).write_bytes(encode_root(root))
            _flush(aside)
            aside.replace(path)
        finally:
            _remove(aside)
        try:
            _fsync(path.parent)
            writer = cls(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        writer._new = True
        return writer

    @property
    def n_sentences(self) -> int:
        """Committed sentences."""
        return dim_sizes(self.root)["sentence"]

    @property
    def skipped(self) -> list[Skipped]:
        """Files that were left out, as committed."""
        return [Skipped(**entry) for entry in self.root["attributes"]["skipped"]]

    @property
    def room(self) -> int:
        """How many sentences the next batch takes: what fills the last shard, or a whole one."""
        rows = chunk_shape(self.root, ACTIVATIONS)[0]
        return rows - self.n_sentences % rows

    def coord(self, name: str) -> NDArray[Any]:
        """Committed values of a coordinate along `sentence`."""
        return read_coord(self.path, self.root, name)

    def append(self, batch: Sequence[Staged], expected: int) -> None:
        """Write and commit at most `room` sentences.

        On any error, what was committed before stays as it was. Until `finish` the store says that it is incomplete,
        and how many sentences it is to have.
        """
        aside = self.path / f"batch{PARTIAL}"
        appended = Batch(self.path, self.root, batch, aside)
        appended.write()
        _flush(aside)
        folders = {self.path}
        for source in aside.rglob("*"):
            if source.is_file():
                target = self.path / source.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
                folders |= {parent for parent in target.parents if parent.is_relative_to(self.path)}
        for folder in folders:
            _fsync(folder)
        shutil.rmtree(aside)
        self._commit(_with_attributes(appended.root, expected_sentences=expected))
        logger.debug("%s: committed %d of %d sentences", self.path, self.n_sentences, expected)

    def finish(self, skipped: Sequence[Skipped]) -> None:
        """Declare the store complete, and record which files were left out, instead of those recorded before."""
        root = _with_attributes(self.root, expected_sentences=None, skipped=[asdict(entry) for entry in skipped])
        if root != self.root:
            self._commit(root)

    def discard(self) -> None:
        """Remove what is not committed; the whole store, if this writer made it and committed nothing."""
        self.root = read_root(self.path)  # a commit may have failed after it had replaced the root
        if self._new and not self.n_sentences:
            shutil.rmtree(self.path)
        else:
            self.sweep()

    def sweep(self) -> None:
        """Remove what no committed sentence needs: files half-written, and chunks beyond the committed shape."""
        for partial in [*self.path.glob(f"*{PARTIAL}"), *self.path.glob(f"*/*{PARTIAL}")]:
            _remove(partial)
        n_tokens = self.coord("n_tokens")
        for name, metadata in array_metadata(self.root).items():
            if metadata["dimension_names"][0] != "sentence":
                continue
            rows, *others = chunk_shape(self.root, name)
            for row, entry in _chunks(self.path / name / "c"):
                kept = n_tokens[row * rows :][:rows]
                if len(kept) == 0:
                    _remove(entry)
                elif metadata["dimension_names"][1:2] == ["token"] and row == self.n_sentences // rows:
                    for token, below in _chunks(entry):
                        if token * others[0] >= kept.max():
                            _remove(below)

    def _commit(self, root: Root) -> None:
        _replace(self.path / ROOT, encode_root(root))
        self.root = root
        self._write_array_metadata()

    def _write_array_metadata(self) -> None:
        for name in stale_metadata(self.path, self.root):
            (self.path / name).mkdir(exist_ok=True)
            _replace(self.path / name / ROOT, encode(array_metadata(self.root)[name]))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _with_attributes(root: Root, **attributes: Any) -> Root:
    return root | {"attributes": root["attributes"] | attributes}


def _chunks(folder: Path) -> list[tuple[int, Path]]:
    """List a folder's chunks by their number; files of others (.DS_Store, .nfs...) are none of ours."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [(int(entry.name), entry) for entry in entries if entry.name.isdecimal()]


def _replace(path: Path, data: bytes) -> None:
    """Replace a file at once and for good."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _fsync(path.parent)


def _flush(path: Path) -> None:
    """Flush a folder with all below it to disk."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_fsync, [path, *path.rglob("*")]))


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
