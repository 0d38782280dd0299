"""The two verbs: `ingest` sentences into a store, `build` a dataset from it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore import commit, sentences
from featurestore.commit import Staged, Writer
from featurestore.errors import NonFiniteError, NpzError, SelectionError, SourceError, StoreError, StoreNotFoundError
from featurestore.npz import Archive
from featurestore.schema import ACTIVATIONS, HIDDEN_STATES, SCHEMA_VERSION, SentenceFile, Skipped, __version__
from featurestore.store import extraction_of, is_store, open_store
from featurestore.strategies import Selection, format_layers, get_strategy

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.datasets import Dataset

logger = logging.getLogger(__name__)

STORES = Path("stores")
DATASETS = Path("generated_datasets")

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are read once and kept while a dataset is built; larger ones are read once a pass."""

MAX_READERS = 4
"""Threads that read sentences; each holds one sentence's dense activations."""

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""


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
    store: PathLike,
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
    source : path-like
        Folder of ``sentence_*.npz``.
    store : path-like
        The store; made if it is not there.
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
    return _sync(Path(source), Path(store), skip_bad=skip_bad, wait=wait, progress=progress)


def _sync(
    source: Path, store: Path, *, skip_bad: bool, wait: bool, progress: Progress, same_name: bool = False
) -> Ingested:
    """Ingest; with `same_name`, only into a store that holds sentences of this very folder already, or none."""
    paths = sentences.find(source)
    with commit.exclusive(store, wait):
        writer = Writer(store) if is_store(store) else None
        files, present, bad = _plan(paths, writer, progress)
        if same_name and writer and writer.n_sentences and not present:
            raise StoreError(
                f"{store}: holds no sentence of {source}, so it was made from another folder of that name; "
                f"use: ingest {source} --store OTHER, then --input OTHER"
            )
        recorded = {entry["file"] for entry in writer.root["attributes"]["skipped"]} if writer else set()
        if not skip_bad and any(entry.file not in recorded for entry in bad):
            raise SourceError(_describe(source, bad, len(paths)))
        if not files and writer is None:
            raise SourceError(f"{source}: no file can be used, so no store was made\n{_describe(source, bad, len(paths))}")
        if writer is None:
            writer = Writer.create(store, files[0].extraction, max(file.n_tokens for file in files))
        try:
            damaged = _append(writer, files, skip_bad, recorded, progress)
            writer.record_skipped([*bad, *damaged])
        except BaseException:
            writer.discard()
            raise
    skipped = tuple([*bad, *damaged])
    for entry in skipped:
        logger.warning("left out %s: %s", source / entry.file, entry.reason)
    return Ingested(store, len(files) - len(damaged), present, skipped, writer.n_sentences)


def _plan(
    paths: Sequence[Path], writer: Writer | None, progress: Progress
) -> tuple[list[SentenceFile], int, list[Skipped]]:
    """Find out which files are new, how many are there already, and which are bad."""
    digests = set(writer.coord("source_digest")) if writer else set()
    sources = dict(zip(writer.coord("sentence"), writer.coord("source"), strict=True)) if writer else {}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("checking files", done, len(paths))

    new, present, bad = [], 0, []
    for path in paths:
        try:
            with Archive(path) as archive:
                known = archive.digest in digests
        except NpzError:
            known = False  # scanning says why
        if known:
            present += 1
            advance()
        else:
            new.append(path)
    extraction = extraction_of(writer.path, writer.root) if writer else None
    scanned, bad = sentences.scan_all(new, extraction, advance)
    files = []
    for file in scanned:
        if file.sentence_index in sources:
            bad.append(
                Skipped(
                    file.path.name,
                    f"sentence_index {file.sentence_index} is in the store with other content (from "
                    f"{sources[file.sentence_index]}); ingest this folder into another store, with --store",
                )
            )
        else:
            files.append(file)
    return files, present, bad


