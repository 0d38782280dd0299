"""Sentences on their way from their NPZs into a store: read ahead by several threads, committed batch by batch."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from featurestore.errors import NpzError, some, spelled
from featurestore.schema import HIDDEN_STATES, Progress, SentenceFile, Skipped
from featurestore.sources import sentences
from featurestore.store.commit import Writer
from featurestore.store.staging import Staged, stage

logger = logging.getLogger(__name__)

MAX_READERS = 4
"""Threads that read sentences; each holds one sentence's dense activations."""

READER_BYTES = 1 << 30
"""Activations that all readers together may hold."""

BATCH_BYTES = 256 << 20
"""A batch is written when it fills its shards, or earlier, when its sentences are so long that they exceed this."""

READ_AHEAD = 32
"""Sentences that are being read or wait for their batch, so that reading goes on while a batch is written; fewer where
they are so long that they would exceed `BATCH_BYTES`."""

MAX_NORM_RATIO = 10
"""A first token whose hidden states are so many times as large as the sentence's median is taken for a BOS."""

_STANDS_OUT = (
    "the first token has hidden states of more than %d times the median norm, as a BOS has, and is not marked as a "
    "special token; if it is one, %s"
)


@dataclass(frozen=True)
class BadFiles:
    """What is done with a file whose data turn out to be damaged.

    Attributes
    ----------
    left_out : container of str, or None
        Names of the files that are left out, instead of raising; None stands for all.
    advice : str
        How the others can be left out, too.
    """

    left_out: Container[str] | None
    advice: str

    @classmethod
    def of(cls, left_out: Container[str] | None) -> BadFiles:
        """Spell the advice, here, as threads and processes speak Python."""
        return cls(left_out, f"or leave it out: ingest with {spelled('skip_bad', True)}")

    def load(self, file: SentenceFile, special_first: int) -> Staged | Skipped:
        """Read a sentence; NpzError if it is damaged and may not be."""
        try:
            return stage(sentences.read(file), special_first)
        except NpzError as error:
            if self.left_out is None or file.path.name in self.left_out:
                return Skipped(file.path.name, error.reason)
            raise NpzError.of(file.path, f"{error.reason}; {self.advice}") from error


@dataclass
class Appended:
    """What there is to say of the sentences that were appended.

    Attributes
    ----------
    damaged : list of Skipped
        Files that were left out.
    nonfinite : dict of str to int
        How many values are not finite, by the name of the file.
    has_bos : bool
        Whether the store was empty, and its first batch `has_bos`, of which is warned at once.
    is_aside : bool
        Leave the warning to the process that adopts them.
    """

    damaged: list[Skipped] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    has_bos: bool = False
    is_aside: bool = False

    def note_bos(self) -> None:
        """Take what `has_bos` has found."""
        self.has_bos = True
        if not self.is_aside:
            warn_of_bos(f"ingest into a new store with {spelled('special_first', 1)}")

    def add(self, more: Appended) -> None:
        """Add what there is to say of those that follow."""
        self.damaged += more.damaged
        self.nonfinite |= more.nonfinite
        if more.has_bos:
            self.note_bos()


def append(
    writer: Writer,
    files: Sequence[SentenceFile],
    expected: int,
    bad: BadFiles,
    appended: Appended,
    progress: Progress,
) -> None:
    """Append files batch by batch, in this process.

    Parameters
    ----------
    writer : Writer
        Of the store.
    files : sequence of SentenceFile
        Checked files, in the order in which they are appended.
    expected : int
        How many sentences the store is to have.
    bad : BadFiles
        What is done with those that turn out to be damaged.
    appended : Appended
        Takes what there is to say, also if this raises.
    progress : callable
        Called as ``progress(what, done, total)``.

    Raises
    ------
    NpzError
        If a file is damaged that is not to be left out; the batches before it are committed.
    """
    dense, staged = _largest(files)
    readers = max(1, min(MAX_READERS, os.cpu_count() or 1, READER_BYTES // dense))
    ahead = max(readers, min(READ_AHEAD, BATCH_BYTES // staged))
    load = partial(bad.load, special_first=writer.snapshot.special_first)
    with ThreadPoolExecutor(readers) as pool:
        results = _in_order(pool, load, files, ahead)
        for batch in _batches(results, writer, appended.damaged, len(files), progress):
            if writer.n_sentences == 0 and has_bos(batch):
                appended.note_bos()
            writer.append(batch, expected)
            found = {str(one.coords["source"]): int(one.coords["n_nonfinite"]) for one in batch}
            appended.nonfinite |= {source: n for source, n in found.items() if n}


def warn(appended: Appended, files: Sequence[SentenceFile]) -> None:
    """Warn of what users should look at in the sentences that were appended."""
    warn_of_nonfinite(appended.nonfinite)
    if longer := [file.path.name for file in files if file.n_after_final]:
        logger.warning("left out the fragments after the final token in %s", some(longer))


def _batches(
    results: Iterator[Staged | Skipped], writer: Writer, damaged: list[Skipped], total: int, progress: Progress
) -> Iterator[list[Staged]]:
    """Gather sentences until they fill the writer's room, or are too large; put what is damaged aside."""
    batch: list[Staged] = []
    for done, result in enumerate(results, start=1):
        if isinstance(result, Skipped):
            damaged.append(result)
        else:
            batch.append(result)
        if is_full(batch, writer.room):
            yield batch
            batch = []
        progress("ingesting", done, total)
    if batch:
        yield batch


def is_full(batch: Sequence[Staged], room: int) -> bool:
    """Tell whether a batch fills its room, or is too large to take more."""
    return len(batch) >= room or sum(staged.nbytes for staged in batch) > BATCH_BYTES


def has_bos(batch: Sequence[Staged]) -> bool:
    """Tell whether in most sentences the first token is probably a BOS that nothing marks."""
    return sum(map(_first_stands_out, batch)) > len(batch) / 2


def warn_of_bos(remedy: str) -> None:
    """Warn of what `has_bos` has found."""
    logger.warning(_STANDS_OUT, MAX_NORM_RATIO, remedy)


def warn_of_nonfinite(nonfinite: Mapping[str, int]) -> None:
    """Warn of the values that are not finite, by what names their sentences."""
    if nonfinite:
        found = sum(nonfinite.values()), some(nonfinite), spelled("drop_nonfinite", True)
        logger.warning(
            "%d NaN or infinite values in %s; build refuses these sentences, or leaves them out with %s", *found
        )


def _first_stands_out(sentence: Staged) -> bool:
    """Tell whether the first token's norm is far above the others', and it is not marked as a special one."""
    hidden_states = sentence.dense.get(HIDDEN_STATES)
    if hidden_states is None or sentence.n_tokens < 3 or sentence.token_coords["is_special"][-1]:
        return False
    with np.errstate(over="ignore", invalid="ignore"):  # of values that are not finite, which are counted elsewhere
        norms = np.linalg.norm(hidden_states.astype(np.float32), axis=-1)
        ratios = norms[-1] / np.maximum(np.median(norms, axis=0), 1e-30)
        return bool(np.median(ratios) > MAX_NORM_RATIO)


def _largest(files: Sequence[SentenceFile]) -> tuple[int, int]:
    """Return the most bytes that a file's dense activations have, and its embeddings and hidden states; at least 1."""
    longest = max((file.n_tokens for file in files), default=0)
    extractions = {file.extraction for file in files}
    activations = max((len(one.sae_layers) * one.features for one in extractions), default=0)
    hidden_states = max(((1 + len(one.layers)) * one.hidden for one in extractions), default=0)
    return max(1, longest * activations * 4), max(1, longest * hidden_states * 4)


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
