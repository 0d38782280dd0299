"""The options of the four questions in recipes: alternatives, controls, rankings, preflight, and the schema."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.recipes.json_schema import recipe_schema
from featurestore.schema import CONTROLS
from featurestore.store import arrays
from featurestore.store.snapshot import Snapshot
from tests.sentences import sentence_arrays, write_folder, write_sentence

N = 90
CONCEPT: dict[str, Any] = {"strategy": "hidden-to-concept", "layer": 0, "normalize": "none"}
FEATURE: dict[str, Any] = {"strategy": "hidden-to-feature", "target_layer": 0, "target_feature": 3, "normalize": "none"}
USUAL = {"strategy", "parameters", "normalize"}
KEYS = "expected keys (test_size, folds, seed, group_by, test_store) with values"
TOKENS = "expected final, mean, max, all, last-K or first-K, such as last-3"


def n_tokens(index: int) -> int:
    return 2 + (index * 5) % 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """90 sentences of 2 to 7 tokens, the first of which is special; and two files of labels."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "care", N)
    write_labels("labels.csv", "truth", [str(i % 5) if i % 7 else "" for i in range(N)])
    write_labels("words.csv", "kind", ["lie" if i % 3 else "a, b" for i in range(N)])
    return tmp_path / "care"


@pytest.fixture
def store(folder: Path) -> str:
    featurestore.ingest(folder, special_first=1)
    return "stores/care.zarr"


def write_labels(path: str, column: str, cells: list[str]) -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([["sentence_index", column], *enumerate(cells)])


def study(*entries: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"stores": "stores/care.zarr", "datasets": [*entries], "problems": "keep"} | keys


def chosen(recipe: Any) -> list[dict[str, Any]]:
    """What the datasets of a recipe choose, besides strategy and normalization."""
    plans = [json.loads(job.plan.json) for job in featurestore.sweep(recipe, dry_run=True).datasets]
    return [{name: value for name, value in plan.items() if name not in USUAL} for plan in plans]


def refusal(recipe: Any) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(featurestore.RecipeError) as caught:
        featurestore.sweep(recipe)
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


# ---- alternatives


def test_alternatives_of_all_and_of_one(store: str) -> None:
    """What an entry says itself holds in place of what is said of all, not beside it."""
    found = chosen(
        study(
            CONCEPT | {"tokens": "final", "where": "n_tokens=3-7"},
            CONCEPT | {"combine": "concat", "special": [True, False], "drop_short": True},
            tokens=["mean", "last-2"],
            where=["label=0,1", "label=1-3"],
        )
    )
    two = [
        {"tokens": tokens, "where": [where], "drop_short": True} | ({"special": True} if special else {})
        for tokens, where, special in product(("mean", "last-2"), ("label=0-1", "label=1-3"), (True, False))
    ]
    assert found[0] == {"where": ["n_tokens=3-7"]}
    assert sorted(map(json.dumps, found[1:])) == sorted(json.dumps(dict(sorted(one.items()))) for one in two)


def test_what_has_no_effect_makes_no_other_dataset(store: str) -> None:
    recipe = study(CONCEPT, special=[True, False], drop_short=[True, False], where=["label=0,1", "label=1,0"])
    assert chosen(recipe) == [{"where": ["label=0-1"]}]


