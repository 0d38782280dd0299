"""The options of the four questions on the command line: flags, help, names of files, listings, refusals."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import featurestore
from featurestore.schema import CONTROLS
from tests.refusals import accepted, contents
from tests.sentences import write_folder

Cli = Callable[..., Result]
N = 30
CONCEPT = ("hidden-to-concept", {"layer": 1})
LAYERS = ("hidden-to-concept", {"layers": "5,0"})
FEATURE = ("hidden-to-feature", {"target_layer": 1, "target_feature": 3})


@pytest.fixture
def store(cli: Cli, tmp_path: Path) -> str:
    """30 sentences of 2 to 7 tokens in a store, the first token special, and labels in a file."""
    write_folder(tmp_path / "trait", N)
    featurestore.ingest(tmp_path / "trait", "stores/trait.zarr", special_first=1)
    write_labels("labels.csv", [i % 2 for i in range(N)])
    return "stores/trait.zarr"


def write_labels(path: str, labels: list[Any], column: str = "truth") -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([["sentence_index", column], *enumerate(labels)])


def flags(options: dict[str, Any]) -> list[str]:
    """Write options as a user would."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [flag] if one is True else [flag, str(one)]
    return words


def build(cli: Cli, store: str, kind: tuple[str, dict[str, Any]], **options: Any) -> Result:
    return cli("build", "--strategy", kind[0], "--input", store, *flags(kind[1] | options))


GIVEN: list[tuple[Any, dict[str, Any]]] = [
    (CONCEPT, {"where": ["label=0,1"]}),
    (CONCEPT, {"where": ["label=0-2", "n_tokens=3-6", "has_label=true"]}),
    (CONCEPT, {"where": ["source=sentence_000003.npz"]}),
    (CONCEPT, {"tokens": "last-3", "drop_short": True}),
    (CONCEPT, {"tokens": "mean"}),
    (CONCEPT, {"tokens": "mean", "special": True}),
    (CONCEPT, {"tokens": "all", "folds": 3}),
    (LAYERS, {"combine": "difference"}),
    (LAYERS, {"combine": "sum", "tokens": "max"}),
    (FEATURE, {"target_tokens": "max"}),
    (FEATURE, {"tokens": "all", "target_tokens": "final", "normalize": "minmax"}),
    (FEATURE, {"tokens": "first-1", "target_tokens": "first-1"}),
    (CONCEPT, {"labels_from": "labels.csv:truth", "test_size": 0.3, "seed": 2}),
    (CONCEPT, {"labels_from": "labels.csv:truth", "classes": "1=0,0=1"}),
    (CONCEPT, {"classes": "0=0,3=1"}),
    (CONCEPT, {"control": "shuffled-labels", "seed": 5}),
    (CONCEPT, {"control": "random-columns"}),
    (CONCEPT, {"control": "text", "test_size": 0.3}),
]


@pytest.mark.parametrize(
    ("kind", "options"), GIVEN, ids=lambda value: "+".join(value) if isinstance(value, dict) else ""
)
def test_a_flag_is_the_option_in_python(cli: Cli, store: str, kind: Any, options: dict[str, Any]) -> None:
    accepted(build(cli, store, kind, **options, output="a.npz"))
    featurestore.build(store, kind[0], **kind[1], **options, output="b.npz")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_names_say_what_was_chosen(cli: Cli, store: str) -> None:
    """Each choice has its own file, whose name has the words of its options."""
    names = []
    for kind, options in GIVEN:
        (path,) = re.findall(r"(\S+\.npz): X", accepted(build(cli, store, kind, **options)))
        assert featurestore.load_dataset(path)
        names.append(Path(path).name.removeprefix("hidden-to-").removesuffix(".npz"))
    assert len(set(names)) == len(GIVEN)
    assert {
        "concept_layer-1_where-label=0-1_standardize",
        "concept_layer-1_where-has_label=true-and-label=0-2-and-n_tokens=3-6_standardize",
        "concept_layer-1_drop-short_tokens-last-3_standardize",
        "concept_layer-1_tokens-mean_special_standardize",
        "concept_layers-5,0_tokens-max_combine-sum_standardize",
        "feature_target-layer-1_target-feature-3_tokens-all_target-tokens-final_minmax",
        "concept_layer-1_labels-from-truth_classes-0=1,1=0_standardize",
        "concept_layer-1_labels-from-truth_standardize_test-size-0.3_seed-2",
        "concept_layer-1_control-shuffled-labels_seed-5_standardize",
        "concept_layer-1_control-text_standardize_test-size-0.3_seed-0",
    } <= set(names)


