"""The sentence NPZs of the extraction stage: find them, check their headers, read them.

One file is one sentence: T cumulative token fragments, L layers of hidden states, S SAEs, H hidden, F features. The
extraction stage writes hidden states once for each SAE, so L = S, and a layer with several SAEs repeats them; where
there is an array `sae_layers`, L counts layers alone. Any of the three big arrays may be absent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, SourceError
from featurestore.npz import Archive
from featurestore.schema import (
    ARRAYS,
    HIDDEN_STATES,
    Extraction,
    SentenceFile,
    Skipped,
)
from featurestore.sources.contents import (
    AGAIN,
    LABEL,
    MAX_FRAGMENTS_BYTES,
    MAX_SMALL_BYTES,
    contents_of,
    integers,
    label_of,
    texts,
)
from featurestore.sources.sentence import Sentence

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PATTERN = "sentence_*.npz"


def find(folder: Path) -> list[Path]:
    """List the sentence NPZs of a folder, in the order of their names.

    Raises
    ------
    SourceError
        If there is no such folder, or no ``sentence_*.npz`` in it.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise SourceError(f"{folder}: expected a folder of {PATTERN} files, found {found}; check the path")
    paths = sorted(folder.glob(PATTERN), key=lambda path: (len(path.name), path.name))
    if not paths:
        below = sorted({path.parent for path in folder.glob(f"*/{PATTERN}")})
        advice = f"did you mean {below[0]}?" if below else "check the path"
        raise SourceError(f"{folder}: expected files named {PATTERN}, found none; {advice}")
    return paths


def scan(path: Path) -> SentenceFile:
    """Check one file's headers and small arrays without reading the big ones.

    Raises
    ------
    NpzError
        If the file is damaged, unsafe, incomplete, or its arrays contradict each other.
    """
    with Archive(path) as archive:
        return contents_of(archive).file


def words(file: SentenceFile) -> tuple[str, int | None, NDArray[np.bool_]]:
    """Read the text and the label of a checked file, and which of its tokens are special.

    Raises
    ------
    NpzError
        As `scan`.
    """
    with Archive(file.path) as archive:
        contents = contents_of(archive)
        return contents.text, contents.label, _special(archive, file.n_tokens)


def _special(archive: Archive, n_tokens: int) -> NDArray[np.bool_]:
    if "is_special" not in archive:
        return np.zeros(n_tokens, np.bool_)
    return archive.array("is_special", MAX_SMALL_BYTES)[:n_tokens]


def scan_all(
    paths: Iterable[Path], extraction: Extraction | None, advance: Callable[[], None]
) -> tuple[list[SentenceFile], list[Skipped]]:
    """Check many files, and that they belong together.

    Parameters
    ----------
    paths : iterable of Path
        The files.
    extraction : Extraction or None
        What the store holds already; without it, what most of the files hold.
    advance : callable
        Called after each file.

    Returns
    -------
    files : list of SentenceFile
        The good ones, in order.
    bad : list of Skipped
        The others, each with its reason.
    """
    files: list[SentenceFile] = []
    bad: list[Skipped] = []
    shared: dict[Extraction, Extraction] = {}
    for path in paths:
        try:
            file = scan(path)
            files.append(replace(file, extraction=shared.setdefault(file.extraction, file.extraction)))
        except NpzError as error:
            bad.append(Skipped(path.name, error.reason))
        advance()
    expected, whose = extraction, "the store"
    if expected is None and files:
        expected, whose = Counter(file.extraction for file in files).most_common(1)[0][0], "the other files"
    good: dict[int, SentenceFile] = {}
    for file in files:
        if expected and (differences := expected.differences(file.extraction)):
            problem = f"does not fit {whose}: {'; '.join(differences)}; ingest it into a store of its own"
        elif twin := good.get(file.sentence_index):
            problem = f"has the sentence_index {file.sentence_index} of {twin.path.name}; remove one of the two"
        else:
            good[file.sentence_index] = file
            continue
        bad.append(Skipped(file.path.name, problem))
    return list(good.values()), bad


def read(file: SentenceFile) -> Sentence:
    """Read a checked file whole, without the fragments after the final token.

    Raises
    ------
    NpzError
        If an array fails its CRC-32, or the file is no longer the one that was checked.
    """
    with Archive(file.path) as archive:
        if archive.digest != file.digest:
            problem = "the file changed while it was being ingested; run the command again"
            raise NpzError.of(archive.path, problem)
        n = file.n_tokens
        embeddings, hidden_states, activations = (archive.array(name) if name in archive else None for name in ARRAYS)
        return Sentence(
            file=file,
            text=texts(archive, "sentence")[0],
            fragments=texts(archive, "fragments", MAX_FRAGMENTS_BYTES)[:n],
            label=label_of(archive),
            special=_special(archive, n),
            embeddings=None if embeddings is None else embeddings[:n],
            hidden_states=None if hidden_states is None else _each_layer_once(archive, hidden_states)[:, :n],
            activations=None if activations is None else activations[:, :n],
        )


def _each_layer_once(archive: Archive, hidden_states: NDArray[Any]) -> NDArray[Any]:
    """Leave out the copies that a layer with several SAEs has, after comparing them."""
    layers = integers(archive, "layers")
    first: dict[int, int] = {}
    for position, layer in enumerate(layers):
        kept = first.setdefault(layer, position)
        if kept != position and hidden_states[kept].tobytes() != hidden_states[position].tobytes():
            found = f"differs between the SAEs of layer {layer}, at positions {kept} and {position}"
            raise archive.error(HIDDEN_STATES, f"{found}; {AGAIN}")
    return hidden_states if len(first) == len(layers) else hidden_states[list(first.values())]


def changed_alone(path: Path, digest: str, label: int | None, text: str) -> str | None:
    """Say that a file differs from the one with that digest, label and text in the last two alone, if so.

    Nothing big is read: with label and text put back, the file has the digest of the other.
    """
    with Archive(path) as archive:
        contents = contents_of(archive)
        before, found = {}, []
        if contents.label is not None and label is not None and contents.label != label:
            header = archive.header(LABEL)
            before[LABEL] = np.full(header.shape, label).astype(header.dtype)
            found.append(f"label ({contents.label} instead of {label})")
        if contents.text != text:
            before["sentence"] = np.full(archive.header("sentence").shape, text)
            found.append("text")
        return " and ".join(found) if before and archive.digest_with(before) == digest else None
