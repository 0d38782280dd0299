"""Two stores as one, under any combination of options, compared with numpy on the NPZs of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.schema import CONTROLS
from tests.questions.pools import SIZES, Pools, make_pools, numbers_of
from tests.questions.study import Options

STRATEGIES: list[tuple[str, Options]] = [
    ("hidden-to-concept", {"layers": "5,0"}),
    ("embedding-to-concept", {}),
    ("activation-to-concept", {"layer": 1, "densest": 4}),
    ("hidden-to-feature", {"target_layer": 5, "target_feature": 2, "input_layer": 0}),
    ("hidden-sequence-to-concept", {"layer": 1}),
    ("hidden-sequence-to-concept", {"layers": "5,0"}),
    ("activation-sequence-to-concept", {"layer": 5, "features": "7,1-2"}),
    ("activation-sequence-to-concept", {"layer": 5, "densest": 3}),
]
ORDERS = [["care", "harm"], ["harm", "care"]]
SPLITS: list[Options] = [
    {}, {"test_size": 0.3, "seed": 1}, {"folds": 2}, {"test_store": "harm"}, {"test_store": "care", "folds": 2},
]  # fmt: skip
CONDITIONS: list[list[str]] = [
    ["store=care"], ["label=0,3"], ["sentence_index=0-9"], ["n_tokens=2-4"], ["sentence=2-12"],
    ["store=harm", "n_tokens=2-6"], ["sentence_index=3-20", "label=1-3"],
]  # fmt: skip


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    return make_pools(tmp_path_factory.mktemp("pools"))


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[str], str, Options]:
    """An order of the stores, a strategy, and options that make sense together."""
    strategy, parameters = draw(st.sampled_from(STRATEGIES))
    concept, sequences = strategy.endswith("concept"), "-sequence-" in strategy
    y = draw(st.sampled_from([None, "store"])) if concept else None
    table = draw(st.sampled_from([None, "kind", "strength"])) if y is None else None
    classes = {"store": "harm=1,care=0", "kind": "truth=0,lie=1", "strength": "2=5,0=0"}.get(
        y or table or "", "0=0,3=1"
    )
    tokens = ["final", "mean", "max", "first-2", "last-1", "all"][: 3 if "densest" in parameters else 6]
    named = [["label_name=lie"], ["label_name=truth", "store=care"]] if table == "kind" else []
    choices: dict[str, list[Any]] = {
        "tokens": [None] if sequences else tokens,
        "special": [None, True],
        "combine": [None, *(["difference", "mean"] if parameters.get("layers") else [])],
        "where": [None, None, *CONDITIONS, *named],
        "y": [y],
        "labels_from": [table],
        "classes": [None, classes],
        "normalize": [None, "minmax", "none"],
        "reduce": [None, None, "pca-1", "pca-3"],
        "control": [None, None, *CONTROLS],
    }
    drawn = {name: draw(st.sampled_from(values)) for name, values in choices.items()}
    options = parameters | {name: value for name, value in drawn.items() if value is not None}
    return draw(st.sampled_from(ORDERS)), strategy, options | draw(st.sampled_from(SPLITS)) | {"drop_short": True}


@settings(max_examples=45, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=questions())
def test_any_combination(pools: Pools, question: tuple[list[str], str, Options]) -> None:
    order, strategy, options = question
    if options.get("y") == "store":
        options.pop("test_store", None)  # of which nothing could be learned
    if "labels_from" in options:
        options["labels_from"] = f"{pools.labels}:{options['labels_from']}"
    expected, sides = pools.expected(order, strategy, **options), pools.sides(order, **options)
    training = sum(sides[index][0] == "train" for index in expected.sentences)
    k = int(options.get("reduce", "pca-0").partition("-")[2])
    width = {"length": 2, "text": 4097}.get(options.get("control", ""), expected.X.shape[-1])
    if not training or k > min(training, width):
        with pytest.raises(featurestore.FeatureStoreError) as caught:
            pools.build(order, strategy, **options)
        assert "\n" not in str(caught.value)
        return
    pools.check(order, strategy, **options)


@pytest.mark.parametrize("strategy", ["hidden-to-concept", "hidden-sequence-to-concept"])
def test_what_the_order_of_the_stores_changes(pools: Pools, strategy: str) -> None:
    """The order of the rows, the numbers of the stores, and what identifies the dataset; no value, nor any text's."""
    options: Options = {"layer": 5, "normalize": "none", "drop_short": True, "y": "store"}
    one, other = (pools.build(order, strategy, **options) for order in ORDERS)
    turn = np.argsort(one.metadata["row_store"] == "care", kind="stable")
    for name in ("row_store", "sentence_indices"):
        np.testing.assert_array_equal(other.metadata[name], one.metadata[name][turn])
    np.testing.assert_array_equal(other.X, one.X[turn])
    np.testing.assert_array_equal(other.y, 1 - one.y[turn])
    for name in ("fingerprint", "store_digest"):
        assert other.metadata[name] != one.metadata[name]
    options = {"layer": 5, "normalize": "none", "drop_short": True, "y": "store", "control": "text"}
    one, other = (pools.build(order, strategy, **options) for order in ORDERS)
    np.testing.assert_array_equal(other.X, one.X[turn])


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "hidden-to-concept", "layer": 1, "tokens": "all", "special": True, "test_size": 0.3},
        {
            "strategy": "hidden-sequence-to-concept",
            "layers": "0,5",
            "test_store": "care",
            "reduce": "pca-2",
            "special": True,
        },
        {
            "strategy": "activation-sequence-to-concept",
            "layer": 1,
            "densest": 3,
            "control": "shuffled-labels",
            "drop_short": True,
        },
    ],
    ids=lambda options: options["strategy"],
)
def test_the_same_bytes_in_whatever_portions(pools: Pools, tmp_path: Path, options: Options) -> None:
    """Also where a store has its later sentences first."""
    for trait, (n, _) in SIZES.items():
        paths = sorted((pools.labels.parent / trait).glob("*.npz"))
        for portion, chosen in (("late", paths[n // 2 :]), ("early", paths[: n // 2])):
            (part := tmp_path / portion / trait).mkdir(parents=True)
            for path in chosen:
                shutil.copy(path, part)
            featurestore.ingest(part, tmp_path / "stores" / f"{trait}.zarr")
    pools.build(list(SIZES), output=tmp_path / "one.npz", **options)
    featurestore.build([tmp_path / "stores" / f"{trait}.zarr" for trait in SIZES], output=tmp_path / "b.npz", **options)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_pool_in_a_recipe_is_what_build_makes(pools: Pools, tmp_path: Path) -> None:
    stores = [str(path) for path in pools.stores.values()]
    done = featurestore.sweep(
        {
            "pool": stores,
            "split": {"test_store": "harm"},
            "problems": "keep",
            "drop_short": True,
            "output": str(tmp_path),
            "controls": [*CONTROLS],
            "datasets": [
                {"strategy": "hidden-to-concept", "layer": 1, "where": ["n_tokens=2-5", "n_tokens=3-7"]},
                {"strategy": "hidden-sequence-to-concept", "layers": "0,5", "combine": "difference"},
                {"strategy": "activation-sequence-to-concept", "layer": 5, "densest": 3, "reduce": "pca-2"},
            ],
        }
    )
    assert len(done.datasets) == 4 * (1 + len(CONTROLS))
    for job in done.datasets:
        plan = json.loads(job.plan.json)
        options = {name: plan[name] for name in plan if name not in ("parameters", "split", "seed")}
        built = featurestore.build(
            stores, output=tmp_path / "o.npz", test_store="harm", **options, **plan["parameters"]
        )
        assert (tmp_path / "o.npz").read_bytes() == job.output.read_bytes()
        assert job.shape == built.X.shape
        assert job.n_bytes == built.X.nbytes
        (tmp_path / "o.npz").unlink()


def test_what_open_stores_returns_is_no_store(pools: Pools) -> None:
    ds = featurestore.open_stores(list(pools.stores.values()))
    for opened in (ds, ds.sel(sentence=ds.store == "harm")):
        with pytest.raises(featurestore.ParameterError, match="several stores; pass a list of their paths, and where="):
            featurestore.build(opened, "embedding-to-concept")


def test_test_rows_with_a_part_in_the_statistics_are_warned_of(
    pools: Pools, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By store and index: another store has sentences of the same index."""
    options: Options = {"layer": 1}
    kept = pools.build(ORDERS[0], "hidden-to-concept", test_store="harm", output=tmp_path / "s.npz", **options)
    theirs = {one for one in numbers_of(kept, ORDERS[0]) if one < 10**7}
    for store, n in (("harm", 0), ("care", len(theirs) - 2)):  # two are near-duplicates, and so no test rows
        caplog.clear()
        pools.build(ORDERS[0], "hidden-to-concept", test_store=store, stats_from=tmp_path / "s.npz", **options)
        found = [record.getMessage() for record in caplog.records if "statistics include" in record.getMessage()]
        expected = f"its statistics include {n} of the {SIZES['care'][0] - 2} test sentences"  # without near-duplicates
        assert [expected in one for one in found] == [True] * (n > 0)


def test_the_report_of_a_split_counts_the_rows_of_all_stores(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "featurestore")
    dataset = pools.build(ORDERS[0], "embedding-to-feature", target_layer=1, target_feature=0, test_store="harm")
    sizes = dict(zip(*np.unique(dataset.metadata["split"], return_counts=True), strict=True))
    (line,) = [record.getMessage() for record in caplog.records if "for testing" in record.getMessage()]
    assert line.startswith(f"{sizes['train']} sentences for training, {sizes['test']} for testing; ")
    assert "2 test sentences left out, as near-duplicates" in line
    assert "; 2 left out" not in line
