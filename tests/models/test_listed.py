"""The list of sentences, and what is said before any model is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import ParameterError
from featurestore.models.listed import listed


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('label,sentence,other\n3,"He lied, twice.",x\n,He slept.,y\n')
    assert [*map(tuple, listed(path))] == [(0, "He lied, twice.", 3), (1, "He slept.", None)]
    path.write_text("sentence_index,sentence,concept_strength_label,label\n7,one,2,9\n3,two,0,9\n")
    assert [*map(tuple, listed(path))] == [(7, "one", 2), (3, "two", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nhello\n", "a.csv: expected the column sentence, found text"),
        ("sentence\n", "a.csv: expected sentences, found none"),
        ("sentence,label\n,3\n", "a.csv:2: sentence: expected a text, found none"),
        ("sentence,label\nx,high\n", "a.csv:2: label: expected an integer, found 'high'"),
        ("sentence,sentence_index\nx,1\ny,1\n", "a.csv:3: sentence_index 1 is there twice"),
    ],
)
def test_refusals(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ParameterError, match=message):
        listed(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (2, ["--batch-size", 0], "--batch-size: expected at least 1, found 0"),
        (2, ["--layers", "x"], "--layers: expected numbers and ranges"),
        (1, [], "Error: needs torch, which is not installed: install the extra transformers, as by pip install"),
    ],
)
def test_one_line_and_nothing_written(code: int, options: list[Any], message: str, cli: Any) -> None:
    if not options and importlib.util.find_spec("torch"):
        pytest.skip("torch is installed")
    Path("a.csv").write_text("sentence\nHe lied.\n")
    result = cli("extract", "a.csv", "--model", "no/such", *options)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert len(result.output.splitlines()) == 1
    assert [*map(str, Path().iterdir())] == ["a.csv"]
