"""Any bytes in the place of an NPZ: they are read, consistently, or refused by an `NpzError`, in bounded memory."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as given_by_hypothesis
from hypothesis import strategies as st

import featurestore
from featurestore.sources import sentences
from tests.sentences import sentence_arrays

Draw = Callable[[st.SearchStrategy[Any]], Any]

TOKENS, LAYERS, HIDDEN, FEATURES = 3, 2, 4, 5


def packed(arrays: dict[str, np.ndarray[Any, Any]], compressed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def sentence(index: int) -> dict[str, np.ndarray[Any, Any]]:
    return sentence_arrays(index, tokens=TOKENS, layers=range(LAYERS), hidden=HIDDEN, features=FEATURES)


def dataset() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "X": np.arange(12, dtype=np.float32).reshape(3, 4),
        "y": np.arange(3),
        "meta_strategy": np.array("hidden-states"),
        "meta_fingerprint": np.array("0123456789abcdef" * 4),
        "meta_sentence_indices": np.arange(3),
        "meta_split": np.array(["train", "test", "train"]),
        "meta_input_layers": np.array([0, 5]),
        "meta_target_layer": np.array(5),
        "norm_method": np.array("standardize"),
        "norm_mean": np.zeros(4),
        "norm_std": np.ones(4),
    }


SENTENCES = [packed(sentence(0), True), packed(sentence(1), False), packed(sentence(2), True)]
DATASETS = [packed(dataset(), False), packed(dataset(), True)]


def is_clear(error: featurestore.NpzError, path: Path) -> None:
    """Check that an error names its file, on one line that does nothing to a terminal."""
    assert str(path) in str(error)
    assert str(error).isprintable()


def read_sentence(path: Path) -> None:
    """Read a file; whatever is accepted has to agree with itself."""
    try:
        file = sentences.scan(path)
        read = sentences.read(file)
    except featurestore.NpzError as error:
        is_clear(error, path)
        return
    tokens, extraction = file.n_tokens, file.extraction
    assert tokens >= 1
    assert len(read.fragments) == tokens
    assert all(isinstance(text, str) for text in (read.text, *read.fragments))
    assert len(extraction.average_l0s) == len(extraction.sae_layers)
    assert read.special.shape == (tokens,)
    shapes = [(tokens, extraction.hidden), (len(extraction.layers), tokens, extraction.hidden)]
    shapes.append((len(extraction.sae_layers), tokens, extraction.features))
    arrays = (read.embeddings, read.hidden_states, read.activations)
    for array, shape, dtype in zip(arrays, shapes, extraction.dtypes, strict=True):
        assert (array is None) == (not dtype)
        if array is not None:
            assert (array.shape, array.dtype.name) == (shape, dtype)


def read_dataset(path: Path) -> None:
    try:
        read = featurestore.load_dataset(path)
    except featurestore.NpzError as error:
        is_clear(error, path)
        return
    n, d = read.X.shape
    assert read.X.dtype == np.float32
    assert read.y.shape[:1] == (n,)
    assert np.isfinite(read.X).all()
    assert np.isfinite(read.y).all()
    least = next(iter(read.normalization.parameters.values()), np.zeros(d))  # the mean or the minimum
    assert not read.transform(least).any()
    metadata = featurestore.datasets.dataset.read_metadata(path, list(read.metadata))
    assert {name: value.tolist() for name, value in read.metadata.items()} | {
        "shape": [n, d],
        "normalize": read.normalization.method,
    } == {name: value.tolist() for name, value in metadata.items()}
    assert len(metadata.get("sentence_indices", range(n))) == len(metadata.get("split", range(n))) == n
    assert all(type(layer) is int for layer in metadata.get("input_layers", np.array([])).tolist())


READERS: dict[str, tuple[Callable[[Path], None], list[bytes], dict[str, np.ndarray[Any, Any]]]] = {
    "sentence": (read_sentence, SENTENCES, sentence(0)),
    "dataset": (read_dataset, DATASETS, dataset()),
}
READER = pytest.mark.parametrize("kind", list(READERS))


def fuzz(path: Path, read: Callable[[Path], None], data: st.SearchStrategy[bytes], examples: int, long: bool) -> None:
    """Read many files."""

    @settings(
        max_examples=10 * examples if long else examples,
        database=None,
        deadline=None,
        derandomize=not long,
        suppress_health_check=list(HealthCheck),
    )
    @given_by_hypothesis(data)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    check()


# Bytes


@st.composite
def mutated(draw: Draw, files: Sequence[bytes]) -> bytes:
    """A valid file after a few accidents, half of them to the zip directory or to the first local header."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        directory = max(0, data.find(b"PK\1\2"))
        place = draw(st.sampled_from(["anywhere", "directory", "start"]))
        first, last = {"anywhere": (0, len(data)), "directory": (directory, len(data)), "start": (0, 200)}[place]
        at = draw(st.integers(min(first, len(data)), min(last, len(data))))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "truncate", "repeat", "splice"])):
            case "flip":
                data[at : at + 1] = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in data[at : at + 1])
            case "set":
                new = draw(st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"]))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=30))
            case "delete":
                del data[at : at + draw(st.integers(1, 100))]
            case "truncate":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 300))]
            case "splice":
                other = draw(st.sampled_from(files))
                data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


