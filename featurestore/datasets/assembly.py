"""From raw values to a dataset: which rows, which columns, how they are normalized, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets import normalize, preflight
from featurestore.datasets.columns import Columns, Sequences
from featurestore.datasets.dataset import Dataset
from featurestore.datasets.described import about_X, about_y
from featurestore.datasets.normalize import Normalization, Statistics
from featurestore.datasets.raw import Loaded
from featurestore.datasets.reduce import Reduction, reduced
from featurestore.errors import NonFiniteError, SelectionError, spelled
from featurestore.questions.controls import shuffled
from featurestore.questions.rows import told
from featurestore.schema import DATASET_VERSION, __version__

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_WINDOW = 1024
"""Rows that are counted at once."""


def assemble(loaded: Loaded) -> tuple[Dataset, int]:
    """Make the dataset of a plan that has been read; X is normalized as it is used, or reduced at once.

    Returns
    -------
    Dataset, int
        And how many columns of X are constant in the rows on which the normalization was fitted.

    Raises
    ------
    ParameterError
        If there are fewer training rows or columns than components.
    NonFiniteError
        If X or y have NaN or infinite values and the plan does not drop them, or no sentence is left.
    SelectionError
        If no sentence is left to fit the normalization.
    """
    rows, dropped = _kept(loaded)
    is_training = loaded.training[rows]
    columns = _densest(loaded, rows[is_training])
    fitted, measured = _fit(loaded, rows[is_training], columns)
    _check_range(loaded, rows[~is_training] if measured else rows, columns, fitted, measured)
    reduction, data = _reduced(loaded, partial(loaded.inputs, columns=columns, normalization=fitted), rows)
    sequences = None
    if loaded.plan.strategy.sequences:
        _, first, lengths = np.unique(loaded.selected.sentences[rows], return_index=True, return_counts=True)
        rows, sequences = rows[first], Sequences(data, lengths)
    metadata = _metadata(loaded, rows, dropped, columns) | _split_metadata(loaded, rows)
    metadata["input_dims"] = sequences.shape[1:] if sequences else data.shape[1]
    y = _outcome(loaded, rows)
    dataset = Dataset(
        data=sequences or data,
        y=y.astype(np.int64 if y.dtype.kind in "iub" else np.float32),
        metadata={name: np.asarray(value) for name, value in metadata.items()},
        normalization=fitted,
        reduction=reduction,
        mask=sequences.mask if sequences else None,
    )
    if not measured or loaded.plan.choices.control == "text":  # which has columns for n-grams that no text holds
        return dataset, 0
    return dataset, int(np.count_nonzero(np.hstack([found.constant for found in measured])[columns]))


def _kept(loaded: Loaded) -> tuple[Array, Array]:
    """Return the rows to use, by sentence_index and then in reading order, and the sentences dropped."""
    selected, kept, bad = loaded.selected, loaded.kept, loaded.nonfinite
    if not len(kept):
        raise SelectionError(f"{loaded.view.path}: {preflight.obstacle(loaded)}")
    if len(bad) == 0:
        return selected.rows.order, bad
    what = "NaN or infinite values, or some beyond float32 or int64"
    found = f"{len(bad)} of {len(np.unique(selected.sentences))} sentences have {what} ({told(loaded.view.ds, bad)})"
    if not loaded.plan.drop_nonfinite:
        raise NonFiniteError(
            f"{found}, which no dataset may hold; leave them out with {spelled('drop_nonfinite', True)}"
        )
    if not kept.any():
        raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
    return selected.rows.order[kept[selected.rows.order]], bad


def _outcome(loaded: Loaded, rows: Array) -> Array:
    """Return y of some rows, shuffled within each side where that is the control."""
    y, selected, plan = loaded.y[rows], loaded.selected, loaded.plan
    if plan.choices.control != "shuffled-labels":
        return y
    divided = loaded.view.split(plan)
    sides = divided.sides[selected.positions[rows]] if divided else np.zeros(len(rows), np.int64)
    return shuffled(y, sides, plan.seed, None if selected.own_outcome else selected.sentences[rows])


def _densest(loaded: Loaded, training: Array) -> Array | slice:
    """Return the columns to keep, in their order: of equally dense ones the first."""
    selected, other = loaded.selected, loaded.plan.stats_from
    if selected.densest is None:
        return slice(None)
    if other:  # those that it has statistics of
        return np.flatnonzero(np.isin(selected.aligned.X[0]["feature"].values, other.metadata["input_features"]))
    inputs = loaded.inputs(training)
    windows = (inputs[start : start + _WINDOW] for start in range(0, len(training), _WINDOW))
    counts = sum(np.count_nonzero(window, axis=0) for window in windows)
    return np.sort(np.argsort(-counts, kind="stable")[: selected.densest])


def _fit(loaded: Loaded, training: Array, columns: Array | slice) -> tuple[Normalization, list[Statistics]]:
    """Return the normalization, and the statistics of each block of X, if any had to be measured for it."""
    plan = loaded.plan
    if plan.stats_from:
        return plan.stats_from.normalization, []
    if len(training) == 0:
        raise SelectionError(f"{loaded.view.path}: no training sentence is left to fit the normalization")
    measured = [] if plan.normalize == "none" else loaded.statistics(training)
    return normalize.fit(plan.normalize, measured).of(columns), measured


def _reduced(
    loaded: Loaded, inputs: Callable[[Array], Columns], rows: Array
) -> tuple[Reduction | None, Columns | Array]:
    """Return the reduction, if X is to be reduced, and X of some rows."""
    asked, other, is_training = loaded.plan.choices.reduce, loaded.plan.stats_from, loaded.training[rows]
    X = inputs(rows)
    if asked is None:
        return None, X
    if other and other.reduction:
        return other.reduction, other.reduction.scores(X)
    return reduced(asked, X, inputs(rows[is_training]), is_training)


def _check_range(
    loaded: Loaded, others: Array, columns: Array | slice, fitted: Normalization, measured: Sequence[Statistics]
) -> None:
    """Refuse X that is not finite once it is normalized, told by the smallest and largest value of each column.

    Where the training rows, which are `measured`, vary far less than the others, these can leave the range of float32.
    """
    if fitted.method == "none":
        return
    parts = [part for part in (measured, loaded.extremes(others) if len(others) else ()) if part]
    extremes = [
        np.hstack([getattr(found, name) for found in part])[columns] for part in parts for name in ("min", "max")
    ]
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(fitted.transform(np.stack(extremes))).all(axis=0)
    if bad.any():
        found = f"{np.count_nonzero(bad)} of {len(bad)} columns of X, such as column {bad.argmax()}"
        reason = "vary so little in the rows of the statistics that float32 cannot hold the other rows normalized"
        instead = f"use {spelled('normalize', 'none')}, or leave these sentences or columns out"
        raise NonFiniteError(f"{found}, {reason}; {instead}")


def _metadata(loaded: Loaded, rows: Array, dropped: Array, columns: Array | slice) -> dict[str, Any]:
    """Say what is in a dataset, and where it came from, in the order in which it is written."""
    view, plan, selected = loaded.view, loaded.plan, loaded.selected
    metadata: dict[str, Any] = {
        "strategy": plan.strategy.name,
        **about_X(plan.choices, selected),
        "n_samples": len(rows),
        **view.about(selected.sentences[rows], "sentence_indices", "row_store"),
    }
    if "input_features" in metadata:
        metadata["input_features"] = metadata["input_features"][columns]
    if plan.strategy.code:
        metadata["strategy_code"] = plan.strategy.code
    if selected.tokens is not None and not plan.strategy.sequences:
        metadata["token"] = selected.tokens[rows]
    metadata |= about_y(plan.choices, selected, view.outcomes(plan.choices))
    if plan.choices.where:
        metadata["where"] = [str(condition) for condition in plan.choices.where]
    if len(view.names) > 1:
        metadata["stores"] = view.names
    metadata |= {
        "store": view.name,
        "schema_version": DATASET_VERSION,
        "featurestore_version": __version__,
        "parameters": plan.json,
        "fingerprint": view.fingerprint(plan),
        "store_digest": view.digest,
        "sentences_digest": view.digest_of(np.unique(selected.positions[rows])),
    }
    for name, sentences in _not_in_it(loaded, dropped).items():
        metadata |= view.about(sentences, f"{name}_sentence_indices", f"{name}_store")
    return metadata


def _not_in_it(loaded: Loaded, dropped: Array) -> dict[str, Array]:
    """Return the sentences of the population that are not in a dataset, by the reason."""
    selected, divided = loaded.selected, loaded.view.split(loaded.plan)
    reasons = {"dropped": dropped}
    if loaded.plan.choices.drop_short:
        reasons["short"] = selected.short
    if len(selected.left_out):
        reasons["left_out"] = selected.left_out
    if divided and divided.out.any():
        reasons["near_duplicate"] = np.sort(loaded.view.sentences[divided.out])
    return reasons


def _split_metadata(loaded: Loaded, rows: Array) -> dict[str, Any]:
    """Say where each row belongs; nothing without a split."""
    divided = loaded.view.split(loaded.plan)
    if divided is None:
        return {}
    stored = loaded.selected.positions[rows]
    metadata: dict[str, Any] = {
        "split": np.where(divided.train[stored], "train", "test"),
        "near_duplicates_across": divided.across,
        "groups_digest": divided.groups_digest,
    }
    if divided.fold is not None:
        metadata["fold"] = divided.fold[stored]
    if divided.version:
        metadata["split_version"] = divided.version
    return metadata
