"""Builds that are refused: one clear line each, and nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import featurestore
from tests.refusals import (
    Change,
    Cli,
    accepted,
    build,
    complaint,
    contents,
    fill_disk,
    names_bad,
    newer_store,
    other_file,
    other_folder,
    other_json,
    other_zarr,
    refused,
)
from tests.sentences import write_folder, write_sentence


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six sentences with layers 0, 1 (two SAEs), 5 and features 0-9. Not to be changed."""
    path = tmp_path_factory.mktemp("built")
    write_folder(path / "trait", 6, layers=(0, 1, 1, 5), average_l0s=(3, 3, 7, 3))
    featurestore.ingest(path / "trait", path / "trait.zarr")
    return path / "trait.zarr"


CONCEPT, HIDDEN, EMBEDDING = "hidden-to-concept", "hidden-to-feature", "embedding-to-feature"
BUILDS: list[tuple[str, str, int, Sequence[str]]] = [
    (CONCEPT, "--layer 9", 1, ["layer 9", "choose from 0-1,5"]),
    (CONCEPT, "--layer -1", 1, ["layer -1", "choose from 0-1,5"]),
    (CONCEPT, "--layers 0,3-6", 1, ["layer 3", "choose from 0-1,5"]),
    (CONCEPT, "--layer a", 2, ["--layer", "'a'", "integer"]),
    (CONCEPT, "--layer 1.5", 2, ["--layer", "'1.5'", "integer"]),
    (CONCEPT, "--layers 5-2", 2, ["layers", "5-2", "backwards", "2-5"]),
    *(
        (CONCEPT, f"--layers {spec}", 2, ["layers", repr(spec), "0-2,10"])
        for spec in ("a", "1,,2", "-3", "1-", "1-2-3")
    ),
    (CONCEPT, "--layers=", 2, ["layers", "''", "0-2,10"]),
    (CONCEPT, "--layers 0-999999999", 2, ["layers", "0-2,10"]),
    (CONCEPT, "--layers 0,0", 2, ["layers", "0 named twice"]),
    (CONCEPT, "--layers 0-2,1", 2, ["layers", "1 named twice"]),
    (CONCEPT, "--layer 1 --layers 0-1", 2, ["--layer", "--layers", "not both"]),
    (CONCEPT, "", 2, ["--layer", "--layers"]),
    (CONCEPT, "--layer 1 --target-feature 2", 2, ["--target-feature", "takes no such option", "--layers"]),
    (HIDDEN, "--target-layer 0 --target-feature 10", 1, ["feature 10", "0-9"]),
    (HIDDEN, "--target-layer 0 --target-feature -1", 1, ["feature -1", "0-9"]),
    (HIDDEN, "--target-layer 9 --target-feature 1", 1, ["layer 9", "choose from 0-1,5"]),
    (HIDDEN, "--target-layer 0 --target-feature 1 --input-layer 9", 1, ["layer 9", "choose from 0-1,5"]),
    (HIDDEN, "--target-layer 0", 2, ["needs --target-feature"]),
    (HIDDEN, "", 2, ["needs --target-layer and --target-feature"]),
    (HIDDEN, "--target-layer 1 --target-feature 1", 1, ["layer 1", "--average-l0", "[3, 7]"]),
    (HIDDEN, "--target-layer 1 --target-feature 1 --average-l0 5", 1, ["average L0 5", "layer 1", "[3, 7]"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --average-l0 7", 1, ["average L0 7", "layer 0", "[3]"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --layer 1", 2, ["--layer", "takes no such option"]),
    (EMBEDDING, "--target-layer 0 --target-feature 1 --input-layer 1", 2, ["--input-layer", "takes no such option"]),
    (EMBEDDING, "--target-layer 0 --target-feature x", 2, ["--target-feature", "'x'", "integer"]),
    (EMBEDDING, "--target-feature 1", 2, ["needs --target-layer"]),
    (CONCEPT, "--layer 1 --normalize robust", 2, ["--normalize", "'robust'", "standardize", "minmax", "none"]),
    ("nonsense", "--layer 1", 2, ["--strategy", "'nonsense'", CONCEPT, HIDDEN, EMBEDDING]),
    (CONCEPT, "--layer 1 --nonsense 2", 2, ["--nonsense"]),
    (CONCEPT, "--layer 1 --output x.npy", 2, ["x.npy", ".npz"]),
    (CONCEPT, "--layer 1 --output x", 2, ["x", ".npz"]),
]


@pytest.mark.parametrize(("strategy", "options", "code", "words"), BUILDS, ids=[f"{b[0]} {b[1]}" for b in BUILDS])
def test_wrong_build(cli: Cli, store: Path, strategy: str, options: str, code: int, words: Sequence[str]) -> None:
    refused(cli("build", "--strategy", strategy, "--input", store, *options.split()), *words, code=code)


@pytest.mark.parametrize(
    ("options", "missing"), [(("--input", "x"), "--strategy"), (("--strategy", CONCEPT, "--layer", 1), "--input")]
)
def test_build_lacks_an_option(cli: Cli, options: Sequence[object], missing: str) -> None:
    complaint(cli("build", *options), "Error: ", missing, code=2)
    assert contents(Path()) == {}


def test_build_without_input(cli: Cli, tmp_path: Path) -> None:
    refused(build(cli, tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such store", "check the path")


@pytest.mark.parametrize("make", [other_file, other_folder, other_zarr, other_json])
def test_build_from_something_else(cli: Cli, tmp_path: Path, make: Change) -> None:
    make(tmp_path / "other")
    refused(build(cli, tmp_path / "other"), str(tmp_path / "other"), "check the path")
    refused(cli("info", tmp_path / "other"), str(tmp_path / "other"), "check the path")


def test_build_from_newer_store(cli: Cli, tmp_path: Path) -> None:
    newer_store(tmp_path / "newer.zarr")
    for result in (build(cli, tmp_path / "newer.zarr"), cli("info", tmp_path / "newer.zarr")):
        refused(result, str(tmp_path / "newer.zarr"), "schema version 99", "reads 2", "upgrade")


@pytest.mark.parametrize("broken", ["sentence/c.0", "label/c.0", "hidden_states/c.0.0.0.0"])
def test_build_from_damaged_store(cli: Cli, store: Path, tmp_path: Path, broken: str) -> None:
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    data = bytearray((damaged / broken).read_bytes())
    data[:16] = bytes(16)
    (damaged / broken).write_bytes(data)
    refused(build(cli, damaged, "--output", "x.npz", layer=0), str(damaged))


def test_info_without_store(cli: Cli, tmp_path: Path) -> None:
    refused(cli("info", tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such store", "ingest")


def test_output_is_a_folder(cli: Cli, store: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").mkdir()
    refused(build(cli, store, "--output", tmp_path / "x.npz"), str(tmp_path / "x.npz"), "found a folder")


def test_output_below_a_file(cli: Cli, store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(build(cli, store, "--output", tmp_path / "file" / "x.npz"), str(tmp_path / "file"))


def test_output_with_other_content(cli: Cli, store: Path) -> None:
    path = Path("x.npz")
    accepted(build(cli, store, "--output", path))
    first = path.read_bytes()
    accepted(build(cli, store, "--output", path))
    complaint(build(cli, store, "--output", path, layer=5), "x.npz", "other content", "--overwrite")
    assert contents(Path()) == {"x.npz": first}
    accepted(build(cli, store, "--output", path, "--overwrite", layer=5))
    assert list(contents(Path())) == ["x.npz"]
    assert featurestore.load_dataset(path).metadata["input_layers"].tolist() == [5]


def test_output_that_is_no_dataset(cli: Cli, store: Path) -> None:
    Path("x.npz").write_text("precious")
    complaint(build(cli, store, "--output", "x.npz"), "x.npz", "other content", "--overwrite")
    assert contents(Path()) == {"x.npz": b"precious"}


def test_build_from_a_folder_with_a_bad_file(cli: Cli, folder: Path) -> None:
    path = write_sentence(folder, 2, drop=["layers"])
    names_bad(build(cli, folder), path, "'layers'")
    assert contents(Path()) == {}


@pytest.mark.parametrize("command", ["build", "ingest"])
def test_other_folder_of_the_same_name(cli: Cli, folder: Path, tmp_path: Path, command: str) -> None:
    accepted(cli("ingest", folder))
    before = contents(Path())
    other = tmp_path / "other" / folder.name
    write_folder(other, 3, seed=1)
    result = build(cli, other) if command == "build" else cli("ingest", other)
    complaint(result, str(other), "--store")
    assert contents(Path()) == before


def test_disk_full_at_build(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, "fsync", 0)
    refused(build(cli, store, "--output", "x.npz"), "x.npz", "No space left on device")
    Path("x.npz").write_text("precious")
    complaint(build(cli, store, "--output", "x.npz", "--overwrite"), "x.npz", "No space left on device")
    assert contents(Path()) == {"x.npz": b"precious"}
