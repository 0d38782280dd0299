"""Measures of features, compared with scipy's, feature by feature on dense arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from featurestore.measures.active import Active
from featurestore.measures.measured import best_first, measured
from featurestore.measures.significance import p_values, q_values

Array = np.ndarray[Any, Any]
AGAINST_LABEL = ("pearson", "spearman", "auc", "monotonic", "p")


def found(values: Array, labels: Array, **options: Any) -> dict[str, Array]:
    labels = labels.astype(np.float64)
    kinds = np.unique(labels[~np.isnan(labels)])
    return measured(Active.of(values), labels, kinds, **{"permutations": 0, "seed": 0} | options)


def expected(column: Array, label: Array) -> dict[str, Any]:
    """All about one feature, (sentence,) float64, in sentences that have a label."""
    kinds = np.unique(label)
    means = np.array([column[label == kind].mean() for kind in kinds])
    about = {"active": np.count_nonzero(column), "mean_by_label": means}
    if len(kinds) < 2 or np.ptp(column) == 0:
        return about | dict.fromkeys(AGAINST_LABEL, np.nan)
    low, high = column[label == kinds[0]], column[label == kinds[-1]]
    rising = [np.sign(means[j] - means[i]) for j in range(len(kinds)) for i in range(j)]
    return about | {
        "pearson": stats.pearsonr(column, label).statistic,
        "p": stats.pearsonr(column, label).pvalue if len(column) > 2 else np.nan,
        "spearman": stats.spearmanr(column, label).statistic,
        "auc": stats.mannwhitneyu(high, low, method="asymptotic").statistic / (len(low) * len(high)),
        "monotonic": np.mean(rising),
    }


@pytest.mark.filterwarnings("ignore:An input array is nearly constant")
@settings(max_examples=30)
@given(data=st.data(), n=st.integers(3, 12), dtype=st.sampled_from(["f2", "f4"]))
def test_few_sentences(data: st.DataObject, n: int, dtype: str) -> None:
    """With many ties, negative values, and sentences that have no label."""
    values = data.draw(arrays.arrays(np.int8, (n, 3), elements=st.integers(-2, 3))).astype(dtype) / 4
    labels = data.draw(arrays.arrays(np.int8, n, elements=st.integers(-1, 2)))
    known = labels >= 0
    result = found(values, np.where(known, labels, np.nan))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(result["density"], (values != 0).mean(axis=0))
    np.testing.assert_allclose(result["mean"], exact.mean(axis=0), atol=1e-15)
    np.testing.assert_array_equal(result["max"], exact.max(axis=0))
    if known.any():
        for feature in range(3):
            for name, value in expected(exact[known, feature], labels[known]).items():
                np.testing.assert_allclose(result[name][feature], value, atol=1e-9, err_msg=name)


def test_sparse_dense_and_far_from_zero() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 500)
    values = rng.gamma(2, 5, (500, 40)).astype(np.float32) + (rng.random(40) < 0.3) * labels[:, None]
    values[rng.random(values.shape) < rng.choice([0, 0.5, 0.995], 40)] = 0
    values[:, :5] = 1e6 + labels[:, None] * np.arange(5) + rng.integers(0, 9, (500, 5))
    result = found(values, labels)
    for feature in range(40):
        for name, value in expected(values[:, feature].astype(np.float64), labels).items():
            np.testing.assert_allclose(result[name][feature], value, rtol=1e-7, atol=1e-12, err_msg=name)


def test_nothing_to_compare() -> None:
    values = np.array([[1, 2, 0], [3, 2, 0], [0, 2, 0]], np.float32)
    for labels in ([1, 1, 1], [np.nan] * 3, [0, np.nan, np.nan], [0, 1, 2]):
        result = found(values, np.array(labels), permutations=2)
        constant = slice(1, None) if len(set(labels)) == 3 and labels[1] == 1 else slice(None)
        assert all(np.isnan(result[name][constant]).all() for name in AGAINST_LABEL)
        assert np.isnan(result["chance"]).all() == (constant == slice(None))
        np.testing.assert_allclose(result["density"], [2 / 3, 1, 0])
    empty = found(np.zeros((0, 2), np.float32), np.zeros(0), permutations=1)
    assert all(np.isnan(empty[name]).all() for name in ("density", "mean", "max", *AGAINST_LABEL))


@pytest.mark.parametrize("n", [3, 4, 5, 10, 57, 1000, 100_000, 1_000_000, 1_000_001, 10**8])
def test_p_is_that_of_students_t(n: int) -> None:
    r = np.concatenate([np.linspace(-1, 1, 41), 10.0 ** np.arange(-9, 0), 1 - 10.0 ** np.arange(-9, 0), [np.nan]])
    with np.errstate(divide="ignore"):
        p = 2 * stats.t.sf(np.abs(r) * np.sqrt((n - 2) / ((1 - r) * (1 + r))), n - 2)
    np.testing.assert_allclose(p_values(r, n), p, rtol=1e-7, atol=1e-300)


def test_q_is_that_of_benjamini_and_hochberg() -> None:
    p = np.random.default_rng(0).random((7, 30)) ** 3
    p[2, 5:9] = p[0, 0]
    q = q_values(np.where(p < 0.9, p, np.nan))
    np.testing.assert_allclose(q[p < 0.9], stats.false_discovery_control(p[p < 0.9]))
    assert np.isnan(q[p >= 0.9]).all()


def test_the_strongest_by_chance() -> None:
    """The same permutations of the labels, and numpy's correlations of all features."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2, 5, (60, 25)) * (rng.random((60, 25)) < 0.4)
    values[:, 7], values[:, 8] = 0, 2.5
    labels = rng.integers(0, 4, 60)
    permuting = np.random.default_rng(5)
    live = np.ptp(values, axis=0) > 0
    strongest = [np.abs(np.corrcoef(values[:, live].T, permuting.permutation(labels))[-1, :-1]).max() for _ in range(6)]
    np.testing.assert_allclose(found(values, labels, permutations=6, seed=5)["chance"], strongest)


def test_the_best_first() -> None:
    scores = np.array([[0.5, np.nan, 0.7], [0.7 - 1e-15, np.nan, 0.9]])
    assert best_first(scores).tolist() == [5, 2, 3, 0]
    assert best_first(scores, 2).tolist() == [5, 2]
    assert best_first(scores, ties=np.array([[0, 1, 0.1], [0.2, np.nan, 0]])).tolist() == [5, 3, 2, 0]
