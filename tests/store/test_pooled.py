"""Several stores as one dataset: as numpy puts their sentence NPZs together, as lazy as each by itself."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.store import backend, layout
from featurestore.store.arrays import StoredArray
from featurestore.store.joined import Joined
from featurestore.store.pooled import pooled
from featurestore.store.root import encode_root
from featurestore.store.snapshot import Snapshot
from tests.sentences import write_sentence
from tests.store.plain import DATA, SEVERAL

LENGTHS = {"A": {0: 2, 1: 7, 4: 6, 5: 3, 6: 1}, "B": {0: 9, 1: 1, 4: 4}, "C": {2: 5, 7: 7}}
"""Tokens of the sentences of each store, by their sentence_index."""

STARTS = {"A": 0, "B": 10_000_000, "C": 20_000_000}

TOKENS = 9

SELECTIONS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three stores, of several shards each, and their sentence NPZs. Not to be changed."""
    base = tmp_path_factory.mktemp("pooled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROWS", 2)
        patch.setattr(layout, "TOKENS", 3)
        patch.setattr(layout, "_CHUNK_BYTES", 32)
        for name, lengths in LENGTHS.items():
            ingested(base, name, lengths)
    return base


def ingested(base: Path, name: str, lengths: dict[int, int], **options: Any) -> Path:
    for index, tokens in lengths.items():
        write_sentence(base / name, index, tokens=tokens, **{"seed": ord(name[0]), **options})
    return featurestore.ingest(base / name, base / f"{name}.zarr").store


def paths(stores: Path, names: Sequence[str]) -> list[Path]:
    return [stores / f"{name}.zarr" for name in names]


def npzs(stores: Path, names: Sequence[str]) -> list[Any]:
    return [
        dict(np.load(stores / name / f"sentence_{index + 1:06d}.npz"))
        for name in names
        for index in LENGTHS.get(name, LENGTHS["A"])
    ]


def padded(stores: Path, names: Sequence[str], variable: str) -> np.ndarray[Any, Any]:
    """What a variable has to be, (sentence, token, ...), by numpy alone."""
    sentences = npzs(stores, names)
    fill: Any
    tokens = max(len(each["fragments"]) for each in sentences)
    match variable:
        case "fragment":
            values, fill = [each["fragments"].astype(object) for each in sentences], ""
        case "is_token":
            values, fill = [np.ones(len(each["fragments"]), bool) for each in sentences], False
        case "embeddings":
            values, fill = [each[variable] for each in sentences], np.nan
        case _:
            values, fill = [each[variable].swapaxes(0, 1) for each in sentences], np.nan
    full = np.full((len(values), tokens, *values[0].shape[1:]), fill, values[0].dtype)
    for row, one in enumerate(values):
        full[row, tokens - len(one) :] = one
    return full


@pytest.fixture(params=[None, {}], ids=["lazy", "dask"])
def chunks(request: pytest.FixtureRequest) -> Any:
    return request.param


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["AB", "BA", "ACB", "C"])
def test_all_values_are_those_of_the_npzs(stores: Path, names: str, chunks: Any) -> None:
    ds = featurestore.open_stores(paths(stores, names), chunks=chunks)
    assert not any(ds[name]._in_memory for name in (*DATA, "fragment"))
    for name in (*DATA, "fragment", "is_token"):
        expected = padded(stores, names, name)
        np.testing.assert_array_equal(ds[name].values, expected)
        assert ds[name].dtype == expected.dtype
    assert ds["token"].values.tolist() == [*range(-ds.sizes["token"], 0)]
    words = [each["sentence"].item() for each in npzs(stores, names)]
    assert ds["text"].values.tolist() == words
    assert ds["store"].values.tolist() == [name for name in names for _ in LENGTHS[name]]
    assert ds["sentence_index"].values.tolist() == [index for name in names for index in LENGTHS[name]]
    starts = [*STARTS.values()]
    wanted = [starts[number] + index for number, name in enumerate(names) for index in LENGTHS[name]]
    assert ds["sentence"].values.tolist() == wanted
    assert ds["sentence"].dtype == ds["sentence_index"].dtype == np.int64


@pytest.mark.parametrize("names", ["AB", "BA", "CA"])
def test_each_store_is_as_by_itself(stores: Path, names: str, chunks: Any) -> None:
    ds = featurestore.open_stores(paths(stores, names), chunks=chunks)
    for name in names:
        alone = featurestore.open_store(stores / f"{name}.zarr")
        part = ds.sel(sentence=ds.store == name).isel(token=slice(-alone.sizes["token"], None))
        part = part.assign_coords(sentence=part["sentence_index"]).drop_vars(["store", "sentence_index"])
        part["sentence"].attrs = alone["sentence"].attrs
        assert {*part.variables} == {*alone.variables}
        xr.testing.assert_identical(part.compute(), alone.compute())
        assert [*part.data_vars] == [*alone.data_vars]
        beyond = ds.sel(sentence=ds.store == name).isel(token=slice(-alone.sizes["token"]))
        assert not beyond["is_token"].any()
        assert not beyond["is_special"].any()
        assert (beyond["token_text"] == "").all()


