"""Strategies of all kinds with options of questions: own ones that leave the dim token, and every registered one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

import featurestore
from featurestore.strategies import registry
from featurestore.strategies.registry import Selection, strategy
from tests.questions.recalculated import Sentence
from tests.questions.study import Options, Study, sides_of


def squared(one: Sentence) -> Any:
    """X of the own strategies, (T, d), by numpy."""
    return np.hstack([one.hidden[5].astype(np.float32) ** 2, one.embeddings.astype(np.float32) ** 2])


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

        def blocks(ds: xr.Dataset) -> list[xr.DataArray]:
            return [ds["hidden_states"].sel(layer=5).astype("f4") ** 2, ds["embeddings"].astype("f4") ** 2]

        @strategy("squares-to-length")
        def squares_to_length(ds: xr.Dataset) -> Selection:
            """Predict the length, of no token, from squares, of each."""
            return Selection(X=blocks(ds), y=ds["n_tokens"])

        @strategy("squares-to-sum")
        def squares_to_sum(ds: xr.Dataset) -> Selection:
            """Predict what all features of a token come to, with dims and sentences in other orders."""
            backwards = ds.isel(sentence=slice(None, None, -1))
            X = [block.transpose("token", "hidden", "sentence") for block in blocks(ds)]
            return Selection(X=X, y=backwards["activations"].sel(layer=1).max("feature").transpose("token", "sentence"))

        yield


TOKENS: dict[str, Any] = {
    "final": lambda values: values[-1],
    "mean": lambda values: values.astype(np.float64).mean(0),
    "max": lambda values: values.max(0),
    "first-2": lambda values: values[:2].ravel(),
    "last-1": lambda values: values[-1].ravel(),
}


@pytest.mark.parametrize("combine", [None, "difference"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_own_tokens(study: Study, tokens: str, combine: str | None) -> None:
    options: Options = {"special": True, "where": "n_tokens=2-7", "normalize": "none", "test_size": 0.25}
    dataset = featurestore.build(study.store, "squares-to-length", tokens=tokens, combine=combine, **options)
    kept = [one for one in study.sentences if one.n_tokens > 1]
    X = []
    for one in kept:
        values = squared(one).astype(np.float64)
        X.append(TOKENS[tokens](values[:, 6:] - values[:, :6] if combine else values))
    np.testing.assert_array_equal(dataset.X, np.array(X).astype(np.float32))
    assert dataset.y.tolist() == [one.n_tokens for one in kept]
    sides = study.sides(test_size=0.25)
    assert sides_of(dataset) == {one.index: sides[one.index] for one in kept}


@pytest.mark.parametrize("target", [None, "max", "mean"])
@pytest.mark.parametrize("tokens", ["final", "max", "all"])
def test_own_targets(study: Study, tokens: str, target: str | None) -> None:
    options: Options = {"tokens": tokens, "special": True, "normalize": "none", "target_tokens": target}
    dataset = featurestore.build(study.store, "squares-to-sum", **options)
    X: list[Any] = []
    y: list[Any] = []
    for one in study.sentences:
        values, targets = squared(one), one.activations[1].max(1)
        rows = values if tokens == "all" else TOKENS[tokens](values)[None]
        X += [*rows]
        own = targets if tokens == "all" else targets[-1:]
        y += [*(own if target is None else [TOKENS[target](targets)] * len(rows))]
    np.testing.assert_array_equal(dataset.X, np.array(X).astype(np.float32))
    np.testing.assert_array_equal(dataset.y, np.array(y).astype(np.float32))


def test_own_labels_and_classes(study: Study) -> None:
    """What leaves out sentences, whatever y is."""
    options: Options = {"labels_from": study.table("labels.csv:other"), "classes": "1=0,3=1", "normalize": "none"}
    dataset = featurestore.build(study.store, "squares-to-length", **options)
    expected = study.expected("hidden-to-concept", layer=1, **options)
    assert dataset.metadata["sentence_indices"].tolist() == expected.sentences
    lengths = {one.index: one.n_tokens for one in study.sentences}
    assert dataset.y.tolist() == [lengths[index] for index in expected.sentences]


@pytest.mark.parametrize("control", ["shuffled-labels", "random-columns", "text"])
@pytest.mark.parametrize("name", ["squares-to-length", "squares-to-sum"])
def test_own_controls(study: Study, name: str, control: str) -> None:
    options: Options = {"tokens": "all", "special": True, "folds": 3}
    real, found = (featurestore.build(study.store, name, control=one, **options) for one in (None, control))
    for about in ("sentence_indices", "token", "split", "fold"):
        np.testing.assert_array_equal(found.metadata[about], real.metadata[about])
    if control == "shuffled-labels":
        np.testing.assert_array_equal(found.X, real.X)
        assert (found.y != real.y).any()
    else:
        np.testing.assert_array_equal(found.y, real.y)
        assert len(found.X) == len(real.X)


# ---- every registered strategy

PARAMETERS: Options = {
    "layer": 1, "target_layer": 5, "target_feature": 2, "target_features": "2,4", "densest": 5,
}  # fmt: skip
QUESTIONS: list[Options] = [
    *({"tokens": tokens} for tokens in ("mean", "max", "all")),
    {"where": ["label=0,3", "n_tokens=2-5"]},
    {"classes": "0=0,3=1"},
    *({"control": control} for control in ("shuffled-labels", "random-columns", "text")),
]


@pytest.mark.parametrize("name", sorted(featurestore.list_strategies()))
def test_every_strategy_takes_every_question(study: Study, name: str) -> None:
    known = featurestore.list_strategies()[name]
    parameters = {option.name: PARAMETERS[option.name] for option in known.options if option.name in PARAMETERS}
    plain = featurestore.build(study.store, name, drop_short=True, **parameters)
    fingerprints = {str(plain.metadata["fingerprint"])}
    questions = [question for question in QUESTIONS if not (known.sequences and "tokens" in question)]
    for question in questions:
        options: Options = {"drop_short": True, "test_size": 0.25, "seed": 3} | question
        dataset = featurestore.build(study.store, name, **parameters, **options)
        assert dataset.X.dtype == np.float32
        assert np.isfinite(dataset.X).all()
        assert dataset.y.dtype in (np.int64, np.float32)
        n = dataset.metadata["n_samples"]
        assert len(dataset.X) == len(dataset.y) == len(dataset.metadata["sentence_indices"]) == n
        assert sides_of(dataset).items() <= study.sides(**options).items()
        assert set(dataset.metadata["sentence_indices"].tolist()) <= set(plain.metadata["sentence_indices"].tolist())
        fingerprints.add(str(dataset.metadata["fingerprint"]))
    assert len(fingerprints) == 1 + len(questions)


def test_datasets_read_back(study: Study, tmp_path: Any) -> None:
    options: Options = {
        "tokens": "all", "combine": "difference", "where": "n_tokens=2-7", "classes": "lie=0,truth=1", "folds": 2,
        "labels_from": study.table("labels.csv:kind"), "control": "shuffled-labels", "drop_short": True,
    }  # fmt: skip
    built = featurestore.build(study.store, "hidden-to-concept", layers="0,5", output=tmp_path / "x.npz", **options)
    found = featurestore.load_dataset(tmp_path / "x.npz")
    assert found.metadata.keys() == built.metadata.keys()
    for name, value in built.metadata.items():
        np.testing.assert_array_equal(found.metadata[name], value)
    np.testing.assert_array_equal(found.X, built.X)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)
        assert arrays["meta_token"].shape == arrays["y"].shape
