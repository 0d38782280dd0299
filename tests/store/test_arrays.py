"""Every selection gives what numpy gives of the sentence NPZs, and reads no more than it needs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.store import arrays, backend, layout
from featurestore.store.arrays import StoredArray
from featurestore.store.snapshot import Snapshot
from tests.sentences import sentence_arrays, write_sentence
from tests.store.plain import DATA, Arrays

LENGTHS = [2, 5, 1, 3, 8, 2, 4]
"""Tokens of the sentences; the longest one comes late."""

PORTIONS = [0, 3, 5, 7]
"""Where one ingest ends and the next one begins."""

LAYERS = [0, 1, 2, 4, 5]

POINTS = itertools.count()
"""Numbers for dims."""

LABELS = {"sentence": range(len(LENGTHS)), "token": range(-8, 0), "layer": LAYERS, "feature": range(10)}

SELECTIONS = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a short chain needs no shrinking, which takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several shards along sentences and tokens, several chunks along tokens and features; appended in portions."""
    base = tmp_path_factory.mktemp("arrays")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROWS", 2)
        patch.setattr(layout, "BATCH_ROWS", 4)
        patch.setattr(layout, "TOKENS", 3)
        patch.setattr(layout, "_CHUNK_BYTES", 32)
        for start, stop in itertools.pairwise(PORTIONS):
            for index in range(start, stop):
                write_sentence(base / "in", index, tokens=LENGTHS[index], layers=LAYERS)
            featurestore.ingest(base / "in", base / "s.zarr")
    snapshot = Snapshot.read(base / "s.zarr")
    assert snapshot.file_shape("activations") == (2, 3, 5, 12)
    assert snapshot.chunk_shape("activations") == (2, 1, 1, 4)
    return base / "s.zarr"


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask chunks of two shards; runs of chunks that are cut."""
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 4)
    monkeypatch.setattr(arrays, "_CHUNKS_AT_ONCE", 2)


def source() -> list[Arrays]:
    return [sentence_arrays(index, tokens=tokens, layers=LAYERS) for index, tokens in enumerate(LENGTHS)]


def padded(values: list[np.ndarray[Any, Any]], fill: Any) -> np.ndarray[Any, Any]:
    """One array of those of all sentences, (token, ...) each, which end together."""
    dtype = object if fill == "" else values[0].dtype
    full = np.full((len(values), max(LENGTHS), *values[0].shape[1:]), fill, dtype)
    for row, one in enumerate(values):
        full[row, -len(one) :] = one
    return full


@pytest.fixture(scope="module")
def reference() -> xr.Dataset:
    """What the store has to hold, in memory, by numpy alone."""
    sentences = source()
    arrays = {
        "embeddings": padded([each["embeddings"] for each in sentences], np.nan),
        "hidden_states": padded([each["hidden_states"].swapaxes(0, 1) for each in sentences], np.nan),
        "activations": padded([each["activations"].swapaxes(0, 1) for each in sentences], np.nan),
    }
    dims = {
        "embeddings": ("sentence", "token", "hidden"),
        "hidden_states": ("sentence", "token", "layer", "hidden"),
        "activations": ("sentence", "token", "layer", "feature"),
    }
    coords: dict[str, Any] = {dim: np.array(labels) for dim, labels in LABELS.items()}
    coords["text"] = "sentence", np.array([each["sentence"].item() for each in sentences], object)
    coords["fragment"] = ("sentence", "token"), padded([each["fragments"] for each in sentences], "")
    coords["is_token"] = ("sentence", "token"), padded([np.ones(tokens, bool) for tokens in LENGTHS], False)
    return xr.Dataset({name: (dims[name], arrays[name]) for name in DATA}, coords)


def opened(store: Path, chunks: Any) -> xr.Dataset:
    ds = featurestore.open_store(store, chunks=chunks)
    return ds.drop_vars([name for name in ds.coords if name not in (*LABELS, "text", "fragment", "is_token")])


# Selections by xarray -------------------------------------------------------------------------------------------------


def indexers(size: int) -> st.SearchStrategy[Any]:
    """Anything that selects along one axis, by position."""
    either = [
        st.slices(size),
        st.lists(st.booleans(), min_size=size, max_size=size).map(lambda mask: np.array(mask, bool)),
    ]
    either.append(st.just(np.array([], dtype=int)))
    if size:
        position = st.integers(-size, size - 1)
        either += [position, st.lists(position, max_size=5).map(lambda chosen: np.array(chosen, dtype=int))]
    return st.one_of(either)


@st.composite
def steps(draw: st.DrawFn, ds: xr.Dataset) -> tuple[str, dict[str, Any]]:
    """A selection of what is left: its method and what it is given."""
    dims = draw(st.lists(st.sampled_from(sorted(map(str, ds.sizes))), min_size=1, max_size=2, unique=True))
    match draw(st.sampled_from(["isel", "sel", "pointwise"])):
        case "isel":
            return "isel", {dim: draw(indexers(ds.sizes[dim])) for dim in dims}
        case "sel":
            return "sel", {dim: draw(labels(ds[dim].values)) for dim in dims if dim in ds.indexes}
        case _:
            some = [dim for dim in dims if ds.sizes[dim]]
            length = draw(st.integers(1, 4))
            name = f"point{next(POINTS)}"  # as dims of one name would have to have one size
            positions = {dim: st.integers(-ds.sizes[dim], ds.sizes[dim] - 1) for dim in some}
            return "isel", {
                dim: xr.DataArray(draw(st.lists(positions[dim], min_size=length, max_size=length)), dims=name)
                for dim in some
            }


def labels(values: np.ndarray[Any, Any]) -> st.SearchStrategy[Any]:
    """Anything that selects along one axis, by label; slices only where labels ascend and differ."""
    if not len(values):
        return st.just(slice(None))
    one = st.sampled_from(values.tolist())
    unique = len({*values.tolist()}) == len(values)
    either: list[st.SearchStrategy[Any]] = [st.just(slice(None))]
    if unique:
        either += [one, st.lists(one, min_size=1, max_size=5)]
    if unique and (np.diff(values) > 0).all():
        either.append(st.tuples(one, one, st.sampled_from([None, 1, 2])).map(lambda bounds: slice(*bounds)))
    return st.one_of(either)


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@SELECTIONS
@given(data=st.data())
def test_any_chain_of_selections(store: Path, reference: xr.Dataset, chunks: Any, data: st.DataObject) -> None:
    actual, wanted = opened(store, chunks), reference
    for _ in range(data.draw(st.integers(1, 3))):
        if not wanted.sizes:
            break
        method, indexers = data.draw(steps(wanted))
        actual, wanted = getattr(actual, method)(indexers), getattr(wanted, method)(indexers)
    assert chunks == {} or not any(actual[name]._in_memory for name in DATA)
    lazy, actual = actual, actual.compute()
    xr.testing.assert_equal(actual, wanted)
    for name, variable in wanted.variables.items():
        assert actual[name].dtype == lazy[name].dtype == variable.dtype, name
        assert actual[name].dims == variable.dims, name
        is_read = chunks is None and name in (*DATA, "fragment", "is_token")
        assert not is_read or actual[name].values.flags.c_contiguous, name


@SELECTIONS
@given(data=st.data())
def test_any_open_mesh(store: Path, reference: xr.Dataset, data: st.DataObject) -> None:
    """Each array by itself, all axes at once: the values, the dtype, and the order in memory."""
    snapshot = Snapshot.read(store)
    which = data.draw(st.sampled_from([*DATA, "fragment"]))
    array = snapshot.array(which, snapshot.coord("n_tokens"))
    values = reference[which].values
    key = tuple(
        data.draw(indexers(size).filter(lambda index: not isinstance(index, np.ndarray) or index.dtype != bool))
        for size in values.shape
    )
    wanted = values
    for axis, index in reversed([*enumerate(key)]):
        wanted = wanted[(slice(None),) * axis + (index,)]
    for stored, read in ((wanted, array[key]), (values[:, ::-1], array.on_disk((slice(None),) * values.ndim))):
        np.testing.assert_array_equal(read, stored)
        assert read.dtype == values.dtype
        assert read.flags.c_contiguous


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("index", [6, -7, [6], [-7], [5, 6], [-7, 0], 99, [-13]])
def test_positions_beyond_an_axis(store: Path, chunks: Any, index: Any) -> None:
    """Of a dim without labels, along which nobody but the store can tell."""
    ds = featurestore.open_store(store, chunks=chunks)
    for name in ("embeddings", "hidden_states"):
        with pytest.raises(IndexError, match="out of bounds"):
            ds[name].isel(hidden=index).compute()


def test_what_is_transposed_stays_lazy(store: Path, reference: xr.Dataset) -> None:
    dims = ("layer", "hidden", "sentence", "token")
    turned = featurestore.open_store(store).hidden_states.transpose(*dims)
    assert not turned._in_memory
    np.testing.assert_array_equal(turned[1:3, ::2], reference.hidden_states.transpose(*dims)[1:3, ::2])


# How much is read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[slice, ...]]]:
    """Name and region, on disk, of each read of a data array from here on."""
    regions: list[tuple[str, tuple[slice, ...]]] = []
    read = StoredArray._read

    def recorded(self: StoredArray, key: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        if self._name in (*DATA, "fragment"):
            regions.append((self._name, key))
        read(self, key, target)

    monkeypatch.setattr(StoredArray, "_read", recorded)
    return regions


def places(reads: list[tuple[str, tuple[slice, ...]]], name: str) -> list[tuple[int, ...]]:
    """Every place of an array that was read, as often as it was."""
    return sorted(
        place
        for read, key in reads
        if read == name
        for place in itertools.product(*(range(part.start, part.stop) for part in key))
    )


def test_only_the_chunks_of_a_selection_are_read(store: Path, reference: xr.Dataset, reads: Any) -> None:
    ds = featurestore.open_store(store)
    final = ds.hidden_states.sel(token=-1).isel(layer=[2, 4])
    assert not reads
    np.testing.assert_array_equal(final, reference.hidden_states.sel(token=-1).isel(layer=[2, 4]))
    assert places(reads, "hidden_states") == [*itertools.product(range(7), [0], [2, 4], range(6))]
    assert {name for name, _ in reads} == {"hidden_states"}


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_one_feature_reads_its_chunk(store: Path, reads: Any, chunks: Any) -> None:
    ds = featurestore.open_store(store, chunks=chunks)
    one = ds.activations.sel(feature=5, token=[-1, -8], layer=[5, 0])
    one.variable.values  # noqa: B018
    wanted = itertools.product(range(7), [0], [0, 4], [5])  # one sentence has a token -8
    assert {*wanted} <= {*places(reads, "activations")} <= {*itertools.product(range(7), [0, 7], [0, 4], range(4, 8))}
    assert len(places(reads, "activations")) == len({*places(reads, "activations")})


@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_one_sentence_reads_none_of_its_padding(store: Path, reads: Any, row: int) -> None:
    ds = featurestore.open_store(store).isel(sentence=row)
    ds.load()
    tokens = range(LENGTHS[row])
    assert places(reads, "fragment") == [*itertools.product([row], tokens)]
    assert places(reads, "embeddings") == [*itertools.product([row], tokens, range(6))]
    assert places(reads, "hidden_states") == [*itertools.product([row], tokens, range(5), range(6))]
    assert places(reads, "activations") == [*itertools.product([row], tokens, range(5), range(10))]


def test_padding_alone_reads_nothing(store: Path, reads: Any) -> None:
    ds = featurestore.open_store(store)
    assert np.isnan(ds.embeddings.isel(sentence=[0, 2]).sel(token=slice(-8, -3)).values).all()
    assert ds.hidden_states.isel(sentence=[], token=[1]).values.shape == (0, 1, 5, 6)
    assert not reads


def test_what_is_far_apart_is_not_read_through(store: Path, reads: Any) -> None:
    """Sentences in shards that are no neighbours, and tokens that are none."""
    ds = featurestore.open_store(store)
    ds.embeddings.isel(sentence=[4, 1], token=[-1, -3]).values  # noqa: B018
    assert places(reads, "embeddings") == [*itertools.product([1, 4], [0, 2], range(6))]


def test_a_build_reads_its_layer_alone(store: Path, reads: Any, tmp_path: Path) -> None:
    featurestore.build(store, "hidden-to-concept", layer=2, output=tmp_path / "X.npz")
    assert places(reads, "hidden_states") == [*itertools.product(range(7), [0], [2], range(6))]
    assert {name for name, _ in reads} == {"hidden_states"}
