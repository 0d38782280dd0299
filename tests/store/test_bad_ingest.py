"""What cannot be ingested, or not into that store; full disks and interruptions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import featurestore
from featurestore.sources import sentences
from tests.refusals import (
    STORE,
    Change,
    Cli,
    accepted,
    complaint,
    contents,
    fill_disk,
    loaded,
    newer_store,
    other_file,
    other_folder,
    other_json,
    other_zarr,
    refused,
)


@pytest.mark.parametrize("options", [(), ("--skip-bad",)])
def test_no_folder(cli: Cli, tmp_path: Path, options: Sequence[str]) -> None:
    refused(cli("ingest", tmp_path / "nowhere", *options), str(tmp_path / "nowhere"), "nothing", "check the path")


def test_folder_is_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "trait").touch()
    refused(cli("ingest", tmp_path / "trait"), str(tmp_path / "trait"), "expected a folder", "found a file")


@pytest.mark.parametrize("name", ["sentences", "sentence_000001.txt", "x_sentence_000001.npz"])
def test_folder_without_sentences(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "trait").mkdir()
    (tmp_path / "trait" / name).touch()
    refused(cli("ingest", tmp_path / "trait"), str(tmp_path / "trait"), "sentence_*.npz", "found none")


def test_folder_above_sentences(cli: Cli, folder: Path) -> None:
    refused(cli("ingest", folder.parent), "sentence_*.npz", "found none", f"did you mean {folder}?")


@pytest.mark.parametrize("argument", [(), ("x", "y"), ("x", "--what"), ("x", "--store")])
def test_wrong_usage_of_ingest(cli: Cli, argument: Sequence[str]) -> None:
    refused(cli("ingest", *argument), code=2)


@pytest.mark.parametrize("make", [other_file, other_folder, other_zarr, other_json, newer_store])
def test_store_path_is_something_else(cli: Cli, folder: Path, tmp_path: Path, make: Change) -> None:
    path = tmp_path / "other"
    make(path)
    before = contents(tmp_path), path.is_file() and path.read_bytes()
    refused(cli("ingest", folder, "--store", path), str(path))
    assert (contents(tmp_path), path.is_file() and path.read_bytes()) == before


def test_store_path_below_a_file(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    refused(cli("ingest", folder, "--store", tmp_path / "file" / "x.zarr"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("failing", ["fsync", "open"])
@pytest.mark.parametrize("part", [0, 0.2, 0.6, 0.9])
@pytest.mark.parametrize("before", [0, 2])
def test_disk_full_at_ingest(
    cli: Cli, begun: Path, folder: Path, tmp_path: Path, failing: str, part: float, before: int
) -> None:
    if before:
        shutil.copytree(begun / "stores", "stores")
    spare = shutil.copytree(Path.cwd(), tmp_path / "spare")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(spare)
        needed = fill_disk(context, failing, np.inf)
        accepted(cli("ingest", folder))
    with pytest.MonkeyPatch.context() as context:
        fill_disk(context, failing, int(part * needed[0]))
        lines = complaint(cli("ingest", folder), "No space left on device")
    assert not [path for path in Path().rglob("*") if path.suffix in (".partial", ".lock")]
    if STORE.exists():  # all that it had before, or all of the new sentences, too
        assert loaded().sizes["sentence"] in ([before, 5] if before else [5])
        xr.testing.assert_equal(loaded().isel(sentence=slice(2)), loaded(spare / STORE).isel(sentence=slice(2)))
    else:
        assert contents(Path()) == {}
    accepted(cli("ingest", folder))
    xr.testing.assert_identical(loaded(), loaded(spare / STORE))
    assert len(lines) == 1
    assert str(STORE) in lines[0]


def test_interrupted_ingest_goes_on(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.store.layout.ROWS", 2)
    monkeypatch.setattr("featurestore.store.layout.BATCH_ROWS", 2)
    read = sentences.read

    def interrupt(file: Any) -> Any:
        if file.sentence_index == 3:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as context:
        context.setattr("featurestore.sources.sentences.read", interrupt)
        result = cli("ingest", folder)
    complaint(result, "Interrupted", "same command", code=130)
    assert loaded().sentence.values.tolist() == [0, 1]
    assert [path.name for path in Path("stores").iterdir()] == ["trait.zarr"]

    output = accepted(cli("ingest", folder))
    assert "3 added, 2 there already" in output
    featurestore.ingest(folder, "whole.zarr")
    xr.testing.assert_identical(loaded(), loaded(Path("whole.zarr")))


def test_interrupted_before_the_first_batch(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_file: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.sources.sentences.read", interrupt)
    complaint(cli("ingest", folder), "Interrupted", "same command", code=130)
    assert contents(Path()) == {}
