"""Recipes: a whole study as one YAML file, checked with line and key, expanded into the plans of its datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import targets
from featurestore.datasets import DATASETS, Dataset, load_dataset
from featurestore.errors import FeatureStoreError, RecipeError
from featurestore.nodes import Node, of_python, read_yaml
from featurestore.plans import Plan, split_options
from featurestore.ranges import Numbers, parse_numbers
from featurestore.registry import Option, Strategy
from featurestore.schema import NORMALIZATIONS
from featurestore.splits import SplitOptions
from featurestore.strategies import get_strategy
from featurestore.targets import Target

if TYPE_CHECKING:
    from featurestore.sources import Source

MAX_DATASETS = 100_000
MIN_ACTIVE = 5
PROBLEMS = ("skip", "refuse")
ALL = "all"
Methods = tuple[str | None, ...]
KEYS = ("stores", "datasets", "normalize", "split", "stats_from", "drop_nonfinite", "problems", "min_active", "output")
SPLIT = ("test_size", "folds", "seed", "group_by")
TARGET = ("target_layer", "target_feature")
_LAYERS = Option("layers", Numbers, "", required=False)


@dataclass(frozen=True)
class Ranking:
    """The features of a store that rank first."""

    by: str
    top: int
    layers: Numbers | None
    min_active: int

    def find(self, source: Source, split: SplitOptions | None) -> list[Target]:
        """Rank the features of a store, by the training rows if there is a split."""
        rows = source.training_rows(split)
        return targets.rank(source.ds, self.by, self.layers or source.layers, self.top, rows, self.min_active)


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
    targets : sequence of Target, Ranking, or None
        The features to predict, or how to find them, where they are not among the alternatives.
    methods : tuple of str or None
        Normalizations; None stands for the default.
    """

    node: Node
    strategy: Strategy
    alternatives: Mapping[str, Node]
    targets: Sequence[Target] | Ranking | None
    methods: Methods

    def arguments(self, source: Source, split: SplitOptions | None) -> Iterator[dict[str, Any]]:
        """Expand the product, normalizations aside."""
        options = {option.name: option for option in self.strategy.options}
        values = [_values(options[name], node, source) for name, node in self.alternatives.items()]
        found = self.targets.find(source, split) if isinstance(self.targets, Ranking) else self.targets or [{}]
        for target, chosen in product(found, product(*values)):
            yield dict(zip(self.alternatives, chosen, strict=True)) | target


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
    refuse : bool
        Whether one dataset that nothing can be learned from refuses the recipe; otherwise it is skipped.
    min_active : int
        A target feature that is active in fewer sentences counts as nearly dead.
    """

    stores: tuple[Node, ...]
    entries: tuple[Entry, ...]
    split: SplitOptions | None
    drop_nonfinite: bool
    stats_from: Dataset | None
    output: Path
    refuse: bool
    min_active: int

    def plans(self, source: Source) -> list[Plan]:
        """Expand the recipe for one store, and check every plan against it. The same plan twice counts once.

        Raises
        ------
        RecipeError
            If the store lacks what is asked for, or there are too many datasets; every faulty entry is named.
        """
        plans: dict[str, Plan] = {}
        errors = []
        for entry in self.entries:
            try:
                for arguments in entry.arguments(source, self.split):
                    for method in entry.methods:
                        plan = Plan.of(
                            entry.strategy.name, arguments, method, self.drop_nonfinite, self.split, self.stats_from
                        )
                        source.select(plan)
                        plans[plan.parameters] = plan
                        if len(plans) > MAX_DATASETS:
                            raise entry.node.error(f"more than {MAX_DATASETS:,} datasets; divide the recipe")
            except RecipeError as error:
                errors.append(str(error))
            except FeatureStoreError as error:
                errors.append(str(entry.node.error(error)))
        if errors:
            raise RecipeError("\n".join(errors))
        return list(plans.values())


def load_recipe(recipe: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Read a recipe and check all that can be checked without its stores.

    Parameters
    ----------
    recipe : path-like or mapping
        A YAML file, or what one would contain. Paths in it are relative to the working folder, as on a command line.

    Returns
    -------
    Recipe

    Raises
    ------
    RecipeError
        If it is no recipe; every faulty entry is named, with line and key.
    """
    return _recipe(of_python(recipe) if isinstance(recipe, Mapping) else read_yaml(Path(recipe)))


