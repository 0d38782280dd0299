"""From a store to one dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets import preflight
from featurestore.datasets.assembly import assemble
from featurestore.datasets.dataset import Dataset, check_output, load_dataset
from featurestore.datasets.journal import Journal, statistics_file, tables
from featurestore.datasets.plans import Plan, default_output, read_seed, split_options
from featurestore.datasets.raw import probe, read
from featurestore.datasets.view import StoreView
from featurestore.errors import ParameterError, SelectionError, brief, shortened, spelled
from featurestore.paths import PathLike, is_url
from featurestore.questions.choices import Choices
from featurestore.questions.rows import store_of
from featurestore.schema import MIN_ACTIVE, Progress
from featurestore.store.ingest import find_store
from featurestore.store.location import Location, StorageOptions, location
from featurestore.store.snapshot import store_name
from featurestore.strategies.registry import OWN

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)


def build(
    store: PathLike | Sequence[PathLike] | xr.Dataset,
    strategy: str,
    *,
    where: str | Sequence[str] | Mapping[str, Any] | None = None,
    drop_short: bool | None = None,
    drop_nonfinite: bool = False,
    tokens: str | None = None,
    special: bool | None = None,
    combine: str | None = None,
    normalize: str | None = None,
    stats_from: PathLike | None = None,
    reduce: str | None = None,
    target_tokens: str | None = None,
    y: str | None = None,
    labels_from: str | None = None,
    classes: str | Mapping[str, int] | Mapping[int, int] | None = None,
    control: str | None = None,
    test_size: float | None = None,
    test_store: str | None = None,
    folds: int | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    output: PathLike | None = None,
    overwrite: bool = False,
    wait: bool = False,
    storage_options: StorageOptions | None = None,
    **options: Any,
) -> Dataset:
    """Build one dataset from a store: at the final token of each sentence, unless other tokens are asked for.

    A dataset answers four questions: which rows (`where` to `drop_nonfinite`), what is X (the strategy, and `tokens` to
    `reduce`), what is y (the strategy, and `target_tokens` to `control`), and on which side each row is
    (`test_size` to `group_by`). All of these compose with every strategy.

    Parameters
    ----------
    store : str or PathLike, a sequence of them, or xarray.Dataset
        The store, a zip of it or its URL; or a folder of sentence NPZs, whose store ``stores/<folder name>.zarr`` is
        brought up to date first. Of several, all sentences (see `open_stores`). Of a dataset of `open_store`, or a
        selection of it, the store is taken, and its sentences as a condition of `where`; values are read from the
        store.
    strategy : str
        A registered strategy, such as ``"hidden-to-concept"``.
    where : str, sequence of str, or mapping, optional
        The population: conditions on coordinates of the sentences, all of which must be met, such as ``["label=0,3",
        "n_tokens=5-12"]``, or ``{"label": [0, 3], "n_tokens": "5-12"}``. Sides of a split are those of the whole store.
    drop_short : bool, optional
        Leave out sentences with fewer tokens than `tokens` or `target_tokens` need, and record them, instead of
        refusing.
    drop_nonfinite : bool
        Leave out sentences with NaN or infinity in X or y, and record them, instead of refusing.
    tokens : str, optional
        Of X: ``"final"`` (default), ``"mean"`` or ``"max"`` over the sentence's tokens, ``"last-3"`` or ``"first-2"``
        for so many, concatenated in reading order, or ``"all"``, which makes a row of each token.
    special : bool, optional
        Whether special tokens, such as a BOS, count among them; by default they don't. The final token always does.
    combine : str, optional
        What becomes of several layers (blocks) of X: ``"concat"`` (default), ``"mean"``, ``"sum"``, or
        ``"difference"`` of two, the second less the first. Calculated in float64, before tokens are pooled.
    normalize : str, optional
        ``"standardize"`` (default), ``"minmax"`` or ``"none"``.
    stats_from : str or PathLike, optional
        A dataset of the same strategy and input, whose normalization is used instead of fitting one, and its reduction
        with `reduce`, which has to be the same.
    reduce : str, optional
        Reduce X, once it is normalized, to components of the training rows: ``"pca-50"`` to the scores on the first 50
        principal ones, which are not normalized again; ``"umap-2"`` to an embedding, which can neither be applied to
        other data nor inverted later, and holds all of X in memory (needs the extra ``umap``).
    target_tokens : str, optional
        The same as `tokens` of an activation that is y, by default ``"final"``, or with ``tokens="all"`` the row's own.
    y : str, optional
        What a concept strategy predicts: ``"label"`` (default), or of several stores ``"store"``, which it is: its
        number in the order given.
    labels_from : str, optional
        Labels in place of the store's, ``FILE.csv:COLUMN``: whole numbers, or names, which are numbered from 0 as
        sorted. The file names each sentence by `sentence_index` or by `sentence`. Splits are stratified by them.
    classes : str or mapping, optional
        Which labels are which classes, such as ``"0=0,3=1"`` or ``{"honest": 0, "lie": 1}``; sentences of others are
        left out.
    control : str, optional
        What a probe finds without the model: ``"shuffled-labels"`` (y within each side), ``"random-columns"``
        (Gaussian, as many), ``"text"`` (hashed character n-grams, and the length) or ``"length"`` (in characters and in
        tokens, alone) in place of the real dataset, with its rows and split.
    test_size, test_store, folds, seed, group_by : optional
        Divide the sentences into training and test rows, or folds, without leakage (see `SplitOptions`); the
        normalization is then fitted on the training rows alone. Without a split it is fitted on all rows. `seed` is
        also that of a control.
    output : str or PathLike, optional
        Where to write the dataset; without it nothing is written.
    overwrite : bool
        Replace an `output` that has other content.
    wait : bool
        Wait while another process writes the store, instead of raising.
    storage_options : mapping, optional
        What fsspec needs to open a URL (see `open_store`).
    **options
        The strategy's options, such as ``layers="0-2,10"``.

    Returns
    -------
    Dataset
        Raw values are read from the store; its `X` is normalized when it is used, but if it is reduced, at once.

    Raises
    ------
    ParameterError
        If an option is unknown, missing, contradictory or unreadable, or there are fewer training rows or columns than
        components.
    SelectionError
        If the store lacks the layer, feature or SAE, has no such sentence, or none with tokens enough, or cannot be
        split as asked.
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
    part = None
    if not isinstance(store, str | os.PathLike | Sequence):
        part, store = store, store_of(store)
    plan = plan_of(
        strategy, options, where=where, drop_short=drop_short, drop_nonfinite=drop_nonfinite, tokens=tokens,
        special=special, combine=combine, normalize=normalize, stats_from=stats_from, reduce=reduce,
        target_tokens=target_tokens, y=y, labels_from=labels_from, classes=classes, control=control,
        test_size=test_size, test_store=test_store, folds=folds, seed=seed, group_by=group_by,
    )  # fmt: skip
    path = None if output is None else check_output(output)
    found = find_stores(store, storage_options=storage_options, wait=wait)
    return build_plan(StoreView(found), plan, path, overwrite=overwrite, part=part)


