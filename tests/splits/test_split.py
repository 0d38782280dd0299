"""Near-duplicates, and splits that keep them together."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

import featurestore
from featurestore.errors import ParameterError, SelectionError
from featurestore.splits.duplicates import NGRAM, SIMILARITY, _normalized, group_near_duplicates
from featurestore.splits.options import SplitOptions
from featurestore.splits.split import Split, split
from tests.sentences import SAMPLE

SENTENCE = "I told the panel I had finished my degree even though I dropped out."

WORDS = [*"I told my manager that the receipts were lost although everybody had seen them".split(), "謊言", "👍"]  # noqa: SIM905


INVISIBLE = "\N{SOFT HYPHEN}\u200b\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{WORD JOINER}\ufeff\u202a"
JOINERS = "".join(map(chr, [0x34F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
"""Of those marks that are not seen: the grapheme joiner, and what selects variations."""


def brute_force(texts: Sequence[str], similarity: float) -> list[int]:
    """Compare all pairs by the definition."""
    padded = [f" {_normalized(text)} " for text in texts]
    sets = [{text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))} for text in padded]
    groups = list(range(len(texts)))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            if len(a & b) / len(a | b) >= similarity:
                low, high = sorted((groups[i], groups[j]))
                groups = [low if group == high else group for group in groups]
    return groups


def dataset(texts: Sequence[str], labels: Sequence[int], **coordinates: Sequence[Any]) -> xr.Dataset:
    """The coordinates of a store that a split reads."""
    columns = {"label": labels, "text": np.array(texts, object), **coordinates}
    coords = {name: ("sentence", np.asarray(values)) for name, values in columns.items()}
    return xr.Dataset(coords={"sentence": np.arange(len(texts)), **coords})


def distinct(labels: Sequence[int], **coordinates: Sequence[Any]) -> xr.Dataset:
    """Sentences without near-duplicates."""
    return dataset(
        [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(len(labels))], labels, **coordinates
    )


sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@st.composite
def stores(draw: st.DrawFn) -> xr.Dataset:
    """Sentences with their labels and groups, many of them near-duplicates."""
    rows = draw(
        st.lists(st.tuples(sentences, st.integers(0, 3), st.sampled_from(["", "a", "b", "c"])), min_size=1, max_size=40)
    )
    texts, labels, groups = zip(*rows, strict=True)
    return dataset(texts, labels, group=groups)


@st.composite
def options(draw: st.DrawFn, /, **fixed: Any) -> SplitOptions:
    test_size = draw(st.none() | st.floats(0.1, 0.9))
    folds = draw(st.integers(2, 6) if test_size is None else st.none() | st.integers(2, 6))
    return SplitOptions(test_size, folds, draw(st.integers(0, 99)), **fixed)


def sides(result: Split) -> np.ndarray[Any, Any]:
    return result.train.astype(int) if result.fold is None else result.fold


def alike(result: Split) -> list[int]:
    """The sizes of the groups of near-duplicates."""
    return [size for size in np.bincount(result.near).tolist() if size > 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(sentences, max_size=25), st.sampled_from([0.2, 0.5, SIMILARITY, 0.75, 0.9, 1.0]))
def test_groups_are_those_of_comparing_all_pairs(texts: list[str], similarity: float) -> None:
    groups = group_near_duplicates(texts, similarity)
    assert groups.dtype == np.int64
    assert groups.tolist() == brute_force(texts, similarity)


@pytest.mark.parametrize(("slots", "words", "length"), [(4, 40, 14), (12, 8, 8), (1, 60, 12)])
def test_groups_of_templates_are_those_of_comparing_all_pairs(slots: int, words: int, length: int) -> None:
    rng = np.random.default_rng(slots)
    vocabulary = np.array(["".join(rng.choice(list("aeiounrst"), rng.integers(2, 10))) for _ in range(words)])
    templates = vocabulary[rng.integers(words, size=(10, length))]
    texts = []
    for _ in range(150):
        filled = templates[rng.integers(len(templates))].copy()
        filled[rng.integers(length, size=slots)] = rng.choice(vocabulary, slots)
        texts.append(" ".join(filled))
    for similarity in (0.4, SIMILARITY, 0.8):
        assert group_near_duplicates(texts, similarity).tolist() == brute_force(texts, similarity)


@pytest.mark.parametrize(
    "other",
    [
        SENTENCE.upper(),
        "  I told -- the panel: I had finished\nmy degree, even though I dropped out",
        SENTENCE.replace("degree", "thesis"),
        SENTENCE.replace("panel", "committee"),
        SENTENCE[:-1] + " again.",
        SENTENCE.replace("I had", "had"),
        SENTENCE.replace("fi", "\N{LATIN SMALL LIGATURE FI}"),
        *("".join(f"{char}{invisible}" for char in SENTENCE) for invisible in [*INVISIBLE, *JOINERS[::16]]),
    ],
)
def test_what_is_a_near_duplicate(other: str) -> None:
    assert group_near_duplicates([SENTENCE, other]).tolist() == [0, 0]


def test_what_is_no_near_duplicate() -> None:
    with open(SAMPLE.with_suffix(".csv"), encoding="utf-8") as file:
        texts = [row["sentence"] for row in csv.DictReader(file)]
    texts += ["I told the panel I was ill on the day of the exam.", "She never finished her degree."]
    assert group_near_duplicates(texts).tolist() == list(range(58))
    assert group_near_duplicates([*texts, SENTENCE])[-1] == 13


def test_texts_of_almost_nothing() -> None:
    texts = ["", " ", "?!", "?!", "...", "a", "A!", "b", "ab", "👍", "👍 ", "👎", "❤️", "☀️", "謊言", "謊言。", "真話"]
    assert group_near_duplicates(texts).tolist() == [0, 0, 2, 2, 4, 5, 5, 7, 8, 9, 9, 11, 12, 13, 14, 14, 16]


def test_what_is_invisible_parts_no_words() -> None:
    texts = ["co\u00adop", "coop", "co op", "\u200bco\ufeffo\u200dp", "cafe\u200c\u0301", "caf\u00e9", "\u00ad", ""]
    assert group_near_duplicates(texts, 1.0).tolist() == [0, 0, 2, 0, 4, 4, 6, 7]
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"
    assert group_near_duplicates([family, "\N{MAN}\N{WOMAN}", family + " "], 1.0).tolist() == [0, 1, 0]


@given(st.text(st.characters(exclude_categories=["Cf", "Cs"], exclude_characters=JOINERS)))
def test_texts_without_anything_invisible_are_compared_as_ever(text: str) -> None:
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in folded)
    assert _normalized(text) == (" ".join(words.split()) if any(map(str.isalnum, folded)) else folded.strip())


def test_scripts_without_spaces_and_with_marks() -> None:
    texts = [
        "我告訴老闆報告已經完成了其實我昨天根本沒有開始寫",
        "我告訴老闆報告已經完成了其實我今天根本沒有開始寫",
        "कि",
        "की",
    ]
    assert group_near_duplicates(texts).tolist() == [0, 0, 2, 3]


def test_groups_reach_over_others() -> None:
    texts = ["one two three four five six", "seven two three four five six", "seven eight three four five six"]
    assert group_near_duplicates([texts[0], texts[2]], 0.5).tolist() == [0, 1]
    assert group_near_duplicates([texts[0], texts[2], texts[1]], 0.5).tolist() == [0, 0, 0]


def test_many_equal_sentences_are_one_group() -> None:
    assert not group_near_duplicates([SENTENCE] * 50_000).any()


@pytest.mark.parametrize("similarity", [0, -1, 1.01, float("nan")])
def test_similarity_out_of_range(similarity: float) -> None:
    with pytest.raises(ParameterError, match=r"^similarity: "):
        group_near_duplicates([SENTENCE], similarity)


def test_groups_do_not_depend_on_the_salt_of_hashes() -> None:
    code = (
        "from featurestore.splits.duplicates import group_near_duplicates as group\n"
        "print(group([f'I told {i % 7} friends of {i % 11} that {i * i} is prime' for i in range(200)], 0.8).tolist())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout


@settings(max_examples=60, deadline=None)
@given(stores(), st.data())
def test_nothing_that_belongs_together_is_torn(ds: xr.Dataset, data: st.DataObject) -> None:
    chosen = data.draw(options(group_by="group"))
    try:
        result = split(ds, chosen)
    except SelectionError:
        return
    side = sides(result)
    for groups in (np.array(brute_force(ds["text"].values.tolist(), SIMILARITY)), ds["group"].values):
        for group in set(groups.tolist()) - {""}:
            assert len(set(side[groups == group].tolist())) == 1
    assert result.across == 0
    assert len(set(side.tolist())) == (chosen.folds or 1) + (chosen.test_size is not None)
    if result.fold is not None:
        assert np.array_equal(result.train, result.fold != (0 if chosen.test_size is None else -1))
    if chosen.test_size is not None:
        off = abs(np.count_nonzero(~result.train) - chosen.test_size * len(side))
        assert off < 1 or off <= len(side) * chosen.test_size / 2


@settings(max_examples=60, deadline=None)
@given(stores(), st.data())
def test_the_order_of_the_sentences_does_not_matter(ds: xr.Dataset, data: st.DataObject) -> None:
    chosen = data.draw(options(group_by="group"))
    order = data.draw(st.permutations(range(ds.sizes["sentence"])))
    try:
        result = split(ds, chosen)
    except SelectionError as error:
        with pytest.raises(SelectionError, match=f"^{re.escape(str(error))}$"):
            split(ds.isel(sentence=order), chosen)
        return
    other = split(ds.isel(sentence=order), chosen)
    assert np.array_equal(other.train, result.train[order])
    assert np.array_equal(sides(other), sides(result)[order])
    assert (other.report, other.groups_digest) == (result.report, result.groups_digest)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=70, max_size=150), options())
def test_without_groups_every_label_is_divided_to_the_row(labels: list[int], chosen: SplitOptions) -> None:
    result = split(distinct(labels), chosen)
    each_label = [np.array(labels) == label for label in set(labels)]
    if chosen.test_size is not None:
        off = [np.sum(~result.train[rows]) - chosen.test_size * np.sum(rows) for rows in each_label]
        assert np.max(np.abs(off)) < 1
        assert abs(sum(off)) <= 0.5 + 1e-9
    if result.fold is not None and chosen.folds:
        folded = result.fold >= 0
        for rows in (folded, *(folded & rows for rows in each_label)):
            assert np.ptp(np.bincount(result.fold[rows], minlength=chosen.folds)) <= 1


def test_seeds() -> None:
    ds = distinct([0, 1] * 20)
    results = [split(ds, SplitOptions(test_size=0.25, folds=3, seed=seed)) for seed in (0, 0, 1)]
    trains, folds = [result.train.tolist() for result in results], [sides(result).tolist() for result in results]
    assert (trains[0], folds[0]) == (trains[1], folds[1])
    assert trains[0] != trains[2]
    assert folds[0] != folds[2]


def test_the_largest_group_is_not_always_for_testing() -> None:
    ds = dataset([SENTENCE] * 3 + distinct([0] * 9)["text"].values.tolist(), [0] * 12)
    assert {split(ds, SplitOptions(folds=4, seed=seed)).train[0] for seed in range(10)} == {True, False}


def test_groups_of_one_label_each_still_fill_the_test_part() -> None:
    ds = distinct(np.repeat(range(10), 10).tolist(), group=np.repeat(range(20), 5).tolist())
    assert np.count_nonzero(split(ds, SplitOptions(0.2, group_by="group")).train) == 80


def test_stratified_as_well_as_by_scikit_learn() -> None:
    """With groups of many sizes, labels and sizes of the folds deviate no more from equal shares."""
    deviations = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), rng.integers(1, 9, 60))
        labels = np.minimum(rng.integers(0, 4, 60)[groups], rng.integers(0, 4, len(groups)))
        result = split(
            distinct(labels.tolist(), group=groups.tolist()), SplitOptions(folds=5, seed=seed, group_by="group")
        )
        theirs = np.zeros(len(labels), int)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        for number, (_, rows) in enumerate(folds):
            theirs[rows] = number
        for fold in (sides(result), theirs):
            table = np.array([np.bincount(fold[labels == label], minlength=5) for label in range(4)])
            deviations.append((np.abs(table - table.mean(axis=1, keepdims=True)).sum(), np.ptp(table.sum(axis=0))))
    (ours, our_span), (theirs_total, their_span) = np.sum(deviations[::2], axis=0), np.sum(deviations[1::2], axis=0)
    assert ours <= theirs_total
    assert our_span <= their_span


def test_the_report_counts_what_leaks() -> None:
    texts = [f"{word} {SENTENCE if i % 2 else SENTENCE[::-1]}" for i, word in enumerate(WORDS[:10])]
    texts += distinct([0] * 40)["text"].values.tolist()
    result = split(dataset(texts, [0] * 50), SplitOptions(test_size=0.3, folds=3))
    assert (alike(result), result.across, result.groups_digest) == ([5, 5], 0, "")
    places = list(zip(result.near.tolist(), result.careless.tolist(), strict=True))
    leaking = sum(any(near == other and side != there for other, there in places) for near, side in places)
    assert 0 < leaking <= 10
    assert result.report == (
        "35 sentences for training, 15 for testing; 3 folds of 11 to 12\n"
        "10 sentences are nearly the same as another (near-duplicates): if that were ignored, "
        f"{leaking} would leak between training, testing and folds; here none do"
    )


def test_the_report_on_what_a_dataset_keeps() -> None:
    """Of two near-duplicates one is left out: then no sentence is alike any more."""
    texts = [f"{SENTENCE} {word}" for word in ("Yes.", "No.")] + distinct([0] * 8)["text"].values.tolist()
    result = split(dataset(texts, [0] * 10, kind=["a", "a", *"bcdefghi"]), SplitOptions(0.3, group_by="kind"))
    assert result.report.splitlines()[0] == "7 sentences for training, 3 for testing"
    assert result.report.endswith("here none do; no group is divided")
    kept = np.arange(10) != 1
    test = np.count_nonzero(~result.train[kept])
    assert result.report_of(kept) == (
        f"{9 - test} sentences for training, {test} for testing; 1 left out\n"
        "no sentence is nearly the same as another (a near-duplicate), so none can leak between training and testing; "
        "no group is divided"
    )
    torn = replace(result, train=np.arange(10) > 0)
    assert (torn.across, alike(torn)) == (2, [2])
    assert torn.report.endswith("; here 2 do; 2 sentences are apart from their group")
    folds = split(distinct([0] * 10), SplitOptions(0.4, folds=3))
    assert folds.report_of(sides(folds) != 0).startswith(
        "4 sentences for training, 4 for testing; 3 folds of 0 to 2; 2 left out\n"
    )


def best_sizes(groups: Sequence[Any], asked: float) -> list[int]:
    """The sizes nearest to what was asked among those of all sets of groups, by trying each."""
    counts = [groups.count(group) for group in set(groups)]
    sizes = {sum(chosen) for n in range(len(counts) + 1) for chosen in combinations(counts, n)}
    nearest = min(abs(size - asked) for size in sizes)
    return [size for size in sizes if abs(abs(size - asked) - nearest) < 1e-9]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=2, max_size=40),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_the_size_of_the_test_part_is_the_nearest_there_is(
    rows: list[tuple[int, int]], test_size: float, seed: int
) -> None:
    groups, labels = zip(*rows, strict=True)
    sizes = best_sizes(groups, test_size * len(rows))
    try:
        result = split(distinct(labels, group=groups), SplitOptions(test_size, seed=seed, group_by="group"))
    except SelectionError:
        n = len(rows)
        far = min(abs(size - test_size * n) for size in sizes) >= max(1, n * min(test_size, 1 - test_size) / 2)
        assert far or {0, n} & set(sizes)
        return
    assert np.count_nonzero(~result.train) in sizes or {0, len(rows)} & set(sizes)


def test_a_nearer_size_costs_no_label_its_share() -> None:
    """Pairs and triples among single sentences, 300 in all: 60 for testing, and a fifth of each label but for a row."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.concatenate([np.repeat(np.arange(30), rng.integers(2, 4, 30)), np.arange(100, 500)])[:300]
        labels = rng.integers(0, 4, 300)
        chosen = SplitOptions(0.2, seed=seed, group_by="group")
        test = ~split(distinct(labels.tolist(), group=groups.tolist()), chosen).train
        assert np.count_nonzero(test) == 60
        off = [np.count_nonzero(test & (labels == label)) - 0.2 * np.sum(labels == label) for label in range(4)]
        assert np.abs(off).max() < 2


