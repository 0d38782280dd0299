"""How a store changes: one writer, whole batches, and a single commit point.

A batch is written through handles on the shape that the arrays are to have; nobody sees it, because the committed
shape ends before it. Its files and folders are flushed to disk, then the root ``zarr.json`` is replaced, and only then
the arrays' own metadata, which plain Zarr readers use. What a killed writer left behind is removed by the next.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import zarr

from featurestore.errors import StoreBusyError, StoreError
from featurestore.schema import (
    ACTIVATIONS,
    ARRAY_DIMS,
    EMBEDDINGS,
    HIDDEN_STATES,
    Extraction,
    Sentence,
    Skipped,
)
from featurestore.store import (
    ROOT,
    SENTENCE_COORDS,
    Root,
    array_metadata,
    chunk_shape,
    dim_sizes,
    new_root,
    open_array,
    read_coord,
    read_root,
    resized,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTIAL = ".partial"
"""Suffix of files being written, here and in Zarr's LocalStore."""

MAX_LANES = 4
"""Threads that write shards; each holds one dense shard of activations, at most 128 MiB."""

_ZARR_CONFIG = {
    # Not per-chunk coroutines: a third of the writing time, measured on two cores.
    "codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline",
    # Every chunk written holds a sentence, so looking for empty ones is a wasted pass.
    "array.write_empty_chunks": True,
}

NonZeros = tuple["NDArray[np.intp]", "NDArray[np.floating]"]


@dataclass(frozen=True)
class Staged:
    """A sentence ready to be written, small enough to hold a batch of them.

    Attributes
    ----------
    coords : dict
        Its value of each coordinate in `SENTENCE_COORDS`.
    fragments : tuple of str
        In reading order.
    dense : dict of ndarray
        `embeddings` (T, H) and `hidden_states` (T, L, H), final token first.
    nonzero : list of (positions, values)
        For each token, final one first: the non-zero activations, and where they are in a flat (L, F) array.
    """

    coords: dict[str, int | str]
    fragments: tuple[str, ...]
    dense: dict[str, NDArray[np.floating]]
    nonzero: list[NonZeros]


def stage(sentence: Sentence) -> Staged:
    """Turn tokens round and keep the non-zero activations only."""
    activations = np.swapaxes(sentence.activations, 0, 1)[::-1]
    nonzero = [_nonzero(token) for token in activations]
    dense = {
        EMBEDDINGS: sentence.embeddings[::-1],
        HIDDEN_STATES: np.swapaxes(sentence.hidden_states, 0, 1)[::-1],
    }
    everything = [*dense.values(), *(values for _, values in nonzero)]
    coords: dict[str, int | str] = {
        "sentence": sentence.file.sentence_index,
        "label": sentence.label,
        "n_tokens": sentence.file.n_tokens,
        "n_nonfinite": sum(array.size - int(np.count_nonzero(np.isfinite(array))) for array in everything),
        "text": sentence.text,
        "source": sentence.file.path.name,
        "source_digest": sentence.file.digest,
    }
    return Staged(coords, sentence.fragments, dense, nonzero)


def _nonzero(token: NDArray[np.floating]) -> NonZeros:
    flat = token.ravel()
    # Bits rather than values: -0.0 is kept, and comparing integers is faster.
    positions = np.flatnonzero(flat.view(f"u{flat.itemsize}") != 0)
    return positions, flat[positions]


@contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock beside a store, which one process at a time can.

    Raises
    ------
    StoreBusyError
        If another process holds it and `wait` is false.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f"{path.name}.lock")
    lock = filelock.FileLock(lock_path, fallback_to_soft=False, preserve_lock_file=True, on_acquired=_sign)
    holder = "another process"
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        with suppress(FileNotFoundError):
            holder = lock_path.read_text(errors="replace")
        raise StoreBusyError(f"{path}: is being written by {holder}; try again later, or use --wait") from None
    try:
        yield
    finally:
        lock_path.unlink(missing_ok=True)  # whoever waits notices, and locks a new file
        lock.release()
        for parent in missing:
            with suppress(OSError):  # it holds something now
                parent.rmdir()


