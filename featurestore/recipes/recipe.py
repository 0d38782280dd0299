"""Recipes: a whole study as one YAML file, checked with line and key, expanded into the plans of its datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datasets.build import named_store
from featurestore.datasets.dataset import Dataset, load_dataset
from featurestore.datasets.journal import File, statistics_file, tables
from featurestore.datasets.plans import Plan, read_seed, split_options
from featurestore.errors import ParameterError, speaking, spelled
from featurestore.paths import as_path, is_url
from featurestore.recipes.entry import USUAL, Entry, Shared, Usual, read_entry, read_usual
from featurestore.recipes.nodes import Faults, Node, of_python, read_yaml
from featurestore.schema import DATASETS, MIN_ACTIVE
from featurestore.splits.options import SplitOptions
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
    stores, pool : tuple of Node
        Paths of stores, or of folders of sentence NPZs, or URLs of stores: each by itself, and all as one.
    entries : tuple of Entry
        What is built of each.
    shared : Shared
        The same for all.
    output : Path
        Folder, in which each store has its own.
    problems : str
        What becomes of datasets that nothing can be learned from, one of `PROBLEMS`: they are skipped, refuse the whole
        recipe, or are built with a warning.
    min_active : int
        A target feature that is active in fewer training rows counts as nearly dead.
    """

    stores: tuple[Node, ...]
    pool: tuple[Node, ...]
    entries: tuple[Entry, ...]
    shared: Shared
    output: Path
    problems: str
    min_active: int

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
                for plan in entry.plans(view, self.shared):
                    view.check(plan)
                    _check_same_labels(view, plans.get(plan.json, plan), plan)
                    plans[plan.json] = plan
        faults.check()
        return list(plans.values())


def _check_same_labels(view: StoreView, known: Plan, plan: Plan) -> None:
    """Refuse labels of two files that datasets, which hold no paths, could not tell apart."""
    if view.labels_digest(known) != view.labels_digest(plan):
        files = f"{known.choices.labels_from} and {plan.choices.labels_from}"
        found = f"found other labels in {files}, whose datasets would have the same names"
        raise ParameterError(f"{spelled('labels_from')}: expected columns of different names, {found}; rename one")


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
    given = root.mapping(KEYS, required=("datasets",))
    if "stores" not in given and "pool" not in given:
        raise root.error("expected stores, each of which is built from, or pool, which are built from as one")
    faults = Faults()
    read: dict[str, Any] = {}
    for key in [*(key for key in given if key != "datasets"), "datasets"]:  # which need the plugins
        if key in _READERS:
            with faults.collected(given[key]):
                read[key] = _READERS[key](given[key])
    min_active, drop_nonfinite = read.get("min_active", MIN_ACTIVE), read.get("drop_nonfinite", False)
    usual, entries = Usual(), []
    with faults.collected(root):
        usual = read_usual({key: given[key] for key in USUAL if key in given}, usual)
    for node in read.get("datasets", ()):
        with faults.collected(node):
            entries.append(read_entry(node, usual, min_active=min_active, drop_nonfinite=drop_nonfinite))
    faults.check()
    split, seed = read.get("split"), read.get("seed", 0)
    if "seed" in given:
        split = _seeded(given, split, seed, drawn=any(len(entry.controls) > 1 for entry in entries))
    stats_from, statistics = read.get("stats_from", (None, ()))
    return Recipe(
        stores=read.get("stores", ()),
        pool=read.get("pool", ()),
        entries=tuple(entries),
        shared=Shared(
            drop_nonfinite=drop_nonfinite,
            split=split,
            stats_from=stats_from,
            seed=split.seed if split else seed,
            files=(*tables(group_by=split.group_by if split else None), *statistics),
        ),
        output=read.get("output", DATASETS),
        problems=read.get("problems", PROBLEMS[0]),
        min_active=min_active,
    )


def _seeded(given: Mapping[str, Node], split: SplitOptions | None, seed: int, *, drawn: bool) -> SplitOptions | None:
    """Return the split by the seed of the recipe."""
    if "split" in given and "seed" in given["split"].value:
        raise given["seed"].error("split has a seed, too; name one of them")
    if not split and not drawn:
        raise given["seed"].error("nothing is drawn at random here; name a split or controls with it")
    return replace(split, seed=seed) if split else None


def _load_plugins(node: Node) -> None:
    for item in node.items():
        with item.located():
            load_plugin(item.text())


def _stores(node: Node) -> tuple[Node, ...]:
    return tuple(store if is_url(store.value) else replace(store, value=str(store.path())) for store in node.items())


def _pool(node: Node) -> tuple[Node, ...]:
    if len(stores := _stores(node)) < 2:
        raise node.error("expected several stores, found one; name it in stores")
    return stores


def _split(node: Node) -> SplitOptions:
    given = node.mapping(SPLIT)
    options: dict[str, Any] = {}
    for name, item in given.items():  # each by itself, so that an error has its place
        with item.located():
            options[name] = named_store(item.text()) if name == "test_store" else item.plain()
            divided: dict[str, Any] = {} if name == "test_store" else {"test_size": 0.5}
            split_options(**divided | {name: options[name]})
    with node.located():
        split = split_options(**options)
    if split is None:
        raise node.error("expected test_size, test_store or folds, found nothing")
    return split


def _statistics(node: Node) -> tuple[Dataset, tuple[File]]:
    dataset = load_dataset(node.path())
    return dataset, (statistics_file(node.text(), dataset.metadata),)


def _seed(node: Node) -> int:
    with node.located():
        return read_seed(node.plain())


def _problems(node: Node) -> str:
    return node.choice(PROBLEMS)


_READERS: dict[str, Callable[[Node], Any]] = {
    "plugins": _load_plugins,
    "stores": _stores,
    "pool": _pool,
    "datasets": Node.items,
    "split": _split,
    "seed": _seed,
    "stats_from": _statistics,
    "drop_nonfinite": Node.flag,
    "problems": _problems,
    "min_active": Node.count,
    "output": Node.path,
}
"""Keys that a recipe alone has, and how their values are read."""

KEYS = (*_READERS, *USUAL)
"""All keys of a recipe."""
