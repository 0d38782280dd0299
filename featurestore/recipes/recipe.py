"""Recipes: a whole study as one YAML file, checked with line and key, expanded into the plans of its datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datasets.dataset import Dataset, load_dataset
from featurestore.datasets.journal import File, statistics_file, tables
from featurestore.datasets.plans import Plan, split_options
from featurestore.errors import speaking
from featurestore.paths import as_path, is_url
from featurestore.recipes.entry import Entry, Methods, read_entry, read_methods
from featurestore.recipes.nodes import Faults, Node, of_python, read_yaml
from featurestore.schema import DATASETS, MIN_ACTIVE
from featurestore.splits.split import SplitOptions
from featurestore.strategies import load_plugin

if TYPE_CHECKING:
    from featurestore.datasets.view import StoreView

PROBLEMS = ("skip", "refuse", "keep")
SPLIT = tuple(field.name for field in fields(SplitOptions))


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """A study: the datasets that are built of each of its stores.

    Attributes
    ----------
    stores : tuple of Node
        Paths of stores, or of folders of sentence NPZs, or URLs of stores.
    entries : tuple of Entry
        What is built of each.
    split : SplitOptions or None
        The same for all.
    drop_nonfinite : bool
        Whether sentences with NaN or infinity are left out.
    stats_from : Dataset or None
        That whose normalization is used.
    output : Path
        Folder, in which each store has its own.
    problems : str
        What becomes of datasets that nothing can be learned from, one of `PROBLEMS`: they are skipped, refuse the whole
        recipe, or are built with a warning.
    min_active : int
        A target feature that is active in fewer sentences counts as nearly dead.
    files : tuple of File
        Those of groups and statistics, if there are any.
    """

    stores: tuple[Node, ...]
    entries: tuple[Entry, ...]
    split: SplitOptions | None
    drop_nonfinite: bool
    stats_from: Dataset | None
    output: Path
    problems: str
    min_active: int
    files: tuple[File, ...]

    @speaking("recipe")
    def plans(self, view: StoreView) -> list[Plan]:
        """Expand the recipe for one store, and check every plan against it. The same plan twice counts once.

        Raises
        ------
        RecipeError
            If the store lacks what is asked for, or there are too many datasets; every faulty entry is named.
        """
        plans: dict[str, Plan] = {}
        faults = Faults()
        for entry in self.entries:
            with faults.collected(entry.node):
                for options, method in product(entry.expand(view, self.split), entry.methods):
                    plan = Plan.of(
                        entry.strategy.name,
                        options,
                        normalize=method,
                        drop_nonfinite=self.drop_nonfinite,
                        split=self.split,
                        stats_from=self.stats_from,
                        files=[*self.files, *entry.files],
                    )
                    view.check(plan)
                    plans[plan.json] = plan
        faults.check()
        return list(plans.values())


@speaking("recipe")
def load_recipe(recipe: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Read a recipe and check all that can be checked without its stores.

    Parameters
    ----------
    recipe : str or PathLike or mapping
        A YAML file, or what one would contain. Paths in it are relative to the working folder, as on a command line.

    Returns
    -------
    Recipe

    Raises
    ------
    RecipeError
        If it is no recipe; every fault is named, with line and key.
    """
    if isinstance(recipe, Mapping):
        return _recipe(of_python(recipe))
    with Node(recipe, "recipe").located():
        path = as_path(recipe)
    return _recipe(read_yaml(path))


def _recipe(root: Node) -> Recipe:
    given = root.mapping(_READERS, required=("stores", "datasets"))
    faults = Faults()
    read: dict[str, Any] = {}
    for key in [*(key for key in given if key != "datasets"), "datasets"]:  # which need the plugins
        with faults.collected(given[key]):
            read[key] = _READERS[key](given[key])
    methods: Methods = read.get("normalize", (None,))
    min_active, drop_nonfinite = read.get("min_active", MIN_ACTIVE), read.get("drop_nonfinite", False)
    entries = []
    for node in read.get("datasets", ()):
        with faults.collected(node):
            entries.append(read_entry(node, methods=methods, min_active=min_active, drop_nonfinite=drop_nonfinite))
    faults.check()
    split: SplitOptions | None = read.get("split")
    stats_from, statistics = read.get("stats_from", (None, ()))
    return Recipe(
        stores=read["stores"],
        entries=tuple(entries),
        split=split,
        drop_nonfinite=drop_nonfinite,
        stats_from=stats_from,
        output=read.get("output", DATASETS),
        problems=read.get("problems", PROBLEMS[0]),
        min_active=min_active,
        files=(*(tables(split.group_by) if split else ()), *statistics),
    )


def _load_plugins(node: Node) -> None:
    for item in node.items():
        with item.located():
            load_plugin(item.text())


def _stores(node: Node) -> tuple[Node, ...]:
    return tuple(store if is_url(store.value) else replace(store, value=str(store.path())) for store in node.items())


def _split(node: Node) -> SplitOptions:
    given = node.mapping(SPLIT)
    for name, item in given.items():  # each by itself, so that an error has its place
        with item.located():
            split_options(**({"test_size": 0.5} | {name: item.plain()}))
    with node.located():
        split = split_options(**{name: item.plain() for name, item in given.items()})
    if split is None:
        raise node.error("expected test_size, folds or both, found nothing")
    return split


def _statistics(node: Node) -> tuple[Dataset, tuple[File]]:
    dataset = load_dataset(node.path())
    return dataset, (statistics_file(node.text(), dataset.metadata),)


def _problems(node: Node) -> str:
    return node.choice(PROBLEMS)


_READERS: dict[str, Callable[[Node], Any]] = {
    "plugins": _load_plugins,
    "stores": _stores,
    "datasets": Node.items,
    "normalize": read_methods,
    "split": _split,
    "stats_from": _statistics,
    "drop_nonfinite": Node.flag,
    "problems": _problems,
    "min_active": Node.count,
    "output": Node.path,
}
"""The keys of a recipe, and how their values are read."""