def test_rows_whose_number_was_right_stay_where_they_were() -> None:
    """Datasets of earlier versions keep their rows: 24 sentences, in pairs and alone, as they were divided then."""
    groups = [*np.repeat(range(6), 2).tolist(), *range(10, 22)]
    chosen = SplitOptions(0.25, folds=3, seed=0, group_by="group")
    result = split(distinct([i % 3 for i in range(24)], group=groups), chosen)
    pairs = [2, 2, 1, 1, 1, 1, 0, 0, 2, 2, 0, 0]
    assert sides(result).tolist() == [*pairs, 1, 2, 0, -1, -1, 2, -1, 1, -1, 0, -1, -1]


def test_the_sample(tmp_path: Path) -> None:
    featurestore.ingest(SAMPLE, tmp_path / "sample.zarr")
    ds = featurestore.open_store(tmp_path / "sample.zarr")
    result = split(ds, SplitOptions(test_size=0.25, folds=3, group_by=f"{SAMPLE}.csv:sentence"))
    assert sorted(np.bincount(ds["label"].values[~result.train]).tolist()) == [3, 3, 4, 4]
    assert (alike(result), result.across) == ([], 0)
    tokens = split(ds, SplitOptions(folds=3, group_by="n_tokens"))
    for n_tokens in set(ds["n_tokens"].values.tolist()):
        assert len(set(sides(tokens)[ds["n_tokens"].values == n_tokens])) == 1