@st.composite
def indexers(draw: st.DrawFn, size: int) -> Any:
    position = st.integers(-size, size - 1)
    several = st.lists(position, max_size=6).map(lambda chosen: np.array(chosen, dtype=int))
    return draw(st.one_of(st.slices(size), position, several))


@SELECTIONS
@given(data=st.data())
def test_any_open_mesh(stores: Path, data: st.DataObject) -> None:
    """Of arrays alone: in any order, also descending, repeated, none, or a single position."""
    names = data.draw(st.sampled_from(["AB", "BA", "CAB"]))
    name = data.draw(st.sampled_from([*DATA, "fragment"]))
    snapshots = [Snapshot.read(path) for path in paths(stores, names)]
    joined = Joined([one.array(name, one.coord("n_tokens")) for one in snapshots])
    values = padded(stores, names, name)
    assert joined.shape == values.shape
    key = tuple(data.draw(indexers(size)) for size in values.shape)
    wanted = values
    for axis, index in reversed([*enumerate(key)]):
        wanted = wanted[(slice(None),) * axis + (index,)]
    read = joined[key]
    np.testing.assert_array_equal(read, wanted)
    assert read.dtype == values.dtype
    assert read.flags.c_contiguous


@SELECTIONS
@given(data=st.data())
def test_any_selection_by_xarray(stores: Path, data: st.DataObject) -> None:
    chunks: Any = data.draw(st.sampled_from([None, {}]))
    ds = featurestore.open_stores(paths(stores, "AB"), chunks=chunks)
    name = data.draw(st.sampled_from([*DATA, "fragment", "is_token"]))
    wanted = xr.DataArray(padded(stores, "AB", name), dims=ds[name].dims)
    for _ in range(data.draw(st.integers(1, 2))):
        key = {dim: data.draw(indexers(wanted.sizes[dim])) for dim in ("sentence", "token") if wanted.sizes.get(dim)}
        ds, wanted = ds.isel(key), wanted.isel(key)
    assert ds[name].dims == wanted.dims
    np.testing.assert_array_equal(ds[name].values, wanted.values)


# What stores may hold -------------------------------------------------------------------------------------------------


def test_layers_with_several_saes(tmp_path: Path) -> None:
    for name, tokens in (("one", 3), ("two", 5)):
        ingested(tmp_path, name, {0: tokens, 1: 2}, **SEVERAL)
    ds = featurestore.open_stores(paths(tmp_path, ["one", "two"]))
    assert ds.activations.dims == ("sentence", "token", "sae", "feature")
    assert ds["sae_layer"].values.tolist() == SEVERAL["layers"]
    assert ds["average_l0"].values.tolist() == SEVERAL["average_l0s"]
    for row, (name, index) in enumerate([("one", 0), ("one", 1), ("two", 0), ("two", 1)]):
        values = np.load(tmp_path / name / f"sentence_{index + 1:06d}.npz")["activations"].swapaxes(0, 1)
        np.testing.assert_array_equal(ds.activations[row, -len(values) :], values)