def _recipe(root: Node) -> Recipe:
    given = root.mapping(KEYS, required=("stores", "datasets"))
    stores = tuple(given["stores"].items())
    for node in stores:
        node.text()
    methods = _methods(given.get("normalize"), (None,))
    min_active = given["min_active"].count() if "min_active" in given else MIN_ACTIVE
    entries, errors = [], []
    for node in given["datasets"].items():
        try:
            entries.append(_entry(node, methods, min_active))
        except RecipeError as error:
            errors.append(str(error))
    if errors:
        raise RecipeError("\n".join(errors))
    return Recipe(
        stores,
        tuple(entries),
        _split(given["split"]) if "split" in given else None,
        "drop_nonfinite" in given and given["drop_nonfinite"].flag(),
        _dataset(given["stats_from"]) if "stats_from" in given else None,
        Path(given["output"].text()) if "output" in given else DATASETS,
        "problems" in given and given["problems"].choice(PROBLEMS) == "refuse",
        min_active,
    )


def _entry(node: Node, methods: Methods, min_active: int) -> Entry:
    named = node.value.get("strategy") if isinstance(node.value, dict) else None
    if named is None:
        raise node.error("expected a strategy and its options; the key strategy is missing")
    try:
        strategy = get_strategy(named.text())
    except FeatureStoreError as error:
        raise named.error(error) from error
    options = {option.name: option for option in strategy.options}
    has_target = set(TARGET) <= options.keys()
    given = node.mapping(["strategy", *options, *(["targets"] if has_target else []), "normalize"])
    alternatives = {name: node for name, node in given.items() if name in options}
    first = {name: _values(options[name], values, None)[0] for name, values in alternatives.items()}
    found = None
    if "targets" in given:
        found = _targets(given["targets"], min_active)
        if both := [name for name in (*TARGET, "average_l0") if name in alternatives]:
            raise given["targets"].error(f"targets together with {' and '.join(both)}; name targets in one way")
        first |= dict.fromkeys(TARGET, 0)
    try:
        strategy.parameters(first)
    except FeatureStoreError as error:
        raise node.error(error) from error
    return Entry(node, strategy, alternatives, found, _methods(given.get("normalize"), methods))


def _methods(node: Node | None, default: Methods) -> Methods:
    return tuple(item.choice(NORMALIZATIONS) for item in node.items()) if node else default


def _dataset(node: Node) -> Dataset:
    try:
        return load_dataset(node.text())
    except FeatureStoreError as error:
        raise node.error(error) from error


def _split(node: Node) -> SplitOptions | None:
    given = node.mapping(SPLIT)
    try:
        return split_options(**{name: value.value for name, value in given.items()})
    except FeatureStoreError as error:
        raise node.error(error) from error


def _values(option: Option, node: Node, source: Source | None) -> list[Any]:
    """Expand the values of an option; without a store, only as far as it takes to check their form."""
    values: list[Any] = []
    for item in node.items():
        try:
            if item.value == ALL and option.name.endswith(("layer", "layers")):
                layers = source.layers if source else (0,)
                values += layers if option.type is int else [layers]
            elif option.type is int and isinstance(item.value, str):
                values += parse_numbers(option.flag, item.value)
            else:
                values.append(option.convert(item.plain()))
        except FeatureStoreError as error:
            raise item.error(error) from error
    return values


def _targets(node: Node, min_active: int) -> Sequence[Target] | Ranking:
    """Read the target features of an entry: pairs, the ranking of a file, or one to be made here."""
    if isinstance(node.value, list):
        return [_pair(pair) for pair in node.items()]
    if "ranked" in node.mapping(["ranked", "rank_by", "top", "layers"]):
        given = node.mapping(["ranked", "top"])
        try:
            return targets.read_ranked(Path(given["ranked"].text()), given["top"].count() if "top" in given else None)
        except RecipeError as error:
            raise given["ranked"].error(error) from error
    given = node.mapping(["rank_by", "top", "layers"], required=["rank_by", "top"])
    layers = None
    if "layers" in given and given["layers"].value != ALL:
        layers = _values(_LAYERS, given["layers"], None)[0]
    return Ranking(given["rank_by"].choice(list(targets.RANKINGS)), given["top"].count(), layers, min_active)


def _pair(node: Node) -> Target:
    pair = node.plain()
    if not isinstance(pair, list) or len(pair) not in (2, 3) or any(type(number) is not int for number in pair):
        raise node.error(f"expected [layer, feature], or [layer, feature, average L0], found {pair!r}")
    return dict(zip((*TARGET, "average_l0"), pair, strict=False))
