"""On a cluster: the same bytes, read and measured by the workers, in few tasks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import featurestore
from featurestore import StoreError
from featurestore.datasets import normalize, workers
from featurestore.schema import ARRAYS, CONTROLS, Extraction
from featurestore.store import arrays, backend, outline
from featurestore.strategies import final_activation, final_hidden_states, registry
from tests.sentences import sentence_arrays, write_folder, write_sentence

ROOT = Path(__file__).parents[2]

OWN = '''
import numpy as np
import xarray as xr
from featurestore import Selection, strategy

def root(values):
    return np.sqrt(np.abs(values.astype("f4")))

@strategy("roots")
def roots(ds: xr.Dataset) -> Selection:
    """Predict the label from the roots of one layer, less their mean."""
    hidden = ds.hidden_states.isel(layer=1, token=-1)
    found = xr.apply_ufunc(root, hidden, dask="parallelized", output_dtypes=["f4"])
    return Selection(X=found - found.mean("sentence"), y=ds["label"])
'''

STUDY: dict[str, Any] = {
    "split": {"test_size": 0.3, "seed": 1},
    "normalize": ["standardize", "minmax", "none"],
    "drop_nonfinite": True,
    "min_active": 1,
    "plugins": ["own.py"],
    "datasets": [
        {"strategy": "hidden-to-concept", "layer": "all"},
        {"strategy": "hidden-to-concept", "layers": "0-1,5"},
        {"strategy": "hidden-to-feature", "targets": {"rank_by": "label", "top": 3}, "input_layer": 1},
        {"strategy": "activation-to-concept", "layer": 5, "densest": 4},
        {"strategy": "roots"},
    ],
}


@contextmanager
def cluster(*, processes: bool) -> Iterator[Client]:
    """Start two workers, which take their time where the machine is busy."""
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "120s"}),
        LocalCluster(processes=processes, **options) as workers,
        Client(workers) as client,
    ):
        yield client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """150 sentences, one of them with infinite hidden states, in chunks of 32."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 32)
    write_folder(tmp_path / "care", 150)
    Path("own.py").write_text(OWN)
    featurestore.ingest("care", "care.zarr")
    return tmp_path


def study(output: str) -> dict[str, Any]:
    return {"stores": "care.zarr", "output": output, **STUDY}


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.npz"))}


def test_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = featurestore.sweep(study("here"))
    read: list[str] = []
    original = arrays.StoredArray._read

    def noting(self: Any, key: Any, target: Any) -> None:
        read.append(self._name)
        original(self, key, target)

    monkeypatch.setattr(arrays.StoredArray, "_read", noting)
    monkeypatch.setattr(normalize, "_reduced", None)  # here, not on the workers, which are other processes
    with cluster(processes=True):
        there = featurestore.sweep(study("there"))
        built = featurestore.build("care.zarr", "hidden-to-concept", layer=1, test_size=0.3, seed=1)
    assert len(there.in_state("new")) == len(here.in_state("new")) > 15
    assert files("there") == files("here")
    assert not set(ARRAYS) & set(read)
    np.testing.assert_array_equal(built.X, featurestore.load_dataset(here.datasets[3].output).X)


QUESTIONS: dict[str, Any] = {
    "stores": "care.zarr",
    "split": {"test_size": 0.3, "seed": 1},
    "problems": "keep",
    "drop_short": True,
    "tokens": ["mean", "all", "last-2"],
    "where": [{"label": "0-2", "n_tokens": "2-6"}],
    "datasets": [
        {"strategy": "hidden-to-concept", "layers": "0,5", "combine": ["difference", "concat"], "controls": CONTROLS},
        {"strategy": "hidden-to-feature", "target_layer": 1, "target_feature": 3, "target_tokens": "max"},
        {"strategy": "activation-to-concept", "layer": 5, "tokens": "max", "normalize": "minmax"},
    ],
}


def test_the_same_bytes_whatever_is_asked(folder: Path) -> None:
    """Of tokens, populations, layers combined and controls; chunks of the store are read by the workers alone."""
    single: dict[str, Any] = {"layer": 1, "tokens": "all", "where": "label=0,3", "control": "text", "seed": 2}
    here = featurestore.sweep(QUESTIONS | {"output": "here"})
    featurestore.build("care.zarr", "hidden-to-concept", **single, output="here.npz")
    with cluster(processes=True):
        there = featurestore.sweep(QUESTIONS | {"output": "there"})
        featurestore.build("care.zarr", "hidden-to-concept", **single, output="there.npz")
    assert len(there.in_state("new")) == len(here.in_state("new")) == 3 * 2 * (1 + len(CONTROLS)) + 3 + 1
    assert files("there") == files("here")
    assert Path("there.npz").read_bytes() == Path("here.npz").read_bytes()


