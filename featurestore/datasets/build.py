"""From a store to one dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.datasets import preflight
from featurestore.datasets.assembly import assemble
from featurestore.datasets.dataset import Dataset, check_output, load_dataset
from featurestore.datasets.journal import Journal, statistics_file, tables
from featurestore.datasets.plans import Plan, default_output, split_options
from featurestore.datasets.raw import probe, read
from featurestore.datasets.view import StoreView
from featurestore.paths import PathLike
from featurestore.schema import MIN_ACTIVE, Progress
from featurestore.store.ingest import find_store
from featurestore.store.location import Location, StorageOptions

logger = logging.getLogger(__name__)


def build(
    store: PathLike,
    strategy: str,
    *,
    normalize: str | None = None,
    output: PathLike | None = None,
    overwrite: bool = False,
    drop_nonfinite: bool = False,
    test_size: float | None = None,
    folds: int | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    stats_from: PathLike | None = None,
    wait: bool = False,
    storage_options: StorageOptions | None = None,
    **options: Any,
) -> Dataset:
    """Build one dataset from the final tokens of a store.

    Parameters
    ----------
    store : str or PathLike
        The store, a zip of it or its URL; or a folder of sentence NPZs, whose store ``stores/<folder name>.zarr`` is
        brought up to date first.
    strategy : str
        A registered strategy, such as ``"hidden-to-concept"``.
    normalize : str, optional
        ``"standardize"`` (default), ``"minmax"`` or ``"none"``.
    output : str or PathLike, optional
        Where to write the dataset; without it nothing is written.
    overwrite : bool
        Replace an `output` that has other content.
    drop_nonfinite : bool
        Leave out sentences with NaN or infinity in X or y, and record them, instead of refusing.
    test_size, folds, seed, group_by : optional
        Divide the sentences into training and test rows, or folds, without leakage (see `SplitOptions`); the
        normalization is then fitted on the training rows alone. Without a split it is fitted on all rows.
    stats_from : str or PathLike, optional
        A dataset of the same strategy and input, whose normalization is used instead of fitting one.
    wait : bool
        Wait while another process writes the store, instead of raising.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).
    **options
        The strategy's options, such as ``layers="0-2,10"``.

    Returns
    -------
    Dataset
        Raw values are read from the store; its `X` is normalized when it is used.

    Raises
    ------
    ParameterError
        If an option is unknown, missing, contradictory or unreadable.
    SelectionError
        If the store lacks the layer, feature or SAE, has no sentence, or cannot be split as asked.
    NonFiniteError
        If X or y have NaN or infinite values and `drop_nonfinite` is false, or no sentence is left.
    DatasetError
        If `output` exists with other content and `overwrite` is false, or `stats_from` does not fit.
    StrategyError
        If what the strategy returns is no dataset.
    StoreError
        If `store` is not a store, or cannot be reached.
    SourceError, NpzError
        As `ingest`, for a folder.
    """
    plan = plan_of(
        strategy, options, normalize=normalize, drop_nonfinite=drop_nonfinite, stats_from=stats_from,
        test_size=test_size, folds=folds, seed=seed, group_by=group_by,
    )  # fmt: skip
    path = None if output is None else check_output(output)
    found = find_store(store, storage_options=storage_options, wait=wait)
    return build_plan(found, plan, path, overwrite=overwrite)


def build_file(
    store: PathLike,
    strategy: str,
    options: Mapping[str, object],
    *,
    output: PathLike | None = None,
    overwrite: bool = False,
    wait: bool = False,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
    **further: Any,
) -> tuple[Path, Dataset]:
    """Build one dataset as `build` does, and write it in any case: without `output` where its name says what is in it.

    Parameters
    ----------
    options : mapping
        The strategy's options.
    progress : callable
        Called as ``progress(what, done, total)`` while a folder of sentence NPZs is ingested.
    **further
        All else as of `build`.

    Returns
    -------
    Path, Dataset
        The file, and what is in it.
    """
    plan = plan_of(strategy, options, **further)
    path = None if output is None else check_output(output)
    found = find_store(store, storage_options=storage_options, wait=wait, progress=progress)
    path = path or default_output(found, plan)
    return path, build_plan(found, plan, path, overwrite=overwrite)


def plan_of(
    strategy: str,
    options: Mapping[str, object],
    *,
    normalize: str | None = None,
    drop_nonfinite: bool = False,
    stats_from: PathLike | None = None,
    **split: Any,
) -> Plan:
    """Validate the options of `build`, and load the dataset whose statistics are used."""
    divided, statistics, files = split_options(**split), None, tables(split.get("group_by"))
    if stats_from is not None:
        statistics = load_dataset(stats_from)
        files.append(statistics_file(stats_from, statistics.metadata))
    return Plan.of(
        strategy, options, normalize=normalize, drop_nonfinite=drop_nonfinite, split=divided, stats_from=statistics,
        files=files,
    )  # fmt: skip


def build_plan(store: Location, plan: Plan, output: Path | None = None, *, overwrite: bool = False) -> Dataset:
    """Build the dataset of a validated plan; otherwise as `build`."""
    view = StoreView(store)
    view.check(plan)
    (loaded,) = read(probe(view, [plan]), output and output.parent)
    dataset, n_constant = assemble(loaded)
    if divided := view.split(plan.split):
        logger.info("%s", divided.report_of(np.isin(view.sentences, dataset.metadata["sentence_indices"])))
    if n_constant:
        logger.warning("%d of %d columns of X are constant", n_constant, dataset.data.shape[1])
    if fault := preflight.problem(loaded, MIN_ACTIVE):
        logger.warning("%s", fault)
    if output is not None:
        dataset.save(output, overwrite=overwrite)
        Journal().add(output, view.fingerprint(plan), plan.files)
    return dataset
