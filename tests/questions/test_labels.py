"""Labels from files, and classes, compared with what the files say by themselves."""

from __future__ import annotations

import csv
import hashlib
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.errors import ParameterError, SelectionError, speaking
from featurestore.questions.labels import Classes, Labels, read_classes, read_labels, relabelled

INDICES = [4, 0, 7, 2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sentences(indices: list[int] = INDICES) -> xr.Dataset:
    """What a store says of its sentences; the one of index 0 has no label."""
    coords = {
        "label": ("sentence", np.where(np.array(indices) == 0, -1, np.array(indices) % 4), {"about": "strength"}),
        "has_label": ("sentence", np.array(indices) != 0),
        "text": ("sentence", np.array([f" Sentence, {i}." for i in indices], object)),
    }
    return xr.Dataset({"x": ("sentence", np.array(indices) * 0.5)}, {"sentence": indices, **coords}, {"model": "m"})


def write(rows: dict[int, str], column: str = "truth", path: Path = Path("labels.csv")) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["sentence_index", column], *([i, cell] for i, cell in rows.items())])
    return f"{path}:{column}"


def plain(labels: Labels) -> tuple[list[int], list[bool], tuple[str, ...]]:
    assert [labels.values.dtype.name, labels.has.dtype.name] == ["int64", "bool"]
    return labels.values.tolist(), labels.has.tolist(), labels.names


@pytest.mark.parametrize(
    ("cells", "values", "names"),
    [
        ("3 0 3 1", [3, 0, 3, 1], ()),
        ("3.0 0.0 3 -1", [3, 0, 3, -1], ()),
        ("3. +2 1e1 -0.0", [3, 2, 10, 0], ()),
        ("-2 _ nan 5", [-2, None, None, 5], ()),
        ("1.0 NaN _ 1", [1, None, None, 1], ()),
        ("lie honest lie _", [1, 0, 1, None], ("honest", "lie")),
        ("lie Lie NaN lüge", [1, 0, None, 2], ("Lie", "lie", "lüge")),
        ("3 3.0 0.5 lie", [1, 1, 0, 2], ("0.5", "3", "lie")),
        ("inf 1 _ 2", [2, 0, None, 1], ("1", "2", "inf")),
    ],
)
def test_labels_are_whole_numbers_or_else_names(cells: str, values: list[int | None], names: tuple[str, ...]) -> None:
    given = [cell.replace("_", "") for cell in cells.split()]
    labels = read_labels(sentences(), write(dict(zip(INDICES, given, strict=True)) | {99: "of no sentence here"}))
    has = [value is not None for value in values]
    assert plain(labels) == ([-1 if value is None else value for value in values], has, names)
    assert labels.column == "truth"
    by_index = sorted(zip(INDICES, values, strict=True))
    assert labels.digest == hashlib.sha256(repr((by_index, names)).encode()).hexdigest()


def test_sentences_named_by_their_text() -> None:
    lines = ["truth,sentence", *(f'{i},"Sentence, {i}."' for i in (0, 2, 4, 7)), 'honest,"Sentence, 3."']
    Path("labels.csv").write_text("\n".join(lines))
    assert read_labels(sentences(), "labels.csv: truth ").values.tolist() == INDICES


cells = st.sampled_from(["", "nan", "0", "1", "2.0", "-3"]) | st.sampled_from(["", "lie", "honest", "a, b", "3"])


