"""Which sentences are meant: conditions as text and as values, and selections of xarray."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore import ParameterError, SelectionError
from featurestore.datasets.view import StoreView
from featurestore.errors import speaking
from featurestore.questions.rows import Condition, met, read_where, store_of, where_json
from tests.sentences import write_folder, write_sentence

INTEGERS = ("sentence", "label", "n_tokens", "n_nonfinite")
TEXTS = ("text", "source", "source_digest")
few = settings(max_examples=60)

by_numbers = st.tuples(st.sampled_from(INTEGERS), st.sets(st.integers(0, 999_999) | st.integers(0, 9), min_size=1))
by_truth = st.tuples(st.just("has_label"), st.sets(st.booleans(), min_size=1))
by_text = st.tuples(st.sampled_from(TEXTS), st.sets(st.text(max_size=8), min_size=1, max_size=1))
by_texts = st.tuples(st.sampled_from(TEXTS), st.sets(st.text('",=] ina', max_size=6), min_size=1, max_size=3))


@few
@given(st.one_of(by_numbers, by_truth, by_text))
@example(("label", {0, 3}))
@example(("text", {' a, b = "c" '}))
def test_what_a_condition_writes_is_read_as_the_same(given_: tuple[str, set[Any]]) -> None:
    name, values = given_
    (condition,) = read_where({name: [*values]})
    assert (condition.name, condition.values) == (name, tuple(sorted(values)))
    assert read_where(str(condition)) == (condition,)


@few
@given(by_numbers)
def test_numbers_are_written_as_few_ascending_ranges(given_: tuple[str, set[int]]) -> None:
    name, values = given_
    written, sign, rest = str(read_where({name: [*values]})[0]).partition("=")
    parts = [[int(end) for end in part.split("-")] for part in rest.split(",")]
    assert (written, sign) == (name, "=")
    assert [n for part in parts for n in range(part[0], part[-1] + 1)] == sorted(values)
    assert all(after[0] > before[-1] + 1 for before, after in pairwise(parts))


@few
@given(st.lists(st.one_of(by_numbers, by_texts, by_truth), max_size=3), st.lists(by_texts | by_truth, max_size=3))
@example([("text", {"a", "b"})], [("text", {'in ["a", "b"]'})])
def test_json_tells_any_two_populations_apart(one: list[Any], other: list[Any]) -> None:
    first, second = (
        tuple(sorted({condition for name, values in each for condition in read_where({name: [*values]})}))
        for each in (one, other)
    )
    written = [json.dumps(where_json(each)) for each in (first, second)]
    assert (first == second) == (written[0] == written[1])


def test_json_is_for_people() -> None:
    where = {"label": [3, 0], "n_tokens": "5-7,9", "has_label": True, "source": ["b.npz", "a, b.npz"], "text": "Ö = 1"}
    assert where_json(read_where(where)) == [
        "has_label=true",
        "label=0,3",
        "n_tokens=5-7,9",
        'source in ["a, b.npz", "b.npz"]',
        "text=Ö = 1",
    ]
    assert where_json(read_where({"label": [2, -1, 0, 1, -2]})) == ["label=-2,-1,0-2"]


@pytest.mark.parametrize(
    "given_",
    [
        "label=3,0", " label = 0,3", ["label=0,3"], ("label=3,0", "label=0,3"), {"label": "0,3"}, {"label": [3, 0]},
        {"label": (0, 3)}, {"label": range(0, 4, 3)}, {"label": np.array([0, 3], np.int8)},
        {"label": xr.DataArray([3, 0], dims="sentence")}, {"label": np.array([3, 0], object)},
    ],
)  # fmt: skip
def test_equal_populations_are_equal(given_: Any) -> None:
    assert read_where(given_) == (Condition("label", (0, 3)),)


def test_other_values_of_one_coordinate_both_stay() -> None:
    assert read_where(["n_tokens=5-6", "label=1", "n_tokens=6,9"]) == (
        Condition("label", (1,)),
        Condition("n_tokens", (5, 6)),
        Condition("n_tokens", (6, 9)),
    )
    assert read_where([]) == read_where({}) == ()


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda texts: np.array(texts, object), xr.DataArray])
def test_texts_are_taken_whole(kind: Callable[[list[str]], Any]) -> None:
    assert read_where("text=a=b, 0-3 ") == (Condition("text", ("a=b, 0-3 ",)),)
    assert read_where("text=") == (Condition("text", ("",)),)
    assert read_where({"text": "a,b"}) == (Condition("text", ("a,b",)),)
    found = read_where({"source": kind(["b.npz", "a.npz", "b.npz"])})
    assert found == (Condition("source", ("a.npz", "b.npz")),)
    assert {type(value) for value in found[0].values} == {str}


@pytest.mark.parametrize("value", [True, np.True_, "true", " True", [True], np.array([True]), xr.DataArray(True)])
def test_truth(value: Any) -> None:
    assert [str(condition) for condition in read_where({"has_label": value})] == ["has_label=true"]


BAD: list[tuple[Any, str]] = [
    ("label", "COORDINATE=VALUES"), ("", "COORDINATE=VALUES"), (["label=0", 3], "COORDINATE=VALUES"),
    (3, "a mapping"), (None, "a mapping"), (b"label=0", "a mapping"), ({"label"}, "a mapping"), (object(), "a mapping"),
    ("layer=3", "label_name, n_nonfinite, n_tokens, sentence, sentence_index, source, source_digest"),
    ("hidden_states_crc32=3", "coordinate of sentences"), ({3: 3}, "coordinate of sentences"),
    ("label>=3", "'label>'"), ("label==3", "label: expected numbers"), ("label=", "label: expected numbers"),
    ("label=x", "label: expected numbers"), ("label=3-0", "backwards"), ("label=1,1", "named twice"),
    ("n_tokens=five", "n_tokens: expected numbers"), ({"label": 0.5}, "label: "), ({"label": []}, "label: "),
    ({"label": [True]}, "label: expected an integer"), ({"label": ["0"]}, "label: expected an integer"),
    ({"label": None}, "label: "), ("has_label=yes", "true or false"), ({"has_label": 2}, "true or false"),
    ({"has_label": []}, "true or false"), ({"has_label": None}, "true or false"), ({"text": 3}, "a sequence of texts"),
    ({"text": []}, "a sequence of texts"), ({"text": ["a", 3]}, "a sequence of texts"),
    ({"text": b"a"}, "a sequence of texts"), ({"text": np.array([["a"]])}, "a sequence of texts"),
    ({"text": "a", "a\nb" * 99: 1}, "coordinate of sentences"),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "words"), BAD)
@pytest.mark.parametrize(("language", "option"), [("Python", "where=: "), ("command line", "--where: ")])
def test_what_is_no_condition_is_refused_in_a_line(given_: Any, words: str, language: Any, option: str) -> None:
    with speaking(language), pytest.raises(ParameterError) as caught:
        read_where(given_)
    message = str(caught.value)
    assert message.startswith(option)
    assert words in message
    assert message.isprintable()
    assert len(message) < 300
    if "crc32" not in repr(given_):
        assert "crc32" not in message


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine sentences of 2 to 7 tokens and the labels 0 to 3, then one without a label and one whose label is -1."""
    folder = tmp_path_factory.mktemp("rows")
    write_folder(folder / "trait", 9)
    write_sentence(folder / "trait", 11, tokens=3, drop=["concept_strength_label"])
    write_sentence(folder / "trait", 14, tokens=3, changes={"concept_strength_label": np.array(-1)})
    featurestore.ingest(folder / "trait", folder / "trait.zarr")
    return folder / "trait.zarr"


