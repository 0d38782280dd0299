"""Plots of one SAE feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.explore.plots import style
from featurestore.explore.reading import at_final_token, drawn
from featurestore.explore.tokens import of_words
from featurestore.explore.tokens import trajectory as along

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_UNLABELLED = np.iinfo(np.int64).min
"""Sorts before every label."""

_MOST_LINES, _MOST_MARKERS = 120, 20
"""Sentences that are drawn one by one, and markers on a line."""


def trajectory(
    ds: xr.Dataset, layer: int, feature: int, average_l0: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw a feature along the sentences, which are aligned where they end, and its mean for each label.

    A mean is drawn where at least half of the label's sentences have a token. Special tokens, such as a BOS, are left
    out.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of its sentences. Of more than 2,000 sentences, so many are drawn at random.
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or float, optional
        Which SAE, where the layer has several.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure, as wide as a column.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store, or no sentence has a label.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        values = of_words(along(drawn(ds, by_label=True), layer, feature, average_l0))
        tokens, labels = values["token"].values, values["label"].values
        looks, every = style.label_styles(labels), -(-len(tokens) // _MOST_MARKERS)
        for look in looks:
            rows = values.values[labels == look.value]
            some = rows[:: -(-len(rows) * len(looks) // _MOST_LINES)]
            lines = np.pad(some, ((0, 0), (0, 1)), constant_values=np.nan).ravel()  # one line, with gaps
            ax.plot(np.tile([*tokens, np.nan], len(some)), lines, color=look.color, alpha=0.3, linewidth=0.5)
            mean = _mean_of_most(rows)
            ax.plot(
                tokens, mean, color=look.color, marker=look.marker, markevery=((len(tokens) - 1) % every, every),
                label=str(look.value), linewidth=1.6, zorder=3,
            )  # fmt: skip
        ax.set_ylabel("activation")
        _from_zero(ax, values.values)
        style.token_axis(ax, tokens)
        style.legend_above(
            ax, f"{_name(layer, feature, average_l0)}\nmean by label; thin: sentences; no special tokens"
        )
    return ax


def _mean_of_most(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the mean at each token that at least half of the rows have, elsewhere NaN."""
    present = np.count_nonzero(~np.isnan(rows), axis=0)
    enough = present >= max(1, len(rows) / 2)
    mean: NDArray[Any] = np.where(enough, np.nansum(rows, axis=0) / np.maximum(present, 1), np.nan)
    return mean


def heatmap(
    ds: xr.Dataset, layer: int, feature: int, average_l0: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw a feature at each token of each sentence: sentences by label, those where it is strongest first.

    Sentences without a label stand above the others. Special tokens, such as a BOS, are left out.

    Parameters
    ----------
    ds, layer, feature, average_l0, ax
        As of `trajectory`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        values = of_words(along(drawn(ds), layer, feature, average_l0))
        label = np.where(values["has_label"].values, values["label"].values, _UNLABELLED)
        order = np.lexsort((-np.nan_to_num(values.values).max(axis=1), label))
        tokens = values["token"].values
        _image(ax, values.values[order], (tokens[0] - 0.5, tokens[-1] + 0.5, len(order) - 0.5, -0.5))
        _label_rows(ax, label[order])
        style.token_axis(ax, tokens)
        ax.set_title(
            f"{_name(layer, feature, average_l0)}\nwhite: inactive, grey: no token, or a special one",
            loc="left",
            fontsize=7,
        )
    return ax


def _image(ax: Axes, values: NDArray[Any], extent: tuple[float, float, float, float]) -> None:
    """Draw activations as colours: the stronger the darker, none for 0."""
    import matplotlib

    top = float(np.nanmax(values, initial=0)) or 1.0
    colors = matplotlib.colormaps["viridis_r"].with_extremes(under="white", bad="#d4d4d4")
    image = ax.imshow(
        values, aspect="auto", cmap=colors, vmin=top * 1e-6, vmax=top, interpolation="nearest", extent=extent
    )
    style.color_bar(ax, image, "activation")


def _label_rows(ax: Axes, labels: NDArray[Any]) -> None:
    """Name the label of each run of rows, and part the runs by lines."""
    values, starts, counts = np.unique(labels, return_index=True, return_counts=True)
    for start in starts[1:].tolist():
        ax.axhline(start - 0.5, color=style.INK, linewidth=0.6)
    names = ["none" if value == _UNLABELLED else str(value) for value in values.tolist()]
    names = [name if 20 * count >= len(labels) else "" for name, count in zip(names, counts.tolist(), strict=True)]
    ax.set_yticks(starts + (counts - 1) / 2, names)  # of runs that are too thin for a name, none
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("sentences, by label")


def activation(
    ds: xr.Dataset, layer: int, feature: int, average_l0: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw a feature at the final token of each sentence, by label, and their mean with its standard error.

    Parameters
    ----------
    ds, layer, feature, average_l0, ax
        As of `trajectory`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If the layer, the feature or the SAE is not in the store, or no sentence has a label.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        values = along(drawn(ds, by_label=True), layer, feature, average_l0)
        final, labels = at_final_token(values), values["label"].values
        looks, names = style.label_styles(labels), list[str]()
        for position, look in enumerate(looks):
            own = final[labels == look.value]
            beside = position - 0.15 + np.random.default_rng(0).uniform(-0.2, 0.2, len(own))
            ax.scatter(beside, own, s=8, color=look.color, marker=look.marker, alpha=0.6, linewidths=0)
            error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
            ax.errorbar(
                position + 0.25, own.mean(), error, color=style.INK, fmt="o", capsize=2,
                label="mean ± standard error" if position == 0 else None,
            )  # fmt: skip
            names.append(f"{look.value}\n{np.count_nonzero(own)} of {len(own)}" if len(looks) <= 6 else str(look.value))
        ax.set_xticks(range(len(looks)), names)
        ax.set_xlabel("label" + "; sentences in which it is active" * (len(looks) <= 6))
        ax.set_ylabel("activation at the final token")
        _from_zero(ax, final)
        style.legend_above(ax, _name(layer, feature, average_l0))
    return ax


def _from_zero(ax: Axes, values: NDArray[Any]) -> None:
    """Start the y axis at 0, with room for the markers there; lower where values are negative."""
    if (top := float(np.nanmax(values, initial=0)) or 1.0) > 0 and not np.nanmin(values, initial=0) < 0:
        ax.set_ylim(-0.02 * top, 1.05 * top)


def _name(layer: int, feature: int, average_l0: float | None) -> str:
    return f"layer {layer}, feature {feature}" + (f", average L0 {average_l0:g}" if average_l0 is not None else "")