@pytest.mark.parametrize(
    ("where", "conditions"),
    [
        ("label=0,3", [["label=0,3"]]),
        ({"label": [0, 3], "n_tokens": "3-5"}, [["label=0,3", "n_tokens=3-5"]]),
        ({"has_label": True}, [["has_label=true"]]),
        (["label=0", "n_tokens=3-5"], [["label=0"], ["n_tokens=3-5"]]),
        ([{"label": 0, "n_tokens": 5}, {"label": "1-2"}], [["label=0", "n_tokens=5"], ["label=1-2"]]),
        ([["label=0", "n_tokens=3-5"]], [["label=0", "n_tokens=3-5"]]),
        ({"source": ["sentence_000002.npz", "a, \"b\"=c"]}, [['source in ["a, \\"b\\"=c", "sentence_000002.npz"]']]),
        ("text=w1.0 w1.1, \"x\"", [['text=w1.0 w1.1, "x"']]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["recipe", "entry"])
def test_forms_of_where(store: str, where: Any, conditions: list[list[str]], place: str) -> None:
    recipe = study(CONCEPT, where=where) if place == "recipe" else study(CONCEPT | {"where": where})
    assert [one["where"] for one in chosen(recipe)] == conditions
    Path("r.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    assert [one["where"] for one in chosen("r.yaml")] == conditions
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(yaml.safe_load(Path("r.yaml").read_text()))


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        ("0=0,3=1", ["0=0,3=1"]),
        ({"0": 0, "3": 1}, ["0=0,3=1"]),
        ({0: 0, np.int64(3): 1}, ["0=0,3=1"]),
        (["0=0,3=1", {1: 0, 2: 1}], ["0=0,3=1", "1=0,2=1"]),
    ],
)
def test_forms_of_classes(store: str, classes: Any, found: list[str]) -> None:
    assert [one["classes"] for one in chosen(study(CONCEPT, classes=classes))] == found


def test_quotes_in_yaml(store: str) -> None:
    """Names with commas need quotes of two kinds, and numbers as keys none."""
    lines = "stores: stores/care.zarr\nlabels_from: words.csv:kind\ndatasets:\n  - strategy: embedding-to-concept\n"
    for classes in ("""'"a, b=1",lie=0'""", "{'a, b': 1, lie: 0}"):
        Path("r.yaml").write_text(f"{lines}    classes: {classes}\n")
        assert chosen("r.yaml") == [{"labels_from": "kind", "classes": '"a, b=1",lie=0'}]
    Path("r.yaml").write_text(
        "stores: stores/care.zarr\ndatasets: {strategy: embedding-to-concept, classes: {0: 0, 3: 1}}\n"
    )
    assert chosen("r.yaml") == [{"classes": "0=0,3=1"}]


def test_controls_stand_beside_each_dataset(store: str) -> None:
    recipe = study(CONCEPT, FEATURE | {"controls": "text"}, controls=[*CONTROLS, "text"], tokens=["final", "mean"])
    found = chosen(recipe)
    assert [one.get("control") for one in found] == [None, *CONTROLS] * 2 + [None, "text"] * 2
    assert [one.get("tokens") for one in found] == [None] * 5 + ["mean"] * 5 + [None] * 2 + ["mean"] * 2
    done = featurestore.sweep(recipe)
    real, *controls = [featurestore.load_dataset(job.output) for job in done.datasets[:5]]
    for control in controls:
        np.testing.assert_array_equal(control.metadata["sentence_indices"], real.metadata["sentence_indices"])
    assert Counter(controls[0].y.tolist()) == Counter(real.y.tolist())


# ---- the seed


def test_one_seed_for_split_and_controls(store: str) -> None:
    recipes: list[dict[str, Any]] = [
        {"split": {"test_size": 0.3}, "seed": 4, "output": "a"},
        {"split": {"test_size": 0.3, "seed": 4}, "output": "b"},
    ]
    for recipe in recipes:
        featurestore.sweep(study(CONCEPT, controls="shuffled-labels", **recipe))
    assert written("a") == written("b")
    drawn = "random-columns"
    assert chosen(study(CONCEPT, controls=drawn, seed=4)) == [{}, {"control": drawn, "seed": 4}]
    assert chosen(study(CONCEPT | {"controls": drawn}, seed=0))[1] == {"control": drawn, "seed": 0}
    assert chosen(study(CONCEPT, controls="text", seed=4)) == [{}, {"control": "text"}]  # which is not drawn


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"seed": 1}, "recipe: seed: nothing is drawn at random here; name a split or controls with it"),
        (
            {"seed": 1, "split": {"folds": 2, "seed": 1}, "controls": "text"},
            "recipe: seed: split has a seed, too; name one of them",
        ),
        ({"seed": -1, "controls": "text"}, "recipe: seed: expected 0 or more, found -1"),
        ({"seed": "1", "controls": "text"}, "recipe: seed: expected an integer, found '1'"),
        ({"seed": True, "controls": "text"}, "recipe: seed: expected an integer, found True"),
        ({"seed": None, "controls": "text"}, "recipe: seed: expected an integer, found None"),
        # what stands in the way of the seed is named alone
        ({"seed": 1, "split": 3}, f"recipe: split: {KEYS}, found 3"),
        ({"seed": 1, "split": None}, f"recipe: split: {KEYS}, found None"),
        ({"seed": 1, "split": {"folds": 1}}, "recipe: split.folds: expected at least 2, found 1"),
        ({"seed": 1, "controls": "x"}, f"recipe: controls: expected one of {', '.join(CONTROLS)}, found 'x'"),
    ],
)  # fmt: skip
def test_seeds_that_cannot_be(store: str, keys: dict[str, Any], fault: str) -> None:
    assert refusal(study(CONCEPT, **keys)) == fault