def sentences_met(store: Path, where: Any) -> list[int]:
    ds = featurestore.open_store(store)
    found = met(ds, read_where(where))
    assert (found.dtype, found.shape) == (np.dtype(bool), (11,))
    return [int(index) for index, kept in zip(ds["sentence"].values, found, strict=True) if kept]


INDICES = [*range(9), 11, 14]
N_TOKENS = {index: 2 + (index * 5) % 6 for index in range(9)} | {11: 3, 14: 3}
LABELS = {index: index % 4 for index in range(9)} | {14: -1}


@few
@given(
    st.sets(st.integers(0, 4), min_size=1),
    st.sets(st.integers(1, 8), min_size=1),
    st.sets(st.integers(0, 15), min_size=1),
)
def test_sentences_meet_all_conditions(store: Path, labels: set[int], n_tokens: set[int], sentences: set[int]) -> None:
    where = {"label": [*labels], "n_tokens": [*n_tokens], "sentence": [*sentences]}
    expected = [i for i in INDICES if LABELS.get(i) in labels and N_TOKENS[i] in n_tokens and i in sentences]
    assert sentences_met(store, where) == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], INDICES),
        ({"label": [-1]}, [14]),  # which is also what the store holds where there is no label
        ({"label": [10**60, -(10**60), 3]}, [3, 7]),
        ({"label": 10**60}, []),
        ("has_label=false", [11]),
        ({"has_label": [True, False]}, INDICES),
        (["n_tokens=2-5", "n_tokens=5-7"], [3]),
        ("n_nonfinite=0", INDICES),
        ("n_nonfinite=1", []),
        ("source=sentence_000005.npz", [4]),
        ({"source": ["sentence_000005.npz", "sentence_000012.npz", "nothing"]}, [4, 11]),
        ("text=w2.0 w2.1 w2.2 w2.3 w2.4 w2.5", [2]),
        ("text=w2.0 w2.1", []),
        ("text=", []),
    ],
)
def test_which_sentences_meet(store: Path, where: Any, expected: list[int]) -> None:
    if where == ["n_tokens=2-5", "n_tokens=5-7"]:
        expected = [index for index in INDICES if N_TOKENS[index] == 5]
    assert sentences_met(store, where) == expected


