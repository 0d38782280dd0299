"""The features that an entry of a recipe predicts: named there, read from a ranking of others, or ranked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.datasets.journal import File, tables
from featurestore.datasets.ranking import RANKINGS, Target, read_ranked
from featurestore.errors import SelectionError, brief, spelled
from featurestore.ranges import Numbers, integer, numbers
from featurestore.recipes.nodes import Node
from featurestore.strategies import sae_layers

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

    def find(self, view: StoreView, plan_of: Callable[[Target], Plan]) -> list[Located]:
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


Targets = list[Located] | Ranking


def read_targets(node: Node, *, min_active: int, drop_nonfinite: bool) -> tuple[Targets, list[File]]:
    """Read the target features of an entry; also return the file of their ranking, if there is one.

    Raises
    ------
    RecipeError
        If they are named in no way that there is.
    ParameterError
        If the file cannot be read, or has fewer features.
    """
    match node.value:
        case list():
            return [(pair, _pair(pair)) for pair in node.items()], []
        case {"ranked": _}:
            return _of_file(node)
        case dict():
            return _ranking(node, min_active, drop_nonfinite), []
    raise node.error(f"expected [layer, feature] pairs, or ranked: FILE.csv, or rank_by, found {brief(node.plain())}")


def checked(node: Node, target: Target, view: StoreView) -> Target:
    """Check a target, and say of which SAE it is only as far as that tells anything."""
    with node.located():
        view.check_target(target)
    return with_sae(target, view)


def with_sae(target: Target, view: StoreView) -> Target:
    """Name the SAE of a target by its average L0, by default the first, but only where its layer has several."""
    average_l0s = view.average_l0s(int(target["target_layer"]))
    if len(average_l0s) == 1:
        return {name: value for name, value in target.items() if name != "average_l0"}
    return {"average_l0": average_l0s[0]} | target


def _pair(node: Node) -> Target:
    pair = node.plain()
    kinds = [type(number) for number in pair] if isinstance(pair, list) else []
    if kinds not in ([int, int], [int, int, int], [int, int, float]):
        raise node.error(f"expected [layer, feature], or [layer, feature, average L0], found {brief(pair)}")
    with node.located():
        target: Target = {name: integer(name, number) for name, number in zip(TARGET, pair, strict=False)}
    return target | dict(zip(["average_l0"], pair[2:], strict=False))


def _of_file(node: Node) -> tuple[list[Located], list[File]]:
    given = node.mapping(["ranked", "top"])
    top = given["top"].count() if "top" in given else None
    ranked = given["ranked"]
    with ranked.located():
        targets = read_ranked(ranked.path(), top)
    return [(ranked, target) for target in targets], tables(ranking=ranked.text())


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
