"""The JSON schema of recipes, by which editors complete and check them; it follows from the registered strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore.datasets.ranking import RANKINGS
from featurestore.questions import options as questions
from featurestore.questions.options import OPTIONS
from featurestore.questions.rows import COORDINATES
from featurestore.ranges import Numbers
from featurestore.recipes.entry import entry_keys
from featurestore.recipes.recipe import PROBLEMS
from featurestore.recipes.targets import ALL
from featurestore.schema import CONTROLS, DATASETS, MIN_ACTIVE, NORMALIZATIONS, REDUCTIONS
from featurestore.strategies import NUMBER, Option, Strategy, list_strategies

_RANGE = r"^\s*\d{1,6}(\s*-\s*\d{1,6})?\s*(,\s*\d{1,6}(\s*-\s*\d{1,6})?\s*)*$"
_TOKENS = r"^(final|mean|max|all|(last|first)-[1-9][0-9]{0,5})$"
_TEXTS = {
    "where": "Only sentences such as label=0,3 or n_tokens=5-12; a mapping of coordinates to values has several "
    "conditions, a list alternatives.",
}
"""Where recipes say something else than flags that are repeated."""

_INTEGER = {"type": "integer", "minimum": 0}
_COUNT = {"type": "integer", "minimum": 1}
_SIMPLE: dict[Any, dict[str, Any]] = {
    int: _INTEGER,
    float: {"type": "number"},
    NUMBER: {"type": "number", "minimum": 0},
    str: {"type": "string"},
    bool: {"type": "boolean"},
}


def recipe_schema() -> dict[str, Any]:
    """Describe recipes as a JSON schema (draft 2020-12)."""
    strategies = list_strategies()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "featurestore recipe",
        **_object(
            {
                "plugins": _described(
                    _one_or_more({"type": "string"}), "Files or modules with strategies of your own."
                ),
                "stores": _described(
                    _one_or_more({"type": "string"}), "Stores, also as zips or URLs, or folders of sentence NPZs."
                ),
                "pool": _described(
                    {"type": "array", "items": {"type": "string"}, "minItems": 2},
                    "Several stores of which datasets are built as of one.",
                ),
                "datasets": _described(_one_or_more(_entry(strategies)), "What is built of each store."),
                **_usual(),
                "split": _split(),
                "seed": _described(_INTEGER, "Of the split, and of controls; 0 if left out."),
                "stats_from": _described({"type": "string"}, "Normalize by the parameters of this dataset."),
                "drop_nonfinite": _described({"type": "boolean"}, "Leave out sentences with NaN or infinity."),
                "problems": _described(
                    {"enum": list(PROBLEMS)},
                    "Skip datasets that nothing can be learned from (default), refuse the recipe, or build them.",
                ),
                "min_active": _described(
                    _COUNT, f"A target that is active in fewer sentences is nearly dead; {MIN_ACTIVE} if left out."
                ),
                "output": _described({"type": "string"}, f"Folder of the datasets; {DATASETS} if left out."),
            },
            required=["datasets"],
        ),
        "anyOf": [{"required": ["stores"]}, {"required": ["pool"]}],
    }


def _entry(strategies: dict[str, Strategy]) -> dict[str, Any]:
    values: dict[str, list[dict[str, Any]]] = {}
    texts = {}
    for strategy in strategies.values():
        for option in strategy.options:
            texts[option.name], known = option.help, values.setdefault(option.name, [])
            known += [_value(option)] * (_value(option) not in known)
    properties = {
        "strategy": {"enum": list(strategies), "description": "What X and y are."},
        **{name: _described(_one_or_more(*kinds), texts[name]) for name, kinds in values.items()},
        "targets": _targets(),
        **_usual(),
    }
    return {"type": "object", "required": ["strategy"], "properties": properties} | {
        "allOf": [
            {
                "if": {"properties": {"strategy": {"const": strategy.name}}, "required": ["strategy"]},
                "then": {"propertyNames": {"enum": entry_keys(strategy)}}
                | _own({o.name: _one_or_more(_value(o)) for o in strategy.options if len(values[o.name]) > 1}),
            }
            for strategy in strategies.values()
        ]
    }


def _own(properties: dict[str, Any]) -> dict[str, Any]:
    """Describe options that mean something else in other strategies."""
    return {"properties": properties} if properties else {}


def _value(option: Option) -> dict[str, Any]:
    """Describe one value: a single number may also be a range of them, each of which is built."""
    choices: list[dict[str, Any]] = [_SIMPLE.get(option.type, _INTEGER)]
    if option.type in (int, NUMBER, Numbers):
        choices.append({"type": "string", "pattern": _RANGE})
    if option.names_layers:
        choices.append({"const": ALL})
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _targets() -> dict[str, Any]:
    pair = {"type": "array", "prefixItems": [_INTEGER, _INTEGER, _SIMPLE[NUMBER]], "minItems": 2, "maxItems": 3}
    file = {"type": "string"}
    files = {"anyOf": [file, {"type": "object", "additionalProperties": file}]}
    ranked = _object(
        {"ranked": _described(files, "A ranked_features.csv, or one for each store by its name."), "top": _COUNT},
        ["ranked"],
    )
    ranking = _object(
        {
            "rank_by": {"enum": list(RANKINGS)},
            "top": _COUNT,
            "layers": {
                "anyOf": [
                    _INTEGER,
                    {"type": "string", "pattern": _RANGE},
                    {"const": ALL},
                    {"type": "array", "items": _INTEGER, "minItems": 1},
                ]
            },
        },
        ["rank_by", "top"],
    )
    text = "Pairs of layer and feature (and average L0), or where to find them."
    return {"description": text, "anyOf": [{"type": "array", "items": pair, "minItems": 1}, ranked, ranking]}


def _split() -> dict[str, Any]:
    share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    folds = {"type": "integer", "minimum": 2}
    return _described(
        _object(
            {
                "test_size": share,
                "test_store": {"type": "string"},
                "folds": folds,
                "seed": _INTEGER,
                "group_by": {"type": "string"},
            },
            [],
        ),
        "Divide the sentences without leakage; the normalization is fitted on the training rows.",
    )


def _usual() -> dict[str, Any]:
    """Describe the keys that an entry has, or the recipe for all entries."""
    forms: dict[str, dict[str, Any]] = {
        "where": _where(),
        "classes": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": _INTEGER}]},
        "tokens": {"type": "string", "pattern": _TOKENS},
        "target_tokens": {"type": "string", "pattern": _TOKENS},
        "reduce": {"type": "string", "pattern": rf"^({'|'.join(REDUCTIONS)})-[1-9]\d{{0,5}}$"},
    }
    usual = {
        name: _described(
            _one_or_more({"anyOf": [forms.get(name) or _form(option), {"type": "null"}]}), _TEXTS.get(name, option.help)
        )
        for name, option in OPTIONS.items()
        if name != "control"
    }
    return usual | {
        "normalize": _described(_one_or_more({"enum": list(NORMALIZATIONS)}), "How X is normalized."),
        "controls": _described(
            {"anyOf": [{"enum": list(CONTROLS)}, {"type": "array", "items": {"enum": list(CONTROLS)}}]},
            "What is built beside each dataset: what a probe finds by chance; an empty list for nothing.",
        ),
    }


def _where() -> dict[str, Any]:
    """Describe one population: a condition, or several that must all be met."""
    coordinates = sorted(COORDINATES)
    condition = {"type": "string", "pattern": rf"^\s*({'|'.join(coordinates)})\s*="}
    value = {"type": ["integer", "string", "boolean"]}
    values = {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}
    several = {"type": "object", "propertyNames": {"enum": coordinates}, "additionalProperties": values}
    return {"anyOf": [condition, several, {"type": "array", "items": condition, "minItems": 1}]}


def _form(option: questions.Option) -> dict[str, Any]:
    if option.words:
        return {"enum": list(option.words)}
    return {"type": "boolean" if option.is_flag else "string"}


def _one_or_more(*kinds: dict[str, Any]) -> dict[str, Any]:
    schemas = ({"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]} for schema in kinds)
    return next(schemas) if len(kinds) == 1 else {"anyOf": list(schemas)}


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"description": text, **schema}


def _object(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
