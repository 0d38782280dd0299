"""Several stores, reductions and sequences on the command line and in recipes: what is refused, in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.refusals import Cli, contents
from tests.sentences import write_sentence


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of one extraction, and one that has other layers. Not to be changed."""
    path = tmp_path_factory.mktemp("stores")
    for number, (trait, n, layers) in enumerate(
        [("care", 12, (0, 1, 5)), ("harm", 9, (0, 1, 5)), ("other", 4, (0, 7))]
    ):
        for index in range(n):
            text = "".join(map(chr, np.random.default_rng([number, index]).integers(97, 123, 40)))
            changes = {"sentence": np.array(text)}
            write_sentence(path / trait, index, tokens=2 + index % 3, layers=layers, seed=number, changes=changes)
        featurestore.ingest(path / trait, path / f"{trait}.zarr")
    return path


HIDDEN = ["--strategy", "hidden-to-concept", "--layer", 1]
FEATURE = ["--strategy", "hidden-to-feature", "--target-layer", 1, "--target-feature", 1]
SEQUENCE = ["--strategy", "hidden-sequence-to-concept", "--layer", 1]
GRAMMAR = "--reduce: expected pca-K or umap-K, such as pca-50, found"

REFUSED: list[tuple[int, list[str], list[Any], str]] = [
    (2, ["care"], [*HIDDEN, "--y", "store"], "--y 'store': expected several stores to tell apart, found one"),
    (2, ["care", "harm"], [*FEATURE, "--y", "store"], "expected a strategy that predicts the label, found"),
    (2, ["care", "harm"], [*HIDDEN, "--y", "trait"], "'trait' is not one of 'label', 'store'"),
    (2, ["care", "harm"], [*HIDDEN, "--y", "store", "--labels-from", "x.csv:y"], "expected one y; leave one out"),
    (1, ["care", "harm"], [*HIDDEN, "--y", "store", "--classes", "love=1"], "no sentence has the label love"),
    (2, ["care", "harm"], [*HIDDEN, "--test-store", "love"], "expected the name of one of the stores, care, harm"),
    (2, ["care"], [*HIDDEN, "--test-store", "care"], "--test-store 'care': expected several stores, found one"),
    (2, ["care", "harm"], [*HIDDEN, "--test-store", ""], "expected the name of a store, found ''"),
    (2, ["care", "harm"], [*HIDDEN, "--test-store", "harm", "--test-size", 0.2], "--test-size and --test-store: "),
    (1, ["care", "harm"], [*HIDDEN, "--where", "store=love"], "no sentence is left of those that have store=love"),
    (1, ["care"], [*HIDDEN, "--where", "store=care"], "has no coordinate store, which --where asks for (store=care)"),
    (1, ["care"], [*HIDDEN, "--where", "label_name=lie"], "has no names of labels; take labels that have some"),
    (2, ["care", "care"], HIDDEN, "care.zarr: expected each store once, found it twice; leave one out"),
    (1, ["care", "other"], HIDDEN, "expected one extraction, found layers"),
    (1, ["care", "harm"], ["--strategy", "hidden-to-concept", "--layer", 4], "has no layer 4: choose from 0-1,5"),
    (1, ["care", "harm"], [*HIDDEN, "--tokens", "last-3"], "(sentence_index 0 of care, 3 of care, 6 of care, "),
    *((2, ["care"], [*HIDDEN, "--reduce", text], f"{GRAMMAR} {text!r}")
      for text in ("", "pca", "pca-", "pca-0", "pca-01", "PCA-2", "pca-2.5", "pca--1", "lda-2", "pca-2,umap-2")),
    (2, ["care"], [*HIDDEN, "--reduce", "pca-7"], "expected at least 7 training rows and 7 columns, found 12 and 6"),
    (2, ["care"], [*HIDDEN, "--where", "sentence=0-3", "--reduce", "pca-5"], "found 4 and 6; ask for fewer components"),
    (2, ["care", "harm"], [*HIDDEN, "--where", "store=care", "--where", "sentence_index=0-2", "--test-store", "harm",
                           "--reduce", "pca-4"], "expected at least 4 training rows and 4 columns, found 3 and 6"),
    (2, ["care"], [*SEQUENCE, "--reduce", "pca-7"], "expected at least 7 training rows and 7 columns, found 36 and 6"),
    (2, ["care"], [*SEQUENCE, "--tokens", "mean"], "expected no tokens, as its X has a dim of all of them"),
    (2, ["care"], [*SEQUENCE, "--layers", "0,1"], "--layer"),
    (2, ["care"], ["--strategy", "activation-sequence-to-concept", "--layer", 1], "--densest"),
    (1, ["care"], ["--strategy", "activation-sequence-to-concept", "--layer", 1, "--features", 10], "10"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "named", "options", "message"), REFUSED, ids=lambda value: str(value)[-60:])