def test_long_choices_have_short_names(cli: Cli, store: str) -> None:
    odd, other = (",".join(map(str, range(start, 400, 2))) for start in (1, 3))
    for where in (odd, other):
        accepted(build(cli, store, CONCEPT, where=[f"sentence={where}"]))
    text = 'text=w1.0 w1.1 "/\\\n' + "x" * 300
    assert build(cli, store, CONCEPT, where=[text]).exit_code == 1  # as there is no such sentence
    names = [path.name for path in Path("generated_datasets").rglob("*.npz")]
    assert len(names) == 2
    assert all(len(name.encode()) < 220 for name in names)


def test_the_same_said_otherwise_is_the_same_file(cli: Cli, store: str) -> None:
    alike: list[list[dict[str, Any]]] = [
        [{"where": ["label=0,1", "n_tokens=2-5"]}, {"where": ["n_tokens=2-5", "label=1,0", "label=0-1"]}],
        [{"classes": "0=0,3=1"}, {"classes": " 3 = 1 , 0=0"}],
        [{}, {"special": True, "drop_short": True}, {"tokens": "final", "combine": "concat"}],
    ]
    for same in alike:
        outputs = {accepted(build(cli, store, CONCEPT, **options)).splitlines()[-1] for options in same}
        assert len(outputs) == 1


def test_every_where_must_be_met(cli: Cli, store: str) -> None:
    accepted(build(cli, store, CONCEPT, where=["label=0,1", "n_tokens=4-7"], output="a.npz"))
    expected = [i for i in range(N) if i % 4 < 2 and 2 + (i * 5) % 6 >= 4]
    assert featurestore.load_dataset("a.npz").metadata["sentence_indices"].tolist() == expected


# ---- help


