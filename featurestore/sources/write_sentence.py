"""One sentence NPZ by hand, such as `ingest` reads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from featurestore.files import whole_file
from featurestore.paths import PathLike, as_path
from featurestore.sources.given import InCommon, checked, given


def write_sentence(
    path: PathLike,
    *,
    layers: Sequence[int] | str = (),
    sae_layers: Sequence[int] | str | None = None,
    average_l0s: Sequence[float] | None = None,
    sentence_index: int,
    text: str,
    label: int | None = None,
    fragments: Iterable[str] | None = None,
    tokens: Iterable[str] | None = None,
    special: Any = None,
    embeddings: Any = None,
    hidden_states: Any = None,
    activations: Any = None,
    features: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write one valid sentence NPZ, compressed; it appears whole or not at all.

    All arguments but two are those of `featurestore.writer` and of its `append`, with the same checks and messages.

    Parameters
    ----------
    path : str or PathLike
        The file; `ingest` looks for ``sentence_*.npz``. Folders that it lacks are made.
    overwrite : bool
        Replace a file of other content.
    layers, sae_layers, average_l0s
        See `featurestore.writer`.
    sentence_index, text, label, fragments, tokens, special, embeddings, hidden_states, activations, features
        See `featurestore.store.writer.SentenceWriter.append`.

    Raises
    ------
    ParameterError
        If arrays are missing, or contradict each other; nothing is written.
    DatasetError
        If there is a file of other content, and `overwrite` is false.
    """
    raw = given(
        InCommon.of(layers, sae_layers, average_l0s), sentence_index=sentence_index, text=text, label=label,
        fragments=fragments, tokens=tokens, special=special, embeddings=embeddings, hidden_states=hidden_states,
        activations=activations, features=features,
    )  # fmt: skip
    checked(raw, None)
    arrays = {name: raw.array(name) for name in raw.arrays} | {"fragments": np.array(raw.fragments)}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with whole_file(as_path(path), overwrite=overwrite) as file:
        file.write(content.getbuffer())
