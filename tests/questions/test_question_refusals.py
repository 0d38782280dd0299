"""Options that are refused: one clear line each, in the words of whoever asked, and nothing half-written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import featurestore
from featurestore.strategies import final, registry
from featurestore.strategies.registry import Selection, strategy
from tests.questions.study import FEATURE, Options, Study
from tests.refusals import Cli, complaint, contents, refused


@pytest.fixture(scope="module", autouse=True)
def own() -> Iterator[None]:
    """Strategies that have chosen their tokens, or leave only some of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

        @strategy("has-chosen")
        def has_chosen(ds: xr.Dataset) -> Selection:
            """Predict the length from the final token."""
            return Selection(X=final(ds["embeddings"]), y=ds["n_tokens"])

        @strategy("leaves-some")
        def leaves_some(ds: xr.Dataset) -> Selection:
            """Predict the length from three tokens."""
            return Selection(X=ds["embeddings"].isel(token=slice(-3, None)), y=ds["n_tokens"])

        @strategy("leaves-some-in-y")
        def leaves_some_in_y(ds: xr.Dataset) -> Selection:
            """Predict a feature at three tokens."""
            y = ds["activations"].sel(layer=1).isel(feature=0, token=slice(-3, None))
            return Selection(X=ds["embeddings"], y=y)

        @strategy("of-two-widths")
        def of_two_widths(ds: xr.Dataset) -> Selection:
            """Predict the length from blocks that cannot be added up."""
            return Selection(X=[ds["embeddings"], ds["activations"].sel(layer=1)], y=ds["n_tokens"])

        yield


CONCEPT = ("hidden-to-concept", {"layer": 1})
PAIR = ("hidden-to-concept", {"layers": "0,5"})
REFUSED: list[tuple[tuple[str, Options], Options, Sequence[str]]] = [
    # rows
    (CONCEPT, {"tokens": "mean"}, ["sentence", "drop_short"]),
    (CONCEPT, {"tokens": "last-3"}, ["sentence", "drop_short", "3"]),
    (CONCEPT, {"tokens": "all"}, ["drop_short"]),
    (CONCEPT, {"tokens": "first-8", "special": True}, ["8"]),
    (CONCEPT, {"tokens": "first-8", "drop_short": True}, ["no sentence is left", "tokens"]),
    (FEATURE, {"target_tokens": "first-2"}, ["drop_short", "2"]),
    (CONCEPT, {"where": "label=9"}, ["no sentence is left", "label=9"]),
    (CONCEPT, {"where": ["n_tokens=2", "n_tokens=3"]}, ["no sentence is left"]),
    (CONCEPT, {"where": "sentence=5,14,23"}, []),
    (CONCEPT, {"where": "layer=1"}, ["where", "layer"]),
    (CONCEPT, {"where": "fragment=a"}, ["where", "fragment"]),
    (CONCEPT, {"where": "lable=1"}, ["where", "lable", "label"]),
    (CONCEPT, {"where": "label"}, ["where"]),
    (CONCEPT, {"where": "label=a"}, ["where", "label"]),
    (CONCEPT, {"where": "label=3-1"}, ["where", "backwards"]),
    (CONCEPT, {"where": ""}, ["where"]),
    # X
    *(
        (CONCEPT, {"tokens": text}, ["tokens", repr(text), "last-"])
        for text in ("last-0", "first-0", "last", "first", "first--1", "last-1.5", "last-x", "median", "", "Mean")
    ),
    (("hidden-to-concept", {"layer": 1}), {"combine": "difference"}, ["combine", "two"]),
    (("hidden-to-concept", {"layers": "0-1,5"}), {"combine": "difference"}, ["combine", "two"]),
    *((("embedding-to-concept", {}), {"combine": how}, ["combine", "two"]) for how in ("mean", "sum", "difference")),
    *((("of-two-widths", {}), {"combine": how}, ["combine", "6", "10"]) for how in ("mean", "sum", "difference")),
    (PAIR, {"combine": "product"}, ["combine", "product", "concat", "mean", "difference", "sum"]),
    (("activation-to-concept", {"layer": 1, "densest": 3}), {"tokens": "last-3", "drop_short": True}, ["densest"]),
    (("has-chosen", {}), {"tokens": "mean"}, ["tokens", "X"]),
    (("has-chosen", {}), {"tokens": "all"}, ["tokens", "X"]),
    (("leaves-some", {}), {}, ["leaves-some", "token"]),
    (("leaves-some", {}), {"tokens": "mean"}, ["leaves-some", "token"]),
    (("leaves-some-in-y", {}), {}, ["leaves-some-in-y", "token"]),
    # y
    (CONCEPT, {"target_tokens": "mean"}, ["target_tokens"]),
    (CONCEPT, {"target_tokens": "all", "tokens": "all"}, ["target_tokens"]),
    (FEATURE, {"target_tokens": "all"}, ["target_tokens", "tokens"]),
    (FEATURE, {"target_tokens": "median"}, ["target_tokens", "median"]),
    (FEATURE, {"target_tokens": "last-0"}, ["target_tokens", "last-0"]),
    (CONCEPT, {"classes": "0"}, ["classes"]),
    (CONCEPT, {"classes": "0=a"}, ["classes"]),
    (CONCEPT, {"classes": "0=1,0=2"}, ["classes", "0"]),
    (CONCEPT, {"classes": "7=0,8=1"}, ["classes"]),
    (CONCEPT, {"classes": "lie=0,truth=1"}, ["classes", "lie"]),
    (CONCEPT, {"labels_from": "nowhere.csv:x"}, ["nowhere.csv"]),
    (CONCEPT, {"labels_from": "nowhere.csv"}, ["labels_from"]),
    (CONCEPT, {"control": "shuffled"}, ["control", "shuffled-labels", "random-columns", "text"]),
    # side
    (CONCEPT, {"seed": 1}, ["seed", "test_size"]),
    (CONCEPT, {"control": "text", "seed": -1}, ["seed"]),
]  # fmt: skip


