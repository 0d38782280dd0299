"""Sentences on their way from their NPZs into a store: read ahead by several threads, committed batch by batch."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def append(
    writer: Writer, files: Sequence[SentenceFile], may_be_bad: Container[str] | None, progress: Progress
) -> list[Skipped]:
    """Append files batch by batch; return those whose data turned out to be damaged.

    Parameters
    ----------
    writer : Writer
        Of the store.
    files : sequence of SentenceFile
        Checked files, in the order in which they are appended.
    may_be_bad : container of str, or None
        Names of the files that are left out if they are damaged, instead of raising; None stands for all.
    progress : callable
        Called as ``progress(what, done, total)``.

    Raises
    ------
    NpzError
        If another file is damaged; the batches before it are committed.
    """
    advice = f"or leave it out: ingest with {spelled('skip_bad', True)}"  # here, as threads speak Python

    def load(file: SentenceFile) -> Staged | Skipped:
        try:
            return stage(sentences.read(file), special_first)
        except NpzError as error:
            if may_be_bad is None or file.path.name in may_be_bad:
                return Skipped(file.path.name, error.reason)
            raise NpzError.of(file.path, f"{error.reason}; {advice}") from error

    special_first = writer.snapshot.special_first
    damaged: list[Skipped] = []
    nonfinite: dict[str, int] = {}
    expected = writer.n_sentences + len(files)
    dense, staged = _largest(files)
    readers = max(1, min(MAX_READERS, os.cpu_count() or 1, READER_BYTES // dense))
    ahead = max(readers, min(READ_AHEAD, BATCH_BYTES // staged))
    with ThreadPoolExecutor(readers) as pool:
        for batch in _batches(_in_order(pool, load, files, ahead), writer, damaged, len(files), progress):
            if writer.n_sentences == 0:
                warn_of_bos(batch, f"ingest into a new store with {spelled('special_first', 1)}")
            writer.append(batch, expected)
            nonfinite |= {str(one.coords["source"]): n for one in batch if (n := int(one.coords["n_nonfinite"]))}
    warn_of_nonfinite(nonfinite)
    if longer := [file.path.name for file in files if file.n_after_final]:
        logger.warning("left out the fragments after the final token in %s", some(longer))
    return damaged


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
    return len(batch) == room or sum(staged.nbytes for staged in batch) > BATCH_BYTES


def warn_of_bos(batch: Sequence[Staged], remedy: str) -> None:
    """Warn if in most sentences the first token is probably a BOS that nothing marks."""
    if sum(map(_first_stands_out, batch)) > len(batch) / 2:
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