def sections(text: str) -> dict[str, list[str]]:
    """The flags below each heading of a help text."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            found[heading := line[:-1]] = []
        elif flag := re.match(r"  (?:-\w, )?(--[a-z0-9-]+)", line):
            found[heading].append(flag[1])
    return found


def test_help_follows_the_questions(cli: Cli) -> None:
    found = sections(accepted(cli("build", "--help")))
    assert [*found][:5] == ["Options", "Which rows", "What is X", "What is y", "Which side"]
    assert found["Which rows"] == ["--where", "--drop-short", "--drop-nonfinite"]
    assert found["What is X"] == ["--tokens", "--special", "--combine", "--normalize", "--stats-from", "--reduce"]
    assert found["What is y"] == ["--target-tokens", "--y", "--labels-from", "--classes", "--control"]
    assert found["Which side"] == ["--test-size", "--test-store", "--folds", "--seed", "--group-by"]
    listed = [flag for flags in [*found.values()][:5] for flag in flags]
    assert len(listed) == len(set(listed))
    assert "--control" in sections(accepted(cli("datasets", "--help")))["Options"]


# ---- refusals

TOKENS = "expected final, mean, max, all, last-K or first-K, such as last-3, found"
USAGE: list[tuple[Any, dict[str, Any], str]] = [
    *((CONCEPT, {"tokens": text}, f"--tokens: {TOKENS} {text!r}") for text in
      ("", "last-0", "last-\u0663", "last-1000000", "last-01", "LAST-1", " mean", "mean\n", "all,max", "last--1")),
    (FEATURE, {"target_tokens": "last-x"}, f"--target-tokens: {TOKENS} 'last-x'"),
    (FEATURE, {"target_tokens": "all"}, "--target-tokens 'all': expected --tokens 'all' with it, found"),
    (CONCEPT, {"target_tokens": "max"}, "--target-tokens 'max': expected y with the dim token, found label of "),
    (CONCEPT, {"seed": 1}, "--seed and --group-by need --test-size, --folds or --test-store"),
    (CONCEPT, {"seed": -1, "control": "text"}, "--seed: expected 0 or more, found -1"),
    (CONCEPT, {"seed": "x"}, "'x' is not a valid integer"),
    (CONCEPT, {"where": [""]}, "--where: expected COORDINATE=VALUES, such as label=0,3 or "),
    (CONCEPT, {"where": ["label=0", "lable=3"]}, "--where: expected a coordinate of sentences (has_label, label, "),
    (CONCEPT, {"where": ["label="]}, "--where: label: expected numbers and ranges such as 0-2,10,15-17, found ''"),
    (CONCEPT, {"where": ["label=\u0663"]}, "--where: label: expected numbers and ranges"),
    (CONCEPT, {"where": ["has_label=yes"]}, "--where: has_label: expected true or false, found 'yes'"),
    (CONCEPT, {"classes": ""}, "--classes: expected labels and whole numbers from 0, such as 0=0,3=1, found ''"),
    (CONCEPT, {"classes": "0=0,0=1"}, "--classes: the label 0 is named twice; name each once"),
    (CONCEPT, {"classes": "0=-1"}, "--classes: expected labels and whole numbers from 0"),
    (CONCEPT, {"labels_from": "labels.csv"}, "--labels-from: expected FILE.csv:COLUMN, found 'labels.csv'"),
    (CONCEPT, {"labels_from": "labels.csv:"}, "--labels-from: expected FILE.csv:COLUMN, found 'labels.csv:'"),
    (CONCEPT, {"labels_from": "none.csv:truth"}, "--labels-from: none.csv: cannot be read"),
    (CONCEPT, {"labels_from": "labels.csv:no"}, "--labels-from: labels.csv: expected the column no, found sent"),
    (CONCEPT, {"labels_from": "few.csv:truth"}, "--labels-from: few.csv: 27 of 30 sentences are not in it"),
    (CONCEPT, {"combine": "mean"}, "--combine 'mean': expected X of two layers or more, found 1; name as"),
    (("hidden-to-concept", {"layers": "0,1,5"}), {"combine": "difference"}, "X of exactly two layers, found 3"),
    (CONCEPT, {"combine": "product"}, "'product' is not one of 'concat', 'mean', 'difference', 'sum'"),
    (CONCEPT, {"control": "chance"}, "'chance' is not one of 'shuffled-labels', 'random-columns', 'text'"),
    (("activation-to-concept", {"layer": 1, "densest": 3}), {"tokens": "last-1"}, "--densest: expected one column a"),
]  # fmt: skip

BAD: list[tuple[Any, dict[str, Any], str]] = [
    (CONCEPT, {"tokens": "last-999999"}, "--tokens 'last-999999': expected 999999 tokens or more, 30 of 30"),
    (CONCEPT, {"tokens": "last-2"}, "(sentence_index 0, 6, 12, 18, 24); leave them out: --drop-short"),
    (CONCEPT, {"tokens": "last-7", "drop_short": True}, "is left of those that have enough tokens; choose others"),
    (FEATURE, {"target_tokens": "first-4", "where": ["n_tokens=2-4"]}, "'first-4': expected 4 tokens or more, 15"),
    (CONCEPT, {"where": ["label=0", "label=1"]}, "is left of those that have label=0 and label=1; choose others"),
    (CONCEPT, {"where": ["text="]}, "no sentence is left of those that have text=; choose others"),
    (CONCEPT, {"where": ["text=\x1b[31m" + "x" * 500]}, "no sentence is left of those that have text=\\x1b[31mxxx"),
    (CONCEPT, {"classes": "9=1"}, "--classes: no sentence has the label 9: choose from 0, 1, 2, 3"),
    (CONCEPT, {"labels_from": "labels.csv:truth", "classes": "2=1"}, "no sentence has the label 2: choose from 0, 1"),
    (CONCEPT, {"where": ["label=1"], "classes": "0=0"}, "have label=1 and a label of the classes 0=0; choose"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "kind", "options", "message"),
    [(2, *one) for one in USAGE] + [(1, *one) for one in BAD],
    ids=lambda value: ",".join(map(repr, value.values())) if isinstance(value, dict) else "",
)
def test_refusals(cli: Cli, store: str, code: int, kind: Any, options: dict[str, Any], message: str) -> None:
    """One line, in the words of the command line, and nothing half-written."""
    write_labels("few.csv", [0, 1, 0])
    before = contents(Path())
    result = build(cli, store, kind, **options)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    error = result.output.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert len(error) < 400
    assert error.isprintable()
    assert "=:" not in error  # as in Python
    assert contents(Path()) == before


# ---- listings


def listed(cli: Cli, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(accepted(cli("datasets", "--json", *options)))
    return found


def test_listings_say_and_filter_by_control(cli: Cli, store: str) -> None:
    accepted(build(cli, store, CONCEPT, tokens="mean"))
    for control in CONTROLS:
        accepted(build(cli, store, CONCEPT, control=control))
    for control in CONTROLS:
        (entry,) = listed(cli, "--control", control)
        assert [entry["control"], entry["tokens"], entry["state"]] == [control, "final", "current"]
    (real,) = listed(cli, "--control", "none")
    assert [real["control"], real["tokens"]] == ["", "mean"]
    assert len(listed(cli)) == 1 + len(CONTROLS)
    assert "is not one of" in cli("datasets", "--control", "x").output
    table = accepted(cli("datasets"))
    assert {"tokens", "control"} <= set(table.splitlines()[0].split())
    rows = [*csv.DictReader(accepted(cli("datasets", "--csv")).splitlines())]
    assert sorted(row["control"] for row in rows) == sorted(["", *CONTROLS])


def test_labels_that_changed_or_are_gone(cli: Cli, store: str) -> None:
    accepted(build(cli, store, CONCEPT))
    accepted(build(cli, store, CONCEPT, labels_from="labels.csv:truth"))
    accepted(build(cli, store, CONCEPT, labels_from="labels.csv:truth", control="shuffled-labels", seed=2))
    before = Path("labels.csv").read_bytes()
    assert listed(cli, "--stale") == []
    for reason in ("has changed", "is gone"):
        if reason == "has changed":
            write_labels("labels.csv", [i % 3 for i in range(N)])
        else:
            Path("labels.csv").unlink()
        stale = listed(cli, "--stale")
        assert len(stale) == 2
        assert all(re.fullmatch(rf"labels: \S*labels.csv {reason}", entry["reason"]) for entry in stale)
        assert len(listed(cli, "--current")) == 1
    Path("labels.csv").write_bytes(before)
    assert listed(cli, "--stale") == []
    write_labels("labels.csv", [i % 3 for i in range(N)])
    refused = build(cli, store, CONCEPT, labels_from="labels.csv:truth")
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output
    accepted(build(cli, store, CONCEPT, labels_from="labels.csv:truth", overwrite=True))
    assert len(listed(cli, "--stale")) == 1


def test_what_sweeps_do_with_other_labels(cli: Cli, store: str) -> None:
    """What has other labels in the same file is built again; another file of the same column is refused."""
    Path("r.yaml").write_text(
        "stores: stores/trait.zarr\nlabels_from: labels.csv:truth\ndatasets: {strategy: hidden-to-concept, layer: 1}\n"
    )
    assert "built 1 dataset" in accepted(cli("sweep", "r.yaml"))
    assert "1 up to date" in accepted(cli("sweep", "r.yaml"))
    write_labels("labels.csv", [(i + 1) % 2 for i in range(N)])
    assert "built 1 dataset" in accepted(cli("sweep", "r.yaml"))
    (path,) = Path("generated_datasets").rglob("*.npz")
    np.testing.assert_array_equal(featurestore.load_dataset(path).y, [(i + 1) % 2 for i in range(N)])
    write_labels("others.csv", [i % 2 for i in range(N)])
    Path("r.yaml").write_text(Path("r.yaml").read_text().replace("labels.csv", "others.csv"))
    result = cli("sweep", "r.yaml")
    assert result.exit_code == 1
    assert "1 outputs exist with other content" in result.output


def test_random_choices_have_names_of_their_own(store: str) -> None:
    """Two choices that differ never have one name."""
    from featurestore.datasets.plans import Plan
    from featurestore.questions.choices import Choices

    given: list[dict[str, Any]] = [
        {}, {"where": "label=0"}, {"where": "label=0,1"}, {"where": ["label=0", "n_tokens=3"]}, {"where": "text=a b"},
        {"where": "text=a-b"}, {"where": "text=a/b"}, {"where": {"text": ["a", "b"]}}, {"where": "text=a"},
        {"where": ["text=a", "text=b"]}, {"where": "text=a-and-text=b"}, {"where": 'text=["a", "b"]'},
        {"tokens": "mean"}, {"target_tokens": "mean"}, {"tokens": "mean", "target_tokens": "mean"},
        {"tokens": "mean", "special": True}, {"tokens": "mean", "drop_short": True}, {"combine": "mean"},
        {"labels_from": "x.csv:a"}, {"labels_from": "x.csv:b"}, {"labels_from": "x.csv:a b"},
        {"labels_from": "x.csv:a/b"},
        {"classes": "0=0"}, {"classes": "0=0,1=1"}, {"classes": '"0=0,1"=1'}, {"classes": "a b=0"},
        {"classes": "a-b=0"},
        *({"control": control} for control in CONTROLS),
    ]  # fmt: skip
    names = [Plan.of(*CONCEPT, choices=Choices.of(one)).file_name for one in given]
    for (one, first), (other, second) in combinations(zip(given, names, strict=True), 2):
        assert first.lower() != second.lower(), (one, other)
