"""Measure the main job at the size of the real thing, against peers measured in the same run; print one table.

    uv run benchmarks/main_job.py                      # 100 sentences
    uv run benchmarks/main_job.py --sentences 1000

The input is random: 26 layers, 2,304 hidden as float16, 16,384 features of which about 75 are active, 6 to 24 tokens.
It is made once, below ``--folder``. Everything but the rows named "warm" is a whole fresh process, from start to exit,
run alternately with its peer; ratios are medians of such pairs. Input and stores are in the page cache for all.
Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

LAYERS, HIDDEN, FEATURES, L0 = 26, 2304, 16_384, 75
CLI = Path(__file__).parents[1] / "cli.py"
IMPORTS = "import xarray, zarr, dask.array"
BUILD = ["--strategy", "hidden-to-concept", "--layers", "0-5"]


# Roles: what this script does when it starts itself as the fresh process to be measured.


def make_input(folder: str, sentences: str) -> None:
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


def read_all(folder: str) -> None:
    """Peer of ingest: plain numpy reads every array of every file."""
    for path in sorted(Path(folder).glob("sentence_*.npz")):
        with np.load(path) as archive:
            for name in archive.files:
                archive[name]


def build_directly(folder: str, output: str) -> None:
    """Peer of build: plain numpy reads every array of every file, and makes the dataset without a store."""
    rows, labels = [], []
    for path in sorted(Path(folder).glob("sentence_*.npz")):
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        final = int(arrays["is_final_token"].argmax())
        rows.append(arrays["hidden_states"][:6, final].ravel())
        labels.append(int(arrays["concept_strength_label"]))
    raw = np.stack(rows).astype(np.float64)
    np.savez(output, X=((raw - raw.mean(axis=0)) / raw.std(axis=0)).astype(np.float32), y=np.array(labels))


def ingest_without_fsync(folder: str, store: str) -> None:
    from featurestore import commands, commit

    with patch.object(os, "fsync"), patch.object(commit, "_fsync"):
        commands.main(["ingest", folder, "--store", store])


def ingest_without_checksums(folder: str, store: str) -> None:
    from featurestore import commands, commit
    from featurestore.store import new_root

    def is_checksum(codec: dict[str, Any]) -> bool:
        return bool(codec["name"] == "crc32c")

    def without_checksums(*arguments: Any) -> Any:
        root = new_root(*arguments)
        removed = 0
        for array in root["consolidated_metadata"]["metadata"].values():
            shards = [codec["configuration"] for codec in array["codecs"] if codec["name"] == "sharding_indexed"]
            for level in (array, *shards):
                removed += sum(map(is_checksum, level["codecs"]))
                level["codecs"] = [codec for codec in level["codecs"] if not is_checksum(codec)]
        if not removed:
            raise RuntimeError("the store has no checksums that could be left out")
        return root

    with patch.object(commit, "new_root", without_checksums):
        commands.main(["ingest", folder, "--store", store])


def measure_warm(store: str, folder: str, runs: str) -> None:
    """Print the median seconds of calls in a process that has done each before."""
    import featurestore

    def build(run: int) -> None:
        output = Path(folder) / f"warm_{run}.npz"
        featurestore.build(store, "hidden-to-concept", layers="0-5", output=output)

    ds = featurestore.open_store(store)
    calls: dict[str, Callable[[int], Any]] = {
        "build": build,
        "feature": lambda _: ds.activations.sel(token=-1, layer=12, feature=1234).values,
        "open": lambda _: featurestore.open_store(store),
    }
    seconds = {}
    for name, call in calls.items():
        call(0)
        times = []
        for run in range(1, 1 + max(5, int(runs))):
            start = time.perf_counter()
            call(run)
            times.append(time.perf_counter() - start)
        seconds[name] = median(times)
    print(json.dumps(seconds))


ROLES = {
    role.__name__: role
    for role in (make_input, read_all, build_directly, ingest_without_fsync, ingest_without_checksums, measure_warm)
}


# The measuring.


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
    return run(__file__, role.__name__, *arguments)


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


def warm_up(source: Path, scratch: Path) -> None:
    """Bring the input into the page cache, and every module into the cache of bytecode."""
    run_role(read_all, source)
    few = scratch / "few"
    few.mkdir()
    for path in sorted(source.iterdir())[:2]:
        (few / path.name).symlink_to(path)
    run(CLI, "ingest", few, "--store", scratch / "few.zarr")
    run(CLI, "build", *BUILD, "--input", scratch / "few.zarr", "--output", scratch / "few.npz")


def measure(source: Path, scratch: Path, sentences: int, runs: int) -> Table:
    done: dict[str, list[Run]] = defaultdict(list)
    warm_up(source, scratch)
    for i in range(runs):
        store, other = scratch / f"store_{i}", scratch / "other"
        done["read"].append(run_role(read_all, source))
        done["ingest"].append(run(CLI, "ingest", source, "--store", store))
        for role in (ingest_without_fsync, ingest_without_checksums):
            done[role.__name__].append(run_role(role, source, other))
            shutil.rmtree(other)
        direct, output = scratch / f"direct_{i}.npz", scratch / f"build_{i}.npz"
        done["direct"].append(run_role(build_directly, source, direct))
        done["build"].append(run(CLI, "build", *BUILD, "--input", store, "--output", output))
        done["imports"].append(run("-c", IMPORTS))
        done["help"].append(run(CLI, "--help"))
        if i < runs - 1:
            shutil.rmtree(store)
    warm = json.loads(run_role(measure_warm, store, scratch, runs).output)
    with np.load(direct) as expected, np.load(output) as found:
        np.testing.assert_allclose(found["X"], expected["X"], atol=1e-5)
        np.testing.assert_array_equal(found["y"], expected["y"])

    table = Table()
    table.ratio("ingest / np.load of every array", done["ingest"], done["read"], 0.8)
    table.peak("ingest, peak memory", done["ingest"], 1500)
    detail = f"{size(store) / 1e6:,.0f} MB / {size(source) / 1e6:,.0f} MB"
    table.add("store / NPZs, bytes", size(store) / size(source), "", 1.2, detail)
    table.ratio("ingest without fsync / ingest", done["ingest_without_fsync"], done["ingest"])
    table.ratio("ingest without checksums / ingest", done["ingest_without_checksums"], done["ingest"])
    table.ratio("build of 6 layers / directly from the NPZs", done["build"], done["direct"], 0.2)
    table.peak("build of 6 layers, peak memory", done["build"], 500)
    table.ratio("imports (xarray, zarr, dask.array) / build", done["imports"], done["build"])
    table.add("--help", median(run.seconds for run in done["help"]), "s", 0.4)
    for name, what, bound in (
        ("build", "build of 6 layers", 0.6),
        ("feature", "one feature's y", 0.05),
        ("open", "open_store", 0.1),
    ):
        table.add(f"warm: {what}, {sentences:,} sentences", warm[name], "s", bound)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sentences", type=int, default=100, metavar="N")
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


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](*sys.argv[2:])
    else:
        main()
