"""The sentence NPZs of the extraction stage: find them, check their headers, read them.

One file is one sentence: T cumulative token fragments, L SAE configurations, H hidden, F features.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, SourceError
from featurestore.npz import Archive
from featurestore.schema import (
    ACTIVATIONS,
    EMBEDDINGS,
    HIDDEN_STATES,
    LIMITS,
    Extraction,
    Sentence,
    SentenceFile,
    Skipped,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PATTERN = "sentence_*.npz"
MAX_SMALL_BYTES = 64 << 20
"""Limit for each array that is no embedding, hidden state, activation or fragments."""

MAX_FRAGMENTS_BYTES = 2 << 30
"""Limit for the fragments. They are cumulative, and padded to the longest, so they grow by the square of the tokens:
this is 6,000 tokens of 14 characters, or 11,000 of 4. Of the padding nothing is kept in memory."""

_AXES = {
    EMBEDDINGS: "TH",
    HIDDEN_STATES: "LTH",
    ACTIVATIONS: "LTF",
    "layers": "L",
    "average_l0s": "L",
    "is_final_token": "T",
    "fragments": "T",
}
_OPTIONAL_AXES = {"token_positions": "T", "fragment_lengths": "T"}
_SCALARS = ("sentence", "concept_strength_label", "sentence_index")
_AGAIN = "extract this sentence again"
_DIMS = {"T": "token", "L": "layer", "H": "hidden", "F": "feature"}
_AXIS_WORDS = {"T": "tokens (T)", "L": "SAE configurations (L)", "H": "hidden (H)", "F": "features (F)"}


@dataclass(frozen=True)
class _Contents:
    """All of a sentence file but its three big arrays."""

    file: SentenceFile
    text: str
    fragments: tuple[str, ...]
    label: int


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
        return _contents(archive).file


def words(path: Path) -> tuple[str, int]:
    """Read the text and the label of a file.

    Raises
    ------
    NpzError
        As `scan`.
    """
    with Archive(path) as archive:
        contents = _contents(archive)
    return contents.text, contents.label


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
        contents = _contents(archive)
        if contents.file != file:
            raise NpzError.of(archive.path, "the file changed while it was being ingested; run the command again")
        tokens = slice(file.n_tokens)
        return Sentence(
            file=file,
            text=contents.text,
            fragments=contents.fragments[tokens],
            label=contents.label,
            embeddings=archive.array(EMBEDDINGS)[tokens],
            hidden_states=archive.array(HIDDEN_STATES)[:, tokens],
            activations=archive.array(ACTIVATIONS)[:, tokens],
        )


def changed_alone(path: Path, digest: str, label: int, text: str) -> str | None:
    """Say that a file differs from the one with that digest, label and text in the last two alone, if so.

    Nothing big is read: with label and text put back, the file has the digest of the other.
    """
    with Archive(path) as archive:
        contents = _contents(archive)
        before, found = {}, []
        if contents.label != label:
            header = archive.header("concept_strength_label")
            before["concept_strength_label"] = np.full(header.shape, label).astype(header.dtype)
            found.append(f"label ({contents.label} instead of {label})")
        if contents.text != text:
            before["sentence"] = np.full(archive.header("sentence").shape, text)
            found.append("text")
        return " and ".join(found) if before and archive.digest_with(before) == digest else None


def _contents(archive: Archive) -> _Contents:
    if not archive.path.name.isprintable():
        raise NpzError.of(archive.path, "the file's name holds characters that cannot be printed; rename it")
    missing = [name for name in (*_AXES, *_SCALARS) if name not in archive]
    if missing:
        raise NpzError.of(archive.path, f"missing array {', '.join(map(repr, missing))}; {_AGAIN}")
    sizes = _sizes(archive)
    is_final = archive.array("is_final_token", MAX_SMALL_BYTES)
    if is_final.dtype != bool:
        raise archive.error("is_final_token", f"must be bool, found {is_final.dtype}; {_AGAIN}")
    finals = np.flatnonzero(is_final)
    if len(finals) != 1:
        raise archive.error("is_final_token", f"must mark exactly one final token, found {len(finals)}; {_AGAIN}")
    n_tokens = int(finals[0]) + 1
    extraction = Extraction(
        layers=_integers(archive, "layers"),
        average_l0s=_integers(archive, "average_l0s"),
        hidden=sizes["H"],
        features=sizes["F"],
        dtypes=(_dtype(archive, EMBEDDINGS), _dtype(archive, HIDDEN_STATES), _dtype(archive, ACTIVATIONS)),
    )
    if len({*zip(extraction.layers, extraction.average_l0s, strict=True)}) < sizes["L"]:
        raise archive.error("layers", "names a layer twice with the same average_l0; leave one of them out")
    (label,) = _integers(archive, "concept_strength_label")
    (index,) = _integers(archive, "sentence_index")
    if index < 0:
        raise archive.error("sentence_index", f"must count from 0, found {index}; correct it")
    return _Contents(
        file=SentenceFile(
            path=archive.path,
            digest=archive.digest,
            sentence_index=index,
            n_tokens=n_tokens,
            n_after_final=sizes["T"] - n_tokens,
            extraction=extraction,
        ),
        text=_texts(archive, "sentence")[0],
        fragments=_texts(archive, "fragments", MAX_FRAGMENTS_BYTES),
        label=label,
    )


def _sizes(archive: Archive) -> dict[str, int]:
    """Return T, L, H and F, on which all arrays of the file must agree."""
    said: dict[str, dict[str, int]] = {axis: {} for axis in "TLHF"}
    optional = {name: axes for name, axes in _OPTIONAL_AXES.items() if name in archive}
    for name, axes in (_AXES | optional).items():
        shape = archive.header(name).shape
        if len(shape) != len(axes):
            raise archive.error(name, f"must have dims ({', '.join(axes)}), found shape {shape}; extract it again")
        for axis, size in zip(axes, shape, strict=True):
            said[axis][name] = size
    for name, axis in {"num_features": "F", "hidden_dim": "H"}.items():
        if name in archive:
            (said[axis][name],) = _integers(archive, name)
    for axis, sizes in said.items():
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise NpzError.of(archive.path, f"arrays disagree on the number of {_AXIS_WORDS[axis]}: {found}; {_AGAIN}")
        size, limit = next(iter(sizes.values())), LIMITS[_DIMS[axis]]
        if size == 0:
            raise NpzError.of(archive.path, f"zero {_AXIS_WORDS[axis]}; {_AGAIN}")
        if size > limit:
            raise NpzError.of(
                archive.path, f"{size:,} {_AXIS_WORDS[axis]}, more than the limit of {limit:,}; leave the file out"
            )
    return {axis: next(iter(sizes.values())) for axis, sizes in said.items()}


def _dtype(archive: Archive, name: str) -> str:
    dtype = archive.header(name).dtype
    if dtype == np.dtype("V2"):
        raise archive.error(name, "is raw 2-byte data (V2), as bfloat16 is saved; save it with tensor.float().numpy()")
    if dtype.newbyteorder("=") not in (np.float16, np.float32):
        raise archive.error(name, f"must be float16 or float32, found {dtype}; save it as float32")
    return dtype.newbyteorder("=").name


def _integers(archive: Archive, name: str) -> tuple[int, ...]:
    """Read integers, also where they are stored as floats, as a flat tuple; a scalar gives one."""
    values = archive.array(name, MAX_SMALL_BYTES)
    if name not in _AXES and values.shape not in ((), (1,)):
        raise archive.error(name, f"must be a single integer, found shape {values.shape}")
    if values.dtype.kind not in "iuf" or not _all_whole(values):
        known = {"U": "text ", "b": "", "i": "", "u": "", "f": ""}
        kind = values.dtype.kind
        found = f"{known[kind]}{_abbreviate(values)}" if kind in known else values.dtype
        raise archive.error(name, f"must be a whole number, found {found}; correct it and extract again")
    return tuple(int(value) for value in values.ravel())


def _all_whole(values: NDArray[Any]) -> bool:
    wide = values.astype(np.float64)
    return bool(np.all(np.isfinite(wide) & (wide == np.floor(wide)) & (np.abs(wide) < 2.0**62)))


def _texts(archive: Archive, name: str, max_bytes: int = MAX_SMALL_BYTES) -> tuple[str, ...]:
    header = archive.header(name)
    if name not in _AXES and header.shape not in ((), (1,)):
        raise archive.error(name, f"must be a single text, found shape {header.shape}")
    if header.dtype.kind != "U":
        raise archive.error(name, f"must be text (numpy 'U'), found {header.dtype}")
    texts = archive.texts(name, max_bytes)
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise archive.error(name, "holds characters that are no valid Unicode; correct the text") from error
    return tuple(texts)


def _abbreviate(values: NDArray[Any]) -> str:
    return np.array2string(values, threshold=6, edgeitems=3)
