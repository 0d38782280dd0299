"""Batches for training: the rows of the sentence NPZs, each once, as numpy alone puts them together."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.errors import MissingExtraError, ParameterError, StoreError
from featurestore.store import batches as module
from featurestore.store import layout
from tests.sentences import sentence_arrays, write_sentence

Arrays = dict[str, np.ndarray[Any, Any]]

LENGTHS = [3, 1, 7, 2, 2, 5, 1, 4, 6, 1, 3]
LAYERS = [0, 1, 5]
NAMES = ["hidden_states", "label", "text", "fragment", "activations"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several shards. Not to be changed."""
    base = tmp_path_factory.mktemp("batches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROWS", 2)
        patch.setattr(layout, "TOKENS", 3)
        for index, tokens in enumerate(LENGTHS):
            write_sentence(base / "trait", index, tokens=tokens)
        featurestore.ingest(base / "trait", base / "trait.zarr")
    return base / "trait.zarr"


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of few sentences, in blocks of two."""
    monkeypatch.setattr(module, "_WINDOW_BYTES", 6000)
    monkeypatch.setattr(module, "_SHARD", 2)


def token_rows(sentences: list[int]) -> dict[tuple[int, int], dict[str, Any]]:
    """Each row by sentence and token, from the arrays of the NPZs."""
    rows = {}
    for index in sentences:
        arrays = sentence_arrays(index, tokens=LENGTHS[index])
        for position in range(LENGTHS[index]):
            rows[index, position - LENGTHS[index]] = {
                "hidden_states": arrays["hidden_states"][:, position],
                "activations": arrays["activations"][:, position],
                "label": index % 4,
                "text": arrays["sentence"].item(),
                "fragment": arrays["fragments"][position].item(),
            }
    return rows


def assert_rows(found: list[Arrays], expected: dict[tuple[int, int], dict[str, Any]]) -> list[tuple[int, int]]:
    """Compare all rows, each once, with the NPZs; return their order."""
    keys = [key for batch in found for key in zip(batch["sentence"].tolist(), batch["token"].tolist(), strict=True)]
    assert len(keys) == len(expected)
    assert {*keys} == expected.keys()
    for batch in found:
        for row, key in enumerate(zip(batch["sentence"].tolist(), batch["token"].tolist(), strict=True)):
            for name in batch.keys() - {"sentence", "token"}:
                np.testing.assert_array_equal(batch[name][row], expected[key][name])
    return keys


def joined(found: list[Arrays], name: str) -> list[Any]:
    return [value for batch in found for value in batch[name].tolist()]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_are_the_tokens_of_the_npzs(store: Path, chunks: Any, shuffle: bool) -> None:
    ds = featurestore.open_store(store, chunks=chunks)
    found = list(featurestore.batches(ds, batch_size=4, variables=NAMES, shuffle=shuffle))
    expected = token_rows([*range(len(LENGTHS))])
    order = assert_rows(found, expected)
    assert (order == sorted(order)) is not shuffle
    assert [len(batch["token"]) for batch in found] == [4] * (len(expected) // 4) + [len(expected) % 4]
    assert {*found[0]} == {"sentence", "token", *NAMES}
    assert found[0]["hidden_states"].dtype == np.float16
    assert found[0]["activations"].dtype == np.float32


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("shuffle", [True, False])
def test_selections(store: Path, shuffle: bool) -> None:
    ds = featurestore.open_store(store)
    train = [9, 2, 3, 7, 0]
    selected = ds.sel(sentence=train, layer=5, token=slice(-3, None))
    found = list(featurestore.batches(selected, batch_size=3, variables=["hidden_states", "label"], shuffle=shuffle))
    expected = {
        key: {"hidden_states": row["hidden_states"][LAYERS.index(5)], "label": row["label"]}
        for key, row in token_rows(train).items()
        if key[1] >= -3
    }
    order = assert_rows(found, expected)
    if not shuffle:
        assert order == sorted(order, key=lambda key: (train.index(key[0]), key[1]))


@pytest.mark.usefixtures("small_windows")
def test_sentences_keep_their_tokens(store: Path) -> None:
    ds = featurestore.open_store(store)
    found = list(featurestore.batches(ds, batch_size=4, by="sentence", variables=["hidden_states", "text"]))
    assert [len(batch["sentence"]) for batch in found] == [4, 4, 3]
    assert sorted(joined(found, "sentence")) == [*range(len(LENGTHS))]
    for batch in found:
        assert {*batch} == {"sentence", "hidden_states", "text", "is_token"}
        for row, index in enumerate(batch["sentence"]):
            arrays, n = sentence_arrays(index, tokens=LENGTHS[index]), LENGTHS[index]
            values = batch["hidden_states"][row]
            assert values.shape == (max(LENGTHS), len(LAYERS), 6)
            np.testing.assert_array_equal(values[-n:], arrays["hidden_states"].swapaxes(0, 1))
            assert np.isnan(values[:-n]).all()
            assert batch["is_token"][row].tolist() == [False] * (max(LENGTHS) - n) + [True] * n
            assert batch["text"][row] == arrays["sentence"].item()


def test_one_token_of_each_sentence(store: Path) -> None:
    final = featurestore.open_store(store).sel(token=-1)
    (batch,) = featurestore.batches(final, batch_size=99, by="sentence", shuffle=False, variables=["embeddings"])
    expected = [sentence_arrays(index, tokens=n)["embeddings"][-1] for index, n in enumerate(LENGTHS)]
    assert {*batch} == {"sentence", "embeddings"}
    np.testing.assert_array_equal(batch["embeddings"], np.stack(expected))


def test_several_stores(store: Path, tmp_path: Path) -> None:
    write_sentence(tmp_path / "other", 4, tokens=9, seed=1)
    featurestore.ingest(tmp_path / "other", tmp_path / "other.zarr")
    ds = featurestore.open_stores([store, tmp_path / "other.zarr"]).sel(layer=0)
    found = list(featurestore.batches(ds, batch_size=8, shuffle=False, variables=["hidden_states", "store"]))
    sentences = [sentence_arrays(index, tokens=n) for index, n in enumerate(LENGTHS)]
    sentences.append(sentence_arrays(4, tokens=9, seed=1))
    expected = np.concatenate([arrays["hidden_states"][0] for arrays in sentences])
    np.testing.assert_array_equal(np.concatenate([batch["hidden_states"] for batch in found]), expected)
    assert joined(found, "store") == ["trait"] * sum(LENGTHS) + ["other"] * 9


@settings(max_examples=60)
@given(data=st.data())
def test_own_datasets_of_any_shape(data: st.DataObject) -> None:
    """Every row once, all batches full but the last, the same by the same seed; for any lengths, windows and sizes."""
    lengths = data.draw(st.lists(st.integers(0, 5), max_size=40))
    by = data.draw(st.sampled_from(["token", "sentence"]))
    size, seed = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 2**40))
    there = np.arange(5) >= 5 - np.array(lengths, int)[:, None]
    values = np.arange(len(lengths) * 5 * 2, dtype=np.float32).reshape(len(lengths), 5, 2)
    ds = xr.Dataset(
        {"x": (("hidden", "token", "sentence"), values.T), "y": ("sentence", -np.arange(len(lengths)))},
        {"sentence": np.arange(len(lengths)) * 3, "token": [*range(-5, 0)], "is_token": (("sentence", "token"), there)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW_BYTES", data.draw(st.integers(1, 4000)))
        patch.setattr(module, "_SHARD", data.draw(st.integers(1, 4)))
        shuffled = list(featurestore.batches(ds, batch_size=size, by=by, seed=seed))  # type: ignore[arg-type]
        again = list(featurestore.batches(ds, batch_size=size, by=by, seed=seed))  # type: ignore[arg-type]
        plain = list(featurestore.batches(ds, batch_size=size, by=by, shuffle=False))  # type: ignore[arg-type]
    sentence, token = np.nonzero(there) if by == "token" else (np.arange(len(lengths)), slice(None))
    expected = {"sentence": sentence * 3, "x": values[sentence, token], "y": -sentence}
    expected |= {"token": np.asarray(token) - 5} if by == "token" else {"is_token": there}
    full, rest = divmod(len(sentence), size)
    for found in (shuffled, plain):
        assert [len(batch["y"]) for batch in found] == [size] * full + [rest] * (rest > 0)
    if not len(sentence):
        return
    for name, array in expected.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in plain]), array)
        np.testing.assert_array_equal(joined(shuffled, name), joined(again, name))
    # Columns hang together, and each row is there once: the first value of x says which row it is.
    rows = np.concatenate([batch["x"] for batch in shuffled]).reshape(len(sentence), -1)[:, 0]
    order = np.argsort(rows)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in shuffled])[order], array)


def test_another_seed_gives_another_order(store: Path) -> None:
    ds = featurestore.open_store(store)
    orders = {
        tuple(
            joined(list(featurestore.batches(ds, batch_size=5, seed=seed, variables=["label", "fragment"])), "fragment")
        )
        for seed in range(8)
    }
    assert len(orders) == 8
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_the_order_is_that_of_every_machine() -> None:
    """As it was when this was written: whoever changes it changes what a seed means."""
    ds = xr.Dataset({"y": ("sentence", np.zeros(10))}, {"sentence": np.arange(10)})
    (batch,) = featurestore.batches(ds, batch_size=10, by="sentence", seed=3)
    assert batch["sentence"].tolist() == [9, 6, 0, 2, 1, 4, 7, 5, 3, 8]


def test_blocks_are_read_and_windows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are read together, few enough at once, from all over the dataset, each once."""
    ds = xr.Dataset({"y": (("sentence", "hidden"), np.zeros((1000, 4)))}, {"sentence": np.arange(1000)})
    monkeypatch.setattr(module, "_WINDOW_BYTES", 40 * 256)  # 32 for y, 8 for its sentence
    read: list[np.ndarray[Any, Any]] = []
    values_of = module._values

    def noted(variable: xr.Variable, sentences: Any) -> np.ndarray[Any, Any]:
        read.append(sentences)
        return values_of(variable, sentences)

    monkeypatch.setattr(module, "_values", noted)
    assert sum(len(batch["y"]) for batch in featurestore.batches(ds, batch_size=7, by="sentence")) == 1000
    windows = read[::2]
    assert max(map(len, windows)) <= 256
    assert sorted(np.concatenate(windows).tolist()) == [*range(1000)]
    blocks = [block for one in windows for block in np.split(one, np.flatnonzero(np.diff(one) > 1) + 1)]
    assert all(block[0] % 32 == 0 and (len(block) % 32 == 0 or block[-1] == 999) for block in blocks)
    assert len(blocks) > 8


