"""Sweeps: the same datasets as single builds make, read once, continued, checked before anything is written."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import Result

import featurestore
from featurestore import strategies
from featurestore.datasets import dataset as datasets
from featurestore.datasets.plans import Plan
from featurestore.store import arrays, backend
from featurestore.store.snapshot import Snapshot
from featurestore.strategies import registry
from featurestore.strategies.registry import Selection
from tests.sentences import SAMPLE, sentence_arrays, write_folder, write_sentence

STUDY: dict[str, Any] = {
    "datasets": [
        {"strategy": "hidden-to-concept", "layer": "all", "normalize": ["standardize", "minmax", "none"]},
        {"strategy": "hidden-to-concept", "layers": ["0-1", "5,0"]},
        {"strategy": "hidden-to-feature", "targets": [[0, 4], [5, 2]], "input_layer": [1, 5]},
        {"strategy": "embedding-to-feature", "target_layer": [0, 5], "target_feature": "3-4", "normalize": "none"},
    ],
}
N_DATASETS = 3 * 3 + 2 + 2 * 2 + 2 * 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """150 sentences, so three shards; every feature is active in many."""
    write_folder(tmp_path / "care", 150)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "care"


def study(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"stores": [str(folder)], **STUDY, **changes}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_bytes_as_single_builds(folder: Path, cli: Any) -> None:
    done = featurestore.sweep(study(folder, output="swept"))
    assert [planned.state for planned in done.datasets] == ["new"] * N_DATASETS
    assert len({planned.output for planned in done.datasets}) == N_DATASETS
    for planned in done.datasets:
        options = {f"--{name.replace('_', '-')}": value for name, value in planned.plan.arguments.items()}
        given = [
            ",".join(map(str, word)) if isinstance(word, tuple) else word for item in options.items() for word in item
        ]
        line = ["--strategy", planned.plan.strategy.name, *given, "--normalize", planned.plan.normalize]
        result = cli("build", "--input", folder, *line)
        assert result.exit_code == 0, result.output
    assert files(Path("generated_datasets")) == files(Path("swept"))


def test_equals_the_direct_way(folder: Path) -> None:
    done = featurestore.sweep(study(folder))
    sentences = [sentence_arrays(index, tokens=2 + (index * 5) % 6) for index in range(150)]
    position = {0: 0, 1: 1, 5: 2}
    for planned in done.datasets:
        options, dataset = planned.plan.arguments, featurestore.load_dataset(planned.output)
        if planned.plan.strategy.name == "embedding-to-feature":
            raw = np.stack([s["embeddings"][-1] for s in sentences])
        else:
            layers = options.get("layers") or [options.get("layer", options.get("input_layer"))]
            raw = np.stack([np.concatenate([s["hidden_states"][position[i], -1] for i in layers]) for s in sentences])
        if "target_layer" in options:
            at = position[options["target_layer"]], -1, options["target_feature"]
            np.testing.assert_array_equal(dataset.y, [s["activations"][at] for s in sentences])
        else:
            np.testing.assert_array_equal(dataset.y, [int(s["concept_strength_label"]) for s in sentences])
        np.testing.assert_allclose(dataset.inverse(dataset.X), raw.astype("f4"), rtol=1e-5, atol=1e-5)
        raw64 = raw.astype(np.float64)
        if planned.plan.normalize == "standardize":
            np.testing.assert_allclose(dataset.X, (raw64 - raw64.mean(0)) / raw64.std(0), rtol=1e-5, atol=1e-6)
        elif planned.plan.normalize == "minmax":
            np.testing.assert_allclose(dataset.X, (raw64 - raw64.min(0)) / np.ptp(raw64, 0), rtol=1e-5, atol=1e-6)


def test_each_piece_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featurestore.ingest(folder)
    snapshot = Snapshot.read(Path("stores/care.zarr"))
    read: Counter[Any] = Counter()
    original = arrays.StoredArray._read

    def counting(self: Any, key: tuple[Any, ...], target: Any) -> None:
        if self._name in ("embeddings", "hidden_states", "activations"):
            chunks = zip(key, snapshot.chunk_shape(self._name), strict=True)
            parts = [range(k.start, k.stop, size) for k, size in chunks]
            read.update((self._name, *piece) for piece in product(*parts))
        original(self, key, target)

    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 128)
    monkeypatch.setattr(arrays.StoredArray, "_read", counting)
    featurestore.sweep(study(folder))
    shards = 5  # of 32 sentences
    assert set(read.values()) == {1}
    names = Counter(name for name, *_ in read)
    # 3 layers; targets in 2 layers, whose 10 features are one chunk; and the embeddings
    assert names == {"hidden_states": 3 * shards, "activations": 2 * shards, "embeddings": shards}


@pytest.mark.parametrize("window", [1, 1 << 30])
def test_memory_does_not_show(folder: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    featurestore.sweep(study(folder, output="in_memory"))
    monkeypatch.setattr("featurestore.datasets.raw.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(datasets, "_WINDOW_BYTES", window)
    featurestore.sweep(study(folder, output="by_a_file"))
    assert files(Path("in_memory")) == files(Path("by_a_file"))
    assert len(files(Path("in_memory"))) == N_DATASETS


def states(done: featurestore.Sweep) -> Counter[str]:
    return Counter(planned.state for planned in done.datasets)


def test_what_is_up_to_date_is_skipped_and_what_is_stale_is_rebuilt(folder: Path) -> None:
    featurestore.sweep(study(folder))
    paths = sorted(Path("generated_datasets").rglob("*.npz"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert states(featurestore.sweep(study(folder))) == {"current": N_DATASETS}
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    paths[3].unlink()
    assert states(featurestore.sweep(study(folder))) == {"current": N_DATASETS - 1, "new": 1}
    content = files(Path("generated_datasets"))

    write_sentence(folder, 150)
    assert states(featurestore.sweep(study(folder), dry_run=True)) == {"stale": N_DATASETS}
    assert files(Path("generated_datasets")) == content
    assert states(featurestore.sweep(study(folder))) == {"stale": N_DATASETS}
    assert {int(featurestore.load_dataset(path).metadata["n_samples"]) for path in paths} == {151}
    assert states(featurestore.sweep(study(folder))) == {"current": N_DATASETS}
    assert states(featurestore.sweep(study(folder), force=True)) == {"stale": N_DATASETS}


def test_other_content_is_only_replaced_when_forced(folder: Path) -> None:
    done = featurestore.sweep(study(folder), dry_run=True)
    assert not Path("generated_datasets").exists()
    path = done.datasets[4].output
    path.parent.mkdir(parents=True)
    for content in (b"mine", b""):
        path.write_bytes(content)
        with pytest.raises(featurestore.DatasetError, match=f"(?s)1 outputs exist with other content.*{path.name}"):
            featurestore.sweep(study(folder))
        assert files(path.parent) == {path.name: content}
    featurestore.sweep(study(folder), force=True)
    assert featurestore.load_dataset(path).metadata["n_samples"] == 150


def test_the_order_of_ingestion_and_the_place_do_not_show(folder: Path, tmp_path: Path) -> None:
    featurestore.sweep(study(folder, output="one"))
    for part, indices in (("b", range(60, 150)), ("a", range(60))):
        (tmp_path / part).mkdir()
        for index in indices:
            shutil.copy(folder / f"sentence_{index + 1:06d}.npz", tmp_path / part)
    other = tmp_path / "elsewhere" / "care.zarr"
    featurestore.ingest(tmp_path / "b", other)
    featurestore.ingest(tmp_path / "a", other)
    featurestore.sweep(study(other, output="two"))
    assert files(Path("one")) == files(Path("two"))


@pytest.mark.parametrize("saved", [0, 1, 7])
def test_an_interrupted_sweep_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, saved: int) -> None:
    featurestore.sweep(study(folder, output="whole"))
    save, left = datasets.Dataset.save, [None] * saved

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Path:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return save(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featurestore.sweep(study(folder, output="part"))
    whole, part = files(Path("whole")), files(Path("part")) if saved else {}
    assert len(part) == saved
    assert part.items() <= whole.items()
    done = states(featurestore.sweep(study(folder, output="part")))
    assert done["new"] == N_DATASETS - saved
    assert files(Path("part")) == whole


KILLED = """
import os, signal, sys
from featurestore import files
from featurestore.cli import commands

