"""Non-finite values: ingested with a warning, refused in a dataset or dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import featurestore
from tests.refusals import (
    STORE,
    Cli,
    accepted,
    build,
    complaint,
    contents,
    loaded,
)
from tests.sentences import sentence_arrays, write_folder, write_sentence
from tests.sources.spoiling import H, L, T


def build_feature(cli: Cli, source: Path, *options: object) -> Result:
    wanted = ("--strategy", "embedding-to-feature", "--target-layer", 1, "--target-feature", 4, "--output", "y.npz")
    return cli("build", *wanted, "--input", source, *options)


@pytest.fixture
def nonfinite(tmp_path: Path) -> Path:
    """Five sentences: inf in the hidden states of number 1, NaN in the activations of number 3, both of layer 1."""
    write_folder(tmp_path / "trait", 5)
    hidden, activations = sentence_arrays(1)["hidden_states"], sentence_arrays(3)["activations"]
    hidden[1, -1, 2] = np.inf
    activations[1, -1, 4] = np.nan
    write_sentence(tmp_path / "trait", 1, changes={"hidden_states": hidden})
    write_sentence(tmp_path / "trait", 3, changes={"activations": activations})
    return tmp_path / "trait"


def test_nonfinite_values_are_ingested_with_a_warning(cli: Cli, nonfinite: Path) -> None:
    output = accepted(cli("ingest", nonfinite))
    assert loaded().n_nonfinite.values.tolist() == [0, 1, 0, 1, 0]
    (warning,) = [line for line in output.splitlines() if line.startswith("Warning: ")]
    assert re.search(r"\b2\b", warning)
    assert re.search(r"NaN|non-finite|infinit", warning)


@pytest.mark.parametrize(("index", "run"), [(1, build), (3, build_feature)])
def test_build_with_nonfinite_values(cli: Cli, nonfinite: Path, index: int, run: Callable[..., Result]) -> None:
    accepted(cli("ingest", nonfinite))
    before = contents(Path())
    lines = complaint(run(cli, STORE, "--output", "y.npz"), f"sentence_index {index}", "1 of 5", "--drop-nonfinite")
    assert len(lines) == 1
    assert contents(Path()) == before

    accepted(run(cli, STORE, "--output", "y.npz", "--drop-nonfinite"))
    with np.load("y.npz") as dataset:
        assert dataset["meta_dropped_sentence_indices"].tolist() == [index]
        assert dataset["meta_sentence_indices"].tolist() == [i for i in range(5) if i != index]
        assert len(dataset["X"]) == len(dataset["y"]) == 4
        assert np.isfinite(dataset["X"]).all()


def test_build_without_the_nonfinite_values(cli: Cli, nonfinite: Path) -> None:
    accepted(cli("ingest", nonfinite))
    accepted(build(cli, STORE, "--output", "y.npz", layer=0))
    assert len(featurestore.load_dataset("y.npz").y) == 5


def test_all_sentences_nonfinite(cli: Cli, tmp_path: Path) -> None:
    for index in range(3):
        write_sentence(tmp_path / "trait", index, changes={"hidden_states": np.full((L, T, H), np.inf, "f2")})
    accepted(cli("ingest", tmp_path / "trait"))
    before = contents(Path())
    result = build(cli, STORE, "--output", "y.npz", "--drop-nonfinite")
    assert len(complaint(result, "3 of 3", "none is left")) == 1
    assert contents(Path()) == before
