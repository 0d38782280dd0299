"""Recipes: what they expand to, what is refused with which line and key, and the schema for editors."""

from __future__ import annotations

import csv
import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import xarray as xr
import yaml

import featurestore
from featurestore.recipes.json_schema import recipe_schema
from tests.sentences import SAMPLE, sentence_arrays, write_folder, write_sentence

GOOD = """\
stores: care
datasets:
  - strategy: hidden-to-concept
    layer: 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """90 sentences; layer 5 has two SAEs."""
    write_folder(tmp_path / "care", 90, layers=[0, 1, 5, 5], average_l0s=[3, 3, 2, 9])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "care"


def planned(recipe: Any) -> list[tuple[str, dict[str, Any], str]]:
    done = featurestore.sweep(recipe, dry_run=True)
    return [(item.plan.strategy.name, dict(item.plan.arguments), item.plan.normalize) for item in done.datasets]


def test_lists_are_alternatives_and_their_product_is_built(folder: Path) -> None:
    found = planned(
        {
            "stores": "care",
            "normalize": ["none", "minmax"],
            "datasets": [
                {"strategy": "hidden-to-concept", "layer": "all"},
                {"strategy": "hidden-to-concept", "layers": [5, "0-1", "all", [1, 0]], "normalize": "none"},
                {"strategy": "hidden-to-concept", "layer": [0, "0-1"]},
                {
                    "strategy": "hidden-to-feature",
                    "targets": [[0, 4], [5, 2, 9]],
                    "input_layer": "0-1",
                    "normalize": "standardize",
                },
            ],
        }
    )
    single = [("hidden-to-concept", {"layer": i}, method) for i in (0, 1, 5) for method in ("none", "minmax")]
    several = [("hidden-to-concept", {"layers": i}, "none") for i in ((5,), (0, 1), (0, 1, 5), (1, 0))]
    features = [
        ("hidden-to-feature", {"target_layer": layer, "target_feature": feature, **l0, "input_layer": i}, "standardize")
        for layer, feature, l0 in ((0, 4, {}), (5, 2, {"average_l0": 9}))
        for i in (0, 1)
    ]
    assert found == [*single, *several, *features]  # the third entry repeats what the first has


def test_one_element_is_what_build_makes(folder: Path, cli: Any) -> None:
    Path("r.yaml").write_text(GOOD.replace("care", str(folder)))
    assert cli("sweep", "r.yaml").exit_code == 0
    (swept,) = Path("generated_datasets").rglob("*.npz")
    cli("build", "--strategy", "hidden-to-concept", "--layer", 0, "--input", folder, "--output", "built.npz")
    assert Path("built.npz").read_bytes() == swept.read_bytes()


BAD: dict[str, tuple[Any, str]] = {
    "no file": (None, "bad.yaml: cannot be read"),
    "empty": ("", "bad.yaml: expected a recipe, found an empty file"),
    "no YAML": ("stores: [a\ndatasets: b\n", "bad.yaml:2: is no YAML"),
    "not UTF-8": (b"stores: \xff\n", "bad.yaml: expected YAML in UTF-8"),
    "a list": ("- a\n", "bad.yaml:1: expected keys"),
    "a missing key": ("stores: a\n", "bad.yaml:1: the key datasets is missing"),
    "an unknown key": (GOOD + "normalise: none\n", "bad.yaml:5: normalise: unknown key; did you mean normalize"),
    "a key twice": (GOOD + "stores: b\n", "bad.yaml:5: .*stores is there twice"),
    "a tag": (GOOD + "output: !!python/object:os.system x\n", "bad.yaml:5: output: expected plain values"),
    "too deep": (GOOD + f"output: {'[' * 20}{']' * 20}\n", "bad.yaml:5: output.*: nested more deeply"),
    "itself": (GOOD + "output: &a [*a]\n", "nested more deeply"),
    "no strategy": (GOOD + "  - layer: 3\n", r"bad.yaml:5: datasets\[1\]: expected a strategy"),
    "an unknown strategy": (GOOD + "  - strategy: x\n", r"bad.yaml:5: datasets\[1\].strategy: .*found 'x'"),
    "a foreign option": (
        GOOD + "    target_layer: 3\n",
        r"bad.yaml:5: datasets\[0\].target_layer: unknown key; .*strategy, layer, layers",
    ),
    "a missing option": (
        GOOD.replace("    layer: 0\n", ""),
        r"bad.yaml:3: datasets\[0\]: .*either layer or layers",
    ),
    "both options": (GOOD + "    layers: 0-5\n", r"bad.yaml:3: datasets\[0\]: .*not both"),
    "a bad layer": (
        GOOD.replace("0", "[1, x]"),
        r"bad.yaml:4: datasets\[0\].layer\[1\]: expected numbers and ranges .*, found 'x'",
    ),
    "a fraction": (
        GOOD.replace("0", "1.5"),
        r"bad.yaml:4: datasets\[0\].layer: expected an integer, found 1.5",
    ),
    "a bad range": (GOOD.replace("layer: 0", "layers: 5-2"), "bad.yaml:4: .*runs backwards; write 2-5"),
    "no values": (GOOD.replace("0", "[]"), r"bad.yaml:4: datasets\[0\].layer: expected at least one value"),
    "a bad method": (GOOD + "normalize: [none, z]\n", r"bad.yaml:5: normalize\[1\]: expected one of .*found 'z'"),
    "a bad choice": (
        GOOD + "problems: ignore\n",
        "bad.yaml:5: problems: expected one of skip, refuse, keep, found 'ignore'",
    ),
    "a bad flag": (GOOD + "drop_nonfinite: 1\n", "bad.yaml:5: drop_nonfinite: expected true or false, found 1"),
    "a bad count": (GOOD + "min_active: 0\n", "bad.yaml:5: min_active: expected a number of at least 1"),
    "a bad split": (GOOD + "split: {test_size: 2}\n", "bad.yaml:5: split.test_size: expected a fraction"),
    "an unknown split key": (GOOD + "split:\n  size: 2\n", "bad.yaml:6: split.size: unknown key"),
    "a path that is none": (GOOD.replace("care", "3"), "bad.yaml:1: stores: expected text, found 3"),
    "no such store": (GOOD.replace("care", "nowhere"), "nowhere: no such store or folder"),
    "a layer that is not there": (
        GOOD.replace("0", "7"),
        r"bad.yaml:4: datasets\[0\].layer: has no layer 7: choose from",
    ),
    "targets that are none": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: [[1, 2], [3]]\n",
        r"bad.yaml:6: datasets\[1\].targets\[1\]: expected \[layer, feature\]",
    ),
    "targets named twice": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: [[1, 2]]\n    target_layer: 1\n",
        "bad.yaml:6: .*targets together with target_layer",
    ),
    "several SAEs": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: [[5, 2]]\n",
        r"bad.yaml:6: datasets\[1\].targets\[0\]: .*2 SAEs.*\[2, 9\]",
    ),
    "no ranking": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: {ranked: none.csv}\n",
        r"bad.yaml:6: datasets\[1\].targets.ranked: none.csv: cannot be read",
    ),
    "too many features": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: {rank_by: label, top: 99}\n",
        r"bad.yaml:6: datasets\[1\].targets: expected 99 features to rank, only 40 .*; ask for fewer",
    ),
    "octal": (GOOD.replace("0", "010"), "bad.yaml:4: .*layer: expected a plain decimal number.* found 010"),
    "base 60": (GOOD.replace("0", "1:30"), "bad.yaml:4: .*expected a plain decimal number.* found 1:30"),
    "a date that is none": (GOOD + "output: 2020-99-99\n", "bad.yaml:5: output: expected plain values"),
    "a key that is a list": (GOOD + "? [a]\n: 3\n", "bad.yaml:5: expected a word as key"),
    "brackets": ("[" * 5000, "bad.yaml: nested more deeply"),
    "aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "nested more deeply, or longer",
    ),
    "a NUL": (GOOD + 'output: "a\\0b"\n', r"bad.yaml:5: output: expected text, found 'a\\x00b'"),
    "an empty split": (GOOD + "split: {}\n", "bad.yaml:5: split: expected test_size, test_store or folds"),
    "a list in a split": (GOOD + "split: {folds: [3, 5]}\n", r"bad.yaml:5: split.folds: .*found \[3, 5\]"),
    "top 0": (
        GOOD + "  - strategy: hidden-to-feature\n    targets: {ranked: x.csv, top: 0}\n",
        r"^bad.yaml:6: datasets\[1\].targets.top: expected a number of at least 1, found 0$",
    ),
    "an impossible split": (GOOD + "split: {folds: 1000}\n", "care.zarr: folds: 1000: 90 sentences are too few"),
    "an output that is a file": (GOOD + "output: bad.yaml\n", "bad.yaml: expected a folder for datasets, found a file"),
    "a huge product": (
        GOOD.replace("layer: 0", "layer: 0") + "  - strategy: embedding-to-feature\n    target_layer: '0-1'\n"
        "    target_feature: [" + ", ".join(["'0-9'"] * 6000) + "]\n",
        r"bad.yaml:5: datasets\[1\]: 120,000 datasets are more than 100,000; divide the recipe",
    ),
    "faults everywhere": (
        GOOD.replace("0", "[8, 1]") + "    layre: 3\nsplit: {folds: 1}\nnormalize: z\n",
        r"(?s)bad.yaml:6: split.folds: .*\nbad.yaml:7: normalize: .*\nbad.yaml:5: datasets\[0\].layre: unknown key",
    ),
    "two faults": (
        GOOD.replace("0", "x") + "  - strategy: y\n",
        r"(?s)bad.yaml:4: datasets\[0\].*\n.*bad.yaml:5: datasets\[1\]",
    ),
    "a mapping that contains itself": (
        GOOD + "split: &a {folds: *a}\n",
        "^bad.yaml:5: split.folds.*: nested more deeply",
    ),
    "a merge key": (GOOD + "<<: {output: a}\n", "^bad.yaml:5: <<: unknown key"),
    "a tagged list": (GOOD + "output: !omap [a]\n", "^bad.yaml:5: output: expected plain values, found !omap"),
    "a set": (GOOD + "output: !!set {a}\n", "^bad.yaml:5: output: expected plain values, found tag:yaml.org,2002:set"),
    "no such boolean": (GOOD + "output: !!bool x\n", "^bad.yaml:5: output: expected plain values"),
    "an empty integer": (GOOD + "output: !!int ''\n", "^bad.yaml:5: output: expected plain values"),
    "no timestamp": (GOOD + "output: !!timestamp x\n", "^bad.yaml:5: output: expected plain values"),
    "a date": (GOOD + "output: 2020-01-01\n", "^bad.yaml:5: output: expected text, found datetime.date"),
    "bytes": (GOOD + "output: !!binary aGk=\n", "^bad.yaml:5: output: expected text, found b'hi'"),
    "no such character": (GOOD + 'output: "\\UFFFFFFFF"\n', "^bad.yaml: is no YAML: "),
    "half a character": (GOOD + 'output: "\\ud800"\n', r"^bad.yaml:5: output: expected text, found '\\ud800'"),
    "5,000 digits": (GOOD + f"min_active: {'9' * 5000}\n", "^bad.yaml:5: min_active: expected plain values"),
    "4,000 digits": (
        GOOD.replace("0", "9" * 4000),
        r"^bad.yaml:4: datasets\[0\].layer: .* of at most 256 bits, found 9+\.\.\.9+$",
    ),
    "20 digits": (
        GOOD + f"min_active: {'9' * 20}\n",
        "^bad.yaml:5: min_active: expected a number of at least 1, found 9+$",
    ),
    "a layer of a pair with 100 digits": (
        GOOD + f"  - strategy: hidden-to-feature\n    targets: [[{'9' * 100}, 2]]\n",
        r"^bad.yaml:6: datasets\[1\].targets\[0\]: target_layer: expected an integer of at most 256 bits",
    ),
    "a long text": (GOOD + f"problems: {'a' * 5000}\n", r"^bad.yaml:5: problems: .*, found 'a+\.\.\.a+'$"),
    "a long key": (GOOD + f"? {'a' * 2000}\n: 1\n", r"^bad.yaml:6: a+\.\.\.: unknown key"),
    "a key that drives a terminal": (GOOD + '"\\e[31m": 1\n', r"^bad.yaml:5: \\x1b\[31m: unknown key"),
    "nobody's home": (GOOD + "output: ~nobody-of-that-name/a\n", "^bad.yaml:5: output: .*names no user"),
    "two stores of one name": (GOOD.replace("care", "[care, care]"), r"bad.yaml:1: stores\[1\]: a second store"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_recipes(folder: Path, fault: str) -> None:
    content, message = BAD[fault]
    if content is not None:
        Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(featurestore.FeatureStoreError, match=message) as caught:
        featurestore.sweep("bad.yaml")
    for line in str(caught.value).splitlines():
        assert line.isprintable()
        assert len(line) < 400
    assert not Path("generated_datasets").exists()


class Hostile:
    """Neither a text nor equal to anything."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError


