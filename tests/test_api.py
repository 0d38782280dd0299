"""The package's face: names and command line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import featurestore
from featurestore.store import info as inspection
from tests.sentences import SAMPLE, write_folder, write_sentence

ROOT = Path(featurestore.__file__).parents[1]


def test_exports_are_sorted_and_complete() -> None:
    assert featurestore.__all__ == sorted(featurestore.__all__)
    for name in featurestore.__all__:
        assert getattr(featurestore, name).__doc__, name
    imported = {
        alias.name
        for node in ast.walk(ast.parse((ROOT / "featurestore" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("featurestore.")
        for alias in node.names
    }
    assert imported == set(featurestore.__all__)
    with pytest.raises(AttributeError):
        featurestore.nothing  # noqa: B018


def imports() -> dict[str, set[str]]:
    """What each module of the package imports of it, also for its types alone."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "featurestore").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {(node.module or "", f"{node.module}.{alias.name}") for node in nodes for alias in node.names}
        found[module] = {inner if inner in files else outer for outer, inner in named if outer in files}
    return found


def test_imports_point_down() -> None:
    """The rooms are drawn in ranks: none imports from one of its own rank or above, and no room in circles."""
    drawing = (ROOT / "docs" / "design.md").read_text().partition("cli.py -> ")[2].partition("\n\n")[0]
    ranks = [re.split(r"\s{3,}", line.strip())[0].split() for line in drawing.splitlines()]
    rank = {room: position for position, rooms in enumerate(ranks) for room in rooms}
    faces = ("featurestore", "featurestore.__main__")  # from outside, like cli.py
    known = {module: imported for module, imported in imports().items() if module not in faces}
    rooms = {module: module.split(".")[1] for module in known}
    assert set(rooms.values()) == rank.keys()
    for module, imported in known.items():
        for other in imported & known.keys():
            assert rooms[other] == rooms[module] or rank[rooms[other]] > rank[rooms[module]], f"{module}: {other}"
    TopologicalSorter(known).prepare()  # raises CycleError


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    lacking = [name for name in featurestore.__all__ if f"::: featurestore.{name}\n" not in f"{pages}\n"]
    assert lacking == ["__version__"]


def test_every_error_is_in_the_tree_and_a_builtins_subclass() -> None:
    from featurestore import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not errors.FeatureStoreError:
            assert issubclass(kind, errors.FeatureStoreError)
            assert any(base.__module__ == "builtins" for base in kind.__mro__[1:-3]), name
            assert name in (errors.__doc__ or "")


HELP = [[], ["build"], ["ingest"], ["info"], ["features"], ["show"], ["plot"], ["report"]]


@pytest.mark.parametrize("command", [[*command, "--help"] for command in HELP])
def test_help_needs_none_of_the_heavy_libraries(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from featurestore.cli.commands import main\n"
        f"try: main({command!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'numpy', 'zarr', 'xarray', 'dask', 'pandas', 'fsspec', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_has_no_effects(tmp_path: Path) -> None:
    code = "import featurestore; [getattr(featurestore, name) for name in featurestore.__all__]"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (b"", b"", [])


def test_help_shows_every_strategy_with_its_options(cli: Any) -> None:
    text = " ".join(cli("build", "--help").output.split())
    for strategy in featurestore.list_strategies().values():
        assert strategy.name in text
        assert all(option.flag in text for option in strategy.options)


def test_version(cli: Any) -> None:
    assert cli("--version").output.strip().endswith(featurestore.__version__)


def test_the_package_runs_as_the_command_line() -> None:
    command = [sys.executable, "-m", "featurestore", "--version"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == f"featurestore, version {featurestore.__version__}\n"


def test_the_old_command_lines(cli: Any) -> None:
    """Each as it was, for a folder of NPZs; then without --output, where the name says what is inside."""
    common = ["--input", SAMPLE, "--target-layer", 12, "--target-feature", 123]
    lines = {
        "embedding-to-feature_target-layer-12_target-feature-123": ["embedding-to-feature", *common],
        "hidden-to-feature_target-layer-12_target-feature-123": ["hidden-to-feature", *common],
        "hidden-to-feature_target-layer-12_target-feature-123_input-layer-4": [
            "hidden-to-feature", *common, "--input-layer", 4,
        ],
        "hidden-to-concept_layer-12": ["hidden-to-concept", "--input", SAMPLE, "--layer", 12],
        "hidden-to-concept_layers-0-2,10,15-17": ["hidden-to-concept", "--input", SAMPLE, "--layers", "0-2,10,15-17"],
    }  # fmt: skip
    for name, line in lines.items():
        for method in ("standardize", "minmax", "none"):
            result = cli("build", "--strategy", *line, "--normalize", method, "--output", "out.npz", "--overwrite")
            assert result.exit_code == 0, result.output
            assert str(featurestore.load_dataset("out.npz").normalization.method) == method
        result = cli("build", "--strategy", *line)
        assert result.exit_code == 0, result.output
        assert Path(f"generated_datasets/dishonesty/{name}_standardize.npz").is_file()
    assert [path.name for path in Path("stores").iterdir() if path.name[0] != "."] == ["dishonesty.zarr"]


def test_build_says_that_it_ingested_and_appends_what_is_missing(cli: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "trait", 3)
    build = ["build", "--strategy", "hidden-to-concept", "--layer", 0, "--input", tmp_path / "trait"]
    assert "3 sentences" in cli(*build, "--output", "a.npz").output
    write_sentence(tmp_path / "trait", 3)
    assert "1 sentences" in cli(*build, "--output", "b.npz").output
    assert featurestore.load_dataset("b.npz").metadata["n_samples"] == 4
    (tmp_path / "trait" / "sentence_000001.npz").unlink()
    assert "also holds 1 sentences that are not in" in cli(*build, "--output", "c.npz").output


def test_info(cli: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "trait", 7, average_l0s=[3, 3, 300])
    cli("ingest", tmp_path / "trait", "--store", "s.zarr")
    output = cli("info", "s.zarr").output
    assert "0: 2, 1: 2, 2: 2, 3: 1" in output
    assert "2 to 7" in output
    assert [line.split()[:2] for line in output.splitlines() if "MISMATCH" in line] == [["5", "300"]]
    info = inspection.info("s.zarr")
    ds = featurestore.open_store("s.zarr").compute()
    for position, sae in enumerate(info.saes):
        active = ds.activations.sel(token=-1).isel(layer=position).values != 0
        assert sae.measured_l0 == pytest.approx(active.sum(axis=1).mean())
    assert info.bytes_on_disk == sum(path.stat().st_size for path in Path("s.zarr").rglob("*") if path.is_file())
