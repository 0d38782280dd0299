"""The file operations of an ingest, or a writer, one by one: to record them, or to fail at one; and what a store must
then hold."""

from __future__ import annotations

import builtins
import errno
import functools
import io
import math
import os
import shutil
import threading
from collections.abc import Buffer, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import dask
import numpy as np
import pytest
import zarr

import featurestore
from featurestore import files
from featurestore.store import batch, layout
from tests.sentences import sentence_arrays, write_sentence

Sentences = list[dict[str, np.ndarray[Any, Any]]]

OPTIONS: dict[str, Any] = {"layers": (0, 5), "hidden": 3, "features": 4}


def write_sentences(folder: Path, lengths: Sequence[int], first: int = 0) -> Sentences:
    """Write sentences of these lengths; return the arrays of each."""
    for index, tokens in enumerate(lengths, first):
        write_sentence(folder, index, tokens=tokens, **OPTIONS)
    return [sentence_arrays(index, tokens=tokens, **OPTIONS) for index, tokens in enumerate(lengths, first)]


@dataclass(frozen=True)
class Written:
    """What `write` did, by the names that an ingest has for it."""

    store: Path
    added: int
    present: int


def write(folder: Path, path: Path, *, wait: bool = False) -> Written:
    """Append to a store what it lacks of a folder's sentences, read by numpy alone."""
    npzs = []
    for file in sorted(folder.glob("sentence_*.npz")):
        with np.load(file) as npz:
            npzs.append({name: npz[name] for name in npz.files})
    sentences = {npz["sentence_index"].item(): npz for npz in npzs}
    shared: dict[str, Any] = {name: npzs[0][name].tolist() for name in ("layers", "average_l0s")}
    with featurestore.writer(path, wait=wait, **shared) as store:
        missing = store.missing(sentences)
        for index in missing:
            arrays = sentences[index]
            store.append(
                sentence_index=index,
                text=arrays["sentence"].item(),
                label=arrays["concept_strength_label"].item(),
                fragments=arrays["fragments"].tolist(),
                embeddings=arrays["embeddings"],
                hidden_states=arrays["hidden_states"],
                activations=arrays["activations"],
            )
    return Written(path, len(missing), len(npzs) - len(missing))


HOWS: dict[str, Callable[..., featurestore.Ingested | Written]] = {"ingest": featurestore.ingest, "writer": write}
"""Ways of a folder's sentences into a store, for which the same holds."""


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Make a folder for very many small files, in memory where there is room."""
    memory = "/dev/shm"
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    with TemporaryDirectory(dir=memory if roomy else None, prefix="featurestore-") as folder:
        yield Path(folder).resolve()


@contextmanager
def serial() -> Iterator[None]:
    """Batches of four sentences, written by one thread: the operations come in the same order every time.

    Nothing is really flushed, so that many runs are quick.
    """
    settings = {"async.concurrency": 1, "threading.max_workers": 1}
    with pytest.MonkeyPatch.context() as patch, zarr.config.set(settings), dask.config.set(scheduler="synchronous"):
        patch.setattr(layout, "ROWS", 4)
        patch.setattr(layout, "BATCH_ROWS", 4)
        patch.setattr(layout, "TOKENS", 1)
        patch.setattr(batch, "MAX_LANES", 1)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(files, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
        yield


def held(path: Path, sentences: Sentences, *, from_files: bool = True) -> int | None:
    """Check what a store holds, byte for byte; return how many sentences, or None where no store is.

    Those that are not `from_files` have no source.

    Raises
    ------
    AssertionError
        If it holds anything but the first of these sentences, all right.
    """
    try:
        ds = featurestore.open_store(path).compute()
    except featurestore.StoreError:
        if (path / layout.ROOT).is_file():
            raise
        return None
    n = ds.sizes["sentence"]
    assert n <= len(sentences)
    longest = max((len(arrays["fragments"]) for arrays in sentences[:n]), default=0)
    assert ds["token"].values.tolist() == list(range(-longest, 0))
    values = {name: variable.values for name, variable in ds.variables.items()}
    for name, source in {"layer": "layers", "average_l0": "average_l0s"}.items():
        assert values[name].tolist() == sentences[0][source].tolist()
    assert values["feature"].tolist() == list(range(OPTIONS["features"]))
    for row, arrays in enumerate(sentences[:n]):
        padding = longest - len(arrays["fragments"])
        for name in ("embeddings", "hidden_states", "activations"):
            npz = arrays[name] if name == "embeddings" else arrays[name].swapaxes(0, 1)
            assert values[name].dtype == npz.dtype
            assert values[name][row, padding:].tobytes() == np.ascontiguousarray(npz).tobytes(), (row, name)
            assert np.isnan(values[name][row, :padding]).all(), (row, name)
        assert values["fragment"][row].tolist() == [""] * padding + arrays["fragments"].tolist()
        for name, expected in {
            "text": arrays["sentence"].item(),
            "label": arrays["concept_strength_label"].item(),
            "sentence": arrays["sentence_index"].item(),
            "n_tokens": len(arrays["fragments"]),
            "n_nonfinite": 0,
            "source": f"sentence_{arrays['sentence_index'] + 1:06d}.npz" if from_files else "",
        }.items():
            assert values[name][row] == expected, (row, name)
    return n


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below a path, but for caches: the bytes of each file, None for each folder."""
    found = [below for below in path.rglob("*") if below.suffix != ".seen"]
    return {str(below.relative_to(path)): below.read_bytes() if below.is_file() else None for below in found}


