"""How well the labels can be told apart, layer by layer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import SelectionError, extra
from featurestore.explore.reading import (
    MOST_SENTENCES,
    at_final_token,
    at_least,
    by_layer,
    check_dataset,
    drawn_labelled,
)
from featurestore.questions.controls import length_columns
from featurestore.schema import HIDDEN_STATES, Progress
from featurestore.splits.options import SplitOptions
from featurestore.splits.split import split

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MOST_LAYERS_AT_ONCE = 8
"""Layers that are in memory at the same time, on machines of many cores."""


def separability(
    ds: xr.Dataset,
    *,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
    most: int = MOST_SENTENCES,
    progress: Progress = lambda *_: None,
) -> xr.Dataset:
    """Predict the label from the hidden states of each layer at the final token, cross-validated.

    The probe is a multinomial logistic regression (C = 0.01, classes weighted alike) on standardized hidden states, all
    of it fitted on the training folds alone. Folds are stratified, and near-duplicates share one
    (`featurestore.splits.split.split`). Beside it stand three baselines: the same probe after the labels have been
    shuffled, which says what chance looks like; and two that say what needs no model, in the same folds: a logistic
    regression (C = 1, classes weighted alike) on the words of the text (TF-IDF of 1- and 2-grams), and one on its
    length (characters and tokens, standardized).

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it. Sentences without a label or with non-finite values are left out.
    folds : int
        Of the cross-validation.
    repeats : int
        How often it is repeated, with other folds and other shuffled labels.
    seed : int
        Of all that is drawn at random.
    most : int
        Of more sentences, so many are drawn at random.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    xarray.Dataset
        Over (layer), float64: `accuracy` and `shuffled`; without dims: `text` (the words; NaN where there are none),
        `length` and `chance`. All are balanced accuracies between 0 and 1 (the mean of the recalls of all labels, so
        chance is 1 / labels), with the standard error over sentences, near-duplicates counted as one, in
        `accuracy_error`, `shuffled_error` (of one shuffling), `text_error` and `length_error`. Attributes:
        `sentences`, how many were used, and `rarest`, how many the rarest label has: where these are few, standard
        errors are too small, 0 where all or none are right. Not lazy; reads one layer per core at a time.

    Raises
    ------
    SelectionError
        If there are no hidden states, fewer than two labels, too few sentences for the folds, or values are NaN, as a
        mask makes them.
    ParameterError
        If `ds` is no dataset, or a number is too small.
    MissingExtraError
        If scikit-learn is not installed.
    """
    with extra("sklearn"):
        from threadpoolctl import threadpool_limits
    repeats = at_least(1, "repeats", repeats)
    check_dataset(ds, "text", "n_tokens")
    hidden_states = _hidden_states(ds := drawn_labelled(ds, most, seed))
    rounds = [*_rounds(ds, folds, repeats, seed, shuffled=False), *_rounds(ds, folds, repeats, seed, shuffled=True)]
    layers = [*by_layer(hidden_states)]
    found: dict[int, list[tuple[float, float]]] = {}
    jobs = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_LAYERS_AT_ONCE))
    with threadpool_limits(1), jobs:  # the layers share the cores
        futures = [jobs.submit(_probe_layer, array, rounds) for _, array in layers]
        try:
            for done, ((layer, _), future) in enumerate(zip(layers, futures, strict=True), 1):
                found[layer] = future.result()
                progress("probing", done, len(layers))
        finally:
            for future in futures:
                future.cancel()
    return _dataset(ds, found, _without_model(ds, rounds))


def _dataset(
    ds: xr.Dataset, found: dict[int, list[tuple[float, float]]], baselines: dict[str, tuple[float, float]]
) -> xr.Dataset:
    import xarray as xr

    counts = np.unique(ds["label"].values, return_counts=True)[1]
    columns = np.array([*found.values()]).transpose(1, 2, 0)
    names = (("accuracy", "accuracy_error"), ("shuffled", "shuffled_error"))
    variables: dict[str, Any] = {
        name: ("layer", values)
        for pair, column in zip(names, columns, strict=True)
        for name, values in zip(pair, column, strict=True)
    }
    for name, (accuracy, error) in baselines.items():
        variables |= {name: accuracy, f"{name}_error": error}
    variables["chance"] = 1 / len(counts)
    attributes = {"sentences": ds.sizes["sentence"], "rarest": int(counts.min())}
    return xr.Dataset(variables, {"layer": [*found]}, attributes)


@dataclass(frozen=True)
class _Round:
    """Labels, shuffled or not, the fold of each sentence, and numbers that near-duplicates share; each (sentence,)."""

    labels: Array
    fold: Array
    near: Array
    shuffled: bool


def _rounds(ds: xr.Dataset, folds: int, repeats: int, seed: int, *, shuffled: bool) -> Iterator[_Round]:
    """Yield what each repetition predicts, and in which folds: those of shuffled labels are stratified, too."""
    for number in range(seed, seed + repeats):
        labels = ds["label"].values
        if shuffled:
            labels = np.random.default_rng(number).permutation(labels)
        options = SplitOptions(folds=folds, seed=number)
        try:
            divided = split(ds.assign_coords(label=("sentence", labels)), options)
        except SelectionError as error:
            reason = str(error).partition(": ")[2]
            raise SelectionError(f"cannot be cross-validated in {folds} folds: {reason}") from None
        assert divided.fold is not None
        yield _Round(labels, divided.fold, divided.near, shuffled)


def _probe_layer(array: xr.DataArray, rounds: list[_Round]) -> list[tuple[float, float]]:
    """Return the accuracy and its standard error, with the labels and with shuffled ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000, tol=1e-3)
    predict = partial(_predicted, make_pipeline(StandardScaler(), logistic), at_final_token(array))
    return [_scored([one for one in rounds if one.shuffled is shuffled], predict) for shuffled in (False, True)]


