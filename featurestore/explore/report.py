"""A store in one page: what is in it, plots, features, and what looks wrong."""

from __future__ import annotations

import os
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datasets.dataset import check_output
from featurestore.errors import ParameterError, brief, extra, lacking
from featurestore.explore import sections
from featurestore.explore.plots import style
from featurestore.files import whole_file
from featurestore.paths import PathLike
from featurestore.schema import Progress, __version__
from featurestore.store.location import StorageOptions, location
from featurestore.store.reading import labelled
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import xarray as xr


def report(
    store: PathLike | xr.Dataset,
    output: PathLike,
    *,
    overwrite: bool = False,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
) -> Path:
    """Describe a store in one HTML page, which needs no network: an overview, what looks wrong, plots, features.

    Parameters
    ----------
    store : str, PathLike or xarray.Dataset
        The store, a zip of it or its URL; or a dataset as of `open_store`, or a selection of one that keeps its dims.
    output : str or PathLike
        Ends in ``.html``.
    overwrite : bool
        Replace an `output` that has other content.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Path
        The output: the same bytes for the same store.

    Raises
    ------
    ParameterError
        If `store` is neither a path nor a dataset, or `output` ends otherwise.
    DatasetError
        If `output` exists with other content and `overwrite` is false, or cannot be written there.
    SelectionError
        If the dataset lacks a coordinate of `open_store`. What a page cannot show otherwise, it says.
    StoreError
        If `store` is no store.
    MissingExtraError
        If matplotlib, scikit-learn or Jinja2 is not installed.
    """
    with extra("report"):
        import jinja2
        import matplotlib  # noqa: F401
        import sklearn  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    path = check_output(output, ".html")
    templates = jinja2.PackageLoader("featurestore.explore")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = sections.shown
    script = templates.get_source(environment, "report.js")[0]
    page = environment.get_template("report.html").render(
        _content(store, storage_options, progress),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        ink=style.INK,
        version=__version__,
    )
    with whole_file(path, overwrite=overwrite) as file:
        file.write(page.encode())
    return path


def _content(
    store: PathLike | xr.Dataset, storage_options: StorageOptions | None, progress: Progress
) -> dict[str, Any]:
    """Read and measure all that the page shows."""
    import xarray as xr

    from featurestore.store.backend import warn_if_incomplete

    if isinstance(store, xr.Dataset):
        return {"name": "selection", **sections.all_of(store, None, progress)}
    if not isinstance(store, str | os.PathLike):
        raise ParameterError(f"expected a store or a dataset as of open_store, found {brief(store)}")
    path = location(store, storage_options)
    with lacking(path):
        snapshot = Snapshot.read(path)
        warn_if_incomplete(snapshot)
        return {"name": path.name, **sections.all_of(labelled(snapshot), snapshot, progress)}
