"""From a folder of sentence NPZs to a store that holds them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, SourceError, StoreError, StoreNotFoundError, naming, shown, spelled
from featurestore.npz import Archive
from featurestore.paths import PathLike, as_path, real_path
from featurestore.schema import STORES, Progress, SentenceFile, Skipped
from featurestore.sources import sentences
from featurestore.store import commit
from featurestore.store.batch import Staged, stage
from featurestore.store.commit import Writer
from featurestore.store.layout import SENTENCE_COORDS, Root
from featurestore.store.reading import extraction_of, outlined, read_coord
from featurestore.store.snapshot import is_complete, is_store, read_root

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)

MAX_READERS = 4
"""Threads that read sentences; each holds one sentence's dense activations."""

READER_BYTES = 1 << 30
"""Activations that all readers together may hold."""

BATCH_BYTES = 256 << 20
"""A batch is written when it fills its shards, or earlier, when its sentences are so long that they exceed this."""

READ_AHEAD = 8
"""Sentences that are being read or wait for their batch; more gained nothing on two cores."""


@dataclass(frozen=True)
class Ingested:
    """What an ingest did.

    Attributes
    ----------
    store : Path
        The store.
    added : int
        Sentences appended now.
    present : int
        Sentences that were there already, with the same content.
    skipped : tuple of Skipped
        Files left out, as the store records them.
    n_sentences : int
        All sentences in the store now.
    """

    store: Path
    added: int
    present: int
    skipped: tuple[Skipped, ...]
    n_sentences: int


def ingest(
    source: PathLike,
    store: PathLike | None = None,
    *,
    skip_bad: bool = False,
    wait: bool = False,
    progress: Progress = lambda *_: None,
) -> Ingested:
    """Bring a store up to date with a folder of sentence NPZs.

    Sentences that the store holds already are skipped by their digest; the others are appended in the order of their
    file names, in batches that are committed one by one. Interrupted at any point, the same call goes on from the
    last committed batch. Memory does not grow with the number of sentences.

    Parameters
    ----------
    source : str or PathLike
        Folder of ``sentence_*.npz``.
    store : str or PathLike, optional
        The store; made if it is not there. By default ``stores/<folder name>.zarr``, which is refused if it holds
        sentences, but none of this folder: it was made from another one of that name.
    skip_bad : bool
        Leave bad files out, and record them in the store, instead of refusing the folder. A file that is recorded
        stays left out in later calls while it is bad.
    wait : bool
        Wait while another process writes the store, instead of raising.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Ingested
        What was done.

    Raises
    ------
    SourceError
        If there is nothing to ingest, or files are bad; every bad file is named, and nothing has been written.
    NpzError
        If the data of a file turn out to be damaged; the batches before it are committed.
    StoreError
        If `store` is something else; `StoreBusyError` if another process writes it.
    """
    own = store is None
    source = as_path(source)
    store = store_path(source) if store is None else as_path(store)
    paths = sentences.find(source)
    if is_complete(store) and not (changes := _compare(paths, *_known(store), progress)).new:
        if own and (others := changes.n_sentences - changes.present):
            logger.warning("%s also holds %d sentences that are not in %s", store, others, source)
        return Ingested(store, 0, changes.present, (), changes.n_sentences)  # readers need no lock
    with naming(store), commit.exclusive(store, wait) as real:
        writer = Writer(real) if is_store(real) else None
        changes = _compare(paths, *(_known(real) if writer else ({}, 0)), progress)
        files, bad, corrected = _scan(changes.new, (real, writer.root) if writer else None, progress)
        if own and writer and writer.n_sentences and not changes.present and not corrected:
            raise StoreError(
                f"{store}: holds no sentence of {source}, so it was made from another folder of that name; "
                f"ingest {source} into another store ({spelled('store')}), and build from that"
            )
        recorded = {entry.file: entry for entry in writer.skipped} if writer else {}
        if not skip_bad and any(entry.file not in recorded for entry in bad):
            raise SourceError(_describe(source, bad, len(paths)))
        if not files and writer is None:
            raise SourceError(_describe(source, bad, len(paths)))
        if writer is None:
            writer = Writer.create(real, files[0].extraction)
        try:
            damaged = _append(writer, files, skip_bad, recorded, progress)
            if not writer.n_sentences:
                raise SourceError(_describe(source, [*bad, *damaged], len(paths)))
            here = {path.name for path in paths}
            elsewhere = [entry for name, entry in recorded.items() if name not in here]
            writer.finish([*elsewhere, *bad, *damaged])
        except BaseException:
            writer.discard()
            raise
    if own and (others := writer.n_sentences - changes.present - len(files) + len(damaged)):
        logger.warning("%s also holds %d sentences that are not in %s", store, others, source)
    skipped = (*bad, *damaged)
    for entry in skipped:
        logger.warning("left out %s: %s", shown(source / entry.file), entry.reason)
    return Ingested(store, len(files) - len(damaged), changes.present, skipped, writer.n_sentences)