def test_several_stores_and_sequences_are_the_same(folder: Path) -> None:
    for index in range(40):
        changes = {"sentence": np.array("".join(map(chr, np.random.default_rng(index).integers(97, 123, 40))))}
        write_sentence(Path("harm"), index, tokens=2 + index % 3, seed=1, changes=changes)
    featurestore.ingest("harm", "harm.zarr")
    pool: dict[str, Any] = {
        "pool": ["care.zarr", "harm.zarr"],
        "split": {"folds": 2},
        "problems": "keep",
        "drop_nonfinite": True,
        "datasets": [
            {"strategy": "hidden-to-concept", "layers": "0,5", "tokens": ["mean", "final"], "y": ["label", "store"]},
            {"strategy": "hidden-sequence-to-concept", "layer": 5, "controls": ["length"], "normalize": "minmax"},
            {"strategy": "activation-sequence-to-concept", "layer": 1, "densest": 3},
        ],
    }
    here = featurestore.sweep(pool | {"output": "here"})
    with cluster(processes=True):
        there = featurestore.sweep(pool | {"output": "there"})
    assert len(there.in_state("new")) == len(here.in_state("new")) == 4 + 2 + 1
    assert files("there") == files("here")


def test_features_are_the_same(folder: Path) -> None:
    ds = featurestore.open_store("care.zarr", chunks={})
    here = featurestore.features(ds, tokens="any", permutations=2)
    with cluster(processes=False):
        xr.testing.assert_identical(featurestore.features(ds, tokens="any", permutations=2), here)


def test_what_is_infinite_is_left_out(folder: Path) -> None:
    hidden = sentence_arrays(150)["hidden_states"]
    hidden[1, -1, 2] = np.inf
    write_sentence(folder / "care", 150, changes={"hidden_states": hidden})
    featurestore.ingest("care", "care.zarr")
    options: dict[str, Any] = {"layer": 1, "drop_nonfinite": True}
    with cluster(processes=False):
        dataset = featurestore.build("care.zarr", "hidden-to-concept", **options)
    assert dataset.metadata["dropped_sentence_indices"].tolist() == [150]
    np.testing.assert_array_equal(dataset.X, featurestore.build("care.zarr", "hidden-to-concept", **options).X)


def test_damage_is_the_same_error(folder: Path) -> None:
    shard = Path("care.zarr/hidden_states/c.1.0.0.0")
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    with cluster(processes=False), pytest.raises(StoreError, match=r"care.zarr: array 'hidden_states' is damaged"):
        featurestore.build(folder / "care.zarr", "hidden-to-concept", layers="0-1", output="x.npz")
    assert not Path("x.npz").exists()


def test_whoever_chooses_threads_gets_them(folder: Path) -> None:
    with cluster(processes=False) as client:
        assert workers.active() is client
        with dask.config.set(scheduler="threads"):
            assert workers.active() is None
    assert workers.active() is None


def test_few_tasks_at_100_000_sentences() -> None:
    n = 100_000
    sizes = {"layers": tuple(range(26)), "sae_layers": tuple(range(26)), "average_l0s": (75,) * 26}
    extraction = Extraction(**sizes, hidden=2304, features=16_384, dtypes=("float16", "float16", "float32"))
    numbers: dict[str, Any] = {name: np.arange(n) for name in ("sentence", "label")}
    ds = outline._labelled(extraction, numbers | {"n_tokens": np.full(n, 24)})
    rng = np.random.default_rng(0)
    features = zip(rng.integers(0, 26, 100).tolist(), rng.integers(0, 16_384, 100).tolist(), strict=True)
    outcomes = [final_activation(ds, layer, feature, None).data for layer, feature in features]
    for lazy in ([states.data for states in final_hidden_states(ds, range(26))], outcomes):
        keys = [key for array in lazy for key in workers._keys(array)]
        _, graph = workers._graph(lazy)
        parts = workers._parts(graph, keys)
        assert len(parts) < 2500
        assert sorted(map(str, keys)) == sorted(str(key) for _, wanted in parts for key in wanted)
        assert sum(len(part) for part, _ in parts) == len(graph)  # no task twice, so no chunk is read twice


def test_parts_need_nothing_of_each_other() -> None:
    x = da.ones((8, 3), chunks=(2, 3))
    apart, together = x + 1, x - x.mean(axis=0)
    for arrays_, n in (([apart], 4), ([apart, together], 1), ([apart, da.zeros(4, chunks=2)], 6)):
        _, graph = workers._graph(arrays_)
        assert len(workers._parts(graph, [key for array in arrays_ for key in workers._keys(array)])) == n


def test_one_array_for_several() -> None:
    x = da.arange(6, chunks=2) * 2
    first, second, third = workers.compute([x, x, x[:3]])
    assert first.tolist() == second.tolist() == [0, 2, 4, 6, 8, 10]
    assert third.tolist() == [0, 2, 4]


def test_the_example(folder: Path) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples")
    done = subprocess.run([sys.executable, "examples/cluster.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "42 of 42 datasets built\n"