def _sign(fd: int) -> None:
    """Write into the lock file who holds it."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


class Writer:
    """Appends batches to a store; only to be used while `exclusive` is held.

    Parameters
    ----------
    path : Path
        A store.

    Attributes
    ----------
    root : dict
        The committed metadata.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = read_root(path)
        self.sweep()
        self._write_array_metadata()

    @classmethod
    def create(cls, path: Path, extraction: Extraction, max_tokens: int) -> Writer:
        """Make an empty store.

        Raises
        ------
        StoreError
            If there is something else at `path`.
        """
        if path.exists() and (not path.is_dir() or any(not _is_ours(entry) for entry in path.iterdir())):
            raise StoreError(f"{path}: expected a feature store or nothing, found something else; choose another path")
        root = new_root(extraction, max_tokens)
        path.mkdir(parents=True, exist_ok=True)
        for name, values in {
            "layer": extraction.layers,
            "average_l0": extraction.average_l0s,
            "feature": range(extraction.features),
        }.items():
            open_array(path, root, name, writable=True)[:] = np.array(values)
        _flush(path)
        _replace(path / ROOT, _json(root))
        _fsync(path.parent)
        return cls(path)

    @property
    def n_sentences(self) -> int:
        """Committed sentences."""
        return dim_sizes(self.root)["sentence"]

    @property
    def room(self) -> int:
        """How many sentences the next batch takes: what fills the last shard, or a whole one."""
        rows = chunk_shape(self.root, ACTIVATIONS)[0]
        return rows - self.n_sentences % rows

    def coord(self, name: str) -> NDArray[Any]:
        """Committed values of a coordinate along `sentence`."""
        return read_coord(self.path, self.root, name)

    def append(self, batch: Sequence[Staged]) -> None:
        """Write and commit at most `room` sentences.

        On any error, what was committed before stays as it was.
        """
        with zarr.config.set(_ZARR_CONFIG):
            _Append(self.path, self.root, batch).write()
        tokens = max(dim_sizes(self.root)["token"], *(len(staged.nonzero) for staged in batch))
        self._commit(resized(self.root, self.n_sentences + len(batch), tokens))

    def record_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Record which files were left out, instead of those recorded before."""
        entries = [asdict(entry) for entry in skipped]
        if entries != self.root["attributes"]["skipped"]:
            self._commit(self.root | {"attributes": self.root["attributes"] | {"skipped": entries}})

    def discard(self) -> None:
        """Remove what is not committed; with no sentence committed, the whole store."""
        if self.n_sentences:
            self.sweep()
        else:
            shutil.rmtree(self.path)

    def sweep(self) -> None:
        """Remove what no committed sentence needs: files half-written, and shards beyond the committed shape."""
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink()
        n_tokens = self.coord("n_tokens")
        for name, metadata in array_metadata(self.root).items():
            if metadata["dimension_names"][0] != "sentence":
                continue
            rows = chunk_shape(self.root, name)[0]
            for entry in _entries(self.path / name / "c"):
                kept = n_tokens[int(entry.name) * rows :][:rows]
                if len(kept) == 0:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                elif name in ARRAY_DIMS and int(entry.name) == self.n_sentences // rows:
                    for token in _entries(entry):
                        if int(token.name) >= kept.max():
                            shutil.rmtree(token)

    def _commit(self, root: Root) -> None:
        _replace(self.path / ROOT, _json(root))
        self.root = root
        self._write_array_metadata()

    def _write_array_metadata(self) -> None:
        for name, metadata in array_metadata(self.root).items():
            path, data = self.path / name / ROOT, _json(metadata)
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(exist_ok=True)
                _replace(path, data)


class _Append:
    """One batch on its way into the arrays, from the first row of the shard that it continues."""

    def __init__(self, path: Path, root: Root, batch: Sequence[Staged]) -> None:
        self.path, self.root, self.batch = path, root, batch
        sizes = dim_sizes(root)
        self.old = sizes["sentence"]
        self.new = self.old + len(batch)
        self.old_tokens = sizes["token"]
        self.tokens = max(self.old_tokens, *(len(staged.nonzero) for staged in batch))
        self.future = resized(root, self.new, self.tokens)
        self.rows, _, self.shard_layers, _ = chunk_shape(root, ACTIVATIONS)
        self.first = self.old - self.old % self.rows

    def write(self) -> None:
        for name in SENTENCE_COORDS:
            dtype = np.dtypes.StringDType() if SENTENCE_COORDS[name] == "string" else SENTENCE_COORDS[name]
            self._write_coord(name, np.array([staged.coords[name] for staged in self.batch], dtype))
        fragments = np.full((len(self.batch), self.tokens), "", dtype=np.dtypes.StringDType())
        for row, staged in enumerate(self.batch):
            fragments[row, : len(staged.fragments)] = staged.fragments[::-1]
        self._write_coord("fragment", fragments)
        if self.tokens > self.old_tokens:
            open_array(self.path, self.future, "token", writable=True)[:] = -1 - np.arange(self.tokens)

        kept = read_coord(self.path, self.root, "n_tokens")[self.first :]
        longest = max(*kept, *(len(staged.nonzero) for staged in self.batch), 0)
        lanes = min(MAX_LANES, os.cpu_count() or 1)
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(self._write_tokens, [range(lane, longest, lanes) for lane in range(lanes)]))
        for name, metadata in array_metadata(self.root).items():
            if metadata["dimension_names"][0] == "sentence":
                rows = chunk_shape(self.root, name)[0]
                _flush(*(self.path / name / "c" / str(i) for i in range(self.old // rows, -(-self.new // rows))))
        _flush(self.path / "token")
        _flush_folders(self.path)

    def _write_coord(self, name: str, values: NDArray[Any]) -> None:
        """Rewrite the last chunk whole, so that nothing of an abandoned batch survives in it."""
        rows = chunk_shape(self.root, name)[0]
        first = self.old - self.old % rows
        whole = np.zeros((self.new - first, *values.shape[1:]), values.dtype)
        if first < self.old:
            kept = np.asarray(open_array(self.path, self.root, name)[first : self.old])
            whole[tuple(map(slice, kept.shape))] = kept
        whole[self.old - first :] = values
        open_array(self.path, self.future, name, writable=True)[first : self.new] = whole

    def _write_tokens(self, tokens: Sequence[int]) -> None:
        """Write the shards of some tokens, in ascending order, of all three arrays."""
        arrays = {name: self._handles(name) for name in ARRAY_DIMS}
        _, _, layers, features = arrays[ACTIVATIONS][1].shape
        height = self.new - self.first
        kept = self.old - self.first
        buffer = np.zeros((height, self.shard_layers * features), arrays[ACTIVATIONS][1].dtype)
        for token in tokens:
            for name in (EMBEDDINGS, HIDDEN_STATES):
                old, new = arrays[name]
                slab = np.full((height, *new.shape[2:]), np.nan, new.dtype)
                self._keep(slab, old, token, ...)
                for row, staged in enumerate(self.batch, kept):
                    if token < len(staged.dense[name]):
                        slab[row] = staged.dense[name][token]
                new[self.first : self.new, token] = slab
            for start in range(0, layers, self.shard_layers):
                group = slice(start, min(start + self.shard_layers, layers))
                filled = self._fill(buffer, token, group.start * features, group.stop * features)
                shard = buffer.reshape(height, self.shard_layers, features)[:, : group.stop - group.start]
                old, new = arrays[ACTIVATIONS]
                self._keep(shard, old, token, group)
                new[self.first : self.new, token, group] = shard
                for row, positions in filled:
                    buffer[row, positions] = 0

    def _fill(self, buffer: NDArray[Any], token: int, start: int, stop: int) -> list[tuple[int, NDArray[np.intp]]]:
        """Put the batch's non-zero activations into a buffer of zeros; rows without this token become NaN for good."""
        filled = []
        for row, staged in enumerate(self.batch, self.old - self.first):
            if token < len(staged.nonzero):
                positions, values = staged.nonzero[token]
                inside = slice(*np.searchsorted(positions, (start, stop)))
                buffer[row, positions[inside] - start] = values[inside]
                filled.append((row, positions[inside] - start))
            else:
                buffer[row] = np.nan
        return filled

    def _keep(self, slab: NDArray[Any], old: zarr.Array[Any], token: int, layers: Any) -> None:
        """Put the committed sentences of the shard back where they were."""
        if self.first < self.old:
            kept = slab[: self.old - self.first]
            kept[...] = old[self.first : self.old, token, layers] if token < self.old_tokens else np.nan

    def _handles(self, name: str) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
        return open_array(self.path, self.root, name), open_array(self.path, self.future, name, writable=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_ours(entry: Path) -> bool:
    """Whether an ingest that was killed before its first commit may have left this in the store's folder."""
    names = {*ARRAY_DIMS, *SENTENCE_COORDS, "fragment", "token", "layer", "average_l0", "feature"}
    return entry.name in names or entry.name.endswith(PARTIAL)


def _json(value: Root) -> bytes:
    return json.dumps(value, indent=2).encode()


def _replace(path: Path, data: bytes) -> None:
    """Replace a file at once and for good."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _fsync(path.parent)


def _flush(*paths: Path) -> None:
    """Flush files and folders, with all below them, to disk."""
    below = [entry for path in paths for entry in (path, *path.rglob("*"))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_fsync, below))


def _flush_folders(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir():
            _fsync(entry)
            _fsync(entry / "c")
    _fsync(path)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
