"""Options and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

import featurestore
from featurestore.cli.commands import main
from tests.sentences import write_folder

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="Run the reliability tests in their long form.")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of the reliability tests is asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of five sentences."""
    write_folder(tmp_path / "trait", 5)
    return tmp_path / "trait"


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sentences in `trait`, and their store in `stores`. Not to be changed."""
    path = tmp_path_factory.mktemp("begun")
    write_folder(path / "trait", 2)
    featurestore.ingest(path / "trait", path / "stores" / "trait.zarr")
    return path


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line in an empty working folder; returns click's result, whose output includes stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run
