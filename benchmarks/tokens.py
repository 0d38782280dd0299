"""Measure a sweep that pools the tokens of all layers against reading the hidden states once; print one table.

    uv run --group test benchmarks/tokens.py            # 1,000 sentences
    uv run --group test benchmarks/tokens.py --sentences 100

The study: each of 26 layers at the final token, by the mean over tokens, and by the maximum. The input is that of
``main_job.py``, the store is ready. The peer reads all hidden states through Zarr, a row of shards at a time, and takes
the mean alone, by numpy; it writes nothing but that. Each is a whole fresh process. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from harness import CLI, LAYERS, Table, main, run, run_role

TOKENS = ("final", "mean", "max")


def count_reads(recipe: str) -> None:
    """Sweep, and print how often a chunk of hidden states was read at most, and how many were read."""
    import featurestore
    from featurestore.store.shards import ShardReader

    reads: list[tuple[object, ...]] = []
    read = ShardReader._compressed

    def noted(shard: ShardReader, place: tuple[int, ...]) -> bytes | None:
        compressed = read(shard, place)
        if compressed is not None:  # it is all padding, which only the shard's index says
            reads.append((shard._file.name, place))
        return compressed

    with mock.patch.object(ShardReader, "_compressed", noted):
        featurestore.sweep(recipe)
    counts = Counter(key for key in reads if "/hidden_states/" in str(key[0]))
    print(max(counts.values()), len(counts))


def average_directly(store: str, output: str) -> None:
    """Read all hidden states by Zarr, and write the mean of each sentence, (sentence, layer, hidden)."""
    import zarr

    group = zarr.open_group(store, mode="r")
    n_tokens, hidden_states = group["n_tokens"], group["hidden_states"]
    assert isinstance(n_tokens, zarr.Array)
    assert isinstance(hidden_states, zarr.Array)
    lengths, (rows, *_) = np.asarray(n_tokens[:]), hidden_states.shards or hidden_states.chunks
    means = np.empty((len(lengths), *hidden_states.shape[2:]), np.float32)
    for start in range(0, len(lengths), rows):
        some = lengths[start : start + rows]
        values = np.asarray(hidden_states[start : start + rows, : some.max()])
        for row, (length, tokens) in enumerate(zip(some, values, strict=True), start):
            means[row] = tokens[:length].mean(axis=0, dtype=np.float64)
    np.save(output, means)


def count_chunks(store: str) -> None:
    """Print how many chunks of hidden states hold a token."""
    import featurestore

    ds = featurestore.open_store(store, chunks={})
    rows = json.loads((Path(store) / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]["hidden_states"]
    size = rows["chunk_grid"]["configuration"]["chunk_shape"][0]
    lengths = ds["n_tokens"].values
    print(LAYERS * sum(int(lengths[start : start + size].max()) for start in range(0, len(lengths), size)))


def measure(source: Path, scratch: Path, _: int, runs: int) -> Table:
    store, recipe, output = scratch / "study.zarr", scratch / "study.json", scratch / "swept"
    run(CLI, "ingest", source, "--store", store)
    dataset = {"strategy": "hidden-to-concept", "layer": "all", "tokens": TOKENS}
    recipe.write_text(json.dumps({"stores": str(store), "output": str(output), "datasets": [dataset]}))
    sweeps, peers = [], []
    for _ in range(runs):
        shutil.rmtree(output, ignore_errors=True)
        sweeps.append(run(CLI, "sweep", recipe))
        peers.append(run_role(average_directly, store, scratch / "means.npy"))
    paths = sorted(output.rglob("*.npz"))
    if len(paths) != len(TOKENS) * LAYERS:
        raise RuntimeError(f"expected {len(TOKENS) * LAYERS} datasets, found {len(paths)}")
    means = np.load(scratch / "means.npy")
    with np.load(output / "study" / "hidden-to-concept_layer-12_tokens-mean_standardize.npz") as found:
        np.testing.assert_allclose(found["X"] * found["norm_std"] + found["norm_mean"], means[:, 12], atol=1e-4)
    shutil.rmtree(output)
    most, read = map(int, run_role(count_reads, recipe).output.split())
    there = int(run_role(count_chunks, store).output)

    table = Table()
    table.add("chunks of hidden states read / those that hold a token", read / there, "", 1, f"{read:,} / {there:,}")
    table.add("how often one was read at most", most, "", 1)
    table.ratio(f"sweep of {len(paths)} datasets / reading all, and the mean alone, by Zarr", sweeps, peers, 2)
    table.peak("sweep, peak memory", sweeps, 1000)
    return table


if __name__ == "__main__":
    roles = (count_reads, average_directly, count_chunks)
    main((__doc__ or "").partition("\n")[0], measure, *roles, sentences=1000)
