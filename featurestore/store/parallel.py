"""An ingest by several processes: each writes whole batches into stores of their own, which are adopted in order.

Such a block is a folder inside the store, removed by the next writer if it is left behind. What is committed, and when,
is as by one process.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import batched, islice
from multiprocessing.connection import Connection
from pathlib import Path

from featurestore import files as on_disk
from featurestore.errors import NpzError, StoreError, spelled
from featurestore.files import PARTIAL
from featurestore.schema import Progress, SentenceFile
from featurestore.store.append import Appended, BadFiles, append
from featurestore.store.commit import Writer
from featurestore.store.snapshot import Snapshot

MAX_JOBS = 64
"""Processes that may be asked for."""


@dataclass(frozen=True)
class _Written:
    """A block that a process has written.

    Attributes
    ----------
    snapshot : Snapshot
        Its store.
    n_files : int
        Files that it was made of.
    appended : Appended
        What there is to say of them.
    error : NpzError or None
        Why the block ends before its last file.
    """

    snapshot: Snapshot
    n_files: int
    appended: Appended
    error: NpzError | None


def append_blocks(
    writer: Writer,
    files: Sequence[SentenceFile],
    expected: int,
    bad: BadFiles,
    appended: Appended,
    progress: Progress,
    jobs: int,
) -> None:
    """Append files as `append` does, by so many processes.

    Raises
    ------
    NpzError
        As `append`.
    StoreError
        If a process was killed; the batches before its own are committed.
    """
    done, rows = 0, writer.snapshot.file_shape("fragment")[0]

    def advance(what: str, more: int, _: int) -> None:
        progress(what, done + more, len(files))

    with _processes(jobs) as pool:
        while rest := files[done:]:
            if len(rest) > 2 * rows and writer.room == rows:
                for block in _blocks(pool, writer.snapshot, rest, bad, ahead=jobs + 1):
                    _adopt(writer, block, expected, appended)
                    advance("ingesting", block.n_files, 0)
                    done += block.n_files
            else:  # few, or up to a whole batch
                some = rest if len(rest) <= 2 * rows else rest[: writer.room]
                append(writer, some, expected, bad, appended, advance)
                done += len(some)


def _adopt(writer: Writer, block: _Written, expected: int, appended: Appended) -> None:
    appended.add(replace(block.appended, has_bos=block.appended.has_bos and not writer.n_sentences))
    if block.snapshot.sizes["sentence"]:
        writer.adopt(block.snapshot, expected)
    on_disk.remove(block.snapshot.path)
    if block.error:
        raise block.error


def _blocks(
    pool: ProcessPoolExecutor, store: Snapshot, files: Sequence[SentenceFile], bad: BadFiles, ahead: int
) -> Iterator[_Written]:
    """Yield blocks in order, while up to `ahead` are being written, until one is not full, as files were damaged."""
    rows = store.file_shape("fragment")[0]
    name = f"block-{secrets.token_hex(4)}"  # not that of a process which a killed writer has left, and which still ends
    waiting = ((store.path / f"{name}-{i}{PARTIAL}", some) for i, some in enumerate(batched(files, rows)))
    futures: deque[tuple[Path, Future[_Written]]] = deque()
    has_begun = False

    def submit(count: int) -> None:
        with _no_interrupts():  # which the processes that are started now inherit
            for path, some in islice(waiting, count):
                futures.append((path, pool.submit(_write, path, store, some, bad)))

    try:
        submit(ahead)
        while futures:
            block = futures.popleft()[1].result()
            has_begun = True
            yield block
            if block.snapshot.sizes["sentence"] < rows:
                break
            submit(1)
    except BrokenProcessPool as error:
        raise _killed(store.path, has_begun) from error
    for _, future in futures:
        future.cancel()
    wait([future for _, future in futures])
    for path, _ in futures:
        on_disk.remove(path)


def _write(path: Path, store: Snapshot, files: Sequence[SentenceFile], bad: BadFiles) -> _Written:
    """Write a block, in a process of its own."""
    writer, appended, found = Writer.aside(path, store), Appended(is_aside=True), None
    try:
        append(writer, files, len(files), bad, appended, lambda *_: None)
    except NpzError as error:
        found = error
    return _Written(writer.snapshot, len(files), appended, found)


def _killed(path: Path, has_begun: bool) -> StoreError:
    ended = "a process of its ingest ended before its time (killed, as memory ran out?)"
    committed = f"{Snapshot.read(path).sizes['sentence']:,} sentences are committed"
    again = f"run the same again, with fewer processes ({spelled('jobs')})"
    script = "" if has_begun else "; a script has to call ingest below `if __name__ == '__main__':`"
    return StoreError(f"{path}: {ended}, {committed}; {again}{script}")


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes as they are needed; they end at once if this fails, is interrupted, or is killed."""
    context = multiprocessing.get_context("spawn")  # there are threads, of which a fork would keep the locks
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, _end_with, (theirs,))
    try:
        yield pool
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _end_with(parent: Connection) -> None:
    """End this process as soon as the other end of a pipe is closed, by whatever."""

    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from this thread for a while, and for good from the processes that it starts meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