# ---- faults


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"tokens": "last-0"}, f"tokens: {TOKENS}, found 'last-0'"),
        ({"tokens": ["mean", 3]}, f"tokens[1]: {TOKENS}, found 3"),
        ({"tokens": []}, "tokens: expected at least one value, found an empty list"),
        ({"target_tokens": "all"}, 'datasets[0]: target_tokens: "all": expected tokens: "all" with it, found'),
        ({"special": 1}, "special: expected true or false, found 1"),
        ({"drop_short": "yes"}, "drop_short: expected true or false, found 'yes'"),
        ({"combine": "diff"}, "combine: expected one of concat, mean, difference, sum, found 'diff'"),
        ({"where": "lable=0"}, "where: expected a coordinate of sentences (has_label, label, label_name, "),
        ({"where": {"label": "a"}}, "where: label: expected numbers and ranges such as 0-2,10,15-17, found 'a'"),
        ({"where": 3}, "where: expected text such as label=0,3, a sequence of such texts, or a mapping"),
        ({"classes": {}}, "classes: expected labels and whole numbers from 0, such as 0=0,3=1, found {}"),
        ({"classes": {0: 0, "0": 1}}, "classes: 0 is there twice"),
        ({"classes": {True: 0}}, "classes: expected words as keys, found True"),
        ({"labels_from": "truth"}, "labels_from: expected FILE.csv:COLUMN, found 'truth'"),
        ({"control": "text"}, "control: unknown key; did you mean controls?"),
    ],
)  # fmt: skip
def test_faults_are_named(store: str, keys: dict[str, Any], fault: str) -> None:
    found = refusal(study(FEATURE, **keys))
    assert found.startswith(f"recipe: {fault}")
    assert "\n" not in found
    if not fault.startswith("datasets"):
        place = next(iter(keys))
        inside = refusal(study(FEATURE | keys))
        assert inside.startswith(
            f"recipe: datasets[0].{fault}" if "twice" in fault or "words" in fault else "recipe: datasets"
        )
        assert place.rstrip("s") in inside


@pytest.mark.parametrize("name", ["where", "drop_short", "tokens", "special", "combine", "target_tokens", "labels_from",
                                  "classes", "controls", "seed"])  # fmt: skip
def test_absurd_values(store: str, name: str) -> None:
    absurd: list[Any] = [
        b"x", "", "\0", "a\nb", "\ud800", "a" * 5000, 10**400, -1.5, float("nan"), [[[]]], {"": ""}, object(),
        {"a" * 5000: "a" * 5000}, range(10**30), np.array([0.5]), {1.5: 2}, {10**5000: 1},
    ]  # fmt: skip
    for value in absurd:
        for line in refusal(study(CONCEPT, **{name: value})).splitlines():
            assert line.isprintable()
            assert len(line) < 400
            assert line.startswith(f"recipe: {name}")


def test_files_with_columns_of_one_name(store: str) -> None:
    """Datasets hold no paths, so they could not be told apart; where both files say the same they need not be."""
    write_labels("other.csv", "truth", [str(i % 3) for i in range(N)])
    fault = refusal(study(CONCEPT | {"labels_from": ["labels.csv:truth", "other.csv:truth"]}))
    assert fault == (
        "recipe: datasets[0]: labels_from: expected columns of different names, found other labels in labels.csv:truth "
        "and other.csv:truth, whose datasets would have the same names; rename one"
    )  # fmt: skip
    entries = [CONCEPT | {"labels_from": f"{name}.csv:truth"} for name in ("labels", "other")]
    assert "rename one" in refusal(study(*entries))
    assert len(chosen(study(CONCEPT, labels_from=["labels.csv:truth", "./labels.csv:truth"]))) == 1


def test_too_many_alternatives_are_refused_at_once(store: str) -> None:
    many = [f"last-{i}" for i in range(1, 1001)]
    fault = refusal(study(FEATURE, tokens=many, target_tokens=many, special=[True, False]))
    assert fault == "recipe: datasets[0]: 2,000,000 datasets are more than 100,000; divide the recipe"


