"""Stores that lack arrays or labels: what there is comes back, and strategies say what they cannot do without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import featurestore
from tests.refusals import accepted, complaint
from tests.sentences import sentence_arrays, write_folder, write_sentence
from tests.store.plain import DATA, SEVERAL, Arrays, assert_zarr_holds

Cli = Callable[..., Result]

PRESENCES = [
    pytest.param(present, several, id=f"{'+'.join(present)}{', several SAEs a layer' * several}")
    for n in (1, 2, 3)
    for present in itertools.combinations(DATA, n)
    for several in (False, True)[: 1 + ("activations" in present)]
]

STRATEGIES: dict[str, tuple[tuple[str, ...], tuple[object, ...]]] = {
    "embedding-to-feature": (("embeddings", "activations"), ("--target-layer", 5, "--target-feature", 3)),
    "hidden-to-feature": (("hidden_states", "activations"), ("--target-layer", 5, "--target-feature", 3)),
    "hidden-to-features": (("hidden_states", "activations"), ("--target-layer", 5, "--target-features", "3,4")),
    "embedding-to-concept": (("embeddings",), ()),
    "hidden-to-concept": (("hidden_states",), ("--layer", 5)),
    "activation-to-concept": (("activations",), ("--layer", 5)),
}
"""What each strategy needs, and options of it."""


def not_needed(present: Sequence[str]) -> list[str]:
    """What a sentence NPZ need not have besides the arrays that are absent."""
    absent = [name for name in DATA if name not in present]
    spare = ["average_l0s", "num_features"] if "activations" in absent else []
    if absent == ["hidden_states", "activations"]:
        spare.append("layers")
    return [*absent, *spare, *(["hidden_dim"] if present == ("activations",) else [])]


@pytest.mark.parametrize(("present", "several"), PRESENCES)
def test_absent_arrays(cli: Cli, tmp_path: Path, present: tuple[str, ...], several: bool) -> None:
    """Every strategy builds, or says in one line what is lacking; from a store, and planned from a folder."""
    options = SEVERAL if several else {}
    spare = not_needed(present)
    expected = []
    for index in range(5):
        write_sentence(tmp_path / "in", index, tokens=2 + index, drop=spare, **options)
        arrays = sentence_arrays(index, tokens=2 + index, **options)
        if several and "hidden_states" in arrays:
            arrays["hidden_states"] = arrays["hidden_states"][:2]
        expected.append({name: values for name, values in arrays.items() if name not in spare})
    plan: dict[str, dict[str, object]] = {
        "embedding-to-concept": {},
        "activation-to-concept": {"layer": 0},
        "hidden-to-feature": {"targets": [[0, 3]]},
    }
    for name, own_keys in plan.items():
        recipe = {"stores": str(tmp_path / "in"), "datasets": [{"strategy": name} | own_keys]}
        if set(STRATEGIES[name][0]) <= set(present):
            assert len(featurestore.sweep(recipe, dry_run=True).datasets) == 1
        else:
            with pytest.raises(featurestore.RecipeError, match="has no "):
                featurestore.sweep(recipe, dry_run=True)
    accepted(cli("ingest", tmp_path / "in"))
    store = Path("stores/in.zarr")
    assert_zarr_holds(store, expected)
    assert featurestore.verify(store, tmp_path / "in") == []
    assert [*featurestore.open_store(store).data_vars] == [*present]
    assert ("feature" in featurestore.open_store(store).dims) == ("activations" in present)
    accepted(cli("info", store))
    for name, (needed, own) in STRATEGIES.items():
        sae = ["--average-l0", 2.5] if several and "activations" in needed else []
        result = cli("build", "--strategy", name, "--input", store, *own, *sae, "--output", f"{name}.npz")
        if lacking := [one.replace("_", " ") for one in needed if one not in present]:
            (line,) = complaint(result, str(store))
            assert any(f"has no {one}, only" in line for one in lacking)
            assert not Path(f"{name}.npz").exists()
        else:
            accepted(result)
            assert featurestore.load_dataset(f"{name}.npz").X.shape[0] == 5


def test_a_file_with_none_of_the_arrays_is_refused(tmp_path: Path) -> None:
    write_sentence(tmp_path / "in", 0, drop=DATA)
    with pytest.raises(featurestore.SourceError, match="missing array 'embeddings', 'hidden_states', 'activations'"):
        featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")


@pytest.mark.parametrize("drop", [("hidden_states",), ("activations", "average_l0s"), ("embeddings",)])
def test_one_store_has_the_same_arrays_throughout(tmp_path: Path, drop: tuple[str, ...]) -> None:
    write_folder(tmp_path / "in", 2)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    write_sentence(tmp_path / "in", 2, drop=drop)
    with pytest.raises(featurestore.SourceError, match=r"sentence_000003\.npz: does not fit the store: .*none"):
        featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")


UNLABELLED = (0, 3, 4)


@pytest.fixture
def partly_labelled(tmp_path: Path) -> list[Arrays]:
    """Nine sentences in the folder `in`, three of them without a label."""
    expected = []
    for index in range(9):
        drop = ["concept_strength_label"] if index in UNLABELLED else []
        write_sentence(tmp_path / "in", index, tokens=3, drop=drop)
        expected.append(sentence_arrays(index, tokens=3))
    return expected


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name.endswith("-to-concept")])
def test_concept_strategies_leave_out_what_has_no_label(
    cli: Cli, tmp_path: Path, partly_labelled: list[Arrays], name: str
) -> None:
    accepted(cli("ingest", tmp_path / "in"))
    options = ["--input", "stores/in.zarr", *STRATEGIES[name][1], "--normalize", "none", "--output", "x.npz"]
    accepted(cli("build", "--strategy", name, *options))
    rows = [index for index in range(9) if index not in UNLABELLED]
    with np.load("x.npz") as dataset:
        assert dataset["meta_sentence_indices"].tolist() == rows
        assert dataset["meta_left_out_sentence_indices"].tolist() == [*UNLABELLED]
        assert dataset["y"].tolist() == [index % 4 for index in rows]
        array = STRATEGIES[name][0][0]
        expected = [partly_labelled[row][array] for row in rows]
        final = [values[-1] if array == "embeddings" else values[2, -1] for values in expected]
        np.testing.assert_array_equal(dataset["X"], np.array(final, np.float32))


def test_other_strategies_take_sentences_without_label(cli: Cli, tmp_path: Path, partly_labelled: list[Arrays]) -> None:
    accepted(cli("ingest", tmp_path / "in"))
    ds = featurestore.open_store("stores/in.zarr")
    assert ds["has_label"].values.tolist() == [index not in UNLABELLED for index in range(9)]
    assert ds["label"].values.tolist() == [-1 if index in UNLABELLED else index % 4 for index in range(9)]
    assert "without: 3" in accepted(cli("info", "stores/in.zarr"))
    dataset = featurestore.build("stores/in.zarr", "hidden-to-feature", target_layer=5, target_feature=3)
    assert dataset.metadata["sentence_indices"].tolist() == [*range(9)]
    assert "left_out_sentence_indices" not in dataset.metadata


def test_rankings_by_label_pass_over_what_has_none(tmp_path: Path, partly_labelled: list[Arrays]) -> None:
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    rows = [index for index in range(9) if index not in UNLABELLED]
    labels = np.array([index % 4 for index in rows])
    activations = np.array([partly_labelled[row]["activations"][1, -1] for row in rows], np.float64)
    active = np.flatnonzero((activations != 0).sum(axis=0) >= 2)
    scores = [abs(np.corrcoef(activations[:, feature], labels)[0, 1]) for feature in active]
    best = active[np.argsort(scores)[::-1][:2]].tolist()
    targets = {"rank_by": "label", "top": 2, "layers": 1}
    entry = {"strategy": "hidden-to-feature", "targets": targets}
    recipe = {
        "stores": str(tmp_path / "s.zarr"),
        "min_active": 2,
        "problems": "keep",
        "output": str(tmp_path / "out"),
        "datasets": [entry],
    }
    found = [featurestore.load_dataset(job.output).metadata for job in featurestore.sweep(recipe).datasets]
    assert [int(metadata["target_feature"]) for metadata in found] == best


def test_no_label_at_all(cli: Cli, tmp_path: Path) -> None:
    for index in range(3):
        write_sentence(tmp_path / "in", index, drop=["concept_strength_label"])
    accepted(cli("ingest", tmp_path / "in"))
    assert "without: 3" in accepted(cli("info", "stores/in.zarr"))
    assert not featurestore.open_store("stores/in.zarr")["has_label"].values.any()
    for name, (_, own) in STRATEGIES.items():
        result = cli("build", "--strategy", name, "--input", "stores/in.zarr", *own, "--output", f"{name}.npz")
        if name.endswith("-to-concept"):
            (line,) = complaint(result, "stores/in.zarr: has no labels")
            assert line.startswith("Error: ")
        else:
            accepted(result)


def test_all_layers_are_those_of_hidden_states_or_of_saes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAEs on two layers of three: `all` and rankings mean what the option is about."""
    monkeypatch.chdir(tmp_path)
    for index in range(12):
        arrays = sentence_arrays(index, layers=[0, 1, 5])
        changes = {"sae_layers": np.array([1, 5]), "average_l0s": np.array([3, 4])}
        changes["activations"] = arrays["activations"][1:]
        write_sentence(tmp_path / "in", index, layers=[0, 1, 5], changes=changes)
    ranked = {"rank_by": "density", "top": 2}
    recipe = {
        "stores": "in",
        "problems": "keep",
        "datasets": [
            {"strategy": "hidden-to-concept", "layer": "all"},
            {"strategy": "activation-to-concept", "layer": "all"},
            {"strategy": "hidden-to-feature", "targets": ranked, "input_layer": "all"},
        ],
    }
    jobs = featurestore.sweep(recipe).datasets
    given = [(job.plan.strategy.name, job.plan.arguments) for job in jobs]
    assert [options["layer"] for name, options in given if name == "hidden-to-concept"] == [0, 1, 5]
    assert [options["layer"] for name, options in given if name == "activation-to-concept"] == [1, 5]
    features = [options for name, options in given if name == "hidden-to-feature"]
    assert {options["target_layer"] for options in features} <= {1, 5}
    assert sorted(options["input_layer"] for options in features) == [0, 0, 1, 1, 5, 5]


@pytest.mark.parametrize(
    ("dataset", "complaint_of"),
    [
        ({"strategy": "hidden-to-concept", "layer": "all"}, "has no layers"),
        ({"strategy": "hidden-to-concept", "layers": "all"}, "has no layers"),
        ({"strategy": "activation-to-concept", "layer": "all"}, "has no SAEs"),
        (
            {"strategy": "hidden-to-feature", "targets": {"rank_by": "density", "top": 2}},
            "has no activations, only embeddings",
        ),
    ],
)
def test_all_of_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: dict[str, object], complaint_of: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in", 3)
    for path in sorted((tmp_path / "in").iterdir()):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files if name not in ("hidden_states", "activations")}
        np.savez(path, **kept)
    with pytest.raises(featurestore.RecipeError, match=complaint_of):
        featurestore.sweep({"stores": "in", "datasets": dataset})
