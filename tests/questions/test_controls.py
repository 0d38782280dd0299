"""Controls, recalculated from their definitions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.questions.controls import random_columns, shuffled, text_columns

few = settings(max_examples=60)
seeds = st.integers(0, 2**256 - 1)


@st.composite
def units(draw: st.DrawFn) -> tuple[list[int], list[int], list[Any]]:
    """Sentences, with the side and the value of each."""
    ids = draw(st.lists(st.integers(0, 10**7), min_size=1, max_size=30, unique=True).map(sorted))
    sides = draw(st.lists(st.integers(-1, 2), min_size=len(ids), max_size=len(ids)))
    return ids, sides, draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))


@few
@given(units(), seeds, st.booleans())
def test_rows_are_permuted_within_their_side(
    drawn: tuple[list[int], list[int], list[int]], seed: int, wide: bool
) -> None:
    _, sides, values = drawn
    y = np.array(values, np.float32)
    y = np.column_stack([y, np.arange(len(y))]) if wide else y
    found = shuffled(y, np.array(sides), seed)
    assert (found.dtype, found.shape) == (y.dtype, y.shape)
    for side in set(sides):
        own = np.array(sides) == side
        assert Counter(map(str, found[own].tolist())) == Counter(map(str, y[own].tolist()))


@few
@given(units(), seeds, st.data())
def test_sentences_are_permuted_whole(
    drawn: tuple[list[int], list[int], list[int]], seed: int, data: st.DataObject
) -> None:
    ids, sides, values = drawn
    repeats = data.draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    sentences, side, y = (np.repeat(each, repeats) for each in (ids, sides, values))
    found = shuffled(y, side, seed, sentences)
    by_sentence = {index: set(found[sentences == index].tolist()) for index in ids}
    assert all(len(own) == 1 for own in by_sentence.values())
    for one in set(sides):
        own = [index for index, where in zip(ids, sides, strict=True) if where == one]
        before = [value for value, where in zip(values, sides, strict=True) if where == one]
        assert sorted(min(by_sentence[index]) for index in own) == sorted(before)
    assert found[np.cumsum(repeats) - 1].tolist() == shuffled(np.array(values), np.array(sides), seed).tolist()
    order = np.array(data.draw(st.permutations(range(len(y)))))
    assert shuffled(y[order], side[order], seed, sentences[order]).tolist() == found[order].tolist()


def test_shuffling_is_by_seed_and_not_the_order_that_a_split_draws() -> None:
    y, sides = np.arange(100), np.zeros(100, int)
    found = [shuffled(y, sides, seed) for seed in (0, 1)]
    assert found[0].tolist() == shuffled(y, sides, 0).tolist()
    assert found[0].tolist() != found[1].tolist()
    assert found[0].tolist() != np.random.default_rng(0).permutation(100).tolist()
    assert y.tolist() == [*range(100)]
    assert abs(stats.spearmanr(y, found[0]).statistic) < 0.3


def test_every_order_is_as_likely() -> None:
    counts = Counter(tuple(shuffled(np.arange(3), np.zeros(3, int), seed).tolist()) for seed in range(600))
    assert len(counts) == 6
    assert stats.chisquare([*counts.values()]).pvalue > 0.001


def words(number: int) -> list[int]:
    """The two's complement of 64 bits, the lower half first."""
    return [number % 2**32, number % 2**64 // 2**32]


@few
@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(-(10**6), -1)), max_size=8),
    st.integers(0, 9),
    seeds,
    st.booleans(),
)
def test_random_columns_depend_on_sentence_and_token_alone(
    rows: list[tuple[int, int]], width: int, seed: int, by_token: bool
) -> None:
    sentences, tokens = (np.array([row[part] for row in rows], np.int64) for part in (0, 1))
    found = random_columns(sentences, tokens if by_token else None, width, seed)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (len(rows), width))
    for values, (sentence, token) in zip(found, rows, strict=True):
        key = [*words(sentence), *(words(token) if by_token else [])]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        assert values.tolist() == rng.standard_normal(width).astype(np.float32).tolist()
    half = len(rows) // 2
    blocks = [
        random_columns(sentences[part], tokens[part] if by_token else None, width, seed)
        for part in (slice(half), slice(half, None))
    ]
    np.testing.assert_array_equal(np.concatenate(blocks), found)


