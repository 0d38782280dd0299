"""What the store of a folder will hold, known before it is there: for plans that write nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.paths import PathLike
from featurestore.schema import ARRAYS, Extraction, Progress, SentenceFile
from featurestore.sources import sentences
from featurestore.store import changes
from featurestore.store.ingest import existing, store_path
from featurestore.store.layout import CHECKSUMS, SENTENCE_COORDS, TOKEN_COORDS
from featurestore.store.location import ReadOnlyPath
from featurestore.store.seen import Seen
from featurestore.store.snapshot import Snapshot, is_store

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray


def outline(source: PathLike | ReadOnlyPath, *, progress: Progress = lambda *_: None) -> xr.Dataset | None:
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
    source = existing(source)
    if isinstance(source, ReadOnlyPath) or is_store(source):
        return None
    path, paths = store_path(source), sentences.find(source)
    store = Snapshot.read(path) if is_store(path) else None
    found = changes.compare(paths, store, Seen(path), progress)
    if store and not found.new:
        return None
    scanned = changes.scan(found.new, store, progress)
    if scanned.bad:
        raise changes.refusal(source, scanned.bad, len(paths))
    coords: dict[str, list[Any]] = {name: store.coord(name).tolist() if store else [] for name in SENTENCE_COORDS}
    special = [*store.array("is_special")[:, :]] if store else []
    for file in scanned.files:
        text, label, marks = sentences.words(file)
        for name, value in _coords_of(file, text, label).items():
            coords[name].append(value)
        special.append(marks | (np.arange(len(marks)) < (store.special_first if store else 0)))
    return _labelled(store.extraction if store else scanned.files[0].extraction, coords, special)


def _coords_of(file: SentenceFile, text: str, label: int | None) -> dict[str, Any]:
    return {
        "sentence": file.sentence_index,
        "label": -1 if label is None else label,
        "has_label": label is not None,
        "n_tokens": file.n_tokens,
        "n_nonfinite": 0,
        "text": text,
        "source": file.path.name,
        "source_digest": file.digest,
    }


def _labelled(
    extraction: Extraction, coords: Mapping[str, Sequence[Any]], special: Sequence[NDArray[np.bool_]] = ()
) -> xr.Dataset:
    """Label zeros of the sizes that the store will have, by coordinates along `sentence`.

    Of each sentence `special` says which tokens are special, in reading order, with or without padding.
    """
    import dask.array as da
    import xarray as xr

    from featurestore.store.backend import SENTENCES_PER_CHUNK

    tokens = max(coords["n_tokens"])
    sizes = {"sentence": len(coords["sentence"]), "token": tokens, **extraction.sizes}

    def zeros(dims: Sequence[str], dtype: str) -> tuple[Sequence[str], da.Array]:
        steps = {"sentence": SENTENCES_PER_CHUNK, "token": 1, "layer": 1, "sae": 1}
        shape, chunks = [sizes[dim] for dim in dims], tuple(steps.get(dim, -1) for dim in dims)
        if dtype == "string":
            return dims, da.full(shape, "", dtype=object, chunks=chunks)
        return dims, da.zeros(shape, dtype, chunks=chunks)

    dtypes = dict(zip(ARRAYS, extraction.dtypes, strict=True))
    data = {name: zeros(dims, dtypes[name]) for name, dims in extraction.dims.items()}
    labels: dict[str, Any] = {name: ("sentence", np.array(values)) for name, values in coords.items()}
    labels |= {CHECKSUMS[name]: zeros(("sentence",), "int32") for name in data}
    labels |= {name: zeros(("sentence", "token"), dtype) for name, dtype in TOKEN_COORDS.items()}
    labels["token"] = np.arange(-tokens, 0)
    if special:
        of_all = np.zeros((len(special), tokens), np.bool_)
        for row, marks in zip(of_all, special, strict=True):
            row[tokens - len(marks) :] = marks
        labels["is_special"] = ("sentence", "token"), of_all
    labels["is_token"] = ("sentence", "token"), labels["token"] >= -np.array(coords["n_tokens"])[:, None]
    for name, dim, values in (
        ("layer", "layer", extraction.layers),
        ("sae_layer", "sae", extraction.sae_layers),
        ("average_l0", extraction.sae_dim, extraction.average_l0s),
        ("feature", "feature", range(extraction.features)),
    ):
        if dim in extraction.sizes and len(values):
            labels[name] = (dim, np.array(values))
    return xr.Dataset(data, labels)
