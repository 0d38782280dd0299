"""The notebook of the examples, executed.

``uv run --group test python -m tests.explore.notebook`` writes its outputs into it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "explore.ipynb"


def executed(folder: Path) -> nbformat.NotebookNode:
    """Execute the notebook in a copy of the examples, so that its stores and datasets are in `folder`, too."""
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns(".*"))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(folder / "examples")}}
    homes = {"JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "IPYTHONDIR": str(folder / "ipython")}
    with patch.dict(os.environ, homes):
        return NotebookClient(notebook, timeout=120, record_timing=False, resources=resources).execute()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = executed(Path(folder))
    done.metadata = {"kernelspec": done.metadata["kernelspec"]}  # and not which version of Python it was
    NOTEBOOK.write_text(nbformat.writes(done) + "\n")
