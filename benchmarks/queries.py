"""Measure how long interactive queries take, against Zarr and against other kinds of files; print one table.

    uv run --group benchmark benchmarks/queries.py     # 1,000 sentences
    uv run --group benchmark benchmarks/queries.py --growth

The input is that of ``main_job.py``, the store is ready, and the peers' files are made once, beside the input (about
8 GB). Everything is in the page cache. Each peer is a process of its own that has given each answer before, which is
compared with that of the NPZs; times are medians. What is bounded by a ratio is measured again, `open_store` and Zarr's
fused pipeline in one process and by turns, and that is what the table has of both. ``--growth`` adds a table of smaller
sentences, 1,000 and 10,000: about 10 times as long is as good as it gets, and 1 for one sentence. Exits with 1 if a
bound is missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import CLI, Run, Table, main, ready, run, run_role
from peers import PEERS, QUESTIONS, Place, check, median_sentence, write_expected, write_files

BOUNDS = {"layers": 1.3, "feature": 1.5, "features": 1.3, "trajectories": 1.1, "sentence": 1.1, "mean": 1.5}
"""Of `open_store` / fused."""

DENSITY_MS, DENSITY_MB = 800, 1000
PAIR = ("open_store", "fused")
LONGEST = 20
"""Seconds after which no question is repeated: some peers take that long for one answer."""

SMALL = (6, 256, 1024)
GROWTH = (1000, 10_000)

Seconds = dict[str, dict[str, list[float]]]


def ask(peers: str, questions: str, store: str, source: str, runs: str) -> None:
    """Print the seconds that some peers take by turns for each answer, after it was checked."""
    seconds: Seconds = {}
    with np.load(expected_of(Path(source))) as expected:
        row, length = median_sentence(expected["n_tokens"])
        place = Place(Path(store), files_of(Path(source)), row, length)
        calls = {peer: PEERS[peer](place) for peer in peers.split()}
        for question in questions.split():
            asked = {peer: answers[question] for peer, answers in calls.items() if question in answers}
            for call in asked.values():
                check(question, call(), expected)
            seconds[question] = by_turns(asked, int(runs))
    print(json.dumps(seconds))


def by_turns(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Time calls, in one order and then in the other, as what came before may matter."""
    seconds: dict[str, list[float]] = {peer: [] for peer in calls}
    stop = time.perf_counter() + LONGEST
    for i in range(runs):
        for peer in list(calls)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            answer = calls[peer]()
            seconds[peer].append(time.perf_counter() - start)
            del answer
        if time.perf_counter() > stop:
            break
    return seconds


def expected_of(source: Path) -> Path:
    return source.with_name(f"{source.name}_expected.npz")


def files_of(source: Path) -> Path:
    return source.with_name(f"{source.name}_peers")


def ingest(source: Path, store: Path) -> Path:
    """Make the store, and what is expected of it if that is not there."""
    if not expected_of(source).exists():
        run_role(write_expected, source, expected_of(source))
    run(CLI, "ingest", source, "--store", store)
    return store


def measure(source: Path, scratch: Path, _: int, runs: int) -> Table:
    store = ingest(source, scratch / "store.zarr")
    if not files_of(source).exists():
        run_role(write_files, source, files_of(source), expected_of(source))
    by_ratio = " ".join(BOUNDS)
    together: Seconds = json.loads(run_role(ask, " ".join(PAIR), by_ratio, store, source, runs).output)
    others = {peer: run_role(ask, peer, by_ratio, store, source, 1 if peer in PAIR else runs) for peer in PEERS}
    densities = {peer: run_role(ask, peer, "density", store, source, runs) for peer in PEERS}

    table = Table("question", *PEERS, "open_store / fused", "bound")
    for question, bound in BOUNDS.items():
        seconds = seconds_of(others, question) | together[question]
        ratio = median(a / b for a, b in zip(*(together[question][peer] for peer in PAIR), strict=True))
        cells = milliseconds(seconds)
        table.row(QUESTIONS[question], *cells, f"{ratio:.2f}", f"<= {bound}", kept=ratio <= bound)
    seconds = seconds_of(densities, "density")
    ours, fused = (median(seconds[peer]) for peer in PAIR)
    kept = 1000 * ours <= DENSITY_MS
    table.row(QUESTIONS["density"], *milliseconds(seconds), f"{ours / fused:.2f}", f"<= {DENSITY_MS} ms", kept=kept)
    peak = densities["open_store"].peak_mb
    table.row("its process, peak", *megabytes(densities), "-", f"<= {DENSITY_MB:,} MB", kept=peak <= DENSITY_MB)
    table.row("process of all others, peak", *megabytes(others), "-", "-")
    return table


def seconds_of(runs: dict[str, Run], question: str) -> dict[str, list[float]]:
    """Return what each peer printed of one question; nothing where it does not answer it."""
    return {peer: json.loads(one.output)[question].get(peer, []) for peer, one in runs.items()}


def milliseconds(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    return [spelled(median(seconds[peer])) if seconds[peer] else "-" for peer in PEERS]


def spelled(seconds: float) -> str:
    return f"{1000 * seconds:,.{1 if seconds < 0.1 else 0}f} ms"


def megabytes(runs: dict[str, Run]) -> list[str]:
    return [f"{runs[peer].peak_mb:,.0f} MB" for peer in PEERS]


def measure_growth(folder: Path, scratch: Path, runs: int) -> Table:
    found: list[Seconds] = []
    for sentences in GROWTH:
        source = ready(folder / f"{sentences}_small", sentences, *SMALL)
        store = ingest(source, scratch / f"{sentences}.zarr")
        asked = [
            run_role(ask, " ".join(PAIR), questions, store, source, runs) for questions in (" ".join(BOUNDS), "density")
        ]
        found.append({question: of for one in asked for question, of in json.loads(one.output).items()})
    few, many = GROWTH
    table = Table("question", *(cell for peer in PAIR for cell in (f"{peer}, {few:,}", f"{many:,}", "ratio")))
    for question, text in QUESTIONS.items():
        cells = []
        for peer in PAIR:
            short, long = (median(seconds[question][peer]) for seconds in found)
            cells += [spelled(short), spelled(long), f"{long / short:.1f}"]
        table.row(text, *cells)
    return table


if __name__ == "__main__":
    main(
        (__doc__ or "").partition("\n")[0],
        measure,
        ask,
        write_expected,
        write_files,
        sentences=1000,
        runs=9,
        measure_growth=measure_growth,
    )