def test_absent_arrays_and_labels(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ingested(tmp_path, name, {0: 3, 1: 2}, drop=["embeddings", "hidden_states", "concept_strength_label"])
    ds = featurestore.open_stores(paths(tmp_path, ["one", "two"]), chunks={})
    assert [*ds.data_vars] == ["activations"]
    assert not ds["has_label"].any()
    assert ds["label"].values.tolist() == [-1] * 4
    assert (ds.activations.notnull().any(["layer", "feature"]) == ds.is_token).all()


def test_attributes_are_those_that_all_share(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ingested(tmp_path, name, {0: 3})
        featurestore.ingest(tmp_path / name, tmp_path / f"{name}.zarr", model="m")
    ds = featurestore.open_stores(paths(tmp_path, ["one", "two"]))
    assert ds.attrs == featurestore.open_store(tmp_path / "one.zarr").attrs
    assert ds.attrs["model"] == "m"
    assert "source" not in ds.encoding


# As xarray's users do -------------------------------------------------------------------------------------------------


def test_chunks_are_of_one_store_each(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 2)
    ds = featurestore.open_stores(paths(stores, "ABC"), chunks={})
    assert ds.chunksizes["sentence"] == (2, 2, 1, 2, 1, 2)
    assert ds.chunksizes["token"] == (1,) * TOKENS
    assert ds.chunksizes["feature"] == (4, 4, 2)
    xr.testing.assert_identical(ds.compute(), featurestore.open_stores(paths(stores, "ABC")).compute())
    whole = featurestore.open_stores(paths(stores, "ABC"), chunks={"sentence": -1, "token": -1})
    np.testing.assert_array_equal(whole.embeddings, padded(stores, "ABC", "embeddings"))


def test_dask_names_say_what_is_read(stores: Path) -> None:
    def name(names: str) -> str:
        opened = featurestore.open_stores(paths(stores, names), chunks={})
        return str(opened.activations.sel(token=-1).data.name)

    assert name("AB") == name("AB")
    assert len({name("AB"), name("BA"), name("ABC"), name("A")}) == 4


def test_groups(stores: Path, chunks: Any) -> None:
    ds = featurestore.open_stores(paths(stores, "AB"), chunks=chunks)
    means = ds.embeddings.sel(token=-1).astype("f8").groupby("store").mean()
    assert means["store"].values.tolist() == ["A", "B"]
    for name in "AB":
        final = [each["embeddings"][-1].astype("f8") for each in npzs(stores, name)]
        np.testing.assert_allclose(means.sel(store=name), np.mean(final, axis=0))


def test_written_and_copied(stores: Path, chunks: Any, tmp_path: Path) -> None:
    ds = featurestore.open_stores(paths(stores, "AB"), chunks=chunks)
    part = ds.sel(token=slice(-2, -1), layer=[5, 0]).isel(sentence=slice(3, 7))
    part.to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
    again = xr.load_dataset(tmp_path / "part.nc", engine="h5netcdf")
    expected = padded(stores, "AB", "hidden_states")[3:7, -2:][:, :, [2, 0]]
    np.testing.assert_array_equal(again.hidden_states, expected)
    assert again["store"].values.tolist() == ["A", "A", "B", "B"]
    copied = pickle.loads(pickle.dumps(ds))
    assert not copied.hidden_states._in_memory
    np.testing.assert_array_equal(copied.hidden_states, padded(stores, "AB", "hidden_states"))


def test_processes_read_by_themselves(stores: Path) -> None:
    ds = featurestore.open_stores(paths(stores, "AB"), chunks={})
    with dask.config.set(scheduler="processes", num_workers=1):
        found = ds.activations.sel(token=-1).values
    np.testing.assert_array_equal(found, padded(stores, "AB", "activations")[:, -1])


def test_more_than_is_allowed(stores: Path) -> None:
    ds = featurestore.open_stores(paths(stores, "AB"), max_bytes=100)
    np.testing.assert_array_equal(ds.embeddings[3:5, -1], padded(stores, "AB", "embeddings")[3:5, -1])
    with pytest.raises(featurestore.TooLargeError, match=r"A\.zarr, .*B\.zarr: embeddings: would read"):
        ds.embeddings.values  # noqa: B018


def test_no_more_is_read_than_of_each(stores: Path, chunks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, str, tuple[slice, ...]]] = []
    read = StoredArray._read

    def recorded(self: StoredArray, key: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        if self._name in DATA:
            reads.append((Path(self._shown).name, self._name, key))
        read(self, key, target)

    def selected(ds: xr.Dataset) -> list[tuple[str, str, tuple[slice, ...]]]:
        reads.clear()
        ds.activations.sel(feature=5, token=[-1, -2], layer=5).values  # noqa: B018
        return sorted(reads, key=repr)

    monkeypatch.setattr(StoredArray, "_read", recorded)
    alone = [one for path in paths(stores, "AB") for one in selected(featurestore.open_store(path, chunks=chunks))]
    both = featurestore.open_stores(paths(stores, "AB"), chunks=chunks)
    assert not selected(both.isel(sentence=[]))
    assert selected(both) == sorted(alone, key=repr)
    assert {store for store, *_ in selected(both.isel(sentence=[1, 2]))} == {"A.zarr"}
    assert not selected(both.sel(sentence=both.store == "C"))
    reads.clear()
    assert both.embeddings.isel(sentence=[0, 4]).sel(token=[-9, -8]).isnull().all()
    assert not reads


def test_incomplete_stores_are_named(stores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(stores / "A.zarr", tmp_path / "A.zarr")
    snapshot = Snapshot.read(tmp_path / "A.zarr").with_attributes(expected_sentences=9)
    (tmp_path / "A.zarr" / "zarr.json").write_bytes(encode_root(snapshot.root))
    featurestore.open_stores([tmp_path / "A.zarr", stores / "B.zarr"])
    assert [record.message for record in caplog.records if "is incomplete: 5 of 9 sentences" in record.message]


def test_stores_without_sentences(stores: Path, chunks: Any) -> None:
    """As an ingest has just begun them."""
    full = Snapshot.read(stores / "A.zarr")
    empty = Snapshot.read(stores / "B.zarr").resized(0, 0)
    for snapshots in ([full, empty], [empty, full]):
        ds = pooled(snapshots, chunks=chunks)
        np.testing.assert_array_equal(ds.embeddings, padded(stores, "A", "embeddings"))
        assert {*ds["store"].values} == {"A"}
    none = pooled([empty], chunks=chunks)
    assert none.embeddings.values.shape == (0, 0, 6)
    assert none["store"].values.tolist() == []


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[], (), "stores/a.zarr", Path("a.zarr"), None, {"a": "b"}])
def test_no_list_of_stores(given: Any) -> None:
    with pytest.raises(featurestore.ParameterError, match=r"^stores: expected a list of one store or more, found "):
        featurestore.open_stores(given)


def test_a_store_twice(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(stores / "A.zarr")
    monkeypatch.chdir(stores)
    for other in ("A.zarr", stores / "B" / ".." / "A.zarr", tmp_path / "link"):
        with pytest.raises(featurestore.ParameterError, match="expected each store once, found it twice"):
            featurestore.open_stores([stores / "B.zarr", stores / "A.zarr", other])


def test_two_stores_of_one_name(stores: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "A.zarr", tmp_path / "A.zarr")
    with pytest.raises(featurestore.ParameterError) as caught:
        featurestore.open_stores([stores / "A.zarr", tmp_path / "A.zarr"])
    expected = "expected stores of different names, found 'A' twice; rename one"
    assert str(caught.value) == f"{stores / 'A.zarr'} and {tmp_path / 'A.zarr'}: {expected}"


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"layers": [0, 1]}, "layers 0,1 instead of 0,1,5; average_l0s 3,3 instead of 3,3,3"),
        ({"average_l0s": [3, 4, 3]}, "average_l0s 3,4,3 instead of 3,3,3"),
        ({"hidden": 4, "features": 7}, "hidden 4 instead of 6; features 7 instead of 10"),
        ({"dtype": "float32"}, "dtypes float32,float32,float32 instead of float16,float16,float32"),
        ({"drop": ["embeddings"]}, "dtypes none,float16,float32 instead of float16,float16,float32"),
    ],
)
def test_another_extraction(stores: Path, tmp_path: Path, options: dict[str, Any], difference: str) -> None:
    other = ingested(tmp_path, "other", {0: 2}, **options)
    with pytest.raises(featurestore.StoreError) as caught:
        featurestore.open_stores([stores / "A.zarr", stores / "B.zarr", other])
    expected = f"expected one extraction, found {difference}; open each by itself"
    assert str(caught.value) == f"{other} and {stores / 'A.zarr'}: {expected}"


