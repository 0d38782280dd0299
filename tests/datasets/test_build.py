"""Datasets, compared with what numpy alone makes of the sentence NPZs."""

from __future__ import annotations

import hashlib
import inspect
import zipfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import featurestore
from featurestore import strategies as module
from featurestore.datasets import normalize
from featurestore.ranges import Numbers
from featurestore.store import layout
from featurestore.strategies import NUMBER, registry
from featurestore.strategies.registry import TYPES, Selection, Strategy
from tests.sentences import SAMPLE, write_folder, write_sentence

Arrays = dict[str, np.ndarray[Any, Any]]

PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    ("embedding-to-feature", {"target_layer": 12, "target_feature": 1000}),
    ("hidden-to-feature", {"target_layer": 15, "target_feature": 3}),
    ("hidden-to-feature", {"target_layer": 12, "target_feature": 1000, "input_layer": 4}),
    ("hidden-to-concept", {"layer": 12}),
    ("hidden-to-concept", {"layers": "0-2,10,15-17"}),
    ("hidden-to-concept", {"layers": [17, 0, 5]}),
    ("hidden-to-concept", {"layers": "0-5,10,12,15-17"}),
    ("embedding-to-concept", {}),
    ("activation-to-concept", {"layer": 15}),
    ("activation-to-concept", {"layer": 12, "densest": 30}),
    ("hidden-to-features", {"target_layer": 15, "target_features": [61, 5, 1022], "input_layer": 10}),
    ("hidden-to-features", {"target_layer": 16, "target_features": "0-3"}),
]


@pytest.fixture(scope="session")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "dishonesty.zarr"
    featurestore.ingest(SAMPLE, path)
    return path


@pytest.fixture(scope="session")
def sample_arrays() -> list[Arrays]:
    sentences = []
    for path in sorted(SAMPLE.glob("*.npz")):
        with np.load(path) as arrays:
            sentences.append(dict(arrays))
    return sentences


def directly(sentences: list[Arrays], strategy: str, parameters: dict[str, Any]) -> tuple[Any, Any]:
    """Raw X and y by numpy, from the NPZs."""

    def position(sentence: Arrays, layer: int) -> int:
        return list(sentence["layers"]).index(layer)

    if strategy.startswith("embedding"):
        X = [s["embeddings"][-1] for s in sentences]
    elif strategy == "activation-to-concept":
        X = [s["activations"][position(s, parameters["layer"]), -1] for s in sentences]
        if "densest" in parameters:
            counts = np.count_nonzero(X, axis=0).tolist()
            best = sorted(range(len(counts)), key=lambda feature: (-counts[feature], feature))
            X = [row[sorted(best[: parameters["densest"]])] for row in X]
    else:
        spec = {
            "0-2,10,15-17": [0, 1, 2, 10, 15, 16, 17],
            "0-5,10,12,15-17": [0, 1, 2, 3, 4, 5, 10, 12, 15, 16, 17],
        }
        named = next(
            parameters[name] for name in ("layers", "layer", "input_layer", "target_layer") if name in parameters
        )
        layers = spec[named] if isinstance(named, str) else [named] if isinstance(named, int) else named
        X = [np.concatenate([s["hidden_states"][position(s, layer), -1] for layer in layers]) for s in sentences]
    if strategy.endswith("concept"):
        y = np.array([int(s["concept_strength_label"]) for s in sentences], np.int64)
    else:
        layer, feature = parameters["target_layer"], parameters.get("target_feature")
        if feature is None:
            feature = [0, 1, 2, 3] if parameters["target_features"] == "0-3" else parameters["target_features"]
        y = np.array([s["activations"][position(s, layer), -1, feature] for s in sentences], np.float32)
    return np.stack(X), y


