"""From a recipe to a library of datasets: checked whole, read once, continued where it stopped."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurestore.datasets import dataset as datasets
from featurestore.datasets import preflight
from featurestore.datasets.assembly import Assembly
from featurestore.datasets.build import default_output
from featurestore.datasets.journal import Journal
from featurestore.datasets.plans import Plan
from featurestore.datasets.view import Source
from featurestore.errors import DatasetError, NonFiniteError, NpzError, RecipeError, shown, speaking, spelled
from featurestore.recipes.recipe import Recipe, load_recipe
from featurestore.schema import Progress
from featurestore.store.ingest import find_store, store_path
from featurestore.store.outline import outline

logger = logging.getLogger(__name__)

_WORKERS = min(4, os.cpu_count() or 1)

_CHANGING = ("store_digest", "strategy_code", "groups_digest", "split_version")
"""What a dataset records of its sentences, strategy, groups and split: one that differs has an earlier state."""


@dataclass(frozen=True, eq=False)
class Planned:
    """One dataset of a sweep.

    Attributes
    ----------
    store : str
        Name of its store.
    plan : Plan
        What it is.
    output : Path
        Its file.
    shape : tuple of int
        Of X, before any sentence is dropped.
    state : str
        ``"new"``, ``"stale"`` (there, of other sentences, groups or code), ``"current"`` (there, up to date), or
        ``"unfit"``.
    problem : str
        Why it is unfit, or would be if the recipe did not keep it.
    """

    store: str
    plan: Plan
    output: Path
    shape: tuple[int, int]
    state: str
    problem: str = ""

    @property
    def n_bytes(self) -> int:
        """Size of X in its file."""
        return 4 * self.shape[0] * self.shape[1]


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep has done, or with a dry run would do.

    Attributes
    ----------
    datasets : tuple of Planned
        In the order of the recipe, with the state that they had before.
    splits : mapping of str to str
        The leakage report of each store of which not all is up to date, if there is a split.
    output : Path
        Where the datasets are, in a folder for each store.
    """

    datasets: tuple[Planned, ...]
    splits: Mapping[str, str]
    output: Path

    def in_state(self, *states: str) -> list[Planned]:
        """Return the datasets that were in one of some states."""
        return [planned for planned in self.datasets if planned.state in states]


