"""What a sentence NPZ has to be, checked by its headers and small arrays; the big ones are not read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.errors import NpzError
from featurestore.npz import Header
from featurestore.schema import (
    ACTIVATIONS,
    EMBEDDINGS,
    HIDDEN_STATES,
    LIMITS,
    Extraction,
    SentenceFile,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SMALL_BYTES = 64 << 20
"""Limit for each array that is no embedding, hidden state, activation or fragments."""

MAX_FRAGMENTS_BYTES = 2 << 30
"""Limit for the fragments. They are cumulative, and padded to the longest, so they grow by the square of the tokens:
this is 6,000 tokens of 14 characters, or 11,000 of 4. Of the padding nothing is kept in memory."""

DATA_AXES = {EMBEDDINGS: "TH", HIDDEN_STATES: "LTH", ACTIVATIONS: "STF"}
_SMALL_AXES = {"layers": "L", "sae_layers": "S", "average_l0s": "S", "is_final_token": "T", "fragments": "T"}
_OPTIONAL_AXES = {"is_special": "T", "token_positions": "T", "fragment_lengths": "T"}
_AXES = DATA_AXES | _SMALL_AXES | _OPTIONAL_AXES
_ALWAYS = ("is_final_token", "fragments", "sentence", "sentence_index")
LABEL = "concept_strength_label"
AGAIN = "extract this sentence again"
_DIMS = {"T": "token", "L": "layer", "S": "sae", "H": "hidden", "F": "feature"}
_AXIS_WORDS = {"T": "tokens (T)", "L": "layers (L)", "S": "SAEs (S)", "H": "hidden (H)", "F": "features (F)"}


class Archive(Protocol):
    """What has the arrays of one sentence: an NPZ file, or what a caller hands over."""

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102

    def __contains__(self, name: str) -> bool: ...

    def header(self, name: str) -> Header: ...  # noqa: D102

    def array(self, name: str, max_bytes: int = ...) -> NDArray[Any]: ...  # noqa: D102

    def texts(self, name: str, max_bytes: int = ...) -> list[str]: ...  # noqa: D102

    def error(self, name: str, problem: str) -> NpzError: ...  # noqa: D102


@dataclass(frozen=True)
class Contents:
    """All of a sentence file but its three big arrays."""

    file: SentenceFile
    text: str
    fragments: tuple[str, ...]
    label: int | None


def contents_of(archive: Archive) -> Contents:
    """Check a file, and return all of it but its big arrays.

    Raises
    ------
    NpzError
        If it is damaged, unsafe, incomplete, or its arrays contradict each other.
    """
    if not archive.path.name.isprintable():
        raise NpzError.of(archive.path, "the file's name holds characters that cannot be printed; rename it")
    _check_presence(archive)
    sizes = _sizes(archive)
    is_final = _flags(archive, "is_final_token")
    finals = np.flatnonzero(is_final)
    if len(finals) != 1:
        raise archive.error("is_final_token", f"must mark exactly one final token, found {len(finals)}; {AGAIN}")
    n_tokens = int(finals[0]) + 1
    if "is_special" in archive:
        _flags(archive, "is_special")
    (index,) = integers(archive, "sentence_index")
    if index < 0:
        raise archive.error("sentence_index", f"must count from 0, found {index}; correct it")
    file = SentenceFile(
        path=archive.path,
        digest=archive.digest,
        sentence_index=index,
        n_tokens=n_tokens,
        n_after_final=sizes["T"] - n_tokens,
        extraction=_extraction(archive, sizes),
    )
    text, fragments = texts(archive, "sentence")[0], texts(archive, "fragments", MAX_FRAGMENTS_BYTES)
    return Contents(file, text, fragments, label_of(archive))


def _check_presence(archive: Archive) -> None:
    """Refuse a file that lacks an array that it has to have, as others are there."""
    needed = list(_ALWAYS)
    if not any(name in archive for name in DATA_AXES):
        needed += DATA_AXES
    if HIDDEN_STATES in archive or (ACTIVATIONS in archive and "sae_layers" not in archive):
        needed.append("layers")
    if ACTIVATIONS in archive:
        needed.append("average_l0s")
    if missing := [name for name in needed if name not in archive]:
        raise NpzError.of(archive.path, f"missing array {', '.join(map(repr, missing))}; {AGAIN}")


def _extraction(archive: Archive, sizes: dict[str, int]) -> Extraction:
    """Read what all sentences of a store share."""
    has_hidden, has_saes = HIDDEN_STATES in archive, ACTIVATIONS in archive
    layers = integers(archive, "layers") if "layers" in archive else ()
    sae_layers: tuple[int, ...] = ()
    l0s: tuple[float, ...] = ()
    if has_saes:
        sae_layers = integers(archive, "sae_layers") if "sae_layers" in archive else layers
        l0s = _numbers(archive, "average_l0s")
        if len({*zip(sae_layers, l0s, strict=True)}) < len(sae_layers):
            named = "sae_layers" if "sae_layers" in archive else "layers"
            raise archive.error(named, "names a layer twice with the same average_l0; leave one of them out")
    unique = tuple(dict.fromkeys(layers))
    if has_hidden and len(unique) < len(layers) and (not has_saes or "sae_layers" in archive):
        raise archive.error("layers", "names a layer twice; leave one of them out")
    if not has_hidden:
        unique = sae_layers if len({*sae_layers}) == len(sae_layers) else ()
    return Extraction(
        layers=unique,
        sae_layers=sae_layers,
        average_l0s=l0s,
        hidden=sizes.get("H", 0),
        features=sizes.get("F", 0),
        dtypes=tuple(_dtype(archive, name) if name in archive else "" for name in DATA_AXES),
    )


def _sizes(archive: Archive) -> dict[str, int]:
    """Return T, and of L, S, H and F those that there are, on which all arrays of the file must agree."""
    said: dict[str, dict[str, int]] = {axis: {} for axis in "TLSHF"}
    for name, axes in _AXES.items():
        if name not in archive:
            continue
        shape = archive.header(name).shape
        axes = axes if "sae_layers" in archive else axes.replace("S", "L")
        if len(shape) != len(axes):
            raise archive.error(name, f"must have dims ({', '.join(axes)}), found shape {shape}; extract it again")
        for axis, size in zip(axes, shape, strict=True):
            said[axis][name] = size
    for name, axis in (("num_features", "F"), ("hidden_dim", "H")):
        if name in archive and said[axis]:
            (said[axis][name],) = integers(archive, name)
    return {axis: _agreed(archive, axis, sizes) for axis, sizes in said.items() if sizes}


def _agreed(archive: Archive, axis: str, sizes: dict[str, int]) -> int:
    """Return the size of an axis, on which arrays must agree."""
    size, limit = next(iter(sizes.values())), LIMITS[_DIMS[axis]]
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise NpzError.of(archive.path, f"arrays disagree on the number of {_AXIS_WORDS[axis]}: {found}; {AGAIN}")
    if size == 0:
        raise NpzError.of(archive.path, f"zero {_AXIS_WORDS[axis]}; {AGAIN}")
    if size > limit:
        problem = f"{size:,} {_AXIS_WORDS[axis]}, more than the limit of {limit:,}; leave the file out"
        raise NpzError.of(archive.path, problem)
    return size


def _flags(archive: Archive, name: str) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = archive.array(name, MAX_SMALL_BYTES)
    if flags.dtype != bool:
        raise archive.error(name, f"must be bool, found {flags.dtype}; {AGAIN}")
    return flags


def label_of(archive: Archive) -> int | None:
    """Read the label, if there is one."""
    return integers(archive, LABEL)[0] if LABEL in archive else None


def _numbers(archive: Archive, name: str) -> tuple[float, ...]:
    """Read finite numbers; whole ones as int."""
    values = archive.array(name, MAX_SMALL_BYTES)
    if values.dtype.kind not in "iuf" or not (np.abs(values.astype(np.float64)) < 2.0**62).all():  # no NaN either
        raise archive.error(name, f"must be finite numbers, found {_abbreviate(values)}; {AGAIN}")
    numbers = (float(str(value)) for value in values.ravel())  # of float32 the shortest number that it stands for
    return tuple(int(number) if number.is_integer() else number for number in numbers)


def _dtype(archive: Archive, name: str) -> str:
    dtype = archive.header(name).dtype
    if dtype == np.dtype("V2"):
        raise archive.error(name, "is raw 2-byte data (V2), as bfloat16 is saved; save it with tensor.float().numpy()")
    if dtype.newbyteorder("=") not in (np.float16, np.float32):
        raise archive.error(name, f"must be float16 or float32, found {dtype}; save it as float32")
    return dtype.newbyteorder("=").name


def integers(archive: Archive, name: str) -> tuple[int, ...]:
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


def texts(archive: Archive, name: str, max_bytes: int = MAX_SMALL_BYTES) -> tuple[str, ...]:
    """Read text that is valid Unicode, flat; a scalar gives one."""
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
