"""Recipes: a whole study as one YAML file, checked with line and key, expanded into the plans of its datasets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.dataset import Dataset, load_dataset
from featurestore.datasets.journal import File, statistics_file, tables
from featurestore.datasets.plans import Plan, split_options
from featurestore.datasets.ranking import RANKINGS, Target, read_ranked
from featurestore.errors import SelectionError, brief, speaking, spelled
from featurestore.paths import as_path
from featurestore.ranges import Numbers, integer, numbers, parse_numbers
from featurestore.recipes.nodes import Faults, Node, of_python, read_yaml
from featurestore.schema import DATASETS, MIN_ACTIVE, NORMALIZATIONS
from featurestore.splits.split import SplitOptions
from featurestore.strategies import Option, Strategy, get_strategy, load_plugin

if TYPE_CHECKING:
    from featurestore.datasets.alignment import Aligned
    from featurestore.datasets.view import Source

logger = logging.getLogger(__name__)

MAX_DATASETS = 100_000
PROBLEMS = ("skip", "refuse", "keep")
ALL = "all"
Methods = tuple[str | None, ...]
Located = tuple[Node, Target]
KEYS = (
    "plugins", "stores", "datasets", "normalize", "split", "stats_from", "drop_nonfinite", "problems", "min_active",
    "output",
)  # fmt: skip
SPLIT = tuple(field.name for field in fields(SplitOptions))
TARGET = ("target_layer", "target_feature")


@dataclass(frozen=True, eq=False)
class Ranking:
    """The features of a store that rank first."""

    node: Node
    by: str
    top: int
    layers: Numbers | None
    min_active: int
    drop_nonfinite: bool

    def find(
        self, source: Source, entry: Entry, chosen: Mapping[str, Any], split: SplitOptions | None
    ) -> list[Located]:
        """Rank the features of a store, by the training rows if there is a split.

        Only sentences that the strategy selects, and that are not dropped, count; which these are must not depend on
        the feature.
        """

        def selected(target: Target) -> Aligned:
            return source.select(Plan.of(entry.strategy.name, {**chosen, **target}))

        with self.node.located():
            layers = self.layers or source.layers
            first = selected(_told({"target_layer": layers[0], "target_feature": 0}, source))
            counted = first.positions[first.usable()] if self.drop_nonfinite else first.positions
            ranked = source.rank(self.by, layers, self.top, counted, split, self.min_active)
            found = [_told(target, source) for target in ranked]
            if not all(np.array_equal(selected(target).positions, first.positions) for target in found):
                raise SelectionError(
                    f"{entry.strategy.name} selects other sentences for other features, so none can be ranked; "
                    "name the targets"
                )
        return [(self.node, target) for target in found]


@dataclass(frozen=True, eq=False)
class Entry:
    """One element of ``datasets``: a strategy, and the values whose product is built.

    Attributes
    ----------
    node : Node
        The element.
    strategy : Strategy
        What X and y are.
    alternatives : mapping of str to Node
        Values for each option.
    targets : list of (Node, Target), Ranking, or None
        The features to predict, or how to find them, where they are not among the alternatives.
    methods : tuple of str or None
        Normalizations; None stands for the default.
    files : list of File
        That of the ranking, if there is one.
    """

    node: Node
    strategy: Strategy
    alternatives: Mapping[str, Node]
    targets: list[Located] | Ranking | None
    methods: Methods
    files: list[File]

    def arguments(self, source: Source, split: SplitOptions | None) -> Iterator[dict[str, Any]]:
        """Expand the product, normalizations aside."""
        options = {option.name: option for option in self.strategy.options}
        values = [_values(options[name], node, source) for name, node in self.alternatives.items()]
        n_targets = self.targets.top if isinstance(self.targets, Ranking) else len(self.targets or [{}])
        if (n := n_targets * math.prod(map(len, values))) > MAX_DATASETS:
            raise self.node.error(f"{n:,} datasets are more than {MAX_DATASETS:,}; divide the recipe")
        if isinstance(self.targets, Ranking) and not source.readable:
            what = "%s: %d datasets are of features that can only be ranked once it is ingested"
            logger.info(what, source.name, n * len(self.methods))
            return
        chosen = [dict(zip(self.alternatives, one, strict=True)) for one in product(*values)]
        if self.targets is None:
            yield from chosen
            return
        targets = [
            self.targets.find(source, self, one, split) if isinstance(self.targets, Ranking) else self.targets
            for one in chosen
        ]
        for found in zip(*targets, strict=True):
            for one, (node, target) in zip(chosen, found, strict=True):
                yield one | _checked(node, target, source)


@dataclass(frozen=True, eq=False)
class Recipe:
    """A study: the datasets that are built of each of its stores.

    Attributes
    ----------
    stores : tuple of Node
        Paths of stores, or of folders of sentence NPZs.
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
    files : list of File
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
    files: list[File]

    @speaking("recipe")
    def plans(self, source: Source) -> list[Plan]:
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
                for arguments, method in product(entry.arguments(source, self.split), entry.methods):
                    plan = Plan.of(
                        entry.strategy.name, arguments, method, self.drop_nonfinite, self.split, self.stats_from,
                        [*self.files, *entry.files],
                    )  # fmt: skip
                    source.check(plan)
                    plans[plan.parameters] = plan
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


def entry_keys(strategy: Strategy) -> list[str]:
    """Return the keys that an element of ``datasets`` may have."""
    options = [option.name for option in strategy.options]
    return ["strategy", *options, *["targets"] * (set(TARGET) <= set(options)), "normalize"]


