"""The values of a YAML file, each with its line and key, so that errors can say where they are."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featurestore.errors import RecipeError, shown

_MAX_DEPTH = 8


@dataclass(frozen=True, eq=False)
class Node:
    """A value of a recipe, and where it stands.

    Attributes
    ----------
    value : scalar, list of Node, or dict of str to Node
        The value.
    where : str
        Such as ``study.yaml:7: datasets[0].layer``.
    """

    value: Any
    where: str

    def error(self, problem: object) -> RecipeError:
        """Make the error that says what is wrong here."""
        return RecipeError(f"{self.where}: {problem}")

    def items(self) -> list[Node]:
        """Return the elements of a list; anything else is a list of one."""
        if self.value == []:
            raise self.error("expected at least one value, found an empty list")
        return self.value if isinstance(self.value, list) else [self]

    def mapping(self, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Node]:
        """Return the values by key, after checking the keys."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected keys ({', '.join(known)}) with values, found {self.plain()!r}")
        for key, node in self.value.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                meant = f"did you mean {close[0]}? " if close else ""
                raise node.error(f"unknown key; {meant}known here: {', '.join(known)}")
        for key in required:
            if key not in self.value:
                raise self.error(f"the key {key} is missing")
        return self.value

    def text(self) -> str:
        """Return a text."""
        if not isinstance(self.value, str):
            raise self.error(f"expected text, found {self.plain()!r}")
        return self.value

    def count(self) -> int:
        """Return an integer of at least 1."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < 1:
            raise self.error(f"expected a number of at least 1, found {self.plain()!r}")
        return self.value

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, found {self.plain()!r}")
        return self.value

    def choice(self, choices: Sequence[str]) -> str:
        """Return one of some words."""
        if self.value not in choices:
            raise self.error(f"expected one of {', '.join(choices)}, found {self.plain()!r}")
        return str(self.value)

    def plain(self) -> Any:
        """Return the value without places."""
        match self.value:
            case list():
                return [node.plain() for node in self.value]
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
        return self.value


def read_yaml(path: Path) -> Node:
    """Read a YAML file.

    Raises
    ------
    RecipeError
        If it cannot be read, is no YAML, or holds more than plain values.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            loader = yaml.SafeLoader(file.read())
        tree = loader.get_single_node()
    except OSError as error:
        raise RecipeError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{shown(path)}: expected YAML in UTF-8, found something else ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{shown(path)}:{line}: expected YAML, found {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{shown(path)}: expected YAML, found something else ({error})") from error
    if tree is None:
        raise RecipeError(f"{shown(path)}: expected a recipe, found an empty file")
    return _of_yaml(loader, tree, shown(path), "", 0)


def _of_yaml(loader: yaml.SafeLoader, node: yaml.Node, file: str, key: str, depth: int) -> Node:
    where = f"{file}:{node.start_mark.line + 1}" + (f": {key}" if key else "")
    if depth > _MAX_DEPTH:
        raise RecipeError(f"{where}: nested more deeply than any recipe")
    value: Any
    if isinstance(node, yaml.SequenceNode):
        value = [_of_yaml(loader, item, file, f"{key}[{i}]", depth + 1) for i, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        value = {}
        for name, item in node.value:
            line = name.start_mark.line + 1
            if name.value in value:
                raise RecipeError(f"{file}:{line}: {key}: the key {name.value} is there twice")
            value[name.value] = _of_yaml(loader, item, file, f"{key}.{name.value}".removeprefix("."), depth + 1)
    else:
        try:
            value = loader.construct_object(node)
        except yaml.YAMLError as error:
            raise RecipeError(f"{where}: expected plain values, found {node.tag} {node.value!r}") from error
    return Node(value, where)


def of_python(value: Any, key: str = "") -> Node:
    """Make the same of what a YAML file would contain."""
    if isinstance(value, Mapping):
        value = {str(name): of_python(item, f"{key}.{name}".removeprefix(".")) for name, item in value.items()}
    elif isinstance(value, list | tuple | range):
        value = [of_python(item, f"{key}[{i}]") for i, item in enumerate(value)]
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    return Node(value, f"recipe: {key}")
