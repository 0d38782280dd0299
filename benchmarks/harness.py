"""What the benchmarks share: input of real size, fresh processes, tables of figures with their bounds."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

LAYERS, HIDDEN, FEATURES, L0 = 26, 2304, 16_384, 75
CLI = Path(__file__).parents[1] / "cli.py"


class Shape(NamedTuple):
    """What a sentence has for each of its tokens."""

    layers: int = LAYERS
    hidden: int = HIDDEN
    features: int = FEATURES


def make_input(folder: str, sentences: str, *shape: str) -> None:
    """Write sentence NPZs, by default of the size of the real thing, random but always the same."""
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: make_sentence(partial, index, Shape(*map(int, shape))), range(int(sentences))))
    partial.rename(folder)


def make_sentence(folder: Path, index: int, shape: Shape) -> None:
    rng = np.random.default_rng(index)
    tokens = int(rng.integers(6, 25))
    active = rng.random((shape.layers, tokens, shape.features), dtype=np.float32) < L0 / FEATURES
    activations = np.zeros(active.shape, np.float32)
    activations[active] = rng.gamma(2, 5, np.count_nonzero(active))
    hidden_states = 5 * rng.standard_normal((shape.layers, tokens, shape.hidden), dtype=np.float32)
    fragments = [" ".join(["word"] * (position + 1)) for position in range(tokens)]
    np.savez_compressed(
        folder / f"sentence_{index + 1:06d}.npz",
        sentence=np.array(fragments[-1]),
        concept_strength_label=np.array(index % 4),
        sentence_index=np.array(index),
        fragments=np.array(fragments),
        token_positions=np.arange(tokens),
        is_final_token=np.arange(tokens) == tokens - 1,
        fragment_lengths=np.arange(1, tokens + 1),
        embeddings=rng.standard_normal((tokens, shape.hidden), dtype=np.float32).astype(np.float16),
        hidden_states=hidden_states.astype(np.float16),
        activations=activations,
        layers=np.arange(shape.layers),
        average_l0s=np.full(shape.layers, L0 * shape.features // FEATURES),
        num_features=np.array(shape.features),
        hidden_dim=np.array(shape.hidden),
    )


class Run(NamedTuple):
    """One process from start to exit."""

    seconds: float
    peak_mb: float
    output: str


def run(*arguments: object) -> Run:
    """Run Python as a fresh process, and raise if it fails.

    Its peak memory counts from that of this process, which therefore stays small.
    """
    os.sync()  # what earlier runs left to be written is not this one's time
    command = [sys.executable, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{err.read()}")
        return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, out.read())


def run_role(role: Callable[..., None], *arguments: object) -> Run:
    """Run a function of this script in a fresh process, which calls it by name (see `main`)."""
    return run(sys.argv[0], role.__name__, *arguments)


class Table:
    """What, measured, bound, and whether it is kept; or other columns than these."""

    def __init__(self, *columns: str) -> None:
        self.rows: list[tuple[str, ...]] = [(*(columns or ("what", "measured", "bound")), "")]

    def add(self, what: str, value: float, unit: str = "", bound: float | None = None, detail: str = "") -> None:
        """Add a row."""
        digits = 0 if unit == "MB" else 2 if value >= 1 else 3
        measured = f"{value:,.{digits}f} {unit}".rstrip() + (f"  ({detail})" if detail else "")
        limit = "-" if bound is None else f"<= {bound:,} {unit}".rstrip()
        self.row(what, measured, limit, kept=None if bound is None else value <= bound)

    def row(self, *cells: str, kept: bool | None = None) -> None:
        """Add a row as it is printed."""
        self.rows.append((*cells, "" if kept is None else "ok" if kept else "over"))

    def ratio(self, what: str, runs: Sequence[Run], peers: Sequence[Run], bound: float | None = None) -> None:
        """Add the median ratio of pairs, beside the median seconds of both."""
        value = median(a.seconds / b.seconds for a, b in zip(runs, peers, strict=True))
        a, b = (median(run.seconds for run in side) for side in (runs, peers))
        self.add(what, value, "", bound, f"{a:.2f} s / {b:.2f} s")

    def peak(self, what: str, runs: Sequence[Run], bound: float) -> None:
        """Add the highest peak memory of some runs."""
        self.add(what, max(run.peak_mb for run in runs), "MB", bound)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    @property
    def over(self) -> bool:
        """Whether any bound is missed."""
        return any(row[-1] == "over" for row in self.rows)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ready(source: Path, sentences: int, *shape: int) -> Path:
    """Make the input if it is not there."""
    if not source.exists():
        print(f"making {sentences:,} sentences in {source}", file=sys.stderr)
        run_role(make_input, source, sentences, *shape)
    return source


def main(
    description: str,
    measure: Callable[[Path, Path, int, int], Table],
    *roles: Callable[..., None],
    sentences: int,
    runs: int = 3,
    measure_growth: Callable[[Path, Path, int], Table] | None = None,
) -> None:
    """Parse, make the input, measure, print; or play a role: what a script does when it starts itself afresh."""
    by_name = {role.__name__: role for role in (make_input, *roles)}
    if sys.argv[1:2] and sys.argv[1] in by_name:
        by_name[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sentences", type=int, default=sentences, metavar="N", help="[default: %(default)s]")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data", help="for input and stores")
    parser.add_argument(
        "--runs", type=int, default=runs, metavar="N", help="how often each is run; medians are reported"
    )
    if measure_growth:
        parser.add_argument("--growth", action="store_true", help="measure also how times grow with the sentences")
    arguments = parser.parse_args()
    if arguments.sentences < 1 or arguments.runs < 1:
        parser.error("--sentences and --runs must be at least 1")
    source = ready(arguments.folder.resolve() / str(arguments.sentences), arguments.sentences)
    with tempfile.TemporaryDirectory(dir=source.parent, prefix="scratch_") as scratch:
        # As in any environment that has been used before; where bytecode is not kept, imports take 4 times as long.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(scratch) / "bytecode")
        table = measure(source, Path(scratch), arguments.sentences, arguments.runs)
        print(
            f"{arguments.sentences:,} sentences, {arguments.runs} runs, {os.cpu_count()} cores\n\n{table}", flush=True
        )
        if measure_growth and arguments.growth:
            print(f"\n{measure_growth(source.parent, Path(scratch), arguments.runs)}")
    sys.exit(table.over)
