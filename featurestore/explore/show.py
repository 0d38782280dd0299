"""One feature: the sentences in which it is strongest, where it starts to fire, and how it differs by label."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median_low
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import SelectionError
from featurestore.explore.neuronpedia import link
from featurestore.explore.tokens import (
    checked_top,
    finite,
    first_above,
    label_numbers,
    nonfinite_sentences,
    of_words,
    trajectory,
)
from featurestore.explore.view import Example, FeatureView, LabelSummary
from featurestore.schema import Progress
from featurestore.store.backend import SENTENCES_PER_CHUNK
from featurestore.strategies import sae_dim

if TYPE_CHECKING:
    import xarray as xr

    Array = np.ndarray[Any, Any]


def show(
    ds: xr.Dataset,
    layer: int,
    feature: int,
    top: int = 10,
    average_l0: float | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> FeatureView:
    """Show one SAE feature: its strongest sentences, where it starts to fire, its distribution per label. Read at once.

    A sentence counts by the maximum over its tokens, without special ones, such as a BOS, and without activations that
    are not finite.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of one that keeps its dims.
    layer, feature : int
        The feature, and the layer of its SAE.
    top : int
        How many sentences; fewer where it is active in fewer.
    average_l0 : int or float, optional
        Which SAE, where the layer has several.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    FeatureView
        `print` writes it as text, a notebook shows it as HTML, with the tokens highlighted by their activation.

    Raises
    ------
    SelectionError
        If the dataset has no such layer, feature or SAE, no sentence, lacks a dim, or the layer has several SAEs and
        none was chosen; or if labels are no numbers.
    ParameterError
        If an argument is no number, or `ds` no dataset.
    """
    top = checked_top(top)
    read = _read(trajectory(ds, layer, feature, average_l0), progress)
    along = finite(of_words(read))
    strongest = along.max("token").values  # NaN without a word
    onsets = first_above(along, 0).values
    active = np.flatnonzero(strongest > 0)
    best = active[np.argsort(-strongest[active], kind="stable")][:top]
    layer, feature, nominal = (along[name].values.item() for name in ("layer", "feature", "average_l0"))
    return FeatureView(
        layer=layer,
        feature=feature,
        average_l0=nominal,
        sentences=int(np.count_nonzero(~np.isnan(strongest))),
        active=len(active),
        maximum=float(strongest[active].max(initial=0)),
        onsets=_spread(onsets[active]),
        labels=tuple(_labels(_labels_of(along), strongest)),
        examples=tuple(_examples(along, best, strongest, onsets)),
        link=link(ds.attrs, layer, feature, nominal, alone=sae_dim(ds) == "layer"),
        nonfinite_sentences=nonfinite_sentences(read),
    )


def _read(along: xr.DataArray, progress: Progress) -> xr.DataArray:
    """Read the activations piece by piece, but none of the texts; tokens in reading order."""
    along = along.sortby("token")
    n = along.sizes["sentence"]
    if not along.size:
        raise SelectionError("has no sentences to look at; select some")
    values = np.empty(along.shape, along.dtype)
    for start in range(0, n, SENTENCES_PER_CHUNK):
        piece = slice(start, start + SENTENCES_PER_CHUNK)
        values[piece] = along[piece].values
        progress("reading sentences", min(piece.stop, n), n)
    return along.copy(data=values)


def _labels_of(along: xr.DataArray) -> Array:
    """Return the label of each sentence, NaN without one."""
    return np.where(along["has_label"].values, label_numbers(along), np.nan)


def _label(value: float) -> float | None:
    if np.isnan(value):
        return None
    return int(value) if value == int(value) else float(value)


def _labels(labels: Array, strongest: Array) -> Iterator[LabelSummary]:
    for label in np.unique(labels):  # NaN last, once
        counted = strongest[(np.isnan(labels) if np.isnan(label) else labels == label) & ~np.isnan(strongest)]
        counted = counted.astype(np.float64)  # float16 sums overflow
        if len(counted):
            yield LabelSummary(
                label=_label(label),
                sentences=len(counted),
                active=float(np.mean(counted > 0)),
                mean=float(counted.mean()),
                maximum=float(counted.max()),
            )


def _examples(along: xr.DataArray, positions: Array, strongest: Array, onsets: Array) -> Iterator[Example]:
    labels, texts = _labels_of(along), along["token_text"][positions].values
    is_token, values = along["is_token"][positions].values, along.values[positions]
    for position, text, there, activations in zip(positions, texts, is_token, values, strict=True):
        yield Example(
            sentence=int(along["sentence"][position]),
            label=_label(labels[position]),
            maximum=float(strongest[position]),
            onset=int(onsets[position]),
            tokens=tuple(text[there].tolist()),
            activations=tuple(activations[there].tolist()),
        )


def _spread(onsets: Array) -> tuple[int, ...]:
    found = onsets.astype(int).tolist()
    return (min(found), median_low(found), max(found)) if found else ()