def endless() -> dict[str, Any]:
    values: dict[str, Any] = {}
    values["strategy"] = values["layer"] = values["folds"] = [values]
    return values


ABSURD: list[Any] = [
    None, b"x", [], {}, [[]], "a" * 5000, "\0", "a\nb", "\ud800", endless(), [endless()], 10**400, 10**5000, -1,
    float("nan"), float("inf"), {1: 2}, {None: 1}, {"a" * 5000: 1}, {1, 2}, iter([1]), datetime.date(2020, 1, 1),
    Decimal("0.2"), Hostile(), [Hostile()], np.array([[1, 2]]), np.array([0.5]), np.datetime64("2020"),
    np.array(["2020"], "M8[ns]"), object(), range(10**30), 3 + 2j, "0-999999," * 600, {str(i): i for i in range(300)},
]  # fmt: skip

PLACES = {
    "stores": ("stores",),
    "datasets": ("datasets",),
    "datasets[0]": ("datasets", 0),
    "datasets[0].strategy": ("datasets", 0, "strategy"),
    "datasets[0].layer": ("datasets", 0, "layer"),
    "datasets[0].normalize": ("datasets", 0, "normalize"),
    "datasets[1].targets": ("datasets", 1, "targets"),
    "datasets[1].targets.rank_by": ("datasets", 1, "targets", "rank_by"),
    "datasets[1].targets.top": ("datasets", 1, "targets", "top"),
    "datasets[1].targets.layers": ("datasets", 1, "targets", "layers"),
    "datasets[2].targets[0]": ("datasets", 2, "targets", 0),
    "normalize": ("normalize",),
    "split": ("split",),
    "split.test_size": ("split", "test_size"),
    "split.folds": ("split", "folds"),
    "stats_from": ("stats_from",),
    "drop_nonfinite": ("drop_nonfinite",),
    "problems": ("problems",),
    "min_active": ("min_active",),
    "output": ("output",),
}


