"""Measure a pass of training batches over all tokens against a shuffled memmap of the same rows; print one table.

    uv run --group test benchmarks/batches.py           # 1,000 sentences
    uv run --group test benchmarks/batches.py --sentences 100

Hidden states of one layer and labels, 1,024 rows a batch, shuffled. The input is that of ``main_job.py``, the store is
ready, all is warm: each is the median pass of a fresh process, after one that is not counted. The peer takes rows of a
memmap that holds nothing else, in an order that is shuffled as a whole. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import CLI, HIDDEN, Table, main, run, run_role

LAYER, BATCH, PASSES, ROWS = 12, 1024, 5, 50_000


def timed(passes: Callable[[int], Iterator[dict[str, Any]]]) -> None:
    """Print how many rows a pass has, their checksum, and the seconds of each counted pass."""
    seconds = []
    for seed in range(PASSES + 1):
        start, rows, total = time.perf_counter(), 0, 0
        for batch in passes(seed):
            rows += len(batch["label"])
            total += int(batch["label"].sum()) + int(batch["hidden_states"].view(np.uint16)[:, 0].sum(dtype=np.int64))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"rows": rows, "total": total, "seconds": median(seconds[1:])}))


def from_store(store: str) -> None:
    import featurestore

    ds = featurestore.open_store(store).sel(layer=LAYER)
    names = ["hidden_states", "label"]
    timed(lambda seed: featurestore.batches(ds, batch_size=BATCH, seed=seed, variables=names))


def write_memmap(store: str, rows: str, labels: str) -> None:
    """Write the same rows, as they are, one after another."""
    import featurestore

    ds = featurestore.open_store(store).sel(layer=LAYER)
    there = ds["is_token"].values
    ds["hidden_states"].values[there].tofile(rows)
    np.save(labels, ds["label"].values.repeat(there.sum(axis=1)))


def from_memmap(rows: str, labels: str) -> None:
    all_rows, all_labels = np.memmap(rows, np.float16, "r").reshape(-1, HIDDEN), np.load(labels)

    def batches(seed: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng(seed).permutation(len(all_rows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            yield {"hidden_states": all_rows[chosen], "label": all_labels[chosen]}

    timed(batches)


def measure(source: Path, scratch: Path, _: int, runs: int) -> Table:
    store, rows, labels = scratch / "study.zarr", scratch / "rows", scratch / "labels.npy"
    run(CLI, "ingest", source, "--store", store)
    run_role(write_memmap, store, rows, labels)
    ours, peers, peak = [], [], []
    for _ in range(runs):
        done = run_role(from_store, store)
        ours.append(json.loads(done.output))
        peers.append(json.loads(run_role(from_memmap, rows, labels).output))
        peak.append(done)
    if any((one["rows"], one["total"]) != (ours[0]["rows"], ours[0]["total"]) for one in ours + peers):
        raise RuntimeError("expected the same rows of both")
    each = [median(one["seconds"] / one["rows"] for one in side) for side in (ours, peers)]
    ratio = median(a["seconds"] / b["seconds"] for a, b in zip(ours, peers, strict=True))

    table = Table()
    table.add(f"{ROWS:,} rows by batches", ROWS * each[0], "s", 1, f"{1 / each[0]:,.0f} rows a second")
    table.add(f"{ROWS:,} rows of a shuffled memmap", ROWS * each[1], "s", None, f"{1 / each[1]:,.0f} rows a second")
    table.add("batches / shuffled memmap", ratio)
    table.peak("batches, peak memory of the process", peak, 500)
    return table


if __name__ == "__main__":
    roles = (from_store, write_memmap, from_memmap)
    main((__doc__ or "").partition("\n")[0], measure, *roles, sentences=1000)