@READER
def test_mutated_bytes(tmp_path: Path, long: bool, kind: str) -> None:
    read, files, _ = READERS[kind]
    fuzz(tmp_path / "sentence_1.npz", read, mutated(files), 300, long)


@READER
def test_random_bytes(tmp_path: Path, long: bool, kind: str) -> None:
    starts = st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"PK\5\6" + bytes(18), b"\x93NUMPY\1\0"])
    data = st.tuples(st.binary(max_size=300), starts, st.binary(max_size=300)).map(b"".join)
    fuzz(tmp_path / "sentence_1.npz", READERS[kind][0], data, 100, long)


# The zip directory

DIRECTORY = {"version": (6, "H"), "flags": (8, "H"), "method": (10, "H"), "crc": (16, "I"), "compressed": (20, "I")}
DIRECTORY |= {"size": (24, "I"), "name": (28, "H"), "extra": (30, "H"), "comment": (32, "H"), "offset": (42, "I")}
END = {"disk": (4, "H"), "here": (8, "H"), "entries": (10, "H"), "bytes": (12, "I"), "start": (16, "I")}


@st.composite
def misdirected(draw: Draw, files: Sequence[bytes]) -> bytes:
    """A valid file with other values in a few fields of its directory."""
    data = bytearray(draw(st.sampled_from(files)))
    entries = []
    at = data.find(b"PK\1\2")
    while at >= 0:
        entries.append(at)
        at = data.find(b"PK\1\2", at + 4)
    end = data.rfind(b"PK\5\6")
    for _ in range(draw(st.integers(1, 3))):
        start, fields = draw(st.sampled_from([*((at, DIRECTORY) for at in entries), (end, END)]))
        offset, kind = fields[draw(st.sampled_from(sorted(fields)))]
        (old,) = struct.unpack_from(f"<{kind}", data, start + offset)
        most = (1 << 8 * struct.calcsize(kind)) - 1
        near = st.integers(max(old - 20, 0), min(old + 20, most))
        new = draw(st.one_of(near, st.sampled_from([0, 1, 8, 12, 14, most, most - 1, most // 2]), st.integers(0, most)))
        struct.pack_into(f"<{kind}", data, start + offset, new)
    return bytes(data)


@READER
def test_a_rewritten_directory(tmp_path: Path, long: bool, kind: str) -> None:
    read, files, _ = READERS[kind]
    fuzz(tmp_path / "sentence_1.npz", read, misdirected(files), 300, long)


# The npy headers, in an archive that is sound for itself

DESCRS: list[Any] = [
    *("<f4", ">f4", "<f2", ">f2", "<f8", "<f16", "<i8", ">i8", "<u8", "|i1", "|b1", "<c8", "<c16", "|O", "T"),
    *("<U0", "<U1", "<U3", ">U3", "<U999999999", "|S0", "|S7", "|V0", "|V2", "|V2147483647"),
    *("<M8[s]", "<M8", "<m8[D]", "<M8[9999999999s]", "", "<i8,<i8", "garbage", None, 5),
    [("a", "<f4")],
    [("a", "|O")],
    [("a", "<f4", (2,)), ("b", "<U2")],
    [],
    *((base, shape) for base in ("<i8", "<f4", "|b1", "<U4") for shape in ((1,), (2,), (0,), (1, 1))),
]
SHAPES: list[Any] = [
    *((), (0,), (1,), (2,), (3,), (1, 1), (-1,), (3, -1), (-3, -4), (0, 2**62), (2**62, 2**62, 0), (2**31,), (2**63,)),
    *((2**70,), (2**40, 2**40), (1,) * 64, (1,) * 65, (True,), (1.0,), ((1,),), [3], "3", None, 3),
]
MAX_BODY = 1 << 16


@st.composite
def lying(draw: Draw, arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """An archive of which some headers lie, with right CRCs, and mostly with as many bytes as the lie needs."""
    chosen = draw(st.sets(st.sampled_from(sorted(arrays)), min_size=1, max_size=3))
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            archive.writestr(f"{name}.npy", lie(draw, array) if name in chosen else member.getvalue())
    return stream.getvalue()


def lie(draw: Draw, array: np.ndarray[Any, Any]) -> bytes:
    """Write an array as something else."""
    descr, shape = array.dtype.str, array.shape
    what = draw(st.sampled_from(["descr", "shape", "both", "values"]))
    if what in ("descr", "both"):
        descr = draw(st.sampled_from(DESCRS))
    if what in ("shape", "both"):
        near = st.lists(st.integers(-1, 4), max_size=4).map(tuple)
        shape = draw(st.one_of(st.sampled_from([*SHAPES, shape[::-1], (*shape, 1), shape[1:]]), near))
    fortran = draw(st.sampled_from([False, True, False, False, 1, None]))
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape})
    if draw(st.integers(0, 9)) == 0:
        header = draw(
            st.sampled_from(["", "{}", "[" * 9000, "{" + header, header + ")", header.replace("'", ""), "1" * 9000])
        )
    needed = size_of(descr, shape)
    body = array.tobytes() if needed is None or draw(st.integers(0, 4)) == 0 else bytes(needed)
    if needed and draw(st.booleans()):
        body = (draw(st.binary(min_size=1, max_size=32)) * needed)[:needed]
    version = draw(st.sampled_from([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]))
    length = max(0, len(header) + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1])))
    packed_length = struct.pack("<H" if version == (1, 0) else "<I", length)
    return b"\x93NUMPY" + bytes(version) + packed_length + header.encode() + body