def _append(
    writer: Writer, files: Sequence[SentenceFile], skip_bad: bool, recorded: set[str], progress: Progress
) -> list[Skipped]:
    """Append files batch by batch; return those whose data turned out to be damaged."""
    damaged: list[Skipped] = []

    def load(file: SentenceFile) -> Staged | Skipped:
        try:
            return commit.stage(sentences.read(file))
        except NpzError as error:
            if skip_bad or file.path.name in recorded:
                return Skipped(file.path.name, str(error).removeprefix(f"{file.path}: "))
            raise

    queue = iter(files)
    done = 0
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(queue, writer.room)):
            batch: list[Staged] = []
            for result in _in_order(pool, load, chunk):
                done += 1
                if isinstance(result, Skipped):
                    damaged.append(result)
                else:
                    batch.append(result)
                progress("ingesting", done, len(files))
            if batch:
                writer.append(batch)
    for file in files:
        if file.n_after_final:
            logger.warning("%s: left out %d fragments after the final token", file.path, file.n_after_final)
    return damaged


def _in_order(
    pool: ThreadPoolExecutor, load: Callable[[SentenceFile], Staged | Skipped], files: Sequence[SentenceFile]
) -> Iterator[Staged | Skipped]:
    """Yield results in order; drop what is queued as soon as one fails."""
    futures = [pool.submit(load, file) for file in files]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _describe(source: Path, bad: Sequence[Skipped], n_files: int) -> str:
    lines = [f"{source}: {len(bad)} of {n_files} files cannot be ingested; nothing was written (--skip-bad leaves them out)"]
    return "\n".join([*lines, *(f"  {source / entry.file}: {entry.reason}" for entry in bad)])


def store_path(source: PathLike) -> Path:
    """Where the store of a folder of sentence NPZs is: ``stores/<folder name>.zarr``."""
    return STORES / f"{Path(source).resolve().name}.zarr"


def find_store(source: PathLike, *, wait: bool = False, progress: Progress = lambda *_: None) -> Path:
    """Return the store that `source` is, or that of the folder of sentence NPZs that it is, brought up to date.

    Raises
    ------
    StoreNotFoundError
        If there is nothing at `source`.
    SourceError, NpzError, StoreError
        As `ingest`; also if the folder's store was made from another folder of the same name.
    """
    source = Path(source)
    if is_store(source):
        return source
    if not source.exists():
        raise StoreNotFoundError(f"{source}: no such store or folder of sentence NPZs; check the path")
    store = store_path(source)
    done = _sync(source, store, skip_bad=False, wait=wait, progress=progress, same_name=True)
    logger.info("%s: %d sentences of %s added, %d there already", store, done.added, source, done.present)
    if others := done.n_sentences - done.added - done.present:
        logger.warning("%s also holds %d sentences that are not in %s; they are used, too", store, others, source)
    return store


def build(
    store: PathLike,
    strategy: str,
    *,
    normalize: str = "standardize",
    output: PathLike | None = None,
    overwrite: bool = False,
    drop_nonfinite: bool = False,
    **parameters: Any,
) -> Dataset:
    """Build one dataset from the final tokens of a store.

    Parameters
    ----------
    store : path-like
        The store.
    strategy : str
        A registered strategy, such as ``"hidden-to-concept"``.
    normalize : str
        ``"standardize"``, ``"minmax"`` or ``"none"``.
    output : path-like, optional
        Where to write the dataset; without it nothing is written.
    overwrite : bool
        Replace an `output` that has other content.
    drop_nonfinite : bool
        Leave out sentences with NaN or infinity in X or y, and record them, instead of refusing.
    **parameters
        The strategy's options, such as ``layers="0-2,10"``.

    Returns
    -------
    Dataset
        Its `X` is lazy until it is used; `y`, the metadata and the fitted normalization are computed.

    Raises
    ------
    ParameterError
        If an option is unknown, missing, contradictory or unreadable.
    SelectionError
        If the store lacks the layer, feature or SAE, or has no sentence.
    NonFiniteError
        If X or y have NaN or infinite values and `drop_nonfinite` is false, or no sentence is left.
    DatasetError
        If `output` exists with other content and `overwrite` is false.
    StoreError
        If `store` is not a store.
    """
    import dask.array as da

    from featurestore import datasets, normalize as normalization

    normalization.check_method(normalize)
    if output is not None:
        datasets.check_output(output)
    chosen = get_strategy(strategy)
    arguments = chosen.parameters(parameters)
    ds = open_store(store)
    if ds.sizes["sentence"] == 0:
        raise SelectionError(f"{store}: holds no sentences yet; ingest some first")
    selection = chosen.select(ds, **arguments)
    X, y = _inputs(selection), selection.y.data
    rows, dropped, X = _finite_rows(X, y, ds["sentence"].values, drop_nonfinite)
    fitted = normalization.fit(normalize, X)
    labels = np.asarray(y)[rows]
    dataset = datasets.Dataset(
        da.map_blocks(fitted.transform, X, dtype=np.float32, meta=np.empty((0, 0), np.float32)),
        labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float32),
        _metadata(Path(store), strategy, ds, selection, X.shape[1], rows, dropped),
        fitted,
    )
    if output is not None:
        dataset.save(output, overwrite=overwrite)
    return dataset


