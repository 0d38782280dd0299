"""The questions of ``queries.py`` and how they are asked: of a store, and of the same sentences in other files."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Calls = dict[str, Callable[[], Any]]

LAYER, FEATURE = 5, 123
QUESTIONS = {
    "layers": "hidden states of 6 layers, final token",
    "feature": "one feature, final token",
    "features": "all features of a layer, final token",
    "trajectories": "one feature, all tokens",
    "sentence": "all of a sentence of median length",
    "mean": "mean of a layer over tokens",
    "density": "density of all features, final token",
}
ARRAYS = ("hidden_states", "activations")


class Place(NamedTuple):
    """Where things are, and which sentence is asked for: one of median length."""

    store: Path
    files: Path
    row: int
    length: int


def read(source: Path, rows: slice = slice(None)) -> Iterator[tuple[Array, Array]]:
    """Yield hidden states (token, layer, hidden) and activations (token, layer, feature) of each sentence."""
    for path in sorted(source.glob("sentence_*.npz"))[rows]:
        with np.load(path) as archive:
            hidden_states, activations = (archive[name].swapaxes(0, 1) for name in ARRAYS)
        yield hidden_states, activations


def median_sentence(n_tokens: Array) -> tuple[int, int]:
    """Return row and length of the first sentence of median length."""
    length = int(np.sort(n_tokens)[len(n_tokens) // 2])
    return int((n_tokens == length).argmax()), length


def write_expected(folder: str, output: str) -> None:
    """Answer all questions from the NPZs alone."""
    answers: dict[str, Any] = defaultdict(list)
    active: Any = 0
    for hidden_states, activations in read(Path(folder)):
        answers["n_tokens"].append(len(hidden_states))
        answers["layers"].append(hidden_states[-1, :6].copy())  # a view would keep all of the sentence in memory
        answers["feature"].append(activations[-1, LAYER, FEATURE])
        answers["features"].append(activations[-1, LAYER].copy())
        answers["trajectories"].append(activations[:, LAYER, FEATURE].copy())
        answers["mean"].append(hidden_states[:, LAYER].mean(axis=0, dtype="f4"))
        active = active + (activations[-1] > 0)
    longest = max(answers["n_tokens"])
    answers["trajectories"] = [padded(values, longest) for values in answers["trajectories"]]
    answers["density"] = active / len(answers["n_tokens"])
    row, _ = median_sentence(np.array(answers["n_tokens"]))
    answers |= zip(ARRAYS, next(read(Path(folder), slice(row, None))), strict=True)
    partial = Path(f"{output}.partial.npz")
    np.savez(partial, **answers)
    partial.rename(output)


def padded(values: Array, longest: int) -> Array:
    """Put NaN before the first token."""
    padding = np.full((longest - len(values), *values.shape[1:]), np.nan, values.dtype)
    return np.concatenate([padding, values])


def check(question: str, answer: Any, expected: Any) -> None:
    """Compare an answer with that of the NPZs, to the dtype."""
    if question in ("mean", "density"):
        np.testing.assert_allclose(answer, expected[question], rtol=1e-5, atol=1e-6, strict=True)
        return
    parts = zip(ARRAYS, answer, strict=True) if question == "sentence" else [(question, answer)]
    for name, part in parts:
        np.testing.assert_array_equal(part, expected[name], strict=True)


def write_files(folder: str, output: str, lengths: str) -> None:
    """Write the files of HDF5, memmap and Parquet; tokens in reading order, the final one last, NaN before them."""
    source, partial = Path(folder), Path(f"{output}.partial")
    with np.load(lengths) as expected:
        n_tokens = expected["n_tokens"]
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    np.save(partial / "n_tokens.npy", n_tokens)
    write_hdf5(partial / "sentences.h5", source, n_tokens)
    write_memmap(partial / "hidden_states.npy", source, n_tokens)
    write_sparse(partial, source, n_tokens)
    write_parquet(partial / "hidden_states.parquet", np.load(partial / "hidden_states.npy", mmap_mode="r"), n_tokens)
    partial.rename(output)


def write_hdf5(path: Path, source: Path, n_tokens: Array) -> None:
    """Write a chunk a sentence, all layers in it; of activations a chunk a token, compressed: as they are, 25 GB."""
    import h5py

    longest = n_tokens.max()
    with h5py.File(path, "w") as file:
        for row, arrays in enumerate(read(source)):
            for name, values, tokens, compression in zip(ARRAYS, arrays, (longest, 1), (None, "lzf"), strict=True):
                if row == 0:
                    options = {"chunks": (1, tokens, *values.shape[1:]), "compression": compression}
                    shape = (len(n_tokens), longest, *values.shape[1:])
                    file.create_dataset(name, shape, values.dtype, fillvalue=np.nan, **options)
                file[name][row, longest - len(values) :] = values


def write_memmap(path: Path, source: Path, n_tokens: Array) -> None:
    """Write dense hidden states."""
    dense: Any = None
    for row, (hidden_states, _) in enumerate(read(source)):
        if dense is None:
            shape = (len(n_tokens), int(n_tokens.max()), *hidden_states.shape[1:])
            dense = np.lib.format.open_memmap(path, "w+", hidden_states.dtype, shape)
        dense[row] = padded(hidden_states, len(dense[row]))


def write_sparse(folder: Path, source: Path, n_tokens: Array) -> None:
    """Write the activations as CSR: a row a sentence, token and layer, empty where there is no token."""
    from scipy.sparse import csr_array, vstack

    blocks = []
    for _, activations in read(source):
        tokens, layers, features = activations.shape
        padding = csr_array(((int(n_tokens.max()) - tokens) * layers, features), dtype=activations.dtype)
        blocks += [padding, csr_array(activations.reshape(-1, features))]
    matrix = vstack(blocks, format="csr")
    for name in ("data", "indices", "indptr"):
        np.save(folder / f"activations_{name}.npy", getattr(matrix, name))


def write_parquet(path: Path, hidden_states: Array, n_tokens: Array) -> None:
    """Write a row a token and a column a layer; a row group has one token of all sentences, the final one first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, longest, layers, hidden = hidden_states.shape
    vector = pa.binary(2 * hidden)
    schema = pa.schema({"sentence": pa.int64(), "token": pa.int64()} | {f"layer_{i}": vector for i in range(layers)})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": ["token"]}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for token in range(-1, -longest - 1, -1):
            rows = np.flatnonzero(n_tokens >= -token)
            columns = [pa.array(rows), pa.array(np.full(len(rows), token))]
            for layer in range(layers):
                data = pa.py_buffer(np.ascontiguousarray(hidden_states[rows, token, layer]))
                columns.append(pa.FixedSizeBinaryArray.from_buffers(vector, len(rows), [None, data]))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))