def test_labels_in_use_decide_not_those_of_the_store(store: Path) -> None:
    ds = featurestore.open_store(store)
    other = ds.assign_coords(label=ds["sentence"] % 2, has_label=ds["sentence"] > 4)
    assert ds["sentence"].values[met(other, read_where("label=1"))].tolist() == [5, 7, 11]


@pytest.mark.parametrize(("where", "missing"), [("label=1", "label"), ("label=1", "has_label"), ("text=a", "text")])
def test_a_store_without_the_coordinate(store: Path, where: str, missing: str) -> None:
    ds = featurestore.open_store(store).drop_vars(missing)
    with pytest.raises(SelectionError, match=rf"^has no coordinate {missing}, .*where= asks for \({where}\)"):
        met(ds, read_where(where))


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (lambda ds: ds, INDICES),
        (lambda ds: ds.sel(sentence=[5, 2, 11]), [5, 2, 11]),
        (lambda ds: ds.sel(sentence=5), [5]),
        (lambda ds: ds.sel(sentence=slice(3, 6)), [3, 4, 5, 6]),
        (lambda ds: ds.sel(sentence=ds.label == 3), [3, 7]),
        (lambda ds: ds.isel(sentence=-1), [14]),
        (lambda ds: ds.isel(sentence=[]), []),
        (lambda ds: ds.isel(sentence=slice(None, None, -1)), INDICES[::-1]),
        (lambda ds: ds.query(sentence="n_tokens == 3").sel(token=-1, layer=5), [5, 11, 14]),
        (lambda ds: ds.sortby("source", ascending=False), INDICES[::-1]),
        (lambda ds: ds.drop_vars("text").assign(more=ds.label * 2).assign_coords(z=1).head(sentence=2), [0, 1]),
        (lambda ds: ds.swap_dims(sentence="source").sel(source=["sentence_000012.npz"]), [11]),
        (lambda ds: ds[["embeddings"]].chunk().compute().transpose().drop_sel(sentence=INDICES[1:]), [0]),
        (lambda ds: dict(iter(ds.groupby("label")))[2], [2, 6]),
    ],
)
def test_a_selection_names_its_store_and_sentences(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, select: Callable[..., Any], expected: list[int]
) -> None:
    monkeypatch.chdir(store.parent)
    ds = select(featurestore.open_store(store.name))
    monkeypatch.chdir(tmp_path)
    assert Path(store_of(ds)).samefile(store)
    view = StoreView(store)
    if not expected:
        with pytest.raises(SelectionError, match="found none"):
            view.those_of(ds)
    else:
        condition = view.those_of(ds)
        assert sorted(expected) == (INDICES if condition is None else list(condition.values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ds: ds.head(sentence=3).assign_coords(sentence=INDICES[3:6]), "its source_digest is another"),
        (lambda ds: ds.assign_coords(label=("sentence", ds.label.values + 1)), "its label is another"),
        (lambda ds: ds.assign_coords(sentence=ds.sentence + 100), "expected sentences of the store"),
    ],
)
def test_a_dataset_that_was_changed_is_refused(store: Path, change: Callable[..., Any], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        featurestore.build(change(featurestore.open_store(store)), "embedding-to-concept")


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (lambda ds: ds[["embeddings"]].where(ds.label == 3, drop=True), "does not say which store"),
        (lambda _: xr.Dataset({"a": ("sentence", [1])}, {"sentence": [1]}), "does not say which store"),
        (lambda ds: ds.embeddings, "an array, 'embeddings'"),
        (lambda _: 3, "expected a dataset as of open_store, found 3"),
        (lambda ds: ds.drop_vars("sentence"), "does not say its sentences"),
        (lambda ds: ds.isel(sentence=0, drop=True), "does not say its sentences"),
        (lambda ds: ds.assign_coords(sentence=ds.sentence / 2), "does not say its sentences"),
        (lambda ds: ds.isel(sentence=[3, 1, 3]), "has the sentence 3 twice"),
    ],
)
def test_what_names_no_store_or_no_sentences(store: Path, select: Callable[..., Any], words: str) -> None:
    ds = select(featurestore.open_store(store))
    with pytest.raises(ParameterError) as caught:
        store_of(ds)
    message = str(caught.value)
    assert words in message
    assert "pass the store's path" in message
    assert message.isprintable()
