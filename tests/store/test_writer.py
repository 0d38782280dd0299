"""Sentences straight into a store: the same as ingesting their NPZs, from arrays of any library."""

from __future__ import annotations

import errno
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array

import featurestore
from featurestore import files as files_on_disk
from tests.sentences import sentence_arrays, write_sentence

Arrays = dict[str, np.ndarray[Any, Any]]
BIG = ("embeddings", "hidden_states", "activations")
LAYERS, L0S = (0, 1, 5), (3, 3, 3)


def arguments(arrays: Arrays, **changes: Any) -> dict[str, Any]:
    """What `append` takes of a sentence NPZ."""
    found: dict[str, Any] = {name: arrays[name] for name in BIG if name in arrays}
    found |= {"sentence_index": arrays["sentence_index"].item(), "text": arrays["sentence"].item()}
    found |= {"label": arrays["concept_strength_label"].item(), "fragments": arrays["fragments"].tolist()}
    return found | changes


def files(store: Path) -> dict[str, bytes]:
    """All that a store is on disk, but what tells where its sentences came from."""
    found = {file.relative_to(store).as_posix(): file for file in store.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith("source")}


def pairs(layer: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices and values (T, K) of a layer in any order, rows with fewer filled up with zeros of feature 0."""
    width = max(1, int((layer != 0).sum(1).max()))
    indices, values = np.zeros((len(layer), width), np.int32), np.zeros((len(layer), width), layer.dtype)
    for row, column in zip(range(len(layer)), layer, strict=True):
        found = rng.permutation(np.flatnonzero(column))
        indices[row, : len(found)], values[row, : len(found)] = found, column[found]
    return indices, values


class OnDevice:
    """A tensor as PyTorch has it on a GPU and in a graph: it has to be detached and moved before it is one of numpy."""

    def __init__(self, array: Any, *, steps: tuple[str, ...] = (), dtype: str = "torch.float32") -> None:
        self.array, self.steps, self.dtype = array, steps, dtype

    def detach(self) -> OnDevice:
        return OnDevice(self.array, steps=(*self.steps, "detach"), dtype=self.dtype)

    def cpu(self) -> OnDevice:
        return OnDevice(self.array, steps=(*self.steps, "cpu"), dtype=self.dtype)

    def float(self) -> OnDevice:
        wide = (self.array.astype(np.uint32) << 16).view(np.float32)  # bits of bfloat16 are the upper ones of float32
        return OnDevice(wide, steps=self.steps)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        assert self.steps == ("detach", "cpu")
        assert self.dtype != "torch.bfloat16"
        return self.array


class ByDLPack:
    """An array of a library that has DLPack alone."""

    def __init__(self, array: Any) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    dtype=st.sampled_from(["float16", "float32"]),
    absent=st.sampled_from([(), ("embeddings",), ("hidden_states",), ("activations",), ("embeddings", "activations")]),
    form=st.sampled_from(["dense", "list", "csr", "pairs"]),
    order=st.sampled_from(["C", "F"]),
    byteorder=st.sampled_from(["=", ">"]),
    seed=st.integers(0, 9),
)
def test_equals_ingest(
    lengths: list[int], dtype: str, absent: tuple[str, ...], form: str, order: Any, byteorder: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as name:
        base = Path(name)
        with featurestore.writer(base / "w.zarr", layers=LAYERS, average_l0s=L0S, model="a model") as store:
            assert store.missing(range(len(lengths))) == [*range(len(lengths))]
            for index, tokens in enumerate(lengths):
                write_sentence(base / "in", index, drop=absent, tokens=tokens, dtype=dtype, seed=seed)
                arrays = sentence_arrays(index, tokens=tokens, dtype=dtype, seed=seed)
                given = arguments({name: arrays[name] for name in arrays if name not in absent})
                big = {name: given[name] for name in BIG if name in given}
                if form != "csr":  # which SciPy makes of native ones alone
                    given |= {name: array.astype(array.dtype.newbyteorder(byteorder)) for name, array in big.items()}
                if "activations" in given and form != "dense":
                    layers = [*given["activations"]]
                    made = {"list": layers, "csr": map(csr_array, layers), "pairs": (pairs(one, rng) for one in layers)}
                    given |= {"activations": [*made[form]], "features": 10}
                if "hidden_states" in given:
                    given["hidden_states"] = np.array(given["hidden_states"], order=order)
                store.append(**given)
                assert index not in store.missing(range(len(lengths)))
        featurestore.ingest(base / "in", base / "i.zarr", model="a model")
        assert files(base / "w.zarr") == files(base / "i.zarr")
        assert featurestore.verify(base / "w.zarr") == []


def test_an_npz_by_hand_is_as_one_of_the_extraction(tmp_path: Path) -> None:
    arrays = sentence_arrays(3, tokens=5)
    sparse = [csr_array(layer) for layer in arrays["activations"]]
    given = arguments(arrays, activations=sparse, special=[True, False, False, False, False])
    featurestore.write_sentence(tmp_path / "a" / "sentence_1.npz", layers=LAYERS, average_l0s=L0S, **given)
    with np.load(tmp_path / "a" / "sentence_1.npz") as written:
        for name in written.files:
            expected = arrays[name] if name in arrays else np.array([True, False, False, False, False])
            np.testing.assert_array_equal(written[name], expected, strict=name in ("embeddings", "activations"))
    assert featurestore.ingest(tmp_path / "a", tmp_path / "s.zarr").added == 1

    again = arguments(arrays, label=1)
    with pytest.raises(featurestore.DatasetError, match="exists with other content; choose another output"):
        featurestore.write_sentence(tmp_path / "a" / "sentence_1.npz", layers=LAYERS, average_l0s=L0S, **again)
    with pytest.raises(featurestore.ParameterError, match="sentence 3: array 'embeddings' must be float16 or float32"):
        featurestore.write_sentence(tmp_path / "b.npz", layers=LAYERS, **arguments(arrays, embeddings=np.zeros((5, 6))))
    assert not (tmp_path / "b.npz").exists()


def test_saes_of_some_layers_and_several_of_one(tmp_path: Path) -> None:
    arrays = sentence_arrays(0, layers=(2, 3), features=4)
    activations = np.random.default_rng(0).gamma(1, 1, (3, 4, 4)).astype(np.float32)
    given = arguments(arrays, activations=activations)
    with featurestore.writer(tmp_path / "s.zarr", layers="2-3", sae_layers=[3, 3, 2], average_l0s=[5, 9.5, 5]) as store:
        store.append(**given)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds.sae_layer.values.tolist() == [3, 3, 2]
    assert ds.average_l0.values.tolist() == [5, 9.5, 5]
    np.testing.assert_array_equal(ds.activations[0].transpose("sae", "token", "feature"), activations)
    np.testing.assert_array_equal(ds.hidden_states[0].transpose("layer", "token", "hidden"), arrays["hidden_states"])


def test_arrays_of_other_libraries(tmp_path: Path) -> None:
    """On another device and in a graph, as bfloat16, by DLPack, or as a list of one array a layer."""
    rng = np.random.default_rng(0)
    bits = (rng.standard_normal((3, 4, 6)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    embeddings = rng.standard_normal((4, 6)).astype(np.float16)
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS) as store:
        store.append(
            sentence_index=7,
            text="one two",
            tokens=["one", " ", "tw", "o"],
            embeddings=ByDLPack(embeddings),
            hidden_states=[OnDevice(layer, dtype="torch.bfloat16") for layer in bits],
            activations=OnDevice(np.array([[[0, -0.0], [1, 0], [0, 2], [0, 0]]] * 3, np.float32)),
        )
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds.fragment[0].values.tolist() == ["one", "one ", "one tw", "one two"]
    assert ds.token_text[0].values.tolist() == ["one", " ", "tw", "o"]
    assert (ds.label.values.tolist(), ds.has_label.values.tolist()) == ([-1], [False])
    assert ds.average_l0.values.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(ds.embeddings[0], embeddings, strict=False)
    found = ds.hidden_states[0].transpose("layer", "token", "hidden").values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), bits.astype(np.uint32) << 16)
    assert np.signbit(ds.activations.sel(token=-4, layer=0, feature=1)).item()  # -0.0 stays


def test_arrays_are_copied(tmp_path: Path) -> None:
    """Also of one token, whose reverse is itself."""
    buffer = np.zeros((1, 6), np.float16)
    with featurestore.writer(tmp_path / "s.zarr") as store:
        for index in range(3):
            buffer[:] = index
            store.append(sentence_index=index, text="x", tokens=["x"], embeddings=buffer)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds.embeddings[:, 0, 0].values.tolist() == [0, 1, 2]


def test_what_was_appended_before_an_error_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt), featurestore.writer(path, layers=LAYERS, average_l0s=L0S) as store:  # noqa: PT012
        for index in store.missing(range(100)):
            if index == 70:
                raise KeyboardInterrupt
            store.append(**arguments(sentence_arrays(index)))
    assert (featurestore.info(path).sentences, featurestore.info(path).expected_sentences) == (70, 100)
    with featurestore.writer(path, layers=LAYERS, average_l0s=L0S) as store:
        assert store.missing([99, 5, 70]) == [99, 70]
        store.append(**arguments(sentence_arrays(5)))  # as it is there: passed over
        store.append(**arguments(sentence_arrays(99)))
    assert (featurestore.info(path).sentences, featurestore.info(path).expected_sentences) == (71, None)
    texts = ["a", "ab", "abc", "abcd"]
    for changed in (
        {"label": 3}, {"text": "other"}, {"embeddings": sentence_arrays(6)["embeddings"]}, {"fragments": texts},
        {"special": [True, False, False, False]},
    ):  # fmt: skip
        with (
            pytest.raises(featurestore.StoreError, match="sentence_index 5 is there with other content, which stays"),
            featurestore.writer(path, layers=LAYERS, average_l0s=L0S) as store,
        ):
            store.append(**arguments(sentence_arrays(5), **changed))
    assert featurestore.verify(path) == []


def test_the_same_index_twice(tmp_path: Path) -> None:
    """Also of a sentence that waits for its batch."""
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, average_l0s=L0S) as store:
        store.append(**arguments(sentence_arrays(5)))
        store.append(**arguments(sentence_arrays(5)))
        with pytest.raises(featurestore.StoreError, match="sentence_index 5 is there with other content"):
            store.append(**arguments(sentence_arrays(5), special=[True, False, False, False]))
    assert featurestore.info(tmp_path / "s.zarr").sentences == 1


def test_an_error_that_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say: when there is room again, all sentences that were appended come into the store."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    refused = 0
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, average_l0s=L0S) as store:
        for index in range(70):
            with monkeypatch.context() as patch:
                if 63 <= index < 66:
                    patch.setattr(files_on_disk, "flush", full)
                try:
                    store.append(**arguments(sentence_arrays(index)))
                except OSError:
                    refused += 1
    assert refused == 3
    found = featurestore.open_store(tmp_path / "s.zarr").sentence.values.tolist()
    assert found == [*range(64), *range(66, 70)]  # the first was taken before the disk was full, the others were not
    assert featurestore.verify(tmp_path / "s.zarr") == []


def test_an_interrupted_store_says_of_which_model_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, model="A") as store:  # noqa: PT012
        store.append(**arguments(sentence_arrays(0)))
        raise KeyboardInterrupt
    assert featurestore.open_store(tmp_path / "s.zarr").attrs["model"] == "A"


def test_what_numpy_does_not_keep(tmp_path: Path) -> None:
    """A NUL at the end of a text, but one in it stays; zeros that fill up pairs, whatever their sign."""
    filled = (np.array([[3, 0, 0]]), np.array([[2, -0.0, 0]], np.float32))
    with featurestore.writer(tmp_path / "s.zarr", layers=[1]) as store:
        store.append(sentence_index=0, text="a\0b\0", tokens=["a\0b\0"], activations=[filled], features=4)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert (ds.text.item(), ds.fragment.item()) == ("a\0b", "a\0b")
    assert ds.activations.values.ravel().tolist() == [0, 0, 0, 2]


def test_an_ingested_store_goes_on(tmp_path: Path) -> None:
    for index in range(3):
        write_sentence(tmp_path / "in", index)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr", special_first=1)
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, average_l0s=L0S) as store:
        for index in range(5):  # of which the first three are there
            store.append(**arguments(sentence_arrays(index)))
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds.source.values.tolist() == [*(f"sentence_{i:06d}.npz" for i in (1, 2, 3)), "", ""]
    assert len({*ds.source_digest.values.tolist()}) == 5
    assert ds.is_special.sum().item() == 5


def test_digests_tell_what_sentences_hold(tmp_path: Path) -> None:
    """Of datasets, too, which are made of them: any other value, text or mark is another sentence."""
    arrays = sentence_arrays(0)
    nudged = np.nextafter(arrays["activations"], np.float32(99))
    changes: list[dict[str, Any]] = [
        {}, {"label": 2}, {"text": "x"}, {"special": [True] * 4}, {"activations": nudged}, {"fragments": [*"abcd"]},
    ]  # fmt: skip
    digests = []
    for number, changed in enumerate([*changes, {}]):
        with featurestore.writer(tmp_path / f"{number}.zarr", layers=LAYERS, average_l0s=L0S) as store:
            store.append(**arguments(arrays, **changed))
        digests += featurestore.open_store(tmp_path / f"{number}.zarr").source_digest.values.tolist()
    assert len({*digests}) == len(changes)
    assert digests[0] == digests[-1]


PAIR = (np.zeros((4, 2), np.int64), np.ones((4, 2), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 3}, "sentence 0: text=: expected text, found 3"),
        ({"fragments": None}, r"sentence 0: expected either fragments= .* or tokens= .*, found neither"),
        ({"tokens": ["a"]}, r"found both"),
        ({"fragments": "abcd"}, "sentence 0: fragments=: expected a list of texts, found 'abcd'"),
        ({"fragments": []}, r"arrays disagree on the number of tokens|zero tokens"),
        ({"label": "high"}, "sentence 0: label=: expected an integer, found 'high'"),
        ({"sentence_index": -1}, "array 'sentence_index' must count from 0, found -1"),
        ({"special": [0, 1, 0, 0]}, "array 'is_special' must be bool, found int64"),
        ({"embeddings": np.zeros((3, 6), "f4")}, r"number of tokens \(T\): embeddings 3, hidden_states 4"),
        ({"hidden_states": np.zeros((4, 6), "f4")}, r"must have dims \(L, T, H\), found shape \(4, 6\)"),
        ({"hidden_states": np.zeros((2, 4, 6), "f4")}, r"disagree on the number of layers"),
        ({"hidden_states": [np.zeros((4, 6), "f4"), np.zeros((4, 5), "f4")]}, "'hidden_states' must be an array"),
        ({"activations": "many"}, r"'activations' must have dims \(L, T, F\), found shape \(\)"),
        ({"activations": [PAIR] * 3}, "holds pairs of indices and values, which do not tell the number of features"),
        ({"activations": [PAIR] * 3, "features": 10}, "names feature 0 of SAE 0 twice at token 0; add them up"),
        ({"activations": [(PAIR[0] + 10, PAIR[1])] * 3, "features": 10}, "must name features from 0 to 9, found 10"),
        ({"activations": [(PAIR[0], PAIR[1][:3])] * 3, "features": 10}, r"must be pairs of whole indices and values"),
        ({"activations": [csr_array(np.eye(4, 5)), csr_array(np.eye(4))]}, "must be of the same tokens, features"),
        ({"activations": [PAIR, *[csr_array(np.eye(4))] * 2], "features": 2}, "must be of the same tokens, features"),
        ({"activations": [csc_array(np.eye(4, dtype="f4"))] * 3}, "must be CSR arrays"),
        ({"activations": (PAIR[0].astype("i2"), PAIR[1])}, "must be of one dtype, found float32, int16"),
        ({"features": 11}, "arrays disagree on the number of features"),
        (dict.fromkeys(BIG), "missing array 'embeddings', 'hidden_states', 'activations'"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line that names the sentence; nothing is written."""
    given = arguments(sentence_arrays(0), **changes)
    with (
        pytest.raises(featurestore.ParameterError, match=message) as caught,
        featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, average_l0s=L0S) as store,
    ):
        store.append(**given)
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [0.5]}, "layers=: expected"),
        ({"sae_layers": "x"}, "sae_layers="),
        ({"average_l0s": 5}, "average_l0s=: expected one number for each SAE, found 5"),
        ({"average_l0s": ["x"]}, "average_l0s=: expected one number for each SAE, found"),
        ({"modell": "x"}, r"modell=: writer takes no such option; it takes model=, model_revision="),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(featurestore.ParameterError, match=message), featurestore.writer(tmp_path / "s.zarr", **options):
        pytest.fail("nothing can be written")
    assert [*tmp_path.iterdir()] == []


