"""The notebook of the examples, executed: ``uv run --group test python -m tests.explore.notebook`` writes its outputs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "explore.ipynb"


def executed(folder: Path) -> nbformat.NotebookNode:
    """Execute the notebook in a copy of the examples, so that its stores and datasets are in `folder`, too."""
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns(".*"))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(folder / "examples")}}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False, resources=resources)
    return client.execute()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = executed(Path(folder))
    done.metadata = {name: done.metadata[name] for name in ("kernelspec",)}
    NOTEBOOK.write_text(nbformat.writes(done) + "\n")