def outline(source: PathLike, *, progress: Progress = lambda *_: None) -> xr.Dataset | None:
    """Describe what the store of a folder of sentence NPZs will hold; only headers and small arrays are read.

    Nothing is written, not even a lock.

    Returns
    -------
    xarray.Dataset or None
        As `open_store`, but all data are 0; None if `source` is a store, or a folder whose store is up to date.

    Raises
    ------
    StoreNotFoundError, SourceError
        As `find_store`.
    """
    source = _existing(source)
    if is_store(source):
        return None
    path, paths = store_path(source), sentences.find(source)
    store = (path, read_root(path)) if is_store(path) else None
    changes = _compare(paths, *(_known(path) if store else ({}, 0)), progress)
    if store and not changes.new:
        return None
    files, bad, _ = _scan(changes.new, store, progress)
    if bad:
        raise SourceError(_describe(source, bad, len(paths)))
    coords: dict[str, list[Any]] = {
        name: read_coord(*store, name).tolist() if store else [] for name in SENTENCE_COORDS
    }
    for file in files:
        text, label = sentences.words(file.path)
        one: dict[str, Any] = {
            "sentence": file.sentence_index,
            "label": label,
            "n_tokens": file.n_tokens,
            "n_nonfinite": 0,
        }
        one |= {"text": text, "source": file.path.name, "source_digest": file.digest}
        for name, value in one.items():
            coords[name].append(value)
    return outlined(extraction_of(*store) if store else files[0].extraction, coords)


@dataclass(frozen=True)
class _Changes:
    """A folder compared with a store: files whose content is not in it, and how many sentences are."""

    new: list[Path]
    present: int
    n_sentences: int


def _known(store: Path) -> tuple[Container[str], int]:
    """Return the digests that a store holds, and the number of its sentences."""
    root = read_root(store)
    digests = read_coord(store, root, "source_digest")
    return set(digests.tolist()), len(digests)


def _compare(
    paths: Sequence[Path], digests: Container[str], n_sentences: int, progress: Progress = lambda *_: None
) -> _Changes:
    new, present = [], set()
    for done, path in enumerate(paths, start=1):
        try:
            with Archive(path) as archive:
                digest = archive.digest
        except NpzError:
            digest = ""  # scanning says why
        if digest in digests:
            present.add(digest)
        else:
            new.append(path)
        progress("comparing files", done, len(paths))
    return _Changes(new, len(present), n_sentences)


def _scan(
    paths: Sequence[Path], store: tuple[Path, Root] | None, progress: Progress
) -> tuple[list[SentenceFile], list[Skipped], int]:
    """Check new files, also against what the store holds.

    Returns
    -------
    files, bad : list
        The good ones, and the others, each with its reason.
    corrected : int
        How many of the bad ones differ from the store in their label or text alone.
    """
    done = corrected = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("checking new files", done, len(paths))

    names = ("sentence", "source", "source_digest", "label", "text")
    index, *known = (read_coord(*store, name) for name in names) if store else [np.array([])] * len(names)
    scanned, bad = sentences.scan_all(paths, extraction_of(*store) if store else None, advance)
    rows = {sentence_index: row for row, sentence_index in enumerate(index.tolist())}
    files = []
    for file in scanned:
        if (row := rows.get(file.sentence_index)) is None:
            files.append(file)
            continue
        source, *content = (values[row] for values in known)
        alone = sentences.changed_alone(file.path, *content)
        corrected += bool(alone)
        bad.append(Skipped(file.path.name, _conflict(file, str(source), alone)))
    return files, bad, corrected


def _conflict(file: SentenceFile, source: str, alone: str | None) -> str:
    how = f"but for its {alone}, which alone differs" if alone else "with other content"
    return (
        f"sentence_index {file.sentence_index} is in the store {how} (from {source}), which stays; if it was "
        f"{'corrected' if alone else 'extracted again'}, remove the store and ingest everything, otherwise choose "
        f"another with {spelled('store')}"
    )


