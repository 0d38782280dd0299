"""What every option of a dataset means, a second time: by numpy alone, from the sentence NPZs.

Nothing of featurestore is imported here. Sums of a few float16 or float32 values are exact in float64, so results can
be compared exactly.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Labels = dict[int, int | None]

POOLED = 10_000_000
"""Of several stores: the number of a sentence is that of its store, from 0, times this, plus its index there."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of T tokens: arrays (T, d), by layer where there are several."""

    index: int
    label: int | None
    text: str
    fragments: list[str]
    special: list[bool]
    embeddings: Array
    hidden: dict[int, Array]
    activations: dict[int, Array]
    store: str = ""

    @property
    def n_tokens(self) -> int:
        return len(self.fragments)


@dataclass(frozen=True)
class Expected:
    """A dataset before it is normalized: n rows, and what became of the other sentences of the population."""

    X: Array
    y: Array
    sentences: list[int]
    tokens: list[int]
    short: list[int]
    left_out: list[int]
    dropped: list[int]


class Sequences(NamedTuple):
    """Rows of tokens as sequences, padded with 0 in front: X (n, T, d), where there is a token (n, T), and the rest."""

    X: Array
    mask: Array
    y: Array
    sentences: list[int]


def read_sentences(folder: Path, special_first: int = 0) -> list[Sentence]:
    """Read a folder of sentence NPZs with one SAE a layer, in the order of their sentence_index."""
    sentences = []
    for path in folder.glob("sentence_*.npz"):
        with np.load(path) as arrays:
            n = int(np.flatnonzero(arrays["is_final_token"])[0]) + 1
            layers = arrays["layers"].tolist()
            marks = arrays["is_special"][:n].tolist() if "is_special" in arrays else [False] * n
            sentences.append(
                Sentence(
                    index=int(arrays["sentence_index"]),
                    label=int(arrays["concept_strength_label"]) if "concept_strength_label" in arrays else None,
                    text=str(arrays["sentence"]),
                    fragments=arrays["fragments"][:n].tolist(),
                    special=[mark or position < special_first for position, mark in enumerate(marks)],
                    embeddings=arrays["embeddings"][:n],
                    hidden=dict(zip(layers, arrays["hidden_states"][:, :n], strict=True)),
                    activations=dict(zip(layers, arrays["activations"][:, :n], strict=True)),
                )
            )
    return sorted(sentences, key=lambda sentence: sentence.index)


def pooled(stores: Mapping[str, Sequence[Sentence]]) -> list[Sentence]:
    """Return the sentences of several stores, in this order, numbered so that all differ."""
    return [
        replace(one, store=name, index=number * POOLED + one.index)
        for number, (name, sentences) in enumerate(stores.items())
        for one in sentences
    ]


