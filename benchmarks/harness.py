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


def make_input(folder: str, sentences: str) -> None:
    """Write sentence NPZs of the size of the real thing, random but always the same."""
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: make_sentence(partial, index), range(int(sentences))))
    partial.rename(folder)


def make_sentence(folder: Path, index: int) -> None:
    rng = np.random.default_rng(index)
    tokens = int(rng.integers(6, 25))
    active = rng.random((LAYERS, tokens, FEATURES), dtype=np.float32) < L0 / FEATURES
    activations = np.zeros(active.shape, np.float32)
    activations[active] = rng.gamma(2, 5, np.count_nonzero(active))
    hidden_states = 5 * rng.standard_normal((LAYERS, tokens, HIDDEN), dtype=np.float32)
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
        embeddings=rng.standard_normal((tokens, HIDDEN), dtype=np.float32).astype(np.float16),
        hidden_states=hidden_states.astype(np.float16),
        activations=activations,
        layers=np.arange(LAYERS),
        average_l0s=np.full(LAYERS, L0),
        num_features=np.array(FEATURES),
        hidden_dim=np.array(HIDDEN),
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
    """What, measured, bound, and whether it is kept."""

    def __init__(self) -> None:
        self.rows = [("what", "measured", "bound", "")]

    def add(self, what: str, value: float, unit: str = "", bound: float | None = None, detail: str = "") -> None:
        """Add a row."""
        digits = 0 if unit == "MB" else 2 if value >= 1 else 3
        measured = f"{value:,.{digits}f} {unit}".rstrip() + (f"  ({detail})" if detail else "")
        limit = "-" if bound is None else f"<= {bound:,} {unit}".rstrip()
        self.rows.append((what, measured, limit, "" if bound is None else "ok" if value <= bound else "over"))

    def ratio(self, what: str, runs: Sequence[Run], peers: Sequence[Run], bound: float | None = None) -> None:
        """Add the median ratio of pairs, beside the median seconds of both."""
        value = median(a.seconds / b.seconds for a, b in zip(runs, peers, strict=True))
        a, b = (median(run.seconds for run in side) for side in (runs, peers))
        self.add(what, value, "", bound, f"{a:.2f} s / {b:.2f} s")

    def peak(self, what: str, runs: Sequence[Run], bound: float) -> None:
        """Add the highest peak memory of some runs."""
        self.add(what, max(run.peak_mb for run in runs), "MB", bound)

    def __str__(self) -> str:
        widths = [max(len(row[column]) for row in self.rows) for column in range(3)]
        lines = ["  ".join(map(str.ljust, row, [*widths, 4])).rstrip() for row in self.rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    @property
    def over(self) -> bool:
        """Whether any bound is missed."""
        return any(row[3] == "over" for row in self.rows)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(
    description: str, measure: Callable[[Path, Path, int, int], Table], *roles: Callable[..., None], sentences: int
) -> None:
    """Parse, make the input, measure, print; or play a role: what a script does when it starts itself afresh."""
    by_name = {role.__name__: role for role in (make_input, *roles)}
    if sys.argv[1:2] and sys.argv[1] in by_name:
        by_name[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sentences", type=int, default=sentences, metavar="N", help="[default: %(default)s]")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data", help="for input and stores")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often each is run; medians are reported")
    arguments = parser.parse_args()
    if arguments.sentences < 1 or arguments.runs < 1:
        parser.error("--sentences and --runs must be at least 1")
    source = arguments.folder.resolve() / str(arguments.sentences)
    if not source.exists():
        print(f"making {arguments.sentences:,} sentences in {source}", file=sys.stderr)
        run_role(make_input, source, arguments.sentences)
    with tempfile.TemporaryDirectory(dir=source.parent, prefix="scratch_") as scratch:
        # As in any environment that has been used before; where bytecode is not kept, imports take 4 times as long.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(scratch) / "bytecode")
        table = measure(source, Path(scratch), arguments.sentences, arguments.runs)
    print(f"{arguments.sentences:,} sentences, {arguments.runs} runs, {os.cpu_count()} cores\n\n{table}")
    sys.exit(table.over)
