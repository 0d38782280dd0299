"""Every option of a dataset alone, and any combination of them, compared with a recalculation from the NPZs.

X before normalization, y, rows and sides have to be equal: sums of a few values of float16 or float32 are exact in
float64, and rounded to float32 once. Statistics may differ by the rounding of float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.questions.study import (
    CONDITIONS,
    FEATURE,
    FEATURES,
    LABELS,
    LAYERS,
    STRATEGIES,
    TOKENS,
    Options,
    Study,
    make_study,
)
from tests.sentences import SAMPLE


def named(case: tuple[str, Options]) -> str:
    return " ".join([case[0], *(f"{name}={value}" for name, value in case[1].items())])


# ---- each option alone


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("case", STRATEGIES, ids=named)
def test_tokens(study: Study, case: tuple[str, Options], tokens: str) -> None:
    strategy, parameters = case
    if "densest" in parameters and "-" in tokens:
        pytest.skip("several tokens side by side are no features, which is refused")
    dataset = study.check(strategy, tokens=tokens, drop_short=True, **parameters)
    assert str(dataset.metadata.get("input_tokens", "final")) == tokens


@pytest.mark.parametrize("tokens", TOKENS)
def test_special_tokens_count_where_they_are_asked_for(study: Study, tokens: str) -> None:
    """In X, and in y."""
    found = study.check(LAYERS[0], tokens=tokens, special=True, drop_short=True, **LAYERS[1])
    without = study.check(LAYERS[0], tokens=tokens, drop_short=True, **LAYERS[1])
    assert np.array_equal(found.X, without.X) == (tokens == "final")
    if tokens != "all":
        study.check(FEATURE[0], target_tokens=tokens, special=True, drop_short=True, **FEATURE[1])


@pytest.mark.parametrize("tokens", ["final", "mean", "all"])
@pytest.mark.parametrize("target", ["final", "mean", "max", "last-2", "first-3"])
@pytest.mark.parametrize("case", [FEATURE, FEATURES], ids=named)
def test_target_tokens(study: Study, case: tuple[str, Options], target: str, tokens: str) -> None:
    strategy, parameters = case
    options = parameters | {"tokens": tokens, "drop_short": True}
    dataset = study.check(strategy, target_tokens=target, **options)
    assert str(dataset.metadata.get("target_tokens", "final")) == target
    if "-" in target:
        assert dataset.y.ndim == 2


def test_the_target_of_each_token_is_its_own(study: Study) -> None:
    default = study.check("embedding-to-feature", target_layer=0, target_feature=1, tokens="all", drop_short=True)
    asked = study.check(
        "embedding-to-feature", target_layer=0, target_feature=1, tokens="all", target_tokens="all", drop_short=True
    )
    np.testing.assert_array_equal(asked.y, default.y)
    assert len(np.unique(default.y[default.metadata["sentence_indices"] == 11])) > 1


def test_what_is_too_short_is_recorded(study: Study) -> None:
    """The tokens that count, not those that there are; and no record without the option."""
    few = [one.index for one in study.sentences if len(one.special) - sum(one.special) < 3]
    enough = [one.index for one in study.sentences if len(one.special) >= 3]
    assert set(few) & set(enough)
    dataset = study.check("embedding-to-feature", target_layer=0, target_feature=1, tokens="last-3", drop_short=True)
    assert dataset.metadata["short_sentence_indices"].tolist() == few
    assert "left_out_sentence_indices" not in dataset.metadata
    assert "short_sentence_indices" not in study.check("hidden-to-concept", layer=0).metadata


@pytest.mark.parametrize("special_first", [1, 2])
def test_the_first_tokens_are_special(tmp_path: Path, special_first: int) -> None:
    study = make_study(tmp_path, portions=1, special_first=special_first)
    for tokens in ("first-1", "mean", "all"):
        for special in (False, True):
            study.check("hidden-to-concept", layer=5, tokens=tokens, special=special, drop_short=True)


@pytest.mark.parametrize("tokens", ["final", "mean", "max", "last-2", "all"])
@pytest.mark.parametrize("combine", ["concat", "mean", "difference", "sum"])
@pytest.mark.parametrize("layers", [[1, 5, 0], [5, 1]], ids=str)
def test_combine(study: Study, layers: list[int], combine: str, tokens: str) -> None:
    if combine == "difference" and len(layers) != 2:
        pytest.skip("of exactly two, else refused")
    dataset = study.check("hidden-to-concept", layers=layers, combine=combine, tokens=tokens, drop_short=True)
    assert str(dataset.metadata.get("combine", "concat")) == combine
    assert dataset.metadata["input_layers"].tolist() == layers


@pytest.mark.parametrize("split", [{}, {"test_size": 0.25, "folds": 2, "seed": 3}], ids=["whole", "split"])
@pytest.mark.parametrize("where", CONDITIONS, ids=" ".join)
@pytest.mark.parametrize("case", [LAYERS, FEATURE], ids=named)
def test_where(study: Study, case: tuple[str, Options], where: list[str], split: Options) -> None:
    dataset = study.check(case[0], where=where, **case[1], **split)
    assert sorted(dataset.metadata["where"].tolist()) == sorted(where)


def test_where_in_other_words(study: Study) -> None:
    """A text, a sequence of texts, or a mapping: the same dataset."""
    expected = study.check("hidden-to-concept", layer=0, where=["n_tokens=4-6", "label=0,3"])
    for where in ({"n_tokens": "4-6", "label": [0, 3]}, {"n_tokens": (4, 5, 6), "label": "0,3"}):
        found = featurestore.build(study.store, "hidden-to-concept", layer=0, where=where)
        np.testing.assert_array_equal(found.X, expected.X)
    one = study.check("hidden-to-concept", layer=0, where="label=2")
    for same in (["label=2"], {"label": 2}, {"label": [2]}, {"label": np.array([2])}):
        found = featurestore.build(study.store, "hidden-to-concept", layer=0, where=same)
        np.testing.assert_array_equal(found.X, one.X)


def test_where_by_text(study: Study) -> None:
    text = study.sentences[4].text
    for where in (f"text={text}", {"text": text}, {"text": [text]}):
        found = featurestore.build(study.store, "hidden-to-concept", layer=0, where=where)
        assert found.metadata["sentence_indices"].tolist() == [4, 20]
    found = featurestore.build(study.store, "hidden-to-concept", layer=0, where="source=sentence_000009.npz")
    assert found.metadata["sentence_indices"].tolist() == [8]


@pytest.mark.parametrize("split", [{}, {"test_size": 0.25, "seed": 1}], ids=["whole", "split"])
def test_a_selection_of_the_store(study: Study, split: Options) -> None:
    """Its sentences alone: neither its order nor its other labels, tokens and layers."""
    ds = featurestore.open_store(study.store)
    part = ds.isel(sentence=(ds["n_tokens"] > 3).values).isel(sentence=slice(None, None, -1)).sel(token=[-1], layer=[0])
    expected = study.check("hidden-to-concept", layer=5, tokens="mean", where="n_tokens=4-7", drop_short=True, **split)
    found = featurestore.build(
        part.drop_vars("label"), "hidden-to-concept", layer=5, tokens="mean", drop_short=True, **split
    )
    for name in ("sentence_indices", *(["split"] if split else [])):
        np.testing.assert_array_equal(found.metadata[name], expected.metadata[name])
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.y, expected.y)


@pytest.mark.parametrize("split", [{}, {"test_size": 0.3, "folds": 2}], ids=["whole", "split"])
@pytest.mark.parametrize("table", LABELS)
def test_labels_from(study: Study, table: str, split: Options) -> None:
    dataset = study.check("hidden-to-concept", layer=1, labels_from=study.table(table), **split)
    assert str(dataset.metadata["labels_from"]) == table.partition(":")[2]
    assert "labels_digest" in dataset.metadata
    names = dataset.metadata["label_names"].tolist() if "kind" in table else None
    assert names == (["evasion", "lie", "truth"] if "kind" in table else None)
    assert str(study.folder.parent) not in str(dataset.metadata)


def test_sides_are_stratified_by_the_labels_in_use(study: Study) -> None:
    split = {"test_size": 1 / 3, "seed": 2}
    dataset = study.check("hidden-to-concept", layer=1, labels_from=study.table("labels.csv:other"), **split)
    test = dataset.metadata["split"] == "test"
    shares = [test[dataset.y == label].mean() for label in np.unique(dataset.y)]
    assert max(shares) - min(shares) < 0.2


def test_where_sees_the_labels_in_use(study: Study) -> None:
    options: Options = {"labels_from": study.table("labels.csv:other"), "where": "label=1,3"}
    assert set(study.check("hidden-to-concept", layer=1, **options).y.tolist()) == {1, 3}
    study.check(FEATURE[0], **FEATURE[1], **options)


@pytest.mark.parametrize("split", [{}, {"test_size": 0.25, "seed": 3}], ids=["whole", "split"])
@pytest.mark.parametrize(
    ("table", "classes"),
    [(None, "0=0,3=1"), (None, "1=7,2=7,3=2"), ("labels.csv:other", "3=0,1=1"), ("labels.csv:kind", "lie=1,truth=0")],
)
@pytest.mark.parametrize("case", [LAYERS, FEATURE], ids=named)
def test_classes(study: Study, case: tuple[str, Options], table: str | None, classes: str, split: Options) -> None:
    labels: Options = {"labels_from": study.table(table)} if table else {}
    dataset = study.check(case[0], classes=classes, **labels, **case[1], **split)
    assert sorted(str(dataset.metadata["classes"]).split(",")) == sorted(classes.split(","))
    pairs = (pair.split("=") for pair in classes.split(","))
    mapping: Any = {int(old) if old.isdigit() else old: int(new) for old, new in pairs}
    again = featurestore.build(study.store, case[0], classes=mapping, **labels, **case[1], **split)
    np.testing.assert_array_equal(again.X, dataset.X)
    np.testing.assert_array_equal(again.y, dataset.y)


@pytest.mark.parametrize("tokens", ["final", "mean", "max", "all"])
def test_the_densest_by_the_training_rows(study: Study, tokens: str) -> None:
    options: Options = {"layer": 1, "densest": 4, "test_size": 0.4, "seed": 1, "tokens": tokens, "drop_short": True}
    dataset = study.check("activation-to-concept", **options)
    assert dataset.metadata["input_features"].shape == (4,)


def test_what_is_not_finite(tmp_path: Path) -> None:
    """Only where it counts: never in padding, special tokens or layers that are not asked for."""
    study = make_study(tmp_path, portions=1)
    bad = spoiled(study.folder, tmp_path / "bad")
    where = {one.index: one for one in bad.sentences}
    assert np.isnan(where[2].hidden[1][0]).any()
    for tokens in ("final", "mean", "max", "first-2", "all"):
        for special in (False, True):
            for options in ({"layer": 1}, {"layers": [0, 1], "combine": "difference"}):
                asked: Options = options | {"tokens": tokens, "special": special, "drop_short": True}
                found = bad.check("hidden-to-concept", drop_nonfinite=True, **asked)
                if len(found.metadata["dropped_sentence_indices"]):
                    with pytest.raises(featurestore.NonFiniteError, match="drop_nonfinite"):
                        featurestore.build(bad.store, "hidden-to-concept", **asked)
        bad.check(FEATURE[0], **FEATURE[1], target_tokens=tokens if tokens != "all" else None, tokens=tokens,
                  drop_short=True, drop_nonfinite=True)  # fmt: skip


def spoiled(source: Path, folder: Path) -> Study:
    """Fill some tokens with NaN or infinity: the first, the last, one in the middle that is special, of one layer."""
    folder.mkdir()
    for index, path in enumerate(sorted(source.glob("*.npz"))):
        with np.load(path) as arrays:
            changed = dict(arrays)
        middle = len(changed["fragments"]) // 2
        if index in (2, 4, 10, 26):  # at the beginning; of 4 special
            changed["hidden_states"][1, 0, 2] = np.nan
        if index in (3, 9):  # at the end, of 9 special
            changed["hidden_states"][1, -1, 0] = -np.inf
        if index in (6, 27):  # in the middle, of 6 special
            changed["hidden_states"][1, middle, 1] = np.inf
            changed["activations"][2, middle, 2] = np.nan
        if index == 13:  # one cancels the other
            changed["hidden_states"][:2, 0, 1] = np.inf
        np.savez(folder / path.name, **changed)
    featurestore.ingest(folder, folder.with_suffix(".zarr"))
    return Study(folder.with_suffix(".zarr"), folder)


# ---- the real sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Study:
    store = tmp_path_factory.mktemp("sample") / "dishonesty.zarr"
    featurestore.ingest(SAMPLE, store)
    return Study(store, SAMPLE)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("hidden-to-concept", {"layers": "10,15", "combine": "difference", "tokens": "mean", "test_size": 0.25}),
        ("hidden-to-concept", {"layers": [5, 10, 15], "combine": "mean", "tokens": "all", "where": "label=0,3"}),
        ("embedding-to-concept", {"tokens": "max", "classes": "0=0,3=1", "folds": 4}),
        ("activation-to-concept", {"layer": 15, "tokens": "max", "densest": 50, "test_size": 0.25}),
        ("hidden-to-concept", {"layer": 12, "tokens": "last-11", "drop_short": True, "where": ["n_tokens=9-13"]}),
        ("hidden-to-feature", {"target_layer": 15, "target_feature": 61, "target_tokens": "max", "tokens": "first-3"}),
        ("embedding-to-feature", {"target_layer": 15, "target_feature": 61, "tokens": "all", "folds": 5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_real_sample(sample: Study, strategy: str, options: Options) -> None:
    sample.check(strategy, **options)