def recalculate(
    sentences: Sequence[Sentence],
    strategy: str,
    *,
    tokens: str = "final",
    target_tokens: str | None = None,
    special: bool = False,
    combine: str = "concat",
    where: str | Sequence[str] = (),
    labels_from: str | None = None,
    classes: str | None = None,
    densest: int | None = None,
    y: str = "label",
    control: str | None = None,
    training: set[int] | None = None,
    without: frozenset[int] = frozenset(),
    **parameters: Any,
) -> Expected:
    """Return the dataset of a strategy and its options; `training` are the sentences by which features are chosen.

    Those of `without` are none of the population. Of controls, only what `length` has as X is known here.

    Sentences that are too short, or not finite, are left out, whether that was asked for or not.
    """
    labels, names = labels_of(sentences, labels_from)
    conditions = [where] if isinstance(where, str) else where
    population = [one for one in sentences if one.index not in without and _meets(one, labels, names, conditions)]
    if y == "store":
        names = list(dict.fromkeys(one.store for one in sentences))
        labels = {one.index: names.index(one.store) for one in sentences}
    mapped = _mapped(labels, names, classes)
    tokens = "all" if "-sequence-" in strategy else tokens
    concept = strategy.endswith("concept")
    chosen = [one for one in population if mapped[one.index] is not None or not (concept or classes)]
    target = target_tokens or ("all" if tokens == "all" else "final")
    needed = max(_needed(tokens), 0 if concept else _needed(target))
    short = [one.index for one in chosen if len(_counted(one, special)) < needed]
    rows: list[tuple[int, int, Array, Array]] = []
    dropped = []
    for one in chosen:
        if one.index in short:
            continue
        inputs = _combined(_blocks(one, strategy, parameters), combine)
        X = _chosen(inputs, one, tokens, special).astype(np.float32)
        if concept:
            outcome = np.array([mapped[one.index]], np.int64)
        else:
            outcome = _chosen(_targets(one, strategy, parameters), one, target, special).astype(np.float32)
        if not (np.isfinite(X).all() and np.isfinite(outcome).all()):
            dropped.append(one.index)
            continue
        at = _counted(one, special) if tokens == "all" else [one.n_tokens - 1]
        if control == "length":
            read = [len(one.fragments[token]) if tokens == "all" else len(one.text) for token in at]
            X = np.array([[characters, token + 1] for characters, token in zip(read, at, strict=True)], np.float32)
        outcome = np.broadcast_to(outcome, (len(X), *outcome.shape[1:]))
        rows += [(one.index, token - one.n_tokens, X[i], outcome[i]) for i, token in enumerate(at)]
    found = Expected(
        X=np.array([row[2] for row in rows]),
        y=np.array([row[3] for row in rows]),
        sentences=[row[0] for row in rows],
        tokens=[row[1] for row in rows],
        short=short,
        left_out=[one.index for one in population if one not in chosen],
        dropped=dropped,
    )
    if densest is None or control not in (None, "shuffled-labels") or not rows:
        return found
    return _densest(found, densest, training)


def as_sequences(found: Expected, X: Array) -> Sequences:
    """Put rows of tokens together, those of X, which may have been normalized."""
    sentences = list(dict.fromkeys(found.sentences))
    lengths = [found.sentences.count(index) for index in sentences]
    longest, starts = max(lengths), np.cumsum([0, *lengths])
    padded = np.zeros((len(sentences), longest, X.shape[1]), X.dtype)
    mask = np.zeros((len(sentences), longest), bool)
    for i, length in enumerate(lengths):
        padded[i, longest - length :] = X[starts[i] : starts[i] + length]
        mask[i, longest - length :] = True
    return Sequences(padded, mask, found.y[starts[:-1]], sentences)


def normalized(raw: Array, training: Array, method: str) -> tuple[dict[str, Array], Array, Array]:
    """Return the statistics that a dataset has, what is subtracted, and by what is divided, all in float64."""
    values = raw[training].astype(np.float64)
    lowest, highest, mean, std = values.min(0), values.max(0), values.mean(0), values.std(0)
    constant = lowest == highest
    if method == "standardize":
        mean, std = np.where(constant, lowest, mean), np.where(constant, 1, std)
        return {"mean": mean, "std": std}, mean, std
    if method == "minmax":
        return {"min": lowest, "max": highest}, lowest, np.where(constant, 1, highest - lowest)
    return {}, np.zeros_like(mean), np.ones_like(mean)


def labels_of(sentences: Sequence[Sentence], labels_from: str | None) -> tuple[Labels, list[str]]:
    """Return the label of each sentence, and the names of text classes, in the order of their numbers."""
    if labels_from is None:
        return {one.index: one.label for one in sentences}, []
    path, _, column = labels_from.rpartition(":")
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    by = "sentence_index" if "sentence_index" in lines[0] else "sentence"
    cells = {line[by]: line[column] for line in lines}
    given = {one.index: cells[str(one.index) if by == "sentence_index" else one.text] for one in sentences}
    if all(cell.isdigit() for cell in given.values() if cell):
        return {index: int(cell) if cell else None for index, cell in given.items()}, []
    names = sorted({cell for cell in given.values() if cell})
    return {index: names.index(cell) if cell else None for index, cell in given.items()}, names