def test_random_columns_are_standard_normal_and_unrelated() -> None:
    sentences, tokens = np.repeat(np.arange(20), 10), np.tile(np.arange(-10, 0), 20)
    X = random_columns(sentences, tokens, 500, 0)
    assert stats.kstest(X.ravel(), "norm").pvalue > 0.01
    others = random_columns(sentences, tokens, 500, 1), random_columns(sentences, None, 500, 0)[::10]
    rows = np.concatenate([X, *others]).astype(np.float64)
    correlations = np.asarray(np.corrcoef(rows))[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(500)
    np.testing.assert_allclose(correlations.std(), 1 / np.sqrt(500), rtol=0.05)


def test_controls_are_the_same_on_every_machine() -> None:
    """Pinned: whoever changes these changes datasets."""
    assert shuffled(np.arange(8), np.array([0, 0, 0, 0, 0, 1, 1, 1]), 7).tolist() == [1, 4, 3, 2, 0, 5, 6, 7]
    pinned = np.array([[0.42634662985801697, -1.1047332286834717, 0.1453041285276413]], np.float32)
    np.testing.assert_array_equal(random_columns(np.array([5]), np.array([-2]), 3, 7), pinned)
    row = text_columns(["Ab"])[0]
    columns = {column: row[column] for column in np.flatnonzero(row).tolist()}
    assert columns == {56: -1, 740: 1, 1025: -2, 1231: 1, 1651: 1, 1713: 1, 2083: 1, 3349: -1, 4096: 2}


def hashed(n_gram: str) -> int:
    """Return the hash of an n-gram, by Python's integers."""
    value = len(n_gram)
    for character in n_gram:
        value = (value * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value


@few
@example(["a\ud800", ""])
@given(st.lists(st.text(max_size=9) | st.text("ab ", max_size=30), max_size=5))
def test_text_columns_count_hashed_n_grams(texts: list[str]) -> None:
    found = text_columns(texts)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (len(texts), 4097))
    for text, row in zip(texts, found, strict=True):
        expected = [0] * 4097
        padded = f" {text} "
        for n in (1, 2, 3):
            for start in range(len(padded) - n + 1):
                value = hashed(padded[start : start + n])
                expected[value % 4096] += -1 if value >= 2**63 else 1
        expected[4096] = len(text)
        assert row.tolist() == expected


@pytest.mark.parametrize("text", ["", "a", "\0", "\ud800", "e\u0301", "🦉 at dawn", "a\nb"])
def test_any_text_has_columns_of_its_own(text: str) -> None:
    rows = text_columns(["before", text, "after"])
    assert rows[1].tolist() == text_columns([text])[0].tolist()
    assert rows[1, -1] == len(text)
    assert all(rows[1, :-1].tolist() != text_columns([f"{text}{other}"])[0, :-1].tolist() for other in ("b", " ", "A"))


def test_hashes_spread_evenly_over_columns_and_signs() -> None:
    texts = [f"{number:05d}" for number in range(0, 99999, 7)]
    n_grams = {f" {text} "[start : start + 3] for text in texts for start in range(5)}
    values = [hashed(n_gram) for n_gram in sorted(n_grams)]
    assert stats.chisquare(np.bincount([value % 64 for value in values], minlength=64)).pvalue > 0.001
    assert stats.binomtest(sum(value >= 2**63 for value in values), len(values)).pvalue > 0.001


def test_a_probe_learns_a_word_from_the_text_alone() -> None:
    rng = np.random.default_rng(0)
    common = [" ".join("".join(map(chr, rng.integers(97, 123, 5))) for _ in range(8)) for _ in range(80)]
    labels = np.arange(80) % 2
    texts = [
        f"{text[:24]}{'honest' if label else 'polite'} {text[24:]}" for text, label in zip(common, labels, strict=True)
    ]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    assert (cross_val_predict(probe, text_columns(texts), labels) == labels).mean() > 0.9
    assert (cross_val_predict(probe, text_columns(common), labels) == labels).mean() < 0.7