def default_output(store: PathLike, strategy: str, normalize: str, parameters: dict[str, Any]) -> Path:
    """Name a dataset after what is in it: ``generated_datasets/<store>/<strategy and its parameters>.npz``."""
    arguments = get_strategy(strategy).parameters(parameters)
    words = [strategy]
    for name, value in arguments.items():
        words.append(f"{name.replace('_', '-')}-{format_layers(value) if isinstance(value, tuple) else value}")
    return DATASETS / Path(store).resolve().stem / f"{'_'.join([*words, normalize])}.npz"


def _inputs(selection: Selection) -> da.Array:
    """Flatten X to 2-D, one dask chunk wide, and keep it in memory if it is small."""
    X = selection.X.data
    X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1)).reshape(len(X), -1)
    return X.persist() if X.nbytes <= IN_MEMORY_BYTES else X


def _finite_rows(
    X: da.Array, y: da.Array | NDArray[Any], sentence: NDArray[np.int64], drop: bool
) -> tuple[NDArray[np.intp], NDArray[np.int64], da.Array]:
    """Return the rows to use, the sentences dropped, and X of these rows."""
    import dask.array as da

    finite = da.isfinite(X).all(axis=1).compute() & np.isfinite(np.asarray(y))
    bad = sentence[~finite]
    if len(bad) == 0:
        return np.arange(len(finite)), bad, X
    some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
    found = f"{len(bad)} of {len(finite)} sentences have NaN or infinite values (sentence_index {some})"
    if not drop:
        raise NonFiniteError(f"{found}, which no dataset may hold; leave them out with --drop-nonfinite")
    if len(bad) == len(finite):
        raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
    rows = np.flatnonzero(finite)
    return rows, bad, X[rows]


def _metadata(
    store: Path,
    strategy: str,
    ds: xr.Dataset,
    selection: Selection,
    width: int,
    rows: NDArray[np.intp],
    dropped: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    X, y = selection.X, selection.y
    used = ds[["sentence", "source_digest"]].isel(sentence=rows)
    content = zip(used["sentence"].values.tolist(), used["source_digest"].values.tolist(), strict=True)
    metadata: dict[str, Any] = {
        "strategy": strategy,
        "input_source": X.name,
        "input_layers": np.atleast_1d(X["layer"].values) if X.name == HIDDEN_STATES else np.array([], np.int64),
        "input_dims": width,
        "n_samples": len(rows),
        "sentence_indices": used["sentence"].values,
    }
    if y.name == ACTIVATIONS:
        metadata |= {
            "target_layer": y["layer"].values,
            "target_feature": y["feature"].values,
            "average_l0": y["average_l0"].values,
        }
    metadata |= {
        "store": store.resolve().stem,
        "schema_version": SCHEMA_VERSION,
        "featurestore_version": __version__,
        "sentences_digest": hashlib.sha256(repr(list(content)).encode()).hexdigest(),
        "dropped_sentence_indices": dropped,
    }
    return {name: np.asarray(value) for name, value in metadata.items()}
