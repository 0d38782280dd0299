"""Sequences: the tokens of each sentence as one item, padded in front, compared with numpy on the sentence NPZs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import featurestore
from featurestore.schema import CONTROLS
from featurestore.strategies import registry
from featurestore.strategies.registry import Selection, strategy
from tests.questions.recalculated import Array, as_sequences, recalculate
from tests.questions.study import CONDITIONS, SPLIT, Options, Study, check_normalized, make_study

HIDDEN: tuple[str, Options] = ("hidden-sequence-to-concept", {"layer": 1})
LAYERS: tuple[str, Options] = ("hidden-sequence-to-concept", {"layers": "5,0"})
FEATURES: tuple[str, Options] = ("activation-sequence-to-concept", {"layer": 5, "features": "7,1-2"})
DENSEST: tuple[str, Options] = ("activation-sequence-to-concept", {"layer": 5, "densest": 3})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("sequences"))


def check(study: Study, name: str, **options: Any) -> featurestore.Dataset:
    """Build sequences, and compare all of them with numpy; short sentences are left out."""
    options = {"drop_short": True} | options
    expected, sides = study.expected(name, **options), study.sides(**options)
    dataset = featurestore.build(study.store, name, **options)
    training = np.array([sides[index][0] == "train" for index in expected.sentences])
    exact = check_normalized(dataset, expected.X, training, options.get("normalize", "standardize"))
    found = as_sequences(expected, exact)
    np.testing.assert_array_equal(masked(dataset), found.mask, strict=True)
    np.testing.assert_array_equal(dataset.X, found.X, strict=True)
    np.testing.assert_array_equal(dataset.y, found.y, strict=True)
    metadata = {name: value.tolist() for name, value in dataset.metadata.items()}
    assert metadata["sentence_indices"] == found.sentences
    assert metadata["n_samples"] == len(found.sentences)
    assert metadata["input_dims"] == list(found.X.shape[1:])
    assert metadata["short_sentence_indices"] == expected.short
    assert metadata.get("left_out_sentence_indices", []) == expected.left_out
    assert metadata["dropped_sentence_indices"] == expected.dropped
    assert "token" not in metadata
    if any(options.get(name) is not None for name in SPLIT):
        assert metadata["split"] == [sides[index][0] for index in found.sentences]
        assert metadata.get("fold", 0) == ([sides[i][1] for i in found.sentences] if "fold" in metadata else 0)
    return dataset


def masked(dataset: featurestore.Dataset) -> Array:
    assert dataset.mask is not None
    return dataset.mask


SPLITS: list[Options] = [{}, {"test_size": 0.25, "folds": 2, "seed": 3}]


@pytest.mark.parametrize("split", SPLITS, ids=["whole", "split"])
@pytest.mark.parametrize("normalize", ["standardize", "minmax", "none"])
@pytest.mark.parametrize("case", [HIDDEN, LAYERS, FEATURES, DENSEST], ids=lambda case: "-".join(case[1]))
def test_sequences(study: Study, case: tuple[str, Options], normalize: str, split: Options) -> None:
    """Statistics, and the densest features, are those of the tokens of training sentences alone."""
    dataset = check(study, case[0], normalize=normalize, **case[1], **split)
    assert dataset.X.ndim == 3
    assert not dataset.X[~masked(dataset)].any()
    if "features" in case[1]:
        assert dataset.metadata["input_features"].tolist() == [7, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"special": True},
        *({"where": condition} for condition in CONDITIONS[:5]),
        {"where": "n_tokens=2-3", "special": True},
        {"classes": "0=0,3=1", "test_size": 0.3},
        {"labels_from": "labels.csv:kind"},
        {"labels_from": "labels.csv:kind", "classes": "truth=0,lie=1"},
        {"labels_from": "texts.csv:strength", "folds": 2},
        *({"combine": combine} for combine in ("mean", "difference", "sum")),
    ],
    ids=str,
)
def test_questions(study: Study, options: Options) -> None:
    options = {**options}
    if "labels_from" in options:
        options["labels_from"] = study.table(options["labels_from"])
    check(study, LAYERS[0], **LAYERS[1], **options)


def test_as_long_as_the_longest_that_is_left(study: Study) -> None:
    """Padding in front: at least one token each, the final one last, the others in reading order."""
    dataset = check(study, *HIDDEN[:1], layer=1, where="n_tokens=1-4", special=True)
    assert dataset.X.shape[1] == 4
    assert masked(dataset).sum(axis=1).tolist() == [
        study.sentences[index].n_tokens for index in dataset.metadata["sentence_indices"].tolist()
    ]
    final = featurestore.build(
        study.store, "hidden-to-concept", layer=1, where="n_tokens=1-4", stats_from=None, normalize="none"
    )
    np.testing.assert_allclose(dataset.inverse(dataset.X)[:, -1], final.X, rtol=1e-5, atol=1e-5)


def test_too_short(study: Study) -> None:
    """Without a token that counts there is no sequence, which is refused in the user's words, or recorded."""
    few = [one.index for one in study.sentences if all(one.special) and one.label is not None]
    assert few
    with pytest.raises(featurestore.SelectionError) as caught:
        featurestore.build(study.store, "hidden-sequence-to-concept", layer=1)
    assert f"sequences: expected 1 tokens or more, {len(few)} of " in str(caught.value)
    assert "drop_short=True" in str(caught.value)
    assert "tokens=" not in str(caught.value)