def test_refused(stores: Path, cli: Cli, code: int, named: list[str], options: list[Any], message: str) -> None:
    """One line, in the words of the command line, and nothing half-written."""
    inputs = [word for name in named for word in ("--input", stores / f"{name}.zarr")]
    result = cli("build", *options, *inputs)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    error = result.output.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1
    assert "=:" not in error  # as in Python
    assert contents(Path()) == {}


PLAIN = "{strategy: hidden-to-concept, layer: 0}"
RANKED = "{strategy: hidden-to-feature, targets: {ranked: %s}}"
RECIPES: list[tuple[str, str, str]] = [
    ("pool: [CARE]", PLAIN, "r.yaml:1: pool: expected several stores, found one"),
    ("pool: CARE", PLAIN, "r.yaml:1: pool: expected several stores, found one"),
    ("pool: []", PLAIN, "r.yaml:1: pool: "),
    ("output: x", PLAIN, "expected stores, each of which is built from, or pool"),
    ("stores: CARE", "{strategy: hidden-to-concept, layer: 1, y: store}", 'datasets[0]: y: "store": expected several'),
    ("stores: CARE", "{strategy: hidden-to-concept, layer: 1, reduce: pca-x}", "pca-x"),
    ("stores: CARE", "{strategy: hidden-to-concept, layer: 1, reduce: [pca-2, 3]}", "reduce"),
    ("stores: CARE", "{strategy: hidden-sequence-to-concept, layer: 1, tokens: [mean]}", "expected no tokens, as its"),
    ("pool: [CARE, HARM]\nsplit: {test_store: love}", PLAIN, "of the stores, care"),
    ("pool: [CARE, HARM]\nsplit: {test_store: harm, folds: 1}", PLAIN, "folds"),
    ("pool: [CARE, HARM]\nsplit: {test_store: harm, test_size: 0.5}", PLAIN,
     "test_size and test_store: expected one of them"),
    ("pool: [CARE, OTHER]", PLAIN, "r.yaml:1: pool: OTHER and CARE: expected one extraction, found layers"),
    ("pool: [CARE, CARE]", PLAIN, "r.yaml:1: pool: CARE: expected each store once, found it twice"),
    ("stores: [CARE, HARM]\npool: [CARE, HARM]", RANKED % "{care: good.csv, harm: good.csv}",
     "ranked: expected the ranking of each store by its name, also of care+harm, found care, harm"),
    ("stores: [CARE, HARM]", RANKED % "{care: good.csv, harm: bad.csv}", "ranked.harm: "),
    ("stores: [CARE, OTHER]", RANKED % "good.csv", "other.zarr: has no SAE of layer 1: choose from 0,7"),
    ("pool: [CARE, HARM]", RANKED % "bad.csv", "harm.zarr: has no SAE of layer 7: choose from 0-1,5"),
    ("stores: [CARE]", RANKED % "{care: none.csv}", "none.csv: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("head", "entry", "message"), RECIPES, ids=lambda value: value[:60])
def test_recipes_refused(stores: Path, cli: Cli, head: str, entry: str, message: str) -> None:
    """One line that names file, line and key, with exit code 1, and no dataset."""
    for name in ("care", "harm", "other"):
        head, message = (text.replace(name.upper(), str(stores / f"{name}.zarr")) for text in (head, message))
    Path("r.yaml").write_text(f"{head}\ndatasets:\n  - {entry}\n")
    for name, layer in (("good", 1), ("bad", 7)):
        Path(f"{name}.csv").write_text(f"layer,feature_id,average_l0\n{layer},2,3\n")
    before = contents(Path())
    for options in ([], ["--dry-run"]):
        result = cli("sweep", "r.yaml", *options)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1
        (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert error == result.output.strip().splitlines()[-1]
        assert message in error
        assert contents(Path()) == before