def tree_after(done: featurestore.Ingested | Written, path: Path) -> dict[str, bytes | None]:
    """Everything below a path after an ingest, but the lock that a killed writer left if there was nothing to add.

    Nobody holds it, and a complete store is only read, which needs no lock; whoever writes next removes it.
    """
    left = tree(path)
    if not done.added:
        left.pop(f"{done.store.relative_to(path)}.lock", None)
    return left


def write_tree(path: Path, contents: dict[str, bytes | None]) -> None:
    """Write what `tree` returned."""
    path.mkdir()
    for name, data in sorted(contents.items()):
        if data is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(data)


@dataclass(frozen=True)
class Operation:
    """One change to the disk, or one flush.

    Attributes
    ----------
    kind : str
        ``create``, ``truncate``, ``write`` (at the end), ``replace``, ``link``, ``unlink``, ``mkdir``, ``rmdir``,
        ``fsync``; or ``mark``, which is no operation: from here on, that many sentences must survive.
    path : str
        Below the recorded folder; of a mark, the number of sentences.
    target : str
        The new name.
    data : bytes
        What is written.
    """

    kind: str
    path: str
    target: str = ""
    data: bytes = b""


class Disk:
    """While it is entered, `before` is called with each operation below a folder, and may prevent it by raising.

    What is flushed is only recorded.

    Attributes
    ----------
    done : list of Operation
        Those that succeeded, in order.
    """

    def __init__(self, base: Path, before: Callable[[Operation], None] = lambda _: None) -> None:
        self._base, self._before = f"{base}{os.sep}", before
        self._lock = threading.RLock()
        self._patch = pytest.MonkeyPatch()
        self.done: list[Operation] = []

    def __enter__(self) -> Disk:
        replacements: dict[str, Callable[..., Any]] = {
            "open": self._os_open,
            "fsync": self._os_fsync,
            "fdatasync": self._os_fsync,
            "pwrite": self._os_pwrite,
            "ftruncate": self._os_ftruncate,
        }
        replacements |= {name: functools.partial(self._moved, "replace", getattr(os, name)) for name in _MOVES}
        replacements["link"] = functools.partial(self._moved, "link", os.link)
        replacements |= {name: functools.partial(self._named, kind, getattr(os, name)) for name, kind in _NAMED.items()}
        self._real = {name: getattr(os, name) for name in replacements}
        self._real_open = io.open
        for name, function in replacements.items():
            self._patch.setattr(os, name, function)
        self._patch.setattr(io, "open", self._open)
        self._patch.setattr(builtins, "open", self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def mark(self, n_sentences: int) -> None:
        """Note that so many sentences must survive from here on."""
        self.done.append(Operation("mark", str(n_sentences)))

    @contextmanager
    def operation(self, kind: str, path: str, target: str = "", data: bytes = b"") -> Iterator[None]:
        """Announce an operation, and record it if it succeeds."""
        with self._lock:
            operation = Operation(kind, path, target, data)
            self._before(operation)
            yield
            self.done.append(operation)

    def _below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the path below the recorded folder, "" for the folder itself, None for others."""
        if isinstance(path, int) or dir_fd is not None:
            folder = Path(f"/proc/self/fd/{path if dir_fd is None else dir_fd}").readlink()
            path = folder if dir_fd is None else folder / path
        full = os.path.abspath(os.fspath(path))  # noqa: PTH100
        return full[len(self._base) :] if f"{full}{os.sep}".startswith(self._base) else None

    def _named(self, kind: str, real: Callable[..., Any], path: Any, *arguments: Any, **options: Any) -> Any:
        """Make or remove a name; what fails of itself, because the name is there or is not, is no operation."""
        below = self._below(path, options.get("dir_fd"))
        if below is None or os.path.lexists(self._base + below) == (kind == "mkdir"):
            return real(path, *arguments, **options)
        with self.operation(kind, below):
            return real(path, *arguments, **options)

    def _moved(self, kind: str, real: Callable[..., Any], source: Any, target: Any) -> Any:
        below, there = self._below(source), self._below(target)
        if below is None or there is None:
            return real(source, target)
        with self.operation(kind, below, there):
            return real(source, target)

    def _os_open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        real = functools.partial(self._real["open"], path, flags, *arguments, **options)
        if not flags & os.O_CREAT or (below := self._below(path)) is None or os.path.lexists(path):
            return int(real())
        with self.operation("create", below):
            return int(real())

    def _os_fsync(self, fd: int) -> None:
        if (below := self._below(fd)) is not None:
            with self.operation("fsync", below):
                pass

    def _os_pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if (below := self._below(fd)) is None:
            return int(self._real["pwrite"](fd, data, offset))
        assert os.fstat(fd).st_size == offset
        with self.operation("write", below, data=bytes(data)):
            return int(self._real["pwrite"](fd, data, offset))

    def _os_ftruncate(self, fd: int, length: int) -> None:
        if (below := self._below(fd)) is None:
            self._real["ftruncate"](fd, length)
            return
        assert length == 0
        with self.operation("truncate", below):
            self._real["ftruncate"](fd, length)

    def _open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        below = None if isinstance(file, int) or mode in ("r", "rb") else self._below(file)
        if below is None:
            return self._real_open(file, mode, *arguments, **options)
        assert mode == "wb", "this way of writing is not recorded yet"
        with self.operation("truncate" if os.path.lexists(file) else "create", below):
            raw = _Raw(os.fspath(file), mode)
        raw.disk, raw.below = self, below
        return io.BufferedWriter(raw)


_MOVES = ("replace", "rename")
_NAMED = {"mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "remove": "unlink"}


class _Raw(io.FileIO):
    """A file whose content arrives in two writes, so that a failure in between leaves the first half."""

    disk: Disk
    below: str
    _begun = False

    def write(self, data: Buffer, /) -> int:
        whole = bytes(data)
        part = whole if self._begun else whole[: (len(whole) + 1) // 2]
        self._begun = True
        with self.disk.operation("write", self.below, data=part):
            return super().write(part)


EXIT = 9
"""Exit status of `run_and_die`."""

_TAKE_SPACE = {"create", "write", "mkdir", "fsync"}


def failing_at(point: int, fault: str) -> Callable[[Operation], None]:
    """Return a `Disk.before` that lets operation number `point` fail.

    ``exit`` ends the process there;
    ``interrupt`` is Ctrl-C there or soon after; ``EIO`` is one error; ``ENOSPC`` stays, for all that takes
    space.
    """
    count: float = -1

    def before(operation: Operation) -> None:
        nonlocal count
        count += 1
        if count == point and fault == "exit":
            os._exit(EXIT)
        if fault == "interrupt":  # Python interrupts the main thread only
            if point <= count < math.inf and threading.current_thread() is threading.main_thread():
                count = math.inf
                raise KeyboardInterrupt
            return
        if count == point or (count > point and fault == "ENOSPC" and operation.kind in _TAKE_SPACE):
            number = getattr(errno, fault)
            raise OSError(number, os.strerror(number), operation.path)

    return before


def run_and_die(how: str, base: Path, source: Path, path: Path, point: int) -> None:
    """Ingest, or write, and end this process at an operation."""
    with serial(), Disk(base, failing_at(point, "exit")):
        HOWS[how](source, path)
    os._exit(0)