def _append(
    writer: Writer, files: Sequence[SentenceFile], skip_bad: bool, recorded: Container[str], progress: Progress
) -> list[Skipped]:
    """Append files batch by batch; return those whose data turned out to be damaged."""
    damaged: list[Skipped] = []
    nonfinite: dict[str, int] = {}
    advice = f"or leave it out: ingest with {spelled('skip_bad', True)}"

    def load(file: SentenceFile) -> Staged | Skipped:
        try:
            return stage(sentences.read(file))
        except NpzError as error:
            if skip_bad or file.path.name in recorded:
                return Skipped(file.path.name, str(error).removeprefix(f"{shown(file.path)}: "))
            raise NpzError(f"{error}; {advice}") from error

    batch: list[Staged] = []
    expected = writer.n_sentences + len(files)
    readers = max(1, min(MAX_READERS, os.cpu_count() or 1, READER_BYTES // _largest(files)))
    with ThreadPoolExecutor(readers) as pool:
        for done, result in enumerate(_in_order(pool, load, files, READ_AHEAD), start=1):
            if isinstance(result, Skipped):
                damaged.append(result)
            else:
                batch.append(result)
                if count := result.coords["n_nonfinite"]:
                    nonfinite[str(result.coords["source"])] = int(count)
            if len(batch) == writer.room or sum(staged.nbytes for staged in batch) > BATCH_BYTES:
                writer.append(batch, expected)
                batch = []
            progress("ingesting", done, len(files))
    if batch:
        writer.append(batch, expected)
    if nonfinite:
        logger.warning(
            "%d NaN or infinite values in %s; build refuses these sentences, or leaves them out with %s",
            sum(nonfinite.values()),
            _some(list(nonfinite)),
            spelled("drop_nonfinite", True),
        )
    if longer := [file.path.name for file in files if file.n_after_final]:
        logger.warning("left out the fragments after the final token in %s", _some(longer))
    return damaged


def _largest(files: Sequence[SentenceFile]) -> int:
    """Bytes of the largest dense activations among some files; at least 1."""
    sizes = (file.n_tokens * len(file.extraction.layers) * file.extraction.features * 4 for file in files)
    return max(sizes, default=1)


def _in_order(
    pool: ThreadPoolExecutor,
    load: Callable[[SentenceFile], Staged | Skipped],
    files: Sequence[SentenceFile],
    ahead: int,
) -> Iterator[Staged | Skipped]:
    """Yield results in order, while up to `ahead` more are being loaded; drop what is queued as soon as one fails."""
    waiting = iter(files)
    futures = deque(pool.submit(load, file) for file in islice(waiting, ahead))
    try:
        while futures:
            yield futures.popleft().result()
            futures.extend(pool.submit(load, file) for file in islice(waiting, 1))
    finally:
        for future in futures:
            future.cancel()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _describe(source: Path, bad: Sequence[Skipped], n_files: int) -> str:
    out = f"ingest with {spelled('skip_bad', True)} leaves them out"
    advice = "none is left to ingest" if len(bad) == n_files else out
    lines = [f"{source}: {len(bad)} of {n_files} files cannot be ingested, so nothing was written ({advice}):"]
    return "\n".join([*lines, *(f"  {shown(source / entry.file)}: {entry.reason}" for entry in bad)])


def store_path(source: PathLike) -> Path:
    """Where the store of a folder of sentence NPZs is: ``stores/<folder name>.zarr``."""
    return STORES / f"{real_path(as_path(source)).name}.zarr"


def find_store(source: PathLike, *, wait: bool = False, progress: Progress = lambda *_: None) -> Path:
    """Return the store that `source` is, or that of the folder of sentence NPZs that it is, brought up to date.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `source`.
    SourceError, NpzError, StoreError
        As `ingest`; also if the folder's store was made from another folder of the same name.
    """
    source = _existing(source)
    if is_store(source):
        return source
    done = ingest(source, wait=wait, progress=progress)
    logger.info("%s: %d sentences of %s added, %d there already", done.store, done.added, source, done.present)
    return done.store


def _existing(source: PathLike) -> Path:
    source = as_path(source)
    if not source.exists():
        raise StoreNotFoundError(f"{source}: no such store or folder of sentence NPZs; check the path")
    return source