def _recipe(root: Node) -> Recipe:
    given = root.mapping(KEYS, required=("stores", "datasets"))
    faults = Faults()
    methods: Methods = (None,)
    stores, entries, split, statistics, files = [], [], None, None, list[File]()
    output, drop_nonfinite, problems, min_active = DATASETS, False, PROBLEMS[0], MIN_ACTIVE
    for key, node in given.items():
        with faults.collected(node):
            match key:
                case "plugins":
                    for item in node.items():
                        with item.located():
                            load_plugin(item.text())
                case "stores":
                    stores = [replace(store, value=str(_path(store))) for store in node.items()]
                case "normalize":
                    methods = _methods(node)
                case "split":
                    split = _split(node)
                    files += tables(split.group_by)
                case "stats_from":
                    statistics = load_dataset(_path(node))
                    files.append(statistics_file(node.text(), statistics.metadata))
                case "drop_nonfinite":
                    drop_nonfinite = node.flag()
                case "problems":
                    problems = node.choice(PROBLEMS)
                case "min_active":
                    min_active = node.count()
                case "output":
                    output = _path(node)
    with faults.collected(given["datasets"]):
        for node in given["datasets"].items():
            with faults.collected(node):
                entries.append(_entry(node, methods, min_active, drop_nonfinite))
    faults.check()
    return Recipe(tuple(stores), tuple(entries), split, drop_nonfinite, statistics, output, problems, min_active, files)


def _path(node: Node) -> Path:
    with node.located():
        return as_path(node.text())


def _entry(node: Node, methods: Methods, min_active: int, drop_nonfinite: bool) -> Entry:
    named = node.value.get("strategy") if isinstance(node.value, dict) else None
    if named is None:
        raise node.error("expected a strategy and its options; the key strategy is missing")
    with named.located():
        strategy = get_strategy(named.text())
    options = {option.name: option for option in strategy.options}
    given = node.mapping(entry_keys(strategy))
    alternatives = {name: item for name, item in given.items() if name in options}
    faults = Faults()
    first: dict[str, Any] = {}
    for name, item in alternatives.items():
        with faults.collected(item):
            first[name] = _values(options[name], item, None)[0]
    found: list[Located] | Ranking | None = None
    files: list[File] = []
    if "targets" in given:
        with faults.collected(given["targets"]):
            found = _targets(given["targets"], min_active, drop_nonfinite)
            if isinstance(ranking := given["targets"].value, dict) and "ranked" in ranking:
                files = tables(ranking=ranking["ranked"].text())
            if both := [name for name in (*TARGET, "average_l0") if name in alternatives]:
                raise given["targets"].error(f"targets together with {' and '.join(both)}; name targets in one way")
        first |= dict.fromkeys(TARGET, 0)
    if "normalize" in given:
        with faults.collected(given["normalize"]):
            methods = _methods(given["normalize"])
    faults.check()
    with node.located():
        strategy.parameters(first)
    return Entry(node, strategy, alternatives, found, methods, files)


def _methods(node: Node) -> Methods:
    return tuple(item.choice(NORMALIZATIONS) for item in node.items())


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


def _values(option: Option, node: Node, source: Source | None) -> list[Any]:
    """Expand the values of an option; without a store, only as far as it takes to check their form."""
    values: list[Any] = []
    for item in node.items():
        with item.located():
            if item.is_word(ALL) and option.names_layers:
                layers = source.layers if source else (0,)
                found: list[Any] = [*layers] if option.type is int else [layers]
            elif option.type is int and isinstance(item.value, str):
                found = [*parse_numbers(spelled(option.name), item.value)]
            else:
                found = [option.convert(item.plain())]
            if source:
                for value in found:
                    source.check_option(option.name, value)
            values += found
    return values


def _targets(node: Node, min_active: int, drop_nonfinite: bool) -> list[Located] | Ranking:
    """Read the target features of an entry: pairs, the ranking of a file, or one to be made here."""
    if isinstance(node.value, list):
        return [(pair, _pair(pair)) for pair in node.items()]
    if not isinstance(node.value, dict):
        raise node.error(
            f"expected [layer, feature] pairs, or ranked: FILE.csv, or rank_by, found {brief(node.plain())}"
        )
    if "ranked" in node.value:
        given = node.mapping(["ranked", "top"])
        top = given["top"].count() if "top" in given else None
        with given["ranked"].located():
            return [(given["ranked"], target) for target in read_ranked(_path(given["ranked"]), top)]
    given = node.mapping(["rank_by", "top", "layers"], required=["rank_by", "top"])
    layers = None
    if "layers" in given and not given["layers"].is_word(ALL):
        with given["layers"].located():
            layers = numbers(spelled("layers"), given["layers"].plain())
    by, top = given["rank_by"].choice(list(RANKINGS)), given["top"].count()
    return Ranking(node, by, top, layers, min_active, drop_nonfinite)


def _pair(node: Node) -> Target:
    pair = node.plain()
    if not isinstance(pair, list) or len(pair) not in (2, 3) or any(type(number) is not int for number in pair):
        raise node.error(f"expected [layer, feature], or [layer, feature, average L0], found {brief(pair)}")
    with node.located():
        return {name: integer(name, number) for name, number in zip((*TARGET, "average_l0"), pair, strict=False)}


def _checked(node: Node, target: Target, source: Source) -> Target:
    """Check a target, and say of which SAE it is only as far as that tells anything."""
    with node.located():
        source.check_target(**target)
    return _told(target, source)


def _told(target: Target, source: Source) -> Target:
    """Name the SAE of a target by its average L0, by default the first, but only where its layer has several."""
    average_l0s = source.average_l0s(target["target_layer"])
    if len(average_l0s) == 1:
        return {name: value for name, value in target.items() if name != "average_l0"}
    return {"average_l0": average_l0s[0]} | target
