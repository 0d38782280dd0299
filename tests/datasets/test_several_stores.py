"""Datasets of several stores as one, compared with numpy on the NPZs of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.sentences import sentence_arrays, write_sentence

LENGTHS = {"care": [2, 7, 3, 5, 4, 6, 2, 3], "harm": [4, 3, 5, 2, 4, 3]}
TWIN = "one and the same sentence, but for a word or two"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders, whose indices are the same; a sentence of `harm` is nearly one of `care`."""
    monkeypatch.chdir(tmp_path)
    for number, (trait, lengths) in enumerate(LENGTHS.items()):
        for index, tokens in enumerate(lengths):
            write_sentence(Path(trait), index, tokens=tokens, seed=number, changes=changed(trait, index))
        featurestore.ingest(trait)
    return tmp_path


def changed(trait: str, index: int) -> dict[str, Any]:
    text = TWIN.replace("two", "three") if trait == "harm" else TWIN
    return {"sentence": np.array(text)} if index == {"care": 2, "harm": 4}[trait] else {}


def arrays(trait: str, index: int) -> dict[str, Any]:
    number = list(LENGTHS).index(trait)
    return sentence_arrays(index, tokens=LENGTHS[trait][index], seed=number) | changed(trait, index)


def rows(dataset: featurestore.Dataset) -> list[tuple[str, int]]:
    stores, indices = dataset.metadata["row_store"].tolist(), dataset.metadata["sentence_indices"].tolist()
    return list(zip(stores, indices, strict=True))


ALL = [(trait, index) for trait, lengths in LENGTHS.items() for index in range(len(lengths))]


def test_rows_of_all_stores(work: Path) -> None:
    dataset = featurestore.build(["care", "stores/harm.zarr"], "hidden-to-concept", layer=5, normalize="none")
    assert rows(dataset) == ALL
    np.testing.assert_array_equal(dataset.X, [arrays(*row)["hidden_states"][2, -1].astype("f4") for row in ALL])
    assert dataset.y.tolist() == [index % 4 for _, index in ALL]
    assert dataset.metadata["store"] == "care+harm"
    assert dataset.metadata["stores"].tolist() == ["care", "harm"]


def test_the_mean_over_tokens_of_stores_of_other_lengths(work: Path) -> None:
    for order in (["care", "harm"], ["harm", "care"]):
        dataset = featurestore.build(order, "hidden-to-concept", layer=0, normalize="none", tokens="mean")
        expected = [arrays(*row)["hidden_states"][0].astype(float).mean(axis=0) for row in rows(dataset)]
        np.testing.assert_allclose(dataset.X, expected, rtol=1e-6)
        assert sorted(rows(dataset)) == ALL


def test_which_store_it_is(work: Path) -> None:
    featurestore.build(["harm", "care"], "embedding-to-concept", y="store", test_size=0.3, seed=2, output="which.npz")
    dataset = featurestore.load_dataset("which.npz")
    assert dataset.y.tolist() == [["harm", "care"].index(trait) for trait, _ in rows(dataset)]
    assert dataset.metadata["label_names"].tolist() == ["harm", "care"]
    assert dataset.metadata["y"] == "store"
    only = featurestore.build(
        ["harm", "care"], "embedding-to-concept", y="store", where=["label=3", "n_tokens=2-5"], normalize="none"
    )
    assert rows(only) == [(t, i) for t in ("harm", "care") for i, n in enumerate(LENGTHS[t]) if i % 4 == 3 and n <= 5]


