"""Read everything in a store and say what is wrong with it, and where."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, StoreError, StoreNotFoundError
from featurestore.npz import Archive
from featurestore.paths import PathLike, as_path
from featurestore.schema import ACTIVATIONS, ARRAY_DIMS, Progress
from featurestore.sources import sentences
from featurestore.store.batch import Staged, count_nonfinite, stage
from featurestore.store.layout import ROOT
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

Coords = dict[str, "NDArray[Any]"]
"""Every coordinate of one dim, by name."""

_NAMED = 100
"""Sentences of a wrong length that are named one by one."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: a file or a sentence, and what."""

    where: str
    what: str


def verify(
    store: PathLike,
    source: PathLike | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> list[Problem]:
    """Check every file of a store: present, whole, and consistent with the others.

    Reads all data once, one shard at a time: checksums, coordinates, that each sentence has its tokens and no others,
    and the counts of non-finite values. Needs no lock; a store that is being written at the same time may show
    problems that are gone afterwards.

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
    damaged = [*_coords(snapshot, coords)]
    problems = [*stale, *damaged, *([] if damaged else _labels(snapshot, coords))]
    counted = [path / file for name in ("n_tokens", "token") for file, _ in snapshot.files(name)]
    if damaged or not all(file.is_file() for file in counted):  # then nothing says what else there has to be
        return [*problems, *_files(snapshot, None)]
    problems += _files(snapshot, coords["n_tokens"])
    sources: dict[int, Path] = {}
    if source is not None:
        problems += _match(coords, source, sources)
    return [*problems, *_data(snapshot, coords, sources, progress)]


def _coords(snapshot: Snapshot, coords: Coords) -> Iterator[Problem]:
    """Read every coordinate of one dim, file by file, into `coords`."""
    for name in _one_dim(snapshot):
        array = snapshot.open(name)
        coords[name] = np.zeros(array.shape, array.dtype)
        for file, region in snapshot.files(name):
            if (values := (yield from _read(snapshot, array, file, region))) is not None:
                coords[name][region] = values


def _read(
    snapshot: Snapshot, array: zarr.Array[Any], file: str, region: tuple[slice, ...]
) -> Generator[Problem, None, NDArray[Any] | None]:
    """Read what a file of an array holds; None if it is damaged, or missing, which is reported with the files."""
    try:
        return np.asarray(array[region]) if (snapshot.path / file).is_file() else None
    except (ValueError, RuntimeError, OSError) as error:
        yield Problem(file, f"is damaged ({error})")
        return None


def _one_dim(snapshot: Snapshot) -> list[str]:
    return [name for name, metadata in snapshot.arrays.items() if len(metadata["shape"]) == 1]


def _labels(snapshot: Snapshot, coords: Coords) -> Iterator[Problem]:
    """Check what the coordinates say against each other."""
    tokens = snapshot.sizes["token"]
    if coords["feature"].tolist() != [*range(len(coords["feature"]))]:
        yield Problem("feature", "does not count from 0")
    if coords["token"].tolist() != [-1 - position for position in range(tokens)]:
        yield Problem("token", "does not count back from -1")
    if len(set(coords["sentence"].tolist())) < len(coords["sentence"]):
        yield Problem("sentence", "names a sentence twice")
    if (longest := coords["n_tokens"].max(initial=0)) < tokens:
        yield Problem("n_tokens", f"has no sentence of more than {longest} tokens; expected one of {tokens}")
    misfits = np.flatnonzero((coords["n_tokens"] < 1) | (coords["n_tokens"] > tokens))
    for row in misfits[:_NAMED]:
        yield Problem(_sentence(coords, row), f"has {coords['n_tokens'][row]} tokens; expected 1 to {tokens}")
    if len(misfits) > _NAMED:
        yield Problem("n_tokens", f"has {len(misfits) - _NAMED} more that are not 1 to {tokens}")


def _files(snapshot: Snapshot, n_tokens: NDArray[np.int64] | None) -> Iterator[Problem]:
    """Compare the files that are there with those that have to be; without `n_tokens` only of arrays of one dim."""
    judged = [*snapshot.arrays] if n_tokens is not None else _one_dim(snapshot)
    expected = {f"{name}/{ROOT}" for name in snapshot.arrays} | {ROOT}
    padding = set()
    for name in judged:
        for file, region in snapshot.files(name):
            if len(region) == 1 or n_tokens is None or n_tokens[region[0]].max() > region[1].start:
                expected.add(file)
            elif name == "fragment":
                padding.add(file)  # earlier versions have written it
    found = {file.relative_to(snapshot.path).as_posix() for file in snapshot.path.rglob("*") if file.is_file()}
    unjudged = snapshot.arrays.keys() - judged
    for file in sorted(expected - found):
        if not file.endswith(ROOT):  # those are reported with the metadata
            yield Problem(file, "is missing")
    for file in sorted(found - expected - padding):
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
        yield Problem(_sentence(coords, row), f"has no file of its content in {source}")


def _data(snapshot: Snapshot, coords: Coords, sources: dict[int, Path], progress: Progress) -> Iterator[Problem]:
    """Read all shards, batch by batch, and compare them with the coordinates and with the sources."""
    n, step = len(coords["n_tokens"]), snapshot.file_shape(ACTIVATIONS)[0]
    arrays = {name: snapshot.open(name) for name in (*ARRAY_DIMS, "fragment")}
    for start in range(0, n, step):
        rows = range(start, min(start + step, n))
        progress("verifying sentences", rows.stop, n)
        expected = yield from _read_sources(coords, {row: sources[row] for row in rows if row in sources})
        batch = _Batch(start // step, rows, coords, expected, dict.fromkeys(rows, 0))
        for name in ARRAY_DIMS:
            yield from _values(snapshot, name, arrays[name], batch)
        yield from _fragments(snapshot, arrays["fragment"], batch)
        for row, count in batch.nonfinite.items():
            if count != coords["n_nonfinite"][row]:
                recorded = coords["n_nonfinite"][row]
                yield Problem(_sentence(coords, row), f"has {count} non-finite values; {recorded} were ingested")


@dataclass(frozen=True, eq=False)
class _Batch:
    """Sentences whose data share files, what their sources say, and how many values are not finite in each so far."""

    number: int
    rows: range
    coords: Coords
    expected: dict[int, Staged]
    nonfinite: dict[int, int]


def _values(snapshot: Snapshot, name: str, array: zarr.Array[Any], batch: _Batch) -> Iterator[Problem]:
    """Read an array's shards of a batch, compare them, and count what is not finite."""
    for file, region in snapshot.files(name, batch.number):
        if (values := (yield from _read(snapshot, array, file, region))) is None:
            if (snapshot.path / file).is_file():  # damaged, so the values cannot be counted
                batch.nonfinite.clear()
            continue
        token = region[1].start
        for row, stored in zip(batch.rows, values[:, 0], strict=True):
            where = _sentence(batch.coords, row)
            if token >= batch.coords["n_tokens"][row]:
                if not np.isnan(stored).all():
                    yield Problem(where, f"has values in {file} beyond its tokens")
                continue
            if row in batch.nonfinite:
                batch.nonfinite[row] += count_nonfinite(stored)
            source = batch.expected.get(row)
            if source is None or token >= len(source.nonzero):  # a length that differs is reported
                continue
            if stored.tobytes() != source.token(name, token, array.shape[2:])[region[2]].tobytes():
                yield Problem(where, f"differs in {file} from {source.coords['source']}")


def _fragments(snapshot: Snapshot, array: zarr.Array[Any], batch: _Batch) -> Iterator[Problem]:
    """Read the fragments of a batch, file by file, and compare them."""
    for file, region in snapshot.files("fragment", batch.number):
        if (values := (yield from _read(snapshot, array, file, region))) is None:
            continue
        for row, stored in zip(batch.rows, values, strict=True):
            where = _sentence(batch.coords, row)
            if any(stored[max(0, batch.coords["n_tokens"][row] - region[1].start) :] != ""):
                yield Problem(where, f"has fragments in {file} beyond its tokens")
            source = batch.expected.get(row)
            fragments = source.fragments[::-1][region[1]] if source else ()
            if source and stored[: len(fragments)].tolist() != [*fragments]:
                yield Problem(where, f"differs in {file} from {source.coords['source']}")


def _read_sources(coords: Coords, files: dict[int, Path]) -> Generator[Problem, None, dict[int, Staged]]:
    """Read a batch of source files, and compare what they say in words."""
    staged = {}
    for row, file in files.items():
        try:
            sentence_file = sentences.scan(file)
            sentence = stage(sentences.read(sentence_file))
        except NpzError as error:
            yield Problem(file.name, f"cannot be compared: {error}")
            continue
        staged[row] = sentence
        differing = [name for name, value in sentence.coords.items() if name != "source" and coords[name][row] != value]
        extraction = sentence_file.extraction
        for name, values in {"layer": extraction.layers, "average_l0": extraction.average_l0s}.items():
            if coords[name].tolist() != [*values]:
                differing.append(name)
        if differing:
            yield Problem(_sentence(coords, row), f"{', '.join(differing)} differ from {file.name}")
    return staged


def _sentence(coords: Coords, row: int | np.integer[Any]) -> str:
    return f"sentence {coords['sentence'][row]} ({coords['source'][row]})"