@pytest.mark.parametrize("place", PLACES)
def test_absurd_values_in_python(place: str) -> None:
    """Each is refused, in short lines that say where; no store is needed to know."""
    *path, last = PLACES[place]
    for value in ABSURD:
        recipe: dict[str, Any] = {
            "stores": "nowhere",
            "split": {"test_size": 0.5, "folds": 2},
            "datasets": [
                {"strategy": "hidden-to-concept", "layer": 0},
                {"strategy": "hidden-to-feature", "targets": {"rank_by": "label", "top": 2}},
                {"strategy": "embedding-to-feature", "targets": [[0, 1]]},
            ],
        }
        parent: Any = recipe
        for key in path:
            parent = parent[key]
        parent[last] = value
        with pytest.raises(featurestore.FeatureStoreError) as caught:
            featurestore.sweep(recipe)
        for line in str(caught.value).splitlines():
            assert line.isprintable()
            assert len(line) < 400
            assert line.startswith((f"recipe: {place}", "recipe: stores: nowhere: no such store")), line


@pytest.mark.parametrize(
    "recipe", [value for value in ABSURD if not isinstance(value, dict)], ids=lambda value: type(value).__name__
)
def test_what_is_no_recipe(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(featurestore.RecipeError) as caught:
        featurestore.sweep(recipe)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_numbers_of_numpy_and_xarray(folder: Path) -> None:
    layers = xr.DataArray([0, 1])
    found = planned(
        {
            "stores": Path("care"),
            "split": {"test_size": np.float32(0.25), "folds": np.int64(3), "seed": 2**100},
            "min_active": np.int64(1),
            "datasets": [
                {"strategy": "hidden-to-concept", "layer": layers},
                {
                    "strategy": "hidden-to-concept",
                    "layers": [np.array([1, 0]), range(2)],
                    "normalize": np.array(["none"]),
                },
                {"strategy": "hidden-to-feature", "targets": np.array([[0, 4], [1, 2]]), "normalize": "none"},
            ],
        }
    )
    assert found == [
        ("hidden-to-concept", {"layer": 0}, "standardize"),
        ("hidden-to-concept", {"layer": 1}, "standardize"),
        ("hidden-to-concept", {"layers": (1, 0)}, "none"),
        ("hidden-to-concept", {"layers": (0, 1)}, "none"),
        ("hidden-to-feature", {"target_layer": 0, "target_feature": 4}, "none"),
        ("hidden-to-feature", {"target_layer": 1, "target_feature": 2}, "none"),
    ]


def test_paths_below_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the recipe, its store, its ranking, its statistics and its output, from another working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    featurestore.ingest(folder, tmp_path / "care.zarr")
    Path("ranked.csv").write_text("layer,feature_id,average_l0\n0,4,3\n")
    monkeypatch.chdir(folder)
    (tmp_path / "r.yaml").write_text(
        "stores: ~/care.zarr\noutput: ~/out\ndatasets: {strategy: hidden-to-feature, targets: {ranked: ~/ranked.csv}}\n"
    )
    done = featurestore.sweep("~/r.yaml")
    (swept,) = (tmp_path / "out" / "care").glob("*.npz")
    assert [planned.output for planned in done.datasets] == [swept]
    recipe = yaml.safe_load((tmp_path / "r.yaml").read_text())
    recipe |= {"stats_from": f"~/out/care/{swept.name}", "output": "~/again"}
    featurestore.sweep(recipe)
    (again,) = (tmp_path / "again" / "care").glob("*.npz")
    with np.load(swept) as first, np.load(again) as second:
        np.testing.assert_array_equal(first["X"], second["X"])
    assert not (folder / "~").exists()


def test_the_command_line_says_it_in_one_line_each(folder: Path, cli: Any) -> None:
    Path("bad.yaml").write_text(BAD["two faults"][0])
    result = cli("sweep", "bad.yaml")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 2
    assert cli("sweep").exit_code == 2


# ---- targets


def write_ranking(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def features(recipe: dict[str, Any], targets: Any) -> list[tuple[int, ...]]:
    recipe = recipe | {"datasets": {"strategy": "embedding-to-feature", "targets": targets}}
    return [tuple(arguments.values()) for _, arguments, _ in planned(recipe)]


def test_the_first_features_of_a_ranking(folder: Path) -> None:
    rows = [
        {"score": 0.9, "feature_id": 7, "average_l0": "9", "note": "a, b", "layer": 5},
        {"score": 0.8, "feature_id": 2, "average_l0": "3.0", "note": "", "layer": 0},
        {"score": 0.8, "feature_id": 2, "average_l0": "3", "note": "again", "layer": 0},
        {"score": 0.7, "feature_id": 1, "average_l0": "2", "note": "ü", "layer": 5},
    ]
    path = str(write_ranking(folder / "ranked.csv", rows))
    expected = [(5, 7, 9), (0, 2), (5, 1, 2)]
    assert features({"stores": "care"}, {"ranked": path, "top": 2}) == expected[:2]
    assert features({"stores": "care"}, {"ranked": path}) == expected
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"feature_id": "x"}, r"ranked.csv:2: feature_id: expected an integer, found 'x'"),
        ({"layer": ""}, r"ranked.csv:2: layer: expected an integer, found ''"),
        ({"layer": "1.5"}, r"ranked.csv:2: layer: expected an integer, found '1.5'"),
        *(
            ({"layer": text}, r"ranked.csv:2: layer: expected an integer, found")
            for text in ("nan", "inf", "0x5", "1_0")
        ),
        ({"layer": 4}, "has no SAE of layer 4"),
        ({"average_l0": 4}, r"no SAE of average L0 4: choose from \[2, 9\]"),
        ({"feature_id": 10}, "has no feature 10"),
    ]
    for changes, message in wrong:
        write_ranking(folder / "ranked.csv", [rows[0] | changes, *rows[1:]])
        with pytest.raises(featurestore.RecipeError, match=message):
            features({"stores": "care"}, {"ranked": path, "top": 2})
    write_ranking(folder / "ranked.csv", [{"layer": 1, "feature": 2}])
    with pytest.raises(
        featurestore.RecipeError, match="expected the columns feature_id, average_l0, found layer, feature"
    ):
        features({"stores": "care"}, {"ranked": path})
    Path(path).write_text("\ufeff layer , feature_id, average_l0\r\n5.0, 7.0, 9.0\r\n,,\r\n\r\n0,2e0,3.\r\n", "utf-8")
    assert features({"stores": "care"}, {"ranked": path}) == [(5, 7, 9), (0, 2)]
    for content, message in (
        ("layer;feature_id;average_l0\n5;7;9\n", "found one column 'layer;feature_id;average_l0'; separate the cells"),
        ("layer,layer,feature_id,average_l0\n5,5,7,9\n", "the column layer is there twice"),
        ("layer,feature_id,average_l0\n5,7,9,x\n", "ranked.csv:2: found 4 cells, expected 3"),
        ("layer,feature_id,average_l0\n", "expected at least 1 features, found 0"),
        ("", "expected the columns layer, feature_id, average_l0, found none"),
    ):
        Path(path).write_text(content)
        with pytest.raises(featurestore.RecipeError, match=message):
            features({"stores": "care"}, {"ranked": path})
    write_ranking(folder / "ranked.csv", rows)
    with pytest.raises(featurestore.RecipeError, match="expected at least 4 features, found 3"):
        features({"stores": "care"}, {"ranked": path, "top": 4})


