"""A folder that has been seen is compared without opening its files, and what changed in it is noticed all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import featurestore
from featurestore.npz import Archive
from featurestore.store import seen
from featurestore.store.commit import Writer
from tests.refusals import accepted, complaint, contents
from tests.sentences import sentence_arrays, write_sentence

Cli = Callable[..., Result]

STORE, CACHE = Path("stores/trait.zarr"), Path("stores/.trait.zarr.seen")


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, though they have just been written."""
    monkeypatch.setattr(seen, "_SETTLED_NS", -(10**10))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been opened as archives."""
    names: list[str] = []
    init = Archive.__init__

    def recording(self: Archive, path: Path) -> None:
        names.append(path.name)
        init(self, path)

    monkeypatch.setattr(Archive, "__init__", recording)
    return names


def files(n: int) -> list[str]:
    return [f"sentence_{index + 1:06d}.npz" for index in range(n)]


def test_an_up_to_date_folder_is_not_opened(cli: Cli, folder: Path, opened: list[str]) -> None:
    accepted(cli("ingest", folder))
    assert set(opened) == {*files(5)}
    opened.clear()
    assert "0 added, 5 there already" in accepted(cli("ingest", folder))
    build = ["build", "--strategy", "hidden-to-concept", "--layer", 1, "--input", folder, "--output", "x.npz"]
    accepted(cli(*build))
    recipe = {"stores": str(folder), "datasets": [{"strategy": "hidden-to-concept", "layer": 0}]}
    assert len(featurestore.sweep(recipe, dry_run=True).datasets) == 1
    assert opened == []
    write_sentence(folder, 5)
    assert "1 added, 5 there already" in accepted(cli("ingest", folder))
    assert set(opened) == {"sentence_000006.npz"}


def test_content_of_the_same_size_and_time_is_noticed(cli: Cli, folder: Path, opened: list[str]) -> None:
    """Written into the same file, its time stamp put back."""
    path = folder / "sentence_000003.npz"
    arrays = sentence_arrays(2, tokens=6)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    accepted(cli("ingest", folder))
    before = path.stat()
    np.savez(path, **arrays | {"concept_strength_label": np.array(3)})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    opened.clear()
    complaint(cli("ingest", folder), str(path), "label (3 instead of 2)")
    assert set(opened) == {path.name}


def test_files_that_were_exchanged_are_noticed(cli: Cli, folder: Path, opened: list[str]) -> None:
    accepted(cli("ingest", folder))
    one, other = folder / "sentence_000001.npz", folder / "sentence_000002.npz"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    opened.clear()
    assert "5 there already" in accepted(cli("ingest", folder))  # the same content by other names
    assert opened == [one.name, other.name]


def test_what_changed_just_now_is_not_remembered(
    cli: Cli, folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "_SETTLED_NS", 10**15)
    accepted(cli("ingest", folder))
    assert not CACHE.exists()
    opened.clear()
    accepted(cli("ingest", folder))
    assert opened == files(5)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xfe", b"null", b"[]", b"3", b"[" * 100_000, b"{}", b'{"a": 3}', b'{"a": [[1], "x", 2]}',
        b'{"a": [3, "x"]}', b'{"a": [[NaN], "x"]}', b'{"a": [[Infinity], "x"]}', b'{"a": [["x"], "x"]}',
        b'{"sentence_000001.npz": [[], "x"], "sentence_000002.npz": [[0, 0, 0, 0], "y"]}',
    ],
)  # fmt: skip
def test_a_damaged_cache_does_no_harm(cli: Cli, folder: Path, opened: list[str], data: bytes) -> None:
    accepted(cli("ingest", folder))
    CACHE.write_bytes(data)
    opened.clear()
    assert "0 added, 5 there already" in accepted(cli("ingest", folder))
    assert opened == files(5)
    opened.clear()
    assert "0 added, 5 there already" in accepted(cli("ingest", folder))
    assert opened == []


def test_a_cache_can_be_deleted(cli: Cli, folder: Path) -> None:
    accepted(cli("ingest", folder))
    before = contents(STORE)
    CACHE.unlink()
    assert "0 added, 5 there already" in accepted(cli("ingest", folder))
    assert contents(STORE) == before
    assert CACHE.exists()
    assert featurestore.verify(STORE, folder) == []


def test_a_cache_that_cannot_be_written_is_done_without(cli: Cli, folder: Path) -> None:
    CACHE.mkdir(parents=True)
    (CACHE / "precious.txt").write_text("precious")
    assert "5 added" in accepted(cli("ingest", folder))
    assert "5 there already" in accepted(cli("ingest", folder))
    assert contents(CACHE) == {"precious.txt": b"precious"}


def test_a_store_that_was_deleted_is_made_again(cli: Cli, folder: Path) -> None:
    """The cache says what the files hold, never what a store holds."""
    accepted(cli("ingest", folder))
    STORE.rename("elsewhere.zarr")
    assert "5 added, 0 there already" in accepted(cli("ingest", folder))
    assert contents(STORE) == contents(Path("elsewhere.zarr"))


def test_a_dry_run_writes_none(cli: Cli, folder: Path) -> None:
    recipe: dict[str, Any] = {"stores": str(folder), "datasets": [{"strategy": "hidden-to-concept", "layer": 0}]}
    featurestore.sweep(recipe, dry_run=True)
    assert contents(Path()) == {}
    accepted(cli("ingest", folder))
    CACHE.unlink()
    before = contents(Path())
    for stores in (str(folder), str(STORE)):
        assert len(featurestore.sweep(recipe | {"stores": stores}, dry_run=True).datasets) == 1
        assert contents(Path()) == before


def test_a_dry_run_does_not_finish_an_interrupted_ingest(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where all sentences are committed, and only the end of the ingest is missing."""
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        complaint(cli("ingest", folder), "Interrupted", code=130)
    before = contents(Path())
    recipe: dict[str, Any] = {"stores": str(folder), "datasets": [{"strategy": "hidden-to-concept", "layer": 0}]}
    assert len(featurestore.sweep(recipe, dry_run=True).datasets) == 1
    assert contents(Path()) == before
    assert "0 added, 5 there already" in accepted(cli("ingest", folder))
    assert featurestore.info(STORE).expected_sentences is None
