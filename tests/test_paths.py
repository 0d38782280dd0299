"""Paths as users write them: ``~`` is the home folder, and what is no path is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import ParameterError
from featurestore.paths import as_path


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a.zarr") == as_path(Path("~/a.zarr")) == tmp_path / "a.zarr"
    assert as_path("~") == tmp_path
    for text in ("a/~/b", "a~", "/~", "..", "."):
        assert as_path(text) == Path(text)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        *((value, "expected a path") for value in (None, b"a", 1, ["a"], {"a": 1})),
        ("~no-such-user-here/a", "no user"),
        ("a\0b", "NUL"),
        ("a\ud800", "characters"),
        ("a" * 256, "too long"),
        ("ä" * 128, "too long"),
        ("a/" * 2500, "too long"),
    ],
)
def test_what_is_no_path(path: Any, word: str) -> None:
    with pytest.raises(ParameterError, match=word) as caught:
        as_path(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_longest_names() -> None:
    assert as_path("a" * 255).name == "a" * 255
    assert as_path("ä" * 127).name == "ä" * 127