def numbers(text: str) -> list[int]:
    """Read such as 0-2,5."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _meets(sentence: Sentence, labels: Labels, names: list[str], conditions: Sequence[str]) -> bool:
    label = labels[sentence.index]
    values = {"label": label, "n_tokens": sentence.n_tokens, "sentence": sentence.index}
    values["sentence_index"] = sentence.index % POOLED
    texts = {"text": sentence.text, "store": sentence.store}
    texts["label_name"] = "" if label is None or not names else names[label]
    for condition in conditions:
        name, _, wanted = condition.partition("=")
        if texts[name] != wanted if name in texts else values[name] not in numbers(wanted):
            return False
    return True


def _mapped(labels: Labels, names: list[str], classes: str | None) -> Labels:
    if classes is None:
        return labels
    pairs = (part.partition("=") for part in classes.split(","))
    to = {names.index(old) if old in names else int(old): int(new) for old, _, new in pairs}
    return {index: None if label is None else to.get(label) for index, label in labels.items()}


def _blocks(sentence: Sentence, strategy: str, parameters: dict[str, Any]) -> list[Array]:
    """Return the blocks of X, (T, d) each."""
    if strategy.startswith("embedding"):
        return [sentence.embeddings]
    if strategy.startswith("activation"):
        activations = sentence.activations[parameters["layer"]]
        return [activations[:, numbers(parameters["features"])] if "features" in parameters else activations]
    order = ("layers", "layer", "input_layer", "target_layer")
    layers = next(parameters[name] for name in order if name in parameters)
    layers = numbers(layers) if isinstance(layers, str) else [layers] if isinstance(layers, int) else layers
    return [sentence.hidden[layer] for layer in layers]


def _targets(sentence: Sentence, strategy: str, parameters: dict[str, Any]) -> Array:
    """Return the activations that are y: (T,), or (T, k) for several."""
    activations = sentence.activations[parameters["target_layer"]]
    if strategy.endswith("features"):
        return activations[:, numbers(parameters["target_features"])]
    wanted: Array = activations[:, parameters["target_feature"]]
    return wanted


def _combined(blocks: list[Array], combine: str) -> Array:
    if combine == "concat":
        return np.concatenate(blocks, axis=1)
    wide = [block.astype(np.float64) for block in blocks]
    with np.errstate(invalid="ignore"):  # of infinity less infinity
        if combine == "difference":
            first, second = wide
            return second - first
        total: Array = sum(wide[1:], wide[0])
        return total if combine == "sum" else total / len(wide)


def _counted(sentence: Sentence, special: bool) -> list[int]:
    """Return the positions of the tokens that count, in reading order."""
    return [position for position, mark in enumerate(sentence.special) if special or not mark]


def _needed(tokens: str) -> int:
    """Return how many counted tokens there have to be."""
    return 0 if tokens == "final" else int(tokens.partition("-")[2] or 1)


def _chosen(values: Array, sentence: Sentence, tokens: str, special: bool) -> Array:
    """Return what becomes of values (T, ...): one row, or with `all` one for each token that counts."""
    at = _counted(sentence, special)
    if tokens == "all":
        return values[at]
    if tokens == "final":
        return values[-1:]
    if tokens == "mean":
        return values[at].astype(np.float64).mean(axis=0, keepdims=True)
    if tokens == "max":
        largest: Array = values[at].max(axis=0, keepdims=True)
        return largest
    count = int(tokens.partition("-")[2])
    beside = values[at[:count] if tokens.startswith("first") else at[-count:]]
    return beside if count == 1 else beside.reshape(1, -1)


def _densest(found: Expected, k: int, training: set[int] | None) -> Expected:
    rows = [training is None or index in training for index in found.sentences]
    counts = np.count_nonzero(found.X[rows], axis=0).tolist()
    best = sorted(sorted(range(len(counts)), key=lambda feature: (-counts[feature], feature))[:k])
    return Expected(**{**vars(found), "X": found.X[:, best]})
