"""One element of a recipe's ``datasets``: a strategy, and the product of the values that its options are given."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from featurestore.datasets.journal import File, tables
from featurestore.datasets.plans import Plan
from featurestore.errors import SelectionError, spelled
from featurestore.questions.choices import Choices, read_choice
from featurestore.questions.options import OPTIONS
from featurestore.ranges import parse_numbers
from featurestore.recipes.nodes import Faults, Node
from featurestore.recipes.targets import ALL, TARGET, Listed, Ranking, Targets, checked, read_targets
from featurestore.schema import CONTROLS, NORMALIZATIONS
from featurestore.strategies import NUMBER, Option, Strategy, get_strategy
from featurestore.strategies.contained import check_option, contained_layers

if TYPE_CHECKING:
    from featurestore.datasets.dataset import Dataset
    from featurestore.datasets.view import StoreView
    from featurestore.splits.options import SplitOptions

logger = logging.getLogger(__name__)

MAX_DATASETS = 100_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """What all datasets of a recipe have in common; as of `Plan`."""

    drop_nonfinite: bool
    split: SplitOptions | None
    stats_from: Dataset | None
    seed: int
    files: tuple[File, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Usual:
    """What holds for an entry that says nothing else.

    Attributes
    ----------
    methods : tuple of str or None
        Normalizations; None stands for the default.
    choices : mapping of str to sequence
        Alternatives of the options that compose with every strategy.
    controls : tuple of str
        What is built beside each dataset.
    """

    methods: tuple[str | None, ...] = (None,)
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    controls: tuple[str, ...] = ()


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
    targets : Listed, OfStores, Ranking, or None
        The features to predict, or how to find them, where they are not among the alternatives.
    choices : tuple of Choices
        What else X and y are.
    methods : tuple of str or None
        Normalizations; None stands for the default.
    controls : tuple of str or None
        What is built in place of each dataset; None stands for itself.
    """

    node: Node
    strategy: Strategy
    alternatives: Mapping[str, Node]
    targets: Targets | None
    choices: tuple[Choices, ...]
    methods: tuple[str | None, ...]
    controls: tuple[str | None, ...]

    def plans(self, view: StoreView, shared: Shared) -> Iterator[Plan]:
        """Expand the product for one store."""
        known = {option.name: option for option in self.strategy.options}
        values = [_values(known[name], node, view) for name, node in self.alternatives.items()]
        targets = self.targets and self.targets.of(view)
        n_targets = targets.top if targets else 1
        lists = [*values, self.choices, self.methods, self.controls]
        n = _check_number(self.node, [range(n_targets), *lists])
        if isinstance(targets, Ranking) and not view.readable:
            what = "%s: %d datasets are of features that can only be ranked once it is ingested"
            logger.info(what, view.name, n)
            return
        called = [dict(zip(self.alternatives, one, strict=True)) for one in product(*values)]
        ranking = targets.files if targets else ()
        files = [[*shared.files, *tables(labels_from=one.labels_from), *ranking] for one in self.choices]
        chosen = [
            partial(self._plan, shared, used, choices, options)
            for options, (choices, used) in product(called, zip(self.choices, files, strict=True))
        ]
        for plan_of in _each_target(targets, chosen, view) if targets else chosen:
            for method, control in product(self.methods, self.controls):
                yield plan_of(method=method, control=control)

    def _plan(
        self,
        shared: Shared,
        files: Sequence[File],
        choices: Choices,
        options: Mapping[str, Any],
        target: Mapping[str, Any] = MappingProxyType({}),
        method: str | None = None,
        control: str | None = None,
    ) -> Plan:
        return Plan.of(
            self.strategy.name,
            {**options, **target},
            choices=replace(choices, control=control),
            normalize=method,
            drop_nonfinite=shared.drop_nonfinite,
            split=shared.split,
            stats_from=shared.stats_from,
            seed=shared.seed,
            files=files,
        )


