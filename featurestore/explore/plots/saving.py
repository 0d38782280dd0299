"""A plot of a store, as a file."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datasets.dataset import check_output
from featurestore.errors import ParameterError, extra, lacking, spelled
from featurestore.explore.plots import feature, hidden, layers, style
from featurestore.files import whole_file
from featurestore.paths import PathLike
from featurestore.schema import PLOTS, Progress
from featurestore.store.location import StorageOptions, location
from featurestore.store.reading import open_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MODULES = (feature, hidden, layers)
KINDS: dict[str, Callable[..., Axes]] = {
    kind: getattr(module, kind) for kind in PLOTS for module in _MODULES if hasattr(module, kind)
}
"""The plots by name."""

_SALT = "featurestore"
_NO_DATES: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
}
"""What files are not to say, so that the same store gives the same bytes."""


def save(
    kind: str,
    store: PathLike,
    output: PathLike,
    *,
    overwrite: bool = False,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Path:
    """Draw a plot of a store, as wide as a column of a paper, into a file: the same bytes for the same store.

    Parameters
    ----------
    kind : str
        Name of a function of `featurestore.explore.plots`.
    store : str or PathLike
        The store, a zip of it or its URL.
    output : str or PathLike
        Ends in ``.svg`` or ``.png`` (300 dots per inch).
    overwrite : bool
        Replace an `output` that has other content.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).
    progress : callable
        Called as ``progress(what, done, total)``.
    **options
        Of the plot: `layer`, `feature`, `average_l0`. None is one that is not given.

    Returns
    -------
    Path
        The output.

    Raises
    ------
    ParameterError
        If there is no such plot, an option is missing or unknown to it, or `output` ends otherwise.
    DatasetError
        If `output` exists with other content and `overwrite` is false, or cannot be written there.
    SelectionError, StoreError, MissingExtraError
        As the plot, and as `open_store`.
    """
    path = check_output(output, *_NO_DATES)
    given = _checked(kind, {name: value for name, value in options.items() if value is not None})
    if "progress" in inspect.signature(KINDS[kind]).parameters:
        given["progress"] = progress
    where = location(store, storage_options)
    with lacking(where):
        content = rendered(kind, path.suffix, open_store(where), **given)
    with whole_file(path, overwrite=overwrite) as file:
        file.write(content)
    return path


def _checked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Refuse options that a kind of plot lacks or does not have."""
    if kind not in KINDS:
        raise ParameterError(f"{spelled('kind')}: expected one of {', '.join(KINDS)}, found {kind!r}")
    known = inspect.signature(KINDS[kind]).parameters.values()
    positional = [one for one in known if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "ds"]
    if missing := [one.name for one in positional if one.default is one.empty and one.name not in options]:
        raise ParameterError(f"{kind} needs {' and '.join(map(spelled, missing))}")
    if surplus := [name for name in options if name not in {one.name for one in positional}]:
        raise ParameterError(f"{spelled(surplus[0])}: is no option of {kind}")
    return options


def rendered(kind: str, suffix: str, ds: Any, background: str = "white", **options: Any) -> bytes:
    """Draw a plot, and return what a file of that suffix would hold."""
    with extra("plots"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context(style.STYLE | {"svg.hashsalt": _SALT}):
        figure = Figure(style.SIZE, layout="constrained")
        KINDS[kind](ds, **options, ax=figure.add_subplot())
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=300, metadata=_NO_DATES[suffix], facecolor=background)
    return content.getvalue()