def test_names_tell_datasets_apart(store: str) -> None:
    """Also where a text looks like two conditions."""
    two, one = ["source=a", "source=b"], ["source=a-and-source=b"]
    done = featurestore.sweep(study(CONCEPT | {"where": [two, one]}), dry_run=True)
    assert len({job.output for job in done.datasets}) == 2


# ---- statistics of another dataset


def test_statistics_are_of_the_same_x(store: str) -> None:
    def built(name: str, **options: Any) -> None:
        featurestore.build(store, "hidden-to-concept", layers="0,1", output=f"{name}.npz", **options)

    built("real")
    built("mean", tokens="mean")
    built("random", control="random-columns")
    built("shuffled", control="shuffled-labels")
    built("single", combine="sum")
    kinds: dict[str, dict[str, Any]] = {
        "real": {}, "mean": {"tokens": "mean"}, "shuffled": {"control": "shuffled-labels"},
        "random": {"control": "random-columns"}, "single": {"combine": "sum"},
    }  # fmt: skip
    alike = {"real", "shuffled"}  # whose y alone differ
    for (name, options), other in product(kinds.items(), kinds):
        if name == other or {name, other} == alike:
            built(f"{name}-{other}", stats_from=f"{other}.npz", **options)
        else:
            with pytest.raises(featurestore.DatasetError, match="choose statistics of the same input"):
                built(f"{name}-{other}", stats_from=f"{other}.npz", **options)
            assert not Path(f"{name}-{other}.npz").exists()


# ---- rankings


def activations_of(tokens: str) -> Any:
    """Of all sentences, (sentence, layer, feature)."""
    pool = {"final": lambda a: a[:, -1], "max": lambda a: a.max(axis=1), "mean": lambda a: a.astype(float).mean(axis=1)}
    return np.stack([pool[tokens](sentence_arrays(i, tokens=n_tokens(i))["activations"]) for i in range(N)])


def ranked_by_hand(activations: Any, scores_of: Any, top: int, min_active: int) -> list[float]:
    columns = activations.reshape(len(activations), -1).astype(np.float64).T
    scores = [
        scores_of(column) for column in columns if np.count_nonzero(column) >= min_active and len(set(column)) > 1
    ]
    return sorted(scores, reverse=True)[:top]


RANKED: list[dict[str, Any]] = [
    {"where": "n_tokens=3-6"},
    {"labels_from": "labels.csv:truth"},
    {"classes": "0=0,3=1"},
    {"labels_from": "labels.csv:truth", "classes": {1: 1, 4: 0}, "where": "label=1-4"},
    {"split": {"test_size": 0.3, "seed": 2}},
    {"split": {"folds": 3}, "where": "label=0-2", "labels_from": "labels.csv:truth", "tokens": "mean"},
    {"target_tokens": "max", "special": True, "where": "n_tokens=3-6"},
    {"target_tokens": "mean", "special": True},
    {"target_tokens": "last-2", "special": True},  # which are ranked at the final token
]


@pytest.mark.parametrize("keys", RANKED, ids=lambda keys: "+".join(keys))
@pytest.mark.parametrize("by", ["label", "density"])
def test_rankings_by_the_rows_that_count(store: str, keys: dict[str, Any], by: str) -> None:
    """Compared with numpy: of the population, its labels or classes, and its training rows alone."""
    labels = np.arange(N) % 4
    has = np.ones(N, bool)
    if "labels_from" in keys:
        labels, has = np.arange(N) % 5, np.arange(N) % 7 > 0
    counted = np.ones(N, bool)
    if "where" in keys:
        name, _, values = keys["where"].partition("=")
        first, last = map(int, values.split("-"))
        value = labels if name == "label" else np.array([n_tokens(i) for i in range(N)])
        counted &= (value >= first) & (value <= last) & (has if name == "label" else True)
    if "split" in keys:
        sides = {name: keys[name] for name in ("labels_from",) if name in keys} | keys["split"]
        metadata = featurestore.build(store, "embedding-to-feature", target_layer=0, target_feature=3, **sides).metadata
        counted &= metadata["split"] == "train"
    if "classes" in keys:
        classes = {0: 0, 3: 1} if "labels_from" not in keys else {1: 1, 4: 0}
        counted &= has & np.isin(labels, [*classes])
        labels = np.array([classes.get(label, -1) for label in labels.tolist()])
    if by == "label":
        counted &= has
    of_counted = labels[counted].astype(np.float64)

    def score(column: Any) -> float:
        if by == "density":
            return float(np.mean(column != 0))
        return abs(float(np.corrcoef(column, of_counted)[0, 1]))

    recipe = study({"strategy": "hidden-to-feature", "targets": {"rank_by": by, "top": 8}}, min_active=3, **keys)
    done = featurestore.sweep(recipe, dry_run=True)
    tokens = keys.get("target_tokens", "final")
    activations = activations_of(tokens if tokens in ("max", "mean") else "final")[counted]
    found = [
        score(activations[:, [0, 1, 5].index(options["target_layer"]), options["target_feature"]].astype(np.float64))
        for options in (job.plan.arguments for job in done.datasets)
    ]
    np.testing.assert_allclose(found, ranked_by_hand(activations, score, 8, 3), rtol=1e-9)


