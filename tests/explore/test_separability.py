"""How well labels can be told apart: a probe without leakage, its baselines, and the Fisher ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

import featurestore
from featurestore.explore.findings import exceeds_without_model, of_baselines, without_model
from featurestore.splits.options import SplitOptions
from featurestore.splits.split import split
from tests.explore.planted import LAYERS, planted_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_store(tmp_path_factory.mktemp("planted"))[0]


def by_hand(X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], folds: list[Any], **options: Any) -> float:
    """The same probe, step by step, scored by scikit-learn."""
    options = {"C": 0.01, "tol": 1e-3} | options
    scores = []
    for fold in folds:
        guessed = np.empty_like(y)
        for number in range(2):
            test = fold == number
            scaler = StandardScaler().fit(X[~test])
            model = LogisticRegression(class_weight="balanced", max_iter=2000, **options)
            guessed[test] = model.fit(scaler.transform(X[~test]), y[~test]).predict(scaler.transform(X[test]))
        scores.append(balanced_accuracy_score(y, guessed))
    return float(np.mean(scores))


def test_the_layer_that_knows_the_label_is_found(store: Path) -> None:
    ds = featurestore.open_store(store).isel(sentence=slice(0, 19))  # a label is rarer than the others
    told = []
    found = featurestore.separability(ds, folds=2, repeats=2, seed=3, progress=lambda *step: told.append(step))
    assert found.accuracy.sel(layer=5) == 1
    assert found.accuracy_error.sel(layer=5) == 0
    assert float(found.chance) == 0.25
    assert found.attrs["sentences"] == 19
    assert told[-1] == ("probing", 3, 3)
    folds = [split(ds, SplitOptions(folds=2, seed=seed)).fold for seed in (3, 4)]
    for layer in LAYERS:
        X = ds.hidden_states.sel(layer=layer, token=-1).values.astype("f4")
        assert found.accuracy.sel(layer=layer) == pytest.approx(by_hand(X, ds.label.values, folds))
    lengths = np.array([[len(text), n] for text, n in zip(ds.text.values, ds.n_tokens.values, strict=True)], "f8")
    assert found["length"] == pytest.approx(by_hand(lengths, ds.label.values, folds, C=1, tol=1e-4))
    assert (found.shuffled < 0.6).all()
    assert found.text < 0.6


@pytest.mark.parametrize("told_by", ["characters", "tokens", "nothing"])
def test_a_label_that_the_length_alone_tells(store: Path, told_by: str) -> None:
    ds = featurestore.open_store(store).sel(layer=[0])
    labels = np.arange(20) % 2
    long = labels if told_by == "characters" else np.zeros(20, int)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"abcdefghijklm"], 30 + 30 * one)) for one in long]  # each a word of its own
    n_tokens = 7 + (labels if told_by == "tokens" else np.zeros(20, int))
    coords = {"label": labels, "text": texts, "n_tokens": n_tokens}
    ds = ds.assign_coords({name: ("sentence", values) for name, values in coords.items()})
    found = featurestore.separability(ds, folds=5, repeats=2)
    assert found["length"] == (0.5 if told_by == "nothing" else 1)
    assert found.text <= 0.6
    said = "".join(of_baselines(found))
    perfect = found.assign(accuracy=("layer", [1.0]), accuracy_error=("layer", [0.0]))
    if told_by == "nothing":
        assert not said
        assert exceeds_without_model(perfect)
    else:
        assert "without the model, the length alone, reaches 100 ± 0 %; chance is 50 %" in said
        assert not exceeds_without_model(perfect)


def test_the_standard_error_of_the_length(store: Path) -> None:
    """Of one round: the recalls of four labels of five sentences each, no two of which are nearly the same."""
    ds = featurestore.open_store(store).sel(layer=[0])
    ds = ds.assign_coords(n_tokens=("sentence", np.random.default_rng(0).integers(5, 9, 20)))
    found = featurestore.separability(ds, folds=2, repeats=1)
    y, fold = ds.label.values, split(ds, SplitOptions(folds=2)).fold
    X = np.array([[len(text), n] for text, n in zip(ds.text.values, ds.n_tokens.values, strict=True)], "f8")
    right = np.zeros(20)
    for number in range(2):
        test = fold == number
        scaler = StandardScaler().fit(X[~test])
        model = LogisticRegression(class_weight="balanced").fit(scaler.transform(X[~test]), y[~test])
        right[test] = model.predict(scaler.transform(X[test])) == y[test]
    assert found["length"] == pytest.approx(right.mean())
    assert 0 < right.mean() < 1
    variances = [right[y == label].var() / 5 for label in range(4)]
    assert found.length_error == pytest.approx(np.sqrt(sum(variances) / 16 * 20 / 19))


def test_the_standard_error_is_that_over_sentences(store: Path) -> None:
    ds = featurestore.open_store(store)
    found = featurestore.separability(ds, folds=2, repeats=1)
    X, y, fold = (ds.hidden_states.sel(layer=0, token=-1).values.astype("f4"), ds.label.values,
                  split(ds, SplitOptions(folds=2)).fold)  # fmt: skip
    right = np.zeros(len(y))
    for number in range(2):
        test = fold == number
        scaler = StandardScaler().fit(X[~test])
        model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000, tol=1e-3)
        right[test] = model.fit(scaler.transform(X[~test]), y[~test]).predict(scaler.transform(X[test])) == y[test]
    variances = [right[y == label].var() / 5 for label in range(4)]
    assert found.accuracy_error.sel(layer=0) == pytest.approx(np.sqrt(sum(variances) / 16 * 20 / 19))


def test_near_duplicates_are_never_on_both_sides(tmp_path: Path) -> None:
    """Each sentence is there twice, with the same hidden states and a label drawn at random: nothing can be learnt."""
    store, _ = planted_store(tmp_path)
    ds = featurestore.open_store(store)
    rng = np.random.default_rng(0)
    labels = rng.permutation([0, 1] * 10)
    ds = ds.sel(layer=[5])
    noise = rng.standard_normal((20, ds.sizes["token"], 1, ds.sizes["hidden"])).astype("f4")
    one = ds.assign_coords(label=("sentence", labels)).assign(hidden_states=(ds.hidden_states.dims, noise))
    other = one.assign_coords(sentence=one.sentence + 100, text=one.text + "!")
    found = featurestore.separability(xr.concat([one, other], "sentence"), folds=4, repeats=1)
    assert (found.accuracy < 0.8).all()
    assert found.text < 0.8
    alone = featurestore.separability(one, folds=4, repeats=1)
    assert (found.accuracy_error > 0.7 * alone.accuracy_error).all()  # twice the sentences, but not twice as sure


def test_fisher_ratio(store: Path) -> None:
    ds = featurestore.open_store(store)
    found = featurestore.fisher_ratio(ds)
    xr.testing.assert_identical(featurestore.fisher_ratio(featurestore.open_store(store, chunks={})), found)
    y = ds.label.values
    for layer in LAYERS:
        X = ds.hidden_states.sel(layer=layer, token=-1).values.astype("f8")
        X = X / X.std(axis=0)
        between = sum(5 * ((X[y == label].mean(axis=0) - X.mean(axis=0)) ** 2).sum() for label in range(4)) / 3
        within = sum(((X[y == label] - X[y == label].mean(axis=0)) ** 2).sum() for label in range(4)) / 16
        assert found.ratio.sel(layer=layer) == pytest.approx(between / within, rel=1e-4)
    assert found.ratio.sel(layer=5) > found.shuffled.sel(layer=5)
    assert (abs(found.shuffled - 1.5) < 1).all()


def test_some_of_many_sentences_are_drawn(store: Path) -> None:
    ds = featurestore.open_store(store)
    assert featurestore.fisher_ratio(ds, most=12).attrs["sentences"] == 12
    xr.testing.assert_identical(featurestore.fisher_ratio(ds, most=12), featurestore.fisher_ratio(ds, most=12))


def test_one_layer_and_one_token_can_be_selected(store: Path) -> None:
    ds = featurestore.open_store(store)
    found = featurestore.fisher_ratio(ds.sel(layer=5, token=-1))
    assert found.layer.values.tolist() == [5]
    assert found.ratio.item() == featurestore.fisher_ratio(ds).ratio.sel(layer=5).item()


def test_numbers_that_are_too_small_are_refused(store: Path) -> None:
    ds = featurestore.open_store(store)
    measures: list[Any] = [featurestore.separability, featurestore.fisher_ratio]
    separability, fisher_ratio = measures
    for measure, option, value, lowest in (
        (separability, "repeats", 0, 1), (separability, "most", 0, 1),
        (fisher_ratio, "permutations", -1, 0), (fisher_ratio, "most", -3, 1),
        (fisher_ratio, "seed", -1, 0),
    ):  # fmt: skip
        words = f"{option}=: expected at least {lowest}, found {value}"
        with pytest.raises(featurestore.ParameterError, match=words):
            measure(ds, **{option: value})
    for other in (str(store), ds.hidden_states):
        for measure in measures:
            with pytest.raises(featurestore.ParameterError, match="expected a dataset as of open_store"):
                measure(other)


@pytest.mark.parametrize("n_words", [0, 1])
def test_texts_without_words_say_nothing(store: Path, n_words: int) -> None:
    """With one, there is a fold that has none to learn from."""
    ds = featurestore.open_store(store).sel(layer=[5])
    texts = ["word" if row < n_words else chr(0x2190 + row) * 9 for row in range(20)]
    found = featurestore.separability(ds.assign_coords(text=("sentence", texts)), folds=2, repeats=1)
    assert np.isnan([found.text, found.text_error]).all()
    assert "without the model, the length alone, reaches" in without_model(found)
    assert found.accuracy.item() == 1


def test_what_cannot_be_told_apart_is_refused(store: Path) -> None:
    ds = featurestore.open_store(store)
    for lacking, words in (
        (ds.drop_vars("hidden_states"), "no hidden states"),
        (ds.sel(sentence=ds.label == 1), "but one label"),
        (ds.assign_coords(has_label=("sentence", np.zeros(20, bool))), "no labels"),
        (ds.assign_coords(n_nonfinite=("sentence", np.ones(20))), "values are all finite"),
        (ds.sel(token=[-2]), "no final token"),
        (ds.drop_vars("label"), "no coordinate label"),
        (ds.where(ds.label > 1), "as a mask"),
    ):
        with pytest.raises(featurestore.SelectionError, match=words):
            featurestore.separability(lacking)
        with pytest.raises(featurestore.SelectionError, match=words):
            featurestore.fisher_ratio(lacking)
    with pytest.raises(featurestore.SelectionError, match="no coordinate n_tokens"):
        featurestore.separability(ds.drop_vars("n_tokens"))
    with pytest.raises(featurestore.SelectionError, match="too few"):
        featurestore.separability(ds.isel(sentence=slice(0, 3)))