def size_of(descr: Any, shape: Any) -> int | None:
    """How many bytes an array needs, if that can be known and is little."""
    try:
        size = math.prod(shape) * np.lib.format.descr_to_dtype(descr).itemsize
        return size if isinstance(size, int) and 0 <= size <= MAX_BODY else None
    except (TypeError, ValueError, AttributeError, IndexError, SyntaxError):
        return None


@READER
def test_lying_headers(tmp_path: Path, long: bool, kind: str) -> None:
    read, _, arrays = READERS[kind]
    fuzz(tmp_path / "sentence_1.npz", read, lying(arrays), 500, long)


def stored(content: dict[str, tuple[Any, Any, bytes]]) -> bytes:
    """Sentence 0 with some arrays replaced: as descr, shape and bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in sentence(0).items():
            descr, shape, body = content.get(name, (array.dtype.str, array.shape, array.tobytes()))
            header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "descr", "shape", "body"),
    [
        pytest.param("sentence_index", "<i8", (1,) * 65, bytes(8), id="more dims than numpy has"),
        pytest.param("sentence_index", "<i8", (True,), bytes(8), id="a size that is no integer"),
        pytest.param("sentence", "<U0", (2**70,), b"", id="no bytes, but a size beyond 64 bits"),
        pytest.param("sentence_index", "<i8", (0, 2**62), b"", id="no elements, but an overflowing shape"),
        pytest.param("layers", ("<i8", (2,)), (LAYERS,), bytes(range(16 * LAYERS)), id="two integers a layer"),
        pytest.param("average_l0s", ("<i8", (0,)), (LAYERS,), b"", id="no integer a layer"),
        pytest.param("is_final_token", ("|b1", (2,)), (TOKENS,), b"\0\0\0\0\0\1", id="two flags a token"),
        pytest.param("fragments", ("<U4", (2,)), (TOKENS,), bytes(32 * TOKENS), id="two fragments a token"),
        pytest.param("fragments", ("<U4", (0,)), (TOKENS,), b"", id="no fragment a token"),
        pytest.param("sentence", ("<U4", (0,)), (), b"", id="no text"),
        pytest.param("sentence_index", ("<i8", (0,)), (), b"", id="no index"),
        pytest.param("sentence", "<U1", (), b"\xff\xff\xff\xff", id="a character beyond Unicode"),
        pytest.param("fragments", "<U1", (TOKENS,), b"\0\0\x11\0" * TOKENS, id="the first one beyond Unicode"),
        pytest.param("sentence_index", "<M8", (), b"\1" + bytes(7), id="a date without a unit"),
        pytest.param("sentence_index", "<U1", (), b"\xff\xff\xff\xff", id="a number that is no Unicode"),
    ],
)
def test_a_lie(tmp_path: Path, name: str, descr: Any, shape: Any, body: bytes) -> None:
    (tmp_path / "sentence_1.npz").write_bytes(stored({name: (descr, shape, body)}))
    with pytest.raises(featurestore.NpzError, match=f"array '{name}'|arrays disagree"):
        sentences.read(sentences.scan(tmp_path / "sentence_1.npz"))


def test_integers_as_float16(tmp_path: Path) -> None:
    """Odd, but whole numbers; and no warning of numpy's on the way."""
    layers = np.arange(LAYERS, dtype="<f2")
    (tmp_path / "sentence_1.npz").write_bytes(stored({"layers": ("<f2", (LAYERS,), layers.tobytes())}))
    assert sentences.scan(tmp_path / "sentence_1.npz").extraction.layers == (*range(LAYERS),)