def by_open_store(place: Place) -> Calls:
    import featurestore

    @cache
    def by_dask() -> Any:
        return featurestore.open_store(place.store, chunks={})

    ds = featurestore.open_store(place.store)
    one = {"sentence": place.row, "token": slice(-place.length, None)}

    def sentence() -> list[Array]:
        found = ds[list(ARRAYS)].isel(one).compute()
        return [found[name].values for name in ARRAYS]

    return {
        "layers": lambda: ds.hidden_states.sel(token=-1, layer=slice(0, 5)).values,
        "feature": lambda: ds.activations.sel(token=-1, layer=LAYER, feature=FEATURE).values,
        "features": lambda: ds.activations.sel(token=-1, layer=LAYER).values,
        "trajectories": lambda: ds.activations.sel(layer=LAYER, feature=FEATURE).values,
        "sentence": sentence,
        "mean": lambda: ds.hidden_states.sel(layer=LAYER).mean("token", dtype="f4").values,
        "density": lambda: (by_dask().activations.sel(token=-1) > 0).mean("sentence").compute().values,
    }


def by_zarr(place: Place) -> Calls:
    """Ask Zarr, as it is by default; on disk the final token comes first."""
    import zarr

    group = zarr.open_group(place.store, mode="r")
    arrays: list[Any] = [group[name] for name in ARRAYS]
    hidden_states, activations = arrays
    return {
        "layers": lambda: hidden_states[:, 0, :6],
        "feature": lambda: activations[:, 0, LAYER, FEATURE],
        "features": lambda: activations[:, 0, LAYER],
        "trajectories": lambda: activations[:, :, LAYER, FEATURE][:, ::-1],
        "sentence": lambda: [array[place.row, : place.length][::-1] for array in arrays],
        "mean": lambda: np.nanmean(hidden_states[:, :, LAYER], axis=1, dtype="f4"),
        "density": lambda: (activations[:, 0] > 0).mean(axis=0),
    }


