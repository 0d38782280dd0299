"""Plots of hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import SelectionError
from featurestore.explore.plots import style
from featurestore.explore.reading import at_final_token, by_layer, check_dataset, check_finite, drawn
from featurestore.ranges import format_numbers
from featurestore.schema import HIDDEN_STATES, Progress

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


def norms(ds: xr.Dataset, *, ax: Axes | None = None, progress: Progress = lambda *_: None) -> Axes:
    """Draw the norm of the hidden states, by layer and token: the median over the sentences.

    Special tokens, such as a BOS, do not count. A token is drawn where at least half of the sentences have it.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it. Of more than 2,000 sentences, so many are drawn at random.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure, as wide as a column.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If there are no hidden states, or no token that half of the sentences have.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        kept = drawn(ds)
        check_dataset(kept, "is_token", "is_special")
        layers, tokens, medians = _medians(kept, progress)
        _norm_image(ax, tokens, medians)
        rows = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 12)).round().astype(int))
        ax.set_yticks(rows, [str(layers[row]) for row in rows])
        ax.set_ylabel("layer")
        style.token_axis(ax, tokens)
        title = f"median of {style.sentences_drawn(kept.sizes['sentence'], ds.sizes['sentence'])}"
        ax.set_title(f"{title}, special tokens left out", loc="left", fontsize=7)
    return ax


def _medians(ds: xr.Dataset, progress: Progress) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """Return the layers, the tokens that most sentences have, and the median norm of each, (layer, token)."""
    words = (ds["is_token"] & ~ds["is_special"]).values.reshape(ds.sizes["sentence"], -1)
    tokens = np.atleast_1d(ds["token"].values)
    columns = np.flatnonzero(np.count_nonzero(words, axis=0) >= len(words) / 2)
    if not len(columns):
        raise SelectionError("has no token that half of the sentences have, special ones left out")
    layers, medians = [*by_layer(_hidden_states(ds))], []
    for done, (_, array) in enumerate(layers, 1):
        row = []
        for column in columns.tolist():  # one at a time, lest a layer at all tokens has to fit into memory
            values = array.isel(token=column) if "token" in array.dims else array
            there = np.linalg.norm(values.values.astype(np.float32), axis=-1)[words[:, column]]
            check_finite(there)
            row.append(np.median(there))
        medians.append(row)
        progress("measuring norms", done, len(layers))
    return [layer for layer, _ in layers], tokens[columns], np.array(medians)


def _norm_image(ax: Axes, tokens: NDArray[Any], medians: NDArray[Any]) -> None:
    """Draw norms as colours, the smallest layer below; in a logarithmic scale where they differ tenfold."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(medians.min()), float(medians.max())
    norm = LogNorm(low, high) if 0 < 10 * low < high else Normalize(0, high)
    extent = (tokens[0] - 0.5, tokens[-1] + 0.5, -0.5, len(medians) - 0.5)
    image = ax.imshow(
        medians, aspect="auto", origin="lower", cmap="cividis", norm=norm, interpolation="nearest", extent=extent
    )
    bar = style.color_bar(ax, image, "norm of the hidden states")
    bar.ax.yaxis.set_major_formatter("{x:g}")


def pca(ds: xr.Dataset, layer: int, *, ax: Axes | None = None) -> Axes:
    """Draw the hidden states of a layer at the final token along their first two principal components.

    Coloured by label, which the components know nothing of.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it. Of more than 2,000 sentences, so many are drawn at random.
    layer : int
        Of the hidden states.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure, as wide as a column.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If there are no hidden states of the layer, no sentence has a label, or they are fewer than three.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        kept = drawn(ds, by_label=True)
        layers = dict(by_layer(_hidden_states(kept)))
        if layer not in layers:
            known = format_numbers(tuple(layers))
            raise SelectionError(f"has no hidden states of layer {layer}: choose from {known}")
        points, shares = _principal(at_final_token(layers[layer]))
        labels = kept["label"].values
        for look in style.label_styles(labels):
            own = points[labels == look.value]
            ax.scatter(
                own[:, 0], own[:, 1], s=14, color=look.color, marker=look.marker, edgecolors=style.INK, linewidths=0.3,
                label=str(look.value),
            )  # fmt: skip
        ax.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)")
        ax.set_ylabel(f"second component ({100 * shares[1]:.0f} %)")
        ax.set_aspect("equal", adjustable="datalim")
        title = f"layer {layer}, final token, {style.sentences_drawn(len(points), ds.sizes['sentence'])}; label:"
        style.legend_above(ax, title)
    return ax


def _principal(X: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return values along the first two principal components, (sentence, 2), and their shares of the variance.

    By the eigenvectors of whichever is smaller, the sentences' products or those of the dims. Of a component's two
    directions, that in which the largest value is positive.
    """
    if len(X) < 3:
        raise SelectionError(f"has {len(X)} sentences to draw; expected at least 3")
    X = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    if len(X) <= X.shape[1]:
        variances, vectors = np.linalg.eigh(X @ X.T)
        points = vectors[:, :-3:-1] * np.sqrt(np.maximum(variances[:-3:-1], 0))
    else:
        variances, vectors = np.linalg.eigh(X.T @ X)
        points = X @ vectors[:, :-3:-1]
    if points.shape[1] < 2:
        points, variances = np.pad(points, ((0, 0), (0, 1))), np.pad(variances, (1, 0))
    largest = np.take_along_axis(points, abs(points).argmax(axis=0)[None], axis=0)
    return points * np.where(largest < 0, -1, 1), variances[:-3:-1] / max(variances.sum(), 1e-300)


def _hidden_states(ds: xr.Dataset) -> xr.DataArray:
    if HIDDEN_STATES not in ds:
        raise SelectionError("has no hidden states")
    return ds[HIDDEN_STATES]