@pytest.mark.parametrize("split", SPLITS, ids=["whole", "split"])
@pytest.mark.parametrize("control", CONTROLS)
def test_controls(study: Study, control: str, split: Options) -> None:
    """The same sentences, sides and mask as the real ones; padding stays 0, and y or X is that of the real dataset."""
    options: Options = {"layer": 1, "drop_short": True, **split}
    real = featurestore.build(study.store, HIDDEN[0], **options)
    found = featurestore.build(study.store, HIDDEN[0], control=control, **options)
    for name in ("sentence_indices", "split", "fold", "left_out_sentence_indices", "short_sentence_indices"):
        np.testing.assert_array_equal(found.metadata.get(name, ()), real.metadata.get(name, ()))
    np.testing.assert_array_equal(masked(found), masked(real))
    assert not found.X[~masked(found)].any()
    if control == "shuffled-labels":
        np.testing.assert_array_equal(found.X, real.X)
        assert (found.y != real.y).any()
        for side in {0, *real.metadata.get("fold", np.array([])).tolist()}:
            own = real.metadata.get("fold", np.zeros(len(real.y))) == side
            assert sorted(found.y[own]) == sorted(real.y[own])
        return
    np.testing.assert_array_equal(found.y, real.y)
    width = {"text": 4097, "length": 2, "random-columns": 6}[control]
    assert found.X.shape == (*real.X.shape[:2], width)
    raw = found.inverse(found.X)[masked(found)]
    if control == "length":
        expected = recalculate(study.sentences, HIDDEN[0], layer=1, control=control)
        np.testing.assert_allclose(raw, expected.X, rtol=1e-5)
    if control == "text":  # of each token, what had been read by then
        lengths = [
            len(text)
            for index in found.metadata["sentence_indices"].tolist()
            for text, special in zip(study.sentences[index].fragments, study.sentences[index].special, strict=True)
            if not special
        ]
        np.testing.assert_allclose(raw[:, -1], lengths, rtol=1e-5)


def test_components_of_the_tokens_of_training_sentences(study: Study) -> None:
    options: Options = {"layers": "5,0", "drop_short": True, "test_size": 0.25, "seed": 1}
    wide = featurestore.build(study.store, LAYERS[0], **options)
    dataset = featurestore.build(study.store, LAYERS[0], reduce="pca-4", **options)
    mask, is_training = masked(wide), wide.metadata["split"] == "train"
    np.testing.assert_array_equal(masked(dataset), mask)
    assert dataset.reduction is not None
    training = wide.X[is_training][mask[is_training]].astype(float)
    mean = training.mean(axis=0)
    _, singular, directions = np.linalg.svd(training - mean, full_matrices=False)
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(dataset.reduction.parameters["mean"], mean, atol=1e-9)
    np.testing.assert_allclose(dataset.reduction.parameters["components"], directions[:4], atol=1e-5)
    shares = (singular**2 / (singular**2).sum())[:4]
    np.testing.assert_allclose(dataset.reduction.parameters["explained_variance_ratio"], shares, rtol=1e-9)
    scores = (wide.X[mask] - mean) @ directions[:4].T
    np.testing.assert_allclose(dataset.X[mask], scores, rtol=1e-4, atol=1e-5)
    assert not dataset.X[~mask].any()
    assert dataset.metadata["input_dims"].tolist() == [wide.X.shape[1], 4]
    with pytest.raises(featurestore.ParameterError, match="expected at least 13 training rows and 13 columns, found"):
        featurestore.build(study.store, LAYERS[0], reduce="pca-13", **options)


# ---- files, and other data


