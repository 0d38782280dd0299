"""From a store to one dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.datasets import dataset as datasets
from featurestore.datasets import preflight
from featurestore.datasets.assembly import Assembly
from featurestore.datasets.journal import Journal, statistics_file, tables
from featurestore.datasets.plans import Plan, split_options
from featurestore.datasets.view import Source
from featurestore.paths import PathLike
from featurestore.schema import DATASETS, MIN_ACTIVE
from featurestore.store.ingest import find_store
from featurestore.store.snapshot import store_name

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
    **parameters: Any,
) -> datasets.Dataset:
    """Build one dataset from the final tokens of a store.

    Parameters
    ----------
    store : str or PathLike
        The store, or a folder of sentence NPZs, whose store ``stores/<folder name>.zarr`` is brought up to date first.
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
    **parameters
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
        If `store` is not a store.
    SourceError, NpzError
        As `ingest`, for a folder.
    """
    plan = plan_of(
        strategy, parameters, normalize, drop_nonfinite, stats_from,
        test_size=test_size, folds=folds, seed=seed, group_by=group_by,
    )  # fmt: skip
    output = None if output is None else datasets.check_output(output)
    return build_plan(find_store(store, wait=wait), plan, output, overwrite=overwrite)


def plan_of(
    strategy: str,
    parameters: Mapping[str, object],
    normalize: str | None,
    drop_nonfinite: bool,
    stats_from: PathLike | None,
    **split: Any,
) -> Plan:
    """Validate the options of `build`, and load the dataset whose statistics are used."""
    options, statistics, files = split_options(**split), None, tables(split.get("group_by"))
    if stats_from is not None:
        statistics = datasets.load_dataset(stats_from)
        files.append(statistics_file(stats_from, statistics.metadata))
    return Plan.of(strategy, parameters, normalize, drop_nonfinite, options, statistics, files)


def build_plan(store: Path, plan: Plan, output: Path | None = None, *, overwrite: bool = False) -> datasets.Dataset:
    """Build the dataset of a validated plan; otherwise as `build`."""
    source = Source(store)
    source.check(plan)
    assembly = Assembly(source)
    assembly.read([plan], output and output.parent)
    dataset, n_constant = assembly.dataset(plan)
    if divided := source.split(plan.split):
        kept = np.isin(source.sentences, dataset.metadata["sentence_indices"])
        logger.info("%s", divided.report_of(kept))
    if n_constant:
        logger.warning("%d of %d columns of X are constant", n_constant, dataset.data.shape[1])
    if fault := preflight.problem(assembly, plan, MIN_ACTIVE):
        logger.warning("%s", fault)
    if output is not None:
        dataset.save(output, overwrite=overwrite)
        Journal().add(output, source.fingerprint(plan), plan.files)
    return dataset


def default_output(store: PathLike, plan: Plan, folder: Path = DATASETS) -> Path:
    """Name a dataset after what is in it: ``generated_datasets/<store>/<strategy and its parameters>.npz``."""
    return folder / store_name(Path(store)) / plan.file_name
