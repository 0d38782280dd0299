"""Sentence files made bad in every way that is known, and what the line about each must say."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refusals import Change
from tests.sentences import sentence_arrays, write_sentence


class Evil:
    """Makes a folder in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def changed(**changes: Any) -> Change:
    """Replace arrays of a sentence file."""
    arrays = {name: np.asarray(value) for name, value in changes.items()}
    return lambda path: write_sentence(path.parent, 2, changes=arrays)


def without(name: str) -> Change:
    return lambda path: write_sentence(path.parent, 2, drop=[name])


def made(**options: Any) -> Change:
    """Write a sentence file of another extraction."""
    return lambda path: write_sentence(path.parent, 2, **options)


def pickled(name: str) -> Change:
    return changed(**{name: np.full(sentence_arrays(2)[name].shape, Evil(), dtype=object)})


def cut(keep: float) -> Change:
    """Truncate a file to a part of its size."""
    return lambda path: os.truncate(path, int(keep * path.stat().st_size))


def flipped(name: str, compressed: bool) -> Change:
    """Flip a byte amid the stored data of an array."""

    def flip(path: Path) -> None:
        if not compressed:
            np.savez(path, **sentence_arrays(2))  # type: ignore[arg-type]
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
        data = bytearray(path.read_bytes())
        lengths = np.frombuffer(data, "<u2", 2, member.header_offset + 26)
        data[member.header_offset + 30 + int(lengths.sum()) + member.compress_size // 2] ^= 0xFF
        path.write_bytes(data)

    return flip


def patched(name: str, offset: int, value: int, size: int) -> Change:
    """Change a field of an array's entry in the zip's central directory."""

    def patch(path: Path) -> None:
        data = bytearray(path.read_bytes())
        start = data.index(f"{name}.npy".encode(), data.index(b"PK\1\2")) - 46
        assert data[start : start + 4] == b"PK\1\2"
        data[start + offset : start + offset + size] = value.to_bytes(size, "little")
        path.write_bytes(data)

    return patch


def rewritten(method: int, change: Callable[[bytes], bytes] = bytes) -> Change:
    """Compress all arrays by another method, after changing the bytes of `layers`."""

    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, change(data) if name == "layers.npy" else data)

    return rewrite


def header(old: bytes, new: bytes) -> Change:
    """Change the npy header of `layers`, whose CRC-32 stays right."""
    return rewritten(zipfile.ZIP_STORED, lambda data: data.replace(old, new.ljust(len(old)), 1))


