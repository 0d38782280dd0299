"""Messages in the language of whoever asked, streams that fail, and what a command line may hold."""

from __future__ import annotations

import ast
import copy
import errno
import importlib
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

import featurestore
from featurestore.cli.commands import main
from featurestore.errors import naming
from tests.sentences import sentence_arrays, write_folder, write_sentence

ROOT = Path(__file__).parents[2]
CONCEPT, HIDDEN = "hidden-to-concept", "hidden-to-feature"


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def flags(**options: Any) -> list[str]:
    """Write options as on a command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


CASES = [
    (CONCEPT, {"layers": "0,x"}, ["--layers: expected"], ["layers=: expected"]),
    (CONCEPT, {"layer": 0, "layers": "0,1"}, ["--layer or --layers, "], ["layer= or layers=, "]),
    (CONCEPT, {"layer": 0, "target_layer": 1}, ["--target-layer: "], ["target_layer=: "]),
    (HIDDEN, {"target_layer": 0}, ["needs --target-feature; "], ["needs target_feature=; "]),
    (HIDDEN, {"target_layer": 9, "target_feature": 1}, ["no layer 9"], ["no layer 9"]),
    (CONCEPT, {"layer": 0, "seed": 1}, ["--seed and --group-by need"], ["seed= and group_by= need"]),
    (CONCEPT, {"layer": 0, "test_size": 2.0}, ["--test-size: "], ["test_size=: "]),
    (CONCEPT, {"layer": 0, "folds": 9}, ["--folds 9: "], ["folds=9: "]),
    (
        CONCEPT,
        {"layer": 0, "folds": 2, "group_by": "my --layers.csv:x"},
        ["--group-by: my --layers.csv: "],
        ["group_by=: my --layers.csv: "],
    ),
    ("activation-to-concept", {"layer": 0, "densest": 11}, ["found --densest 11: "], ["found densest=11: "]),
]


@pytest.mark.parametrize(("strategy", "options", "command_line", "python"), CASES)
def test_options_are_spelled_as_the_reader_writes_them(
    cli: Any, store: Path, strategy: str, options: dict[str, Any], command_line: list[str], python: list[str]
) -> None:
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(store, strategy, **options)
    assert all(words in str(caught.value) for words in python)
    assert not re.search(r"(?<!my )--[a-z]", str(caught.value))
    result = cli("build", "--strategy", strategy, "--input", store, *flags(**options))
    assert result.exit_code
    assert all(words in result.output for words in command_line)
    assert not any(words in result.output for words in python if words not in command_line)


def test_remedies_are_spelled_as_the_reader_writes_them(cli: Any, tmp_path: Path, caplog: Any) -> None:
    arrays = sentence_arrays(2)
    arrays["hidden_states"][0, 0, 0] = np.inf
    write_folder(tmp_path / "trait", 4)
    write_sentence(tmp_path / "trait", 2, changes={"hidden_states": arrays["hidden_states"]})
    with caplog.at_level(logging.WARNING, "featurestore"):
        featurestore.ingest(tmp_path / "trait", tmp_path / "my --wait.zarr")
    assert "leaves them out with drop_nonfinite=True" in caplog.text
    result = cli("ingest", tmp_path / "trait")
    assert "leaves them out with --drop-nonfinite\n" in result.output

    one = write_sentence(tmp_path / "one", 0)
    np.savez(
        one, **dict[str, Any](sentence_arrays(0))
    )  # stored, so that only reading the data finds a flipped bit, in a thread
    content = bytearray(one.read_bytes())
    with zipfile.ZipFile(one) as archive:
        content[archive.getinfo("layers.npy").header_offset - 1] ^= 1  # the last byte of the activations
    one.write_bytes(content)
    with pytest.raises(featurestore.NpzError, match="ingest with skip_bad=True"):
        featurestore.ingest(tmp_path / "one", tmp_path / "one.zarr")
    assert "ingest with --skip-bad\n" in cli("ingest", tmp_path / "one").output

    path = tmp_path / "my --wait.npz"
    path.write_bytes(b"something else")
    dataset = featurestore.build(tmp_path / "my --wait.zarr", CONCEPT, layer=1, drop_nonfinite=True)
    with pytest.raises(featurestore.DatasetError, match=r"my --wait\.npz: .* overwrite=True"):
        dataset.save(path)
    result = cli(
        "build", "--strategy", CONCEPT, "--input", tmp_path / "my --wait.zarr", "--drop-nonfinite",
        "--layer", 1, "--output", path,
    )  # fmt: skip
    assert re.search(r"my --wait\.npz: .* --overwrite", result.output)
    missing = tmp_path / "my --store"
    with pytest.raises(featurestore.StoreNotFoundError, match=f"^{missing}: .*store='{missing}'"):
        featurestore.open_store(missing)
    assert f"{missing}: no such store; make it by an ingest with --store '{missing}'" in cli("info", missing).output


def test_recipes_are_told_of_their_keys(cli: Any, store: Path) -> None:
    recipe = {"stores": [str(store)], "split": {"test_size": 2}, "datasets": [{"strategy": HIDDEN, "target_layer": 0}]}
    Path("r.yaml").write_text(json.dumps(recipe))
    with pytest.raises(featurestore.RecipeError) as caught:
        featurestore.sweep("r.yaml")
    assert "split.test_size: expected a fraction" in str(caught.value)
    assert "needs target_feature; it takes target_layer, target_feature, " in str(caught.value)
    assert str(caught.value) in cli("sweep", "r.yaml").output


def test_no_message_holds_a_flag() -> None:
    for path in (ROOT / "featurestore").glob("*.py"):
        if path.name in ("commands.py", "options.py", "terminal.py"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found = re.search(r"(?<![\w-])--[a-z]", node.value)
                assert not found, f"{path.name}:{node.lineno}: spell options with `spelled`: {node.value!r}"


def test_errors_are_copied_and_pickled(tmp_path: Path) -> None:
    importlib.import_module("distributed")  # which has its own way of pickling exceptions
    with pytest.raises(featurestore.StoreNotFoundError) as caught:
        featurestore.open_store(tmp_path / "x")
    for other in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert (type(other), str(other)) == (type(caught.value), str(caught.value))


class Failing(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, _: str) -> int:
        raise OSError(self.code, os.strerror(self.code))


Run = Callable[..., int]


@pytest.fixture
def run(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line with these streams, and return its exit code."""

    def run(*arguments: object, stdout: TextIO | None, stderr: TextIO | None) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            with pytest.raises(SystemExit) as end:
                main(list(map(str, arguments)))
        return int(end.value.code or 0)

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(run: Run, store: Path, encoding: str) -> None:
    featurestore.build(store, CONCEPT, layer=0).save("out/é→.npz")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    assert run("datasets", "out", "--csv", stdout=out, stderr=err) == 0
    expected = {"ascii": b"\n\\xe9\\u2192.npz,", "cp1252": b"\n\xe9\\u2192.npz,"}[encoding]
    assert expected in out.detach().getvalue()
    assert run("info", "→", stdout=None, stderr=err) == 1
    assert b"\nError: \\u2192: no such store" in err.detach().getvalue()


