"""The notebook of the examples runs, and says what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat

from tests.explore.notebook import NOTEBOOK, executed


def code(notebook: Any) -> dict[str, Any]:
    """Cells of code, by name."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def texts(cell: Any) -> list[str]:
    """What a cell printed and returned, as text."""
    return [output.text if output.output_type == "stream" else output.data["text/plain"] for output in cell.outputs]


def test_it_runs_without_errors_and_warnings_and_says_the_same(tmp_path: Path) -> None:
    written, done = code(nbformat.read(NOTEBOOK, 4)), code(executed(tmp_path))
    assert written.keys() == done.keys()
    for name, cell in done.items():
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], name
        assert len(cell.outputs) == len(written[name].outputs) == 1, name
        if "same" in cell.metadata.get("tags", []):
            assert texts(cell) == texts(written[name]), name
    assert (tmp_path / "generated_datasets" / "probe.npz").is_file()


def test_it_is_kept_executed_without_noise() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert [cell.execution_count for cell in code(notebook).values()] == [*range(1, 1 + len(code(notebook)))]
    assert {*notebook.metadata} == {"kernelspec"}
    assert {name for cell in notebook.cells for name in cell.metadata} <= {"tags"}
    assert len(NOTEBOOK.read_bytes()) < 60_000
    outputs = json.dumps([cell.outputs for cell in code(notebook).values()])
    assert not re.search(r"(?<![.\w])/(home|root|tmp|Users|work|usr)/", outputs)
    assert "data-" not in outputs  # which xarray's own HTML would be full of