def test_an_array_name_that_drives_a_terminal(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **dataset() | {"meta_\x1b[31m\n": np.array([None])})
    with pytest.raises(featurestore.NpzError, match="pickled") as error:
        featurestore.load_dataset(tmp_path / "x.npz")
    is_clear(error.value, tmp_path / "x.npz")


def test_an_unknown_normalization(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **dataset() | {"norm_method": np.array("robust")})
    with pytest.raises(featurestore.NpzError, match=r"x\.npz.*robust"):
        featurestore.load_dataset(tmp_path / "x.npz")


# Memory

MIB = 1 << 20


def peak(function: Callable[[], object]) -> int:
    """How many bytes are allocated at most during a call that refuses a file."""
    tracemalloc.start()
    try:
        with pytest.raises(featurestore.NpzError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(path: Path, name: str, claim: int, inflated: int = 100_000_000) -> None:
    """Write sentence 0 with zeros in one array, about 100 kB that inflate to 100 MB; the directory claims `claim`."""
    arrays = sentence(0)
    shape: tuple[int, ...] = (claim - 128,)
    if name == "activations":
        shape = (LAYERS, TOKENS, max(1, (claim - 128) // (4 * LAYERS * TOKENS)))
        arrays["num_features"] = np.array(shape[2])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, array in arrays.items():
            if member != name:
                with archive.open(f"{member}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        with archive.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": array_descr(name), "fortran_order": False, "shape": shape}
            )
            for _ in range(inflated // MIB):
                file.write(bytes(MIB))
    data = bytearray(path.read_bytes())
    assert len(data) < 150_000
    entry = data.rfind(f"{name}.npy".encode(), 0, data.rfind(b"PK\5\6")) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    struct.pack_into("<I", data, entry + 24, min(claim, 0xFFFF_FFFE))
    path.write_bytes(data)


def array_descr(name: str) -> str:
    return {"activations": "<f4", "is_final_token": "|b1"}.get(name, "|u1")


@pytest.mark.parametrize("name", ["activations", "is_final_token", "layers", "sentence"])
@pytest.mark.parametrize("claim", [1_000, 4 << 30])
def test_a_bomb(tmp_path: Path, name: str, claim: int) -> None:
    """Claims 4 GB, or next to nothing; nothing is inflated."""
    path = tmp_path / "sentence_1.npz"
    bomb(path, name, claim)
    assert peak(lambda: sentences.read(sentences.scan(path))) < 8 * MIB


@pytest.mark.parametrize("name", ["is_final_token", "layers", "sentence"])
def test_a_bomb_in_a_small_array(tmp_path: Path, name: str) -> None:
    """Honest about its 100 MB, which no array of that name needs."""
    path = tmp_path / "sentence_1.npz"
    bomb(path, name, 100 * MIB)
    assert peak(lambda: sentences.read(sentences.scan(path))) < 8 * MIB


def test_a_bomb_is_scanned_without_inflating_it(tmp_path: Path) -> None:
    """Big activations that are mostly zeros are legitimate, so only reading tells that these are not as claimed."""
    path = tmp_path / "sentence_1.npz"
    bomb(path, "activations", 90_000_000)
    file = None

    def scan_and_fail() -> None:
        nonlocal file
        file = sentences.scan(path)
        raise featurestore.NpzError

    assert peak(scan_and_fail) < 8 * MIB


def test_a_dataset_bomb(tmp_path: Path) -> None:
    """Datasets are stored, so one that inflates to more than its file is none of ours."""
    arrays = dataset() | {"X": np.zeros((25_000, 1000), np.float32)}
    (tmp_path / "x.npz").write_bytes(packed(arrays, True))
    del arrays
    assert peak(lambda: featurestore.load_dataset(tmp_path / "x.npz")) < 8 * MIB


def test_claimed_shapes_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sentence_1.npz"
    for name in sentence(0):
        for descr, shape in (("<f4", (2, 3, 1 << 30)), ("<i8", (1 << 40,)), ("<U268435455", ()), ("|V2147483647", ())):
            path.write_bytes(stored({name: (descr, shape, bytes(100))}))
            if name in ("token_positions", "fragment_lengths") and shape == ():
                continue  # never read
            assert peak(lambda: sentences.read(sentences.scan(path))) < 8 * MIB
