"""Strategies of one's own: from files, modules and packages; their options, their code, and what went stale."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import jsonschema
import numpy as np
import pytest

import featurestore
from featurestore import strategies
from featurestore.cli import commands
from featurestore.datasets.plans import Plan, split_options
from featurestore.datasets.view import StoreView
from featurestore.ranges import Numbers
from featurestore.recipes.json_schema import recipe_schema
from featurestore.strategies import plugins, registry
from featurestore.strategies.registry import Selection
from tests.sentences import SAMPLE, sentence_arrays, write_folder, write_sentence

N = 40


@pytest.fixture(autouse=True)
def _only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Strategies that a test registers, and modules that it imports, are gone afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("featurestore_plugin_", "someones")):
            del sys.modules[name]


@pytest.fixture
def store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 sentences of 2 to 7 tokens, in the working folder's ``stores/care.zarr``."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "care", N)
    featurestore.ingest("care")
    return Path("stores/care.zarr")


HEAD = """\
from typing import Annotated
import xarray as xr
from featurestore import Selection, strategy
from featurestore.ranges import Numbers
"""

MEAN = (
    HEAD
    + """
@strategy("mean-to-concept")
def mean(ds, *, layer: Annotated[int, "Layer of X."], shift: Annotated[float, "Added to X."] = 0.0) -> Selection:
    \"\"\"Predict the label from the mean over tokens.\"\"\"
    return Selection(X=ds["hidden_states"].sel(layer=layer).astype("f4").mean("token") + shift, y=ds["label"])