def build_file(
    store: PathLike | Sequence[PathLike],
    strategy: str,
    given: Mapping[str, Any],
    *,
    output: PathLike | None = None,
    overwrite: bool = False,
    wait: bool = False,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Path, Dataset]:
    """Build one dataset as `build` does, and write it in any case: without `output` where its name says what is in it.

    Parameters
    ----------
    given : mapping
        Options, those of the strategy and all others by which `build` knows what the dataset is.
    progress : callable
        Called as ``progress(what, done, total)`` while a folder of sentence NPZs is ingested.

    Returns
    -------
    Path, Dataset
        The file, and what is in it.
    """
    own = {name: value for name, value in given.items() if name not in OWN}
    others = {name: value for name, value in given.items() if name in OWN}
    plan = plan_of(strategy, own, **others)
    path = None if output is None else check_output(output)
    view = StoreView(find_stores(store, storage_options=storage_options, wait=wait, progress=progress))
    path = path or default_output(view.name, plan)
    return path, build_plan(view, plan, path, overwrite=overwrite)


def find_stores(
    sources: PathLike | Sequence[PathLike], storage_options: StorageOptions | None = None, **options: Any
) -> list[Location]:
    """Return the stores of one or several sources, as `find_store` does; options of URLs are for those alone."""
    if not isinstance(sources, str | os.PathLike) and not sources:
        raise ParameterError("store: expected one or several, found an empty list; name one")
    if isinstance(sources, str | os.PathLike):
        return [find_store(sources, storage_options=storage_options, **options)]
    mixed = any(map(is_url, sources))  # of paths alone, options are refused
    return [
        find_store(source, storage_options=storage_options if is_url(source) or not mixed else None, **options)
        for source in sources
    ]


def named_store(store: object) -> str:
    """Return the name of a store that is given by its name or its path."""
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise ParameterError(f"{spelled('test_store')}: expected the name or path of a store, found {brief(store)}")
    return store_name(location(store))


def plan_of(
    strategy: str,
    options: Mapping[str, object],
    *,
    normalize: str | None = None,
    drop_nonfinite: bool = False,
    stats_from: PathLike | None = None,
    test_size: float | None = None,
    test_store: str | None = None,
    folds: int | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    **chosen: Any,
) -> Plan:
    """Validate the options of `build`, and load the dataset whose statistics are used."""
    choices, statistics = Choices.of(chosen), None
    files = tables(group_by=group_by, labels_from=choices.labels_from)
    if stats_from is not None:
        statistics = load_dataset(stats_from)
        files.append(statistics_file(stats_from, statistics.metadata))
    of_store = test_store and named_store(test_store)
    undivided = (test_size, test_store, folds, group_by) == (None,) * 4
    return Plan.of(
        strategy,
        options,
        choices=choices,
        normalize=normalize,
        drop_nonfinite=drop_nonfinite,
        split=None if undivided and choices.control else split_options(test_size, folds, seed, group_by, of_store),
        stats_from=statistics,
        seed=read_seed(0 if seed is None else seed),
        files=files,
    )


def build_plan(
    view: StoreView,
    plan: Plan,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    part: xr.Dataset | None = None,
) -> Dataset:
    """Build the dataset of a validated plan, of the sentences of a part alone if there is one; otherwise as `build`."""
    if part is not None:
        plan = plan.within(view.those_of(part))
    view.check(plan)
    probed = probe(view, [plan])
    if not len(probed[0].kept):
        raise SelectionError(f"{view.path}: {preflight.obstacle(probed[0])}")
    (loaded,) = read(probed, output and output.parent)
    dataset, n_constant = assemble(loaded)
    if divided := view.split(plan):
        logger.info("%s", divided.report_of(np.isin(view.sentences, loaded.selected.sentences[loaded.kept])))
    if (names := dataset.metadata.get("label_names")) is not None:
        logger.info(
            "y: %s", ", ".join(f"{number}={shortened(name)}" for number, name in enumerate(names.tolist()[:20]))
        )
    if n_constant:
        logger.warning("%d of %d columns of X are constant", n_constant, dataset.normalization.width)
    if fault := preflight.problem(loaded, MIN_ACTIVE):
        logger.warning("%s", fault)
    if output is not None:
        dataset.save(output, overwrite=overwrite)
        Journal().add(output, view.fingerprint(plan), plan.files)
    return dataset