def shifted(path: Path) -> None:
    """Let the zip claim that it begins before the file does."""
    data = bytearray(path.read_bytes())
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") + (1 << 20)).to_bytes(4, "little")
    path.write_bytes(data)


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("layers.npy", b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def an_endless_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # the whole path may be too long for a socket
        listening.bind(path.name)


def saved_as(descr: str) -> Change:
    """Save hidden states as another library does that has a dtype of its own, of as many bytes as `descr` says."""

    def save(path: Path) -> None:
        arrays = sentence_arrays(2)
        stream = io.BytesIO()
        shape = arrays["hidden_states"].shape
        np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
        stream.write(bytes(int(descr[2:]) * arrays["hidden_states"].size))
        del arrays["hidden_states"]
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("hidden_states.npy", stream.getvalue())

    return save


T, L, H, F = 4, 3, 6, 10
REQUIRED = [
    *("sentence", "sentence_index", "fragments", "is_final_token", "layers", "average_l0s"),
]
ARRAYS = ("embeddings", "hidden_states", "activations")
MEMBERS = list(sentence_arrays(2))

# How a file is made bad, and what the line about it must say.
BAD: dict[str, tuple[Change, Sequence[str]]] = {
    "no zip": (lambda path: path.write_text("no zip"), ["expected an NPZ", "write it again"]),
    "empty": (lambda path: path.write_bytes(b""), ["expected an NPZ", "write it again"]),
    "nearly whole": (cut(0.99), ["truncated"]),
    "half": (cut(0.5), ["truncated"]),
    "a folder": (a_folder, ["cannot be read", "found a folder"]),
    "a pipe": (a_pipe, ["cannot be read", "found a pipe"]),
    "a link to a pipe": (a_link_to_a_pipe, ["cannot be read", "found a pipe"]),
    "a device": (an_endless_device, ["cannot be read", "found a device"]),
    "a socket": (a_socket, ["cannot be read", "found a socket"]),
    "a broken link": (a_broken_link, ["cannot be read"]),
    "array twice": (twice, ["twice"]),
    **{f"no {name}": (without(name), [f"'{name}'", "missing", "extract"]) for name in REQUIRED},
    **{f"no {name}": (without(name), ["does not fit", "dtypes", "none"]) for name in ARRAYS},
    **{f"pickled {name}": (pickled(name), [f"'{name}'", "pickled", "save plain"]) for name in MEMBERS},
    "1-D embeddings": (changed(embeddings=np.zeros(T, "f2")), ["'embeddings'", "must have dims", "(4,)"]),
    "2-D hidden_states": (
        changed(hidden_states=np.zeros((T, H), "f2")),
        ["'hidden_states'", "must have dims", "(4, 6)"],
    ),
    "4-D activations": (changed(activations=np.zeros((1, L, T, F), "f4")), ["'activations'", "must have dims"]),
    "0-D layers": (changed(layers=3), ["'layers'", "must have dims", "()"]),
    "2-D finals": (changed(is_final_token=np.zeros((T, 1), bool)), ["'is_final_token'", "must have dims"]),
    "0-D fragments": (changed(fragments="a"), ["'fragments'", "must have dims"]),
    "1-D label": (changed(concept_strength_label=[1, 2]), ["'concept_strength_label'", "single", "(2,)"]),
    "2 sentences": (changed(sentence=["a", "b"]), ["'sentence'", "single", "(2,)"]),
    **{
        f"T of {name}": (changed(**{name: sentence_arrays(2)[name][:-1]}), ["tokens (T)", f"{name} 3", "embeddings 4"])
        for name in ("fragments", "is_final_token", "token_positions", "fragment_lengths")
    },
    "T of embeddings": (changed(embeddings=np.zeros((5, H), "f2")), ["tokens (T)", "embeddings 5", "fragments 4"]),
    "L of layers": (changed(layers=[0, 1]), ["(L)", "layers 2", "hidden_states 3"]),
    "L of average_l0s": (changed(average_l0s=[3] * 4), ["(L)", "average_l0s 4", "hidden_states 3"]),
    "L of activations": (changed(activations=np.zeros((2, T, F), "f4")), ["(L)", "activations 2", "layers 3"]),
    "H of embeddings": (changed(embeddings=np.zeros((T, 5), "f2")), ["(H)", "embeddings 5", "hidden_states 6"]),
    "F of num_features": (changed(num_features=11), ["(F)", "num_features 11", "activations 10"]),
    "H of hidden_dim": (changed(hidden_dim=7), ["(H)", "hidden_dim 7", "embeddings 6"]),
    "no token": (made(tokens=0), ["zero tokens", "extract"]),
    "no layer": (made(layers=()), ["zero", "(L)", "extract"]),
    "other layers": (made(layers=(0, 1, 4)), ["does not fit", "layers 0,1,4 instead of 0,1,5", "store of its own"]),
    "fewer layers": (made(layers=(0, 1)), ["does not fit", "layers 0,1 instead of 0,1,5"]),
    "other SAEs": (made(average_l0s=(3, 9, 3)), ["does not fit", "average_l0s 3,9,3 instead of 3,3,3"]),
    "other H": (made(hidden=7), ["does not fit", "hidden 7 instead of 6"]),
    "other F": (made(features=11), ["does not fit", "features 11 instead of 10"]),
    "other dtype": (made(dtype="float32"), ["does not fit", "float32", "instead of float16"]),
    "layer twice": (made(layers=(0, 0, 5)), ["'layers'", "twice", "average_l0"]),
    "no final": (changed(is_final_token=np.zeros(T, bool)), ["'is_final_token'", "exactly one", "found 0"]),
    "3 finals": (changed(is_final_token=np.arange(T) > 0), ["'is_final_token'", "exactly one", "found 3"]),
    "finals as int": (changed(is_final_token=np.arange(T)), ["'is_final_token'", "bool", "int64"]),
    **{
        f"bfloat16 {name}": (
            changed(**{name: np.zeros(sentence_arrays(2)[name].shape, "V2")}),
            [f"'{name}'", "bfloat16", "float().numpy()"],
        )
        for name in ("embeddings", "hidden_states", "activations")
    },
    "float8": (saved_as("<f1"), ["'hidden_states'", "numpy does not know", "<f1", "save it as float32"]),
    "bfloat16 as g2": (saved_as("<g2"), ["'hidden_states'", "numpy does not know", "<g2", "save it as float32"]),
    "float8 as V1": (saved_as("|V1"), ["'hidden_states'", "float16 or float32", "V1", "save it as float32"]),
    "float64": (changed(hidden_states=np.zeros((L, T, H))), ["'hidden_states'", "float16 or float32", "float64"]),
    "int activations": (
        changed(activations=np.zeros((L, T, F), int)),
        ["'activations'", "float16 or float32", "int64"],
    ),
    "label NaN": (changed(concept_strength_label=np.nan), ["'concept_strength_label'", "whole number", "nan"]),
    "label 2.5": (changed(concept_strength_label=2.5), ["'concept_strength_label'", "whole number", "2.5"]),
    "label text": (changed(concept_strength_label="high"), ["'concept_strength_label'", "whole number", "text"]),
    "label True": (changed(concept_strength_label=True), ["'concept_strength_label'", "whole number", "True"]),
    "label 2**64-1": (changed(concept_strength_label=np.uint64(2**64 - 1)), ["'concept_strength_label'"]),
    "layers NaN": (changed(layers=[0, np.nan, 5]), ["'layers'", "whole number", "nan"]),
    "index twice": (changed(sentence_index=0), ["sentence_index 0", "sentence_000001.npz"]),
    "index -1": (changed(sentence_index=-1), ["'sentence_index'", "count from 0", "-1"]),
    "index 0.5": (changed(sentence_index=0.5), ["'sentence_index'", "whole number", "0.5"]),
    "bytes as sentence": (changed(sentence=b"a"), ["'sentence'", "text"]),
    "number as text": (changed(fragments=np.arange(T)), ["'fragments'", "text", "int64"]),
    "lone surrogate": (changed(sentence="a \ud800"), ["'sentence'", "Unicode"]),
    "lone surrogate in fragments": (changed(fragments=["a", "b", "c", "\udfff"]), ["'fragments'", "Unicode"]),
    "encrypted": (patched("embeddings", 8, 1, 2), ["'embeddings'", "encrypted", "write it with numpy"]),
    "BZIP2": (rewritten(zipfile.ZIP_BZIP2), ["DEFLATE", "write it with numpy"]),
    "huge claim": (patched("activations", 24, 0xFFFFFFF0, 4), ["'activations'", "claims 4,294,967,280 bytes"]),
    "small claim": (patched("activations", 24, 5000, 4), ["'activations'", "does not fit", "5,000 bytes"]),
    "stored beyond the end": (patched("layers", 20, 1 << 20, 4), ["'layers'", "damaged"]),
    "member elsewhere": (patched("layers", 42, 7, 4), ["'layers'", "damaged"]),
    "shifted": (shifted, []),
    "no magic": (header(b"NUMPY", b"numpy"), ["'layers'", "header", "damaged"]),
    "version 9": (header(b"\1\0", b"\x09\0"), ["'layers'", "header", "damaged"]),
    "other shape": (header(b"(3,)", b"(4,)"), ["'layers'", "(4,)", "does not fit"]),
    "negative shape": (header(b"(3,)", b"(-3,)"), ["'layers'", "(-3,)", "does not fit"]),
    "unclosed bracket": (header(b"(3,)", b"(3,("), ["'layers'", "header", "damaged"]),
    "unclosed quote": (header(b"'shape'", b"'shape"), ["'layers'", "header", "damaged"]),
    "null in header": (header(b"shape", b"sha\0e"), ["'layers'", "header", "damaged"]),
    "another dtype": (header(b"<i8", b"|O8"), ["'layers'", "pickled"]),
    "bytes as layers": (changed(layers=np.zeros(3, "S4")), ["'layers'", "whole number"]),
}

# Damage that only reading the data shows.
DAMAGED: dict[str, tuple[Change, Sequence[str]]] = {
    f"{name}, {'compressed' if compressed else 'stored'}": (
        flipped(name, compressed),
        [f"'{name}'", "damaged", "again"],
    )
    for name in ("embeddings", "hidden_states", "activations")
    for compressed in (False, True)
}
