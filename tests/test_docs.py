"""Every command, every piece of code and every recipe of the README and of the pages in docs/, run as written."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import pkgutil
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

import featurestore
from featurestore.cli.commands import main
from featurestore.questions.options import OPTIONS
from featurestore.strategies import registry

ROOT = Path(featurestore.__file__).parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

SETTING_UP = "pip install uv && "
PROBES = (
    "plot separability stores/dishonesty.zarr --output docs/images/accuracy_by_layer.svg",
    "report stores/dishonesty.zarr --output report.html",
)
ELSEWHERE = {
    *(f"uv run --extra report cli.py {command}" for command in PROBES),
    "pip install uv && uv run --group test pytest",
    "uv run --group test pytest tests/reliability",
    "uv run --group test examples/accuracy_by_layer.py",
    "uv run --extra distributed examples/cluster.py examples/layers.yaml",
    "uv run --extra transformers cli.py extract examples/dishonesty.csv "
    "--model HuggingFaceTB/SmolLM2-135M-Instruct --layers 0-5,10,15 --store stores/smollm2.zarr",
    "uv run --extra sae-lens cli.py extract examples/dishonesty.csv --model google/gemma-2-2b --layers 0-25 "
    "--store stores/gemma.zarr "
    "--sae gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical "
    "--sae gemma-scope-2b-pt-res-canonical:layer_20/width_16k/canonical",
    "uv run --group benchmark benchmarks/queries.py",
    "uv run --group test benchmarks/batches.py",
    "uv run --group test benchmarks/features.py",
    "uv run --group test benchmarks/main_job.py",
    "uv run --group test benchmarks/sweep.py",
    "uv run --group test benchmarks/tokens.py",
}
"""Commands that test or take long: they are run by hand, and by the checks."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the examples, the store of the sample and those of its halves, which all pages share."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    featurestore.ingest(folder / "examples" / "dishonesty", folder / "stores" / "dishonesty.zarr")
    with contextlib.chdir(folder):
        exec(next(block for language, block in blocks("docs/questions.md") if language == "python"), {})
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_page_runs_as_written(page: str) -> None:
    namespace: dict[str, Any] = {}
    for language, block in blocks(page):
        match language:
            case "sh":
                for command in commands(block):
                    run(command)
            case "python":
                known = registry.registered()
                with threadpool_limits(1):  # small matrices, and tests beside it
                    exec(compile(block, page, "exec"), namespace)
                registry.replace_all(known)  # the commands load the same strategies as plugins
            case "yaml":
                Path("recipe.yaml").write_text(block)
                done = featurestore.sweep("recipe.yaml")
                assert done.datasets
                assert not done.in_state("unfit")
            case "py":  # needs what is not installed here
                compile(block, page, "exec")
            case _:
                pytest.fail(f"{page}: neither sh, python nor yaml, so nothing would run it: {block}")


def run(command: str) -> None:
    words = re.sub("^uv run --extra [a-z]+", "uv run", command.removeprefix(SETTING_UP)).split()
    if command in ELSEWHERE:
        return
    assert words[:3] == ["uv", "run", "cli.py"], command
    result = CliRunner().invoke(main, words[3:])
    assert result.exit_code == 0, (command, result.output)


def test_every_command_that_is_run_elsewhere_is_on_some_page() -> None:
    written = {
        command for page in PAGES for language, block in blocks(page) if language == "sh" for command in commands(block)
    }
    assert written >= ELSEWHERE


def test_examples_in_docstrings_are_true() -> None:
    modules = [name for _, name, _ in pkgutil.walk_packages(featurestore.__path__, "featurestore.")]
    results = [doctest.testmod(importlib.import_module(name)) for name in modules if not name.endswith("__main__")]
    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0


