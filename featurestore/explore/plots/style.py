"""What all plots share: size, colours, markers, legends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import extra
from featurestore.schema import FINAL_TOKEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from numpy.typing import NDArray

SIZE = (3.4, 2.6)
"""Inches: the width of a column of a paper."""

INK = "#24292f"
"""Of texts and axes; a page in dark colours replaces it."""

QUIET = "#808080"
"""Of baselines and of what is missing; visible on white and on black."""

ACCENT = "#0072b2"

STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 150,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 7,
    "ytick.color": INK,
    "ytick.labelsize": 7,
}

_OKABE_ITO = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = "osD^vP"
_COLUMNS = 7


@contextmanager
def axes(ax: Axes | None) -> Iterator[Axes]:
    """Yield the axes to draw on: those that are given, in whatever style they have, or those of a new figure."""
    with extra("plots"):
        import matplotlib.pyplot as plt
    if ax is not None:
        yield ax
        return
    with plt.rc_context(STYLE | {"figure.facecolor": "white"}):
        yield plt.subplots(figsize=SIZE, layout="constrained")[1]


@dataclass(frozen=True)
class Label:
    """A label, and how it looks everywhere."""

    value: int
    color: Any
    marker: str


def label_styles(values: NDArray[Any]) -> list[Label]:
    """Return how each label that there is looks.

    Small labels look the same whichever others there are. Others go by their rank: in the colours of Okabe and Ito, or
    of viridis where they are many.
    """
    import matplotlib

    labels, n = np.unique(values).tolist(), len(_OKABE_ITO)
    if all(value in range(n * n) for value in labels):  # of which no two look the same
        return [Label(value, _OKABE_ITO[value % n], _MARKERS[(value + value // n) % n]) for value in map(int, labels)]
    colors: Sequence[Any] = _OKABE_ITO
    if len(labels) > len(_OKABE_ITO):
        colors = [matplotlib.colormaps["viridis"](share) for share in np.linspace(0.25, 0.9, len(labels))]
    return [Label(value, colors[position], _MARKERS[position % len(_MARKERS)]) for position, value in enumerate(labels)]


def legend_above(ax: Axes, title: str, columns: int = _COLUMNS, **options: Any) -> None:
    """Put the legend above the axes, where it hides no data; its title is that of the plot."""
    n = len(ax.get_legend_handles_labels()[0])
    columns = -(-n // -(-n // columns))  # as even as that many rows can be
    legend = ax.legend(
        title=title, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2,
        handlelength=1.4, columnspacing=1.0, alignment="left", **options,
    )  # fmt: skip
    legend.get_title().set_multialignment("left")


def color_bar(ax: Axes, colored: ScalarMappable, label: str) -> Colorbar:
    """Say beside the axes what the colours mean."""
    figure = ax.get_figure()
    assert figure is not None
    return figure.colorbar(colored, ax=ax, label=label, pad=0.02)


def layer_axis(ax: Axes, layers: NDArray[Any]) -> None:
    """Label the x axis by layer, in true distances."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    ax.margins(x=0.03)
    if len(layers) == 1:
        ax.set_xticks(layers.tolist())


def token_axis(ax: Axes, tokens: NDArray[Any]) -> None:
    """Label the x axis by token, as the store counts them."""
    step = next(step for step in (1, 5, 10, *range(20, 10**6, 20)) if len(tokens) <= 8 * step)
    ax.set_xticks([token for token in tokens.tolist() if token % step == 0 or token == FINAL_TOKEN])
    ax.set_xlabel("token, counted from the end (\N{MINUS SIGN}1: the final one)")


def sentences_drawn(n: int, of: int) -> str:
    """Say how many sentences a plot shows."""
    return f"{n:,} sentences" if n == of else f"{n:,} of {of:,} sentences"
