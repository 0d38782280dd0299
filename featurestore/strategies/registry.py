"""How strategies are registered, and what follows from their signatures: options, help, validation."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import operator
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, reduce
from numbers import Real
from types import FunctionType, NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from featurestore.errors import ParameterError, StrategyError, brief, shortened, spelled
from featurestore.ranges import Numbers, integer, numbers

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)

NUMBER = int | float
"""A number that stays an integer where it is whole, such as an average L0."""

SAE_LAYER = object()
"""Annotated beside the help text, it says that an option's layers are of SAEs: `all` in a recipe then means theirs."""

TYPES = (int, float, NUMBER, str, bool, Numbers)
"""What options can be."""

OWN = (
    "store", "strategy", "input", "source", "pool", "where", "drop_short", "drop_nonfinite", "tokens", "special",
    "combine", "normalize", "stats_from", "reduce", "target_tokens", "y", "labels_from", "classes", "control",
    "controls", "test_size", "test_store", "folds", "seed", "group_by", "output", "overwrite", "wait",
    "storage_options", "targets", "plugin", "quiet", "verbose", "help",
)  # fmt: skip
"""Options of `build` and keys of recipes, which no option of a strategy can be called."""


@dataclass(frozen=True)
class Selection:
    """The two sides of a dataset, lazy and labelled; what they are is read off their names and coordinates.

    Attributes
    ----------
    X : xarray.DataArray, or a sequence of them
        Blocks of columns, to be put side by side: numbers, with the dim `sentence` and its coordinate, and any further
        dims, which are flattened in their order. Where the dim `token` is left, with all tokens of the store, whoever
        builds chooses by the option `tokens`; the final one by default. Blocks that several datasets have in common,
        such as one layer, are read once for all of them.
    y : xarray.DataArray
        Dims `sentence`, or `sentence` and one more where there are several targets; also with `token`, as X. Bool and
        integers become int64, other numbers float32.
    densest : int, optional
        Keep only so many features of X, those that are not zero in most training rows. X then is one block of dims
        (sentence, feature).

    Notes
    -----
    Rows are joined by the coordinate `sentence`: X and y may be in any order, and of a subset of the sentences, as long
    as they name the same ones. Those that are left out are recorded.
    """

    X: xr.DataArray | Sequence[xr.DataArray]
    y: xr.DataArray
    densest: int | None = None

    @property
    def blocks(self) -> tuple[xr.DataArray, ...]:
        """The blocks of X, also where it is only one."""
        return tuple(self.X) if isinstance(self.X, Sequence) else (self.X,)


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of a strategy; without a default it is required; `of_sae` if its layers are SAEs'."""

    name: str
    type: Any
    help: str
    default: Any = inspect.Parameter.empty
    of_sae: bool = False

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty

    @property
    def names_layers(self) -> bool:
        """Whether it takes layers of the store, as its name tells."""
        return self._names("layer")

    @property
    def names_features(self) -> bool:
        """Whether it takes features of the store, as its name tells."""
        return self._names("feature")

    def _names(self, what: str) -> bool:
        return self.type in (int, Numbers) and self.name.endswith((what, f"{what}s"))

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return self.flags[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """Its spellings: what is true unless it is said, or has to be said, can also be denied."""
        deniable = self.type is bool and self.default is not False
        names = (self.name, f"no_{self.name}") if deniable else (self.name,)
        return tuple(f"--{name.replace('_', '-')}" for name in names)

    def convert(self, value: object) -> object:
        """Validate a value, from Python or from the command line.

        Raises
        ------
        ParameterError
            If it is not of the option's type.
        """
        if self.type == Numbers:
            return numbers(spelled(self.name), value)
        if self.type is int:
            return integer(spelled(self.name), value)
        if self.type in (float, NUMBER) and isinstance(value, Real) and not isinstance(value, bool):
            with suppress(OverflowError):
                if math.isfinite(number := float(value)):
                    return int(number) if self.type == NUMBER and number.is_integer() else number
            raise ParameterError(f"{spelled(self.name)}: expected a finite number, found {brief(value)}")
        if not isinstance(value, self.type):
            expected = "a number" if self.type == NUMBER else self.type.__name__
            raise ParameterError(f"{spelled(self.name)}: expected {expected}, found {brief(value)}")
        return value


@dataclass(frozen=True)
class Strategy:
    """A registered strategy.

    Attributes
    ----------
    name : str
        As in ``--strategy``.
    select : callable
        The function.
    options : tuple of Option
        Its keyword-only parameters.
    one_of : tuple of str
        Options of which exactly one has to be given.
    sequences : bool
        Whether X keeps the tokens of a sentence in a dim of their own.
    version : int
        Of the values that a built-in strategy makes.
    file_digest : str
        SHA-256 of its file, if that is a plugin.
    """

    name: str
    select: Callable[..., Selection]
    options: tuple[Option, ...]
    one_of: tuple[str, ...] = ()
    sequences: bool = False
    version: int = 1
    file_digest: str = ""
    _source_digest: str = field(default="", repr=False)

    @cached_property
    def code(self) -> str:
        """Identifies its code, as far as fingerprints have to: nothing for version 1 of a built-in strategy.

        A plugin's is the SHA-256 of its file, that of a notebook, a script or another module the SHA-256 of the
        function's source.
        """
        if _is_builtin(self.select):
            return "" if self.version == 1 else f"version {self.version}"
        if not (digest := self.file_digest or self._source_digest):
            logger.warning("strategy %s: its source is not to be found, so fingerprints don't see changes", self.name)
        return digest

    @property
    def origin(self) -> str:
        """Where it comes from."""
        return "featurestore" if _is_builtin(self.select) else inspect.unwrap(self.select).__code__.co_filename

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.select) or "").partition("\n")[0]

    def arguments(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Validate options by name, and return them in the strategy's order; None counts as not given.

        Raises
        ------
        ParameterError
            If one is unknown, missing or of the wrong type.
        """
        given = {name: value for name, value in given.items() if value is not None}
        options = {option.name: option for option in self.options}
        takes = ", ".join(spelled(name) for name in options) or "none"
        for name in given:
            if name not in options:
                raise ParameterError(f"{spelled(shortened(name))}: {self.name} takes no such option; it takes {takes}")
        missing = [spelled(option.name) for option in self.options if option.required and option.name not in given]
        if missing:
            raise ParameterError(f"{self.name} needs {' and '.join(missing)}; it takes {takes}")
        if self.one_of and len([name for name in self.one_of if name in given]) != 1:
            either = " or ".join(map(spelled, self.one_of))
            raise ParameterError(f"{self.name} needs either {either}, and not both")
        return {name: option.convert(given[name]) for name, option in options.items() if name in given}


Select = Callable[..., Selection]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_REGISTRY: dict[str, Strategy] = {}


def strategy(
    name: str, *, one_of: tuple[str, ...] = (), sequences: bool = False, version: int = 1
) -> Callable[[Callable[..., Selection]], Callable[..., Selection]]:
    """Register a strategy: a function of a dataset and annotated, keyword-only options.

    Parameters
    ----------
    name : str
        As in ``--strategy``.
    one_of : tuple of str
        Options of which exactly one has to be given.
    sequences : bool
        Whether X, in which the dim `token` is left, is to be (sentence, token, column), for models that read sequences.
    version : int
        Raised when a built-in strategy comes to make other values: fingerprints see it. Of others they see the code.

    Raises
    ------
    StrategyError
        A ValueError: if the name is taken by another function (the cell of a notebook may run again), the function has
        no docstring, or an option is not keyword-only, lacks its type or help text, has a type that is none of int,
        float, str, bool and Numbers (or one of these ``| None``), or a name that `build` needs for itself.
    """

    def register(select: Select) -> Select:
        known = _REGISTRY.get(name)
        if known and (known.select.__module__, known.select.__qualname__) != (select.__module__, select.__qualname__):
            raise StrategyError(f"strategy {name!r} is registered already, by {known.origin}; choose another name")
        _REGISTRY[name] = _checked(name, select, one_of, bool(sequences), version)
        return select

    return register


def registered() -> dict[str, Strategy]:
    """All strategies that are registered by now, by name; `replace_all` undoes what was registered since."""
    return dict(_REGISTRY)


def replace_all(strategies: Mapping[str, Strategy]) -> None:
    """Let these be the registered strategies."""
    _REGISTRY.clear()
    _REGISTRY.update(strategies)


def _checked(name: str, select: Select, one_of: tuple[str, ...], sequences: bool, version: int) -> Strategy:
    """Make a strategy of a function, after checking all that a decorator can see."""
    if not isinstance(name, str) or not name.isprintable() or not name or name.startswith("-"):
        raise StrategyError(f"strategy {brief(name)}: expected a name of printable characters that starts with no dash")
    if not isinstance(select, FunctionType):
        raise StrategyError(f"strategy {name!r}: expected a function, found {brief(select)}")
    if not inspect.getdoc(select) and sys.flags.optimize < 2:  # which leaves docstrings out
        raise StrategyError(f"strategy {name!r} needs a docstring, whose first line says what it predicts from what")
    if type(version) is not int or version < 1:
        raise StrategyError(f"strategy {name!r}: version: expected an integer of at least 1, found {brief(version)}")
    parameters = list(inspect.signature(select).parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise StrategyError(f"strategy {name!r}: expected a function of a dataset and keyword-only options")
    options = _options(name, parameters[1:], inspect.unwrap(select).__globals__)
    optional = [option.name for option in options if not option.required]
    if isinstance(one_of, str) or (unknown := [option for option in one_of if option not in optional]):
        found = one_of if isinstance(one_of, str) else ", ".join(map(str, unknown))
        raise StrategyError(f"strategy {name!r}: one_of: expected a tuple of options with defaults, found {found}")
    return Strategy(name, select, options, tuple(one_of), sequences, version, _source_digest=_digest_of_source(select))


def _options(name: str, parameters: Sequence[inspect.Parameter], namespace: dict[str, Any]) -> tuple[Option, ...]:
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation for parameter in parameters})
    try:
        hints = get_type_hints(annotated, namespace, include_extras=True)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise StrategyError(f"strategy {name!r}: its annotations cannot be read ({error})") from error
    options = tuple(_option(f"strategy {name!r}", parameter, hints[parameter.name]) for parameter in parameters)
    flags = [flag for option in options for flag in option.flags]
    if twice := [flag for flag in flags if flags.count(flag) > 1]:
        raise StrategyError(f"strategy {name!r}: two options would be {twice[0]}; choose another name")
    return options


def _option(where: str, parameter: inspect.Parameter, hint: Any) -> Option:
    name, (base, *notes) = parameter.name, get_args(hint) or (hint,)
    texts = [note for note in notes if isinstance(note, str) and note.strip()]
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or get_origin(hint) is not Annotated or not texts:
        raise StrategyError(f"{where}: {name} must be keyword-only and Annotated[type, help]")
    if get_origin(base) in (Union, UnionType):  # without None, which says that it may be left out
        base = reduce(operator.or_, [kind for kind in get_args(base) if kind is not NoneType] or [NoneType])
    if base not in TYPES:
        raise StrategyError(f"{where}: {name}: expected int, float, str, bool or Numbers, or one | None, found {base}")
    if name in OWN:
        raise StrategyError(f"{where}: {name}: build and recipes have this option themselves; choose another name")
    return Option(name, base, texts[0], parameter.default, SAE_LAYER in notes)


def _is_builtin(select: Select) -> bool:
    return (select.__module__ or "").partition(".")[0] == __name__.partition(".")[0]


def _digest_of_source(select: Select) -> str:
    """Identify a function by its source, wherever it is indented; by nothing where there is none to be found."""
    if _is_builtin(select):
        return ""
    try:
        source = textwrap.dedent(inspect.getsource(select))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()