def test_a_store_of_any_order(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "store.zarr")
    ds = featurestore.open_store(tmp_path / "store.zarr")
    options = SplitOptions(test_size=0.4)
    assert np.array_equal(split(ds.isel(sentence=slice(None, None, -1)), options).train[::-1], split(ds, options).train)


@pytest.fixture
def three() -> xr.Dataset:
    return dataset(["The first one.", "A second sentence", " Some third, too "], [0, 0, 1], kind=["x", "x", "y"])


@pytest.mark.parametrize(
    "lines",
    [
        "sentence_index,family\n0,a\n1,a\n2,\n9,b\n",
        "\ufeffsentence_index,title,family\n 2 ,wrong, \n\n1,wrong,a\n0,wrong,a\n0,again,a\n",
        'family,sentence\na,The first one.\n"a", A second sentence\n,"Some third, too"\n',
    ],
)
@pytest.mark.parametrize("name", ["groups.csv", r"C:\groups.csv", "a:b.csv"])
def test_groups_from_a_file(
    three: xr.Dataset, lines: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(lines, encoding="utf-8")
    result = split(three, SplitOptions(folds=2, group_by=f"{name}:family"))
    assert result.train[0] == result.train[1] != result.train[2]
    pairs = repr([(0, "a"), (1, "a"), (2, "")])
    assert result.groups_digest == hashlib.sha256(pairs.encode()).hexdigest()
    assert result.report.endswith("; no group is divided")


AS_WRITTEN = {
    "by pandas, after a gap": "sentence_index,family\n0.0,1.0\n1.0,1.0\n2.0,\n",
    "by pandas, as NaN": "sentence_index,family\n0,1.0\n1,1.0\n2,NaN\n",
    "by Excel": "\ufeffsentence_index,family\r\n0,1\r\n1,1.0\r\n2,\r\n,\r\n,\r\n",
    "by hand": "\n sentence_index , family\n\n 0 , 1\n1.,1.00 \n+2\n , ,\n",
    "in old Excel": "sentence_index,family\r0,1\r1,1\r2,\r",
    "in scientific notation": 'family,"sentence_index"\n1,0e0\n1,1E+00\n,2.0e0\n',
}


@pytest.mark.parametrize("how", AS_WRITTEN)
def test_group_files_as_they_are_written(three: xr.Dataset, how: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_bytes(AS_WRITTEN[how].encode())
    result = split(three, SplitOptions(folds=2, group_by=f"{tmp_path / 'groups.csv'}:family"))
    assert result.train[0] == result.train[1] != result.train[2]
    pairs = repr([(0, "1"), (1, "1"), (2, "")])
    assert result.groups_digest == hashlib.sha256(pairs.encode()).hexdigest()


def test_a_group_file_in_the_home_folder(three: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "groups.csv").write_text("sentence_index,family\n0,a\n1,a\n2,b\n")
    result = split(three, SplitOptions(folds=2, group_by="~/groups.csv:family"))
    assert result.train[0] == result.train[1] != result.train[2]


def test_a_pipe_is_no_group_file(three: xr.Dataset, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "groups.csv")
    with pytest.raises(ParameterError, match="cannot be read; expected a CSV file, found no regular file"):
        split(three, SplitOptions(folds=2, group_by=f"{tmp_path / 'groups.csv'}:family"))


def test_whole_floats_are_the_same_groups_as_integers() -> None:
    floats = [2.0, 2.0, 0.5, 0.5, np.nan, np.nan, -3.0]
    result = split(distinct([0] * 7, kind=floats), SplitOptions(folds=2, group_by="kind"))
    pairs = list(enumerate(["2", "2", "0.5", "0.5", "", "", "-3"]))
    assert result.groups_digest == hashlib.sha256(repr(pairs).encode()).hexdigest()
    integers = split(distinct([0] * 3, kind=[3, 3, 4]), SplitOptions(folds=2, group_by="kind"))
    wholes = split(distinct([0] * 3, kind=[3.0, 3.0, 4.0]), SplitOptions(folds=2, group_by="kind"))
    assert integers.groups_digest == wholes.groups_digest
    assert integers.groups_digest == hashlib.sha256(repr([(0, "3"), (1, "3"), (2, "4")]).encode()).hexdigest()


def test_missing_values_are_no_group() -> None:
    ds = distinct([0] * 4, kind=[np.nan] * 4)
    assert split(ds, SplitOptions(0.5, 2, group_by="kind")).train.sum() == 2


def test_an_empty_group_is_no_group() -> None:
    ds = distinct([0] * 4, kind=["", "", "", ""])
    assert split(ds, SplitOptions(0.5, 2, group_by="kind")).train.sum() == 2


def test_the_digest_knows_the_groups(three: xr.Dataset) -> None:
    digests = [
        split(ds, SplitOptions(folds=2, group_by=name)).groups_digest
        for ds, name in [(three, "kind"), (three.isel(sentence=[2, 0, 1]), "kind"), (three, "label")]
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (b"", "family", "expected the columns sentence_index or sentence, family, found none"),
        (b"index,family\n0,a\n", "family", "expected the column sentence_index or sentence, found index, family"),
        (b"sentence_index,family\n0,a\n", "kin", "expected the column kin, found sentence_index, family"),
        (b"sentence_index,family\n0,a\n", "family", r"2 of 3 sentences are not in it \(sentence_index 1; 2\)"),
        (
            b"sentence,family\nThe first one.,a\n",
            "family",
            r"2 of 3 sentences are not in it \(sentence A second sentence; Some third, too",
        ),
        (
            b"sentence_index,family\n0,a\n1,b\n0,b\n2,a\n",
            "family",
            ":4: sentence_index 0 is in two groups, 'a' and 'b'",
        ),
        (b"sentence_index,family\n0,a\n1,b\n0,\n2,a\n", "family", ":4: sentence_index 0 is in two groups, 'a' and ''"),
        (b"sentence_index,family\nzero,a\n", "family", ":2: sentence_index: expected an integer, found 'zero'"),
        (b"sentence_index,family\n0\n1.5,a\n", "family", ":3: sentence_index: expected an integer, found '1.5'"),
        (b"sentence_index,family\n0,\xff\n", "family", "expected a CSV file in UTF-8, found something else"),
        (b"sentence_index,family\n\n0,a\n1_0,a\n", "family", ":4: sentence_index: expected an integer, found '1_0'"),
        (b"sentence_index,family\n0,a\n0x1,a\n", "family", ":3: sentence_index: expected an integer, found '0x1'"),
        (b"sentence_index,family\nnan,a\n", "family", ":2: sentence_index: expected an integer, found 'nan'"),
        (b"sentence_index,family\n1e30,a\n", "family", ":2: sentence_index: expected an integer, found '1e30'"),
        (b"sentence_index;family\n0;a\n", "family", ".*found one column 'sentence_index;family'; separate .* commas"),
        (b"sentence_index,family,family\n0,a,b\n", "family", "the column family is there twice; name each once"),
        (b"sentence,family\nFirst, then,a\n", "family", ":2: found 3 cells, expected 2 as in the header; put texts"),
        (b"sentence_index,family\n0,a\0\n", "family", "expected a CSV file in UTF-8, found a NUL character"),
        (b"PK\3\4\xd0" * 99, "family", "expected a CSV file in UTF-8, found something else"),
        (b"sentence_index,family\n0," + b"a" * 200_000, "family", ":2: expected a CSV file .*field limit"),
    ],
)
def test_files_that_do_not_say_the_groups(
    three: xr.Dataset, content: bytes, column: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # messages shorten long paths
    Path("groups.csv").write_bytes(content)
    with pytest.raises(ParameterError, match=f"^group_by=: groups.csv:? ?{message}"):
        split(three, SplitOptions(folds=2, group_by=f"groups.csv:{column}"))


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("kin", "^group_by=: expected FILE.csv:COLUMN or one of kind, label, sentence, text, found 'kin'"),
        (":kin", "^group_by=: expected FILE.csv:COLUMN"),
        ("groups.csv:", "^group_by=: expected FILE.csv:COLUMN"),
        ("nowhere.csv:kin", "^group_by=: nowhere.csv: cannot be read .No such file"),
        (".:kin", "^group_by=: .: cannot be read; expected a CSV file, found no regular file"),
        ("/dev/zero:kin", "^group_by=: /dev/zero: cannot be read; expected a CSV file, found no regular file"),
        ("a" * 5000 + ":kin", "^group_by=: a*...: is too long for a path"),
        ("a" * 5000, "^group_by=: expected FILE.csv:COLUMN .*, found 'a*...a*'$"),
        ("\0:kin", r"^group_by=: \\x00: holds a NUL character"),
    ],
)
def test_groups_that_are_nowhere(three: xr.Dataset, group_by: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        split(three, SplitOptions(folds=2, group_by=group_by))


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        *(({"test_size": size}, "test_size=") for size in (0, 1, -0.2, 1.5, float("nan"), True, "0.2", [0.2])),
        *(({"folds": folds}, "folds=") for folds in (1, 0, -3, 2.0, True, "5")),
        *(({"folds": 2, "seed": seed}, "seed=") for seed in (-1, 1.0, None, "1", False)),
        *(({"folds": 2, "group_by": name}, "group_by=") for name in ("", 3, ["label"])),
        ({}, "seed= and group_by= need test_size=, folds= or test_store="),
        ({"seed": 3, "group_by": "label"}, "seed= and group_by= need"),
    ],
)
def test_options_out_of_range(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(ParameterError, match=f"^{flag}"):
        SplitOptions(**wrong)


@pytest.mark.parametrize(
    ("n", "chosen", "message"),
    [
        (0, SplitOptions(folds=2), "^folds=2: 0 sentences are too few"),
        (0, SplitOptions(0.5), "^test_size=0.5: 0 sentences are too few"),
        (1, SplitOptions(0.5), "1 sentences are too few"),
        (20, SplitOptions(0.01), "^test_size=0.01: 20 sentences are too few"),
        (4, SplitOptions(folds=5), "^folds=5: 4 sentences are too few"),
        (4, SplitOptions(folds=10**12), "4 sentences are too few"),
        (6, SplitOptions(0.5, 4), "^test_size=0.5, folds=4: 6 sentences are too few"),
    ],
)
def test_too_few_sentences(n: int, chosen: SplitOptions, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        split(distinct([0] * n), chosen)


def test_a_group_too_large_for_any_split() -> None:
    texts = [SENTENCE] * 80 + distinct([0] * 20)["text"].values.tolist()
    ds = dataset(texts, [0, 1] * 50, kind=["a"] * 95 + ["b"] * 5)
    assert np.count_nonzero(split(ds, SplitOptions(0.2)).train) == 80
    with pytest.raises(SelectionError, match=r"100 sentences form 21 groups of near-duplicates, and .* holds 80:"):
        split(ds, SplitOptions(0.5))
    with pytest.raises(SelectionError, match="form 2 groups of near-duplicates or members of one group"):
        split(ds, SplitOptions(0.2, group_by="kind"))
    with pytest.raises(SelectionError, match=r"folds=22: .* 21 groups"):
        split(ds, SplitOptions(folds=22))
