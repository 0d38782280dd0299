"""Datasets with a split: what is fitted, chosen and recorded, compared with numpy on the training rows alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from featurestore.splits.options import SplitOptions
from featurestore.splits.split import split
from tests.sentences import sentence_arrays, write_folder, write_sentence

N, OVERFLOW = 120, 33


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ingested in two portions, the later sentences first; one sentence overflows in layer 5; triples are groups."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "all", N)
    arrays = sentence_arrays(OVERFLOW)
    arrays["hidden_states"][2, -1, 3] = np.inf
    write_sentence(tmp_path / "all", OVERFLOW, changes=arrays)
    for part, indices in (("late", range(50, N)), ("early", range(50))):
        (tmp_path / part).mkdir()
        for index in indices:
            shutil.copy(tmp_path / "all" / f"sentence_{index + 1:06d}.npz", tmp_path / part)
        featurestore.ingest(tmp_path / part, tmp_path / "stores/care.zarr")
    write_groups(3)
    return tmp_path / "stores/care.zarr"


def write_groups(size: int) -> None:
    lines = ["sentence_index,topic", *(f"{i},t{i // size}" for i in reversed(range(N)))]
    Path("groups.csv").write_text("\n".join(lines))


def raw(layer: int, indices: list[int]) -> np.ndarray[Any, Any]:
    position = {0: 0, 1: 1, 5: 2}[layer]
    folder = sorted(Path("all").glob("*.npz"))
    return np.stack([np.load(folder[i])["hidden_states"][position, -1] for i in indices]).astype(np.float64)


SPLIT: dict[str, Any] = {"test_size": 0.25, "folds": 3, "seed": 5, "group_by": "groups.csv:topic"}


def test_everything_is_fitted_on_the_training_rows(store: Path) -> None:
    divided = split(featurestore.open_store(store), SplitOptions(**SPLIT))
    sentences = featurestore.open_store(store)["sentence"].values.tolist()
    side = dict(zip(sentences, np.where(divided.train, "train", "test").tolist(), strict=True))
    assert divided.fold is not None
    fold = dict(zip(sentences, divided.fold.tolist(), strict=True))
    assert sentences != sorted(sentences)

    dataset = featurestore.build(store, "hidden-to-concept", layers="5,0", drop_nonfinite=True, **SPLIT)
    indices = dataset.metadata["sentence_indices"].tolist()
    assert indices == [i for i in range(N) if i != OVERFLOW]
    assert dataset.metadata["split"].tolist() == [side[i] for i in indices]
    assert dataset.metadata["fold"].tolist() == [fold[i] for i in indices]
    assert dataset.metadata["near_duplicates_across"] == 0
    for i in range(0, N, 3):
        assert len({(side[j], fold[j]) for j in range(i, i + 3)}) == 1
    values = np.hstack([raw(5, indices), raw(0, indices)])
    train = dataset.metadata["split"] == "train"
    mean, std = values[train].mean(axis=0), values[train].std(axis=0)
    assert np.abs(mean - values.mean(axis=0)).max() > 0.01
    np.testing.assert_allclose(dataset.normalization.parameters["mean"], mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dataset.X, (values - mean) / std, rtol=1e-5, atol=1e-6)
    assert dataset.y.tolist() == [i % 4 for i in indices]

    # the same sides in every dataset of the store
    other = featurestore.build(
        store, "hidden-to-feature", target_layer=1, target_feature=2, normalize="minmax", **SPLIT
    )
    assert other.metadata["split"].tolist() == [side[i] for i in range(N)]
    train = other.metadata["split"] == "train"
    np.testing.assert_array_equal(other.normalization.parameters["max"], raw(1, [*range(N)])[train].max(axis=0))


def test_the_densest_features_are_those_of_the_training_rows(store: Path) -> None:
    options: dict[str, Any] = {"layer": 1, "densest": 4, "test_size": 0.5, "normalize": "none"}
    dataset = featurestore.build(store, "activation-to-concept", **options)
    activations = np.stack([np.load(path)["activations"][1, -1] for path in sorted(Path("all").glob("*.npz"))])
    counts = np.count_nonzero(activations[dataset.metadata["split"] == "train"], axis=0).tolist()
    best = sorted(sorted(range(10), key=lambda feature: (-counts[feature], feature))[:4])
    assert dataset.metadata["input_features"].tolist() == best
    np.testing.assert_array_equal(dataset.X, activations[:, best])
    scaled = featurestore.build(
        store, "activation-to-concept", **options | {"normalize": "standardize"}, output="a.npz"
    )
    again = featurestore.build(store, "activation-to-concept", layer=1, densest=4, stats_from="a.npz")
    np.testing.assert_array_equal(again.X, scaled.X)


def test_statistics_of_test_sentences_are_noticed(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    build: Any = featurestore.build
    split = {"test_size": 0.25}
    build(store, "hidden-to-concept", layer=0, output="all.npz")
    build(store, "hidden-to-concept", layer=0, output="train.npz", **split)
    build(store, "hidden-to-concept", layer=0, stats_from="train.npz", **split)
    build(store, "hidden-to-concept", layer=0, stats_from="all.npz")
    assert "stats_from=" not in caplog.text
    build(store, "hidden-to-concept", layer=0, stats_from="all.npz", **split)
    assert "stats_from=: its statistics include 30 of the 30 test sentences" in caplog.text


def test_folds_alone(store: Path) -> None:
    dataset = featurestore.build(store, "hidden-to-concept", layer=0, folds=4)
    assert ((dataset.metadata["split"] == "test") == (dataset.metadata["fold"] == 0)).all()
    assert np.bincount(dataset.metadata["fold"]).tolist() == [30] * 4


def test_the_fingerprint_depends_on_split_and_groups(store: Path) -> None:
    variants: list[dict[str, Any]] = [
        {}, {"test_size": 0.25}, {"test_size": 0.3}, {"test_size": 0.25, "seed": 1}, {"folds": 3}, SPLIT,
        {"normalize": "none"}, {"drop_nonfinite": True}, {"test_size": np.float64(0.25), "seed": np.int64(2)},
    ]  # fmt: skip

    def fingerprint(**options: Any) -> str:
        return str(featurestore.build(store, "hidden-to-concept", layer=0, **options).metadata["fingerprint"])

    fingerprints = [fingerprint(**options) for options in variants]
    assert len(set(fingerprints)) == len(variants)
    write_groups(2)
    assert fingerprint(**SPLIT) not in fingerprints
    write_groups(3)
    shutil.move("groups.csv", "moved.csv")
    assert fingerprint(**SPLIT | {"group_by": "moved.csv:topic"}) == fingerprints[5]


def test_groups_that_have_changed_are_stale_and_those_of_another_file_other_content(store: Path) -> None:
    recipe = {"stores": str(store), "split": SPLIT, "datasets": {"strategy": "hidden-to-concept", "layer": [0, 1]}}
    featurestore.sweep(recipe)
    write_groups(2)
    assert [planned.state for planned in featurestore.sweep(recipe).datasets] == ["stale"] * 2
    assert [planned.state for planned in featurestore.sweep(recipe).datasets] == ["current"] * 2
    write_groups(3)
    shutil.move("groups.csv", "others.csv")
    with pytest.raises(featurestore.DatasetError, match="2 outputs exist with other content"):
        featurestore.sweep(recipe | {"split": SPLIT | {"group_by": "others.csv:topic"}})


def test_labels_that_a_part_lacks(store: Path) -> None:
    """Three sentences of one label, but two of them near-duplicates: there are three folds, and two groups."""
    texts = ["He took the money and told nobody about it.", "He took the money and told no one about it.", "A tree."]
    for i, text in enumerate(texts):
        write_sentence(Path("rare"), N + i, changes={"concept_strength_label": np.array(9), "sentence": np.array(text)})
    featurestore.ingest("rare", store)
    recipe = {"stores": str(store), "split": {"folds": 3}, "datasets": {"strategy": "hidden-to-concept", "layer": 0}}
    (planned,) = featurestore.sweep(recipe, dry_run=True).datasets
    assert planned.state == "unfit"
    assert "label 9 (3 of 123 sentences) is missing in fold" in planned.problem


# ---- the library


def test_the_library_lists_what_files_say(store: Path, cli: Any, tmp_path: Path) -> None:
    recipe = {
        "stores": str(store),
        "output": str(tmp_path / "out"),
        "datasets": [
            {"strategy": "hidden-to-concept", "layers": ["0", "0-1"], "normalize": ["none", "minmax"]},
            {"strategy": "hidden-to-features", "target_layer": 1, "target_features": "2-4", "input_layer": 0},
            {"strategy": "embedding-to-feature", "targets": [[1, 2]]},
        ],
        "split": {"test_size": 0.2},
    }
    featurestore.sweep(recipe)
    listing = ["datasets", tmp_path / "out", "--stores", store.parent]

    def listed(*options: object) -> list[dict[str, Any]]:
        result = cli(*listing, *options, "--json")
        assert result.exit_code == 0, result.output
        return [*json.loads(result.stdout)]

    everything = listed()
    assert len(everything) == 6
    assert {entry["state"] for entry in everything} == {"current"}
    assert all(entry["split"] == {"test_size": 0.2, "seed": 0} for entry in everything)
    assert [entry["rows"] for entry in everything] == [N] * 6
    assert {entry["file"] for entry in listed("--strategy", "hidden-to-concept")} == {
        entry["file"] for entry in everything if "concept" in entry["file"]
    }
    assert len(listed("--layer", 1)) == 4
    assert len(listed("--layer", 1, "--strategy", "hidden-to-concept")) == 2
    assert len(listed("--feature", 4)) == 1
    assert listed("--feature", 4)[0]["target_features"] == [2, 3, 4]
    assert (len(listed("--stale")), len(listed("--current"))) == (0, 6)
    found = featurestore.list_datasets(
        tmp_path / "out", store.parent, strategy="hidden-to-concept", layer=1, stale=False
    )
    assert [(entry.layers, entry.normalize) for entry in found] == [((0, 1), "minmax"), ((0, 1), "none")]
    assert [entry.strategy for entry in featurestore.list_datasets(tmp_path / "out", store.parent, feature=3)] == [
        "hidden-to-features"
    ]

    rows = list(csv.DictReader(io.StringIO(cli(*listing, "--csv").stdout)))
    assert [row["file"] for row in rows] == [entry["file"] for entry in everything]
    assert rows[0].keys() == everything[0].keys()
    table = cli(*listing).stdout.splitlines()
    assert len(table) == 1 + 6 + 1
    assert all(entry["file"] in line for entry, line in zip(everything, table[1:], strict=False))

    write_sentence(Path("more"), N)
    featurestore.ingest("more", store)
    assert (len(listed("--stale")), len(listed("--current"))) == (6, 0)
    featurestore.sweep(recipe)
    assert len(listed("--current")) == 6
    assert {entry.state for entry in featurestore.list_datasets(tmp_path / "out", tmp_path)} == {"unknown"}


def test_the_library_leaves_out_what_is_no_dataset(store: Path, cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    featurestore.build(store, "hidden-to-concept", layer=0, output=out / "good.npz")
    with np.load(out / "good.npz") as saved:
        good = dict(saved)
    bad: dict[str, dict[str, Any]] = {
        "no_y": {"y": None},
        "no_norm": {"norm_std": None},
        "flat": {"X": np.zeros(3, np.float32)},
        "json": {"meta_parameters": np.array("{")},
        "list": {"meta_parameters": np.array("[1]")},
        "layer": {"meta_target_layer": np.array(np.nan)},
        "method": {"norm_method": np.array("zz")},
    }
    for name, changes in bad.items():
        arrays = {key: value for key, value in (good | changes).items() if value is not None}
        np.savez(out / f"{name}.npz", **arrays)
    np.savez(out / "elsewhere.npz", **good | {"meta_store": np.array("../x")})
    (out / "text.npz").write_text("no zip")
    (out / "folder.npz").mkdir()
    result = cli("datasets", out, "--stores", store.parent, "--json")
    assert result.exit_code == 0, result.output
    states = {entry["file"]: entry["state"] for entry in json.loads(result.stdout)}
    assert states == {"good.npz": "current", "elsewhere.npz": "unknown"}
    assert f"left out {len(bad) + 1} NPZ files that are no datasets" in result.stderr
    assert cli("datasets", tmp_path / "nowhere").exit_code == 1
    for name in ("no_y", "no_norm", "flat", "method"):
        with pytest.raises(featurestore.NpzError):
            featurestore.load_dataset(out / f"{name}.npz")
    np.savez(out / "short.npz", **good | {"norm_std": np.ones(2)})
    with pytest.raises(featurestore.NpzError, match=r"norm_std' has shape \(2,\)"):
        featurestore.load_dataset(out / "short.npz")