"""
)


def plugin(content: str = MEAN, name: str = "mine.py") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def some(name: str, options: str = "n: Annotated[int, 'N.'] = 0") -> str:
    """Write a strategy."""
    body = 'Selection(X=ds["n_tokens"].astype("f4"), y=ds["label"])'
    return f'{HEAD}\n\n@strategy("{name}")\ndef f(ds, *, {options}):\n    """Doc."""\n    return {body}\n'


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- where they come from


def test_a_file_builds_the_same_from_the_command_line_recipes_and_python(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    plugin()
    line = [
        "build",
        "--strategy",
        "mean-to-concept",
        "--layer",
        5,
        "--shift",
        2,
        "--input",
        store,
        "--normalize",
        "none",
    ]
    assert cli(*line, "--output", "a.npz").exit_code == 2  # nobody has heard of it
    for given in (["--plugin", "mine.py"], ["--plugin=./mine.py"]):
        result = cli(*line, *given, "--output", "a.npz")
        assert result.exit_code == 0, result.output
    recipe = {
        "plugins": "mine.py",
        "stores": str(store),
        "normalize": "none",
        "datasets": {"strategy": "mean-to-concept", "layer": 5, "shift": 2.0},
    }
    assert "mean-to-concept" not in featurestore.list_strategies()
    (planned,) = featurestore.sweep(recipe).datasets
    assert planned.output.read_bytes() == Path("a.npz").read_bytes()
    assert list(featurestore.load_plugin("mine.py")) == ["mean-to-concept"]
    dataset = featurestore.build(store, "mean-to-concept", layer=5, shift=2, normalize="none", output="b.npz")
    assert Path("b.npz").read_bytes() == Path("a.npz").read_bytes()
    sentences = [sentence_arrays(i, tokens=2 + (i * 5) % 6) for i in range(N)]
    expected = [s["hidden_states"][2].astype("f4").mean(axis=0) + 2 for s in sentences]
    np.testing.assert_allclose(dataset.X, expected, rtol=1e-5, atol=1e-6)
    assert str(dataset.metadata["strategy_code"]) == sha(Path("mine.py"))


def test_sweep_and_datasets_and_the_schema_take_plugins(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    plugin()
    Path("r.yaml").write_text(f"stores: {store}\ndatasets: {{strategy: mean-to-concept, layer: all}}\n")
    assert "one of" in cli("sweep", "r.yaml").output
    assert cli("sweep", "r.yaml", "--plugin", "mine.py").exit_code == 0
    assert cli("datasets", "--strategy", "mean-to-concept").exit_code == 2
    result = cli("datasets", "--plugin", "mine.py", "--strategy", "mean-to-concept", "--json")
    assert [(entry["layers"], entry["state"]) for entry in json.loads(result.stdout)] == [
        ([layer], "current") for layer in (0, 1, 5)
    ]
    schema = json.loads(cli("sweep", "--plugin", "mine.py", "--schema").stdout)
    entry = {"strategy": "mean-to-concept", "layer": "all", "shift": [0.5, 1]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"plugins": ["mine.py"], "stores": "s", "datasets": entry})
    assert not validator.is_valid({"stores": "s", "datasets": entry | {"layers": "0-1"}})
    assert "mean-to-concept" not in cli("sweep", "--schema").output


def test_a_module_and_its_submodules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    plugin("from someones import part", str(tmp_path / "someones/__init__.py"))
    part = plugin(some("of-a-part"), str(tmp_path / "someones/part.py"))
    for _ in range(2):  # the second finds it imported
        assert "of-a-part" in cli("build", "--plugin", "someones", "--help").output
    assert "of-a-part" not in featurestore.list_strategies()
    found = featurestore.load_plugin("someones")
    assert {name: strategy.code for name, strategy in found.items()} == {"of-a-part": sha(part)}
    assert featurestore.load_plugin("someones.part").keys() == found.keys()


def announce(folder: Path, **points: str) -> None:
    info = folder / "someones-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[featurestore.strategies]", *lines]))


def test_packages_announce_strategies_and_a_broken_one_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in (
        ("good", some("announced")), ("raises", some("half") + "1 / 0"), ("leaves", "raise SystemExit(3)"),
        ("clashes", some("hidden-to-concept")), ("no_python", "x = ("),
    ):  # fmt: skip
        plugin(content, str(tmp_path / f"someones_{name}.py"))
    bad = ("raises", "leaves", "clashes", "no_python", "is_not_there")
    announce(tmp_path, a="someones_good", **{f"b_{name}": f"someones_{name}:thing" for name in bad})
    plugins._announced.cache_clear()
    result = cli("build", "--help")
    assert result.exit_code == 0
    assert "announced:" in result.output
    warnings = [line for line in result.output.splitlines() if "is broken" in line]
    assert [line.split()[3] for line in warnings] == sorted(f"b_{name}" for name in bad)
    assert "is broken" not in cli("build", "--strategy", "announced", "--help").output  # said once
    known = featurestore.list_strategies()
    assert known["announced"].code == sha(tmp_path / "someones_good.py")
    assert "half" not in known
    plugins._announced.cache_clear()


def test_two_files_of_one_name_and_one_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = plugin(some("one"), "a/mine.py"), plugin(some("two"), "b/mine.py")
    first, second = featurestore.load_plugin(one), featurestore.load_plugin(two)
    modules = {strategy.select.__module__ for strategy in (first["one"], second["two"])}
    assert len(modules) == 2
    assert modules <= sys.modules.keys()
    assert all(name.startswith("featurestore_plugin_mine_") for name in modules)
    assert featurestore.load_plugin(f"{tmp_path}/a/../a/mine.py")["one"] is first["one"]


def test_a_file_that_has_changed_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = featurestore.load_plugin(plugin(some("one")))["one"]
    featurestore.load_plugin(plugin(some("other")))
    assert "one" not in featurestore.list_strategies()
    after = featurestore.load_plugin(plugin(some("one").replace("def f", "def g")))["one"]
    assert after.code not in ("", before.code)
    plugin(some("third") + "1 / 0")
    with pytest.raises(ZeroDivisionError):
        featurestore.load_plugin("mine.py")
    assert featurestore.list_strategies()["one"] is after
    assert "third" not in featurestore.list_strategies()


BAD: dict[str, tuple[str | bytes | None, int, str]] = {
    "no file": (None, 2, "plugin mine.py: cannot be read (No such file or directory)"),
    "no Python": ("\n\nx = (\n", 2, "mine.py:3: is no Python ('(' was never closed)"),
    "binary": (b"PK\0\1", 2, "mine.py: is no Python"),
    "no strategy": ("x = 1", 2, "plugin mine.py: registers no strategy; decorate a function with @strategy(name)"),
    "a name taken": (
        some("hidden-to-concept"),
        1,
        "mine.py:7: strategy 'hidden-to-concept' is registered already, by featurestore; choose another name",
    ),
    "a taken option": (
        some("mine", "seed: Annotated[int, 'S.']"),
        1,
        "mine.py:7: strategy 'mine': seed: build and recipes have",
    ),
    "an exit": ("import sys\nsys.exit(5)", 1, "mine.py:2: stops with SystemExit while it is imported: 5"),
    "a file it lacks": ("open('nothing')", 1, "mine.py:1: stops with FileNotFoundError while it is imported"),
}


@pytest.mark.parametrize("fault", BAD)
def test_plugins_that_are_none(cli: Any, fault: str) -> None:
    content, code, message = BAD[fault]
    if content is not None:
        Path("mine.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    known = featurestore.list_strategies()
    for line in (["build", "--help"], ["sweep", "--schema"], ["datasets"]):
        result = cli(*line, "--plugin", "mine.py")
        assert result.exit_code == code
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    Path("r.yaml").write_text("stores: x\nplugins:\n  - mine.py\ndatasets: {strategy: embedding-to-concept}\n")
    assert f"r.yaml:3: plugins[0]: {message}".split("mine.py")[0] in cli("sweep", "r.yaml").output
    assert featurestore.list_strategies() == known


def test_other_things_are_no_plugins(cli: Any) -> None:
    os.mkfifo("fifo.py")
    for given in ("fifo.py", "/dev/null", "nowhere.strategies", ".", "", "os", "~nobody/x.py"):
        result = cli("datasets", "--plugin", given)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    for wrong in (None, 3, b"x.py", "a\0b"):
        with pytest.raises(featurestore.ParameterError, match=r"expected a path|holds a NUL"):
            featurestore.load_plugin(wrong)  # type: ignore[arg-type]


def test_a_bug_in_a_plugin_keeps_its_traceback(cli: Any) -> None:
    plugin("import math\n\nmath.nothing")
    for line in (["datasets", "--plugin", "mine.py"], ["build", "--plugin", "mine.py"]):
        error = cli(*line).exception
        assert isinstance(error, AttributeError)
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        assert trace is not None
        assert (Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno) == ("mine.py", 3)


# ---- the command line


def test_help_is_grouped_by_strategy(cli: Any) -> None:
    plugin()
    text = cli("build", "--plugin", "mine.py", "--help").output
    *common, side = text.split("\n\n")[2:7]
    sections = text.split("\n\n")[7:]
    headings = ["Options", "Which rows", "What is X", "What is y", "Which side"]
    assert [section.partition(":")[0] for section in (*common, side)] == headings
    assert "--seed" in side
    assert "--layer" not in "".join(common)
    assert [section.partition(":")[0] for section in sections] == [*featurestore.list_strategies(), "mean-to-concept"]
    words = " ".join(sections[-1].split())
    assert "Predict the label from the mean over tokens." in words
    assert "--layer INTEGER Layer of X. [required]" in words
    assert "--shift FLOAT Added to X. [default: 0.0]" in words
    mine, concept = (["--plugin", "mine.py", "--strategy=mean-to-concept"], ["--strategy", "hidden-to-concept"])
    for line, section in (
        (mine, sections[-1]),
        (mine[::-1][:1] + mine[:2], sections[-1]),
        (concept, sections[2] + "\n"),
    ):
        assert cli("build", *line, "-h").output.split("\n\n")[2:] == [*common, side, section]


def test_options_of_one_name_and_several_types(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    words = some(
        "words",
        "layer: Annotated[str, 'W.'], densest: Annotated[bool, 'A.'] = False, per_layer: Annotated[bool, 'B.'] = False",
    )
    plugin(
        words
        + some("tuples", "layer: Annotated[Numbers, 'Numbers.'], sure: Annotated[bool, 'Sure.'] = True").replace(
            "def f", "def g"
        )
    )

    def parameters(*line: object) -> Any:
        result = cli("build", "--plugin", "mine.py", "--input", store, "--output", "o.npz", "--overwrite", *line)
        assert result.exit_code == 0, result.output
        return json.loads(str(featurestore.load_dataset("o.npz").metadata["parameters"]))["parameters"]

    assert parameters("--strategy", "words", "--layer", "all", "--per-layer", "--densest") == {
        "layer": "all",
        "densest": True,
        "per_layer": True,
    }
    assert parameters("--strategy", "words", "--layer", "12") == {"layer": "12"}
    assert parameters("--strategy", "tuples", "--layer", "0-1", "--no-sure") == {"layer": [0, 1], "sure": False}
    assert parameters("--strategy", "tuples", "--layer", "5", "--sure") == {"layer": [5], "sure": True}
    assert parameters("--strategy", "hidden-to-concept", "--layer", "5") == {"layer": 5}
    line = ["build", "--plugin", "mine.py", "--input", store, "--strategy", "hidden-to-concept", "--layer", "1"]
    assert "'x' is not a valid integer" in cli(*line[:-1], "x").output
    assert "--sure: hidden-to-concept takes no such option" in cli(*line, "--sure").output
    assert "--densest: hidden-to-concept takes no such option" in cli(*line, "--densest", "3").output
    featurestore.load_plugin("mine.py")
    recipe = {"stores": str(store), "datasets": {"strategy": "words", "layer": ["all", "early"], "per_layer": False}}
    done = featurestore.sweep(recipe, dry_run=True)
    assert [planned.plan.arguments["layer"] for planned in done.datasets] == ["all", "early"]
    validator = jsonschema.Draft202012Validator(recipe_schema())
    validator.check_schema(recipe_schema())
    for name, layer, good in (
        ("words", "early", True),
        ("words", 3, False),
        ("tuples", "early", False),
        ("tuples", 3, True),
    ):
        entry = {"strategy": name, "layer": layer}
        assert validator.is_valid({"stores": "s", "datasets": entry}) == good, entry


# ---- what can be registered


def test_the_names_that_are_taken_are_those_of_build() -> None:
    flags = {
        flag.lstrip("-").replace("-", "_")
        for param in commands.build.params
        for flag in (*param.opts, *param.secondary_opts, param.name or "")
        if not (flag.startswith("-") and len(flag) == 2)
    }
    python = set(inspect.signature(featurestore.build).parameters) - {"options"}
    assert flags | python | {"help", "targets", "controls", "pool"} == set(registry.OWN)
    for name in registry.OWN:
        with pytest.raises(ValueError, match=f"strategy 'x': {name}: .*choose another name"):
            register(f"*, {name}: Annotated[int, 'Text.'] = 0")


def register(signature: str, name: str = "x", doc: str = "Doc.", **options: Any) -> registry.Strategy:
    namespace: dict[str, Any] = {"Annotated": Annotated, "Numbers": Numbers, "Optional": Optional, "np": np}
    exec(f"def f({'ds, ' if signature.startswith('*, ') else ''}{signature}):\n    {doc!r}", namespace)
    featurestore.strategy(name, **options)(namespace["f"])
    return featurestore.list_strategies()[name]


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("", "expected a function of a dataset"),
        ("*ds", "expected a function of a dataset"),
        ("ds, layer: Annotated[int, 'L.']", "layer must be keyword-only"),
        ("*, layer: int", "layer must be keyword-only and Annotated"),
        ("*, layer", "layer must be keyword-only and Annotated"),
        ("ds, **options", "options must be keyword-only"),
        ("*, layer: Annotated[int, None]", "layer must be keyword-only and Annotated"),
        ("*, layer: Annotated[int | str, 'L.']", "layer: expected int, float, str, bool or Numbers"),
        ("*, layer: Annotated[int | str | None, 'L.']", "layer: expected int, float, str, bool or Numbers"),
        ("*, layer: Annotated[list[int], 'L.']", r"found list\[int\]"),
        ("*, layer: Annotated[None, 'L.']", "layer: expected int"),
        ("*, layer: Annotated['Nothing', 'L.']", "annotations cannot be read"),
        ("*, a: Annotated[bool, 'A.'], no_a: Annotated[int, 'B.']", "two options would be --no-a"),
    ],
)
def test_what_cannot_be_an_option(signature: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^strategy 'x': {message}|^strategy 'x': .*{message}"):
        register(signature)
    assert "x" not in featurestore.list_strategies()


@pytest.mark.parametrize(
    "options",
    [{"name": ""}, {"name": "-x"}, {"name": "a\nb"}, {"name": 3}, {"doc": ""}, {"version": 0}, {"version": True},
     {"one_of": ("a", "b")}, {"one_of": "a"}],
)  # fmt: skip
def test_what_cannot_be_a_strategy(options: dict[str, Any]) -> None:
    with pytest.raises(featurestore.StrategyError, match=r"^strategy "):
        register("*, a: Annotated[int, 'A.'] = 0", **options)
    with pytest.raises(featurestore.StrategyError, match="expected a function"):
        featurestore.strategy("x")(print)  # type: ignore[arg-type]


def test_types_of_options() -> None:
    strategy = register(
        "*, a: Annotated[int | None, 'A.'] = None, b: Annotated[Optional[float], 'x', 'B.'] = None,"
        "c: Annotated[Numbers | None, 3, 'C.'] = None, d: Annotated[bool, 'D.'] = False, e: Annotated[str, 'E.'] = 'e'"
    )
    assert [(option.type, option.help) for option in strategy.options] == [
        (int, "A."), (float, "x"), (Numbers, "C."), (bool, "D."), (str, "E."),
    ]  # fmt: skip
    given = {"a": np.int64(3), "b": np.float32(0.5), "c": "0-1", "d": True, "e": "z"}
    assert strategy.arguments(given) == {"a": 3, "b": 0.5, "c": (0, 1), "d": True, "e": "z"}
    assert strategy.arguments({}) == {}
    for name, value in (("a", "x"), ("b", "1"), ("b", True), ("b", 10**400), ("d", 1), ("e", 3)):
        with pytest.raises(featurestore.ParameterError, match=f"^{name}=: expected"):
            strategy.arguments({name: value})


# ---- fingerprints


def test_fingerprints_of_built_in_strategies_are_what_they_were(tmp_path: Path) -> None:
    """Found before fingerprints saw code."""
    featurestore.ingest(SAMPLE, tmp_path / "dishonesty.zarr")
    view = StoreView(tmp_path / "dishonesty.zarr")
    for name, options, normalize, split, expected in (
        ("embedding-to-concept", {}, None, {}, "527408e6e632b3d09e4766f27b21c28f45ceb81dc7dbe9919c4635fd861c6c39"),
        ("hidden-to-feature", {"target_layer": 12, "target_feature": 123, "input_layer": 10}, None, {},
         "3da20b9eebed60d1378ef70d082d11794daa7605ce682e6714678f6c310f6a2f"),
        ("hidden-to-concept", {"layers": "0-2,10"}, "minmax", {"test_size": 0.25, "seed": 1},
         "e6fb83b314e8d46bbe06704baa20afbcf7259b793cd0b47bbf30bc8ebb2f6d30"),
        ("hidden-to-concept", {"layers": "0-2,10"}, "minmax", {"folds": 5, "group_by": "n_tokens"},
         "f1ca8f007d6eeee5292847d6c10ea6599effc08b08e5643dbb6f752e3546a455"),
        ("activation-to-concept", {"layer": 12, "densest": 10}, None, {},
         "c14298850e36ffa19c056db3807427f0f88df8d715a44317c85780b237777a9d"),
        ("hidden-to-features", {"target_layer": 12, "target_features": "5,7"}, None, {},
         "43a0aff66d98807d370222c6a89057356cc3c6428f5327e0bfbefb77f38223e7"),
    ):  # fmt: skip
        plan = Plan.of(name, options, normalize=normalize, split=split_options(**split))
        assert view.fingerprint(plan) == expected, name
    dataset = featurestore.build(tmp_path / "dishonesty.zarr", "embedding-to-concept", test_size=0.25, seed=1)
    assert {"strategy_code", "split_version"}.isdisjoint(dataset.metadata)


def test_a_split_whose_sides_have_moved_is_seen(tmp_path: Path) -> None:
    """Its earlier fingerprint is that of another test part, of 13 rows instead of 14."""
    store = tmp_path / "stores" / "dishonesty.zarr"
    featurestore.ingest(SAMPLE, store)
    metadata = featurestore.build(
        store, "hidden-to-concept", layers="0-2,10", normalize="minmax", output=tmp_path / "x.npz", test_size=0.25,
        group_by="n_tokens",
    ).metadata  # fmt: skip
    assert np.count_nonzero(metadata["split"] == "test") == 14
    assert str(metadata["split_version"]) == "2"
    assert str(metadata["fingerprint"]) != "5b4864010b1536f014fed7dbc8a803b18a7a1159e4cf3517126a3cfe524440b6"
    (entry,) = featurestore.list_datasets(tmp_path, tmp_path / "stores")
    assert entry.state == "current"


def test_a_raised_version_is_seen(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = featurestore.build(store, "embedding-to-concept").metadata
    featurestore.strategy("embedding-to-concept", version=2)(strategies.builtin.embedding_to_concept)
    second = featurestore.build(store, "embedding-to-concept").metadata
    assert str(first["parameters"]) == str(second["parameters"])
    assert str(first["fingerprint"]) != str(second["fingerprint"])
    assert str(second["strategy_code"]) == "version 2"


def test_code_of_a_function_is_its_source_wherever_it_is_indented(tmp_path: Path) -> None:
    def code(text: str, name: str = "cell.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        exec(compile(text, path, "exec"), {"strategy": featurestore.strategy, "__name__": name})
        return featurestore.list_strategies()["mine"].code

    text = '@strategy("mine")\ndef f(ds):\n    """Doc."""\n    return 1\n'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert code(text) == expected
    assert code("if True:\n" + textwrap.indent(text, "    ")) == expected
    assert code(f"# something above\nx = 3\n\n{text}\ny = 3\n") == expected
    assert code(text.replace("1", "2")) == hashlib.sha256(text.replace("1", "2").encode()).hexdigest()


def test_code_that_cannot_be_seen_is_warned_of_once(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = '@strategy("mine")\ndef f(ds):\n    """Doc."""\n    return Selection(X=ds.n_tokens * 1.0, y=ds.label)\n'
    exec(text, {"strategy": featurestore.strategy, "Selection": Selection})
    for _ in range(2):
        dataset = featurestore.build(store, "mine")
    assert [r.getMessage() for r in caplog.records if "fingerprints don't see" in r.getMessage()] == [
        "strategy mine: its source is not to be found, so fingerprints don't see changes"
    ]
    assert "strategy_code" not in dataset.metadata


def test_other_code_is_stale_and_is_built_again(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    plugin()
    recipe = {
        "plugins": ["mine.py"],
        "stores": str(store),
        "datasets": {"strategy": "mean-to-concept", "layer": [0, 1]},
    }
    (first, _) = featurestore.sweep(recipe).datasets
    before = first.output.read_bytes()
    plugin(MEAN.replace("+ shift", "- shift"))
    assert [item.state for item in featurestore.sweep(recipe, dry_run=True).datasets] == ["stale", "stale"]
    (entry, _) = featurestore.list_datasets("generated_datasets")
    assert (entry.state, entry.reason) == ("stale", "mean-to-concept has other code")
    assert "mean-to-concept has other code" in cli("datasets", "--plugin", "mine.py", "--stale").output
    assert [entry["state"] for entry in json.loads(cli("datasets", "--json").stdout)] == ["stale"] * 2
    done = featurestore.sweep(recipe)
    assert done.datasets[0].output == first.output
    assert first.output.read_bytes() != before
    assert {entry.state for entry in featurestore.list_datasets("generated_datasets")} == {"current"}
    assert {item.state for item in featurestore.sweep(recipe).datasets} == {"current"}


# ---- files that datasets depend on


def groups(parts: int) -> None:
    rows = [f"{i},{i % 20 // parts}" for i in range(N)]
    Path("groups.csv").write_text("\n".join(["sentence_index,topic", *rows]))


def ranking(*features: int) -> None:
    Path("ranked.csv").write_text("\n".join(["layer,feature_id,average_l0", *(f"5,{i},3" for i in features)]))


def states(folder: str = "generated_datasets", stores: str = "stores") -> dict[str, tuple[str, str]]:
    return {Path(e.file).name: (e.state, e.reason) for e in featurestore.list_datasets(folder, stores)}


def journal(folder: str = "generated_datasets/care") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "files.jsonl").read_text().splitlines()]


def test_files_of_groups(store: Path) -> None:
    build: Any = featurestore.build
    options: dict[str, Any] = {"layer": 0, "test_size": 0.3, "group_by": "groups.csv:topic"}
    groups(2)
    for _ in range(2):
        build(store, "hidden-to-concept", output="out/a.npz", **options)
    build(store, "hidden-to-concept", output="out/b.npz", layer=0, test_size=0.3, group_by="n_tokens")
    (line,) = journal("out")
    assert (line["dataset"], line["files"]) == ("a.npz", {"groups": ["../groups.csv", sha(Path("groups.csv"))]})
    assert line["fingerprint"] == str(featurestore.load_dataset("out/a.npz").metadata["fingerprint"])
    assert states("out") == {"a.npz": ("current", ""), "b.npz": ("current", "")}
    Path("study").mkdir()
    for part in ("out", "stores", "groups.csv"):  # a study that moves as a whole
        shutil.copytree(part, f"study/{part}") if Path(part).is_dir() else shutil.copy(part, "study")
    groups(4)
    assert states("out") == {"a.npz": ("stale", "groups: ../groups.csv has changed"), "b.npz": ("current", "")}
    Path("groups.csv").unlink()
    assert states("out")["a.npz"] == ("stale", "groups: ../groups.csv is gone")
    assert states("study/out", "study/stores")["a.npz"] == ("current", "")
    groups(4)
    build(
        store,
        "hidden-to-concept",
        output="out/a.npz",
        overwrite=True,
        **options | {"group_by": f"{Path('groups.csv').resolve()}:topic"},
    )
    assert states("out")["a.npz"] == ("current", "")
    assert Path(journal("out")[-1]["files"]["groups"][0]).is_absolute()


def test_files_of_rankings(store: Path) -> None:
    recipe = {
        "stores": str(store),
        "datasets": {"strategy": "embedding-to-feature", "targets": {"ranked": "ranked.csv", "top": 2}},
    }
    ranking(3, 4, 5)
    featurestore.sweep(recipe)
    before = {path: path.read_bytes() for path in Path("generated_datasets").rglob("*.npz")}
    explicit = featurestore.build(store, "embedding-to-feature", target_layer=5, target_feature=3, output="single.npz")
    assert Path("single.npz").read_bytes() in before.values()
    assert not Path("files.jsonl").exists()
    assert {file for line in journal() for file in line["files"]} == {"ranking"}
    ranking(3, 4, 6)  # the first two are the same
    assert set(states().values()) == {("stale", "ranking: ../../ranked.csv has changed")}
    assert {item.state for item in featurestore.sweep(recipe).datasets} == {"current"}
    assert {path: path.read_bytes() for path in Path("generated_datasets").rglob("*.npz")} == before
    assert set(states().values()) == {("current", "")}
    ranking(7, 3)
    featurestore.sweep(recipe)
    assert sorted(state for state, _ in states().values()) == ["current", "current", "stale"]
    assert len(explicit.y) == N
    lines = journal()
    featurestore.sweep(recipe)
    assert journal() == lines
    featurestore.sweep(recipe | {"datasets": {"strategy": "embedding-to-feature", "targets": [[5, 4]]}})
    assert set(states().values()) == {("current", "")}  # it has no ranking any more


def test_statistics_carry_their_state_over(store: Path) -> None:
    build: Any = featurestore.build
    folder = Path("generated_datasets")
    write_folder(Path("anger"), 30, seed=1)
    featurestore.ingest("anger")
    build(store, "hidden-to-concept", layer=0, output=folder / "first.npz")
    build(
        "stores/anger.zarr", "hidden-to-concept", layer=0, stats_from=folder / "first.npz", output=folder / "second.npz"
    )
    build(
        "stores/anger.zarr", "hidden-to-concept", layer=0, stats_from=folder / "second.npz", output=folder / "third.npz"
    )
    assert {state for state, _ in states().values()} == {"current"}
    shutil.move(folder / "first.npz", "elsewhere.npz")
    assert states()["second.npz"] == ("stale", "statistics: first.npz is gone")
    assert states()["third.npz"] == ("stale", "statistics: second.npz is stale")
    shutil.move("elsewhere.npz", folder / "moved.npz")  # it is among those that are listed
    assert {state for state, _ in states().values()} == {"current"}
    write_sentence(Path("care"), N, tokens=3)
    featurestore.ingest("care")
    assert states() == {
        "moved.npz": ("stale", "the store has other sentences"),
        "second.npz": ("stale", "statistics: moved.npz is stale"),
        "third.npz": ("stale", "statistics: second.npz is stale"),
    }
    (folder / "moved.npz").unlink()
    build(store, "hidden-to-concept", layer=0, output=folder / "first.npz")
    assert states()["second.npz"] == ("stale", "statistics: first.npz is another dataset now")
    assert states()["first.npz"] == ("current", "")


def test_a_journal_that_others_have_spoiled(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    build: Any = featurestore.build
    options: dict[str, Any] = {"layer": 0, "test_size": 0.3, "group_by": "groups.csv:topic"}
    groups(2)
    build(store, "hidden-to-concept", output="out/a.npz", **options)
    good = Path("out/files.jsonl").read_text()
    made_of = json.loads(good)["fingerprint"]
    os.mkfifo("fifo")
    spoiled = [
        "no JSON", "[" * 100_000, "3", "[1]", "{}", '{"dataset": 1, "fingerprint": 2, "files": 3}', "9" * 5000,
    ]  # fmt: skip
    wrong: list[Any] = [[], {"groups": 1}, {"groups": [1, 2]}, {"groups": ["x"]}, {"groups": ["a\0b", "c"]}]
    spoiled += [json.dumps({"dataset": "a.npz", "fingerprint": made_of, "files": files}) for files in wrong]
    Path("out/files.jsonl").write_bytes(good.encode() + b"\xff\0\n" + "\n".join(spoiled).encode())
    assert states("out")["a.npz"] == ("current", "")
    for path, reason in (
        ("../fifo", "is gone"),
        ("/dev/zero", "is gone"),
        ("..", "is gone"),
        ("\x1b[2J", r"\x1b[2J is gone"),
    ):
        line = {"dataset": "a.npz", "fingerprint": made_of, "files": {"groups": [path, "0" * 64]}}
        Path("out/files.jsonl").write_text(json.dumps(line))
        state, found = states("out")["a.npz"]
        assert state == "stale"
        assert found.endswith(reason)
        assert "\x1b" not in found
    build(store, "hidden-to-concept", output="out/a.npz", **options)  # after a line that was torn
    assert len(Path("out/files.jsonl").read_text().splitlines()) == 2
    assert states("out")["a.npz"] == ("current", "")
    Path("out/files.jsonl").unlink()
    Path("out/files.jsonl").mkdir()
    build(store, "hidden-to-concept", output="out/b.npz", **options)
    assert "files.jsonl: b.npz: cannot be written (Is a directory)" in caplog.text
    assert states("out")["b.npz"] == ("current", "")


# ---- listings


def test_listings_go_on_whatever_is_there(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    featurestore.build(store, "hidden-to-concept", layer=1, output="out/good.npz")
    nasty = '{"split": {"a\\u001b[2J": "\\u001b[2J"}}'
    hostile: dict[str, dict[str, Any]] = {
        "brackets": {"parameters": "[" * 100_000},
        "infinite": {"target_layer": np.inf},
        "infinity": {"target_feature": [np.inf]},
        "list": {"parameters": "[1]"},
        "number": {"parameters": "3"},
        "split": {"parameters": '{"split": [1]}'},
        "nan": {"parameters": '{"split": {"test_size": NaN}}'},
        "escapes": {"parameters": nasty},
        "nested": {"parameters": '{"split": {"seed": ' + "[" * 300 + "]" * 300 + ', "folds": 2}}'},
        "digits": {"parameters": '{"a":' + "9" * 5000 + "}"},
        "complex": {"input_layers": [1j]},
        "huge": {"input_layers": [1e308]},
        "bytes": {"strategy": b"x"},
        "several": {"strategy": ["a", "b"]},
        "words": {"input_layers": ["mean", "max"]},
    }
    tolerable: dict[str, dict[str, Any]] = {
        "nul": {"strategy": "a\0b\x1b[2J"},
        "store": {"store": "a\0b/../x"},
    }
    for name, meta in (hostile | tolerable).items():
        arrays: dict[str, Any] = {f"meta_{key}": np.array(value) for key, value in {"store": "x", **meta}.items()}
        np.savez(f"out/{name}.npz", X=np.zeros((2, 3), "f4"), y=np.zeros(2), norm_method=np.array("none"), **arrays)
    for form in ((), ("--json",), ("--csv",)):
        result = cli("datasets", "out", *form)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert f"left out {len(hostile)} NPZ files" in result.output
        assert all(f"{name}.npz" in result.stdout for name in ("good", *tolerable))
    assert {entry["state"] for entry in json.loads(cli("datasets", "out", "--json").stdout)} == {"current", "unknown"}


def test_statistics_that_have_changed_are_seen_although_there_are_such_elsewhere(store: Path) -> None:
    featurestore.build(store, "hidden-to-concept", layer=1, output="out/train.npz")
    featurestore.build(store, "hidden-to-concept", layer=1, output="out/copy.npz")
    featurestore.build(store, "hidden-to-concept", layer=1, stats_from="out/train.npz", output="out/new.npz")
    assert {entry.state for entry in featurestore.list_datasets("out")} == {"current"}
    minmax: dict[str, Any] = {"normalize": "minmax", "overwrite": True}
    featurestore.build(store, "hidden-to-concept", layer=1, output="out/train.npz", **minmax)
    found = {entry.file: entry.reason for entry in featurestore.list_datasets("out") if entry.state == "stale"}
    assert found == {"new.npz": "statistics: train.npz is another dataset now"}


def test_a_strategy_that_is_not_here_leaves_its_datasets_unknown(store: Path, cli: Any, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    build = ["build", "--plugin", "mine.py", "--strategy", "mine", "--input", store, "--output", "out/x.npz"]
    assert cli(*build).exit_code == 0
    assert "the code of mine is not known here; name its plugin" in cli("datasets", "out").stdout
    assert " current" in cli("datasets", "out", "--plugin", "mine.py").stdout
    Path("mine.py").write_text(OWN + "# another\n")
    assert "mine has other code" in cli("datasets", "out", "--plugin", "mine.py").stdout


OWN = """
from featurestore import Selection, strategy
from featurestore.strategies import final

@strategy("mine")
def mine(ds):
    "Predict the label."
    return Selection(X=final(ds["embeddings"]), y=ds["label"])
"""
