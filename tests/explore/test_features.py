"""Features of stores and of selections, compared with numpy and scipy on the sentence NPZs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import featurestore
from featurestore.errors import ParameterError, SelectionError
from featurestore.explore import active_values
from featurestore.store import backend
from tests.refusals import accepted, refused
from tests.sentences import SAMPLE, sentence_arrays, write_folder, write_sentence

Array = np.ndarray[Any, Any]

N, LAYERS, FEATURES = 80, (0, 1, 5), 10
UNLABELLED, INFINITE = range(0, N, 7), 11
CHUNKS: tuple[Any, ...] = (None, {})


def tokens_of(index: int) -> int:
    return 2 + (index * 5) % 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of sentences of which some have no label, and one an infinite hidden state."""
    folder = tmp_path_factory.mktemp("features")
    for index in range(N):
        arrays = sentence_arrays(index, tokens=tokens_of(index))
        drop = ["concept_strength_label"] if index in UNLABELLED else []
        if index == INFINITE:
            arrays["hidden_states"][0, 0, 0] = np.inf
        changes = {"hidden_states": arrays["hidden_states"]}
        write_sentence(folder / "in", index, tokens=tokens_of(index), drop=drop, changes=changes)
    featurestore.ingest(folder / "in", folder / "s.zarr")
    return folder / "s.zarr"


@pytest.fixture
def ds(path: Path) -> xr.Dataset:
    return featurestore.open_store(path)


@pytest.fixture(scope="module")
def activations() -> list[Array]:
    """Of each sentence that counts, (layer, token, feature)."""
    return [sentence_arrays(i, tokens=tokens_of(i))["activations"] for i in range(N) if i != INFINITE]


@pytest.fixture(scope="module")
def labels() -> Array:
    return np.array([np.nan if i in UNLABELLED else i % 4 for i in range(N) if i != INFINITE])


@pytest.mark.parametrize("tokens", ["final", "any"])
def test_measures_are_those_of_the_npzs(ds: xr.Dataset, activations: list[Array], labels: Array, tokens: Any) -> None:
    found = featurestore.features(ds, tokens=tokens, permutations=20)
    assert dict(found.sizes) == {"layer": 3, "feature": FEATURES, "label": 4, "permutation": 20}
    assert found["average_l0"].dims == ("layer",)
    of_all = np.stack([a[:, -1] if tokens == "final" else a.max(axis=1) for a in activations]).astype(np.float64)
    known = ~np.isnan(labels)
    for position, layer in enumerate(LAYERS):
        for feature in range(FEATURES):
            one = found.sel(layer=layer, feature=feature)
            column, label = of_all[:, position, feature], labels[known]
            assert one["density"] == np.mean(column > 0)
            np.testing.assert_allclose([one["mean"], one["max"]], [column.mean(), column.max()])
            column = column[known]
            assert one["active"] == np.count_nonzero(column)
            means = [column[label == kind].mean() for kind in range(4)]
            np.testing.assert_allclose(one["mean_by_label"], means)
            correlation = stats.pearsonr(column, label)
            np.testing.assert_allclose([one["pearson"], one["p"]], correlation)
            np.testing.assert_allclose(one["spearman"], stats.spearmanr(column, label).statistic)
            np.testing.assert_allclose(one["monotonic"], stats.kendalltau(range(4), means).statistic)
            low, high = column[label == 0], column[label == 3]
            u = stats.mannwhitneyu(high, low).statistic
            np.testing.assert_allclose(one["auc"], u / (len(low) * len(high)))
    np.testing.assert_allclose(found["q"].values.ravel(), stats.false_discovery_control(found["p"].values.ravel()))
    permuting = np.random.default_rng(0)
    columns = of_all[known].reshape(known.sum(), -1).T
    strongest = [np.abs(np.corrcoef(columns, permuting.permutation(labels[known]))[-1, :-1]).max() for _ in range(20)]
    np.testing.assert_allclose(found["chance"], strongest)
    assert found.attrs["pearson_by_chance"] == np.quantile(found["chance"], 0.95)
    assert (found.attrs["sentences"], found.attrs["labelled_sentences"]) == (N - 1, known.sum())