def test_no_layers(tmp_path: Path) -> None:
    with (
        pytest.raises(featurestore.ParameterError, match="sentence 0: expected layers=, to name the layers of its arr"),
        featurestore.writer(tmp_path / "s.zarr") as store,
    ):
        store.append(**arguments(sentence_arrays(0)))


def test_other_sentences_than_before(tmp_path: Path) -> None:
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS, average_l0s=L0S) as store:
        store.append(**arguments(sentence_arrays(0)))
        with pytest.raises(
            featurestore.ParameterError, match="sentence 1: does not fit the store: hidden 7 instead of 6"
        ):
            store.append(**arguments(sentence_arrays(1, hidden=7)))
    assert featurestore.info(tmp_path / "s.zarr").sentences == 1


def test_something_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with (
            pytest.raises(featurestore.StoreError, match="expected a feature store or nothing, found something else"),
            featurestore.writer(path),
        ):
            pytest.fail("nothing can be written")


def test_a_bos_and_infinite_values_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hidden_states = np.ones((3, 5, 6), np.float32)
    hidden_states[:, 0] = 1000
    hidden_states[0, 1, 0] = np.inf
    with featurestore.writer(tmp_path / "s.zarr", layers=LAYERS) as store:
        store.append(sentence_index=4, text="abcde", tokens=[*"abcde"], hidden_states=hidden_states)
    assert "is not marked as a special token; if it is one, mark it as a special one in a new store" in caplog.text
    assert "1 NaN or infinite values in sentence 4;" in caplog.text
