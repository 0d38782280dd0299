"""One element of a recipe's ``datasets``: a strategy, and the product of the values that its options are given."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from featurestore.datasets.journal import File
from featurestore.errors import SelectionError, spelled
from featurestore.ranges import parse_numbers
from featurestore.recipes.nodes import Faults, Node
from featurestore.recipes.targets import ALL, TARGET, Ranking, Targets, checked, read_targets
from featurestore.schema import NORMALIZATIONS
from featurestore.strategies import NUMBER, Option, Strategy, get_strategy

if TYPE_CHECKING:
    from featurestore.datasets.view import StoreView
    from featurestore.splits.split import SplitOptions

logger = logging.getLogger(__name__)

MAX_DATASETS = 100_000

Methods = tuple[str | None, ...]
"""Normalizations; None stands for the default."""

Options = dict[str, Any]
"""Values of a strategy's options by name."""


@dataclass(frozen=True, eq=False, kw_only=True)
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
        Normalizations.
    files : list of File
        That of the ranking, if there is one.
    """

    node: Node
    strategy: Strategy
    alternatives: Mapping[str, Node]
    targets: Targets | None
    methods: Methods
    files: list[File]

    def expand(self, view: StoreView, split: SplitOptions | None) -> Iterator[Options]:
        """Expand the product, normalizations aside."""
        options = {option.name: option for option in self.strategy.options}
        values = [_values(options[name], node, view) for name, node in self.alternatives.items()]
        n_targets = self.targets.top if isinstance(self.targets, Ranking) else len(self.targets or [{}])
        if (n := n_targets * math.prod(map(len, values))) > MAX_DATASETS:
            raise self.node.error(f"{n:,} datasets are more than {MAX_DATASETS:,}; divide the recipe")
        if isinstance(self.targets, Ranking) and not view.readable:
            what = "%s: %d datasets are of features that can only be ranked once it is ingested"
            logger.info(what, view.name, n * len(self.methods))
            return
        chosen = [dict(zip(self.alternatives, one, strict=True)) for one in product(*values)]
        yield from chosen if self.targets is None else self._each_target(self.targets, chosen, view, split)

    def _each_target(
        self, targets: Targets, chosen: Sequence[Options], view: StoreView, split: SplitOptions | None
    ) -> Iterator[Options]:
        """Complete all that is chosen by the first target, then by the next."""
        of_each = [
            targets.find(view, self.strategy.name, options, split) if isinstance(targets, Ranking) else targets
            for options in chosen
        ]
        for located in zip(*of_each, strict=True):
            for options, (node, target) in zip(chosen, located, strict=True):
                yield options | checked(node, target, view)


def read_entry(node: Node, *, methods: Methods, min_active: int, drop_nonfinite: bool) -> Entry:
    """Read an entry, and check all that can be checked without a store; for the rest see `Recipe`.

    Raises
    ------
    RecipeError
        If it is no entry; every fault is named.
    ParameterError
        If the strategy does not take these options together.
    """
    strategy = _strategy(node)
    options = {option.name: option for option in strategy.options}
    given = node.mapping(entry_keys(strategy))
    alternatives = {name: item for name, item in given.items() if name in options}
    faults, first = Faults(), Options()
    for name, item in alternatives.items():
        with faults.collected(item):
            first[name] = _values(options[name], item, None)[0]
    targets: Targets | None = None
    files: list[File] = []
    if "targets" in given:
        with faults.collected(given["targets"]):
            targets, files = read_targets(given["targets"], min_active=min_active, drop_nonfinite=drop_nonfinite)
            if both := [name for name in (*TARGET, "average_l0") if name in alternatives]:
                raise given["targets"].error(f"targets together with {' and '.join(both)}; name targets in one way")
        first |= dict.fromkeys(TARGET, 0)
    if "normalize" in given:
        with faults.collected(given["normalize"]):
            methods = read_methods(given["normalize"])
    faults.check()
    with node.located():
        strategy.arguments(first)
    return Entry(node=node, strategy=strategy, alternatives=alternatives, targets=targets, methods=methods, files=files)


def entry_keys(strategy: Strategy) -> list[str]:
    """Return the keys that an element of ``datasets`` may have."""
    options = [option.name for option in strategy.options]
    return ["strategy", *options, *["targets"] * (set(TARGET) <= set(options)), "normalize"]


def read_methods(node: Node) -> Methods:
    """Read one or several normalizations."""
    return tuple(item.choice(NORMALIZATIONS) for item in node.items())


def _strategy(node: Node) -> Strategy:
    named = node.value.get("strategy") if isinstance(node.value, dict) else None
    if named is None:
        raise node.error("expected a strategy and its options; the key strategy is missing")
    with named.located():
        return get_strategy(named.text())


def _all_layers(option: Option, view: StoreView) -> tuple[int, ...]:
    layers = view.sae_layers if option.of_sae else view.layers
    if not layers:
        raise SelectionError(f"{view.path}: has no {'SAEs' if option.of_sae else 'layers'}, so {ALL} of them are none")
    return layers


def _values(option: Option, node: Node, view: StoreView | None) -> list[Any]:
    """Expand the values of an option; without a store, only as far as it takes to check their form."""
    values: list[Any] = []
    for item in node.items():
        with item.located():
            if item.is_word(ALL) and option.names_layers:
                layers = _all_layers(option, view) if view else (0,)
                found: list[Any] = [*layers] if option.type is int else [layers]
            elif option.type in (int, NUMBER) and isinstance(item.value, str):
                found = [*parse_numbers(spelled(option.name), item.value)]
            else:
                found = [option.convert(item.plain())]
            if view:
                for value in found:
                    view.check_option(option, value)
            values += found
    return values
