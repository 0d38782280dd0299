"""A store in which layer 5 and feature 3 of its SAE know the label, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import featurestore
from tests.sentences import sentence_arrays, write_sentence

LAYERS = (0, 1, 5)
TOPICS = (
    "the harbour at dawn", "an old violin", "seven green bottles", "my neighbour's goat", "a broken umbrella",
    "fresh bread and salt", "the last train home", "chess in the park", "a jar of buttons", "snow over Lisbon",
    "two brass keys", "a letter never sent", "the cellar stairs", "paint on his sleeve", "a fox by the road",
    "wool from the market", "her yellow bicycle", "thunder after lunch", "an empty theatre", "the copper kettle",
)  # fmt: skip
"""Texts that are not nearly the same as another."""


def planted_arrays(index: int, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of one sentence of label 0, 1, 2 or 3; the first token is a BOS of huge norm."""
    tokens = 3 + index % 4
    arrays = sentence_arrays(index, tokens=tokens, layers=LAYERS, **options)
    label = index % 4
    words = ["<bos>", *TOPICS[index].split()]
    words = [*words[: tokens - 1], " ".join(words[tokens - 1 :])] if len(words) > tokens else words
    fragments = [" ".join(words[: position + 1]) for position in range(tokens)]
    arrays |= {"sentence": np.array(TOPICS[index]), "fragments": np.array(fragments, "U")}
    hidden_states = arrays["hidden_states"].copy()
    hidden_states[2, -1, label] += 60
    hidden_states[:, 0] = 500
    activations = arrays["activations"].copy()
    activations[2, -1, 3] = label
    activations[2, :, 9] = 0  # never active
    return arrays | {"hidden_states": hidden_states, "activations": activations}


def write_planted(folder: Path, n: int = 20, drop: tuple[str, ...] = (), **changes: Any) -> list[dict[str, Any]]:
    """Write a folder of such sentences, some arrays of each left out or replaced; return what was planted."""
    sentences = [planted_arrays(index) | changes for index in range(n)]
    for index, arrays in enumerate(sentences):
        write_sentence(folder, index, changes=arrays, drop=drop)
    return sentences


def planted_store(folder: Path, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Make a store of such a folder; its first token is a special one."""
    sentences = write_planted(folder / "planted", **options)
    featurestore.ingest(folder / "planted", folder / "planted.zarr", special_first=1)
    return folder / "planted.zarr", sentences
