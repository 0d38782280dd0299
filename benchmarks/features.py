"""Measure all features of a store against plain numpy and scipy; print one table.

    uv run --group test benchmarks/features.py            # 1,000 sentences
    uv run --group test benchmarks/features.py --sentences 100

The input is that of ``main_job.py``, the store is ready; each measures in a fresh process. The peer reads the same
activations through the same store, a layer at a time, and calls numpy and scipy on the dense arrays: density, mean,
maximum and Pearson correlation in a few lines; with ranks, AUC and 100 permutations of one layer, which is multiplied
to all. Imports and opening are not counted. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from harness import CLI, LAYERS, Run, Table, main, run, run_role

PERMUTATIONS = 100


def measure_features(store: str, permutations: str, tokens: str, layers: str) -> None:
    """Print the seconds that `featurestore.features` takes."""
    import featurestore

    features = featurestore.features  # imported now

    ds = featurestore.open_store(store).isel(layer=slice(int(layers)))
    start = time.perf_counter()
    features(ds, permutations=int(permutations), tokens="any" if tokens == "any" else "final")
    print(time.perf_counter() - start)


def correlate_directly(store: str, output: str) -> None:
    """Peer without ranks: print the seconds, and write the correlations."""
    import featurestore

    ds = featurestore.open_store(store)
    start = time.perf_counter()
    label = ds["label"].values - ds["label"].values.mean()
    correlations = []
    for layer in range(LAYERS):
        values = ds["activations"].isel(layer=layer, token=-1).values.astype(np.float64)
        (values != 0).mean(axis=0), values.mean(axis=0), values.max(axis=0)
        centred = values - values.mean(axis=0)
        with np.errstate(invalid="ignore"):
            correlations.append(label @ centred / np.sqrt((centred**2).sum(axis=0) * (label**2).sum()))
    print(time.perf_counter() - start)
    np.save(output, correlations)


def rank_directly(store: str) -> None:
    """Peer with ranks and permutations: print the seconds of one layer."""
    from scipy import stats

    import featurestore

    ds = featurestore.open_store(store)
    start = time.perf_counter()
    label = ds["label"].values.astype(np.float64)
    values = ds["activations"].isel(layer=0, token=-1).values.astype(np.float64)
    ranks = stats.rankdata(values, axis=0)
    centred = ranks - ranks.mean(axis=0)
    by_label = stats.rankdata(label) - (len(label) + 1) / 2
    with np.errstate(invalid="ignore"):
        by_label @ centred / np.sqrt((centred**2).sum(axis=0) * (by_label**2).sum())
    stats.mannwhitneyu(values[label == label.max()], values[label == label.min()], method="asymptotic")
    rng = np.random.default_rng(0)
    permuted = np.stack([rng.permutation(label - label.mean()) for _ in range(PERMUTATIONS)])
    np.abs(permuted @ values).max(axis=1)
    print(time.perf_counter() - start)


def write_found(store: str, output: str) -> None:
    import featurestore

    np.save(output, featurestore.features(featurestore.open_store(store), permutations=0)["pearson"])


def measure(source: Path, scratch: Path, sentences: int, runs: int) -> Table:
    store = scratch / "store.zarr"
    run(CLI, "ingest", source, "--store", store)
    done: dict[str, list[Run]] = {name: [] for name in ("few", "all", "any", "directly", "ranks")}
    for _ in range(runs):
        for name, arguments in (("few", (0, "final", LAYERS)), ("all", (PERMUTATIONS, "final", LAYERS))):
            done[name].append(timed(run_role(measure_features, store, *arguments)))
        done["directly"].append(timed(run_role(correlate_directly, store, scratch / "expected.npy")))
        done["ranks"].append(timed(run_role(rank_directly, store), LAYERS))
    done["any"].append(timed(run_role(measure_features, store, PERMUTATIONS, "any", 2), LAYERS / 2))
    command = run(CLI, "features", store)
    run_role(write_found, store, scratch / "found.npy")
    np.testing.assert_allclose(np.load(scratch / "found.npy"), np.load(scratch / "expected.npy"), atol=1e-9)

    table = Table()
    for name, what, bound in (("few", "without permutations", 2.0), ("all", f"{PERMUTATIONS} permutations", 8.0)):
        seconds = sorted(one.seconds for one in done[name])
        table.add(f"features, {what}", seconds[len(seconds) // 2], "s", bound if sentences <= 1000 else None)
    table.ratio(
        "features without permutations / numpy: density, mean, max, pearson", done["few"], done["directly"], 1.0
    )
    table.ratio("features with permutations / scipy, one layer x 26", done["all"], done["ranks"], 0.25)
    table.add("features, maximum over all tokens (two layers x 13)", done["any"][0].seconds, "s")
    table.add("the command, as a whole process", command.seconds, "s")
    table.peak("features, peak memory", done["all"], 800)
    return table


def timed(done: Run, factor: float = 1) -> Run:
    """Replace the seconds of the process by those that it has printed."""
    return done._replace(seconds=float(done.output) * factor)


if __name__ == "__main__":
    roles = (measure_features, correlate_directly, rank_directly, write_found)
    main((__doc__ or "").partition("\n")[0], measure, *roles, sentences=1000)