@pytest.mark.parametrize("reduce", [None, "pca-3"])
def test_there_and_back(study: Study, tmp_path: Path, reduce: str | None) -> None:
    path = tmp_path / "s.npz"
    options: Options = {"layer": 1, "drop_short": True, "test_size": 0.25, "reduce": reduce}
    built = featurestore.build(study.store, HIDDEN[0], output=path, **options)
    loaded = featurestore.load_dataset(path)
    for name in ("X", "y", "mask"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name), strict=True)
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()
    with np.load(path) as arrays:
        assert arrays["X"].dtype == np.float32
        assert arrays["mask"].dtype == bool
    raw = built.inverse(built.X)
    assert raw.shape == (*built.X.shape[:2], 6)
    np.testing.assert_allclose(built.transform(raw), built.X, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(built.transform(raw)[0], built.transform(raw[0]))
    ours = featurestore.build(study.store, HIDDEN[0], stats_from=path, **options | {"where": "n_tokens=1-4"})
    assert ours.X.shape[1] < built.X.shape[1]
    rows = np.isin(built.metadata["sentence_indices"], ours.metadata["sentence_indices"])
    np.testing.assert_array_equal(ours.X, built.X[rows][:, -ours.X.shape[1] :])


def test_statistics_of_the_densest(study: Study, tmp_path: Path) -> None:
    """The features are those that there are statistics of."""
    options: Options = DENSEST[1] | {"drop_short": True}
    path = tmp_path / "s.npz"
    built = featurestore.build(study.store, DENSEST[0], output=path, test_size=0.5, seed=2, **options)
    ours = featurestore.build(study.store, DENSEST[0], stats_from=path, **options)
    assert ours.metadata["input_features"].tolist() == built.metadata["input_features"].tolist()
    np.testing.assert_array_equal(ours.X, built.X)


Change = Callable[[dict[str, Array]], object]


def tampered(name: str, at: tuple[int, int], value: Any) -> Change:
    def change(arrays: dict[str, Array]) -> None:
        arrays[name][at] = value

    return change


def long_ones(mask: Array) -> Array:
    """Tell where the last token but one of sequences of three or more is."""
    found: Array = mask[:, -3:].all(axis=1)[:, None] & (np.arange(mask.shape[1]) == mask.shape[1] - 2)
    return found


TAMPERED: dict[str, tuple[Change, str]] = {
    "no mask": (lambda arrays: arrays.pop("mask"), "'X' has shape (28, 7, 6), expected (n, d)"),
    "a shorter mask": (lambda arrays: arrays.update(mask=arrays["mask"][:, 1:]), "'mask' has shape"),
    "a mask of other rows": (lambda arrays: arrays.update(mask=arrays["mask"][1:]), "'mask' has shape"),
    "a mask of numbers": (lambda arrays: arrays.update(mask=arrays["mask"].astype(int)), "'mask' must hold true"),
    "a hole": (
        lambda arrays: np.putmask(arrays["mask"], long_ones(arrays["mask"]), False),
        "'mask' must be true at the last token",
    ),
    "no final token": (tampered("mask", (3, -1), False), "'mask' must be true at the last token"),
    "values in the padding": (tampered("X", (0, 0), 1.0), "'X' has values other than 0 where mask says"),
    "a flat X": (
        lambda arrays: arrays.update(X=arrays["X"][:, -1]),
        "'X' has shape (28, 6), expected (n, t, d), as there is a mask",
    ),
    "other dims": (lambda arrays: arrays.update(meta_input_dims=np.array([9, 6])), "is [9 6], but X has 7 x 6"),
    "y of tokens": (lambda arrays: arrays.update(y=np.repeat(arrays["y"], 2)), "'y' has shape"),
    "NaN": (tampered("X", (0, -1), np.nan), "'X' has NaN"),
}


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "s.npz"
    featurestore.build(study.store, HIDDEN[0], layer=1, drop_short=True, output=path)
    return path


@pytest.mark.parametrize("what", TAMPERED)
def test_files_that_are_no_such_dataset(file: Path, tmp_path: Path, what: str) -> None:
    """One clear line that names the file and the array."""
    change, message = TAMPERED[what]
    with np.load(file) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    change(changed)
    np.savez(tmp_path / "t.npz", **changed)
    with pytest.raises(featurestore.NpzError) as caught:
        featurestore.load_dataset(tmp_path / "t.npz")
    assert message in str(caught.value)
    assert str(tmp_path / "t.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- sweeps, listings, the command line, strategies of one's own


def test_sweeps_say_the_shape_and_size(study: Study, tmp_path: Path) -> None:
    recipe = {
        "stores": str(study.store),
        "output": str(tmp_path),
        "drop_short": True,
        "problems": "keep",
        "split": {"test_size": 0.25},
        "datasets": [
            {"strategy": HIDDEN[0], "layer": 1, "where": ["n_tokens=1-4", "n_tokens=1-7"], "controls": [*CONTROLS]},
            {"strategy": HIDDEN[0], "layers": "5,0", "reduce": "pca-2"},
            {"strategy": DENSEST[0], **DENSEST[1], "normalize": ["minmax", "none"]},
        ],
    }
    dry = featurestore.sweep(recipe, dry_run=True)
    done = featurestore.sweep(recipe)
    assert [job.shape for job in dry.datasets] == [job.shape for job in done.datasets]
    assert len(done.datasets) == 2 * 5 + 1 + 2
    for job in done.datasets:
        with np.load(job.output) as arrays:
            assert job.shape == arrays["X"].shape
            assert job.n_bytes == arrays["X"].nbytes
        plan = json.loads(job.plan.json)
        options = {name: plan[name] for name in plan if name not in ("parameters", "split", "seed")}
        built = tmp_path / "one.npz"
        featurestore.build(study.store, output=built, test_size=0.25, **options, **plan["parameters"])
        assert built.read_bytes() == job.output.read_bytes()
        built.unlink()
    assert {job.state for job in featurestore.sweep(recipe).datasets} == {"current"}
    entries = {entry.file: entry for entry in featurestore.list_datasets(tmp_path, study.store.parent)}
    assert {(entry.state, entry.rows, entry.columns) for entry in entries.values()} == {
        ("current", job.shape[0], job.shape[-1]) for job in done.datasets
    }


def test_the_command_line(study: Study, cli: Any) -> None:
    given = ["--input", study.store, "--drop-short", "--output", "s.npz"]
    done = cli("build", "--strategy", "hidden-sequence-to-concept", "--layer", 1, *given)
    assert done.exit_code == 0, done.output
    n = len(featurestore.load_dataset("s.npz").y)
    assert done.output.splitlines()[-1] == f"s.npz: X {n} x 7 x 6, y int64, standardize"
    Path("r.yaml").write_text(
        f"stores: {study.store}\ndrop_short: true\ndatasets: {{strategy: hidden-sequence-to-concept, layer: 1}}\n"
    )
    dry = cli("sweep", "r.yaml", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"  {n} x 7 x 6  " in dry.output


@pytest.fixture
def own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        yield


@pytest.mark.usefixtures("own")
def test_a_strategy_of_ones_own(study: Study) -> None:
    """Blocks that have no dim token are there at each token; y may be anything of which there is one a sentence."""

    @strategy("own-sequence", sequences=True)
    def own_sequence(ds: xr.Dataset) -> Selection:
        """Predict the length from embeddings, and what the sentence ends with."""
        return Selection(X=[ds["embeddings"], ds["hidden_states"].sel(layer=5, token=-1)], y=ds["n_tokens"])

    @strategy("no-sequence", sequences=True)
    def no_sequence(ds: xr.Dataset) -> Selection:
        """Have no token to make sequences of."""
        return Selection(X=ds["embeddings"].sel(token=-1), y=ds["n_tokens"])

    dataset = featurestore.build(study.store, "own-sequence", normalize="none", special=True)
    assert dataset.y.tolist() == [one.n_tokens for one in study.sentences]
    for one, X, mask in zip(study.sentences, dataset.X, masked(dataset), strict=True):
        assert mask.sum() == one.n_tokens
        np.testing.assert_array_equal(X[mask][:, :6], one.embeddings.astype("f4"))
        np.testing.assert_array_equal(X[mask][:, 6:], np.tile(one.hidden[5][-1].astype("f4"), (one.n_tokens, 1)))
    with pytest.raises(featurestore.StrategyError, match="no-sequence: X: expected the dim token, of which sequences"):
        featurestore.build(study.store, "no-sequence")


def test_what_is_unfit_is_counted_in_sentences(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    dataset = featurestore.build(study.store, HIDDEN[0], layer=1, where="label=2", drop_short=True)
    assert f"y is constant: 2 in all {len(dataset.y)} sentences" in caplog.text


REFUSED: list[tuple[tuple[str, Options], Options, str]] = [
    (HIDDEN, {"tokens": "mean"}, "expected no tokens, as its X has a dim of all of them, found tokens='mean'"),
    (HIDDEN, {"tokens": "all"}, "expected no tokens"),
    (HIDDEN, {"target_tokens": "max"}, "target_tokens='max': expected y with the dim token, found label"),
    (HIDDEN, {"target_tokens": "all"}, "target_tokens='all': expected tokens='all' with it"),
    (HIDDEN, {"combine": "mean"}, "combine='mean': expected X of two layers or more, found 1"),
    (FEATURES, {"densest": 2}, "features"),
    (("activation-sequence-to-concept", {"layer": 5}), {}, "features"),
    (("activation-sequence-to-concept", {"layer": 5, "features": "10"}), {}, "10"),
    (("activation-sequence-to-concept", {"layer": 5, "densest": 11}), {}, "densest=11"),
    (("activation-sequence-to-concept", {"layer": 4, "densest": 1}), {}, "has no layer 4"),
    (("hidden-sequence-to-concept", {}), {}, "layer"),
]


@pytest.mark.parametrize(("case", "options", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(study: Study, case: tuple[str, Options], options: Options, message: str) -> None:
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(study.store, case[0], **case[1] | {"drop_short": True} | options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