@pytest.mark.parametrize("by", ["label", "density"])
@pytest.mark.parametrize("split", [None, {"test_size": 0.3}])
def test_a_ranking_made_here(folder: Path, by: str, split: Any) -> None:
    """Compared with numpy's correlation over the training rows alone."""
    sentences = [
        sentence_arrays(i, tokens=2 + (i * 5) % 6, layers=[0, 1, 5, 5], average_l0s=[3, 3, 2, 9]) for i in range(90)
    ]
    activations = np.stack([s["activations"][:, -1] for s in sentences]).astype(np.float64)
    labels = np.array([int(s["concept_strength_label"]) for s in sentences])
    recipe: dict[str, Any] = {"stores": "care"}
    featurestore.ingest(folder)
    if split:
        recipe |= {"split": split}
        dataset = featurestore.build("stores/care.zarr", "hidden-to-concept", layer=0, **split)
        train = dataset.metadata["split"] == "train"
        assert 0 < train.sum() < 90
        activations, labels = activations[train], labels[train]
    configurations = [(0, 3), (1, 3), (5, 2), (5, 9)]
    score: dict[tuple[int, ...], float] = {}
    for position, (layer, average_l0) in enumerate(configurations):
        for feature in range(10):
            column = activations[:, position, feature]
            share = np.count_nonzero(column) / len(column)
            score[layer, feature, average_l0] = share if by == "density" else abs(np.corrcoef(column, labels)[0, 1])
    found = features(recipe, {"rank_by": by, "top": 12})
    best = sorted(score.values(), reverse=True)[:12]
    scores = [score[(*target, 3)[:3]] for target in found]  # a layer's only SAE is not named
    np.testing.assert_allclose(scores, best, rtol=1e-9)
    assert all(layer == 5 for layer, *_ in features(recipe, {"rank_by": by, "top": 5, "layers": "5"}))
    assert {layer for layer, *_ in features(recipe, {"rank_by": by, "top": 20, "layers": [0, 1]})} == {0, 1}


