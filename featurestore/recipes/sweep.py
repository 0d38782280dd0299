"""From a recipe to a library of datasets: checked whole, read once, continued where it stopped."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datasets import preflight, workers
from featurestore.datasets.assembly import assemble
from featurestore.datasets.dataset import Dataset
from featurestore.datasets.journal import Journal
from featurestore.datasets.raw import Probed, probe, read
from featurestore.datasets.view import StoreView
from featurestore.errors import NonFiniteError, RecipeError, speaking
from featurestore.paths import is_url
from featurestore.recipes.jobs import Job, check_outputs, jobs_of
from featurestore.recipes.recipe import Recipe, load_recipe
from featurestore.schema import Progress
from featurestore.store.ingest import find_store, store_path
from featurestore.store.location import Location, StorageOptions, checked_options, location
from featurestore.store.outline import outline
from featurestore.store.snapshot import is_store

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)

_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """What a sweep has done, or with a dry run would do.

    Attributes
    ----------
    datasets : tuple of Job
        In the order of the recipe, with the state that they had before.
    splits : mapping of str to str
        The leakage report of each store of which not all is up to date, if there is a split.
    output : Path
        Where the datasets are, in a folder for each store.
    """

    datasets: tuple[Job, ...]
    splits: Mapping[str, str]
    output: Path

    def in_state(self, *states: str) -> list[Job]:
        """Return the datasets that were in one of some states."""
        return [job for job in self.datasets if job.state in states]


def sweep(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: bool = False,
    storage_options: StorageOptions | None = None,
    progress: Progress = lambda *_: None,
) -> Sweep:
    """Build all datasets of a recipe.

    The recipe is checked whole, and every target and label looked at, before anything is written. Each piece of a store
    is read once, statistics are computed once for all datasets that share them, and memory is bounded: what exceeds
    `IN_MEMORY_BYTES` of `featurestore.datasets.raw` waits in a nameless file in the output folder. A dataset whose
    fingerprint is that of the file that is there is skipped, so an interrupted sweep goes on where it stopped; one of
    other sentences is built again.

    Parameters
    ----------
    recipe : str or PathLike or mapping
        A YAML file, or what one would contain. Folders of sentence NPZs are brought into their stores first.
    dry_run : bool
        Check and list only: nothing is written. Targets are read, X is not; folders that are not ingested yet, or not
        wholly, are only scanned, so that their values are not checked, and features that are to be ranked not listed.
    force : bool
        Build again what is up to date, and replace files that hold something else.
    wait : bool
        Wait while another process writes a store, instead of raising.
    storage_options : mapping, optional
        What fsspec needs to open the stores of the recipe that are URLs (see `open_store`).
    progress : callable
        Called as ``progress(what, done, total)``, in MB read and written.

    Returns
    -------
    Sweep

    Raises
    ------
    RecipeError
        If the recipe or what it asks for is faulty; every fault is named, with line and key.
    DatasetError
        If an output exists that is not an earlier state of the same dataset, and `force` is false.
    """
    study, journal = load_recipe(recipe), Journal()
    views = _opened(study, dry_run, wait, checked_options(storage_options), progress)
    shares = [(view, list(jobs_of(study, view, journal, force=force))) for view in views]
    check_outputs([job for _, jobs in shares for job in jobs])
    probed = [pair for view, jobs in shares for pair in _probed(view, jobs)]
    judged = [(_judged(job, one, study), one) for job, one in probed]
    done = Sweep(datasets=tuple(job for job, _ in judged), splits=_reports(shares), output=study.output)
    _check_fitness(done.datasets, study.problems)
    if dry_run:
        return _warned(done)
    for view, jobs in shares:
        for job in jobs:
            if job.state == "current":  # though perhaps by another ranking now, which begins with the same features
                journal.add(job.output, view.fingerprint(job.plan), job.plan.files)
    todo = [(job, one) for job, one in judged if one and job.state != "unfit"]
    late = _build_all(views, todo, study, journal, progress)
    return _warned(replace(done, datasets=tuple(late.get(job, job) for job in done.datasets)))


def _opened(
    study: Recipe, dry_run: bool, wait: bool, storage_options: StorageOptions, progress: Progress
) -> list[StoreView]:
    """Open the stores, and those of the pool as one; for a dry run, folders not ingested yet are only scanned."""

    @cache
    def found(text: str) -> tuple[Location, xr.Dataset | None]:
        source = location(text, storage_options if is_url(text) else None)
        if not dry_run:
            return find_store(source, wait=wait, progress=progress), None
        scanned = outline(source, progress=progress)
        # Without an outline it is up to date, and nothing is written beside it.
        return source if scanned is None and is_store(source) else store_path(text), scanned

    views: dict[str, StoreView] = {}
    for node in study.stores:
        with node.located():
            view = StoreView(*found(node.text()))
        if not view.readable:
            what = "%s is not ingested yet, or not wholly: its %d sentences are scanned, their values not checked"
            logger.info(what, node.text(), len(view.sentences))
        if view.name in views:
            raise node.error(f"a second store of the name {view.name}, whose datasets would have the same names")
        views[view.name] = view
    pooled = []
    for node in study.pool:
        with node.located():
            store, scanned = found(node.text())
        if scanned is not None:
            raise node.error(
                "is not ingested yet, or not wholly, and so cannot be one of several stores; ingest it first"
            )
        pooled.append(store)
    if not pooled:
        return [*views.values()]
    pool = replace(study.pool[0], where=study.pool[0].where.removesuffix("[0]"))
    with pool.located():
        view = StoreView(pooled)
    if view.name in views:
        raise pool.error(f"a store has the name {view.name}, too; rename it")
    return [*views.values(), view]


def _probed(view: StoreView, jobs: Sequence[Job]) -> list[tuple[Job, Probed | None]]:
    """Read y of what is to be built; nothing of what is up to date, or can only be read once it is ingested."""
    pending = [job for job in jobs if job.state != "current"]
    found = dict(zip(pending, probe(view, [job.plan for job in pending]), strict=True)) if view.readable else {}
    return [(job, found.get(job)) for job in jobs]


def _reports(shares: Sequence[tuple[StoreView, Sequence[Job]]]) -> dict[str, str]:
    """Report on the split of each store of which not all is up to date."""
    reports = {}
    for view, jobs in shares:
        divided = dict.fromkeys(view.split(job.plan) for job in jobs if job.state != "current")
        if found := "\n".join(one.report for one in divided if one):
            reports[view.name] = found
    return reports


@speaking("recipe")
def _judged(job: Job, probed: Probed | None, study: Recipe) -> Job:
    """Say what is wrong with a dataset that is to be built, as far as it has been read, and leave it out if need be."""
    if probed is None:
        return job
    fault = preflight.problem(probed, study.min_active)
    kept = not fault or (study.problems == "keep" and not preflight.obstacle(probed))
    return replace(job, state=job.state if kept else "unfit", problem=fault)


def _check_fitness(jobs: Sequence[Job], problems: str) -> None:
    unfit = [job for job in jobs if job.state == "unfit"]
    if unfit and problems == "refuse":
        faults = "\n".join(dict.fromkeys(f"{job.store}: {job.problem}" for job in unfit))
        found = f"{len(unfit)} of {len(jobs)} datasets are unfit; leave them out with problems: skip"
        raise RecipeError(f"{found}\n{faults}")


def _warned(done: Sweep) -> Sweep:
    """Warn of datasets that are built although they are unfit."""
    faults = Counter(f"{job.store}: {job.problem}" for job in done.in_state("new", "stale") if job.problem)
    for fault, count in faults.items():
        logger.warning("%s (kept; datasets: %d)", fault, count)
    return done


def _build_all(
    views: Sequence[StoreView],
    todo: Sequence[tuple[Job, Probed]],
    study: Recipe,
    journal: Journal,
    progress: Progress,
) -> dict[Job, Job]:
    """Build one store after another, as the raw values of all might be too much at once; return as `_build`."""
    shares = [(view, [(job, one) for job, one in todo if one.view is view]) for view in views]
    to_read = sum(view.n_bytes(job.plan for job, _ in share) for view, share in shares)
    meter = _Meter(progress, to_read + sum(job.n_bytes for job, _ in todo))
    late: dict[Job, Job] = {}
    for view, share in shares:
        if share:
            late |= _build(view, share, study, journal, meter)
    return late


def _build(
    view: StoreView, share: Sequence[tuple[Job, Probed]], study: Recipe, journal: Journal, meter: _Meter
) -> dict[Job, Job]:
    """Read what the datasets of one store need, then write them side by side.

    Returns those that are unfit, some only now: where a strategy makes values that are not finite.
    """
    jobs = [job for job, _ in share]
    loaded = read([one for _, one in share], jobs[0].output.parent, meter.add)
    judged = [_judged(job, one, study) for job, one in zip(jobs, loaded, strict=True)]
    _check_fitness(judged, study.problems)
    late = {job: now for job, now in zip(jobs, judged, strict=True) if now.problem}
    fit = [(job, one) for job, now, one in zip(jobs, judged, loaded, strict=True) if now.state != "unfit"]
    n_constant = 0
    with _saving(journal, meter) as save:
        for (job, _), assembled in zip(fit, workers.each(assemble, [one for _, one in fit]), strict=True):
            try:
                dataset, constant = assembled()
            except NonFiniteError as error:
                late[job] = replace(job, state="unfit", problem=str(error))
                _check_fitness([late[job]], study.problems)
                continue
            n_constant += constant > 0
            save(job, dataset)
    if n_constant:
        logger.warning("%s: %d datasets have constant columns of X, which come out as 0", view.name, n_constant)
    return late


@contextmanager
def _saving(journal: Journal, meter: _Meter) -> Iterator[Callable[[Job, Dataset], None]]:
    """Write datasets side by side, a few at a time; after an error none is begun any more."""
    writing: dict[Future[Path], tuple[Job, str]] = {}

    def settle(left: int) -> None:
        while len(writing) > left:
            for future in wait_for(writing, return_when=FIRST_COMPLETED).done:
                future.result()
                job, fingerprint = writing.pop(future)
                journal.add(job.output, fingerprint, job.plan.files)
                meter.add(job.n_bytes)

    def save(job: Job, dataset: Dataset) -> None:
        settle(2 * _WORKERS)
        future = pool.submit(dataset.save, job.output, overwrite=job.state == "stale")
        writing[future] = job, str(dataset.metadata["fingerprint"])

    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            yield save
            settle(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Meter:
    """Counts bytes, of several threads, for the one progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._lock = progress, total, 0, threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Count so many bytes as read or written."""
        with self._lock:
            self._done += n_bytes
            self._progress("sweep", self._done // 1_000_000, self._total // 1_000_000)
