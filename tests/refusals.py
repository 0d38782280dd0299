"""Refusals of bad input: one clear line each, an exit code, no traceback, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from click.testing import Result

import featurestore
from tests.sentences import write_folder

Cli = Callable[..., Result]
Change = Callable[[Path], object]
STORE = Path("stores/trait.zarr")


def contents(path: Path) -> dict[str, bytes | None]:
    """Everything below a path: the bytes of each file, None for each folder."""
    return {str(below.relative_to(path)): below.read_bytes() if below.is_file() else None for below in path.rglob("*")}


def complaint(result: Result, *words: str, code: int = 1) -> list[str]:
    """Check a refusal; return its lines."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output
    return result.output.strip().splitlines()


def refused(result: Result, *words: str, code: int = 1) -> None:
    """Check that a refusal is one line, below click's hint at ``--help`` for wrong usage, and changed nothing here."""
    lines = complaint(result, *words, code=code)
    assert len(lines) <= (1 if code == 1 else 4)
    assert lines[-1].startswith("Error: ")
    for word in words:
        assert word in lines[-1]
    assert contents(Path()) == {}


def names_bad(result: Result, path: Path, *words: str) -> str:
    """Check that exactly one line names a bad file, with what is wrong; return it."""
    (line,) = [line for line in complaint(result) if f"{path}: " in line]
    for word in words:
        assert word in line
    return line


def accepted(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def skipped(store: Path = STORE) -> dict[str, str]:
    return dict(featurestore.info(store).skipped)


def loaded(store: Path = STORE) -> xr.Dataset:
    return featurestore.open_store(store).load()


def other_file(path: Path) -> None:
    path.write_text("precious")


def other_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("precious")


def other_zarr(path: Path) -> None:
    zarr.create_group(path, attributes={"precious": 1}).create_array("x", shape=(2,), dtype="int64")


def other_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("[]")


def newer_store(path: Path) -> None:
    write_folder(path.parent / "small", 1)
    featurestore.ingest(path.parent / "small", path)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["featurestore_schema"] = 99
    (path / "zarr.json").write_text(json.dumps(root))


def build(cli: Cli, source: Path, *options: object, layer: int = 1) -> Result:
    """Build the dataset of one layer."""
    return cli("build", "--strategy", "hidden-to-concept", "--layer", layer, "--input", source, *options)


def fill_disk(monkeypatch: pytest.MonkeyPatch, failing: str, calls: float) -> list[int]:
    """Let `os.fsync`, or `Path.open` for writing, fail after some calls; return a list whose item counts the calls."""
    count = [0]
    fsync, open_path = os.fsync, Path.open

    def spend() -> None:
        count[0] += 1
        if count[0] > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited_fsync(fd: int) -> None:
        spend()
        fsync(fd)

    def limited_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            spend()
        return open_path(path, mode, *args, **kwargs)

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", limited_fsync)
    else:
        monkeypatch.setattr(Path, "open", limited_open)
    return count
