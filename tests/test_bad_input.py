"""Bad input: one clear line each, an exit code, no traceback, and nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import socket
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import Result
from conftest import sentence_arrays, write_folder, write_sentence

import featurestore
from featurestore import npz
from featurestore.sources import sentences

Cli = Callable[..., Result]
Change = Callable[[Path], object]

BAD_NAME = "sentence_000003.npz"
STORE = Path("stores/trait.zarr")


def contents(path: Path) -> dict[str, bytes | None]:
    """Everything below a path: the bytes of each file, None for each folder."""
    return {str(below.relative_to(path)): below.read_bytes() if below.is_file() else None for below in path.rglob("*")}


def complaint(result: Result, *words: str, code: int = 1) -> list[str]:
    """Check a refusal; return its lines."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output
    return result.output.strip().splitlines()


def refused(result: Result, *words: str, code: int = 1) -> None:
    """Check that a refusal is one line, below click's hint at ``--help`` for wrong usage, and changed nothing here."""
    lines = complaint(result, *words, code=code)
    assert len(lines) <= (1 if code == 1 else 4)
    assert lines[-1].startswith("Error: ")
    for word in words:
        assert word in lines[-1]
    assert contents(Path()) == {}


def names_bad(result: Result, path: Path, *words: str) -> None:
    """Check that exactly one line names a bad file, with what is wrong."""
    (line,) = [line for line in complaint(result) if f"{path}: " in line]
    for word in words:
        assert word in line


def accepted(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def skipped(store: Path = STORE) -> dict[str, str]:
    return dict(featurestore.info(store).skipped)


def loaded(store: Path = STORE) -> xr.Dataset:
    return featurestore.open_store(store).load()


# Folders and stores


@pytest.mark.parametrize("options", [(), ("--skip-bad",)])
def test_no_folder(cli: Cli, tmp_path: Path, options: Sequence[str]) -> None:
    refused(cli("ingest", tmp_path / "nowhere", *options), str(tmp_path / "nowhere"), "nothing", "check the path")


def test_folder_is_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "trait").touch()
    refused(cli("ingest", tmp_path / "trait"), str(tmp_path / "trait"), "expected a folder", "found a file")


@pytest.mark.parametrize("name", ["sentences", "sentence_000001.txt", "x_sentence_000001.npz"])
def test_folder_without_sentences(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "trait").mkdir()
    (tmp_path / "trait" / name).touch()
    refused(cli("ingest", tmp_path / "trait"), str(tmp_path / "trait"), "sentence_*.npz", "found none")


def test_folder_above_sentences(cli: Cli, folder: Path) -> None:
    refused(cli("ingest", folder.parent), "sentence_*.npz", "found none", f"did you mean {folder}?")


@pytest.mark.parametrize("argument", [(), ("x", "y"), ("x", "--what"), ("x", "--store")])
def test_wrong_usage_of_ingest(cli: Cli, argument: Sequence[str]) -> None:
    refused(cli("ingest", *argument), code=2)


def other_file(path: Path) -> None:
    path.write_text("precious")


def other_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("precious")


def other_zarr(path: Path) -> None:
    zarr.create_group(path, attributes={"precious": 1}).create_array("x", shape=(2,), dtype="int64")


def other_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("[]")


def newer_store(path: Path) -> None:
    write_folder(path.parent / "small", 1)
    featurestore.ingest(path.parent / "small", path)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["featurestore_schema"] = 99
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("make", [other_file, other_folder, other_zarr, other_json, newer_store])
def test_store_path_is_something_else(cli: Cli, folder: Path, tmp_path: Path, make: Change) -> None:
    path = tmp_path / "other"
    make(path)
    before = contents(tmp_path), path.is_file() and path.read_bytes()
    refused(cli("ingest", folder, "--store", path), str(path))
    assert (contents(tmp_path), path.is_file() and path.read_bytes()) == before