def test_places_of_tokens_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dataset that has nothing but labels, windows are bounded by what its tokens take."""
    there = np.arange(100) >= np.arange(300)[:, None] % 100
    ds = xr.Dataset(
        {"y": ("sentence", np.zeros(300))},
        {"sentence": np.arange(300), "token": np.arange(-100, 0), "is_token": (("sentence", "token"), there)},
    )
    monkeypatch.setattr(module, "_WINDOW_BYTES", 100 * 8 * 64)  # of their labels alone, of 64 sentences
    read, read_of = [], module._Rows.read

    def noted(rows: Any, sentences: Any) -> Any:
        window = read_of(rows, sentences)
        read.append(len(window.of_sentences["sentence"]))
        return window

    monkeypatch.setattr(module._Rows, "read", noted)
    assert sum(len(batch["y"]) for batch in featurestore.batches(ds, batch_size=7)) == there.sum()
    assert max(read) < 64
    assert sum(read) == 300


def test_only_one_window_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = xr.Dataset({"y": ("sentence", np.arange(100.0))}, {"sentence": np.arange(100)})
    monkeypatch.setattr(module, "_WINDOW_BYTES", 16 * 32)
    read, read_of = [], module._Rows.read

    def noted(rows: Any, sentences: Any) -> Any:
        read.append(sentences)
        return read_of(rows, sentences)

    monkeypatch.setattr(module._Rows, "read", noted)
    going = featurestore.batches(ds, batch_size=32, by="sentence")
    assert read == []
    next(going)
    going.close()  # waits for the reader
    assert len(read) == 2


def test_batches_are_ones_own(store: Path) -> None:
    ds = featurestore.open_store(store).load()
    before = ds.copy(deep=True)
    for batch in featurestore.batches(ds, batch_size=99, shuffle=False):
        for values in batch.values():
            values[...] = 0
    xr.testing.assert_identical(ds, before)


def test_damage_is_told_of(store: Path, tmp_path: Path) -> None:
    write_sentence(tmp_path / "trait", 0)
    path = featurestore.ingest(tmp_path / "trait", tmp_path / "trait.zarr").store
    ds = featurestore.open_store(path)
    for file in (path / "hidden_states").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.unlink()
    with pytest.raises(StoreError, match="is missing"):
        next(featurestore.batches(ds, batch_size=1))


# Torch ----------------------------------------------------------------------------------------------------------------


def test_tensors_share_the_memory_of_arrays(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray[Any, Any]] = []

    def from_numpy(values: np.ndarray[Any, Any]) -> str:
        given.append(values)
        return f"tensor {values.shape}"

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=from_numpy))
    ds = featurestore.open_store(store).sel(layer=0)
    found = next(featurestore.batches(ds, batch_size=4, variables=["hidden_states", "label"], to="torch"))
    assert {*found.values()} == {"tensor (4, 6)", "tensor (4,)"}
    assert {*found} == {"sentence", "token", "hidden_states", "label"}
    assert all(values.flags.writeable and values.flags.c_contiguous for values in given)


def test_without_torch(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ds = featurestore.open_store(store)
    with pytest.raises(MissingExtraError, match=r"to='torch' needs torch, which is not installed: pip install torch"):
        featurestore.batches(ds, batch_size=4, to="torch")


# Refusals -------------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"batch_size": 0}, "batch_size=: expected an integer of at least 1, found 0"),
    "a fraction": ({"batch_size": 2.5}, "batch_size=: expected an integer of at least 1, found 2.5"),
    "a truth": ({"batch_size": True}, "batch_size=: expected an integer of at least 1, found True"),
    "seed below 0": ({"seed": -1}, "seed=: expected an integer of at least 0, found -1"),
    "no seed": ({"seed": None}, "seed=: expected an integer of at least 0, found None"),
    "other rows": ({"by": "layer"}, "by=: expected 'token' or 'sentence', found 'layer'"),
    "list of rows": ({"by": ["token"]}, "by=: expected 'token' or 'sentence', found ['token']"),
    "other library": ({"to": "jax"}, "to=: expected 'numpy' or 'torch', found 'jax'"),
    "shuffle": ({"shuffle": 1}, "shuffle=: expected True or False, found 1"),
    "one name": ({"variables": "label"}, "variables=: expected a list of names, found 'label'"),
    "no names": ({"variables": []}, "variables=: expected a list of names, found []"),
    "unknown": ({"variables": ["labels"]}, "found 'labels'"),
    "no name": ({"variables": [["label"]]}, "found ['label']"),
    "of layers": ({"variables": ["label", "average_l0"]}, "variables=: expected names of what is along sentence"),
    "tokens of sentences": ({"variables": ["token"], "by": "sentence"}, "found 'token'"),
    "text to torch": ({"variables": ["text"], "to": "torch"}, "to='torch': text holds no numbers; leave it out"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_options_are_refused_at_once(store: Path, case: str) -> None:
    options, message = REFUSALS[case]
    with pytest.raises(ParameterError) as caught:
        featurestore.batches(featurestore.open_store(store), **{"batch_size": 4, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


DATASETS: dict[str, tuple[Any, str]] = {
    "an array": (lambda ds: ds["hidden_states"], "ds: expected a dataset of xarray"),
    "one sentence": (lambda ds: ds.sel(sentence=3), "expected a dim 'sentence' that has labels, found dims"),
    "no labels": (lambda ds: ds.drop_vars("sentence"), "expected a dim 'sentence' that has labels, found no labels"),
    "one token": (lambda ds: ds.sel(token=-1), "select a list of tokens, or say by='sentence'"),
    "no padding told": (lambda ds: ds.drop_vars("is_token"), "no 'is_token'"),
    "no truths": (lambda ds: ds.assign_coords(is_token=ds["is_token"] * 1), "'is_token' (sentence, token) bool, found"),
    "no variables": (lambda ds: ds.drop_vars(ds.data_vars), "variables=: expected a list of names, found []"),
}


@pytest.mark.parametrize("case", DATASETS)
def test_datasets_are_refused_at_once(store: Path, case: str) -> None:
    change, message = DATASETS[case]
    with pytest.raises(ParameterError) as caught:
        featurestore.batches(change(featurestore.open_store(store)), batch_size=4)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