@pytest.mark.parametrize("method", ["standardize", "minmax", "none"])
@pytest.mark.parametrize(("strategy", "parameters"), PARAMETERS)
def test_equals_the_direct_way(
    sample_store: Path, sample_arrays: list[Arrays], tmp_path: Path, strategy: str, parameters: Any, method: str
) -> None:
    output = tmp_path / "out.npz"
    featurestore.build(sample_store, strategy, normalize=method, output=output, **parameters)
    raw, y = directly(sample_arrays, strategy, parameters)
    with np.load(output) as saved:
        np.testing.assert_array_equal(saved["y"], y, strict=True)
        X, raw64 = saved["X"], raw.astype(np.float64)
        assert X.dtype == np.float32
        assert str(saved["norm_method"]) == method
        if method == "none":
            np.testing.assert_array_equal(X, raw.astype(np.float32), strict=True)
        elif method == "standardize":
            np.testing.assert_allclose(saved["norm_mean"], raw64.mean(0), rtol=1e-12, atol=1e-12)
            divisor = np.where(raw64.min(0) == raw64.max(0), 1, raw64.std(0))
            np.testing.assert_allclose(saved["norm_std"], divisor, rtol=1e-12)
            exact = ((raw64 - saved["norm_mean"]) / saved["norm_std"]).astype(np.float32)
            np.testing.assert_array_equal(X, exact, strict=True)
        else:
            np.testing.assert_array_equal(saved["norm_min"], raw64.min(0), strict=True)
            np.testing.assert_array_equal(saved["norm_max"], raw64.max(0), strict=True)
            span = saved["norm_max"] - saved["norm_min"]
            exact = ((raw64 - saved["norm_min"]) / np.where(span == 0, 1, span)).astype(np.float32)
            np.testing.assert_array_equal(X, exact, strict=True)


@pytest.mark.parametrize(("strategy", "parameters"), PARAMETERS)
def test_metadata_traces_the_dataset(
    sample_store: Path, sample_arrays: list[Arrays], strategy: str, parameters: dict[str, Any]
) -> None:
    raw, y = directly(sample_arrays, strategy, parameters)
    dataset = featurestore.build(sample_store, strategy, **parameters)
    metadata = {name: value.tolist() for name, value in dataset.metadata.items()}
    assert metadata["strategy"] == strategy
    source = {"embedding": "embeddings", "hidden": "hidden_states", "activation": "activations"}
    assert metadata["input_source"] == source[strategy.partition("-")[0]]
    if strategy == "activation-to-concept":
        assert metadata["input_layers"] == [parameters["layer"]]
        full, _ = directly(sample_arrays, strategy, {"layer": parameters["layer"]})
        np.testing.assert_array_equal(full[:, metadata["input_features"]], raw)
    else:
        assert len(metadata["input_layers"]) * 576 == (0 if strategy.startswith("embedding") else raw.shape[1])
    assert metadata["input_dims"] == raw.shape[1] == dataset.X.shape[1]
    assert metadata["n_samples"] == len(y) == 56
    assert metadata["sentence_indices"] == list(range(56))
    assert metadata["store"] == "dishonesty"
    assert metadata["schema_version"] == 1
    assert metadata["featurestore_version"] == featurestore.__version__
    assert len(metadata["sentences_digest"]) == 64
    assert metadata["dropped_sentence_indices"] == []
    if strategy.endswith("concept"):
        assert "target_layer" not in metadata
    elif strategy.endswith("features"):
        assert (metadata["target_layer"], metadata["average_l0"]) == (parameters["target_layer"], 24)
        assert len(metadata["target_feature"]) == y.shape[1]
    else:
        expected = (parameters["target_layer"], parameters["target_feature"], 24)
        assert (metadata["target_layer"], metadata["target_feature"], metadata["average_l0"]) == expected


def test_layers_are_concatenated_in_the_order_given(sample_store: Path) -> None:
    both = featurestore.build(sample_store, "hidden-to-concept", layers=[10, 3], normalize="none")
    assert both.metadata["input_layers"].tolist() == [10, 3]
    np.testing.assert_array_equal(
        both.X[:, 576:], featurestore.build(sample_store, "hidden-to-concept", layer=3, normalize="none").X
    )


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize("n", [3, 4, 5, 9])
def test_batches_and_memory_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, in_memory: int
) -> None:
    """Small shards, windows of one row, X read once or in every pass: the same dataset."""
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)
    monkeypatch.setattr("featurestore.datasets.raw.IN_MEMORY_BYTES", in_memory)
    monkeypatch.setattr("featurestore.datasets.dataset._WINDOW_BYTES", 1)
    sentences = write_folder(tmp_path / "in", n)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    featurestore.build(
        tmp_path / "s.zarr", "hidden-to-concept", layers=[0, 5], normalize="none", output=tmp_path / "o.npz"
    )
    raw, y = directly(sentences, "hidden-to-concept", {"layers": [0, 5]})
    with np.load(tmp_path / "o.npz") as saved:
        np.testing.assert_array_equal(saved["X"], raw.astype(np.float32))
        np.testing.assert_array_equal(saved["y"], y)


