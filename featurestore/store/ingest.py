"""From a folder of sentence NPZs to a store that holds them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ParameterError, StoreError, StoreNotFoundError, naming, shown, spelled
from featurestore.paths import PathLike, as_path, real_path
from featurestore.ranges import integer
from featurestore.schema import LIMITS, STORES, Progress, SentenceFile, Skipped
from featurestore.sources import sentences
from featurestore.store import changes, commit, parallel
from featurestore.store.append import Appended, BadFiles, append, warn
from featurestore.store.commit import Writer
from featurestore.store.described import described
from featurestore.store.location import Location, ReadOnlyPath, StorageOptions, location
from featurestore.store.seen import Seen
from featurestore.store.snapshot import Snapshot, is_store

logger = logging.getLogger(__name__)


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
    special_first: int | None = None,
    skip_bad: bool = False,
    jobs: int = 1,
    wait: bool = False,
    progress: Progress = lambda *_: None,
    **attributes: str | None,
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
    special_first : int, optional
        So many tokens at the beginning of each sentence are special ones, such as a BOS, besides those that the files
        mark. A store has one such number: by default 0 for a new one, and its own later.
    skip_bad : bool
        Leave bad files out, and record them in the store, instead of refusing the folder. A file that is recorded
        stays left out in later calls while it is bad.
    jobs : int
        Processes that read, check and encode batches, while one commits them in order: the store is the same, byte for
        byte. 1, the default, means this process alone, with threads. Each takes as much memory as one does. A script
        has to call this below ``if __name__ == "__main__":`` then, as the processes import it.
    wait : bool
        Wait while another process writes the store, instead of raising.
    progress : callable
        Called as ``progress(what, done, total)``.
    **attributes : str, optional
        What the store is to say of where its values come from: `model`, `model_revision`, `tokenizer`, `sae_release`,
        `sae_ids`. What is not given stays as it is.

    Returns
    -------
    Ingested
        What was done.

    Raises
    ------
    ParameterError
        If an attribute is unknown, or no text, `special_first` is no number of tokens, or `jobs` none of processes.
    SourceError
        If there is nothing to ingest, or files are bad; every bad file is named, and nothing has been written.
    NpzError
        If the data of a file turn out to be damaged; the batches before it are committed.
    StoreError
        If `store` is something else, or has another number of special tokens, or one of several processes was killed;
        the batches before its own are committed. `StoreBusyError` if another process writes it.
    """
    is_default, source = store is None, as_path(source)
    store = store_path(source) if store is None else as_path(store)
    job = _Job(
        source=source,
        store=store,
        is_default=is_default,
        paths=sentences.find(source),
        seen=Seen(store),
        special_first=None
        if special_first is None
        else _checked(spelled("special_first"), special_first, 0, LIMITS["token"], "tokens"),
        attributes=described(attributes, "ingest"),
        skip_bad=skip_bad,
        jobs=_checked(spelled("jobs"), jobs, 1, parallel.MAX_JOBS, "processes"),
        progress=progress,
    )
    done = job.if_up_to_date()
    if done is None:  # otherwise no lock is needed
        with naming(store), commit.exclusive(store, wait) as real:
            done = job.write(real)
    job.seen.save()
    if is_default and (others := done.n_sentences - done.present - done.added):
        logger.warning("%s also holds %d sentences that are not in %s", store, others, source)
    for entry in done.skipped:
        logger.warning("left out %s: %s", shown(source / entry.file), entry.reason)
    return done


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What `ingest` has been asked for."""

    source: Path
    store: Path
    is_default: bool
    paths: list[Path]
    seen: Seen
    special_first: int | None
    attributes: dict[str, str]
    skip_bad: bool
    jobs: int
    progress: Progress

    def if_up_to_date(self) -> Ingested | None:
        """Say what is there if there is nothing to write."""
        if not is_store(self.store) or not (snapshot := Snapshot.read(self.store)).is_complete:
            return None
        has_all = self.attributes.items() <= snapshot.attributes.items()
        if not has_all or self.special_first not in (None, snapshot.special_first):
            return None
        found = changes.compare(self.paths, snapshot, self.seen, self.progress)
        return None if found.new else Ingested(self.store, 0, found.present, (), found.n_sentences)

    def write(self, real: Path) -> Ingested:
        """Append what is new; only to be called while the lock of the store, which really is there, is held."""
        writer = Writer(real) if is_store(real) else None
        committed = writer.snapshot if writer else None
        found = changes.compare(self.paths, committed, self.seen, self.progress)
        scan = changes.scan(found.new, committed, self.progress)
        recorded = {entry.file: entry for entry in writer.skipped} if writer else {}
        self._check(writer, found, scan, recorded)
        writer = writer or Writer.create(real, scan.files[0].extraction, self.special_first or 0)
        try:
            damaged = self._append(writer, scan.files, BadFiles.of(None if self.skip_bad else recorded))
            skipped = [*scan.bad, *damaged]
            if not writer.n_sentences:
                raise changes.refusal(self.source, skipped, len(self.paths))
            elsewhere = recorded.keys() - {path.name for path in self.paths}
            writer.finish([*(recorded[name] for name in recorded if name in elsewhere), *skipped], self.attributes)
        except BaseException:
            writer.discard()
            raise
        return Ingested(self.store, len(scan.files) - len(damaged), found.present, tuple(skipped), writer.n_sentences)

    def _append(self, writer: Writer, files: Sequence[SentenceFile], bad: BadFiles) -> list[Skipped]:
        """Append files, and return those that turned out to be damaged."""
        appended, arguments = Appended(), (writer, files, writer.n_sentences + len(files), bad)
        if self.jobs == 1:
            append(*arguments, appended, self.progress)
        else:
            parallel.append_blocks(*arguments, appended, self.progress, self.jobs)
        warn(appended, files)
        return appended.damaged

    def _check(
        self, writer: Writer | None, found: changes.Changes, scan: changes.Scan, recorded: Mapping[str, Skipped]
    ) -> None:
        """Refuse what does not belong into the store, before anything is written."""
        if writer and self.special_first not in (None, writer.snapshot.special_first):
            held = f"{self.store} marks the first {writer.snapshot.special_first} tokens of each sentence as special"
            asked = spelled("special_first", self.special_first)
            raise StoreError(f"{asked}: {held}; leave the option out, or ingest into a new store")
        if self.is_default and writer and writer.n_sentences and not found.present and not scan.corrected:
            raise StoreError(
                f"{self.store}: holds no sentence of {self.source}, so it was made from another folder of that name; "
                f"ingest {self.source} into another store ({spelled('store')}), and build from that"
            )
        is_refused = not self.skip_bad and any(entry.file not in recorded for entry in scan.bad)
        if is_refused or (not scan.files and writer is None):
            raise changes.refusal(self.source, scan.bad, len(self.paths))


def _checked(name: str, value: int, low: int, high: int, what: str) -> int:
    """Check a number of something."""
    if not low <= (number := integer(name, value)) <= high:
        raise ParameterError(f"{name}: expected {low} to {high:,} {what}, found {number}")
    return number


def store_path(source: PathLike) -> Path:
    """Where the store of a folder of sentence NPZs is: ``stores/<folder name>.zarr``."""
    return STORES / f"{real_path(as_path(source)).name}.zarr"


def find_store(
    source: PathLike | ReadOnlyPath,
    *,
    storage_options: StorageOptions | None = None,
    wait: bool = False,
    progress: Progress = lambda *_: None,
) -> Location:
    """Return the store that `source` is, or that of the folder of sentence NPZs that it is, brought up to date.

    A URL or zip is always taken for a store, and not opened yet.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `source`.
    SourceError, NpzError, StoreError
        As `ingest`; also if the folder's store was made from another folder of the same name.
    """
    source = existing(source, storage_options)
    if isinstance(source, ReadOnlyPath) or is_store(source):
        return source
    done = ingest(source, wait=wait, progress=progress)
    logger.info("%s: %d sentences of %s added, %d there already", done.store, done.added, source, done.present)
    return done.store


def existing(source: PathLike | ReadOnlyPath, storage_options: StorageOptions | None = None) -> Location:
    """Return the place of a store or a folder, which has to be there; what is behind a URL is not looked for."""
    place = location(source, storage_options)
    if isinstance(place, Path) and not place.exists():
        raise StoreNotFoundError(f"{place}: no such store or folder of sentence NPZs; check the path")
    return place
