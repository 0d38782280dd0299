"""What xarray's users do just works, without a warning, both lazily and in chunks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import featurestore
from featurestore import memory
from featurestore.store import backend
from tests.sentences import sentence_arrays, write_sentence
from tests.store.plain import DATA, Arrays
from tests.store.test_store import tree

SHORT, LONG = {0: 2, 1: 7, 2: 6, 3: 5, 4: 4}, {7: 9, 8: 1, 9: 11}
"""Tokens of the sentences of two stores, by their sentence_index."""

PADDING = {"is_token": False, "is_special": False, "fragment": "", "token_text": ""}
"""What to fill with where tokens are aligned, as docs/store.md says."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two stores of different lengths, short.zarr and long.zarr. Not to be changed."""
    base = tmp_path_factory.mktemp("stores")
    for name, lengths in (("short", SHORT), ("long", LONG)):
        for index, tokens in lengths.items():
            write_sentence(base / name, index, tokens=tokens)
        featurestore.ingest(base / name, base / f"{name}.zarr")
    return base


@pytest.fixture(params=[None, {}], ids=["lazy", "dask"])
def chunks(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def ds(stores: Path, chunks: Any) -> xr.Dataset:
    return featurestore.open_store(stores / "short.zarr", chunks=chunks)


def source(lengths: dict[int, int]) -> list[Arrays]:
    return [sentence_arrays(index, tokens=tokens) for index, tokens in lengths.items()]


def values(arrays: Arrays, name: str) -> np.ndarray[Any, Any]:
    """Values of a sentence, (token, ...)."""
    return arrays[name] if name == "embeddings" else arrays[name].swapaxes(0, 1)


def assert_holds(ds: xr.Dataset, lengths: dict[int, int], tokens: int) -> None:
    """Compare a dataset of so many tokens with the sentences, each by its labels."""
    assert ds["token"].values.tolist() == [*range(-tokens, 0)]
    assert ds["sentence"].values.tolist() == [*lengths]
    assert ds["n_tokens"].values.tolist() == [*lengths.values()]
    assert ds["text"].values.tolist() == [arrays["sentence"].item() for arrays in source(lengths)]
    for row, arrays in enumerate(source(lengths)):
        length = min(tokens, len(arrays["fragments"]))
        for name in DATA:
            assert ds[name].dtype == arrays[name].dtype
            found = ds[name].values[row]
            np.testing.assert_array_equal(found[tokens - length :], values(arrays, name)[-length:])
            assert np.isnan(found[: tokens - length]).all()
        assert ds["fragment"].values[row].tolist() == [""] * (tokens - length) + arrays["fragments"].tolist()[-length:]
        assert ds["is_token"].values[row].tolist() == [False] * (tokens - length) + [True] * length
    for name in ("is_token", "is_special", "has_label"):
        assert ds[name].dtype == bool


# Combining ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("join", "tokens"), [("outer", 11), ("inner", 7)])
def test_concat(stores: Path, ds: xr.Dataset, chunks: Any, join: Any, tokens: int) -> None:
    longer = featurestore.open_store(stores / "long.zarr", chunks=chunks)
    both = xr.concat([ds, longer], "sentence", join=join, fill_value=PADDING)
    assert_holds(both, SHORT | LONG, tokens)
    plain = xr.concat([ds, longer], "sentence", join=join)  # data are the same, and whether there is a token
    for name in DATA:
        np.testing.assert_array_equal(plain[name], both[name])
    np.testing.assert_array_equal(plain["token"] >= -plain["n_tokens"], both["is_token"].T)


@pytest.mark.parametrize("engine", ["featurestore", None])
def test_open_mfdataset(stores: Path, engine: Any) -> None:
    paths = [stores / "short.zarr", stores / "long.zarr"]
    options: Any = {"combine": "nested", "concat_dim": "sentence", "join": "outer", "engine": engine}
    with xr.open_mfdataset(paths, **options) as both:
        assert all(both[name].chunks for name in DATA)
        for row, arrays in enumerate(source(SHORT | LONG)):
            for name in DATA:
                length = len(arrays["fragments"])
                np.testing.assert_array_equal(both[name][row, -length:], values(arrays, name))
                assert both[name][row, :-length].isnull().all()


def test_reindex(ds: xr.Dataset) -> None:
    assert_holds(ds.reindex(token=range(-9, 0), fill_value=PADDING), SHORT, 9)
    some = ds.reindex(sentence=[3, 9])
    np.testing.assert_array_equal(some.embeddings[0, -5:], source(SHORT)[3]["embeddings"])
    assert some.embeddings[1].isnull().all()
    assert some.text.values[0] == source(SHORT)[3]["sentence"]


# Selecting and calculating --------------------------------------------------------------------------------------------


def test_sizes_and_chunks(stores: Path) -> None:
    path = stores / "short.zarr"
    lazy = featurestore.open_store(path)
    assert lazy.sizes == {"sentence": 5, "token": 7, "hidden": 6, "layer": 3, "feature": 10}
    assert lazy.chunks == {}
    expected = {"sentence": (5,), "token": (1,) * 7, "hidden": (6,), "layer": (1,) * 3, "feature": (10,)}
    assert featurestore.open_store(path, chunks={}).chunks == expected
    assert xr.open_dataset(path, engine="featurestore", chunks={}).chunks == expected
    whole = featurestore.open_store(path, chunks={"layer": -1})
    assert whole.hidden_states.chunks == ((5,), (1,) * 7, (3,), (6,))
    assert featurestore.open_store(path, chunks=whole.chunks).chunks == whole.chunks  # a Mapping, but no dict
    assert featurestore.open_store(path, chunks="auto").embeddings.chunks == ((5,), (7,), (6,))


def test_shown_with_its_sentences(ds: xr.Dataset) -> None:
    assert "'w0.0 w0.1'" in repr(ds)
    assert "w0.0 w0.1" in ds._repr_html_()
    assert not any(ds[name]._in_memory for name in (*DATA, "fragment", "token_text", "is_special"))


def test_load_and_copy(ds: xr.Dataset) -> None:
    copied = ds.copy(deep=True)
    assert_holds(copied.load(), SHORT, 7)
    assert all(copied[name]._in_memory for name in copied.variables)
    assert not ds.hidden_states._in_memory
    assert_holds(ds.load(), SHORT, 7)
    assert ds.hidden_states._in_memory


@pytest.mark.parametrize("way", [lambda ds: pickle.loads(pickle.dumps(ds)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_lazy_copies(ds: xr.Dataset, chunks: Any, way: Any) -> None:
    copied = way(ds)
    for name in (*DATA, "fragment"):
        assert not copied[name]._in_memory
    assert copied.chunks == ds.chunks
    assert_holds(copied, SHORT, 7)
    part = way(ds.sel(token=-1).isel(sentence=[3, 0]))
    assert not part.embeddings._in_memory
    np.testing.assert_array_equal(part.embeddings, [source(SHORT)[row]["embeddings"][-1] for row in (3, 0)])


def test_sentences_by_label(ds: xr.Dataset) -> None:
    assert_holds(ds.sel(sentence=[4, 1]), {4: 4, 1: 7}, 7)
    assert ds.sel(sentence=ds.label == 0).sentence.values.tolist() == [0, 4]
    assert ds.sel(sentence=ds.text.str.startswith("w3.")).sentence.values.tolist() == [3]
    assert ds.fragment.str.len().max("token").values.tolist() == [
        len(each["sentence"].item()) for each in source(SHORT)
    ]


def test_where(ds: xr.Dataset) -> None:
    kept = ds.where(ds.is_token & (ds.label > 0))
    assert kept.hidden_states.dtype == np.float16
    assert kept.hidden_states[[0, 4]].isnull().all()
    for row in (1, 2, 3):
        np.testing.assert_array_equal(kept.hidden_states[row], ds.hidden_states[row])
    assert ds.where((ds.label > 0).compute(), drop=True).sentence.values.tolist() == [1, 2, 3]


def test_groups_and_weights(ds: xr.Dataset) -> None:
    final = np.array([arrays["embeddings"][-1] for arrays in source(SHORT)], np.float64)
    mean = ds.embeddings.sel(token=-1).astype("f8").groupby("label").mean()
    assert mean.label.values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(mean, [final[[0, 4]].mean(axis=0), *final[1:4]])
    of_all = ds.sel(token=-1).astype("f8").groupby("label").mean()
    np.testing.assert_allclose(of_all.embeddings, mean)
    weights = xr.DataArray(np.arange(1.0, 12.0)[-7:], dims="token")
    weighted = ds.embeddings.astype("f8").weighted(weights).mean("token")
    for row, arrays in enumerate(source(SHORT)):
        each = arrays["embeddings"].astype("f8")
        np.testing.assert_allclose(weighted[row], np.average(each, axis=0, weights=weights.values[-len(each) :]))


def test_data_frame(ds: xr.Dataset) -> None:
    frame = ds.sel(token=-1, layer=5).activations.to_dataframe()
    assert frame["text"].loc[3, 7] == source(SHORT)[3]["sentence"]
    found = frame["activations"].to_numpy().reshape(5, 10)
    np.testing.assert_array_equal(found, [arrays["activations"][2, -1] for arrays in source(SHORT)])
    assert ds.label.to_pandas().tolist() == [0, 1, 2, 3, 0]


def test_processes(stores: Path) -> None:
    ds = featurestore.open_store(stores / "short.zarr", chunks={})
    with dask.config.set(scheduler="processes", num_workers=1):
        found = ds.hidden_states.sel(token=-1, layer=[1, 5]).max("sentence").values
    final = [arrays["hidden_states"][1:, -1] for arrays in source(SHORT)]
    np.testing.assert_array_equal(found, np.max(final, axis=0))


def test_nothing_is_written_back(stores: Path, chunks: Any) -> None:
    """Whatever is assigned stays in memory, and where nothing was loaded, neither the store nor others see it."""
    before = tree(stores / "short.zarr")
    ds = featurestore.open_store(stores / "short.zarr", chunks=chunks)
    ds.n_tokens.values[:] = 1
    ds.label[:] = 3
    assert_holds(featurestore.open_store(stores / "short.zarr"), SHORT, 7)
    expected = source(SHORT)[1]["embeddings"]
    np.testing.assert_array_equal(ds.embeddings[1], expected)
    ds.embeddings[0] = 0
    ds.load()
    ds.embeddings.values[:] = 1
    ds.fragment[:] = "mine"
    assert (ds.embeddings.values == 1).all()
    assert tree(stores / "short.zarr") == before
    assert_holds(featurestore.open_store(stores / "short.zarr"), SHORT, 7)


# Writing and opening --------------------------------------------------------------------------------------------------

PARTS = [{}, {"token": -1}, {"token": -1, "layer": 5, "sentence": 2}, {"token": [-1, -3], "feature": slice(2, 6)}]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_to_zarr(ds: xr.Dataset, tmp_path: Path, part: dict[str, Any]) -> None:
    assert {key for variable in ds.variables.values() for key in variable.encoding} <= {"preferred_chunks"}
    selected = ds.sel(part)
    selected.to_zarr(tmp_path / "part.zarr", consolidated=False)
    assert_same(xr.open_dataset(tmp_path / "part.zarr", engine="zarr", consolidated=False), selected)


def test_several_chunks_to_zarr(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.store.layout.ROWS", 2)
    monkeypatch.setattr("featurestore.store.layout.BATCH_ROWS", 2)
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 2)
    featurestore.ingest(stores / "short", tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr", chunks={})
    assert ds.chunksizes["sentence"] == (2, 2, 1)
    ds.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    assert_same(xr.open_dataset(tmp_path / "copy.zarr", engine="zarr", consolidated=False), ds)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("loaded", [False, True])
def test_to_netcdf(ds: xr.Dataset, tmp_path: Path, part: dict[str, Any], loaded: bool) -> None:
    selected = ds.sel(part).compute() if loaded else ds.sel(part)
    selected.to_netcdf(tmp_path / "part.nc")  # by the engine that xarray prefers of those that are installed
    assert_same(xr.load_dataset(tmp_path / "part.nc"), selected)
    selected.to_netcdf(tmp_path / "5.nc", engine="h5netcdf")
    assert_same(xr.load_dataset(tmp_path / "5.nc", engine="h5netcdf"), selected)
    with pytest.raises(ValueError, match="float16"):
        selected.to_netcdf(tmp_path / "3.nc", engine="scipy")
    selected = selected.astype("f4")
    selected.to_netcdf(tmp_path / "3.nc", engine="scipy")
    assert_same(xr.load_dataset(tmp_path / "3.nc", engine="scipy"), selected, integers="i4")


def assert_same(again: xr.Dataset, ds: xr.Dataset, integers: str = "i8") -> None:
    """Compare values, labels and dtypes with what was written; text may come as another dtype of text."""
    assert set(again.variables) == set(ds.variables)
    for name, variable in ds.variables.items():
        found = again[name]
        assert found.values.tolist() == variable.values.tolist() or name in DATA
        np.testing.assert_array_equal(found, variable)
        assert found.dims == variable.dims
        assert found.attrs == variable.attrs
        if variable.dtype != object:
            assert found.dtype == (integers if variable.dtype == np.int64 else variable.dtype), name
    assert again.attrs == ds.attrs


def test_xarray_finds_the_engine(stores: Path, tmp_path: Path) -> None:
    for path in (stores / "short.zarr", str(stores / "short.zarr")):
        assert_holds(xr.open_dataset(path), SHORT, 7)
        assert_holds(xr.open_dataset(path, engine="featurestore"), SHORT, 7)
    xr.Dataset({"x": ("y", [1.0])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    assert not backend.FeatureStoreBackend().guess_can_open(tmp_path / "other.zarr")
    assert not backend.FeatureStoreBackend().guess_can_open(tmp_path / "none.zarr")
    assert not backend.FeatureStoreBackend().guess_can_open(b"bytes")


def test_variables_that_are_dropped(stores: Path) -> None:
    all_of_it = xr.open_dataset(stores / "short.zarr")
    for dropped in (["activations", "is_token", "text", "nothing"], "n_tokens"):
        names = {dropped} if isinstance(dropped, str) else {*dropped}
        ds = xr.open_dataset(stores / "short.zarr", drop_variables=dropped)
        assert {*ds.variables} == {*all_of_it.variables} - names
        np.testing.assert_array_equal(ds.embeddings[1], source(SHORT)[1]["embeddings"])


def test_plain_zarr(stores: Path) -> None:
    plain = xr.open_zarr(stores / "short.zarr")
    assert plain["token"].values.tolist() == [*range(-1, -8, -1)]
    for row, arrays in enumerate(source(SHORT)):
        np.testing.assert_array_equal(plain["embeddings"][row, : len(arrays["embeddings"])], arrays["embeddings"][::-1])


# Refusals -------------------------------------------------------------------------------------------------------------


def test_more_than_is_allowed(stores: Path) -> None:
    """Of 420 bytes of embeddings, 60 at each token."""
    path = stores / "short.zarr"
    ds = featurestore.open_store(path, max_bytes=100)
    np.testing.assert_array_equal(ds.embeddings.isel(sentence=1, token=-1), source(SHORT)[1]["embeddings"][-1])
    with pytest.raises(featurestore.TooLargeError) as caught:
        ds.embeddings.values  # noqa: B018
    message = str(caught.value)
    assert message.startswith(f"{path}: embeddings: would read 0.00 GB at once, more than max_bytes=100; ")
    assert message.endswith("select less, open the store with chunks={}, or allow more by max_bytes=")
    with pytest.raises(featurestore.TooLargeError, match="hidden_states"):
        (ds.hidden_states > 0).mean()
    for sentences in (ds.isel(sentence=[1, 1, 1], token=[-1, -1]), ds.isel(sentence=xr.DataArray([0, 1], dims="some"))):
        with pytest.raises(featurestore.TooLargeError):
            sentences.hidden_states.compute()
    in_chunks = featurestore.open_store(path, chunks={}, max_bytes=100)
    found = (in_chunks.embeddings.astype("f8")).sum(skipna=True)
    np.testing.assert_allclose(found, sum(arrays["embeddings"].astype("f8").sum() for arrays in source(SHORT)))
    with pytest.raises(featurestore.TooLargeError):
        featurestore.open_store(path, chunks={"token": -1}, max_bytes=100).embeddings.compute()


def test_more_than_half_of_the_memory(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_NOTICEABLE", 0)
    monkeypatch.setattr(memory, "available", lambda: 300)
    path = stores / "short.zarr"
    with pytest.raises(featurestore.TooLargeError, match=r"half of the 0\.00 GB of memory that is available; .*chunks"):
        featurestore.open_store(path).embeddings.values  # noqa: B018
    assert featurestore.open_store(path, chunks={}).embeddings.notnull().sum() == 6 * sum(SHORT.values())
    assert featurestore.open_store(path, max_bytes=1e9).embeddings.load().shape == (5, 7, 6)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert featurestore.open_store(path).embeddings.load().shape == (5, 7, 6)


@pytest.mark.parametrize("max_bytes", [0, -1, "1 GB", float("nan"), [1]])
def test_limits_that_are_none(stores: Path, max_bytes: Any) -> None:
    for way in (featurestore.open_store, lambda path, **options: xr.open_dataset(path, **options)):
        with pytest.raises(featurestore.ParameterError, match="max_bytes: expected a number of bytes above 0, found"):
            way(stores / "short.zarr", max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("foo", "found 'foo'"),
        (-5, "found -5"),
        (0, "found 0"),
        (2.5, "found 2.5"),
        ([], r"found \[\]"),
        ({"sentence": 0}, "found {'sentence': 0}"),
        ({"sentence": "x"}, "found {'sentence': 'x'}"),
        ({"nodim": 3}, "no dim is named 'nodim'; expected some of sentence, token, layer, feature, hidden"),
    ],
)
def test_chunks_that_are_none(stores: Path, given: Any, complaint: str) -> None:
    with pytest.raises(featurestore.ParameterError, match=f"^chunks: .*{complaint}$"):
        featurestore.open_store(stores / "short.zarr", chunks=given)