@pytest.mark.parametrize("command", ["build", "--help", "datasets"])
def test_output_that_cannot_be_written(run: Run, store: Path, command: str) -> None:
    featurestore.build(store, CONCEPT, layer=0).save("expected/x.npz")
    options: dict[str, list[Any]] = {
        "--help": [],
        "build": ["--strategy", CONCEPT, "--layer", 0, "--input", store, "--output", "x.npz"],
        "datasets": ["expected"],
    }
    err = io.StringIO()
    assert run(command, *options[command], stdout=Failing(errno.ENOSPC), stderr=err) == 1
    lost = "" if command == "--help" else "; all that the command was to write is written, only its report is lost"
    message = f"Error: standard output: cannot be written (No space left on device){lost}\n"
    assert err.getvalue().endswith(message)
    assert err.getvalue().count("Error") == 1
    if command == "build":
        assert Path("x.npz").read_bytes() == Path("expected/x.npz").read_bytes()


def test_notes_that_cannot_be_written_stop_no_work(run: Run, folder: Path) -> None:
    options = ["build", "--strategy", CONCEPT, "--layer", 0, "--input", folder, "--output"]
    for code, output, exit_code in ((errno.ENOSPC, "a.npz", 1), (errno.EPIPE, "b.npz", 0), (errno.EIO, "c.npz", 1)):
        out = io.StringIO()
        assert run(*options, output, stdout=out, stderr=Failing(code)) == exit_code
        first, *others = out.getvalue().splitlines()
        assert first == f"{output}: X 5 x 6, y int64, standardize"
        lost = f"Error: standard error: cannot be written ({os.strerror(code)}); notes and warnings are lost"
        assert others == [lost] * exit_code
        assert len(np.load(output)["X"]) == 5
    assert run("info", "nothing", stdout=None, stderr=Failing(errno.ENOSPC)) == 1
    assert run("info", stdout=Failing(errno.ENOSPC), stderr=Failing(errno.ENOSPC)) == 2


def test_readers_that_leave(run: Run, store: Path) -> None:
    for command in (["info", store], ["--help"], ["build", "--help"]):
        err = io.StringIO()
        assert run(*command, stdout=Failing(errno.EPIPE), stderr=err) == 1
        assert err.getvalue() == ""
        assert run(*command, stdout=None, stderr=None) == 0