def label(case: tuple[tuple[str, Options], Options, Sequence[str]]) -> str:
    (name, parameters), options, _ = case
    return " ".join([name, *(f"{option}={value}" for option, value in (parameters | options).items())])


@pytest.mark.parametrize("case", REFUSED, ids=label)
def test_refused_in_python(study: Study, tmp_path: Path, case: tuple[tuple[str, Options], Options, Any]) -> None:
    (name, parameters), options, words = case
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(study.store, name, output=tmp_path / "x.npz", **parameters, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "--" not in message.replace("first--1", "")
    assert not [word for word in words if word not in message], message
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("case", [case for case in REFUSED if "-" not in case[0][0][:4]], ids=label)
def test_refused_on_the_command_line(cli: Cli, study: Study, case: tuple[tuple[str, Options], Options, Any]) -> None:
    (name, parameters), options, words = case
    arguments = ["--strategy", name, "--input", str(study.store)]
    for option, value in (parameters | options).items():
        for one in value if isinstance(value, list) else [value]:
            flag = f"--{option.replace('_', '-')}"
            arguments += [flag] if one is True else [f"{flag}={one}"]
    result = cli("build", *arguments)
    assert result.exit_code in (1, 2)
    refused(result, *(f"--{word}".replace("_", "-") if "_" in word else word for word in words), code=result.exit_code)


OTHER_TYPES: list[Options] = [
    {name: value}
    for name, values in {
        "tokens": [3, True, ["mean"], b"mean", np.array(["mean", "max"])],
        "target_tokens": [1, ["mean"]],
        "special": ["yes", 1],
        "drop_short": ["yes", 1, np.array([True, False])],
        "combine": [1, ["mean"], True],
        "where": [1, True, [1], {"label": None}, {"label": 0.5}, {1: 2}, {"label": []}, {"text": 3}, print],
        "classes": [1, [0, 3], {"0": "x"}, {0: 1.5}, {}, {0: True}],
        "labels_from": [1, ["a.csv:b"], ""],
        "control": [1, True, ["text"]],
    }.items()
    for value in values
]


@pytest.mark.parametrize("options", OTHER_TYPES)
def test_other_types_are_refused(study: Study, options: Options) -> None:
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(study.store, FEATURE[0], **FEATURE[1], **options)
    (name,) = options
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_message_names_what_is_too_short(study: Study) -> None:
    short = study.expected("hidden-to-concept", layer=1, tokens="last-3").short
    with pytest.raises(featurestore.FeatureStoreError) as caught:
        featurestore.build(study.store, "hidden-to-concept", layer=1, tokens="last-3")
    message = str(caught.value)
    assert f"{len(short)} of 32 sentences" in message
    assert ", ".join(map(str, short[:5])) in message


OTHER_STATISTICS: list[tuple[Options, Options]] = [
    ({"tokens": "mean"}, {}),
    ({}, {"tokens": "mean"}),
    ({"tokens": "mean"}, {"tokens": "max"}),
    ({"tokens": "mean"}, {"tokens": "mean", "special": True}),
    ({"layers": "0,5", "combine": "mean"}, {"layers": "0,5", "combine": "sum"}),
    ({"control": "random-columns"}, {}),
    ({}, {"control": "random-columns"}),
    ({}, {"control": "text"}),
]


@pytest.mark.parametrize(("theirs", "ours"), OTHER_STATISTICS, ids=str)
def test_statistics_of_another_input_are_refused(study: Study, tmp_path: Path, theirs: Options, ours: Options) -> None:
    usual: Options = {"drop_short": True} | ({} if "layers" in ours else {"layer": 1})
    featurestore.build(study.store, "hidden-to-concept", output=tmp_path / "x.npz", **usual, **theirs)
    with pytest.raises(featurestore.DatasetError, match="stats_from=: "):
        featurestore.build(study.store, "hidden-to-concept", stats_from=tmp_path / "x.npz", **usual, **ours)


@pytest.mark.parametrize(
    "ours", [{"where": "label=0,3"}, {"classes": "0=0,3=1"}, {"control": "shuffled-labels"}], ids=str
)
def test_statistics_of_the_same_input_are_used(study: Study, tmp_path: Path, ours: Options) -> None:
    """Other rows, or another y, are no other input."""
    whole = featurestore.build(study.store, "hidden-to-concept", layer=1, output=tmp_path / "x.npz")
    rows = dict(zip(whole.metadata["sentence_indices"].tolist(), whole.X, strict=True))
    found = featurestore.build(study.store, "hidden-to-concept", layer=1, stats_from=tmp_path / "x.npz", **ours)
    np.testing.assert_array_equal(found.X, [rows[index] for index in found.metadata["sentence_indices"].tolist()])


LABELS = {
    "lacks": ("sentence_index,c\n0,1\n", ["35 of 36 sentences"]),
    "no such column": ("sentence_index,d\n0,1\n", ["c"]),
    "no sentences": ("name,c\n0,1\n", ["sentence_index"]),
    "twice": ("sentence_index,c\n" + "".join(f"{i},1\n" for i in range(36)) + "3,2\n", ["3"]),
    "no labels": ("sentence_index,c\n" + "".join(f"{i},\n" for i in range(36)), ["labels"]),
    "fractions": ("sentence_index,c\n" + "".join(f"{i},{i + 0.5}\n" for i in range(36)), ["an integer", ".5"]),
    "too large": ("sentence_index,c\n" + "".join(f"{i},{10**30 + i}\n" for i in range(36)), ["c"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_are_refused(study: Study, cli: Cli, tmp_path: Path, case: str) -> None:
    text, words = LABELS[case]
    (tmp_path / "l.csv").write_text(text)
    result = cli(
        "build", "--strategy", "hidden-to-concept", "--layer", 1, "--input", study.store,
        "--labels-from", f"{tmp_path / 'l.csv'}:c",
    )  # fmt: skip
    assert len(complaint(result, *words, code=result.exit_code)) <= 4
    assert result.exit_code in (1, 2)
    assert contents(Path()) == {}