def test_nothing_to_rank(store: str) -> None:
    entry = {"strategy": "hidden-to-feature", "targets": {"rank_by": "label", "top": 3}}
    lacks = "has no training sentence with finite values among those that are asked for, so no feature can be ranked"
    assert refusal(study(entry | {"where": "label=9"})) == f"recipe: datasets[0].targets: {lacks}; choose others"
    one = refusal(study(entry | {"where": "label=1"}))
    assert one.startswith("recipe: datasets[0].targets: has but one label in the training sentences")


# ---- the same as single builds, read once


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*.npz"))}


LISTS: dict[str, list[Any]] = {
    "where": ["n_tokens=3-6", {"label": [0, 1, 2]}, ["label=0-2", "n_tokens=2-6"]],
    "tokens": ["mean", "max", "last-2", "first-1", "all", "final"],
    "special": [True, False],
    "drop_short": [True],
    "target_tokens": ["max", "mean", "first-2", "final"],
    "labels_from": ["labels.csv:truth", "words.csv:kind"],
    "normalize": ["standardize", "minmax", "none"],
}


@settings(max_examples=12)
@given(data=st.data())
def test_random_alternatives_are_what_single_builds_make(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Byte for byte, of options drawn at random in both places, with controls and a split."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.chdir(home)
        write_folder(Path("care"), 40)
        write_labels("labels.csv", "truth", [str(i % 3) if i % 7 else "" for i in range(40)])
        write_labels("words.csv", "kind", ["lie" if i % 3 else "a, b" for i in range(40)])
        featurestore.ingest("care", special_first=1)
        names = data.draw(st.sets(st.sampled_from(sorted(LISTS)), min_size=1, max_size=4)) | {"drop_short"}
        lists = {
            name: data.draw(st.lists(st.sampled_from(LISTS[name]), min_size=1, max_size=2, unique_by=repr), label=name)
            for name in sorted(names)
        }
        entry = data.draw(st.sampled_from([CONCEPT, FEATURE, {"strategy": "hidden-to-concept", "layers": "1,5"}]))
        entry = {name: value for name, value in entry.items() if name != "normalize"}
        if "layers" in entry:
            lists["combine"] = data.draw(st.sampled_from([["difference"], ["sum", "concat"], ["mean"]]))
        if entry["strategy"] == "hidden-to-concept":
            lists.pop("target_tokens", None)
        controls = data.draw(st.sampled_from([[], ["text"], ["random-columns", "shuffled-labels"]]))
        split: dict[str, Any] = data.draw(st.sampled_from([{}, {"test_size": 0.3, "seed": 3}, {"folds": 3}]))
        inner = data.draw(st.sets(st.sampled_from(sorted(lists))))
        recipe = study(
            {**entry, **{name: lists[name] for name in inner}},
            **{name: values for name, values in lists.items() if name not in inner},
            **({"split": split} if split else {}), controls=controls or ["text"], output="swept",
        )  # fmt: skip
        done = featurestore.sweep(recipe)
        singles = {
            json.dumps([one, control], sort_keys=True, default=str): (dict(zip(lists, one, strict=True)), control)
            for one in product(*lists.values())
            for control in (None, *(controls or ["text"]))
        }
        expected = set()
        for number, (options, control) in enumerate(singles.values()):
            built = f"built/{number}.npz"
            given_options = {name: value for name, value in (entry | options).items() if name != "strategy"}
            featurestore.build(
                "stores/care.zarr", entry["strategy"], **given_options, control=control, **split, output=built
            )
            expected.add(Path(built).read_bytes())
        assert not [job.problem for job in done.datasets if job.state == "unfit"]
        assert set(written("swept").values()) == expected


def test_each_chunk_is_read_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the tokens, in whatever populations, with controls beside it."""
    snapshot = Snapshot.read(Path(store))
    read: Counter[Any] = Counter()
    original = arrays.StoredArray._read

    def counting(self: Any, key: tuple[Any, ...], target: Any) -> None:
        if self._name in ("hidden_states", "activations"):
            chunks = zip(key, snapshot.chunk_shape(self._name), strict=True)
            parts = [range(k.start - k.start % size, k.stop, size) for k, size in chunks]
            read.update((self._name, *piece) for piece in product(*parts))
        original(self, key, target)

    monkeypatch.setattr("featurestore.store.backend.SENTENCES_PER_CHUNK", 32)
    monkeypatch.setattr(arrays.StoredArray, "_read", counting)
    featurestore.sweep(
        study(
            {"strategy": "hidden-to-concept", "layer": "all"},
            {"strategy": "hidden-to-concept", "layers": "all", "combine": ["concat", "sum"]},
            FEATURE | {"target_layer": 1, "target_feature": "2-4", "target_tokens": ["max", "final"]},
            tokens=["mean", "max", "final", "last-1", "all"], where=["n_tokens=2-7", "label=0,3"], controls="text",
        )
    )  # fmt: skip
    assert set(read.values()) == {1}
    shards, tokens = 3, 6  # the first of the longest sentences is special, and never read
    assert Counter(name for name, *_ in read) == {"hidden_states": 3 * shards * tokens, "activations": shards * tokens}


# ---- preflight


def test_a_dry_run_of_what_is_only_scanned(folder: Path) -> None:
    """Special tokens, texts and fragments are known from the NPZs; also where a store has some of them already."""
    for index in range(N):
        special = np.arange(n_tokens(index)) == 0
        write_sentence(folder, index, tokens=n_tokens(index), changes={"is_special": special})
    recipe = study(
        CONCEPT | {"labels_from": "labels.csv:truth"}, FEATURE | {"target_tokens": "max"},
        stores=str(folder), tokens=["mean", "all", "last-3", "first-1"], special=[True, False], drop_short=True,
        where=["n_tokens=2-6", "text=w3.0 w3.1 w3.2 w3.3 w3.4"], controls=["text", "random-columns"],
        split={"test_size": 0.25},
    )  # fmt: skip

    def dry() -> list[tuple[str, tuple[int, ...]]]:
        done = featurestore.sweep(recipe, dry_run=True)
        return [(job.output.name, job.shape) for job in done.datasets]

    scanned = dry()
    assert not Path("stores").exists()
    later = [folder / f"sentence_{index + 1:06d}.npz" for index in range(70, N)]
    for path in later:
        path.rename(path.with_suffix(".away"))
    featurestore.ingest(folder)
    for path in later:
        path.with_suffix(".away").rename(path)
    partly = dry()
    featurestore.ingest(folder)
    assert scanned == partly == dry()
    of_all = [
        shape
        for name, shape in scanned
        if name.startswith("hidden-to-feature") and "n_tokens=2-6_drop-short_tokens-all_target" in name
    ]
    assert {rows for rows, _ in of_all} == {sum(n_tokens(i) - 1 for i in range(N) if n_tokens(i) <= 6)}


def test_tokens_that_ingest_marks_are_known_to_a_dry_run(folder: Path) -> None:
    featurestore.ingest(folder, special_first=2)
    write_sentence(folder, N, tokens=5)
    recipe = study(CONCEPT | {"tokens": "all", "drop_short": True}, stores=str(folder))
    (job,) = featurestore.sweep(recipe, dry_run=True).datasets
    assert job.shape == (sum(n_tokens(i) - 2 for i in range(N)) + 3, 6)


def problems(recipe: dict[str, Any]) -> list[str]:
    return [job.problem for job in featurestore.sweep(recipe, dry_run=True).datasets]


def test_nothing_left(store: str) -> None:
    recipe = study(
        CONCEPT | {"where": "label=9", "tokens": ["final", "mean", "all", "last-2"], "drop_short": True},
        CONCEPT | {"where": "label=1", "classes": "0=0,3=1"},
        CONCEPT | {"tokens": "last-7", "drop_short": True},
        CONCEPT, controls="text",
    )  # fmt: skip
    gone, last = "no sentence is left of those that have label=9{}; choose others", " and enough tokens"
    expected = [gone.format("")] * 2 + [gone.format(last)] * 6 + [
        "no sentence is left of those that have label=1 and a label of the classes 0=0,3=1; choose others"] * 2 + [
        "no sentence is left of those that have enough tokens; choose others"] * 2 + [""] * 2  # fmt: skip
    assert problems(recipe) == expected
    assert problems(recipe | {"problems": "skip"}) == expected
    found = refusal(recipe | {"problems": "refuse"})
    assert found.startswith(
        "12 of 14 datasets are unfit; leave them out with problems: skip\ncare: no sentence is left"
    )
    featurestore.sweep(recipe)
    assert len(written("generated_datasets")) == 2
    with pytest.raises(
        featurestore.SelectionError, match=r"stores/care.zarr: no sentence is left of those that have label=9"
    ):
        featurestore.build(store, "hidden-to-concept", layer=0, where="label=9", tokens="max")


def test_a_side_without_a_class_or_without_anyone(store: str) -> None:
    metadata = featurestore.build(store, "hidden-to-concept", layer=0, test_size=0.3).metadata
    test = metadata["sentence_indices"][metadata["split"] == "test"].tolist()
    train = metadata["sentence_indices"][metadata["split"] == "train"].tolist()
    zeros = [i for i in train if i % 4 == 0]
    split = {"test_size": 0.3}
    ones = [i for i in test if i % 4 == 1] + [i for i in train if i % 4 == 1]
    found = problems(study(CONCEPT | {"where": {"sentence": [*zeros, *ones]}}, split=split))
    assert found == [f"label 0 ({len(zeros)} of {len(zeros) + len(ones)} sentences) is missing in the test part"]
    assert problems(study(FEATURE | {"where": {"sentence": train}}, split=split)) == [
        "no sentence is left in the test part"
    ]
    condition = featurestore.sweep(study(FEATURE | {"where": {"sentence": test}}, split=split), dry_run=True).datasets[
        0
    ]
    assert condition.problem.startswith("no training sentence has sentence=")
    assert condition.state == "unfit"  # though unfit ones are kept: nothing could be fitted
    folds = featurestore.build(store, "hidden-to-concept", layer=0, folds=3).metadata
    others = folds["sentence_indices"][folds["fold"] != 1].tolist()
    assert problems(study(FEATURE | {"where": {"sentence": others}}, split={"folds": 3})) == [
        "no sentence is left in fold 1"
    ]


def test_targets_that_are_dead_at_the_chosen_tokens(folder: Path) -> None:
    """Feature 1 is active before the final token alone, 2 at the final one alone, which is special; 4 in test rows."""
    first = featurestore.build(folder, "hidden-to-concept", layer=0, test_size=0.3, seed=1)
    test = set(first.metadata["sentence_indices"][first.metadata["split"] == "test"].tolist())
    for index in range(N):
        made = sentence_arrays(index, tokens=n_tokens(index))
        made["activations"][0, :, [1, 2, 4]] = 0
        made["activations"][0, 0, 1] = 1 + index
        made["activations"][0, -1, 2] = 1 + index
        made["activations"][0, 0, 4] = 1 + index if index in test else 0
        write_sentence(folder.parent / "kind", index, tokens=n_tokens(index),
                       changes=made | {"is_special": np.arange(n_tokens(index)) == n_tokens(index) - 1})  # fmt: skip
    featurestore.ingest("kind")
    n_training = N - len(test)
    dead = {
        feature: f"feature {feature} of layer 0 is dead: active in none of {n_training} training"
        for feature in (1, 2, 4)
    }
    keys: dict[str, Any] = {"stores": "stores/kind.zarr", "split": {"test_size": 0.3, "seed": 1}, "problems": "skip"}
    entry = FEATURE | {"target_feature": [1, 2, 4]}

    def found(**choices: Any) -> list[str]:
        return problems(study(entry | choices, **keys))

    assert found() == [f"{dead[1]} sentences", "", f"{dead[4]} sentences"]
    assert found(target_tokens="max") == ["", f"{dead[2]} sentences", f"{dead[4]} sentences"]
    assert found(target_tokens="max", special=True) == ["", "", f"{dead[4]} sentences"]
    n_rows = sum(n_tokens(i) - 1 for i in range(N) if i not in test)
    tokens_all = found(tokens="all", target_tokens="all")
    assert tokens_all == [
        "",
        *(f"feature {f} of layer 0 is dead: active in none of {n_rows} training tokens" for f in (2, 4)),
    ]
    assert (
        found(tokens="all", target_tokens="final")[0]
        == f"feature 1 of layer 0 is dead: active in none of {N - len(test)} training sentences"  # one y for all
    )


def test_sentences_that_are_too_short(store: str) -> None:
    short = [i for i in range(N) if n_tokens(i) - 1 < 3]
    fault = refusal(study(CONCEPT | {"tokens": "last-3"}))
    assert fault == (
        f'recipe: datasets[0]: stores/care.zarr: tokens: "last-3": expected 3 tokens or more, {len(short)} of {N} '
        f"sentences have fewer (sentence_index {', '.join(map(str, short[:5]))} and {len(short) - 5} more); "
        "leave them out: drop_short: true"
    )
    both = refusal(study(FEATURE | {"tokens": "last-3", "target_tokens": "first-3"}))
    assert 'tokens: "last-3" and target_tokens: "first-3": expected 3' in both
    done = featurestore.sweep(study(CONCEPT | {"tokens": "last-3", "drop_short": True}, problems="refuse"))
    metadata = featurestore.load_dataset(done.datasets[0].output).metadata
    assert metadata["short_sentence_indices"].tolist() == short
    only = study(CONCEPT | {"tokens": "last-3", "where": "n_tokens=4-7"}, problems="refuse")
    assert problems(only) == [""]


# ---- the schema for editors


def test_the_schema_accepts_what_works_and_refuses_typos() -> None:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    good: dict[str, list[Any]] = {
        "where": ["label=0,3", ["label=0", " n_tokens = 3"], {"label": [0, 3], "text": "a", "has_label": True},
                  [{"label": "0-2"}, "label=3"], [["label=0", "n_tokens=5"]], "store=care", {"label_name": "lie"}],
        "drop_short": [True, [True, False]],
        "tokens": ["final", "mean", "max", "all", "last-3", ["first-2", "last-999999"]],
        "special": [False, [True, False]],
        "combine": ["sum", ["concat", "difference", "mean"]],
        "target_tokens": ["max", ["final", "first-1"]],
        "labels_from": ["a.csv:b", ["a.csv:b", "c.csv:d"]],
        "classes": ["0=0,3=1", {"honest": 0, "lie": 1}, ["0=0", {"3": 1}]],
        "controls": ["text", [*CONTROLS], []],
    }  # fmt: skip
    bad: dict[str, list[Any]] = {
        "where": ["lable=0", "label", 3, {"lable": 0}, {"label": 1.5}, {"label": []}, [], {"label": {"a": 1}}],
        "drop_short": ["yes", 1, []],
        "tokens": ["last", "last-0", "first-01", "last-1000000", "last-٣", "Mean", "mean ", 3, []],
        "special": [0, "true"],
        "combine": ["diff", True, []],
        "target_tokens": ["sum", "last--1"],
        "labels_from": [3, {"a": "b"}],
        "classes": [3, {"a": -1}, {"a": "b"}, {"a": 0.5}, []],
        "controls": ["shuffled", True],
    }  # fmt: skip
    for (name, values), good_ones in (
        (item, valid) for valid, table in ((True, good), (False, bad)) for item in table.items()
    ):
        for value in values:
            assert validator.is_valid(study(CONCEPT, **{name: value})) == good_ones, (name, value)
            assert validator.is_valid(study(CONCEPT | {name: value})) == good_ones, (name, value)
            if good_ones is False:
                with pytest.raises(featurestore.FeatureStoreError):
                    featurestore.sweep(study(CONCEPT, **{name: value}))
    for key, value in (("control", "text"), ("token", "mean"), ("label_from", "a.csv:b"), ("seed", -1), ("seed", "1")):
        assert not validator.is_valid(study(CONCEPT, **{key: value}))
    assert not validator.is_valid(study(CONCEPT | {"seed": 1}))  # of all, never of one
    assert validator.is_valid(study(CONCEPT, seed=1, controls="text"))
