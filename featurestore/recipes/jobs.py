"""The datasets that a recipe makes of a store, compared with the files that are there already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.datasets.dataset import check_output, read_metadata
from featurestore.datasets.journal import Journal
from featurestore.datasets.plans import Plan, default_output
from featurestore.datasets.view import StoreView
from featurestore.errors import DatasetError, NpzError, shown, some, speaking, spelled
from featurestore.recipes.recipe import Recipe

_CHANGING = ("store_digest", "strategy_code", "groups_digest", "split_version", "labels_digest")
"""What a dataset records of what may change: one that differs in some of it alone is an earlier state."""

_KINDS = {"groups_digest": "groups", "labels_digest": "labels"}
"""What comes from files, as a journal calls it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
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
        ``"new"``, ``"stale"`` (there, of other sentences, groups, labels or code), ``"current"`` (there, up to date),
        or ``"unfit"``.
    problem : str
        Why it is unfit, or would be if the recipe did not keep it.
    """

    store: str
    plan: Plan
    output: Path
    shape: tuple[int, ...]
    state: str
    problem: str = ""

    @property
    def n_bytes(self) -> int:
        """Size of X in its file."""
        return 4 * math.prod(self.shape)


def jobs_of(study: Recipe, view: StoreView, journal: Journal, *, force: bool) -> Iterator[Job]:
    """Yield what a recipe makes of a store; with `force` all that is there is stale.

    Raises
    ------
    RecipeError
        As `Recipe.plans`.
    """
    for plan in study.plans(view):
        output = default_output(view.name, plan, study.output)
        state = _state(output, view, plan, journal)
        yield Job(
            store=view.name,
            plan=plan,
            output=output,
            shape=view.shape(plan),
            state="stale" if force and state != "new" else state,
        )


def check_outputs(jobs: Sequence[Job]) -> None:
    """Refuse outputs that cannot be written.

    Raises
    ------
    DatasetError
        If one is in something else than a folder, or exists and is not an earlier state of the same dataset.
    """
    for folder in {job.output.parent for job in jobs}:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise DatasetError(f"{there}: expected a folder for datasets, found a file; choose another output")
    for job in jobs:
        check_output(job.output)
    if others := [shown(job.output) for job in jobs if job.state == "other"]:
        found = f"{len(others)} outputs exist with other content"
        raise DatasetError(
            f"{found}; move them, or replace them: {spelled('force', True)}\n{some(others, separator='\n')}"
        )


@speaking("recipe")
def _state(output: Path, view: StoreView, plan: Plan, journal: Journal) -> str:
    if not output.exists():
        return "new"
    try:
        recorded = read_metadata(output, ["fingerprint", "parameters", "store", *_CHANGING])
    except NpzError:
        return "other"
    made_of = str(recorded.get("fingerprint"))
    if made_of == view.fingerprint(plan):
        return "current"
    digests = view.groups_digest(plan), view.split_version(plan), view.labels_digest(plan)
    now = dict(zip(_CHANGING, (view.digest, plan.strategy.code, *digests), strict=True))
    changed = {name for name, value in now.items() if str(recorded.get(name, "")) != value}
    if str(recorded.get("parameters")) != plan.json or str(recorded.get("store")) != view.name or not changed:
        return "other"
    of_another_file = any(
        name in changed and not journal.has_same(kind, output, made_of, plan.files) for name, kind in _KINDS.items()
    )
    return "other" if of_another_file and "store_digest" not in changed else "stale"
