"""A store of ragged sentences, and the comparison of a dataset of it with its recalculation."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.questions.recalculated import Expected, Sentence, normalized, read_sentences, recalculate
from tests.sentences import sentence_arrays, write_sentence

N = 36
TWINS = {20: 4, 29: 7, 33: 12}
"""Sentences with the text of another; that of 29 is in capitals."""

SPLIT = ("test_size", "folds", "seed", "group_by")
_KINDS = ("truth", "lie", "evasion")


def write_ragged(folder: Path, n: int = N, **options: Any) -> None:
    """Write sentences of 1 to 7 tokens, some of them special, some without a label or with fragments after the end."""
    for index in range(n):
        like = TWINS.get(index, index)
        tokens = 1 + (like * 5) % 7
        after = index % 10 == 1
        arrays = sentence_arrays(index, tokens=tokens + after, **options)
        words = np.random.default_rng(like).integers(97, 123, (tokens + after, 9)).astype(np.uint8)
        texts = [bytes(word).decode() for word in words]
        texts = [text.upper() for text in texts] if index == 29 else texts
        changes = {
            "fragments": np.array([" ".join(texts[: end + 1]) for end in range(tokens + after)]),
            "sentence": np.array(" ".join(texts[:tokens])),
            "is_final_token": np.arange(tokens + after) == tokens - 1,
            "is_special": np.isin(np.arange(tokens + after), [[0], [tokens - 1], [tokens // 2], []][index % 4]),
        }
        drop = ["concept_strength_label"] if index % 9 == 5 else []
        write_sentence(folder, index, drop=drop, changes=arrays | changes)


def write_tables(folder: Path, sentences: list[Sentence]) -> None:
    """Write other labels: by `sentence_index`, numbers and texts, some missing; and by `sentence`."""
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence_index", "other", "kind"])
        for one in reversed(sentences):
            gap = one.index % 8 == 3
            row = ("", "") if gap else ((one.index * 7 + one.n_tokens) % 3 + 1, _KINDS[(one.index * 5) % 11 % 3])
            table.writerow([one.index, *row])
    with (folder / "texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence", "strength"])
        table.writerows([text, len(text) % 3] for text in sorted({one.text for one in sentences}))


Options = dict[str, Any]

STRATEGIES: list[tuple[str, Options]] = [
    ("hidden-to-concept", {"layer": 1}),
    ("hidden-to-concept", {"layers": "5,0"}),
    ("hidden-to-concept", {"layers": [1, 5, 0]}),
    ("embedding-to-concept", {}),
    ("activation-to-concept", {"layer": 5}),
    ("activation-to-concept", {"layer": 1, "densest": 4}),
    ("embedding-to-feature", {"target_layer": 1, "target_feature": 3}),
    ("hidden-to-feature", {"target_layer": 5, "target_feature": 2, "input_layer": 0}),
    ("hidden-to-features", {"target_layer": 1, "target_features": "7,4-5"}),
]
TOKENS = ["final", "mean", "max", "last-1", "last-3", "first-1", "first-2", "all"]
FEATURE: tuple[str, Options] = ("hidden-to-feature", {"target_layer": 5, "target_feature": 2, "input_layer": 0})
FEATURES: tuple[str, Options] = ("hidden-to-features", {"target_layer": 1, "target_features": "7,4-5"})
LAYERS: tuple[str, Options] = ("hidden-to-concept", {"layers": [1, 5, 0]})


CONDITIONS: list[list[str]] = [
    ["label=0,3"],
    ["label=1-2"],
    ["n_tokens=3-6"],
    ["sentence=0-9,20,30-35"],
    ["label=0,3", "n_tokens=2-5"],
    ["n_tokens=2-5", "n_tokens=5-7"],
]


LABELS = ["labels.csv:other", "labels.csv:kind", "texts.csv:strength"]


@dataclass
class Study:
    """A folder of sentences and its store."""

    store: Path
    folder: Path
    special_first: int = 0
    sentences: list[Sentence] = field(init=False)
    _sides: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sentences = read_sentences(self.folder, self.special_first)

    def table(self, name: str) -> str:
        return str(self.folder.parent / name)

    def sides(self, **options: Any) -> dict[int, tuple[str, int]]:
        """Return side and fold of every sentence, as a plain dataset of the whole store has them."""
        asked = {name: options[name] for name in (*SPLIT, "labels_from") if options.get(name) is not None}
        if not {"test_size", "folds"} & asked.keys():
            return {one.index: ("train", 0) for one in self.sentences}
        if (key := repr(asked)) not in self._sides:
            layer = min(self.sentences[0].activations)
            plain = featurestore.build(
                self.store, "embedding-to-feature", target_layer=layer, target_feature=0, normalize="none",
                drop_nonfinite=True, **asked,
            )  # fmt: skip
            self._sides[key] = sides_of(plain)
        return self._sides[key]

    def expected(self, strategy: str, **options: Any) -> Expected:
        training = {index for index, (side, _) in self.sides(**options).items() if side == "train"}
        others = {"normalize", "control", "drop_short", "drop_nonfinite", *SPLIT}
        asked = {name: value for name, value in options.items() if name not in others}
        return recalculate(self.sentences, strategy, training=training, **asked)

    def check(self, strategy: str, **options: Any) -> featurestore.Dataset:
        """Build a dataset, and compare all of it with what numpy makes of the NPZs."""
        expected, sides = self.expected(strategy, **options), self.sides(**options)
        dataset = featurestore.build(self.store, strategy, **options)
        metadata = {name: value.tolist() for name, value in dataset.metadata.items()}
        assert metadata["sentence_indices"] == expected.sentences
        assert metadata["n_samples"] == len(expected.sentences)
        assert metadata["input_dims"] == expected.X.shape[1]
        if options.get("tokens") == "all":
            assert metadata["token"] == expected.tokens
            assert dataset.metadata["token"].dtype == np.int64
        else:
            assert "token" not in metadata
        assert metadata.get("short_sentence_indices", []) == expected.short
        assert metadata.get("left_out_sentence_indices", []) == expected.left_out
        assert metadata["dropped_sentence_indices"] == expected.dropped
        np.testing.assert_array_equal(dataset.y, expected.y, strict=True)
        if any(options.get(name) is not None for name in ("test_size", "folds")):
            found = [sides[index] for index in expected.sentences]
            assert metadata["split"] == [side for side, _ in found]
            assert metadata.get("fold", [0] * len(found)) == [fold for _, fold in found]
        training = np.array([sides[index][0] == "train" for index in expected.sentences])
        exact = check_normalized(dataset, expected.X, training, options.get("normalize", "standardize"))
        np.testing.assert_array_equal(dataset.X, exact, strict=True)
        return dataset


def check_normalized(
    dataset: featurestore.Dataset, raw: Any, training: Any, method: str = "standardize"
) -> np.ndarray[Any, Any]:
    """Check statistics to the rounding of float64 sums; return X of some rows, exactly, by those of the dataset."""
    assert dataset.normalization.method == method
    statistics, shift, divisor = normalized(raw, training, method)
    assert dataset.normalization.parameters.keys() == statistics.keys()
    for name, values in dataset.normalization.parameters.items():
        np.testing.assert_allclose(values, statistics[name], rtol=1e-11, atol=1e-11)
    if method == "standardize":
        shift, divisor = (dataset.normalization.parameters[name] for name in ("mean", "std"))
    exact: np.ndarray[Any, Any] = ((raw.astype(np.float64) - shift) / divisor).astype(np.float32)
    return exact


def sides_of(dataset: featurestore.Dataset) -> dict[int, tuple[str, int]]:
    """Return side and fold of each sentence; all of its rows have to have the same."""
    metadata = {name: value.tolist() for name, value in dataset.metadata.items()}
    folds = metadata.get("fold", [0] * metadata["n_samples"])
    found: dict[int, tuple[str, int]] = {}
    for index, *where in zip(metadata["sentence_indices"], metadata["split"], folds, strict=True):
        assert found.setdefault(index, (where[0], where[1])) == tuple(where)
    return found


def make_study(path: Path, *, portions: int = 2, special_first: int = 0) -> Study:
    """Make a study whose store has its later sentences first, if it is ingested in portions."""
    write_ragged(path / "trait")
    paths = sorted((path / "trait").glob("*.npz"))
    store, size = path / "stores" / "trait.zarr", -(-len(paths) // portions)
    for portion in reversed(range(portions)):
        part = path / f"part{portion}" / "trait"
        part.mkdir(parents=True)
        for one in paths[portion * size : (portion + 1) * size]:
            shutil.copy(one, part)
        featurestore.ingest(part, store, special_first=special_first or None)
    study = Study(store, path / "trait", special_first)
    write_tables(path, study.sentences)
    return study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Ragged sentences, ingested in two portions, the later ones first. Not to be changed."""
    return make_study(tmp_path_factory.mktemp("study"))