def test_store_path_below_a_file(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    refused(cli("ingest", folder, "--store", tmp_path / "file" / "x.zarr"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


# Sentence files


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
    *("sentence", "concept_strength_label", "sentence_index", "fragments", "is_final_token"),
    *("embeddings", "hidden_states", "activations", "layers", "average_l0s"),
]
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

bad_files = pytest.mark.parametrize(("spoil", "words"), (BAD | DAMAGED).values(), ids=(BAD | DAMAGED).keys())


@bad_files
def test_bad_file_is_refused(cli: Cli, tmp_path: Path, spoil: Change, words: Sequence[str]) -> None:
    write_folder(tmp_path / "trait", 4)
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, *words)
    assert contents(Path()) == {}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sentences in `trait`, and their store in `stores`. Not to be changed."""
    path = tmp_path_factory.mktemp("begun")
    write_folder(path / "trait", 2)
    featurestore.ingest(path / "trait", path / STORE)
    return path


@bad_files
def test_bad_file_leaves_store_unchanged(
    cli: Cli, begun: Path, tmp_path: Path, spoil: Change, words: Sequence[str]
) -> None:
    shutil.copytree(begun / "trait", tmp_path / "trait")
    shutil.copytree(begun / "stores", "stores")
    before = contents(Path())
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, *words)
    assert contents(Path()) == before


@pytest.mark.parametrize(
    "how",
    ["no zip", "a folder", "a pipe", "a device", "no layers", "pickled sentence", "other H", "index twice", *DAMAGED],
)
def test_bad_file_is_skipped_until_repaired(cli: Cli, tmp_path: Path, how: str) -> None:
    spoil, words = (BAD | DAMAGED)[how]
    write_folder(tmp_path / "trait", 4)
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    output = accepted(cli("ingest", tmp_path / "trait", "--skip-bad"))
    assert f"left out {path}: " in output
    assert list(skipped()) == [BAD_NAME]
    assert all(word in skipped()[BAD_NAME] for word in words)
    assert loaded().sentence.values.tolist() == [0, 1, 3]

    accepted(cli("ingest", tmp_path / "trait"))  # a recorded file is no longer refused
    assert list(skipped()) == [BAD_NAME]
    assert loaded().sentence.values.tolist() == [0, 1, 3]

    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_sentence(tmp_path / "trait", 2)
    accepted(cli("ingest", tmp_path / "trait"))
    assert skipped() == {}
    ds = loaded()
    assert ds.sentence.values.tolist() == [0, 1, 3, 2]
    expected = sentence_arrays(2)["hidden_states"].swapaxes(0, 1)
    np.testing.assert_array_equal(ds.hidden_states.sel(sentence=2).isel(token=slice(-4, None)), expected)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("name", ["sentence", "hidden_states", "unknown"])
def test_nothing_is_unpickled(cli: Cli, tmp_path: Path, name: str) -> None:
    shape = sentence_arrays(0)[name].shape if name in MEMBERS else ()
    write_sentence(tmp_path / "trait", 0, changes={name: np.full(shape, Evil(), dtype=object)})
    for command in (["ingest"], ["ingest", "--skip-bad"], ["build", "--strategy", "hidden-to-concept", "--layer", 1]):
        folder = ["--input", tmp_path / "trait"] if command[0] == "build" else [tmp_path / "trait"]
        cli(*command, *folder)
    assert not Path("unpickled").exists()


def test_several_bad_files_are_all_named(cli: Cli, folder: Path) -> None:
    broken = {
        write_sentence(folder, 1, drop=["layers"]): "'layers'",
        write_sentence(folder, 2, hidden=7): "hidden 7 instead of 6",
        write_sentence(folder, 3, changes={"sentence_index": np.array(0)}): "sentence_000001.npz",
    }
    result = cli("ingest", folder)
    for path, word in broken.items():
        names_bad(result, path, word)
    assert len(complaint(result, "3 of 5 files", "nothing was written", "--skip-bad")) == 4
    assert contents(Path()) == {}


def test_only_bad_files(cli: Cli, tmp_path: Path) -> None:
    path = write_sentence(tmp_path / "trait", 0, drop=["layers"])
    for options in ([], ["--skip-bad"]):
        names_bad(cli("ingest", tmp_path / "trait", *options), path, "'layers'")
        assert contents(Path()) == {}


@pytest.mark.parametrize("compressed", [False, True])
def test_only_damaged_files(cli: Cli, tmp_path: Path, compressed: bool) -> None:
    path = write_sentence(tmp_path / "trait", 2)
    flipped("hidden_states", compressed)(path)
    for options in ([], ["--skip-bad"]):
        names_bad(cli("ingest", tmp_path / "trait", *options), path, "'hidden_states'", "damaged")
        assert contents(Path()) == {}


def test_new_bad_file_beside_a_recorded_one(cli: Cli, folder: Path) -> None:
    recorded = write_sentence(folder, 1, drop=["layers"])
    accepted(cli("ingest", folder, "--skip-bad"))
    before = contents(Path())
    path = write_sentence(folder, 5, drop=["fragments"])
    names_bad(cli("ingest", folder), path, "'fragments'")
    assert contents(Path()) == before
    accepted(cli("ingest", folder, "--skip-bad"))
    assert list(skipped()) == [recorded.name, path.name]


def test_changed_file_is_refused(cli: Cli, folder: Path) -> None:
    accepted(cli("ingest", folder))
    before = contents(Path())
    path = write_sentence(folder, 2, seed=1)
    names_bad(cli("ingest", folder), path, "sentence_index 2", "other content", "--store")
    assert contents(Path()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concept_strength_label": 3}, ["label (3 instead of 2)", "alone differs", "corrected", "--store"]),
        ({"sentence": "another"}, ["text", "alone differs"]),
        ({"concept_strength_label": 0, "sentence": ""}, ["label (0 instead of 2) and text", "alone differs"]),
        ({"concept_strength_label": 3, "embeddings": np.zeros((4, 6), "f2")}, ["with other content"]),
        ({"token_positions": np.zeros(4)}, ["with other content"]),
    ],
)
def test_changed_label_is_named(cli: Cli, tmp_path: Path, changes: dict[str, Any], words: Sequence[str]) -> None:
    write_folder(tmp_path / "trait", 2)
    write_sentence(tmp_path / "trait", 2)
    accepted(cli("ingest", tmp_path / "trait"))
    before = contents(Path())
    path = write_sentence(tmp_path / "trait", 2, changes={name: np.array(value) for name, value in changes.items()})
    names_bad(cli("ingest", tmp_path / "trait"), path, "sentence_index 2", *words)
    assert contents(Path()) == before


def test_all_labels_changed(cli: Cli, tmp_path: Path) -> None:
    """Nothing of the folder is in its store any more, but it is no other folder of that name."""
    write_folder(tmp_path / "trait", 3)
    accepted(cli("ingest", tmp_path / "trait"))
    for index in range(3):
        changes = {"concept_strength_label": np.array(7 + index)}
        path = write_sentence(tmp_path / "trait", index, tokens=2 + (index * 5) % 6, changes=changes)
        names_bad(cli("ingest", tmp_path / "trait"), path, f"label ({7 + index} instead of {index})", "alone differs")


def test_special_files_elsewhere(cli: Cli, folder: Path) -> None:
    """A pipe among the sources to verify, or in the place of a dataset, is named and not opened either."""
    accepted(cli("ingest", folder))
    a_pipe(folder / "sentence_000002.npz")
    complaint(cli("verify", STORE, "--source", folder), "sentence_000002.npz", "found a pipe")
    os.mkfifo("other.npz")
    complaint(build(cli, STORE, "--stats-from", "other.npz"), "other.npz", "found a pipe")


def test_npy_3(cli: Cli, tmp_path: Path) -> None:
    """The newest version of the npy format, which numpy itself writes for names of fields only."""
    path = write_sentence(tmp_path / "trait", 0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sentence_arrays(0).items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(3, 0))
            archive.writestr(f"{name}.npy", stream.getvalue())
    accepted(cli("ingest", tmp_path / "trait"))
    np.testing.assert_array_equal(loaded().hidden_states[0], sentence_arrays(0)["hidden_states"].swapaxes(0, 1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<U", ">U"])
def test_fragments_of_a_long_document(tmp_path: Path, save: Callable[..., None], dtype: str) -> None:
    """The array is larger than other small arrays may be; its padding is not kept in memory."""
    fragments = np.array(["ä" * 3 * n for n in range(1, 2501)]).astype(dtype)
    assert fragments.nbytes > sentences.MAX_SMALL_BYTES
    save(tmp_path / "a.npz", fragments=fragments)
    tracemalloc.start()
    with npz.Archive(tmp_path / "a.npz") as archive:
        found = archive.texts("fragments", sentences.MAX_FRAGMENTS_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == fragments.tolist()
    assert peak < 1.5 * sum(len(text) + 80 for text in found)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_limit_for_fragments(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    path = write_sentence(tmp_path / "trait", 0, tokens=50)
    if not compressed:
        np.savez(path, **sentence_arrays(0, tokens=50))  # type: ignore[arg-type]
    assert sentence_arrays(0, tokens=50)["fragments"].nbytes > 10_000
    with monkeypatch.context() as patch:
        patch.setattr(sentences, "MAX_FRAGMENTS_BYTES", 10_000)
        names_bad(cli("ingest", tmp_path / "trait"), path, "'fragments'", "limit of 10,000")
    flipped("fragments", compressed=True)(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, "'fragments'", "damaged")


def test_fragments_after_the_final_token_are_left_out(cli: Cli, tmp_path: Path) -> None:
    path = write_sentence(tmp_path / "trait", 0, tokens=5, changes={"is_final_token": np.arange(5) == 2})
    output = accepted(cli("ingest", tmp_path / "trait"))
    (line,) = [line for line in output.splitlines() if line.startswith("Warning: ")]
    assert path.name in line
    assert "fragments after the final token" in line
    arrays, ds = sentence_arrays(0, tokens=5), loaded().isel(sentence=0)
    assert ds.sizes["token"] == int(ds.n_tokens) == 3
    assert ds.fragment.values.tolist() == arrays["fragments"][:3].tolist()
    np.testing.assert_array_equal(ds.embeddings, arrays["embeddings"][:3])
    np.testing.assert_array_equal(ds.hidden_states, arrays["hidden_states"][:, :3].swapaxes(0, 1))
    np.testing.assert_array_equal(ds.activations, arrays["activations"][:, :3].swapaxes(0, 1))


# Texts that could drive a terminal

ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("name", [f"sentence_{ESCAPE}.npz", os.fsdecode(b"sentence_\xff.npz"), "sentence_\n.npz"])
def test_odd_file_name(cli: Cli, tmp_path: Path, name: str, good: bool) -> None:
    write_folder(tmp_path / "trait", 2)
    path = write_sentence(tmp_path / "trait", 2, drop=[] if good else ["layers"])
    path.rename(path.with_name(name))
    result = cli("ingest", tmp_path / "trait")
    assert isinstance(result.exception, SystemExit | None)
    assert "\x1b" not in result.output
    if not good:
        assert len(complaint(result, "sentence_")) == 2
    result = cli("ingest", tmp_path / "trait", "--skip-bad")
    assert "\x1b" not in accepted(result)
    assert "\x1b" not in accepted(cli("info", STORE))


def test_escape_sequences_in_texts(cli: Cli, tmp_path: Path) -> None:
    texts = {"sentence": np.array(ESCAPE), "fragments": np.array([ESCAPE] * T)}
    write_sentence(tmp_path / "trait", 0, changes=texts)
    write_sentence(tmp_path / "trait", 1, changes=texts | {"concept_strength_label": np.array(ESCAPE)})
    write_sentence(tmp_path / "trait", 2, changes=texts | {ESCAPE: np.array(1)}, drop=["layers"])
    results = [
        cli("ingest", tmp_path / "trait"),
        cli("ingest", tmp_path / "trait", "--skip-bad"),
        cli("ingest", tmp_path / ESCAPE),
        cli("info", STORE),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layers", ESCAPE),
        cli("build", "--strategy", ESCAPE, "--input", ESCAPE),
        cli("build", "--strategy", "hidden-to-concept", "--input", ESCAPE, "--layer", 1),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layer", ESCAPE),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layer", 1, "--output", ESCAPE),
        cli("ingest", f"--{ESCAPE}"),
        cli(ESCAPE),
    ]
    assert [result.exit_code for result in results] == [1, 0, 1, 0, 2, 2, 1, 2, 2, 2, 2]
    for result in results:
        assert "\x1b" not in result.output
    assert loaded().text.values.tolist() == [ESCAPE]


# Building


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six sentences with layers 0, 1 (two SAEs), 5 and features 0-9. Not to be changed."""
    path = tmp_path_factory.mktemp("built")
    write_folder(path / "trait", 6, layers=(0, 1, 1, 5), average_l0s=(3, 3, 7, 3))
    featurestore.ingest(path / "trait", path / "trait.zarr")
    return path / "trait.zarr"


CONCEPT, HIDDEN, EMBEDDING = "hidden-to-concept", "hidden-to-feature", "embedding-to-feature"
BUILDS: list[tuple[str, str, int, Sequence[str]]] = [
    (CONCEPT, "--layer 9", 1, ["layer 9", "choose from 0-1,5"]),
    (CONCEPT, "--layer -1", 1, ["layer -1", "choose from 0-1,5"]),
    (CONCEPT, "--layers 0,3-6", 1, ["layer 3", "choose from 0-1,5"]),
    (CONCEPT, "--layer a", 2, ["--layer", "'a'", "integer"]),
    (CONCEPT, "--layer 1.5", 2, ["--layer", "'1.5'", "integer"]),
    (CONCEPT, "--layers 5-2", 2, ["layers", "5-2", "backwards", "2-5"]),
    *(
        (CONCEPT, f"--layers {spec}", 2, ["layers", repr(spec), "0-2,10"])
        for spec in ("a", "1,,2", "-3", "1-", "1-2-3")
    ),
    (CONCEPT, "--layers=", 2, ["layers", "''", "0-2,10"]),
    (CONCEPT, "--layers 0-999999999", 2, ["layers", "0-2,10"]),
    (CONCEPT, "--layers 0,0", 2, ["layers", "0 named twice"]),
    (CONCEPT, "--layers 0-2,1", 2, ["layers", "1 named twice"]),
    (CONCEPT, "--layer 1 --layers 0-1", 2, ["--layer", "--layers", "not both"]),
    (CONCEPT, "", 2, ["--layer", "--layers"]),
    (CONCEPT, "--layer 1 --target-feature 2", 2, ["--target-feature", "takes no such option", "--layers"]),
    (HIDDEN, "--target-layer 0 --target-feature 10", 1, ["feature 10", "0-9"]),
    (HIDDEN, "--target-layer 0 --target-feature -1", 1, ["feature -1", "0-9"]),
    (HIDDEN, "--target-layer 9 --target-feature 1", 1, ["layer 9", "choose from 0-1,5"]),
    (HIDDEN, "--target-layer 0 --target-feature 1 --input-layer 9", 1, ["layer 9", "choose from 0-1,5"]),
    (HIDDEN, "--target-layer 0", 2, ["needs --target-feature"]),
    (HIDDEN, "", 2, ["needs --target-layer and --target-feature"]),
    (HIDDEN, "--target-layer 1 --target-feature 1", 1, ["layer 1", "--average-l0", "[3, 7]"]),
    (HIDDEN, "--target-layer 1 --target-feature 1 --average-l0 5", 1, ["average L0 5", "layer 1", "[3, 7]"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --average-l0 7", 1, ["average L0 7", "layer 0", "[3]"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --layer 1", 2, ["--layer", "takes no such option"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --input-layer 1", 2, ["--input-layer", "takes no such option"]),
    (EMBEDDING, "--target-layer 0 --target-feature x", 2, ["--target-feature", "'x'", "integer"]),
    (EMBEDDING, "--target-feature 1", 2, ["needs --target-layer"]),
    (CONCEPT, "--layer 1 --normalize robust", 2, ["--normalize", "'robust'", "standardize", "minmax", "none"]),
    ("nonsense", "--layer 1", 2, ["--strategy", "'nonsense'", CONCEPT, HIDDEN, EMBEDDING]),
    (CONCEPT, "--layer 1 --nonsense 2", 2, ["--nonsense"]),
    (CONCEPT, "--layer 1 --output x.npy", 2, ["x.npy", ".npz"]),
    (CONCEPT, "--layer 1 --output x", 2, ["x", ".npz"]),
]


@pytest.mark.parametrize(("strategy", "options", "code", "words"), BUILDS, ids=[f"{b[0]} {b[1]}" for b in BUILDS])
def test_wrong_build(cli: Cli, store: Path, strategy: str, options: str, code: int, words: Sequence[str]) -> None:
    refused(cli("build", "--strategy", strategy, "--input", store, *options.split()), *words, code=code)


@pytest.mark.parametrize(
    ("options", "missing"), [(("--input", "x"), "--strategy"), (("--strategy", CONCEPT, "--layer", 1), "--input")]
)
def test_build_lacks_an_option(cli: Cli, options: Sequence[object], missing: str) -> None:
    complaint(cli("build", *options), "Error: ", missing, code=2)
    assert contents(Path()) == {}


def build(cli: Cli, source: Path, *options: object, layer: int = 1) -> Result:
    return cli("build", "--strategy", CONCEPT, "--layer", layer, "--input", source, *options)


def build_feature(cli: Cli, source: Path, *options: object) -> Result:
    wanted = ("--strategy", EMBEDDING, "--target-layer", 1, "--target-feature", 4, "--output", "y.npz")
    return cli("build", *wanted, "--input", source, *options)


def test_build_without_input(cli: Cli, tmp_path: Path) -> None:
    refused(build(cli, tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such store", "check the path")


@pytest.mark.parametrize("make", [other_file, other_folder, other_zarr, other_json])
def test_build_from_something_else(cli: Cli, tmp_path: Path, make: Change) -> None:
    make(tmp_path / "other")
    refused(build(cli, tmp_path / "other"), str(tmp_path / "other"), "check the path")
    refused(cli("info", tmp_path / "other"), str(tmp_path / "other"), "check the path")


def test_build_from_newer_store(cli: Cli, tmp_path: Path) -> None:
    newer_store(tmp_path / "newer.zarr")
    for result in (build(cli, tmp_path / "newer.zarr"), cli("info", tmp_path / "newer.zarr")):
        refused(result, str(tmp_path / "newer.zarr"), "schema version 99", "reads 1", "upgrade")


@pytest.mark.parametrize("broken", ["sentence/c/0", "label/c/0", "hidden_states/c/0/0/0/0"])
def test_build_from_damaged_store(cli: Cli, store: Path, tmp_path: Path, broken: str) -> None:
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    data = bytearray((damaged / broken).read_bytes())
    data[:16] = bytes(16)
    (damaged / broken).write_bytes(data)
    refused(build(cli, damaged, "--output", "x.npz", layer=0), str(damaged))


def test_info_without_store(cli: Cli, tmp_path: Path) -> None:
    refused(cli("info", tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such store", "ingest")


def test_output_is_a_folder(cli: Cli, store: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").mkdir()
    refused(build(cli, store, "--output", tmp_path / "x.npz"), str(tmp_path / "x.npz"), "found a folder")


def test_output_below_a_file(cli: Cli, store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(build(cli, store, "--output", tmp_path / "file" / "x.npz"), str(tmp_path / "file"))


def test_output_with_other_content(cli: Cli, store: Path) -> None:
    path = Path("x.npz")
    accepted(build(cli, store, "--output", path))
    first = path.read_bytes()
    accepted(build(cli, store, "--output", path))
    complaint(build(cli, store, "--output", path, layer=5), "x.npz", "other content", "--overwrite")
    assert contents(Path()) == {"x.npz": first}
    accepted(build(cli, store, "--output", path, "--overwrite", layer=5))
    assert list(contents(Path())) == ["x.npz"]
    assert featurestore.load_dataset(path).metadata["input_layers"].tolist() == [5]


def test_output_that_is_no_dataset(cli: Cli, store: Path) -> None:
    Path("x.npz").write_text("precious")
    complaint(build(cli, store, "--output", "x.npz"), "x.npz", "other content", "--overwrite")
    assert contents(Path()) == {"x.npz": b"precious"}


def test_build_from_a_folder_with_a_bad_file(cli: Cli, folder: Path) -> None:
    path = write_sentence(folder, 2, drop=["layers"])
    names_bad(build(cli, folder), path, "'layers'")
    assert contents(Path()) == {}


@pytest.mark.parametrize("command", ["build", "ingest"])
def test_other_folder_of_the_same_name(cli: Cli, folder: Path, tmp_path: Path, command: str) -> None:
    accepted(cli("ingest", folder))
    before = contents(Path())
    other = tmp_path / "other" / folder.name
    write_folder(other, 3, seed=1)
    result = build(cli, other) if command == "build" else cli("ingest", other)
    complaint(result, str(other), "--store")
    assert contents(Path()) == before


# Non-finite values


@pytest.fixture
def nonfinite(tmp_path: Path) -> Path:
    """Five sentences: inf in the hidden states of number 1, NaN in the activations of number 3, both of layer 1."""
    write_folder(tmp_path / "trait", 5)
    hidden, activations = sentence_arrays(1)["hidden_states"], sentence_arrays(3)["activations"]
    hidden[1, -1, 2] = np.inf
    activations[1, -1, 4] = np.nan
    write_sentence(tmp_path / "trait", 1, changes={"hidden_states": hidden})
    write_sentence(tmp_path / "trait", 3, changes={"activations": activations})
    return tmp_path / "trait"


def test_nonfinite_values_are_ingested_with_a_warning(cli: Cli, nonfinite: Path) -> None:
    output = accepted(cli("ingest", nonfinite))
    assert loaded().n_nonfinite.values.tolist() == [0, 1, 0, 1, 0]
    (warning,) = [line for line in output.splitlines() if line.startswith("Warning: ")]
    assert re.search(r"\b2\b", warning)
    assert re.search(r"NaN|non-finite|infinit", warning)


@pytest.mark.parametrize(("index", "run"), [(1, build), (3, build_feature)])
def test_build_with_nonfinite_values(cli: Cli, nonfinite: Path, index: int, run: Callable[..., Result]) -> None:
    accepted(cli("ingest", nonfinite))
    before = contents(Path())
    lines = complaint(run(cli, STORE, "--output", "y.npz"), f"sentence_index {index}", "1 of 5", "--drop-nonfinite")
    assert len(lines) == 1
    assert contents(Path()) == before

    accepted(run(cli, STORE, "--output", "y.npz", "--drop-nonfinite"))
    with np.load("y.npz") as dataset:
        assert dataset["meta_dropped_sentence_indices"].tolist() == [index]
        assert dataset["meta_sentence_indices"].tolist() == [i for i in range(5) if i != index]
        assert len(dataset["X"]) == len(dataset["y"]) == 4
        assert np.isfinite(dataset["X"]).all()


def test_build_without_the_nonfinite_values(cli: Cli, nonfinite: Path) -> None:
    accepted(cli("ingest", nonfinite))
    accepted(build(cli, STORE, "--output", "y.npz", layer=0))
    assert len(featurestore.load_dataset("y.npz").y) == 5


def test_all_sentences_nonfinite(cli: Cli, tmp_path: Path) -> None:
    for index in range(3):
        write_sentence(tmp_path / "trait", index, changes={"hidden_states": np.full((L, T, H), np.inf, "f2")})
    accepted(cli("ingest", tmp_path / "trait"))
    before = contents(Path())
    result = build(cli, STORE, "--output", "y.npz", "--drop-nonfinite")
    assert len(complaint(result, "3 of 3", "none is left")) == 1
    assert contents(Path()) == before


# Full disks and interruptions


def fill_disk(monkeypatch: pytest.MonkeyPatch, failing: str, calls: float) -> list[int]:
    """Let `os.fsync`, or `Path.open` for writing, fail after some calls; return a list whose item counts the calls."""
    count = [0]
    fsync, open_path = os.fsync, Path.open

    def spend() -> None:
        count[0] += 1
        if count[0] > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited_fsync(fd: int) -> None:
        spend()
        fsync(fd)

    def limited_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            spend()
        return open_path(path, mode, *args, **kwargs)

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", limited_fsync)
    else:
        monkeypatch.setattr(Path, "open", limited_open)
    return count


@pytest.mark.parametrize("failing", ["fsync", "open"])
@pytest.mark.parametrize("part", [0, 0.2, 0.6, 0.9])
@pytest.mark.parametrize("before", [0, 2])
def test_disk_full_at_ingest(
    cli: Cli, begun: Path, folder: Path, tmp_path: Path, failing: str, part: float, before: int
) -> None:
    if before:
        shutil.copytree(begun / "stores", "stores")
    spare = shutil.copytree(Path.cwd(), tmp_path / "spare")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(spare)
        needed = fill_disk(context, failing, np.inf)
        accepted(cli("ingest", folder))
    with pytest.MonkeyPatch.context() as context:
        fill_disk(context, failing, int(part * needed[0]))
        lines = complaint(cli("ingest", folder), "No space left on device")
    assert not [path for path in Path().rglob("*") if path.suffix in (".partial", ".lock")]
    if STORE.exists():  # all that it had before, or all of the new sentences, too
        assert loaded().sizes["sentence"] in ([before, 5] if before else [5])
        xr.testing.assert_equal(loaded().isel(sentence=slice(2)), loaded(spare / STORE).isel(sentence=slice(2)))
    else:
        assert contents(Path()) == {}
    accepted(cli("ingest", folder))
    xr.testing.assert_identical(loaded(), loaded(spare / STORE))
    assert len(lines) == 1
    assert str(STORE) in lines[0]


def test_disk_full_at_build(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, "fsync", 0)
    refused(build(cli, store, "--output", "x.npz"), "x.npz", "No space left on device")
    Path("x.npz").write_text("precious")
    complaint(build(cli, store, "--output", "x.npz", "--overwrite"), "x.npz", "No space left on device")
    assert contents(Path()) == {"x.npz": b"precious"}


def test_interrupted_ingest_goes_on(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.store.snapshot.MAX_ROWS", 2)
    read = featurestore.sources.sentences.read

    def interrupt(file: Any) -> Any:
        if file.sentence_index == 3:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as context:
        context.setattr("featurestore.sources.sentences.read", interrupt)
        result = cli("ingest", folder)
    complaint(result, "Interrupted", "same command", code=130)
    assert loaded().sentence.values.tolist() == [0, 1]
    assert [path.name for path in Path("stores").iterdir()] == ["trait.zarr"]

    output = accepted(cli("ingest", folder))
    assert "3 added, 2 there already" in output
    featurestore.ingest(folder, "whole.zarr")
    xr.testing.assert_identical(loaded(), loaded(Path("whole.zarr")))


def test_interrupted_before_the_first_batch(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_file: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.sources.sentences.read", interrupt)
    complaint(cli("ingest", folder), "Interrupted", "same command", code=130)
    assert contents(Path()) == {}
