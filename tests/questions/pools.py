"""Two stores of one extraction, and the comparison of a dataset of both with its recalculation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import featurestore
from tests.questions.recalculated import (
    POOLED,
    Array,
    Expected,
    Sentence,
    as_sequences,
    pooled,
    read_sentences,
    recalculate,
)
from tests.questions.study import check_normalized
from tests.sentences import sentence_arrays, write_sentence

SIZES = {"care": (21, 6), "harm": (15, 4)}
"""Sentences of each trait, and the most tokens that one has."""

TWINS = {("harm", 3): ("care", 9), ("harm", 10): ("care", 4), ("care", 19): ("care", 1)}
"""Sentences with the text of another; the second one in capitals."""

SPLIT = ("test_size", "test_store", "folds", "seed")
_KINDS = ("truth", "lie", "evasion")


def write_traits(folder: Path) -> None:
    """Write two folders of sentences of 1 to 6 tokens, some special, some without a label."""
    for seed, (trait, (n, longest)) in enumerate(SIZES.items()):
        for index in range(n):
            origin, like = TWINS.get((trait, index), (trait, index))
            tokens = 1 + (like * 5) % SIZES[origin][1]
            assert tokens <= longest
            arrays = sentence_arrays(index, tokens=tokens, seed=seed)
            letters = np.random.default_rng([list(SIZES).index(origin), like]).integers(97, 123, (tokens, 30))
            words = [bytes(word).decode() for word in letters.astype(np.uint8)]
            words = [word.upper() for word in words] if (trait, index) == ("harm", 10) else words
            changes = {
                "fragments": np.array([" ".join(words[: end + 1]) for end in range(tokens)]),
                "sentence": np.array(" ".join(words)),
                "is_special": np.isin(np.arange(tokens), [[0], [], [tokens - 1], []][index % 4]),
            }
            drop = ["concept_strength_label"] if index % 7 == 5 else []
            write_sentence(folder / trait, index, drop=drop, changes=arrays | changes)


class Pools:
    """The stores by name, what is in them, and a file of labels by text: `kind`, names, and `strength`, numbers."""

    def __init__(self, stores: dict[str, Path], sentences: dict[str, list[Sentence]], labels: Path) -> None:
        self.stores, self.sentences, self.labels = stores, sentences, labels

    def of(self, order: Sequence[str]) -> list[Sentence]:
        return pooled({name: self.sentences[name] for name in order})

    def build(self, order: Sequence[str], strategy: str, **options: Any) -> featurestore.Dataset:
        return featurestore.build([self.stores[name] for name in order], strategy, **options)

    def sides(self, order: Sequence[str], **options: Any) -> dict[int, tuple[str, int]]:
        """Return side and fold of all sentences that have one; those for testing on another store by their texts."""
        asked = {name: options[name] for name in (*SPLIT, "labels_from", "y") if name in options}
        sentences = self.of(order)
        if not {"test_size", "folds", "test_store"} & asked.keys():
            return {one.index: ("train", 0) for one in sentences}
        if asked.pop("y", "label") == "store":  # by which sides are stratified
            plain = self.build(order, "embedding-to-concept", y="store", normalize="none", **asked)
        else:
            plain = self.build(
                order, "embedding-to-feature", target_layer=1, target_feature=0, normalize="none", **asked
            )
        found = numbers_of(plain, order)
        folds = plain.metadata["fold"].tolist() if "fold" in plain.metadata else [0] * len(found)
        sides = dict(zip(found, zip(plain.metadata["split"].tolist(), folds, strict=True), strict=True))
        if test := options.get("test_store"):
            texts = {one.text.casefold() for one in sentences if one.store != test}
            expected = {
                one.index: "test" if one.store == test else "train"
                for one in sentences
                if one.store != test or one.text.casefold() not in texts
            }
            assert {index: side for index, (side, _) in sides.items()} == expected
        return sides

    def expected(self, order: Sequence[str], strategy: str, **options: Any) -> Expected:
        sentences, sides = self.of(order), self.sides(order, **options)
        others = {"normalize", "drop_short", "reduce", *SPLIT}
        return recalculate(
            sentences, strategy, training={index for index, (side, _) in sides.items() if side == "train"},
            without=frozenset(one.index for one in sentences) - sides.keys(),
            **{name: value for name, value in options.items() if name not in others},
        )  # fmt: skip

    def check(self, order: Sequence[str], strategy: str, **options: Any) -> featurestore.Dataset:
        """Build a dataset, and compare all of it with what numpy makes of the NPZs; of a control, what is known."""
        expected, sides = self.expected(order, strategy, **options), self.sides(order, **options)
        dataset = self.build(order, strategy, **options)
        control, sequences = options.get("control"), "-sequence-" in strategy
        rows = list(dict.fromkeys(expected.sentences)) if sequences else expected.sentences
        check_sentences(dataset, order, expected, rows, set(sides))
        if "split" in dataset.metadata:
            assert dataset.metadata["split"].tolist() == [sides[index][0] for index in rows]
        if "fold" in dataset.metadata:
            assert dataset.metadata["fold"].tolist() == [sides[index][1] for index in rows]
        raw = expected.X
        if control in ("text", "random-columns"):  # whose values are its own
            raw = as_rows(dataset, dataset.inverse(dataset.X)) if "reduce" not in options else raw
        training = np.array([sides[index][0] == "train" for index in expected.sentences])
        if control in (None, "shuffled-labels", "length"):
            normalized = check_normalized(dataset, raw, training, options.get("normalize", "standardize"))
            check_X(dataset, as_rows(dataset, dataset.X), normalized, training, options.get("reduce"))
        if sequences:
            check_padding(dataset, expected)
            assert dataset.metadata["input_dims"].tolist() == list(dataset.X.shape[1:])
        y = as_sequences(expected, expected.X).y if sequences else expected.y
        if control != "shuffled-labels":
            np.testing.assert_array_equal(dataset.y, y, strict=True)
        else:
            assert dataset.y.shape == y.shape
            for side in {sides[index] for index in rows}:
                own = [sides[index] == side for index in rows]
                if options.get("tokens") != "all":  # else whole sentences have as many rows as they have tokens
                    assert sorted(dataset.y[own].tolist()) == sorted(y[own].tolist())
        return dataset


def numbers_of(dataset: featurestore.Dataset, order: Sequence[str], what: str = "row") -> list[int]:
    """Return the numbers among all sentences of those that a dataset names, as its rows or for another reason."""
    name = "sentence_indices" if what == "row" else f"{what}_sentence_indices"
    indices, stores = dataset.metadata.get(name, np.array([])), dataset.metadata.get(f"{what}_store", np.array([]))
    return [order.index(store) * POOLED + i for i, store in zip(indices.tolist(), stores.tolist(), strict=True)]


def check_sentences(
    dataset: featurestore.Dataset, order: Sequence[str], expected: Expected, rows: list[int], divided: set[int]
) -> None:
    """Check which sentences are rows, and why others are none."""
    assert numbers_of(dataset, order) == rows
    assert dataset.metadata["n_samples"] == len(rows)
    assert numbers_of(dataset, order, "short") == expected.short
    assert numbers_of(dataset, order, "left_out") == expected.left_out
    assert not set(numbers_of(dataset, order, "near_duplicate")) & divided
    assert dataset.metadata["stores"].tolist() == list(order)
    assert str(dataset.metadata["store"]) == "+".join(order)
    if "token" in dataset.metadata:
        assert dataset.metadata["token"].tolist() == expected.tokens


def as_rows(dataset: featurestore.Dataset, values: Array) -> Array:
    """Return values such as X, of sequences those of their tokens."""
    return values if dataset.mask is None else values[dataset.mask]


def check_padding(dataset: featurestore.Dataset, expected: Expected) -> None:
    """In front, and 0, whatever became of the tokens."""
    assert dataset.mask is not None
    np.testing.assert_array_equal(dataset.mask, as_sequences(expected, expected.X).mask, strict=True)
    assert not dataset.X[~dataset.mask].any()


def check_X(dataset: featurestore.Dataset, X: Array, normalized: Array, training: Array, reduce: str | None) -> None:  # noqa: N802
    """Compare rows of X with what they are before they are reduced, and the components with a decomposition."""
    if reduce is None:
        np.testing.assert_array_equal(X, normalized, strict=True)
        return
    assert dataset.reduction is not None
    parameters, k = dataset.reduction.parameters, int(reduce.partition("-")[2])
    wide = normalized.astype(np.float64)
    centred = wide[training] - wide[training].mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=True)
    shares = np.zeros(k)
    shares[: len(singular)] = singular[:k] ** 2 / max((singular**2).sum(), 1e-300)
    np.testing.assert_allclose(parameters["explained_variance_ratio"], shares, atol=1e-9)
    components = parameters["components"].astype(np.float64)
    tells = parameters["explained_variance_ratio"] > 0  # what is an accident of rounding is left out
    np.testing.assert_allclose(components @ components.T, np.diag(tells), atol=1e-5)
    for i in np.flatnonzero(tells).tolist():  # one that no other is as large as is told by its sign
        others = np.delete(np.append(singular, 0), i)
        if i < len(singular) and np.abs(others - singular[i]).min() > 1e-3 * singular[0]:
            expected = directions[i] * np.sign(directions[i][np.abs(directions[i]).argmax()])
            np.testing.assert_allclose(components[i], expected, atol=1e-4)
    np.testing.assert_allclose(X, (wide - wide[training].mean(axis=0)) @ components.T, rtol=1e-4, atol=1e-5)
    assert X.dtype == np.float32


def make_pools(path: Path) -> Pools:
    """Make two stores, and the file of labels."""
    write_traits(path)
    for trait in SIZES:
        featurestore.ingest(path / trait, path / "stores" / f"{trait}.zarr")
    sentences = {trait: read_sentences(path / trait) for trait in SIZES}
    with (path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence", "kind", "strength"])
        for i, text in enumerate(sorted({one.text for of in sentences.values() for one in of})):
            table.writerow([text, *(("", "") if i % 9 == 4 else (_KINDS[i * 5 % 11 % 3], i % 3))])
    return Pools({trait: path / "stores" / f"{trait}.zarr" for trait in SIZES}, sentences, path / "labels.csv")
