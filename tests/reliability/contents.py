"""An independent view of sentence NPZs, by `numpy.load` alone, and of stores, to compare them byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import featurestore

ARRAYS = ("embeddings", "hidden_states", "activations")

Contents = dict[int, dict[str, Any]]
"""What each sentence holds, by its sentence_index, in order: arrays as dtype, shape (token first) and bytes."""


def sentence_bytes(*folders: Path) -> Contents:
    """What a store is to hold of these folders: sentences in file-name order, tokens up to the final one."""
    contents = {}
    for path in [path for folder in folders for path in sorted(folder.glob("sentence_*.npz"))]:
        with np.load(path) as npz:
            tokens = int(np.flatnonzero(npz["is_final_token"])[-1]) + 1
            values = {
                "source": path.name,
                "text": npz["sentence"].item(),
                "label": npz["concept_strength_label"].item(),
                "n_tokens": tokens,
                "fragments": npz["fragments"].tolist()[:tokens],
            }
            for name in ARRAYS:
                array = npz[name] if name == "embeddings" else npz[name].swapaxes(0, 1)
                if name == "hidden_states":  # each layer once, however many SAEs it has
                    layers = npz["layers"].tolist()
                    array = array[:, sorted({layers.index(layer) for layer in layers})]
                values[name] = _packed(array[:tokens])
            index = npz["sentence_index"].item()
        assert index not in contents
        contents[index] = values
    return contents


def store_bytes(path: Path) -> Contents:
    """What a store holds; asserts that no sentence is there twice, and that padding is empty or NaN."""
    ds = featurestore.open_store(path).compute()
    contents = {}
    for row, index in enumerate(ds["sentence"].values.tolist()):
        tokens, text = int(ds["n_tokens"].values[row]), ds["fragment"].values[row].tolist()
        padding = ds.sizes["token"] - tokens
        values = {
            "source": str(ds["source"].values[row]),
            "text": str(ds["text"].values[row]),
            "label": int(ds["label"].values[row]),
            "n_tokens": tokens,
            "fragments": text[padding:],
        }
        assert text[:padding] == [""] * padding
        for name in ARRAYS:
            array = ds[name].values[row]
            assert np.isnan(array[:padding]).all(), (index, name)
            values[name] = _packed(array[padding:])
        assert index not in contents
        contents[index] = values
    return contents


def check(path: Path, *folders: Path, from_files: bool = True) -> int:
    """Assert that a store holds the first sentences of folders, in order, and nothing else; return how many.

    Those that are not `from_files` have no source.
    """
    stored, source = store_bytes(path), sentence_bytes(*folders)
    assert [*stored] == [*source][: len(stored)]
    for index, values in stored.items():
        for name, value in values.items():
            expected = source[index][name] if from_files or name != "source" else ""
            assert value == expected, (index, name)
    return len(stored)


def tree(path: Path) -> dict[str, bytes]:
    """All files below a folder, with their bytes, but for the cache of what was seen of the sources."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".seen"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _packed(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    native = array.astype(array.dtype.newbyteorder("="))
    return native.dtype.str, native.shape, native.tobytes()