publish, left = files._publish, int(sys.argv.pop(1))

def killing(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(*arguments)

files._publish = killing
commands.main()
"""


@pytest.mark.parametrize("saved", [0, 6])
def test_a_killed_sweep_leaves_whole_datasets_and_goes_on(folder: Path, saved: int) -> None:
    featurestore.sweep(study(folder, output="whole"))
    Path("r.yaml").write_text(yaml.safe_dump(study(folder, output="part")))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(saved), "sweep", "r.yaml"], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole, part = files(Path("whole")), files(Path("part"))
    assert bool(part) == bool(saved)
    assert len(part) <= saved
    assert part.items() <= whole.items()
    assert states(featurestore.sweep("r.yaml"))["current"] == len(part)
    assert files(Path("part")) == whole


@pytest.mark.parametrize("where", ["scratch", "dataset"])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    featurestore.ingest(folder, "care.zarr")
    Path("r.yaml").write_text(yaml.safe_dump(study(folder, stores="care.zarr", output="swept")))
    if where == "scratch":
        monkeypatch.setattr("featurestore.datasets.raw.IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    result = cli("sweep", "r.yaml")
    assert result.exit_code == 1
    assert re.search(
        r"swept/care\S*: cannot be written or read \(No space left on device\); free some space", result.output
    )
    assert files(Path("swept")) == {}


def test_a_full_disk_while_a_folder_is_ingested(folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("r.yaml").write_text(yaml.safe_dump(study(folder)))
    monkeypatch.setattr(os, "fsync", full)
    result = cli("sweep", "r.yaml")
    assert result.exit_code == 1
    assert "stores/care.zarr: cannot be written or read (No space left on device); free some space" in result.output


def test_several_stores(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "anger", 40, seed=1)
    both = study(folder, stores=[str(folder), "anger"])
    done = featurestore.sweep(both)
    assert Counter(planned.output.parent.name for planned in done.datasets) == {"care": N_DATASETS, "anger": N_DATASETS}
    alone = featurestore.sweep(study(tmp_path / "anger", output="alone"))
    assert files(Path("alone/anger")) == files(Path("generated_datasets/anger"))
    assert len(alone.datasets) == N_DATASETS


# ---- preflight


def change(folder: Path, index: int, changer: Callable[[dict[str, Any]], None], **options: Any) -> None:
    arrays = sentence_arrays(index, tokens=2 + (index * 5) % 6)
    changer(arrays)
    write_sentence(folder, index, tokens=2 + (index * 5) % 6, changes=arrays)


@pytest.fixture
def faulty(folder: Path) -> Path:
    """Feature 1 of layer 0 is dead, 2 constant, 3 nearly dead; layer 5 overflows once; one sentence has label 7."""

    def spoil(index: int) -> Callable[[dict[str, Any]], None]:
        def changer(arrays: dict[str, Any]) -> None:
            arrays["activations"][0, -1, 1] = 0
            arrays["activations"][0, -1, 2] = 2.5
            arrays["activations"][0, -1, 3] = index in (3, 4)
            if index == 70:
                arrays["hidden_states"][2, -1, 4] = np.inf
            if index == 9:
                arrays["concept_strength_label"] = np.array(7)

        return changer

    for index in range(150):
        change(folder, index, spoil(index))
    return folder


FAULTY: list[dict[str, Any]] = [
    {"strategy": "hidden-to-feature", "target_layer": 0, "target_feature": "1-4"},
    {"strategy": "hidden-to-concept", "layer": "all"},
]


def test_unfit_datasets_are_left_out_or_refused(faulty: Path) -> None:
    recipe = study(faulty, datasets=FAULTY)
    featurestore.ingest(faulty)
    done = featurestore.sweep(recipe, dry_run=True)
    assert [planned.problem for planned in done.datasets] == [
        "feature 1 of layer 0 is dead: active in none of 150 training sentences",
        "feature 2 of layer 0 is constant: 2.5 in all 150 training sentences",
        "feature 3 of layer 0 is nearly dead: active in 2 of 150 training sentences, fewer than min_active: 5",
        "",
        "",
        "",
        "1 of 150 sentences have NaN or infinite values; drop_nonfinite: true leaves them out",
    ]
    with pytest.raises(featurestore.RecipeError, match="4 of 7 datasets are unfit") as refused:
        featurestore.sweep(recipe | {"problems": "refuse"})
    assert len(str(refused.value).splitlines()) == 1 + 4
    assert not Path("generated_datasets").exists()
    featurestore.sweep(recipe)
    assert len(files(Path("generated_datasets"))) == 3
    assert states(featurestore.sweep(recipe)) == {"current": 3, "unfit": 4}
    assert states(featurestore.sweep(recipe | {"drop_nonfinite": True, "min_active": 2})) == {"new": 5, "unfit": 2}


def test_unfit_datasets_are_built_all_the_same(faulty: Path, caplog: pytest.LogCaptureFixture, cli: Any) -> None:
    """Those that can be, with a warning and the same bytes as `build` makes; values that are not finite cannot."""
    recipe = study(faulty, datasets=FAULTY, problems="keep")
    featurestore.ingest(faulty)
    done = featurestore.sweep(recipe, dry_run=True)
    assert states(done) == {"new": 6, "unfit": 1}
    assert [bool(planned.problem) for planned in done.datasets] == [True] * 3 + [False] * 3 + [True]
    assert "layer 0 is dead: active in none of 150 training sentences (kept; datasets: 1)" in caplog.text
    caplog.clear()
    featurestore.sweep(recipe)
    assert len([record for record in caplog.records if "kept" in record.message]) == 3
    assert len(files(Path("generated_datasets"))) == 6
    options = ["--strategy", "hidden-to-feature", "--target-layer", 0, "--target-feature", 1]
    result = cli("build", *options, "--input", faulty, "--output", "dead.npz")
    assert "layer 0 is dead" in result.output
    assert Path("dead.npz").read_bytes() == done.datasets[0].output.resolve().read_bytes()
    assert states(featurestore.sweep(recipe)) == {"current": 6, "unfit": 1}


def test_a_dry_run_reads_no_inputs(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featurestore.ingest(faulty)
    read = []
    original = arrays.StoredArray._read

    def counting(self: Any, key: tuple[Any, ...], target: Any) -> None:
        read.append((self._name, key[0]))
        original(self, key, target)

    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 64)
    monkeypatch.setattr(arrays.StoredArray, "_read", counting)
    featurestore.sweep(study(faulty, datasets=FAULTY), dry_run=True)
    inputs = [rows for name, rows in read if name in ("embeddings", "hidden_states") and rows.stop]
    assert inputs == [slice(64, 128)] * 3  # the chunk of the one sentence that is not finite, in each layer


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_that_a_strategy_makes_infinite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No count of ingest can know of them: they are found once X has been read, before anything is written."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @featurestore.strategy("scaled")
    def scaled(ds: xr.Dataset, *, factor: Annotated[int, "X is multiplied by this."]) -> featurestore.Selection:
        """Predict the label from scaled embeddings."""
        return featurestore.Selection(X=strategies.final(ds["embeddings"]) * np.float16(factor), y=ds["label"])

    recipe = study(folder, datasets={"strategy": "scaled", "factor": [1, 60000, 2]})
    with pytest.raises(featurestore.RecipeError, match=r"(?s)1 of 3 datasets are unfit.*NaN or infinite"):
        featurestore.sweep(recipe | {"problems": "refuse"})
    assert not Path("generated_datasets").exists()
    assert states(featurestore.sweep(recipe)) == {"new": 2, "unfit": 1}
    assert len(files(Path("generated_datasets"))) == 2


# ---- statistics of another dataset


def test_statistics_of_another_dataset(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "anger", 40, seed=1)
    for source in (folder, tmp_path / "anger"):
        featurestore.ingest(source)
    for method in ("standardize", "minmax", "none"):
        path = tmp_path / f"{method}.npz"
        first = featurestore.build("stores/care.zarr", "hidden-to-concept", layers="0,5", normalize=method, output=path)
        raw = featurestore.build("stores/anger.zarr", "hidden-to-concept", layers="0,5", normalize="none")
        second = featurestore.build("stores/anger.zarr", "hidden-to-concept", layers="0,5", stats_from=path)
        assert second.normalization.method == method
        np.testing.assert_array_equal(second.X, first.transform(raw.X), strict=True)
        assert str(first.metadata["fingerprint"]) in str(second.metadata["parameters"])
        assert str(second.metadata["fingerprint"]) != str(raw.metadata["fingerprint"])


def test_statistics_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder)
    path = tmp_path / "d.npz"
    featurestore.build("stores/care.zarr", "hidden-to-concept", layers="0,5", output=path)
    build: Any = featurestore.build
    with pytest.raises(featurestore.DatasetError, match=r"input_layers \[0 5\], this one has \[5 0\]"):
        build("stores/care.zarr", "hidden-to-concept", layers="5,0", stats_from=path)
    with pytest.raises(
        featurestore.DatasetError, match="has statistics of hidden-to-concept, not of hidden-to-feature"
    ):
        build("stores/care.zarr", "hidden-to-feature", target_layer=0, target_feature=1, stats_from=path)
    with pytest.raises(featurestore.ParameterError, match=r"normalize='minmax': stats_from= has standardize"):
        build("stores/care.zarr", "hidden-to-concept", layers="0,5", normalize="minmax", stats_from=path)


def test_statistics_of_another_sae_or_layer_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in", 20, layers=[0, 5, 5], average_l0s=[3, 2, 9])
    featurestore.ingest("in", "s.zarr")
    featurestore.build("s.zarr", "activation-to-concept", layer=5, average_l0=2, output="two.npz")
    with pytest.raises(featurestore.DatasetError, match="input_average_l0 2, this one has 9"):
        featurestore.build("s.zarr", "activation-to-concept", layer=5, average_l0=9, stats_from="two.npz")
    featurestore.build("s.zarr", "hidden-to-concept", layer=0, output="zero.npz")
    datasets = {"strategy": "hidden-to-concept", "layer": [0, 5]}
    recipe = {"stores": "s.zarr", "stats_from": "zero.npz", "datasets": datasets}
    with pytest.raises(featurestore.RecipeError, match=r"recipe: datasets: stats_from: .*input_layers \[0\]"):
        featurestore.sweep(recipe)
    assert not Path("generated_datasets").exists()
    featurestore.sweep(recipe | {"datasets": datasets | {"layer": 0}})


def test_the_normalization_in_a_scikit_learn_pipeline(folder: Path) -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    featurestore.ingest(folder)
    dataset = featurestore.build("stores/care.zarr", "hidden-to-concept", layer=5, normalize="minmax")
    raw = featurestore.build("stores/care.zarr", "hidden-to-concept", layer=5, normalize="none")
    transformer = clone(dataset.transformer())
    assert len(pickle.dumps(transformer)) < 2000  # the statistics, not X
    np.testing.assert_array_equal(transformer.fit(raw.X[:9]).transform(raw.X), dataset.X)
    np.testing.assert_array_equal(transformer.inverse_transform(dataset.X), dataset.inverse(dataset.X))
    model = make_pipeline(dataset.transformer(), LogisticRegression()).fit(raw.X, raw.y)
    expected = LogisticRegression().fit(dataset.X, dataset.y)
    np.testing.assert_array_equal(model.predict(raw.X), expected.predict(dataset.X))


# ---- names


def test_long_names_are_cut_and_stay_different() -> None:
    layers = [",".join(map(str, range(first, 400, 2))) for first in (0, 2)]
    names = {Plan.of("hidden-to-concept", {"layers": spec}).file_name for spec in layers}
    assert len(names) == 2
    assert all(len(name.encode()) < 220 for name in names)


# ---- examples


@pytest.mark.parametrize("recipe", sorted((SAMPLE.parent).glob("*.yaml")), ids=lambda path: path.name)
def test_example(recipe: Path, cli: Any) -> None:
    (Path("examples")).symlink_to(SAMPLE.parent)
    result = cli("sweep", recipe)
    assert result.exit_code == 0, result.output
    listed = featurestore.list_datasets("generated_datasets")
    assert len(listed) >= 6
    assert {entry.state for entry in listed} == {"current"}
    assert f"built {len(listed)} datasets" in result.output
    for entry in listed:
        dataset = featurestore.load_dataset(Path("generated_datasets", entry.file))
        assert np.isfinite(dataset.X).all()
    written = yaml.safe_load(recipe.read_text())
    folder = written.get("output", "generated_datasets")
    assert written["stores"]
    assert f"built 0 datasets (0.0 MB) in {folder}, {len(listed)} up to date" in cli("sweep", recipe).output


def test_a_dry_run_of_a_folder_writes_nothing(folder: Path, cli: Any) -> None:
    """It is only scanned, yet lists what the sweep then builds; the same where a store lacks some of the folder."""
    ranked = {"strategy": "hidden-to-feature", "targets": {"rank_by": "density", "top": 2}}
    recipe = study(folder, split={"test_size": 0.25, "seed": 1}, output="swept")
    recipe["datasets"] = [*recipe["datasets"], ranked]
    Path("r.yaml").write_text(yaml.safe_dump(recipe))

    def dry() -> tuple[Result, set[str]]:
        before = files(Path())
        result = cli("sweep", "r.yaml", "--dry-run")
        assert result.exit_code == 0, result.output
        assert files(Path()) == before
        return result, set(re.findall(r"\S+\.npz", result.stdout))

    result, listed = dry()
    assert "150 sentences are scanned, their values not checked" in result.output
    assert "2 datasets are of features that can only be ranked once it is ingested" in result.output
    assert cli("sweep", "r.yaml").exit_code == 0
    built = {str(path) for path in Path("swept").rglob("*.npz")}
    assert listed < built
    assert len(built - listed) == 2
    _, again = dry()
    assert again == built
    write_sentence(folder, 150, tokens=9)
    result, listed = dry()
    assert "151 sentences are scanned" in result.output
    assert result.stdout.count(" stale ") == len(listed) == len(built) - 2


def test_a_dry_run_names_bad_files(folder: Path, cli: Any) -> None:
    (folder / "sentence_000999.npz").write_bytes(b"")
    Path("r.yaml").write_text(yaml.safe_dump(study(folder)))
    before = files(Path())
    result = cli("sweep", "r.yaml", "--dry-run")
    assert result.exit_code == 1
    assert "sentence_000999.npz: expected an NPZ" in result.output
    assert files(Path()) == before


@pytest.mark.parametrize(("problems", "code"), [("skip", 0), ("refuse", 1)])
def test_values_that_normalizing_takes_out_of_range(
    folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, problems: str, code: int
) -> None:
    """Where test rows leave the range of float32, only that dataset is left out."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    split: dict[str, Any] = {"test_size": 0.25, "seed": 1}
    metadata = featurestore.build(folder, "hidden-to-concept", layer=0, **split).metadata
    test = metadata["sentence_indices"][metadata["split"] == "test"]

    @featurestore.strategy("steep")
    def steep(ds: xr.Dataset) -> Selection:
        """Predict the label from values that are tiny but in the test part."""
        values = np.where(np.isin(ds["sentence"], test), 1e30, 1e-20 * np.arange(ds.sizes["sentence"]))
        return Selection(X=xr.DataArray(values, {"sentence": ds["sentence"]}), y=ds["label"])

    recipe = study(folder, split=split, problems=problems, output="swept", normalize=["standardize", "none"])
    recipe["datasets"] = [{"strategy": "steep"}]
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    result = cli("sweep", "r.yaml")
    assert result.exit_code == code, result.output
    assert "float32 cannot hold the other rows" in result.output
    assert [path.name for path in Path("swept").rglob("*_standardize_*.npz")] == []