def test_streams_are_given_back(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit):
        main(["info", str(store)])
    assert (sys.stdout, sys.stderr) == before


def process(*command: object, folder: Path, output: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own, with its streams redirected as a shell would."""
    words = [sys.executable, *map(str, command)]
    shell = ["sh", "-c", f'exec "$@" {output}', "sh", *words]
    return subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("output", "code"), [(">/dev/full", 1), (">&- 2>&-", 0), (">/dev/full 2>&1", 1)])
def test_a_process_ends_quietly(store: Path, tmp_path: Path, output: str, code: int) -> None:
    options = flags(strategy=CONCEPT, layer=0, input=store, output="x.npz")
    result = process(ROOT / "cli.py", "build", *options, folder=tmp_path, output=output)
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == (output == ">/dev/full")  # nothing of the interpreter's own
    featurestore.build(store, CONCEPT, layer=0).save(tmp_path / "y.npz")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


def test_without_docstrings(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from featurestore.cli.commands import main\n"
        "for line in sys.argv[1:]:\n"
        "    try: main(line.split())\n"
        "    except SystemExit as end: print(line.split()[0], end.code)"
    )
    build = f"build --strategy {CONCEPT} --layers 0,5 --input s.zarr --folds 2 --output out/x.npz"
    (tmp_path / "r.yaml").write_text(f"stores: s.zarr\ndatasets: [{{strategy: {CONCEPT}, layer: 0}}]")
    lines = [
        "--help", f"ingest {folder} --store s.zarr", "info s.zarr", f"verify s.zarr --source {folder}", build,
        "features s.zarr --min-active 1", "build --help", "sweep r.yaml", "sweep --schema", "datasets out",
    ]  # fmt: skip
    result = process("-OO", "-c", script, *lines, folder=tmp_path)
    ends = [f"{line.split()[0]} 0" for line in lines]
    assert [line for line in result.stdout.splitlines() if line in ends] == ends, result.stderr
    assert np.load(tmp_path / "out" / "x.npz")["X"].shape == (5, 12)


def test_the_home_folder_where_no_shell_expands_it(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert cli("ingest", "~/trait", "--store=~/home.zarr").exit_code == 0
    result = cli("build", "--strategy", CONCEPT, "--layer", 0, "--input=~/home.zarr", "--output=~/x.npz")
    assert result.output == f"{folder.parent}/x.npz: X 5 x 6, y int64, standardize\n"
    assert sorted(path.name for path in folder.parent.glob("[!.]*.*")) == ["home.zarr", "x.npz"]
    assert list(Path.cwd().iterdir()) == []
    for path, word in (("~no-such-user/x", "no user"), ("x" * 300, "too long"), ("a\0b", "NUL")):
        result = cli("info", path)
        assert result.exit_code == 2
        assert word in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "x.npz"), "x.npz: cannot be written or read (full); free some space, "),
        (OSError(errno.EEXIST, "exists", "x"), "x: cannot be written or read (exists); something else is in its"),
        (OSError(errno.ELOOP, "loop", "x"), "x: cannot be written or read (loop); its symlinks lead in a circle"),
        (OSError(errno.EIO, "bad", "x\n\x1b"), "x\\n\\x1b: cannot be written or read (bad); check the disk\n"),
        (OSError("odd"), "a file: cannot be written or read (odd); run the same command again\n"),
        (OSError(errno.EMFILE, "many", 5), "5: cannot be written or read (many); raise the limit"),
        (MemoryError(), "not enough memory; "),
        (MemoryError("9 TiB"), "not enough memory (9 TiB); "),
    ],
)
def test_system_errors(cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("featurestore.store.info.info", fail)
    result = cli("info", "x")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert result.output.startswith(f"Error: {words}")
    assert ("intact" in result.output) == (getattr(error, "errno", None) == errno.ENOSPC)


def test_files_on_their_way_have_the_name_of_the_whole() -> None:
    for inner in (None, "/a/.x.partial", "/proc/self/fd/7"):
        with pytest.raises(FileNotFoundError) as caught, naming("x.npz"):
            raise OSError(errno.ENOENT, "no such file", inner)
        assert caught.value.filename == "x.npz"
    with pytest.raises(FileNotFoundError) as caught, naming("x.npz"):
        raise OSError(errno.ENOENT, "no such file", "/a/b")
    assert caught.value.filename == "/a/b"


def test_a_working_folder_that_is_gone(cli: Any, folder: Path) -> None:
    Path.cwd().rmdir()
    result = cli("ingest", folder, "--store", "x.zarr")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert "None" not in result.output


def test_interruption(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.store.info.info", fail)
    result = cli("info", "x")
    assert result.exit_code == 130
    assert "Interrupted: nothing is half-written" in result.output
