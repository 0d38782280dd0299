"""Measure a sweep of 100 datasets against building them one by one, and against writing them alone; print one table.

    uv run --group test benchmarks/sweep.py            # 1,000 sentences
    uv run --group test benchmarks/sweep.py --sentences 100

The study: each of 26 layers with each of 3 normalizations, and 22 features from the hidden states of one layer each.
The input is that of ``main_job.py``, the store is ready. The direct way reads every NPZ for every dataset; three of its
runs are measured, and multiplied to 100. Writing alone is `numpy.savez` of the same arrays from memory. Each is a whole
fresh process, except that writing does not count its start. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
from harness import CLI, HIDDEN, LAYERS, Run, Table, main, run, run_role, size

N_FEATURES = 22
N_DATASETS = 3 * LAYERS + N_FEATURES


def write_recipe(store: str, recipe: str, output: str) -> None:
    """Choose the features that are active most often, as dead ones would be left out."""
    from featurestore.datasets.ranking import rank
    from featurestore.datasets.view import StoreView
    from featurestore.strategies.contained import contained_layers

    view = StoreView(Path(store))
    features = rank(view.ds, "density", contained_layers(view.ds), N_FEATURES, np.ones(len(view.sentences), bool), 1)
    pairs = [[target["target_layer"], target["target_feature"]] for target in features]
    datasets = [
        {"strategy": "hidden-to-concept", "layer": "all", "normalize": ["standardize", "minmax", "none"]},
        {"strategy": "hidden-to-feature", "targets": pairs},
    ]
    study = {"stores": store, "output": output, "min_active": 1, "datasets": datasets}
    Path(recipe).write_text(json.dumps(study))  # which is YAML, too


def build_directly(folder: str, output: str, layer: str, method: str) -> None:
    """Read every array of every file, and make one dataset."""
    rows, labels = [], []
    for path in sorted(Path(folder).glob("sentence_*.npz")):
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        final = int(arrays["is_final_token"].argmax())
        rows.append(arrays["hidden_states"][int(layer), final])
        labels.append(int(arrays["concept_strength_label"]))
    raw = np.stack(rows).astype(np.float64)
    if method == "standardize":
        raw = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    elif method == "minmax":
        raw = (raw - raw.min(axis=0)) / (raw.max(axis=0) - raw.min(axis=0))
    np.savez(output, X=raw.astype(np.float32), y=np.array(labels))


def write_alone(datasets: str, output: str) -> None:
    """Print the seconds that `numpy.savez` takes for the same arrays, from memory."""
    loaded = {}
    for path in sorted(Path(datasets).rglob("*.npz")):
        with np.load(path) as archive:
            loaded[path.name] = {name: archive[name] for name in archive.files}
    Path(output).mkdir()
    start = time.perf_counter()
    for name, arrays in loaded.items():
        np.savez(Path(output) / name, **arrays)
    print(time.perf_counter() - start)


def measure(source: Path, scratch: Path, sentences: int, runs: int) -> Table:
    store, recipe, output = scratch / "study.zarr", scratch / "study.json", scratch / "swept"
    ingest = run(CLI, "ingest", source, "--store", store)
    run_role(write_recipe, store, recipe, output)
    direct = [
        run_role(build_directly, source, scratch / f"{method}.npz", 12, method)
        for method in ("standardize", "minmax", "none")
    ]
    sweeps, writes = [], []
    for _ in range(runs):
        shutil.rmtree(output, ignore_errors=True)
        sweeps.append(run(CLI, "sweep", recipe))
        alone = run_role(write_alone, output, scratch / "alone")
        writes.append(Run(float(alone.output), alone.peak_mb, ""))
        shutil.rmtree(scratch / "alone")
    again = run(CLI, "sweep", recipe)
    paths = sorted(output.rglob("*.npz"))
    if len(paths) != N_DATASETS:
        raise RuntimeError(f"expected {N_DATASETS} datasets, found {len(paths)}")
    for method in ("standardize", "minmax", "none"):
        swept = output / "study" / f"hidden-to-concept_layer-12_{method}.npz"
        with np.load(scratch / f"{method}.npz") as expected, np.load(swept) as found:
            np.testing.assert_allclose(found["X"], expected["X"], atol=1e-5)

    table = Table()
    all_directly = Run(sum(run.seconds for run in direct) / 3 * N_DATASETS, 0, "")
    table.ratio("sweep / 100 times directly from the NPZs", sweeps, [all_directly] * runs, 1 / 50)
    table.ratio("sweep / writing the same arrays with np.savez", sweeps, writes, 1.5)
    table.ratio("ingest and sweep / 100 times directly", [ingest._replace(seconds=ingest.seconds + sweeps[0].seconds)],
                [all_directly])  # fmt: skip
    table.add("the same sweep again, all up to date", again.seconds, "s")
    table.add("sweep, peak memory", max(run.peak_mb for run in sweeps), "MB")
    table.add("datasets", size(output) / 1e6, "MB", None, f"X {sentences} x {HIDDEN}, {len(paths)} files")
    return table


if __name__ == "__main__":
    main((__doc__ or "").partition("\n")[0], measure, write_recipe, build_directly, write_alone, sentences=1000)
