"""Reductions of X, compared with numpy's SVD and scikit-learn's PCA, from the fit to the files."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

import featurestore
from featurestore import DatasetError, MissingExtraError, NpzError, ParameterError
from featurestore.datasets import reduce
from featurestore.datasets.dataset import Dataset
from featurestore.datasets.normalize import Normalization
from featurestore.datasets.reduce import Reduction, reduced
from featurestore.questions.components import Components
from tests.sentences import write_folder

Array = np.ndarray[Any, Any]

few = settings(max_examples=60)
RATIO = "explained_variance_ratio"


def fit(k: int, X: Array) -> tuple[Reduction, Array]:
    return reduced(Components("pca", k), X, X, np.ones(len(X), bool))


def agrees(found: Reduction, X: Array, k: int, rtol: float = 1e-6) -> None:
    """The same components as scikit-learn's, up to float32, and the same shares."""
    expected = PCA(k, svd_solver="full").fit(X.astype(np.float64))
    parameters = found.parameters
    np.testing.assert_allclose(parameters["mean"], expected.mean_, atol=1e-12 * np.abs(X).max())
    np.testing.assert_allclose(parameters["components"], expected.components_, atol=max(rtol, 1e-6))
    np.testing.assert_allclose(parameters[RATIO], expected.explained_variance_ratio_, rtol=rtol)


# ---- what is asked for


@given(st.sampled_from(["pca", "umap"]), st.integers(1, 999_999))
@few
def test_what_is_written_is_read(method: str, count: int) -> None:
    asked = Components.read("reduce", f"{method}-{count}")
    assert (asked.method, asked.count, str(asked)) == (method, count, f"{method}-{count}")


@pytest.mark.parametrize(
    "text", ["pca", "pca-0", "pca-05", "pca--1", "pca50", "PCA-5", "pca-5 ", "ica-5", "umap-", "pca-1.5", "", 5, True]
)
def test_what_cannot_be_read(text: Any, begun: Path) -> None:
    words = f"reduce=: expected pca-K or umap-K, such as pca-50, found {text!r}"
    with pytest.raises(ParameterError, match=words):
        featurestore.build(begun / "stores/trait.zarr", "hidden-to-concept", layer=0, reduce=text)


# ---- the fit


@given(st.data())
@few
def test_principal_components_of_small_arrays(data: st.DataObject) -> None:
    """Best of all, by the SVD: orthonormal, with the largest loading positive, for any shape and rank."""
    n, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    k, rank = data.draw(st.integers(1, min(n, d))), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    X = (rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d)) + 3).astype(np.float32)
    found, scores = fit(k, X)
    V = found.parameters["components"].astype(np.float64)
    tells = found.parameters[RATIO] > 0
    assert (found.parameters[RATIO][~tells] == 0).all()
    np.testing.assert_allclose(V @ V.T, np.diag(tells), atol=1e-6)  # directions that tell nothing are 0
    assert (np.take_along_axis(V, np.abs(V).argmax(axis=1)[:, None], axis=1)[tells] > 0).all()
    centred = X.astype(np.float64) - X.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(scores, centred @ V.T, atol=1e-5)
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    atol = 1e-9 * max(1, squares.sum())
    np.testing.assert_allclose(np.square(centred - centred @ V.T @ V).sum(), squares[k:].sum(), atol=1e-5 + atol)
    np.testing.assert_allclose(found.parameters[RATIO] * squares.sum(), squares[:k], atol=atol)
    np.testing.assert_allclose(found.inverse(scores), centred @ V.T @ V + X.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (80, 80)])
def test_exact_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    X = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.arange(1, shape[1] + 1) + 7
    agrees(fit(20, X)[0], X, 20)