@settings(max_examples=40)
@given(st.lists(cells, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_sentences_matters(given_: list[str], rng: random.Random) -> None:
    rows, order = list(enumerate(given_)), list(range(len(given_)))
    with tempfile.TemporaryDirectory() as folder:
        where = write(dict(rows), path=Path(folder, "a.csv"))
        if not {*given_} - {"", "nan"}:
            with pytest.raises(ParameterError, match=f"none of the {len(rows)} sentences has a truth"):
                read_labels(sentences(order), where)
            return
        first = read_labels(sentences(order), where)
        rng.shuffle(rows)
        rng.shuffle(order)
        second = read_labels(sentences(order), write(dict(rows), path=Path(folder, "b.csv")))
    assert second.digest == first.digest
    assert second.values.tolist() == first.values[order].tolist()
    assert second.has.tolist() == [given_[i] not in ("", "nan") for i in order]
    if first.names:
        spelled = {i: "2" if cell == "2.0" else cell for i, cell in enumerate(given_)}
        named = [first.names[value] for value in second.values[second.has]]
        assert named == [spelled[i] for i in order if spelled[i] not in ("", "nan")]


def test_the_digest_tells_labels_apart() -> None:
    def digest(*cells: str) -> str:
        return read_labels(sentences(), write(dict(zip(INDICES, cells, strict=True)))).digest

    assert len({digest("0", "1", "1", "0"), digest("0", "1", "1", "1"), digest("a", "b", "b", "a")}) == 3
    assert digest("a", "b", "b", "a") != digest("a", "c", "c", "a")
    assert digest("-1", "1", "1", "1") != digest("", "1", "1", "1")
    assert digest("0", "1.0", "1", "") == digest("0.0", "1", "1", "NaN")


ONE_LINE = [
    ("labels.csv", "0,1\n2,1\n4,1\n7,0.5", r"labels.csv: sentence_index 7: truth: expected an integer, found '0.5'"),
    ("labels.csv", "0,1\n2,1\n4,.5\n7,1", "sentence_index 4: truth: expected an integer, found '.5'"),
    ("labels.csv", "0,1\n2,1\n4,1\n7,1e40", "sentence_index 7: truth: expected an integer, found '1e40'"),
    ("labels.csv", "0,1\n2,1\n4,1\n7,99999999999999999999", "truth: expected an integer, found '99999"),
    ("labels.csv", "0,1\n2,1", "2 of 4 sentences are not in it .sentence_index 4; 7.; add .* empty truth .* no label$"),
    ("labels.csv", "0,1\n2,1\n4,1\n7,1\n2,0", "labels.csv:6: sentence_index 2 has two labels, '1' and '0'$"),
    ("labels.csv", "0,\n2,nan\n4,\n7,\n9,1", "labels.csv: none of the 4 sentences has a truth; fill in some, or name"),
    ("nowhere.csv", "0,1", "nowhere.csv: cannot be read .No such file"),
]


@pytest.mark.parametrize(("file", "rows", "message"), ONE_LINE)
def test_files_without_labels_of_all_sentences(file: str, rows: str, message: str) -> None:
    Path("labels.csv").write_text(f"sentence_index,truth\n{rows}\n")
    with pytest.raises(ParameterError, match=f"^labels_from=: {'labels.csv.*' * (file != 'nowhere.csv')}") as refused:
        read_labels(sentences(), f"{file}:truth")
    refused.match(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given_", ["label", "labels.csv", ":truth", "labels.csv:", "", 3, None, Path("labels.csv")])
def test_no_column_of_a_file(given_: Any) -> None:
    with pytest.raises(ParameterError, match=r"^labels_from=: expected FILE\.csv:COLUMN, found "):
        read_labels(sentences(), given_)


def test_a_missing_column_is_named_as_a_command_line_does() -> None:
    write(dict.fromkeys(INDICES, "1"))
    with (
        speaking("command line"),
        pytest.raises(ParameterError, match=r"^--labels-from: labels\.csv: expected the col"),
    ):
        read_labels(sentences(), "labels.csv:honesty")


# ---- classes


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("3=1,0=0", "0=0,3=1"),
        (" 3 = 1 , 0=0", "0=0,3=1"),
        ({3: 1, 0: 0}, "0=0,3=1"),
        ({np.int64(3): np.int8(1), "0": 0}, "0=0,3=1"),
        ("10=1,9=1,-2=0", "-2=0,9=1,10=1"),
        ("lie=1,honest=0", "honest=0,lie=1"),
        ({"lie": 1, "honest": 0, 12: 7}, "12=7,honest=0,lie=1"),
        ({"a=b": 1, "": 0} | {"c": 2}, None),
        ("a=b=1,c=0", "a=b=1,c=0"),
        ({"a, b": 1, 'say "x"': 0}, '"a, b=1","say ""x""=0"'),
        ('"a, b"=1,"c=0"', '"a, b=1",c=0'),
    ],
)
def test_equal_mappings_are_equal(given_: Any, text: str | None) -> None:
    if text is None:
        with pytest.raises(ParameterError, match=r"^classes=: expected labels and whole numbers"):
            read_classes(given_)
        return
    classes = read_classes(given_)
    assert str(classes) == text
    assert read_classes(text) == classes
    assert hash(read_classes(text)) == hash(classes)


names = st.text(st.sampled_from('ab=,"\n 1-é'), min_size=1, max_size=5).map(str.strip).filter(bool)


@settings(max_examples=60)
@given(st.dictionaries(names | st.integers(-9, 9).map(str), st.integers(0, 9), min_size=1, max_size=5))
def test_classes_are_written_as_they_are_read(mapping: dict[str, int]) -> None:
    classes = read_classes(mapping)
    assert dict(classes.pairs) == mapping
    assert read_classes(str(classes)) == classes
    assert read_classes(dict(reversed(mapping.items()))) == classes


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("", "expected labels and whole numbers from 0, such as 0=0,3=1, found ''"),
        ({}, "expected labels .*, found {}"),
        (None, "expected labels .*, found None"),
        ([0, 3], r"expected labels .*, found \[0, 3\]"),
        ("0=0,", "found ''"),
        ("0=0,3", "found '3'"),
        ("0=0,=1", "found '=1'"),
        ("0=0,3=", "found '3='"),
        ("0=0,3=-1", "found '3=-1'"),
        ("0=0,3=0.5", "found '3=0.5'"),
        ("0=0,3=one", "found '3=one'"),
        ("0=0,3=9999999999999999999", "found '3=9999999999999999999'"),
        ({0: -1}, "found {0: -1}"),
        ({0: 2**63}, "found {0: 9223372036854775808}"),
        ({0: "1"}, "found {0: '1'}"),
        ({" ": 1}, "found {' ': 1}"),
        ({0: 0.5}, "expected an integer, found 0.5"),
        ({0: True}, "expected an integer, found True"),
        ({0.5: 0}, "expected an integer, found 0.5"),
        ("0=0,0=1", "the label 0 is named twice; name each once"),
        ("0=0,0=0", "the label 0 is named twice"),
        ({0: 0, "0": 1}, "the label 0 is named twice"),
        ("a" * 200_000 + "=0", "found 'a*...a*=0'$"),
    ],
)
def test_what_is_no_mapping(given_: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^classes=: (.*{message})") as refused:
        read_classes(given_)
    assert "\n" not in str(refused.value)


labelled = st.lists(st.none() | st.integers(-1, 4), min_size=1, max_size=12)


@settings(max_examples=60)
@given(labelled, st.dictionaries(st.integers(-1, 5), st.integers(0, 3), min_size=1))
def test_classes_of_numbers(labels: list[int | None], mapping: dict[int, int]) -> None:
    values = np.array([-1 if label is None else label for label in labels])
    has = np.array([label is not None for label in labels])
    if lacking := mapping.keys() - {*labels}:
        with pytest.raises(SelectionError, match=r"^classes=: no sentence has the label .*: choose from ") as refused:
            read_classes(mapping).apply(values, has)
        listed = str(refused.value).partition("choose from ")[2]
        known = sorted({label for label in labels if label is not None})
        assert listed == (", ".join(map(str, known)) or "none, as there are no labels")
        assert all(str(label) in str(refused.value) for label in lacking)
        return
    mapped, kept = read_classes(mapping).apply(values, has)
    expected = [None if label is None else mapping.get(label) for label in labels]
    assert mapped.tolist() == [-1 if one is None else one for one in expected]
    assert kept.tolist() == [one is not None for one in expected]


def test_classes_of_names() -> None:
    values, has = np.array([2, 0, -1, 1, 2]), np.array([True, True, False, True, True])
    mapped, kept = read_classes("honest=1,white lie=0").apply(values, has, ("honest", "lie", "white lie"))
    assert (mapped.tolist(), mapped.dtype.name) == ([0, 1, -1, -1, 0], "int64")
    assert (kept.tolist(), kept.dtype.name) == ([True, True, False, False, True], "bool")
    with pytest.raises(SelectionError, match=r"no sentence has the label 2: choose from honest, lie, white lie$"):
        read_classes({2: 0}).apply(values, has, ("honest", "lie", "white lie"))


# ---- in place of a store's labels


def test_labels_and_classes_replace_those_of_a_store() -> None:
    ds = sentences()
    before = ds.copy(deep=True)
    labels = read_labels(ds, write(dict(zip(INDICES, ["lie", "honest", "", "lie"], strict=True))))
    cases: list[tuple[Labels | None, Classes | None, list[int], list[bool]]] = [
        (labels, None, [1, 0, -1, 1], [True, True, False, True]),
        (labels, read_classes("lie=5"), [5, -1, -1, 5], [True, False, False, True]),
        (None, read_classes({2: 0, 3: 1}), [-1, -1, 1, 0], [False, False, True, True]),
        (None, None, [0, -1, 3, 2], [True, False, True, True]),
    ]
    for given_labels, classes, values, has in cases:
        found = relabelled(ds, given_labels, classes)
        expected = before.assign_coords(
            label=("sentence", np.array(values), {"about": "strength"}), has_label=("sentence", np.array(has))
        )
        if given_labels and not classes:
            assert found["label_name"].values.tolist() == ["lie", "honest", "", "lie"]
            found = found.drop_vars("label_name")
        xr.testing.assert_identical(found, expected)
        assert [*found.coords] == [*ds.coords]
    xr.testing.assert_identical(ds, before)
    found = relabelled(ds, labels, None)
    with pytest.raises(ValueError, match="read-only"):
        found.label.values[0] = 3
    assert labels.values.flags.writeable


def test_labels_of_a_store_stay_lazy(folder: Path) -> None:
    featurestore.ingest(folder, "store.zarr")
    ds = featurestore.open_store("store.zarr", chunks={})
    labels = read_labels(ds, write({i: "abcde"[i] for i in range(5)}))
    found = relabelled(ds, labels, read_classes({"b": 0, "e": 1}))
    assert found.label.values.tolist() == [-1, 0, -1, -1, 1]
    assert found.label.attrs == ds.label.attrs
    assert found.hidden_states.chunks is not None
    assert found.sel(sentence=found.has_label).sentence.values.tolist() == [1, 4]


def test_a_file_whose_index_and_text_disagree_is_refused() -> None:
    ds = sentences()
    texts = ds["text"].values.tolist()
    rows = [f'{index},"{text}",1' for index, text in zip(INDICES, [*texts[1:], texts[0]], strict=True)]
    Path("both.csv").write_text("\n".join(["sentence_index,sentence,score", *rows]))
    with pytest.raises(ParameterError, match=r"both\.csv: sentence_index .* there, but .* in the store; mend it"):
        read_labels(ds, "both.csv:score")
    rows = [f'{index},"{text}",{i % 2}' for i, (index, text) in enumerate(zip(INDICES, texts, strict=True))]
    Path("both.csv").write_text("\n".join(["sentence_index,sentence,score", *rows]))
    assert read_labels(ds, "both.csv:score").values.tolist() == [i % 2 for i in range(len(texts))]
