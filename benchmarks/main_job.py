"""Measure the main job at the size of the real thing, against peers measured in the same run; print one table.

    uv run benchmarks/main_job.py                      # 100 sentences
    uv run benchmarks/main_job.py --sentences 1000

The input is random: 26 layers, 2,304 hidden as float16, 16,384 features of which about 75 are active, 6 to 24 tokens.
It is made once, below ``--folder``. Everything but the rows named "warm" is a whole fresh process, from start to exit,
run alternately with its peer; ratios are medians of such pairs. Input and stores are in the page cache for all.
Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from harness import CLI, Run, Table, main, run, run_role, size

IMPORTS = "import xarray, zarr, dask.array"
BUILD = ["--strategy", "hidden-to-concept", "--layers", "0-5"]


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
    from featurestore.cli import commands

    with patch.object(os, "fsync"):
        commands.main(["ingest", folder, "--store", store])


def measure_warm(store: str, folder: str, runs: str) -> None:
    """Print the median seconds of calls in a process that has done each before."""
    import featurestore
    from featurestore.store.snapshot import Snapshot

    def build(run: int) -> None:
        output = Path(folder) / f"warm_{run}.npz"
        featurestore.build(store, "hidden-to-concept", layers="0-5", output=output)

    ds = featurestore.open_store(store)
    n_tokens = ds["n_tokens"].values
    length = int(np.median(n_tokens))
    row = int(abs(n_tokens - length).argmin())
    arrays = [Snapshot.read(Path(store)).open(name) for name in ("hidden_states", "activations")]
    sentence = ds[["hidden_states", "activations"]].isel(sentence=row, token=slice(-length, None))
    pool = ThreadPoolExecutor(2)
    calls: dict[str, Callable[[int], Any]] = {
        "build": build,
        "feature": lambda _: ds.activations.sel(token=-1, layer=12, feature=1234).values,
        "sentence": lambda _: list(pool.map(lambda array: array[row, :length], arrays)),
        "sentence by xarray": lambda _: sentence.compute(),
        "open": lambda _: featurestore.open_store(store),
    }
    seconds = {}
    for name, call in calls.items():
        call(0)
        times = []
        for i in range(1, 1 + max(5, int(runs))):
            start = time.perf_counter()
            call(i)
            times.append(time.perf_counter() - start)
        seconds[name] = median(times)
    print(json.dumps(seconds))


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
        done["unflushed"].append(run_role(ingest_without_fsync, source, other))
        shutil.rmtree(other)
        done["two jobs"].append(run(CLI, "ingest", source, "--store", other, "--jobs", "2"))
        shutil.rmtree(other)
        done["again"].append(run(CLI, "ingest", source, "--store", store))
        done["verify"].append(run(CLI, "verify", store))
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
    table.ratio("ingest / np.load of every array", done["ingest"], done["read"], 0.45 if sentences >= 1000 else 0.6)
    table.peak("ingest, peak memory", done["ingest"], 800)
    detail = f"{size(store) / 1e6:,.0f} MB / {size(source) / 1e6:,.0f} MB"
    table.add("store / NPZs, bytes", size(store) / size(source), "", 1.12, detail)
    files = sum(1 for _ in store.rglob("*"))
    table.add("store, files and folders", files)
    table.ratio("ingest without fsync / ingest", done["unflushed"], done["ingest"])
    table.ratio("ingest by two processes / ingest", done["two jobs"], done["ingest"])
    table.ratio("ingest again, up to date / ingest", done["again"], done["ingest"])
    table.ratio("verify / ingest", done["verify"], done["ingest"], 0.5)
    table.ratio("build of 6 layers / directly from the NPZs", done["build"], done["direct"], 0.2)
    table.peak("build of 6 layers, peak memory", done["build"], 500)
    table.ratio("imports (xarray, zarr, dask.array) / build", done["imports"], done["build"])
    table.add("--help", median(run.seconds for run in done["help"]), "s", 0.4)
    for name, what, bound in (
        ("build", "build of 6 layers", 0.6),
        ("feature", "one feature's y", 0.05),
        ("sentence", "all of a sentence of median length, by zarr, a thread an array", 0.1),
        ("sentence by xarray", "the same by open_store", None),
        ("open", "open_store", 0.1),
    ):
        table.add(f"warm: {what}, {sentences:,} sentences", warm[name], "s", bound)
    return table


if __name__ == "__main__":
    main(
        (__doc__ or "").partition("\n")[0],
        measure,
        read_all,
        build_directly,
        ingest_without_fsync,
        measure_warm,
        sentences=100,
    )