def _each_target(
    targets: Listed | Ranking, chosen: Sequence[Callable[..., Plan]], view: StoreView
) -> Iterator[Callable[..., Plan]]:
    """Complete all that is chosen by the first target, then by the next."""
    for located in zip(*(targets.find(view, plan_of) for plan_of in chosen), strict=True):
        for plan_of, (node, target) in zip(chosen, located, strict=True):
            yield partial(plan_of, checked(node, target, view))


def read_entry(node: Node, usual: Usual, *, min_active: int, drop_nonfinite: bool) -> Entry:
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
    faults, first = Faults(), {}
    for name, item in alternatives.items():
        with faults.collected(item):
            first[name] = _values(options[name], item, None)[0]
    targets: Targets | None = None
    if "targets" in given:
        with faults.collected(given["targets"]):
            targets = read_targets(given["targets"], min_active=min_active, drop_nonfinite=drop_nonfinite)
            if both := [name for name in (*TARGET, "average_l0") if name in alternatives]:
                raise given["targets"].error(f"targets together with {' and '.join(both)}; name targets in one way")
        first |= dict.fromkeys(TARGET, 0)
    read = {name: item for name, item in given.items() if name in USUAL}
    with faults.collected(node):
        own = read_usual(read, usual)
    faults.check()
    _check_number(node, own.choices.values())
    with node.located():
        strategy.arguments(first)
        choices = [Choices.of(dict(zip(own.choices, one, strict=True))) for one in product(*own.choices.values())]
    return Entry(
        node=node,
        strategy=strategy,
        alternatives=alternatives,
        targets=targets,
        choices=tuple(dict.fromkeys(choices)),
        methods=own.methods,
        controls=(None, *own.controls),
    )


def _check_number(node: Node, alternatives: Iterable[Sequence[Any]]) -> int:
    """Count the datasets that are a product of alternatives; RecipeError if they are too many."""
    if (n := math.prod(map(len, alternatives))) > MAX_DATASETS:
        raise node.error(f"{n:,} datasets are more than {MAX_DATASETS:,}; divide the recipe")
    return n


def entry_keys(strategy: Strategy) -> list[str]:
    """Return the keys that an element of ``datasets`` may have."""
    options = [option.name for option in strategy.options]
    return ["strategy", *options, *["targets"] * (set(TARGET) <= set(options)), *USUAL]


USUAL = (*(name for name in OPTIONS if name != "control"), "normalize", "controls")
"""Keys that an entry, or for all that don't have them the recipe, may have."""


def read_usual(given: Mapping[str, Node], usual: Usual) -> Usual:
    """Read what an entry, or the recipe, says of the options that compose with every strategy.

    Raises
    ------
    RecipeError
        If something is unreadable; every fault is named.
    """
    faults, choices = Faults(), dict(usual.choices)
    methods, controls = usual.methods, usual.controls
    for name, node in given.items():
        with faults.collected(node):
            if name == "normalize":
                methods = tuple(item.choice(NORMALIZATIONS) for item in node.items())
            elif name == "controls":
                named = node.items() if node.value != [] else []  # which switches off those of the recipe
                controls = tuple(dict.fromkeys(item.choice(CONTROLS) for item in named))
            else:
                choices[name] = [_choice(name, item) for item in node.items()]
    faults.check()
    return Usual(methods=methods, choices=choices, controls=controls)


def _choice(name: str, node: Node) -> Any:
    """Read a value as it is given; null stands for none, or the usual one."""
    if (value := node.plain()) is not None:
        with node.located():
            read_choice(name, value)
    return value


def _strategy(node: Node) -> Strategy:
    named = node.value.get("strategy") if isinstance(node.value, dict) else None
    if named is None:
        raise node.error("expected a strategy and its options; the key strategy is missing")
    with named.located():
        return get_strategy(named.text())


def _all_layers(option: Option, view: StoreView) -> tuple[int, ...]:
    layers = contained_layers(view.ds, of_sae=option.of_sae)
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
                    check_option(view.ds, option, value)
            values += found
    return values