def test_another_origin(stores: Path, tmp_path: Path) -> None:
    one, two = (ingested(tmp_path, name, {0: 2}) for name in ("one", "two"))
    featurestore.ingest(tmp_path / "one", one, model="m", sae_ids="x")
    featurestore.ingest(tmp_path / "two", two, model="n")
    with pytest.raises(featurestore.StoreError) as caught:
        featurestore.open_stores([one, two])
    remedy = "if they are the same, say so by an ingest with model="
    found = "found model 'n' instead of 'm'; sae_ids none instead of 'x'"
    assert str(caught.value) == f"{two} and {one}: expected values of one origin, {found}; {remedy}"


def test_a_sentence_index_beyond(stores: Path, tmp_path: Path) -> None:
    other = ingested(tmp_path, "other", {9_999_999: 2})
    assert featurestore.open_stores([other, stores / "A.zarr"]).sentence.values[0] == 9_999_999
    ingested(tmp_path, "other", {10_000_000: 2})
    with pytest.raises(featurestore.StoreError) as caught:
        featurestore.open_stores([stores / "A.zarr", other])
    expected = "expected each sentence_index in 0 to 9999999, found 10000000; open it by itself"
    assert str(caught.value) == f"{other}: {expected}"


def test_options_are_checked_as_of_one_store(stores: Path) -> None:
    with pytest.raises(featurestore.ParameterError, match="chunks: no dim is named 'nodim'"):
        featurestore.open_stores(paths(stores, "AB"), chunks={"nodim": 3})
    with pytest.raises(featurestore.ParameterError, match="max_bytes: expected a number of"):
        featurestore.open_stores(paths(stores, "AB"), max_bytes=0)
    with pytest.raises(featurestore.StoreNotFoundError):
        featurestore.open_stores([stores / "A.zarr", stores / "none.zarr"])