@pytest.mark.parametrize("tokens", ["final", "any"])
def test_blocks_chunks_and_passes_do_not_show(
    path: Path, ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tokens: Any
) -> None:
    ds = ds.sel(token=slice(-3, -1))
    expected = featurestore.features(ds, tokens=tokens, permutations=3)
    xr.testing.assert_identical(expected, featurestore.features(ds.load(), tokens=tokens, permutations=3))
    monkeypatch.setattr(active_values, "_ROWS", 30)
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 32)
    seen: list[tuple[str, int, int]] = []
    for chunks in CHUNKS:
        for most in (1 << 23, 60):  # of which the second needs several passes
            monkeypatch.setattr(active_values, "_MOST", most)
            seen.clear()
            again = featurestore.open_store(path, chunks=chunks).sel(token=slice(-3, -1))
            found = featurestore.features(
                again, tokens=tokens, permutations=3, progress=lambda *step: seen.append(step)
            )
            xr.testing.assert_allclose(expected, found, rtol=1e-12)
            steps = [done for _, done, _ in seen]
            assert steps == sorted(set(steps))
            assert seen[-1] == ("features", 3 * N, 3 * N)


SELECTIONS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "one layer": lambda ds: ds.sel(layer=5),
    "layers": lambda ds: ds.sel(layer=[5, 0]),
    "one feature": lambda ds: ds.sel(feature=3),
    "features": lambda ds: ds.isel(feature=[8, 2]),
    "final token": lambda ds: ds.sel(token=-1),
    "some tokens": lambda ds: ds.sel(token=slice(-2, -1)),
    "only the array": lambda ds: ds[["activations"]],
    "transposed": lambda ds: ds.transpose("feature", "layer", "token", "sentence", "hidden"),
    "shuffled": lambda ds: ds.isel(sentence=np.random.default_rng(0).permutation(N)),
}


