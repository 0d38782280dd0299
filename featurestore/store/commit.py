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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import filelock
import numpy as np

from featurestore import files
from featurestore.errors import StoreBusyError, StoreError, spelled
from featurestore.files import PARTIAL
from featurestore.paths import real_path
from featurestore.schema import (
    Extraction,
    Skipped,
)
from featurestore.store.batch import Batch, Block
from featurestore.store.layout import ROOT, file_index
from featurestore.store.root import encode, encode_root, new_root
from featurestore.store.snapshot import Snapshot, is_store
from featurestore.store.staging import Staged

logger = logging.getLogger(__name__)


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
            files.sync(parent.parent)
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
    durably : bool
        Flush to disk what is written.

    Attributes
    ----------
    snapshot : Snapshot
        The store as it is committed.
    """

    def __init__(self, path: Path, *, durably: bool = True) -> None:
        self.snapshot = Snapshot.read(path)
        self._new, self._durably = False, durably
        self._clean()
        self._write_array_metadata()

    @classmethod
    def create(cls, path: Path, extraction: Extraction, special_first: int) -> Writer:
        """Make an empty store.

        Raises
        ------
        StoreError
            If there is something else at `path`.
        """
        check_free(path)
        aside = path.with_name(path.name + PARTIAL)
        files.remove(aside)
        try:
            _write_empty(Snapshot(aside, new_root(extraction, special_first)), extraction)
            files.flush([aside, *aside.rglob("*")])
            aside.replace(path)
        finally:
            files.remove(aside)
        try:
            files.sync(path.parent)
            writer = cls(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        writer._new = True
        return writer

    @classmethod
    def aside(cls, path: Path, store: Snapshot) -> Writer:
        """Make an empty store of the same layout, to be adopted by the other one, which flushes it."""
        path.mkdir()
        files.replace(path / ROOT, encode_root(store.resized(0, 0).root), durably=False)
        return cls(path, durably=False)

    @property
    def n_sentences(self) -> int:
        """Committed sentences."""
        return self.snapshot.sizes["sentence"]

    @property
    def skipped(self) -> list[Skipped]:
        """Files that were left out, as committed."""
        return [Skipped(**entry) for entry in self.snapshot.attributes["skipped"]]

    @property
    def room(self) -> int:
        """How many sentences the next batch takes."""
        rows = self.snapshot.file_shape("fragment")[0]
        return rows - self.n_sentences % rows

    def append(self, batch: Sequence[Staged], expected: int) -> None:
        """Write and commit at most `room` sentences.

        On any error, what was committed before stays as it was. Until `finish` the store says that it is incomplete,
        and how many sentences it is to have.
        """
        self._write(Batch(self.snapshot, batch, self._aside), expected)

    def adopt(self, block: Snapshot, expected: int) -> None:
        """Commit the sentences of a store made `aside`, as `append`, where this one ends with a whole batch."""
        self._write(Block(self.snapshot, block, self._aside), expected)

    @property
    def _aside(self) -> Path:
        """Where a batch is written before it is moved into place."""
        return self.snapshot.path / f"batch{PARTIAL}"

    def _write(self, batch: Batch | Block, expected: int) -> None:
        path, aside = self.snapshot.path, self._aside
        batch.write()
        written = [file for file in aside.rglob("*") if file.is_file()]
        self._flush(written)
        folders = set()
        for source in written:
            target = path / source.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            folders.add(target.parent)
        self._flush(folders)
        shutil.rmtree(aside)
        self._commit(batch.snapshot.with_attributes(expected_sentences=expected))
        logger.debug("%s: committed %d of %d sentences", path, self.n_sentences, expected)

    def _flush(self, paths: Iterable[Path]) -> None:
        if self._durably:
            files.flush(paths)

    def finish(self, skipped: Sequence[Skipped], attributes: Mapping[str, str]) -> None:
        """Declare the store complete; record which files were left out instead of those recorded before, and more."""
        recorded = [asdict(entry) for entry in skipped]
        complete = self.snapshot.with_attributes(expected_sentences=None, skipped=recorded, **attributes)
        if complete.root != self.snapshot.root:
            self._commit(complete)
            folders = [complete.path / name for name in complete.arrays]
            files.flush([*(folder / ROOT for folder in folders), *folders])

    def discard(self) -> None:
        """Remove what is not committed; the whole store, if this writer made it and committed nothing."""
        self.snapshot = Snapshot.read(self.snapshot.path)  # a commit may have failed after it had replaced the root
        if self._new and not self.n_sentences:
            shutil.rmtree(self.snapshot.path)
        else:
            self._clean()

    def _clean(self) -> None:
        """Remove what no committed sentence needs: files half-written, and chunks beyond the committed shape."""
        path = self.snapshot.path
        for partial in [*path.glob(f"*{PARTIAL}"), *path.glob(f"*/*{PARTIAL}")]:
            files.remove(partial)
        n_tokens = self.snapshot.coord("n_tokens")
        for name, metadata in self.snapshot.arrays.items():
            dims, shape = metadata["dimension_names"], self.snapshot.file_shape(name)
            for index, file in _files(path / name, len(dims)):
                start = {dim: i * step for dim, i, step in zip(dims, index, shape, strict=True)}
                kept = n_tokens[start["sentence"] :][: shape[0]] if "sentence" in start else n_tokens
                is_beyond = "sentence" in start and len(kept) == 0
                if is_beyond or start.get("token", -1) >= kept.max(initial=0):
                    files.remove(file)

    def _commit(self, snapshot: Snapshot) -> None:
        files.replace(snapshot.path / ROOT, encode_root(snapshot.root), durably=self._durably)
        self.snapshot = snapshot
        self._write_array_metadata()

    def _write_array_metadata(self) -> None:
        """Write what plain Zarr readers use; if the power fails before `finish` flushes it, the next writer does it."""
        for name in self.snapshot.stale_metadata():
            folder = self.snapshot.path / name
            folder.mkdir(exist_ok=True)
            files.replace(folder / ROOT, encode(self.snapshot.arrays[name]), durably=False)


def check_free(path: Path) -> None:
    """Raise StoreError if no store can be made at `path`, because something is there, or it is inside of another."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path}: expected a feature store or nothing, found something else; choose another path")
    if outer := next((parent for parent in path.parents if is_store(parent)), None):
        raise StoreError(f"{path}: is inside the store {outer}; choose another path")


def _write_empty(snapshot: Snapshot, extraction: Extraction) -> None:
    """Write a store that has no sentences yet."""
    snapshot.path.mkdir(parents=True)
    labels = {
        "layer": extraction.layers,
        "sae_layer": extraction.sae_layers,
        "average_l0": extraction.average_l0s,
        "feature": range(extraction.features),
    }
    for name in labels.keys() & snapshot.arrays.keys():
        snapshot.open(name, writable=True)[:] = np.array(labels[name])
    for name, metadata in snapshot.arrays.items():
        (snapshot.path / name).mkdir(exist_ok=True)
        (snapshot.path / name / ROOT).write_bytes(encode(metadata))
    (snapshot.path / ROOT).write_bytes(encode_root(snapshot.root))


def _files(folder: Path, n_dims: int) -> list[tuple[tuple[int, ...], Path]]:
    """List an array's files by their places; files of others (.DS_Store, .nfs...) are none of ours."""
    entries = [(file_index(entry.name), entry) for entry in folder.iterdir()] if folder.is_dir() else []
    return [(index, entry) for index, entry in entries if index is not None and len(index) == n_dims]
