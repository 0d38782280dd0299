"""From a store to a dataset: select by a strategy, normalize, and say where it all came from."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from featurestore import datasets
from featurestore import normalize as normalization
from featurestore.errors import NonFiniteError, SelectionError
from featurestore.layers import format_layers
from featurestore.reading import open_store
from featurestore.schema import ACTIVATIONS, HIDDEN_STATES, SCHEMA_VERSION, __version__
from featurestore.strategies import Selection, get_strategy

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

DATASETS = Path("generated_datasets")

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are read once and kept while a dataset is built; larger ones are read once a pass."""

PathLike = str | os.PathLike[str]


def build(
    store: PathLike,
    strategy: str,
    *,
    normalize: str = "standardize",
    output: PathLike | None = None,
    overwrite: bool = False,
    drop_nonfinite: bool = False,
    **parameters: Any,
) -> datasets.Dataset:
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
    normalization.check_method(normalize)
    if output is not None:
        datasets.check_output(output)
    chosen = get_strategy(strategy)
    arguments = chosen.parameters(parameters)
    ds = open_store(store)
    if ds.sizes["sentence"] == 0:
        raise SelectionError(f"{store}: holds no sentences yet; ingest some first")
    if expected := ds.attrs["expected_sentences"]:
        found = f"{ds.sizes['sentence']} of {expected} sentences"
        logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", store, found)
    try:
        selection = chosen.select(ds, **arguments)
    except SelectionError as error:
        raise SelectionError(f"{store}: {error}") from None
    X, y = _inputs(selection), np.asarray(selection.y.data)
    rows, dropped = _finite_rows(X, y, ds["sentence"].values, drop_nonfinite)
    if not np.array_equal(rows, np.arange(len(X))):
        X = X[rows]
    fitted = normalization.fit(normalize, X)
    dataset = datasets.Dataset(
        da.map_blocks(fitted.transform, X, dtype=np.float32, meta=np.empty((0, 0), np.float32)),
        y[rows].astype(np.int64 if y.dtype.kind in "iu" else np.float32),
        _metadata(Path(store), strategy, ds, selection, X.shape[1], rows, dropped),
        fitted,
    )
    if np.all(y[rows] == y[rows[0]]):
        logger.warning("y is constant: %s for all %d sentences", y[rows[0]], len(rows))
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
    X: da.Array = selection.X.data
    X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1)).reshape(len(X), -1)
    return X.persist() if X.nbytes <= IN_MEMORY_BYTES else X


def _finite_rows(
    X: da.Array, y: NDArray[Any], sentence: NDArray[np.int64], drop: bool
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the rows to use, in the order of their sentence_index, and the sentences dropped."""
    finite = da.isfinite(X).all(axis=1).compute() & np.isfinite(y)
    order = np.argsort(sentence)
    bad = np.sort(sentence[~finite])
    if len(bad) == 0:
        return order, bad
    some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
    found = f"{len(bad)} of {len(finite)} sentences have NaN or infinite values (sentence_index {some})"
    if not drop:
        raise NonFiniteError(f"{found}, which no dataset may hold; leave them out with --drop-nonfinite")
    if len(bad) == len(finite):
        raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
    return order[finite[order]], bad


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
