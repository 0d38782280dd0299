"""Small sentence NPZs in the extraction stage's format, made by numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = Path(__file__).parents[1] / "examples" / "dishonesty"


def sentence_arrays(
    index: int,
    *,
    tokens: int = 4,
    layers: Sequence[int] = (0, 1, 5),
    average_l0s: Sequence[float] | None = None,
    hidden: int = 6,
    features: int = 10,
    dtype: str = "float16",
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of one sentence, random but always the same for the same arguments."""
    rng = np.random.default_rng([seed, index])
    n_layers = len(layers)
    activations = rng.gamma(2.0, 3.0, (n_layers, tokens, features)).astype(np.float32)
    activations[rng.random(activations.shape) < 0.7] = 0
    embeddings = rng.standard_normal((tokens, hidden)).astype(dtype)
    hidden_states = (5 * rng.standard_normal((n_layers, tokens, hidden))).astype(dtype)
    hidden_states = hidden_states[[list(layers).index(layer) for layer in layers]]  # the same for each SAE of a layer
    words = [f"w{index}.{position}" for position in range(tokens)]
    fragments = [" ".join(words[: position + 1]) for position in range(tokens)]
    return {
        "sentence": np.array(" ".join(words)),
        "concept_strength_label": np.array(index % 4),
        "sentence_index": np.array(index),
        "fragments": np.array(fragments, dtype="U"),
        "token_positions": np.arange(tokens),
        "is_final_token": np.arange(tokens) == tokens - 1,
        "fragment_lengths": np.arange(1, tokens + 1),
        "embeddings": embeddings,
        "hidden_states": hidden_states,
        "activations": activations,
        "layers": np.array(layers),
        "average_l0s": np.array(average_l0s or [3] * n_layers),
        "num_features": np.array(features),
        "hidden_dim": np.array(hidden),
    }


def write_sentence(folder: Path, index: int, *, drop: Sequence[str] = (), changes: Any = None, **options: Any) -> Path:
    """Write ``sentence_<index + 1>.npz``, without the arrays in `drop` and with those in `changes` replaced."""
    arrays = sentence_arrays(index, **options) | (changes or {})
    for name in drop:
        del arrays[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sentence_{index + 1:06d}.npz"
    np.savez_compressed(path, **arrays)
    return path


def write_folder(folder: Path, n: int, **options: Any) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Write `n` sentences of 2 to 7 tokens; return the arrays of each."""
    sentences = []
    for index in range(n):
        tokens = 2 + (index * 5) % 6
        write_sentence(folder, index, tokens=tokens, **options)
        sentences.append(sentence_arrays(index, tokens=tokens, **options))
    return sentences
