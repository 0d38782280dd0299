"""The features that an entry of a recipe predicts: named there, read from a ranking of others, or ranked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.datasets.journal import File, tables
from featurestore.datasets.ranking import RANKINGS, Target, read_ranked
from featurestore.errors import SelectionError, brief, lacking, some, spelled
from featurestore.ranges import Numbers, integer, numbers
from featurestore.recipes.nodes import Node
from featurestore.strategies import check_feature, sae_layers, sae_position
from featurestore.strategies.contained import average_l0s

if TYPE_CHECKING:
    from featurestore.datasets.plans import Plan
    from featurestore.datasets.view import StoreView

ALL = "all"
"""Stands for all layers of a store."""

TARGET = ("target_layer", "target_feature")
"""The options of a strategy in whose place `targets` may be given."""

Located = tuple[Node, Target]
"""A target, and where it stands in the recipe."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Listed:
    """Features that are named, in the recipe or a file.

    Attributes
    ----------
    targets : tuple of (Node, Target)
        The features.
    files : tuple of File
        Where they were read, if from a file.
    """

    targets: tuple[Located, ...]
    files: tuple[File, ...] = ()

    @property
    def top(self) -> int:
        """How many."""
        return len(self.targets)

    def of(self, _: StoreView) -> Listed:
        """Return those of a store: the same of all."""
        return self

    def find(self, _view: StoreView, _plan_of: Callable[[Target], Plan]) -> Sequence[Located]:
        """Return them."""
        return self.targets


@dataclass(frozen=True, eq=False)
class OfStores:
    """Features that are named for each store by itself.

    Attributes
    ----------
    node : Node
        Where they stand.
    by_store : mapping of str to Listed
        Those of each store, by its name.
    """

    node: Node
    by_store: Mapping[str, Listed]

    def of(self, view: StoreView) -> Listed:
        """Return those of a store; RecipeError if there are none."""
        if view.name not in self.by_store:
            found = f"found {some(self.by_store)}"
            raise self.node.error(f"expected the ranking of each store by its name, also of {view.name}, {found}")
        return self.by_store[view.name]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """The features of a store that rank first, to be found once the store can be read.

    Attributes
    ----------
    node : Node
        Where it stands.
    by : str
        One of `RANKINGS`.
    top : int
        How many.
    layers : tuple of int, or None
        Whose features are ranked; None for all.
    min_active : int
        Features that are active in fewer sentences are left out.
    drop_nonfinite : bool
        Whether sentences with NaN or infinity are left out.
    """

    node: Node
    by: str
    top: int
    layers: Numbers | None
    min_active: int
    drop_nonfinite: bool
    files: tuple[File, ...] = ()

    def of(self, _: StoreView) -> Ranking:
        """Return that of a store: the same of all."""
        return self

    def find(self, view: StoreView, plan_of: Callable[[Target], Plan]) -> Sequence[Located]:
        """Rank the features of a store, by the training rows if there is a split.

        Only sentences that are rows of the plan of one, and are not dropped, count; which these are must not depend on
        the feature.
        """
        with self.node.located():
            layers = self.layers or tuple(dict.fromkeys(sae_layers(view.ds)))
            some_target = with_sae({"target_layer": layers[0], "target_feature": 0}, view)
            selected = view.select(plan := plan_of(some_target))
            rows = selected.positions[selected.usable()] if self.drop_nonfinite else selected.positions
            ranked = view.rank(self.by, layers, self.top, np.unique(rows), plan, self.min_active)
            found = [with_sae(target, view) for target in ranked]
            for target in found:
                if not np.array_equal(view.select(plan_of(target)).positions, selected.positions):
                    other = f"{plan.strategy.name} selects other sentences for other features, so none can be ranked"
                    raise SelectionError(f"{other}; name the targets")
        return [(self.node, target) for target in found]


Targets = Listed | OfStores | Ranking


def read_targets(node: Node, *, min_active: int, drop_nonfinite: bool) -> Targets:
    """Read the target features of an entry.

    Raises
    ------
    RecipeError
        If they are named in no way that there is.
    ParameterError
        If the file cannot be read, or has fewer features.
    """
    match node.value:
        case list():
            return Listed(targets=tuple((pair, _pair(pair)) for pair in node.items()))
        case {"ranked": _}:
            return _of_files(node)
        case dict():
            return _ranking(node, min_active, drop_nonfinite)
    raise node.error(f"expected [layer, feature] pairs, or ranked: FILE.csv, or rank_by, found {brief(node.plain())}")


def checked(node: Node, target: Target, view: StoreView) -> Target:
    """Check a target, and say of which SAE it is only as far as that tells anything."""
    with node.located(), lacking(view.path):
        sae_position(view.ds, int(target["target_layer"]), target.get("average_l0"))
        check_feature(view.ds, int(target["target_feature"]))
    return with_sae(target, view)


def with_sae(target: Target, view: StoreView) -> Target:
    """Name the SAE of a target by its average L0, by default the first, but only where its layer has several."""
    choices = average_l0s(view.ds, int(target["target_layer"]))
    if len(choices) == 1:
        return {name: value for name, value in target.items() if name != "average_l0"}
    return {"average_l0": choices[0]} | target


def _pair(node: Node) -> Target:
    pair = node.plain()
    kinds = [type(number) for number in pair] if isinstance(pair, list) else []
    if kinds not in ([int, int], [int, int, int], [int, int, float]):
        raise node.error(f"expected [layer, feature], or [layer, feature, average L0], found {brief(pair)}")
    with node.located():
        target: Target = {name: integer(name, number) for name, number in zip(TARGET, pair, strict=False)}
    return target | dict(zip(["average_l0"], pair[2:], strict=False))


def _of_files(node: Node) -> Targets:
    given = node.mapping(["ranked", "top"])
    top = given["top"].count() if "top" in given else None
    ranked = given["ranked"]
    if not isinstance(ranked.value, dict):
        return _of_file(ranked, top)
    return OfStores(ranked, {store: _of_file(file, top) for store, file in ranked.value.items()})


def _of_file(node: Node, top: int | None) -> Listed:
    with node.located():
        targets = read_ranked(node.path(), top)
    return Listed(targets=tuple((node, target) for target in targets), files=tuple(tables(ranking=node.text())))


def _ranking(node: Node, min_active: int, drop_nonfinite: bool) -> Ranking:
    given = node.mapping(["rank_by", "top", "layers"], required=["rank_by", "top"])
    layers = None
    if "layers" in given and not given["layers"].is_word(ALL):
        with given["layers"].located():
            layers = numbers(spelled("layers"), given["layers"].plain())
    return Ranking(
        node=node,
        by=given["rank_by"].choice(list(RANKINGS)),
        top=given["top"].count(),
        layers=layers,
        min_active=min_active,
        drop_nonfinite=drop_nonfinite,
    )
