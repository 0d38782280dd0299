"""Read everything in a store and say what is wrong with it, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import NpzError, StoreError, StoreNotFoundError
from featurestore.npz import Archive
from featurestore.paths import PathLike, as_path
from featurestore.schema import Progress
from featurestore.sources import sentences
from featurestore.store.append import MAX_READERS
from featurestore.store.checks import Coords, Problem, check, read, sentence_of
from featurestore.store.layout import ROOT
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMED = 100
"""Sentences of a wrong length that are named one by one."""


def verify(
    store: PathLike,
    source: PathLike | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> list[Problem]:
    """Check every file of a store: present, whole, and consistent with the others.

    Reads all data once, chunk by chunk and on all cores: checksums of chunks, coordinates, that each sentence has its
    tokens and no others, the counts of non-finite values, and the CRC-32 of each sentence's values that was taken at
    ingest, so that files in a wrong place are found, too. Needs no lock; a store that is being written at the same time
    may show problems that are gone afterwards.

    Parameters
    ----------
    store : str or PathLike
        The store.
    source : str or PathLike, optional
        A folder of sentence NPZs: their values are compared, too, bit for bit.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    list of Problem
        Empty for a sound store.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `store`.
    SourceError
        If `source` has no sentence NPZs.
    """
    path, source = as_path(store), source if source is None else as_path(source)
    try:
        snapshot = Snapshot.read(path)
    except StoreNotFoundError:
        raise
    except StoreError as error:
        return [Problem(ROOT, str(error))]
    coords: Coords = {}
    stale = [
        Problem(f"{name}/{ROOT}", "is missing, or differs from the root metadata; the next ingest restores it")
        for name in snapshot.stale_metadata()
    ]
    damaged = _coords(snapshot, coords)
    problems = [*stale, *damaged, *([] if damaged else _labels(snapshot, coords))]
    counted = [path / file for name in ("n_tokens", "token") for file, _ in snapshot.files(name)]
    if damaged or not all(file.is_file() for file in counted):  # then nothing says what else there has to be
        return [*problems, *_files(snapshot, None)]
    problems += _files(snapshot, coords["n_tokens"])
    sources: dict[int, Path] = {}
    if source is not None:
        problems += _match(coords, source, sources)
    return [*problems, *_data(snapshot, coords, sources, progress)]


def _coords(snapshot: Snapshot, coords: Coords) -> list[Problem]:
    """Read every coordinate of one dim, file by file, into `coords`."""
    problems: list[Problem] = []
    for name in _one_dim(snapshot):
        array = snapshot.open(name)
        coords[name] = np.zeros(array.shape, array.dtype)
        for file, region in snapshot.files(name):
            if not (snapshot.path / file).is_file():  # which is reported with the files
                continue
            if (values := read(array, file, region, problems)) is not None:
                coords[name][region] = values
    return problems


def _one_dim(snapshot: Snapshot) -> list[str]:
    return [name for name, metadata in snapshot.arrays.items() if len(metadata["shape"]) == 1]


def _labels(snapshot: Snapshot, coords: Coords) -> Iterator[Problem]:
    """Check what the coordinates say against each other."""
    tokens = snapshot.sizes["token"]
    if (features := coords.get("feature")) is not None and features.tolist() != [*range(len(features))]:
        yield Problem("feature", "does not count from 0")
    if coords["token"].tolist() != [-1 - position for position in range(tokens)]:
        yield Problem("token", "does not count back from -1")
    if len(set(coords["sentence"].tolist())) < len(coords["sentence"]):
        yield Problem("sentence", "names a sentence twice")
    if (longest := coords["n_tokens"].max(initial=0)) < tokens:
        yield Problem("n_tokens", f"has no sentence of more than {longest} tokens; expected one of {tokens}")
    misfits = np.flatnonzero((coords["n_tokens"] < 1) | (coords["n_tokens"] > tokens))
    for row in misfits[:_NAMED]:
        yield Problem(sentence_of(coords, row), f"has {coords['n_tokens'][row]} tokens; expected 1 to {tokens}")
    if len(misfits) > _NAMED:
        yield Problem("n_tokens", f"has {len(misfits) - _NAMED} more that are not 1 to {tokens}")


def _files(snapshot: Snapshot, n_tokens: NDArray[np.int64] | None) -> Iterator[Problem]:
    """Compare the files that are there with those that have to be; without `n_tokens` only of arrays of one dim."""
    judged = [*snapshot.arrays] if n_tokens is not None else _one_dim(snapshot)
    expected = {f"{name}/{ROOT}" for name in snapshot.arrays} | {ROOT}
    for name in judged:
        for file, region in snapshot.files(name):
            if len(region) == 1 or n_tokens is None or n_tokens[region[0]].max() > region[1].start:
                expected.add(file)
    found = {file.relative_to(snapshot.path).as_posix() for file in snapshot.path.rglob("*") if file.is_file()}
    unjudged = snapshot.arrays.keys() - judged
    for file in sorted(expected - found):
        if not file.endswith(ROOT):  # those are reported with the metadata
            yield Problem(file, "is missing")
    for file in sorted(found - expected):
        if file.split("/")[0] not in unjudged:
            yield Problem(file, "does not belong to the store; the next ingest removes what an interrupted one left")


def _match(coords: Coords, source: Path, sources: dict[int, Path]) -> Iterator[Problem]:
    """Find the file of each sentence by its digest, and put it into `sources` by row."""
    rows = {digest: row for row, digest in enumerate(coords["source_digest"].tolist())}
    for file in sentences.find(source):
        try:
            with Archive(file) as archive:
                row = rows.pop(archive.digest, None)
        except NpzError as error:
            yield Problem(file.name, f"cannot be compared: {error}")
            continue
        if row is None:
            yield Problem(file.name, f"of {source} is not in the store, or with other content")
        else:
            sources[row] = file
    for row in rows.values():
        yield Problem(sentence_of(coords, row), f"has no file of its content in {source}")


def _data(snapshot: Snapshot, coords: Coords, sources: dict[int, Path], progress: Progress) -> Iterator[Problem]:
    """Read all shards, batch by batch and on all cores; compare them with the coordinates and with the sources."""
    n, step = len(coords["n_tokens"]), snapshot.file_shape("fragment")[0]
    job = partial(check, snapshot, coords, sources)
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(job, range(start, min(start + step, n))) for start in range(0, n, step)]
        try:
            for start, future in zip(range(0, n, step), futures, strict=True):
                yield from future.result()
                progress("verifying sentences", min(start + step, n), n)
        finally:
            for future in futures:
                future.cancel()