class Watched:
    """Rows that say how many of them are asked for at once."""

    def __init__(self, X: Array) -> None:
        self._X, self.shape, self.most = X, X.shape, 0

    def __getitem__(self, part: slice) -> Array:
        self.most = max(self.most, len(values := self._X[part]))
        return values


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (40, 700), (700, 12)])
def test_components_of_large_arrays(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Window by window, and as exact as float32 where variances decay, be it as slowly as those of noise beyond ten."""
    monkeypatch.setattr(reduce, "_EXACT_VALUES", 0)
    monkeypatch.setattr(reduce, "_WINDOW_BYTES", 8 * shape[1] * 33)
    monkeypatch.setattr(reduce, "_ROWS", 170)
    rng = np.random.default_rng(0)
    strong = rng.standard_normal((shape[0], 10)) * np.arange(30, 10, -2)
    X = (strong @ rng.standard_normal((10, shape[1])) + rng.standard_normal(shape) + 5).astype(np.float32)
    rows = Watched(X)
    found, scores = reduced(Components("pca", 10), rows, rows, np.ones(len(X), bool))
    assert rows.most == 33
    agrees(found, X, 10)
    V, mean = found.parameters["components"].astype(np.float64), found.parameters["mean"]
    np.testing.assert_allclose(scores, (X - mean) @ V.T, atol=1e-4)
    again, same = reduced(Components("pca", 10), X, X, np.ones(len(X), bool))
    np.testing.assert_array_equal(scores, same)
    np.testing.assert_array_equal(found.parameters["components"], again.parameters["components"])


def test_large_arrays_have_all_components_that_small_ones_have(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).standard_normal((30, 18)).astype(np.float32)
    monkeypatch.setattr(reduce, "_EXACT_VALUES", 0)
    agrees(fit(18, X)[0], X, 18, rtol=1e-5)


@pytest.mark.parametrize("large", [False, True])
def test_constant_rows(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variance has no shares: 0 of it, not NaN."""
    monkeypatch.setattr(reduce, "_EXACT_VALUES", 0 if large else 1000)
    found, scores = fit(3, np.full((5, 4), 2.5, np.float32))
    np.testing.assert_array_equal(scores, np.zeros((5, 3), np.float32), strict=True)
    np.testing.assert_array_equal(found.parameters[RATIO], np.zeros(3))
    np.testing.assert_array_equal(found.inverse(scores), np.full((5, 4), 2.5, np.float32))


# ---- datasets


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 sentences. Not to be changed."""
    path = tmp_path_factory.mktemp("reduced")
    write_folder(path / "trait", 24)
    featurestore.ingest(path / "trait", path / "trait.zarr")
    return path / "trait.zarr"


def build(store: Path, reduce: str | None = "pca-4", **options: Any) -> Dataset:
    given: dict[str, Any] = {"layers": "0,5"} | options
    return featurestore.build(store, "hidden-to-concept", reduce=reduce, **given)


@pytest.mark.parametrize("normalize", ["standardize", "minmax", "none"])
@pytest.mark.parametrize("split", [{}, {"test_size": 0.25}, {"folds": 3}])
def test_training_rows_alone_are_fitted(store: Path, normalize: str, split: dict[str, Any]) -> None:
    plain = build(store, None, normalize=normalize, **split)
    made = build(store, normalize=normalize, **split)
    train = plain.metadata.get("split", np.full(24, "train")) == "train"
    expected = PCA(4, svd_solver="full").fit(plain.X[train].astype(np.float64))
    np.testing.assert_allclose(made.X, expected.transform(plain.X.astype(np.float64)), atol=2e-5)
    assert made.X.dtype == np.float32
    for name, values in plain.normalization.parameters.items():
        np.testing.assert_array_equal(made.normalization.parameters[name], values, strict=True)
    assert made.metadata["input_dims"] == 4
    assert json.loads(str(made.metadata["parameters"]))["reduce"] == "pca-4"
    kept = set(plain.metadata) - {"input_dims", "parameters", "fingerprint"}
    for name in kept:
        np.testing.assert_array_equal(made.metadata[name], plain.metadata[name])


def test_there_and_back(store: Path, tmp_path: Path) -> None:
    raw = build(store, None, normalize="none").X
    whole = build(store, "pca-12", output=tmp_path / "whole.npz")
    np.testing.assert_allclose(whole.transform(raw), whole.X, atol=1e-5)
    np.testing.assert_allclose(whole.inverse(whole.X), raw, atol=1e-4)  # all components leave nothing out
    part = build(store, "pca-3")
    lost = np.square((part.inverse(part.X) - raw) / part.normalization.parameters["std"]).sum() / (24 * 12)
    assert part.reduction is not None
    assert lost == pytest.approx(1 - part.reduction.parameters[RATIO].sum(), abs=1e-6)
    loaded = featurestore.load_dataset(tmp_path / "whole.npz")
    np.testing.assert_array_equal(loaded.transform(raw), whole.transform(raw))
    np.testing.assert_array_equal(loaded.inverse(loaded.X), whole.inverse(whole.X))
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    for width in (11, 13, 4):
        with pytest.raises(ParameterError, match="raw values: expected 12 columns, found shape"):
            part.transform(np.zeros((2, width)))
    with pytest.raises(ParameterError, match="reduced values: expected 3 columns, found shape"):
        part.inverse(raw)


def test_what_is_saved(store: Path, tmp_path: Path) -> None:
    made = build(store, test_size=0.25, output=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as saved:
        arrays = {name: values for name, values in saved.items() if name.startswith("reduce_")}
        scaled = (made.inverse(np.zeros((1, 4)))[0] - saved["norm_mean"]) / saved["norm_std"]
    assert [(name, str(values.dtype), values.shape) for name, values in arrays.items()] == [
        ("reduce_method", "<U3", ()),
        ("reduce_mean", "float64", (12,)),
        ("reduce_components", "float32", (4, 12)),
        (f"reduce_{RATIO}", "float64", (4,)),
    ]
    assert str(arrays["reduce_method"]) == "pca"
    np.testing.assert_allclose(scaled, arrays["reduce_mean"], atol=1e-6)
    build(store, None, output=tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as saved:
        assert not [name for name in saved if name.startswith("reduce")]
        assert "reduce" not in str(saved["meta_parameters"])


def test_in_a_pipeline_of_scikit_learn(store: Path) -> None:
    raw, made = build(store, None, normalize="none").X, build(store)
    used = pickle.loads(pickle.dumps(made.transformer())).fit(raw)
    np.testing.assert_array_equal(used.transform(raw), made.transform(raw))
    np.testing.assert_array_equal(used.inverse_transform(made.X), made.inverse(made.X))
    assert used.get_feature_names_out().tolist() == ["pca0", "pca1", "pca2", "pca3"]


def test_other_data_in_the_same_dataset(store: Path) -> None:
    made = build(store)
    other = dataclasses.replace(made, data=np.ones((24, 4)))
    np.testing.assert_array_equal(other.X, np.ones((24, 4), np.float32), strict=True)
    with pytest.raises(DatasetError, match="reduction: expected the 5 columns of X, found 4 components"):
        dataclasses.replace(made, data=np.ones((24, 5)))
    narrow = Normalization("standardize", {"mean": np.zeros(4), "std": np.ones(4)})
    with pytest.raises(DatasetError, match="expected the 12 columns that are reduced, found statistics of 4"):
        dataclasses.replace(made, normalization=narrow)


CHOSEN: list[dict[str, Any]] = [
    {"tokens": "all"},
    {"tokens": "last-2", "drop_short": True},
    {"combine": "difference"},
    {"where": "label=0,3", "classes": "0=0,3=1"},
    {"control": "shuffled-labels", "test_size": 0.25},
    {"control": "random-columns", "folds": 3},
    {"control": "text"},
]


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_together_with_other_options(store: Path, chosen: dict[str, Any]) -> None:
    plain, made = build(store, None, **chosen), build(store, **chosen)
    train = plain.metadata.get("split", np.full(len(plain.y), "train")) == "train"
    expected = PCA(4, svd_solver="full").fit(plain.X[train].astype(np.float64))
    np.testing.assert_allclose(made.X, expected.transform(plain.X.astype(np.float64)), atol=1e-4)
    np.testing.assert_array_equal(made.y, plain.y, strict=True)


def test_the_densest_features(store: Path) -> None:
    given: dict[str, Any] = {"layer": 1, "densest": 5, "test_size": 0.25}
    plain = featurestore.build(store, "activation-to-concept", **given)
    made = featurestore.build(store, "activation-to-concept", reduce="pca-2", **given)
    train = plain.metadata["split"] == "train"
    expected = PCA(2, svd_solver="full").fit(plain.X[train].astype(np.float64))
    np.testing.assert_allclose(made.X, expected.transform(plain.X.astype(np.float64)), atol=2e-5)
    np.testing.assert_array_equal(made.metadata["input_features"], plain.metadata["input_features"])
    with pytest.raises(ParameterError, match=r"pca-6.*at least 6 training rows and 6 columns, found 18 and 5"):
        featurestore.build(store, "activation-to-concept", reduce="pca-6", **given)


def test_more_components_than_there_are(store: Path) -> None:
    build(store, "pca-9", test_size=0.625)
    words = (
        "reduce='pca-10': expected at least 10 training rows and 10 columns, found 9 and 12; ask for fewer components"
    )
    with pytest.raises(ParameterError, match=words):
        build(store, "pca-10", test_size=0.625)
    with pytest.raises(ParameterError, match="at least 13 training rows and 13 columns, found 24 and 12"):
        build(store, "pca-13")


def test_statistics_of_another_dataset(store: Path, tmp_path: Path) -> None:
    other = build(store, where="label=0,1", output=tmp_path / "other.npz")
    made = build(store, where="label=2,3", stats_from=tmp_path / "other.npz")
    raw = build(store, None, where="label=2,3", normalize="none").X
    np.testing.assert_allclose(made.X, other.transform(raw), atol=1e-6)
    few = build(store, where="sentence=2,3", stats_from=tmp_path / "other.npz")  # two rows, of which none is fitted
    assert few.X.shape == (2, 4)
    plain = build(store, None, output=tmp_path / "plain.npz")
    assert plain.reduction is None
    for asked, name, found in (
        (None, "other", "is reduced by pca-4, and this dataset is to be not reduced"),
        ("pca-3", "other", "is reduced by pca-4, and this dataset is to be reduced by pca-3"),
        ("pca-4", "plain", "is not reduced, and this dataset is to be reduced by pca-4"),
    ):
        with pytest.raises(ParameterError, match=f"stats_from=: {found}; reduce= has to be the same for both"):
            build(store, asked, stats_from=tmp_path / f"{name}.npz")


def test_a_sweep_leaves_out_what_cannot_be_reduced(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    datasets = [{"strategy": "hidden-to-concept", "layers": "0,5", "reduce": ["pca-4", "pca-13", "pca-2"]}]
    study = {"stores": str(store), "datasets": datasets}
    planned = featurestore.sweep(study, dry_run=True)
    assert [(job.shape, job.state) for job in planned.datasets] == [
        ((24, 4), "new"), ((24, 13), "unfit"), ((24, 2), "new"),
    ]  # fmt: skip
    assert 'reduce: "pca-13": expected at least 13 training rows' in planned.datasets[1].problem
    done = featurestore.sweep(study)
    for job, k in ((done.datasets[0], 4), (done.datasets[2], 2)):
        assert f"reduce-pca-{k}" in job.output.name
        build(store, f"pca-{k}", output=tmp_path / "one.npz", overwrite=True)
        assert job.output.read_bytes() == (tmp_path / "one.npz").read_bytes()
    with pytest.raises(featurestore.RecipeError, match="expected pca-K or umap-K"):
        featurestore.sweep({"stores": str(store), "reduce": ["pca-4", "none"], "datasets": datasets})


# ---- files of others

TAMPERED: list[tuple[str, Any]] = [
    ("method", np.array("ica")),
    ("method", np.array(1)),
    ("mean", None),
    ("mean", np.zeros(11)),
    ("mean", np.array(0.0)),
    ("mean", np.full(12, np.nan)),
    ("components", None),
    ("components", np.zeros((3, 12), np.float32)),
    ("components", np.zeros((4, 11), np.float32)),
    ("components", np.full((4, 12), np.inf, np.float32)),
    ("components", np.full((4, 12), 0.1)),
    ("components", np.full((4, 12), "a")),
    (RATIO, None),
    (RATIO, np.zeros(5)),
    (RATIO, np.full(4, 1j)),
]


@pytest.mark.parametrize(("name", "value"), TAMPERED, ids=[f"{name} {i}" for i, (name, _) in enumerate(TAMPERED)])
def test_a_tampered_reduction(store: Path, tmp_path: Path, name: str, value: Any) -> None:
    build(store, output=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as saved:
        arrays = {key: values for key, values in saved.items() if value is not None or key != f"reduce_{name}"}
    if value is not None:
        arrays[f"reduce_{name}"] = value
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(NpzError) as error:
        featurestore.load_dataset(tmp_path / "b.npz")
    assert str(error.value).startswith(f"{tmp_path / 'b.npz'}: ")
    assert str(error.value).isprintable()
    assert "reduce_" in str(error.value)


# ---- UMAP


class Means:
    """In the place of UMAP, which takes half a minute to be compiled: means of rows, less that of those fitted."""

    def __init__(self, *, n_components: int, n_neighbors: int, random_state: int, n_jobs: int) -> None:
        assert (n_neighbors, random_state, n_jobs) == (15, 0, 1)
        self._k = n_components

    def fit_transform(self, X: Array) -> Array:
        self._shift = X.mean()
        return self.transform(X)

    def transform(self, X: Array) -> Array:
        return np.repeat(X.mean(axis=1, keepdims=True) - self._shift, self._k, axis=1)


def test_umap_is_fitted_to_training_rows(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Means))
    plain, made = build(store, None, test_size=0.25), build(store, "umap-2", test_size=0.25)
    train = plain.metadata["split"] == "train"
    expected = plain.X.mean(axis=1) - plain.X[train].mean()
    np.testing.assert_allclose(made.X, np.column_stack([expected, expected]), atol=1e-6)


def test_umap(store: Path, tmp_path: Path, long: bool) -> None:
    if not long:
        pytest.skip("umap takes half a minute to be compiled")
    pytest.importorskip("umap", reason="the extra umap is not installed", exc_type=ImportError)
    made = build(store, "umap-2", test_size=0.25, output=tmp_path / "a.npz")
    assert made.X.shape == (24, 2)
    assert (made.normalization.width, int(made.metadata["input_dims"])) == (12, 2)
    np.testing.assert_array_equal(build(store, "umap-2", test_size=0.25).X, made.X)
    loaded = featurestore.load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.X, made.X)
    with pytest.raises(ParameterError, match="umap-2: cannot be applied to other data; use pca-2 for that"):
        loaded.transform(np.zeros((1, 12)))
    with pytest.raises(ParameterError, match="umap-2: cannot be inverted; use pca-2 for that"):
        loaded.inverse(made.X)
    with pytest.raises(ParameterError, match="umap-2: cannot be applied to other data"):
        build(store, "umap-2", stats_from=tmp_path / "a.npz")
    with pytest.raises(ParameterError, match=r"umap-8.*expected at least 10 training rows and 8 columns, found 9"):
        build(store, "umap-8", test_size=0.625)


def test_the_extra_of_umap(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"needs umap, which is not installed: install the extra umap"):
        build(store, "umap-2")
