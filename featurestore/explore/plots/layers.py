"""Plots that compare layers: by how well labels can be told apart, and by their SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.explore import separability as separating
from featurestore.explore.findings import FEW
from featurestore.explore.plots import style
from featurestore.explore.reading import check_dataset
from featurestore.explore.saes import measured_l0
from featurestore.schema import Progress
from featurestore.store.info import L0_TOLERANCE

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_WITHOUT_MODEL = (("text", "words alone", "#d55e00", "-."), ("length", "length alone", "#009e73", "--"))
"""Baselines that need no model: name, label, colour and line, so that they differ without colours, too."""


def separability(ds: xr.Dataset, *, ax: Axes | None = None, progress: Progress = lambda *_: None) -> Axes:
    """Draw how well a probe tells the labels from each layer, beside chance and what words or length alone tell.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it; or what `featurestore.separability` has found, if it was asked otherwise
        than by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure, as wide as a column.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError, ParameterError, MissingExtraError
        As `featurestore.separability`.
    """
    with style.axes(ax) as ax:
        check_dataset(ds)
        found = ds if "accuracy" in ds else separating.separability(ds, progress=progress)
        found = found * 100
        layers = found["layer"].values
        lines: list[Any] = [
            ax.errorbar(
                layers, found[name].values, found[f"{name}_error"].values, color=color, marker=marker, label=label,
                capsize=1.5, elinewidth=0.7, zorder=3,
            )
            for name, color, marker, label in (
                ("accuracy", style.ACCENT, "o", "probe of hidden states"),
                ("shuffled", style.QUIET, "s", "the same, shuffled labels"),
            )
        ]  # fmt: skip
        lines.append(ax.axhline(float(found["chance"]), color=style.INK, linestyle=":", linewidth=0.8, label="chance"))
        for name, label, color, line in _WITHOUT_MODEL:
            accuracy, error = float(found[name]), float(found[f"{name}_error"])
            ax.axhspan(accuracy - error, accuracy + error, color=color, alpha=0.2, linewidth=0)
            lines.append(ax.axhline(accuracy, color=color, linestyle=line, label=label))
        ax.set_ylim(0, 100)
        ax.set_ylabel("balanced accuracy, %")
        style.layer_axis(ax, layers)
        style.legend_above(ax, f"final token, {_used(found)}; ± standard error{_too_small(found)}", 2, handles=lines)
    return ax


def fisher(ds: xr.Dataset, *, ax: Axes | None = None, progress: Progress = lambda *_: None) -> Axes:
    """Draw the Fisher ratio of each layer, beside what it would be by chance.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it; or what `featurestore.fisher_ratio` has found.
    ax, progress
        As of `separability`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        As `featurestore.fisher_ratio`.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        check_dataset(ds)
        found = ds if "ratio" in ds else separating.fisher_ratio(ds, progress=progress)
        layers = found["layer"].values
        ax.plot(layers, found["ratio"], color=style.ACCENT, marker="o", label="between / within labels")
        ax.plot(layers, found["shuffled"], color=style.QUIET, marker="s", label="shuffled labels, 95th percentile")
        ax.axhline(1, color=style.INK, linestyle=":", linewidth=0.8, label="chance")
        ax.set_ylim(bottom=0)
        ax.set_ylabel("Fisher ratio")
        style.layer_axis(ax, layers)
        style.legend_above(ax, f"final token, {_used(found)}", 2)
    return ax


def _used(found: xr.Dataset) -> str:
    return f"{found.attrs['sentences']:,} sentences"


def _too_small(found: xr.Dataset) -> str:
    """Warn of standard errors where a label is rare."""
    rarest = found.attrs.get("rarest", FEW)
    return f"\nthe rarest label has {rarest}, so errors are too small" if rarest < FEW else ""


def l0(ds: xr.Dataset, *, ax: Axes | None = None, progress: Progress = lambda *_: None) -> Axes:
    """Draw for each SAE how many features are active at a token, divided by its nominal average L0.

    Points are means of the sentences' means over all tokens but special ones; bars hold 90 % of the sentences' means.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it that keeps its dims, of which 128 sentences are drawn at random if there
        are more; or what `featurestore.explore.saes.measured_l0` has found.
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
        If there are no activations.
    ParameterError
        If `ds` is no dataset.
    MissingExtraError
        If matplotlib is not installed.
    """
    with style.axes(ax) as ax:
        check_dataset(ds)
        found = ds if "nominal" in ds else measured_l0(ds, progress=progress)
        nominal = found["nominal"].values
        mean, low, high = (found[name].values / nominal for name in ("measured", "low", "high"))
        ax.axhspan(1 / L0_TOLERANCE, L0_TOLERANCE, color=style.QUIET, alpha=0.15, linewidth=0)
        ax.axhline(1, color=style.INK, linestyle=":", linewidth=0.8)
        x = _side_by_side(found["layer"].values)
        ax.vlines(x, low, high, color=style.QUIET, linewidth=0.8)
        _points(ax, x, mean, nominal)
        _ratio_axis(ax, low, high)
        style.layer_axis(ax, np.unique(found["layer"].values))
        title = f"{_used(found)}, bars: 90 % of them\nshaded: within a factor of {L0_TOLERANCE:g}"
        ax.set_title(title, loc="left", fontsize=7)
    return ax


def _points(ax: Axes, x: NDArray[Any], mean: NDArray[Any], nominal: NDArray[Any]) -> None:
    """Draw a point for each SAE, coloured by its nominal L0 where they differ."""
    from matplotlib.colors import LogNorm

    known = np.unique(nominal)
    if len(known) == 1:
        ax.scatter(x, mean, s=14, color=style.ACCENT, zorder=3)
        ax.set_ylabel(f"measured L0 / nominal L0 of {known[0]:g}")
        return
    points = ax.scatter(x, mean, s=14, c=nominal, cmap="viridis", norm=LogNorm(), edgecolors=style.INK, linewidths=0.3)
    bar = style.color_bar(ax, points, "nominal L0")
    ticks = np.geomspace(known[0], known[-1], 5).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:.0f}" for tick in ticks], minor=False)
    bar.minorticks_off()
    ax.set_ylabel("measured / nominal L0")


def _side_by_side(layers: NDArray[Any]) -> NDArray[Any]:
    """Return where the points of SAEs stand on the x axis: those of one layer beside each other."""
    known, counts = np.unique(layers, return_counts=True)
    step = 0.7 / counts.max()
    among = np.array([np.count_nonzero(layers[:position] == layer) for position, layer in enumerate(layers)])
    return np.asarray(layers + step * (among - (counts[np.searchsorted(known, layers)] - 1) / 2))


def _ratio_axis(ax: Axes, low: NDArray[Any], high: NDArray[Any]) -> None:
    """Scale the y axis so that half and twice are as far from 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    most = float(np.nanmax([4, np.nanmax(high), 1 / max(np.nanmin(low), 0.01)]))
    ax.set_yscale("log", base=2)
    ax.set_ylim(1 / most, most)
    ax.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(-6, 12)]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