def test_a_ranking_leaves_out_what_is_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(40):
        activations = sentence_arrays(index)["activations"]
        activations[:, -1, 4] = 2.7
        changes: dict[str, Any] = {"activations": activations}
        if index == 7:  # not finite elsewhere, which must not hide what the other sentences say
            activations[0, 0, 0] = np.nan
        write_sentence(tmp_path / "in", index, changes=changes)
    featurestore.ingest("in", "s.zarr")
    found = features({"stores": "s.zarr", "min_active": 1}, {"rank_by": "label", "top": 27})
    assert len(found) == 27
    assert all(feature != 4 for _, feature in found)
    for index in range(40):
        write_sentence(tmp_path / "one", index, changes={"concept_strength_label": np.array(2)})
    featurestore.ingest("one", "one.zarr")
    with pytest.raises(featurestore.RecipeError, match=r"recipe: datasets.targets: has but one label"):
        features({"stores": "one.zarr"}, {"rank_by": "label", "top": 1})


# ---- the schema for editors


def test_the_schema_beside_the_examples_is_current(cli: Any) -> None:
    assert (SAMPLE.parent / "recipe.schema.json").read_text() == cli("sweep", "--schema").output


def test_the_schema_accepts_the_examples_and_refuses_what_the_reader_refuses() -> None:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    validator.check_schema(recipe_schema())
    recipes = sorted(SAMPLE.parent.glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
        validator.validate(yaml.safe_load(path.read_text()))
    for fault in ("a missing key", "an unknown key", "no strategy", "an unknown strategy", "a foreign option",
                  "a bad layer", "a fraction", "no values", "a bad method", "a bad choice", "a bad flag", "a bad count",
                  "a bad split", "an unknown split key", "a path that is none", "targets that are none"):  # fmt: skip
        content = BAD[fault][0]
        assert not validator.is_valid(yaml.safe_load(content)), fault
