"""Read everything in a store and say what is wrong with it, and where."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, StoreError, StoreNotFoundError
from featurestore.npz import Archive
from featurestore.paths import PathLike, as_path
from featurestore.schema import ACTIVATIONS, ARRAY_DIMS, Progress
from featurestore.sources import sentences
from featurestore.store.batch import Staged, stage
from featurestore.store.layout import Root
from featurestore.store.reading import open_array
from featurestore.store.snapshot import (
    ROOT,
    array_metadata,
    chunk_shape,
    dim_sizes,
    read_root,
    stale_metadata,
)

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

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
        root = read_root(path)
    except StoreNotFoundError:
        raise
    except StoreError as error:
        return [Problem(ROOT, str(error))]
    coords: dict[str, NDArray[Any]] = {}
    stale = [
        Problem(f"{name}/{ROOT}", "is missing, or differs from the root metadata; the next ingest restores it")
        for name in stale_metadata(path, root)
    ]
    damaged = [*_coords(path, root, coords)]
    problems = [*stale, *damaged, *([] if damaged else _labels(root, coords))]
    counted = [path / file for name in ("n_tokens", "token") for file, _ in _chunks(root, name)]
    if damaged or not all(file.is_file() for file in counted):  # then nothing says what else there has to be
        return [*problems, *_files(path, root, None)]
    problems += _files(path, root, coords["n_tokens"])
    sources: dict[int, Path] = {}
    if source is not None:
        problems += _match(coords, source, sources)
    return [*problems, *_data(path, root, coords, sources, progress)]


def _coords(path: Path, root: Root, coords: dict[str, NDArray[Any]]) -> Iterator[Problem]:
    """Read every coordinate of one dim, file by file, into `coords`."""
    for name in _one_dim(root):
        array = open_array(path, root, name)
        coords[name] = np.zeros(array.shape, array.dtype)
        for file, region in _chunks(root, name):
            if (values := (yield from _read(path, array, file, region))) is not None:
                coords[name][region] = values


def _read(
    path: Path, array: zarr.Array[Any], file: str, region: tuple[slice, ...]
) -> Generator[Problem, None, NDArray[Any] | None]:
    """Read what a file of an array holds; None if it is damaged, or missing, which is reported with the files."""
    try:
        return np.asarray(array[region]) if (path / file).is_file() else None
    except (ValueError, RuntimeError, OSError) as error:
        yield Problem(file, f"is damaged ({error})")
        return None


def _one_dim(root: Root) -> list[str]:
    return [name for name, metadata in array_metadata(root).items() if len(metadata["shape"]) == 1]


def _labels(root: Root, coords: dict[str, NDArray[Any]]) -> Iterator[Problem]:
    """Check what the coordinates say against each other."""
    tokens = dim_sizes(root)["token"]
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


def _files(path: Path, root: Root, n_tokens: NDArray[np.int64] | None) -> Iterator[Problem]:
    """Compare the files that are there with those that have to be; without `n_tokens` only of arrays of one dim."""
    judged = [*array_metadata(root)] if n_tokens is not None else _one_dim(root)
    expected = {f"{name}/{ROOT}" for name in array_metadata(root)} | {ROOT}
    padding = set()
    for name in judged:
        for file, region in _chunks(root, name):
            if len(region) == 1 or n_tokens is None or n_tokens[region[0]].max() > region[1].start:
                expected.add(file)
            elif name == "fragment":
                padding.add(file)  # earlier versions have written it
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    unjudged = array_metadata(root).keys() - judged
    for file in sorted(expected - found):
        if not file.endswith(ROOT):  # those are reported with the metadata
            yield Problem(file, "is missing")
    for file in sorted(found - expected - padding):
        if file.split("/")[0] not in unjudged:
            yield Problem(file, "does not belong to the store; the next ingest removes what an interrupted one left")


def _match(coords: dict[str, NDArray[Any]], source: Path, sources: dict[int, Path]) -> Iterator[Problem]:
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


def _data(
    path: Path, root: Root, coords: dict[str, NDArray[Any]], sources: dict[int, Path], progress: Progress
) -> Iterator[Problem]:
    """Read all shards, batch by batch, and compare them with the coordinates and with the sources."""
    n_tokens = coords["n_tokens"]
    arrays = {name: open_array(path, root, name) for name in ARRAY_DIMS}
    rows = chunk_shape(root, ACTIVATIONS)[0]
    for start in range(0, len(n_tokens), rows):
        batch = range(start, min(start + rows, len(n_tokens)))
        progress("verifying sentences", batch.stop, len(n_tokens))
        expected = yield from _read_sources(coords, {row: sources[row] for row in batch if row in sources})
        nonfinite = dict.fromkeys(batch, 0)
        for name, array in arrays.items():
            for file, region in _chunks(root, name, start // rows):
                if (values := (yield from _read(path, array, file, region))) is None:
                    if (path / file).is_file():  # damaged, so the values cannot be counted
                        nonfinite = {}
                    continue
                token = region[1].start
                for row, stored in zip(batch, values[:, 0], strict=True):
                    if token >= n_tokens[row]:
                        if not np.isnan(stored).all():
                            yield Problem(_sentence(coords, row), f"has values in {file} beyond its tokens")
                        continue
                    if row in nonfinite:
                        nonfinite[row] += stored.size - int(np.count_nonzero(np.isfinite(stored)))
                    if row in expected and token < len(expected[row].nonzero):  # a length that differs is reported
                        source = expected[row].token(name, token, array.shape[2:])[region[2]]
                        if stored.tobytes() != source.tobytes():
                            yield Problem(_sentence(coords, row), f"differs in {file} from {sources[row].name}")
        yield from _fragments(path, root, coords, batch, expected)
        for row, count in nonfinite.items():
            if count != coords["n_nonfinite"][row]:
                recorded = coords["n_nonfinite"][row]
                yield Problem(_sentence(coords, row), f"has {count} non-finite values; {recorded} were ingested")


def _fragments(
    path: Path, root: Root, coords: dict[str, NDArray[Any]], batch: range, expected: dict[int, Staged]
) -> Iterator[Problem]:
    """Read the fragments of a batch, file by file, and compare them."""
    array = open_array(path, root, "fragment")
    for file, region in _chunks(root, "fragment", batch.start // chunk_shape(root, "fragment")[0]):
        if (values := (yield from _read(path, array, file, region))) is None:
            continue
        for row, stored in zip(batch, values, strict=True):
            if any(stored[max(0, coords["n_tokens"][row] - region[1].start) :] != ""):
                yield Problem(_sentence(coords, row), f"has fragments in {file} beyond its tokens")
            source = expected[row].fragments[::-1][region[1]] if row in expected else ()
            if stored[: len(source)].tolist() != [*source]:
                yield Problem(_sentence(coords, row), f"differs in {file} from {expected[row].coords['source']}")


def _read_sources(
    coords: dict[str, NDArray[Any]], files: dict[int, Path]
) -> Generator[Problem, None, dict[int, Staged]]:
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


def _chunks(root: Root, name: str, batch: int | None = None) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Every file of an array, or of one batch of its sentences, and the region that it holds."""
    shape, sizes = array_metadata(root)[name]["shape"], chunk_shape(root, name)
    indices = [range(-(-size // chunk)) for size, chunk in zip(shape, sizes, strict=True)]
    if batch is not None:
        indices[0] = range(batch, batch + 1)
    for index in product(*indices):
        region = tuple(
            slice(i * chunk, min((i + 1) * chunk, size)) for i, chunk, size in zip(index, sizes, shape, strict=True)
        )
        yield f"{name}/c/{'/'.join(map(str, index))}", region


def _sentence(coords: dict[str, NDArray[Any]], row: int | np.integer[Any]) -> str:
    return f"sentence {coords['sentence'][row]} ({coords['source'][row]})"