def table(page: str, first_column: str) -> list[list[str]]:
    """Cells of the table whose first column has that head."""
    rows = (ROOT / page).read_text().partition(f"| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_readme_tells_of_every_strategy() -> None:
    assert {name.strip("`") for name, *_ in table("README.md", "strategy")} == {*registry.registered()}


def test_every_array_of_a_dataset_is_explained(tmp_path: Path) -> None:
    cells = [cell for row in table("docs/datasets.md", "array") for cell in row]
    explained = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    common: dict[str, Any] = {"test_size": 0.25, "folds": 2, "group_by": "n_tokens", "output": "all.npz"}
    labels = {"labels_from": "examples/labels.csv:subject", "classes": {"first": 0, "third": 1}, "where": "label=0-1"}
    feature = {"target_layer": 15, "target_feature": 61, "normalize": "standardize"}
    options: dict[str, dict[str, Any]] = {
        "hidden-to-feature": {**feature, "tokens": "all", "target_tokens": "max", "drop_short": True},
        "activation-to-concept": {"layer": 15, "normalize": "minmax", **labels, "control": "shuffled-labels"},
        "hidden-to-concept": {"layers": "5,15", "combine": "difference", "classes": "0=0,3=1", "reduce": "pca-2"},
        "hidden-sequence-to-concept": {"layer": 15, "special": True},
    }
    for strategy, own in options.items():
        featurestore.build("stores/dishonesty.zarr", strategy, overwrite=True, **common, **own)
        with np.load("all.npz") as arrays:
            assert set(arrays.files) <= explained
    for file in sorted(Path("examples/dishonesty").glob("*.npz"))[:2]:  # of which one is in the first half
        shutil.copy(file, tmp_path)
    stores: list[str | Path] = ["stores/first.zarr", tmp_path]
    featurestore.build(
        stores, "embedding-to-concept", test_store=tmp_path.name, drop_nonfinite=True, output="all.npz", overwrite=True
    )
    with np.load("all.npz") as arrays:
        assert len(arrays["meta_near_duplicate_sentence_indices"]) == 1
        assert set(arrays.files) <= explained
    featurestore.build(stores, "embedding-to-concept", y="store", output="all.npz", overwrite=True)
    with np.load("all.npz") as arrays:
        assert "meta_y" in arrays.files
        assert set(arrays.files) <= explained


def questions() -> list[tuple[str, str]]:
    """Beginning and options of each command in the tables of questions."""
    found, beginning = [], ""
    for line in (ROOT / "docs" / "questions.md").read_text().splitlines():
        if line.startswith("| question"):
            beginning = line.split("`")[1]
        elif line.startswith("| ") and beginning:
            found.append((beginning, line.split("`")[1]))
        else:
            beginning = beginning if line.startswith("|---") else ""
    return found


@pytest.mark.parametrize(("beginning", "options"), questions())
def test_every_question_has_a_command(beginning: str, options: str) -> None:
    run(f"{beginning} {options}")


def test_the_questions_name_every_option() -> None:
    asked = {word for _, options in questions() for word in options.split()}
    assert asked >= {f"--{name.replace('_', '-')}" for name in OPTIONS}


SENTENCE = table("docs/sentences.md", "array")


@pytest.mark.parametrize(("array", "note"), [(cells[0].strip("`"), cells[3]) for cells in SENTENCE])
def test_sentence_arrays_are_required_or_optional_as_written(array: str, note: str, tmp_path: Path) -> None:
    with np.load("examples/dishonesty/sentence_000001.npz") as sentence:
        arrays = {name: sentence[name] for name in sentence.files}
    assert len(SENTENCE) == len(arrays)
    del arrays[array]
    np.savez(tmp_path / "sentence_000001.npz", **arrays)
    if note.startswith("optional"):
        assert featurestore.ingest(tmp_path, tmp_path / "s.zarr").n_sentences == 1
    else:
        with pytest.raises(featurestore.SourceError, match=f"missing array '{array}'"):
            featurestore.ingest(tmp_path, tmp_path / "s.zarr")


def test_sentence_arrays_have_the_shapes_and_dtypes_as_written() -> None:
    with np.load("examples/dishonesty/sentence_000001.npz") as sentence:
        T, H, L, S, F = 18, 576, 11, 11, 1024
        shapes = {
            "(T, H)": (T, H),
            "(L, T, H)": (L, T, H),
            "(S, T, F)": (S, T, F),
            "(L,)": (L,),
            "(S,)": (S,),
            "(T,)": (T,),
            "()": (),
        }
        for name, shape, dtype, *_ in SENTENCE:
            array = sentence[name.strip("`")]
            kind = {"f": "float16 or float32", "i": "integer", "b": "bool", "U": "text (`U`)"}[array.dtype.kind]
            assert array.shape == shapes[shape], name
            assert dtype == "any" or dtype.startswith(kind), name