@pytest.mark.parametrize("chunks", CHUNKS, ids=["lazy", "dask"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(path: Path, name: str, chunks: Any) -> None:
    whole = featurestore.features(featurestore.open_store(path), permutations=0)
    found = featurestore.features(SELECTIONS[name](featurestore.open_store(path, chunks=chunks)), permutations=0)
    assert set(found["mean"].dims) == {"layer", "feature"}
    part = whole.sel(layer=found["layer"], feature=found["feature"])
    xr.testing.assert_allclose(found.drop_vars("q"), part.drop_vars("q"), rtol=1e-12)
    np.testing.assert_allclose(
        found["q"].values.ravel(), stats.false_discovery_control(part["p"].values.ravel()), rtol=1e-12
    )


def test_some_sentences(ds: xr.Dataset, activations: list[Array], labels: Array) -> None:
    """By a mask, or as what `where` leaves; and at a token that not all have."""
    high = featurestore.features(ds.sel(sentence=ds["label"] >= 2), permutations=0)
    xr.testing.assert_allclose(featurestore.features(ds.where(ds["label"] >= 2), permutations=0)["auc"], high["auc"])
    assert high["label"].values.tolist() == [2, 3]
    few = np.stack([a[:, -1] for a in activations])[labels >= 2]
    np.testing.assert_allclose(high["density"], (few > 0).mean(axis=0))
    third = featurestore.features(ds.sel(token=-3), permutations=0)
    there = np.stack([a[:, -3] for a in activations if a.shape[1] >= 3])
    assert third.attrs["sentences"] == len(there) < N - 1
    np.testing.assert_allclose(third["density"], (there > 0).mean(axis=0))
    earlier = featurestore.features(ds.sel(token=slice(-4, -3)), tokens="any", permutations=0)
    largest = np.stack([a[:, -4:-2].max(axis=1) for a in activations if a.shape[1] >= 3])
    np.testing.assert_allclose(earlier["mean"], largest.mean(axis=0, dtype=np.float64), rtol=1e-6)
    one = featurestore.features(ds.sel(sentence=3), permutations=1)
    assert np.isnan(one["pearson"]).all()
    assert np.isnan(one.attrs["pearson_by_chance"])
    np.testing.assert_array_equal(one["max"], activations[3][:, -1])


def test_what_where_leaves_out_is_not_counted(ds: xr.Dataset) -> None:
    chosen = ds["n_tokens"] > 4
    masked, selected = (featurestore.features(some) for some in (ds.where(chosen), ds.sel(sentence=chosen)))
    assert masked.attrs == selected.attrs
    xr.testing.assert_allclose(masked, selected)
    with pytest.raises(SelectionError, match="has no sentence of finite values"):
        featurestore.features(ds.where(ds["n_tokens"] > 99))


def test_layers_with_several_saes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    options: dict[str, Any] = {"layers": [0, 1, 5, 5], "average_l0s": [3, 3, 2.5, 9]}
    sentences = write_folder(tmp_path / "in", 30, **options)
    featurestore.ingest(tmp_path / "in", "s.zarr")
    ds = featurestore.open_store("s.zarr")
    found = featurestore.features(ds, permutations=0)
    assert found["density"].dims == ("sae", "feature")
    assert found["sae_layer"].values.tolist() == [0, 1, 5, 5]
    assert found["average_l0"].values.tolist() == [3, 3, 2.5, 9]
    final = np.stack([s["activations"][:, -1] for s in sentences])
    np.testing.assert_allclose(found["density"], (final > 0).mean(axis=0))
    one = featurestore.features(ds.isel(sae=3), permutations=0)
    assert (one["average_l0"].values.tolist(), one["sae_layer"].values.tolist()) == ([9], [5])
    rows = [*csv.DictReader(accepted(cli("features", "s.zarr", "--layer", 5, "--csv", "--min-active", 0)).splitlines())]
    assert {(row["layer"], row["average_l0"]) for row in rows} == {("5", "2.5"), ("5", "9.0")}
    assert "average_l0" in accepted(cli("features", "s.zarr"))


def test_what_cannot_be_measured(ds: xr.Dataset, cli: Any, path: Path, tmp_path: Path) -> None:
    for options, words in (({"tokens": "all"}, "tokens=: expected 'final' or 'any', found 'all'"),
                           ({"permutations": -1}, "permutations=: expected 0 or more, found -1"),
                           ({"seed": 1.5}, "seed=: expected an integer")):  # fmt: skip
        with pytest.raises(ParameterError, match=words):
            featurestore.features(ds, **options)
    for selection, words in ((ds[["hidden_states"]], "has no activations"),
                             (ds.sel(token=[-3]), "has no final token, -1, in the selection"),
                             (ds.sel(sentence=[INFINITE]), "has no sentence of finite values"),
                             (ds.isel(sentence=[]), "has no activations in the selection"),
        (ds.isel(layer=[]), "has no activations in the selection"),
                             (ds.assign_coords(label=("sentence", ["bad"] * N)), "has labels that are no numbers"),
                             (ds.expand_dims(run=2), "has activations along run")):  # fmt: skip
        with pytest.raises(SelectionError, match=words):
            featurestore.features(selection)
    others: list[Any] = [path, ds["activations"]]
    for other in others:
        with pytest.raises(ParameterError, match="expected a dataset as of open_store, found"):
            featurestore.features(other)
    write_sentence(tmp_path / "in", 0, drop=["activations", "average_l0s", "num_features"])
    featurestore.ingest(tmp_path / "in", tmp_path / "none.zarr")
    refused(cli("features", tmp_path / "none.zarr"), "none.zarr: has no activations")
    refused(cli("features", path, "--layer", 9), "s.zarr: has no SAE of layer 9: choose from 0-1,5")
    refused(cli("features", path, "--min-active", N), f"active in {N} sentences or more")
    refused(cli("features", path, "--by", "label"), "'--by'", code=2)
    refused(cli("features", tmp_path / "nothing"), "no such store")


def test_without_labels(tmp_path: Path, cli: Any) -> None:
    for index in range(6):
        write_sentence(tmp_path / "in", index, drop=["concept_strength_label"])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    found = featurestore.features(featurestore.open_store(tmp_path / "s.zarr"))
    assert found.sizes["label"] == 0
    assert np.isnan(found["pearson"]).all()
    assert (found["density"] > 0).any()
    refused(
        cli("features", tmp_path / "s.zarr"), "has fewer than two labels, so no feature can be ranked by correlation"
    )
    output = accepted(cli("features", tmp_path / "s.zarr", "--by", "density", "--top", 3, "--min-active", 1))
    assert "by chance" not in output


def score(found: xr.Dataset, by: str) -> xr.DataArray:
    match by:
        case "density" | "mean" | "max":
            return found[by]
        case "auc":
            return abs(found["auc"] - 0.5)
        case _:
            return abs(found["pearson" if by == "correlation" else by])


@pytest.mark.parametrize("by", ["correlation", "spearman", "auc", "monotonic", "density", "mean", "max"])
def test_the_command_lists_the_best_first(cli: Any, ds: xr.Dataset, path: Path, by: str) -> None:
    found = featurestore.features(ds, permutations=0)
    rows = [*csv.DictReader(accepted(cli("features", path, "--by", by, "--csv", "--top", 12)).splitlines())]
    assert [*rows[0]][:3] == ["layer", "average_l0", "feature_id"]
    keys = xr.Dataset({"score": score(found, by), "ties": abs(found["spearman"]) * (by == "monotonic")})
    best = keys.to_dataframe().round(12).sort_values(["score", "ties"], ascending=False, kind="stable")
    assert [(int(row["layer"]), int(row["feature_id"])) for row in rows] == [*best.index[:12]]
    for row in rows:
        one = found.sel(layer=int(row["layer"]), feature=int(row["feature_id"]))
        for name in ("density", "mean", "max", "active", "pearson", "spearman", "auc", "monotonic", "p"):
            assert float(row[name]) == one[name]
        assert [float(row[f"mean_{label}"]) for label in range(4)] == one["mean_by_label"].values.tolist()
    first, *lines = accepted(cli("features", path, "--by", by, "--top", 3)).splitlines()
    assert first.startswith(f"30 features in {N - 1} sentences, {N - 1 - len(UNLABELLED)} with a label; by {by}")
    chance = "by chance: in 5 % of 100 permutations of the labels, the strongest correlation"
    assert lines[0].startswith(chance) == (by == "correlation")  # it is of Pearson correlations alone
    table = lines[lines.index("") + 1 :]
    assert [line.split()[:2] for line in table[1:]] == [[row["layer"], row["feature_id"]] for row in rows[:3]]
    assert len({len(line) for line in table}) == 1


def test_the_sample_has_its_ranking(cli: Any) -> None:
    """That of the file beside the sample, which was made by other means."""
    featurestore.ingest(SAMPLE, "s.zarr")
    with (SAMPLE.parent / "ranked_features.csv").open() as file:
        known = [*csv.DictReader(file)]
    output = accepted(cli("features", "s.zarr", "--csv", "--top", len(known), "--min-active", 10))
    rows = [*csv.DictReader(output.splitlines())]
    shown = [(r["feature_id"], r["layer"], f"{float(r['pearson']):.4f}", r["active"]) for r in rows]
    assert shown == [(r["feature_id"], r["layer"], r["correlation"], r["active"]) for r in known]


@pytest.mark.parametrize(("by", "order"), [("label", "correlation"), ("density", "density")])
def test_recipes_choose_the_same(cli: Any, path: Path, by: str, order: str) -> None:
    """By `rank_by`, and by the file that the command writes."""
    Path("ranked.csv").write_text(accepted(cli("features", path, "--by", order, "--csv", "--top", 8)))
    recipe: dict[str, Any] = {"stores": str(path), "drop_nonfinite": True}
    chosen = []
    for targets in ({"rank_by": by, "top": 8}, {"ranked": "ranked.csv"}):
        entry = {"strategy": "embedding-to-feature", "targets": targets}
        done = featurestore.sweep(recipe | {"datasets": entry}, dry_run=True)
        chosen.append([job.plan.arguments for job in done.datasets])
    assert len(chosen[0]) == 8
    assert chosen[0] == chosen[1]


def test_a_feature_that_is_constant_is_never_first(tmp_path: Path, cli: Any) -> None:
    for index in range(20):
        activations = sentence_arrays(index)["activations"]
        activations[:, -1, 4], activations[:, -1, 5] = 2.7, 0
        write_sentence(tmp_path / "in", index, changes={"activations": activations})
    featurestore.ingest(tmp_path / "in", "s.zarr")
    for by in ("correlation", "spearman", "auc", "monotonic"):
        output = accepted(cli("features", "s.zarr", "--by", by, "--csv", "--top", 99, "--min-active", 0))
        rows = [*csv.DictReader(output.splitlines())]
        assert len(rows) == 3 * (FEATURES - 2)
        assert not {"4", "5"} & {row["feature_id"] for row in rows}
    output = accepted(cli("features", "s.zarr", "--by", "density", "--csv", "--top", 3))
    assert {(row["feature_id"], row["pearson"]) for row in csv.DictReader(output.splitlines())} == {("4", "")}


def test_an_interruption_is_one_line(cli: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(active_values, "_block", interrupted)
    result = cli("features", path)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