def test_the_report_counts_the_sentences_of_each_store(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    featurestore.build(["care", "harm"], "embedding-to-concept", test_store="harm")
    assert "8 sentences for training, 5 for testing; 1 test sentences left out" in caplog.text


@pytest.mark.parametrize("named", ["harm", "stores/harm.zarr", Path("harm")])
def test_train_on_one_and_test_on_the_other(work: Path, named: Any) -> None:
    dataset = featurestore.build(["care", "harm"], "hidden-to-concept", layer=1, test_store=named)
    kept = [row for row in ALL if row != ("harm", 4)]  # which has a near-duplicate in care
    assert rows(dataset) == kept
    train = np.array([trait == "care" for trait, _ in kept])
    assert dataset.metadata["split"].tolist() == np.where(train, "train", "test").tolist()
    assert dataset.metadata["near_duplicate_sentence_indices"].tolist() == [4]
    assert dataset.metadata["near_duplicate_store"].tolist() == ["harm"]
    assert dataset.metadata["near_duplicates_across"] == 0
    raw = np.stack([arrays(*row)["hidden_states"][1, -1].astype(float) for row in kept])
    np.testing.assert_allclose(dataset.X, (raw - raw[train].mean(0)) / raw[train].std(0), rtol=1e-5, atol=1e-6)


def test_folds_divide_the_training_store(work: Path) -> None:
    dataset = featurestore.build(["care", "harm"], "embedding-to-concept", test_store="harm", folds=2)
    fold = dataset.metadata["fold"]
    assert set(fold[dataset.metadata["row_store"] == "care"].tolist()) == {0, 1}
    assert set(fold[dataset.metadata["row_store"] == "harm"].tolist()) == {-1}


def test_groups_reach_across_stores(work: Path) -> None:
    lines = ["sentence,topic", *(f'"{arrays(*row)["sentence"]}",{row[1] % 2 or ""}' for row in ALL)]
    Path("topics.csv").write_text("\n".join(lines))
    dataset = featurestore.build(
        ["care", "harm"], "embedding-to-concept", test_store="harm", group_by="topics.csv:topic"
    )
    assert dataset.metadata["near_duplicate_sentence_indices"].tolist() == [1, 3, 4, 5]
    assert [row for row in rows(dataset) if row[0] == "harm"] == [("harm", 0), ("harm", 2)]


def test_labels_by_text(work: Path) -> None:
    lines = ["sentence,mood", *(f'"{arrays(*row)["sentence"]}",{"ab"[row[1] % 2]}' for row in ALL)]
    Path("mood.csv").write_text("\n".join(lines))
    dataset = featurestore.build(["care", "harm"], "embedding-to-concept", labels_from="mood.csv:mood")
    assert dataset.y.tolist() == [index % 2 for _, index in ALL]
    Path("index.csv").write_text("\n".join(["sentence_index,mood", *(f"{i},{i % 2}" for i in range(9))]))
    with pytest.raises(featurestore.ParameterError, match=r"labels_from=: index\.csv: expected the column sentence"):
        featurestore.build(["care", "harm"], "embedding-to-concept", labels_from="index.csv:mood")


def test_names_of_labels_that_have_other_numbers_are_warned_of(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"care": ["no", "yes"], "harm": ["maybe", "no", "yes"]}
    lines = ["sentence,mood"]
    lines += [f'"{arrays(trait, i)["sentence"]}",{names[trait][i % len(names[trait])]}' for trait, i in ALL]
    Path("mood.csv").write_text("\n".join(lines))
    options: dict[str, Any] = {"labels_from": "mood.csv:mood"}
    featurestore.build("care", "embedding-to-concept", output="s.npz", **options)
    for classes, warned in ((None, True), ("no=0,yes=1", False)):
        caplog.clear()
        featurestore.build("harm", "embedding-to-concept", stats_from="s.npz", classes=classes, **options)
        found = [record.getMessage() for record in caplog.records if "other numbers" in record.getMessage()]
        assert [text.partition("y: ")[2] for text in found] == [
            "no, yes there, maybe, no, yes here; number them by classes="
        ] * warned


def test_a_pool_in_a_recipe(work: Path) -> None:
    for name in LENGTHS:
        feature = {"care": 3, "harm": 8}[name]
        Path(f"{name}.csv").write_text(f"layer,feature_id,average_l0\n1,{feature},3\n")
    Path("pool.csv").write_text("layer,feature_id,average_l0\n0,1,3\n")
    study: dict[str, Any] = {
        "stores": ["care", "harm"],
        "pool": ["care", "harm"],
        "problems": "keep",
        "datasets": [
            {"strategy": "hidden-to-concept", "layer": [0, 5], "tokens": ["final", "max"]},
            {
                "strategy": "hidden-to-feature",
                "targets": {"ranked": {"care": "care.csv", "harm": "harm.csv", "care+harm": "pool.csv"}},
            },
        ],
    }
    done = featurestore.sweep(study)
    assert len(done.datasets) == 3 * 5
    for job in done.datasets:
        arguments = json.loads(job.plan.json)
        store = ["care", "harm"] if job.store == "care+harm" else job.store
        options = {key: arguments[key] for key in ("normalize", "tokens") if key in arguments}
        built = featurestore.build(store, arguments["strategy"], output="one.npz", **arguments["parameters"], **options)
        assert Path("one.npz").read_bytes() == job.output.read_bytes()
        Path("one.npz").unlink()
        if arguments["strategy"] == "hidden-to-feature":
            expected = {"care": (1, 3), "harm": (1, 8), "care+harm": (0, 1)}[job.store]
            found = built.metadata["target_layer"].item(), built.metadata["target_feature"].item()
            assert found == expected
    assert {entry.state for entry in featurestore.list_datasets("generated_datasets")} == {"current"}
    assert len(featurestore.sweep(study).in_state("current")) == 15
    write_sentence(Path("harm"), 20, seed=1)
    featurestore.ingest("harm")
    stale = {(entry.store, entry.state) for entry in featurestore.list_datasets("generated_datasets")}
    assert stale == {("care", "current"), ("harm", "stale"), ("care+harm", "stale")}
    assert len(featurestore.sweep(study).in_state("stale")) == 10


def test_a_pool_that_is_not_ingested_cannot_be_scanned(work: Path) -> None:
    write_sentence(Path("new"), 0)
    study = {"pool": ["care", "new"], "datasets": [{"strategy": "embedding-to-concept"}]}
    with pytest.raises(featurestore.RecipeError, match=r"pool\[1\]: is not ingested yet.*ingest it first"):
        featurestore.sweep(study, dry_run=True)


def test_the_command_line(work: Path, cli: Any) -> None:
    both = ["--input", work / "care", "--input", work / "harm"]
    done = cli("build", "--strategy", "hidden-to-concept", "--layer", 0, *both, "--test-store", "harm")
    assert done.exit_code == 0, done.output
    assert "1 test sentences left out" in done.output
    (path,) = Path("generated_datasets/care+harm").glob("*.npz")
    assert path.name == "hidden-to-concept_layer-0_standardize_seed-0_test-store-harm.npz"
    listed = json.loads(cli("datasets", "--json").output)
    assert [(entry["store"], entry["state"]) for entry in listed] == [("care+harm", "current")]


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "test store of one": ("care", {"test_store": "care"}, "test_store='care': expected several stores, found one"),
    "store as y of one": ("care", {"y": "store"}, "y='store': expected several stores to tell apart, found one"),
    "an unknown test store": (
        ["care", "harm"],
        {"test_store": "x"},
        "expected the name of one of the stores, care, harm",
    ),
    "nothing to learn": (["care", "harm"], {"y": "store", "test_store": "harm"}, "no test row would be of a store"),
    "two ways to test": (["care", "harm"], {"test_store": "harm", "test_size": 0.2}, "expected one of them"),
    "two ys": (["care", "harm"], {"y": "store", "labels_from": "a.csv:b"}, "expected one y"),
    "one twice": (["care", "stores/care.zarr"], {}, "care"),
    "nothing": ([], {}, "store"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(work: Path, what: str) -> None:
    stores, options, message = REFUSED[what]
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(stores, "embedding-to-concept", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