def by_fused(place: Place) -> Calls:
    import zarr

    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
        return by_zarr(place)


def by_h5py(place: Place) -> Calls:
    import h5py

    file = h5py.File(place.files / "sentences.h5")
    hidden_states, activations = arrays = [file[name] for name in ARRAYS]
    return {
        "layers": lambda: hidden_states[:, -1, :6],
        "feature": lambda: activations[:, -1, LAYER, FEATURE],
        "features": lambda: activations[:, -1, LAYER],
        "trajectories": lambda: activations[:, :, LAYER, FEATURE],
        "sentence": lambda: [array[place.row, array.shape[1] - place.length :] for array in arrays],
        "mean": lambda: np.nanmean(hidden_states[:, :, LAYER], axis=1, dtype="f4"),
        "density": lambda: (activations[:, -1] > 0).mean(axis=0),
    }


def by_parquet(place: Place) -> Calls:
    """Ask Parquet what makes sense of one file with a column a layer; activations are no such table."""
    import pyarrow.parquet as pq

    path = place.files / "hidden_states.parquet"
    n_tokens = np.load(place.files / "n_tokens.npy")

    def vectors(column: Any) -> Array:
        data = np.frombuffer(column.combine_chunks().buffers()[1], np.float16)
        return data.reshape(len(column), -1)

    def layers() -> Array:
        table = pq.read_table(path, columns=[f"layer_{i}" for i in range(6)], filters=[("token", "==", -1)])
        return np.stack([vectors(column) for column in table.columns], axis=1)

    def mean() -> Array:
        table = pq.read_table(path, columns=["sentence", f"layer_{LAYER}"])
        sentences, values = table["sentence"].to_numpy(), vectors(table[f"layer_{LAYER}"])
        sums: Array = np.zeros((len(n_tokens), values.shape[1]), np.float32)
        stops = np.cumsum([(n_tokens > token).sum() for token in range(n_tokens.max())])
        for start, stop in zip([0, *stops[:-1]], stops, strict=True):
            sums[sentences[start:stop]] += values[start:stop]
        sums /= n_tokens[:, None]
        return sums

    return {"layers": layers, "mean": mean}


def by_memmap(place: Place) -> Calls:
    """Ask a dense memmap of hidden states, and the activations as CSR: a row a sentence, token and layer."""
    from scipy.sparse import csr_array

    hidden_states = np.load(place.files / "hidden_states.npy", mmap_mode="r")
    n_tokens = np.load(place.files / "n_tokens.npy")
    sentences, tokens, layers, _ = hidden_states.shape
    parts = (np.load(place.files / f"activations_{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr"))
    activations = csr_array(tuple(parts))
    rows = np.arange(sentences * tokens * layers).reshape(sentences, tokens, layers)
    is_token = np.arange(tokens) >= tokens - n_tokens[:, None]

    def trajectories() -> Array:
        found: Array = activations[rows[:, :, LAYER].ravel()][:, [FEATURE]].toarray().reshape(is_token.shape)
        found[~is_token] = np.nan
        return found

    def sentence() -> list[Array]:
        start = tokens - place.length
        found = activations[rows[place.row, start:].ravel()].toarray()
        return [np.array(hidden_states[place.row, start:]), found.reshape(place.length, layers, -1)]

    return {
        "layers": lambda: np.array(hidden_states[:, -1, :6]),
        "feature": lambda: activations[rows[:, -1, LAYER]][:, [FEATURE]].toarray()[:, 0],
        "features": lambda: activations[rows[:, -1, LAYER]].toarray(),
        "trajectories": trajectories,
        "sentence": sentence,
        "mean": lambda: np.nanmean(hidden_states[:, :, LAYER], axis=1, dtype="f4"),
        "density": lambda: np.stack([(activations[column] > 0).mean(axis=0) for column in rows[:, -1].T]),
    }


PEERS = {
    "open_store": by_open_store,
    "zarr": by_zarr,
    "fused": by_fused,
    "h5py": by_h5py,
    "Parquet": by_parquet,
    "memmap": by_memmap,
}
