"""The values of a YAML file, each with its line and key, so that errors can say where they are."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featurestore.errors import FeatureStoreError, RecipeError, brief, shortened, shown
from featurestore.paths import as_path

_MAX_DEPTH = 8
_MAX_VALUES = 200_000
_MAX_COUNT = 2**63
_MAX_FAULTS = 10
_PLAIN_KINDS = "biufUTO"
_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("seq", "map"))
_DECIMAL = re.compile(
    r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+|[-+]?\.(inf|nan)", re.IGNORECASE
)


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

    @contextmanager
    def located(self) -> Iterator[None]:
        """Say of errors that they are here, unless they have a place already."""
        try:
            yield
        except RecipeError:
            raise
        except FeatureStoreError as error:
            key = re.sub(r".*[ .]|\[.*", "", self.where)
            raise self.error(str(error).removeprefix(f"{key}: ")) from error

    def items(self) -> list[Node]:
        """Return the elements of a list; anything else is a list of one."""
        if isinstance(self.value, list) and not self.value:
            raise self.error("expected at least one value, found an empty list")
        return self.value if isinstance(self.value, list) else [self]

    def mapping(self, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Node]:
        """Return the values by key, after checking the keys."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected keys ({', '.join(known)}) with values, found {brief(self.plain())}")
        faults = []
        for key in [key for key in self.value if key not in known][:_MAX_FAULTS]:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            faults.append(str(self.value[key].error(f"unknown key; {meant}known here: {', '.join(known)}")))
        faults += [str(self.error(f"the key {key} is missing")) for key in required if key not in self.value]
        if faults:
            raise RecipeError("\n".join(faults))
        return self.value

    def text(self) -> str:
        """Return a text."""
        if not isinstance(self.value, str) or not self.value.isprintable():
            raise self.error(f"expected text, found {brief(self.plain())}")
        return self.value

    def path(self) -> Path:
        """Return a path."""
        with self.located():
            return as_path(self.text())

    def count(self) -> int:
        """Return an integer of at least 1."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not 0 < self.value < _MAX_COUNT:
            raise self.error(f"expected a number of at least 1, found {brief(self.plain())}")
        return self.value

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, found {brief(self.plain())}")
        return self.value

    def choice(self, choices: Sequence[str]) -> str:
        """Return one of some words."""
        if not isinstance(self.value, str) or self.value not in choices:
            raise self.error(f"expected one of {', '.join(choices)}, found {brief(self.plain())}")
        return str(self.value)

    def is_word(self, word: str) -> bool:
        """Say whether it is this word; what else it may be is never compared."""
        return isinstance(self.value, str) and self.value == word

    def plain(self) -> Any:
        """Return the value without places."""
        match self.value:
            case list():
                return [node.plain() for node in self.value]
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
        return self.value


class Faults:
    """Collects errors, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def collected(self, node: Node) -> Iterator[None]:
        """Go on after an error, which is at `node` if it has no place of its own."""
        try:
            with node.located():
                yield
        except RecipeError as error:
            self._lines.append(str(error))

    def check(self) -> None:
        """Raise what was collected."""
        if self._lines:
            raise RecipeError("\n".join(dict.fromkeys(self._lines)))


def read_yaml(path: Path) -> Node:
    """Read a YAML file.

    Raises
    ------
    RecipeError
        If it cannot be read, is no YAML, or holds more than plain values.
    """
    file = shown(path)
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        tree = loader.get_single_node()
        if tree is None:
            raise RecipeError(f"{file}: expected a recipe, found an empty file")
        return _Reader(loader, file).node(tree, "", 0)
    except RecipeError:
        raise
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: expected YAML in UTF-8, found something else ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{file}:{line}: is no YAML: {shortened(error.problem)}") from error
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{file}: expected YAML, found a special character ({error.reason})") from error
    except (ValueError, OverflowError) as error:  # of an escaped character that there is not
        raise RecipeError(f"{file}: is no YAML: {shortened(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{file}: nested more deeply than any recipe") from error


class _Bounds:
    """How large a recipe may be: aliases, and values that contain themselves, can make much out of little."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES

    def check(self, where: str, depth: int) -> None:
        """Count one more value."""
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise RecipeError(f"{where}: nested more deeply, or longer, than any recipe")


class _Reader:
    """Turns the nodes of PyYAML into ours."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self._loader, self._file, self._bounds = loader, file, _Bounds()

    def node(self, node: yaml.Node, key: str, depth: int) -> Node:
        where = f"{self._file}:{node.start_mark.line + 1}" + f": {key}" * bool(key)
        self._bounds.check(where, depth)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, where), where)
        if node.tag not in _TAGS:
            raise RecipeError(f"{where}: expected plain values, found {shortened(node.tag)}")
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(item, f"{key}[{i}]", depth + 1) for i, item in enumerate(node.value)], where)
        return Node(self._mapping(node, key, depth), where)

    def _mapping(self, node: yaml.Node, key: str, depth: int) -> dict[str, Node]:
        values: dict[str, Node] = {}
        for name, item in node.value:
            where = f"{self._file}:{name.start_mark.line + 1}"
            if not isinstance(name, yaml.ScalarNode):
                raise RecipeError(f"{where}: expected a word as key, found a list or mapping")
            full = _below(key, name.value)
            if name.value in values:
                raise RecipeError(f"{where}: {full} is there twice")
            values[name.value] = self.node(item, full, depth + 1)
        return values

    def _scalar(self, node: yaml.Node, where: str) -> Any:
        try:
            value = self._loader.construct_object(node)
        except Exception as error:  # PyYAML's constructors raise what they like
            found = f"{shortened(node.tag)} {brief(node.value)}"
            raise RecipeError(f"{where}: expected plain values, found {found}") from error
        # YAML 1.1 reads 010 as octal, and 1:30 in base 60.
        if isinstance(value, int | float) and not isinstance(value, bool) and not _DECIMAL.fullmatch(node.value):
            found = shortened(node.value)
            raise RecipeError(f"{where}: expected a plain decimal number, or text in quotes, found {found}")
        return value


def of_python(value: Any) -> Node:
    """Make the same of what a YAML file would contain; what it could not contain is left as it is.

    Raises
    ------
    RecipeError
        If a key is no text, or it is nested more deeply than any recipe.
    """
    return _of_python(value, "", 0, _Bounds())


def _of_python(value: Any, key: str, depth: int, bounds: _Bounds) -> Node:
    where = "recipe" + f": {key}" * bool(key)
    bounds.check(where, depth)
    if hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "") in _PLAIN_KINDS:
        value = np.asarray(value).tolist()
    if isinstance(value, Mapping):
        words = [_word(where, name) for name in value]
        if twice := [word for word, count in Counter(words).items() if count > 1]:
            raise RecipeError(f"{where}: {shortened(twice[0])} is there twice")
        items = zip(words, value.values(), strict=True)
        value = {word: _of_python(item, _below(key, word), depth + 1, bounds) for word, item in items}
    elif isinstance(value, list | tuple | range):
        value = [_of_python(item, f"{key}[{i}]", depth + 1, bounds) for i, item in enumerate(value)]
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    return Node(value, where)


def _word(where: str, name: object) -> str:
    """Return a key as YAML has it; labels are integers, too."""
    is_number = isinstance(name, int | np.integer) and not isinstance(name, bool) and abs(int(name)) < _MAX_COUNT
    if not is_number and not isinstance(name, str):
        raise RecipeError(f"{where}: expected words as keys, found {brief(name)}")
    return str(name)


def _below(key: str, name: str) -> str:
    return f"{key}.{shortened(name)}".removeprefix(".")