def test_the_file_holds_what_is_promised_and_the_same_bytes_each_time(sample_store: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a.npz", "b.npz"):
        featurestore.build(sample_store, "hidden-to-feature", target_layer=12, target_feature=5, output=tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    meta = "strategy input_source input_layers input_dims n_samples sentence_indices target_layer target_feature"
    meta += " average_l0 store schema_version featurestore_version sentences_digest dropped_sentence_indices"
    meta += " parameters fingerprint store_digest"
    assert names == {"X", "y", "norm_method", "norm_mean", "norm_std", *(f"meta_{name}" for name in meta.split())}
    with np.load(tmp_path / "a.npz", allow_pickle=False) as saved:
        assert all(saved[name].dtype != object for name in names)


def test_a_dataset_reads_back_and_inverts(sample_store: Path, sample_arrays: list[Arrays], tmp_path: Path) -> None:
    for method in ("standardize", "minmax", "none"):
        output = tmp_path / f"{method}.npz"
        built = featurestore.build(sample_store, "hidden-to-concept", layer=10, normalize=method, output=output)
        loaded = featurestore.load_dataset(output)
        np.testing.assert_array_equal(loaded.X, built.X, strict=True)
        np.testing.assert_array_equal(loaded.y, built.y, strict=True)
        assert loaded.metadata.keys() == built.metadata.keys()
        raw, _ = directly(sample_arrays, "hidden-to-concept", {"layer": 10})
        np.testing.assert_array_equal(loaded.transform(raw), loaded.X, strict=True)
        np.testing.assert_allclose(loaded.inverse(loaded.X), raw.astype(np.float32), rtol=1e-5, atol=1e-5)


def test_several_saes_of_a_layer(tmp_path: Path) -> None:
    sentences = write_folder(tmp_path / "in", 6, layers=[0, 5, 5], average_l0s=[3, 2, 9])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    options: dict[str, Any] = {"target_layer": 5, "target_feature": 4, "normalize": "none"}
    build = partial(featurestore.build, tmp_path / "s.zarr", "hidden-to-feature", **options)
    with pytest.raises(featurestore.SelectionError, match=r"2 SAEs.*\[2, 9\]"):
        build()
    for position, average_l0 in ((1, 2), (2, 9)):
        dataset = build(average_l0=average_l0)
        assert dataset.metadata["average_l0"] == average_l0
        np.testing.assert_array_equal(dataset.y, [s["activations"][position, -1, 4] for s in sentences])
        np.testing.assert_array_equal(dataset.X, [s["hidden_states"][1, -1].astype("f4") for s in sentences])


def test_dropped_sentences_are_recorded_and_leave_the_statistics(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 6)
    for index in (1, 4):
        hidden_states = np.ones((3, 4, 6), np.float16)
        hidden_states[0, -1, index] = np.inf
        write_sentence(tmp_path / "in", index, tokens=4, changes={"hidden_states": hidden_states})
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    with pytest.raises(featurestore.NonFiniteError, match=r"2 of 6 sentences .*sentence_index 1, 4"):
        featurestore.build(tmp_path / "s.zarr", "hidden-to-concept", layer=0)
    dataset = featurestore.build(tmp_path / "s.zarr", "hidden-to-concept", layer=0, drop_nonfinite=True)
    assert dataset.metadata["dropped_sentence_indices"].tolist() == [1, 4]
    assert dataset.metadata["sentence_indices"].tolist() == [0, 2, 3, 5]
    assert dataset.y.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(dataset.X.mean(axis=0), 0, atol=1e-6)
    finite = featurestore.build(tmp_path / "s.zarr", "hidden-to-concept", layer=1, drop_nonfinite=True)
    assert finite.metadata["n_samples"] == 6


# ---- normalization


columns = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)


@settings(deadline=None)
@given(columns, st.sampled_from(["standardize", "minmax"]), st.integers(1, 12))
def test_normalization_of_anything_finite(raw: np.ndarray[Any, Any], method: str, chunk: int) -> None:
    """Finite in, finite out; constant columns come out as 0 exactly; ranges are as promised; chunks do not matter."""
    with patch.object(normalize, "_ROWS", chunk):
        fitted = normalize.fit(method, normalize.measure([raw]))
    X = fitted.transform(raw)
    assert np.isfinite(X).all()
    constant = (raw == raw[0]).all(axis=0)
    assert (X[:, constant] == 0).all()
    if method == "minmax":
        assert X.min() >= 0
        assert X.max() <= 1
    else:
        assert np.abs(X[:, ~constant]).max(initial=0) <= np.sqrt(len(raw)) * (1 + 1e-6)


@pytest.mark.parametrize("value", [0.1, 1e-30, 65504.0, 3.0000002])
@pytest.mark.parametrize("method", ["standardize", "minmax"])
def test_a_constant_column_is_zero(value: float, method: str) -> None:
    """Also where the mean of equal values is not that value, as in float32, or by a sum of float64s."""
    raw = np.full((1001, 2), value, np.float32)
    raw[0, 1] += 1
    fitted = normalize.fit(method, normalize.measure([raw]))
    X = fitted.transform(raw)
    assert (X[:, 0] == 0).all()
    assert (X[:, 1] != 0).any()
    divisor = fitted.parameters["std"][0] if method == "standardize" else None
    assert divisor in (1.0, None)


# ---- every strategy


def some_parameters(strategy: Strategy) -> dict[str, Any]:
    """Values for a strategy's options that the sample has."""
    values = {"target_layer": 12, "target_feature": 1000, "layers": "0,10", "input_layer": 3, "average_l0": 24}
    values |= {"densest": 7}
    by_type = {int: 10, float: 0.5, str: "a", bool: True, Numbers: "0,10", NUMBER: 10}
    return {
        option.name: values.get(option.name, by_type[option.type])
        for option in strategy.options
        if option.required or option.name in values
    }


@pytest.fixture(params=sorted(featurestore.list_strategies()))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return featurestore.list_strategies()[request.param]


def test_a_strategy_is_documented(strategy: Strategy) -> None:
    assert strategy.summary.endswith(".")
    for option in strategy.options:
        assert option.help.endswith(".")
        assert option.type in TYPES


def test_a_strategy_is_lazy_aligned_and_deterministic(strategy: Strategy, sample_store: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    ds = featurestore.open_store(sample_store)
    arguments = strategy.arguments(some_parameters(strategy))
    with dask.config.set(scheduler=refuse):
        selection = strategy.select(ds, **arguments)
    again = strategy.select(ds, **arguments)
    assert isinstance(selection, Selection)
    sides, twins = ((*chosen.blocks, chosen.y) for chosen in (selection, again))
    for side, twin in zip(sides, twins, strict=True):
        assert isinstance(side, xr.DataArray)
        assert side.dims[0] == "sentence"
        assert side["sentence"].values.tolist() == ds["sentence"].values.tolist()
        assert "token" in side.dims or side.name == "label"
        xr.testing.assert_identical(side.compute(), twin.compute())


def test_a_strategy_makes_what_the_training_stage_reads(strategy: Strategy, sample_store: Path) -> None:
    dataset = featurestore.build(sample_store, strategy.name, **some_parameters(strategy))
    assert dataset.X.ndim == (3 if strategy.sequences else 2)
    assert dataset.X.dtype == np.float32
    assert np.isfinite(dataset.X).all()
    assert len(dataset.X) == len(dataset.y) == 56
    assert dataset.y.dtype in (np.int64, np.float32)


def test_a_new_strategy_is_one_function(sample_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @featurestore.strategy("text-length")
    def text_length(ds: xr.Dataset, *, at_least: Annotated[int, "Shorter ones count as this."] = 0) -> Selection:
        """Predict the length of the sentence from the embedding."""
        return Selection(X=module.final(ds["embeddings"]), y=ds["n_tokens"].clip(min=at_least))

    dataset = featurestore.build(sample_store, "text-length", at_least=12)
    assert dataset.y.min() == 12
    assert inspect.signature(text_length).parameters["at_least"].default == 0
    featurestore.strategy("text-length")(text_length)  # the cell of a notebook runs again
    with pytest.raises(ValueError, match="registered already"):
        featurestore.strategy("hidden-to-concept")(text_length)

    def plain(ds: xr.Dataset, *, at_least: int) -> Selection:
        """Lack a help text."""
        return text_length(ds, at_least=at_least)

    with pytest.raises(ValueError, match="Annotated"):
        featurestore.strategy("plain")(plain)
    with pytest.raises(featurestore.ParameterError, match="at_least=: expected an integer, found 'x'"):
        featurestore.build(sample_store, "text-length", at_least="x")
