"""Plots of a store: each takes an open store, or a selection of it, and draws on one matplotlib Axes.

>>> from featurestore.explore import plots
>>> axes = plots.trajectory(ds, layer=15, feature=61)  # doctest: +SKIP

They need matplotlib (``pip install '.[plots]'``). Colours can be told apart by colour-blind readers; without
`ax`, a figure is as wide as a column of a paper.
"""

from featurestore.explore.plots.feature import activation, heatmap, trajectory
from featurestore.explore.plots.hidden import norms, pca
from featurestore.explore.plots.layers import fisher, l0, separability
from featurestore.explore.plots.saving import save

__all__ = ["activation", "fisher", "heatmap", "l0", "norms", "pca", "save", "separability", "trajectory"]
