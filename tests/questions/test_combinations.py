"""Options together: any combination, what stays on one side, and the controls beside a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore
from tests.questions.recalculated import Expected
from tests.questions.study import CONDITIONS, FEATURE, LABELS, STRATEGIES, TOKENS, TWINS, Options, Study, sides_of

# ---- sides


def test_tokens_of_a_sentence_and_of_its_twins_are_on_one_side(study: Study) -> None:
    for seed in range(4):
        dataset = featurestore.build(
            study.store, "embedding-to-feature", target_layer=0, target_feature=0, tokens="all", special=True,
            test_size=0.25, folds=3, seed=seed,
        )  # fmt: skip
        sides = sides_of(dataset)
        assert len(dataset.y) == sum(one.n_tokens for one in study.sentences)
        assert all(sides[twin] == sides[other] for twin, other in TWINS.items())
        assert dataset.metadata["near_duplicates_across"] == 0


def test_groups_stay_together(study: Study) -> None:
    options: Options = {"folds": 3, "group_by": "n_tokens", "seed": 1}
    dataset = study.check("hidden-to-concept", layer=1, tokens="all", where="label=0,3", drop_short=True, **options)
    lengths = {one.index: one.n_tokens for one in study.sentences}
    found = {(lengths[index], fold) for index, (_, fold) in sides_of(dataset).items()}
    assert len({length for length, _ in found}) == len(found)


# ---- anything together

SPLITS: list[Options] = [{}, {"test_size": 0.25}, {"folds": 3, "seed": 1}, {"test_size": 0.3, "folds": 2, "seed": 3}]


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, Options]:
    """A strategy and options that make sense together."""
    strategy, parameters = draw(st.sampled_from(STRATEGIES))
    options: Options = dict(parameters)
    table = draw(st.sampled_from([None, None, *LABELS]))
    classes = {None: "0=0,3=1", "labels.csv:kind": "truth=0,lie=1"}.get(table, "1=4,2=0")
    tokens = draw(st.sampled_from([one for one in TOKENS if "densest" not in options or "-" not in one]))
    targets = [None, "final", "mean", "max", "last-2", "first-3", *(["all"] if tokens == "all" else [])]
    several = ["mean", "sum", "difference"]
    choices: dict[str, list[Any]] = {
        "tokens": [tokens],
        "target_tokens": targets if "target_layer" in options else [None],
        "special": [None, False, True],
        "drop_short": [True, True, None],
        "combine": [None, "concat", *({"5,0": several, "[1, 5, 0]": several[:2]}.get(str(options.get("layers")), []))],
        "where": [None, *CONDITIONS],
        "labels_from": [table],
        "classes": [None, classes],
        "normalize": [None, "standardize", "minmax", "none"],
        "control": [None, "shuffled-labels", "random-columns", "text"],
    }
    drawn = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    options |= {name: value for name, value in drawn.items() if value is not None}
    return strategy, options | draw(st.sampled_from(SPLITS))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=questions())
def test_any_combination(study: Study, question: tuple[str, Options]) -> None:
    strategy, options = question
    if "labels_from" in options:
        options["labels_from"] = study.table(options["labels_from"])
    control = options.pop("control", None)
    expected = study.expected(strategy, **options)
    sides = study.sides(**options)
    if (expected.short and "drop_short" not in options) or not any(sides[i][0] == "train" for i in expected.sentences):
        with pytest.raises(featurestore.FeatureStoreError) as caught:
            featurestore.build(study.store, strategy, **options)
        assert "\n" not in str(caught.value)
        return
    real = study.check(strategy, **options)
    if control:
        check_control(study, expected, real, strategy, control, options)


def check_control(
    study: Study, expected: Expected, real: featurestore.Dataset, strategy: str, control: str, options: Options
) -> None:
    """The same rows and sides; y, or X, is that of the real dataset, and the other one is not."""
    found = featurestore.build(study.store, strategy, control=control, **options)
    assert str(found.metadata["control"]) == control
    for name in ("sentence_indices", "token", "split", "fold", "short_sentence_indices", "left_out_sentence_indices"):
        assert (name in found.metadata) == (name in real.metadata)
        np.testing.assert_array_equal(found.metadata.get(name, ()), real.metadata.get(name, ()))
    assert found.metadata["fingerprint"] != real.metadata["fingerprint"]
    assert np.isfinite(found.X).all()
    if control != "shuffled-labels":
        np.testing.assert_array_equal(found.y, real.y, strict=True)
        assert found.X.shape[0] == real.X.shape[0]
        assert control == "text" or found.X.shape == real.X.shape
        return
    np.testing.assert_array_equal(found.X, real.X, strict=True)
    own = options["tokens"] == "all" and options.get("target_tokens", "all") == "all"
    by_row = own and not strategy.endswith("concept")
    sides = [study.sides(**options)[index] for index in expected.sentences]
    first = [i for i, index in enumerate(expected.sentences) if by_row or index not in expected.sentences[:i]]
    for side in set(sides):
        rows = [i for i in first if sides[i] == side]
        assert sorted(found.y[rows].tolist()) == sorted(real.y[rows].tolist())
    if not by_row:  # each token of a sentence has what the sentence has
        of = dict(zip([expected.sentences[i] for i in first], found.y[first].tolist(), strict=True))
        assert found.y.tolist() == [of[index] for index in expected.sentences]


# ---- controls


def control_of(study: Study, control: str, strategy: str = "hidden-to-concept", **options: Any) -> featurestore.Dataset:
    return featurestore.build(study.store, strategy, control=control, normalize="none", **options)


@pytest.mark.parametrize("tokens", ["final", "all"])
@pytest.mark.parametrize("control", ["shuffled-labels", "random-columns", "text"])
def test_a_control_is_by_seed(study: Study, control: str, tokens: str) -> None:
    """Without a split, too; by default it is 0."""
    options: Options = {"layer": 1, "tokens": tokens, "drop_short": True}
    seeds: list[Options] = [{}, {"seed": 0}, {"seed": 1}]
    default, zero, one = (control_of(study, control, **options, **seed) for seed in seeds)
    np.testing.assert_array_equal(zero.X, default.X)
    np.testing.assert_array_equal(zero.y, default.y)
    if control != "text":
        assert not (np.array_equal(one.X, default.X) and np.array_equal(one.y, default.y))


def test_labels_are_shuffled_at_all(study: Study) -> None:
    real = featurestore.build(study.store, "hidden-to-concept", layer=1)
    moved = [(control_of(study, "shuffled-labels", layer=1, seed=seed).y != real.y).mean() for seed in range(10)]
    assert 0.6 < np.mean(moved) < 0.9  # of four labels of equal size, three quarters


def test_own_targets_of_tokens_are_shuffled_by_rows(study: Study) -> None:
    options: Options = FEATURE[1] | {"tokens": "all", "special": True}
    real = featurestore.build(study.store, FEATURE[0], **options)
    found = control_of(study, "shuffled-labels", FEATURE[0], **options)
    assert sorted(found.y.tolist()) == sorted(real.y.tolist())
    assert (found.y != real.y).any()


def test_targets_side_by_side_are_shuffled_together(study: Study) -> None:
    options: Options = {"target_layer": 1, "target_features": "0-9", "folds": 2}
    real = featurestore.build(study.store, "hidden-to-features", **options)
    found = control_of(study, "shuffled-labels", "hidden-to-features", **options)
    for fold in (0, 1):
        rows = real.metadata["fold"] == fold
        assert sorted(found.y[rows].tolist()) == sorted(real.y[rows].tolist())


def test_random_columns_are_standard_normal(study: Study) -> None:
    from scipy import stats

    X = control_of(study, "random-columns", layers="0-1,5", tokens="all", special=True).X
    assert len(np.unique(X)) > 0.99 * X.size
    assert stats.kstest(X.ravel(), "norm").pvalue > 0.001
    scaled = featurestore.build(study.store, "hidden-to-concept", layer=1, control="random-columns", test_size=0.25)
    training = scaled.metadata["split"] == "train"
    np.testing.assert_allclose(scaled.X[training].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.X[training].std(axis=0), 1, atol=1e-6)


def test_the_text_is_all_that_the_control_knows(study: Study) -> None:
    """Equal texts have equal rows, whatever the model made of them, and other texts others; a column is the length."""
    dataset = control_of(study, "text", "embedding-to-feature", target_layer=0, target_feature=0)
    rows = dict(zip(dataset.metadata["sentence_indices"].tolist(), dataset.X, strict=True))
    texts = {one.index: one.text for one in study.sentences}
    for one, other in [(4, 20), (12, 33)]:
        np.testing.assert_array_equal(rows[one], rows[other])
    assert len({row.tobytes() for row in rows.values()}) == len(set(texts.values()))
    lengths = [len(texts[index]) for index in rows]
    assert any(np.array_equal(column, lengths) for column in dataset.X.T)
    for other_x in ({"layer": 0}, {"layers": "1,5", "tokens": "last-2", "drop_short": True}):
        again = control_of(study, "text", **other_x)
        for index, row in zip(again.metadata["sentence_indices"].tolist(), again.X, strict=True):
            np.testing.assert_array_equal(row, rows[index])


def test_the_text_of_a_token_is_its_fragment(study: Study) -> None:
    """Of the final token, that is the sentence."""
    options: Options = {"target_layer": 0, "target_feature": 0}
    whole = control_of(study, "text", "embedding-to-feature", **options)
    dataset = control_of(study, "text", "embedding-to-feature", tokens="all", special=True, **options)
    final = dataset.metadata["token"] == -1
    np.testing.assert_array_equal(dataset.X[final], whole.X)
    fragments = [fragment for one in study.sentences for fragment in one.fragments]
    rows: dict[str, bytes] = {}
    for fragment, row in zip(fragments, dataset.X, strict=True):
        assert rows.setdefault(fragment, row.tobytes()) == row.tobytes()
    assert len(set(rows.values())) == len(rows)