def sweep(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    dry_run: bool = False,
    force: bool = False,
    wait: bool = False,
    progress: Progress = lambda *_: None,
) -> Sweep:
    """Build all datasets of a recipe.

    The recipe is checked whole, and every target and label looked at, before anything is written. Each piece of a store
    is read once, statistics are computed once for all datasets that share them, and memory is bounded: what exceeds
    `IN_MEMORY_BYTES` of `featurestore.datasets.assembly` waits in a nameless file in the output folder. A dataset whose
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
    study = load_recipe(recipe)
    journal = Journal()
    assemblies = [Assembly(source) for source in _sources(study, dry_run, wait, progress)]
    planned = [(assembly, item) for assembly in assemblies for item in _plan(study, assembly.source, force, journal)]
    _check_outputs([item for _, item in planned])
    pending = [(assembly, item) for assembly, item in planned if item.state != "current"]
    for assembly in assemblies:
        if assembly.source.readable:
            assembly.probe(item.plan for owner, item in pending if owner is assembly)
    result = Sweep(
        tuple(_judged(item, assembly, study) for assembly, item in planned),
        {
            source.name: divided.report
            for source in dict.fromkeys(assembly.source for assembly, _ in pending)
            if (divided := source.split(study.split))
        },
        study.output,
    )
    _check_fitness(result.datasets, study.problems)
    if dry_run:
        return _warned(result)
    todo = result.in_state("new", "stale")
    shares = [(assembly, [item for item in todo if item.store == assembly.source.name]) for assembly in assemblies]
    to_read = sum(assembly.n_bytes(item.plan for item in share) for assembly, share in shares)
    meter = _Meter(progress, to_read + sum(item.n_bytes for item in todo))
    late: dict[Path, Planned] = {}
    for assembly, item in planned:
        if item.state == "current":  # though perhaps by another ranking now, which begins with the same features
            journal.add(item.output, assembly.source.fingerprint(item.plan), item.plan.files)
    for assembly, share in shares:
        late |= _build(assembly, share, study, meter, journal)
    return _warned(replace(result, datasets=tuple(late.get(item.output, item) for item in result.datasets)))


@speaking("recipe")
def _judged(item: Planned, assembly: Assembly, study: Recipe) -> Planned:
    """Say what is wrong with a dataset that is to be built, as far as it has been read, and leave it out if need be."""
    if item.state == "current" or not assembly.source.readable:
        return item
    fault = preflight.problem(assembly, item.plan, study.min_active)
    kept = not fault or (study.problems == "keep" and not preflight.obstacle(assembly, item.plan))
    return replace(item, state=item.state if kept else "unfit", problem=fault)


def _check_fitness(planned: Sequence[Planned], problems: str) -> None:
    unfit = [item for item in planned if item.state == "unfit"]
    if unfit and problems == "refuse":
        faults = "\n".join(dict.fromkeys(f"{item.store}: {item.problem}" for item in unfit))
        found = f"{len(unfit)} of {len(planned)} datasets are unfit; leave them out with problems: skip"
        raise RecipeError(f"{found}\n{faults}")


def _warned(result: Sweep) -> Sweep:
    """Warn of datasets that are built although they are unfit."""
    faults = Counter(f"{item.store}: {item.problem}" for item in result.in_state("new", "stale") if item.problem)
    for fault, count in faults.items():
        logger.warning("%s (kept; datasets: %d)", fault, count)
    return result


def _sources(study: Recipe, dry_run: bool, wait: bool, progress: Progress) -> list[Source]:
    """Open the stores; for a dry run, folders that are not ingested yet are only scanned."""
    sources: dict[str, Source] = {}
    for node in study.stores:
        with node.located():
            scanned = outline(node.text(), progress=progress) if dry_run else None
            if scanned is None:
                source = Source(find_store(node.text(), wait=wait, progress=progress))
            else:
                source = Source(store_path(node.text()), scanned)
                found = "%s is not ingested yet, or not wholly: its %d sentences are scanned, their values not checked"
                logger.info(found, node.text(), len(source.sentences))
        if source.name in sources:
            raise node.error(f"a second store of the name {source.name}, whose datasets would have the same names")
        sources[source.name] = source
    return list(sources.values())


def _plan(study: Recipe, source: Source, force: bool, journal: Journal) -> Iterator[Planned]:
    for plan in study.plans(source):
        output = default_output(source.path, plan, study.output)
        state = _state(output, source, plan, journal)
        yield Planned(source.name, plan, output, source.shape(plan), "stale" if force and state != "new" else state)


@speaking("recipe")
def _state(output: Path, source: Source, plan: Plan, journal: Journal) -> str:
    if not output.exists():
        return "new"
    try:
        recorded = datasets.read_metadata(output, ["fingerprint", "parameters", "store", *_CHANGING])
    except NpzError:
        return "other"
    made_of = str(recorded.get("fingerprint"))
    if made_of == source.fingerprint(plan):
        return "current"
    divided = source.split(plan.split)
    values = source.digest, plan.strategy.code, source.groups_digest(plan), divided.version if divided else ""
    now = dict(zip(_CHANGING, values, strict=True))
    changed = {name for name, value in now.items() if str(recorded.get(name, "")) != value}
    if str(recorded.get("parameters")) != plan.parameters or str(recorded.get("store")) != source.name or not changed:
        return "other"
    of_another_file = "groups_digest" in changed and not journal.has_groups_of(output, made_of, plan.files)
    return "other" if of_another_file and "store_digest" not in changed else "stale"


def _check_outputs(planned: Sequence[Planned]) -> None:
    for folder in {item.output.parent for item in planned}:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise DatasetError(f"{there}: expected a folder for datasets, found a file; choose another output")
    for item in planned:
        datasets.check_output(item.output)
    if others := [shown(item.output) for item in planned if item.state == "other"]:
        some = "\n".join([*others[:10], *(["..."] if len(others) > 10 else [])])
        found = f"{len(others)} outputs exist with other content"
        raise DatasetError(f"{found}; move them, or replace them: {spelled('force', True)}\n{some}")


def _build(
    assembly: Assembly, planned: Sequence[Planned], study: Recipe, meter: _Meter, journal: Journal
) -> dict[Path, Planned]:
    """Read what the datasets of one store need, then write them side by side, a few at a time.

    Returns those that are unfit, some only now: where a strategy makes values that are not finite.
    """
    if not planned:
        return {}
    assembly.read([item.plan for item in planned], planned[0].output.parent, meter.add)
    judged = [_judged(item, assembly, study) for item in planned]
    _check_fitness(judged, study.problems)
    late = {item.output: item for item in judged if item.problem}
    writing: dict[Future[Path], Planned] = {}
    n_constant = 0

    def settle(left: int) -> None:
        while len(writing) > left:
            for future in wait_for(writing, return_when=FIRST_COMPLETED).done:
                future.result()
                item = writing.pop(future)
                journal.add(item.output, assembly.source.fingerprint(item.plan), item.plan.files)
                meter.add(item.n_bytes)

    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for item in judged:
                if item.state != "unfit":
                    settle(2 * _WORKERS)
                    try:
                        dataset, constant = assembly.dataset(item.plan)
                    except NonFiniteError as error:
                        late[item.output] = replace(item, state="unfit", problem=str(error))
                        _check_fitness([late[item.output]], study.problems)
                        continue
                    n_constant += constant > 0
                    writing[pool.submit(dataset.save, item.output, overwrite=item.state == "stale")] = item
            settle(0)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if n_constant:
        logger.warning(
            "%s: %d datasets have constant columns of X, which come out as 0", assembly.source.name, n_constant
        )
    assembly.forget()
    return late


class _Meter:
    """Counts bytes, of several threads, for the one progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._lock = progress, total, 0, threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Count so many bytes as read or written."""
        with self._lock:
            self._done += n_bytes
            self._progress("sweep", self._done // 1_000_000, self._total // 1_000_000)
