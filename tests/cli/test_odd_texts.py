"""Texts that could drive a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.refusals import (
    STORE,
    Cli,
    accepted,
    complaint,
    loaded,
)
from tests.sentences import write_folder, write_sentence
from tests.sources.spoiling import T

ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("name", [f"sentence_{ESCAPE}.npz", os.fsdecode(b"sentence_\xff.npz"), "sentence_\n.npz"])
def test_odd_file_name(cli: Cli, tmp_path: Path, name: str, good: bool) -> None:
    write_folder(tmp_path / "trait", 2)
    path = write_sentence(tmp_path / "trait", 2, drop=[] if good else ["layers"])
    path.rename(path.with_name(name))
    result = cli("ingest", tmp_path / "trait")
    assert isinstance(result.exception, SystemExit | None)
    assert "\x1b" not in result.output
    if not good:
        assert len(complaint(result, "sentence_")) == 2
    result = cli("ingest", tmp_path / "trait", "--skip-bad")
    assert "\x1b" not in accepted(result)
    assert "\x1b" not in accepted(cli("info", STORE))


def test_escape_sequences_in_texts(cli: Cli, tmp_path: Path) -> None:
    texts = {"sentence": np.array(ESCAPE), "fragments": np.array([ESCAPE] * T)}
    write_sentence(tmp_path / "trait", 0, changes=texts)
    write_sentence(tmp_path / "trait", 1, changes=texts | {"concept_strength_label": np.array(ESCAPE)})
    write_sentence(tmp_path / "trait", 2, changes=texts | {ESCAPE: np.array(1)}, drop=["layers"])
    results = [
        cli("ingest", tmp_path / "trait"),
        cli("ingest", tmp_path / "trait", "--skip-bad"),
        cli("ingest", tmp_path / ESCAPE),
        cli("info", STORE),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layers", ESCAPE),
        cli("build", "--strategy", ESCAPE, "--input", ESCAPE),
        cli("build", "--strategy", "hidden-to-concept", "--input", ESCAPE, "--layer", 1),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layer", ESCAPE),
        cli("build", "--strategy", "hidden-to-concept", "--input", STORE, "--layer", 1, "--output", ESCAPE),
        cli("ingest", f"--{ESCAPE}"),
        cli(ESCAPE),
    ]
    assert [result.exit_code for result in results] == [1, 0, 1, 0, 2, 2, 1, 2, 2, 2, 2]
    for result in results:
        assert "\x1b" not in result.output
    assert loaded().text.values.tolist() == [ESCAPE]