def _without_model(ds: xr.Dataset, rounds: list[_Round]) -> dict[str, tuple[float, float]]:
    """Return the same of probes of the words and of the length; NaN where the texts to learn from have no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rounds = [one for one in rounds if not one.shuffled]
    logistic = LogisticRegression(class_weight="balanced", max_iter=2000)
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True)
    texts = np.array(ds["text"].values, object)
    has_word = np.array([re.search(r"\w", text) is not None for text in texts])
    learnt = all(has_word[one.fold != fold].any() for one in rounds for fold in np.unique(one.fold))
    of_words = partial(_predicted, make_pipeline(words, logistic), texts)
    lengths = length_columns(texts.tolist(), ds["n_tokens"].values)
    of_length = partial(_predicted, make_pipeline(StandardScaler(), logistic), lengths)
    text = _scored(rounds, of_words) if learnt else (np.nan, np.nan)
    return {"text": text, "length": _scored(rounds, of_length)}


def _predicted(model: Any, X: Array, one: _Round) -> Array:
    """Predict each fold by the others."""
    predicted = np.empty_like(one.labels)
    for fold in np.unique(one.fold):
        test = one.fold == fold
        known = one.labels[~test]
        alone = len(np.unique(known)) == 1  # nothing to learn
        predicted[test] = known[0] if alone else model.fit(X[~test], known).predict(X[test])
    return predicted


def _scored(rounds: list[_Round], predict: Callable[[_Round], Array]) -> tuple[float, float]:
    """Return the balanced accuracy over some rounds, and its standard error over sentences.

    Rounds of the same labels are averaged for each sentence first: they say nothing new of other sentences. Of shuffled
    labels, the standard error is that of one shuffling.
    """
    right = [predict(one) == one.labels for one in rounds]
    if not rounds[0].shuffled:
        return _balanced(np.mean(right, axis=0), rounds[0])
    means, errors = zip(*map(_balanced, right, rounds), strict=True)
    return float(np.mean(means)), float(np.sqrt(np.mean(np.square(errors))))


def _balanced(right: Array, one: _Round) -> tuple[float, float]:
    """Return the mean over labels of the share that is right, and its standard error over groups of near-duplicates."""
    _, label, counts = np.unique(one.labels, return_inverse=True, return_counts=True)
    shares = np.bincount(label, right) / counts
    parts = (right - shares[label]) / (counts[label] * len(counts))
    parts = np.bincount(np.unique(one.near, return_inverse=True)[1], parts)
    return float(shares.mean()), float(np.sqrt((parts**2).sum() * len(parts) / max(1, len(parts) - 1)))


def fisher_ratio(
    ds: xr.Dataset,
    *,
    permutations: int = 100,
    seed: int = 0,
    most: int = MOST_SENTENCES,
    progress: Progress = lambda *_: None,
) -> xr.Dataset:
    """Compare how far the labels' means lie apart with how far sentences of one label do, at the final token.

    The variance between labels, over labels - 1, divided by the variance within, over sentences - labels, each summed
    over the standardized dims: the pseudo-F of [1]_. Labels that mean nothing have about 1. Needs no training, so it is
    cheap, but sees only what shifts the mean.

    Parameters
    ----------
    ds, seed, most, progress
        As of `separability`.
    permutations : int
        Shuffled labels, of which the 95th percentile is returned.

    Returns
    -------
    xarray.Dataset
        Over (layer), float64: `ratio`, and `shuffled`, which chance exceeds in 5 % of the cases. Attribute `sentences`.

    Raises
    ------
    SelectionError
        If there are no hidden states, fewer than two labels, or values are NaN, as a mask makes them.
    ParameterError
        If `ds` is no dataset, or a number is too small.

    References
    ----------
    .. [1] Anderson: A new method for non-parametric multivariate analysis of variance. Austral Ecology 26, 2001.
    """
    import xarray as xr

    permutations = at_least(0, "permutations", permutations)
    hidden_states = _hidden_states(ds := drawn_labelled(ds, most, seed))
    rng, labels = np.random.default_rng(seed), ds["label"].values
    ways = np.array([labels, *(rng.permutation(labels) for _ in range(permutations))])
    layers, ratios = [*by_layer(hidden_states)], []
    for done, (_, array) in enumerate(layers, 1):
        X = at_final_token(array).astype(np.float64)  # so that every machine finds, and draws, the same
        spread = X.std(axis=0)
        X = (X - X.mean(axis=0))[:, spread > 0] / spread[spread > 0]
        ratios.append(_pseudo_f(X, ways))
        progress("comparing", done, len(layers))
    found = np.array(ratios)
    shuffled = np.quantile(found[:, 1:], 0.95, axis=1) if permutations else np.full(len(found), np.nan)
    return xr.Dataset(
        {"ratio": ("layer", found[:, 0]), "shuffled": ("layer", shuffled)},
        {"layer": [layer for layer, _ in layers]},
        {"sentences": ds.sizes["sentence"]},
    )


def _pseudo_f(X: Array, ways: Array) -> Array:
    """Return the ratio of standardized values, (sentence, dim), for each way to label them, (way, sentence)."""
    kinds, counts = np.unique(ways[0], return_counts=True)
    n, k = len(X), len(kinds)
    if n <= k:
        return np.full(len(ways), np.nan)
    member = (ways[:, None] == kinds[:, None]).astype(X.dtype)
    sums = (member.reshape(-1, n) @ X).reshape(len(ways), k, -1)  # one product for all ways
    between = ((sums**2).sum(axis=2) / counts).sum(axis=1)
    within = X.size - between  # each standardized column has the sum of squares n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(within > 0, between / (k - 1) / (within / (n - k)), np.nan))


def _hidden_states(ds: xr.Dataset) -> xr.DataArray:
    if HIDDEN_STATES not in ds:
        raise SelectionError("has no hidden states, so layers cannot be compared")
    return ds[HIDDEN_STATES]
