"""How strategies are registered, and what follows from their signatures: options, help, validation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from featurestore.errors import ParameterError, brief, shortened, spelled
from featurestore.ranges import Numbers, integer, numbers

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Selection:
    """The two sides of a dataset, lazy and labelled; what they are is read off their names and coordinates.

    Attributes
    ----------
    X : xarray.DataArray, or a sequence of them
        Blocks of columns, to be put side by side: numbers, with the dim `sentence` and its coordinate, and any further
        dims, which are flattened in their order. Blocks that several datasets have in common, such as one layer, are
        read once for all of them.
    y : xarray.DataArray
        Dims `sentence`, or `sentence` and one more where there are several targets. Bool and integers become int64,
        other numbers float32.
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
    """A keyword-only parameter of a strategy."""

    name: str
    type: Any
    help: str
    required: bool

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return f"--{self.name.replace('_', '-')}"

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
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, self.type):
            raise ParameterError(f"{spelled(self.name)}: expected {self.type.__name__}, found {brief(value)}")
        return value


@dataclass(frozen=True)
class Strategy:
    """A registered strategy."""

    name: str
    select: Callable[..., Selection]
    options: tuple[Option, ...]
    one_of: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.select) or "").partition("\n")[0]

    def parameters(self, given: Mapping[str, object]) -> dict[str, Any]:
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

_REGISTRY: dict[str, Strategy] = {}


def strategy(
    name: str, *, one_of: tuple[str, ...] = ()
) -> Callable[[Callable[..., Selection]], Callable[..., Selection]]:
    """Register a strategy: a function of a dataset and annotated, keyword-only options.

    Parameters
    ----------
    name : str
        As in ``--strategy``.
    one_of : tuple of str
        Options of which exactly one has to be given.

    Raises
    ------
    ValueError
        If the name is taken by another function (the cell of a notebook may run again), the function has no docstring,
        or an option lacks its type or help text.
    """

    def register(select: Select) -> Select:
        known = _REGISTRY.get(name)
        if known and (known.select.__module__, known.select.__qualname__) != (select.__module__, select.__qualname__):
            raise ValueError(f"strategy {name!r} is registered already")
        if not inspect.getdoc(select) and sys.flags.optimize < 2:  # python -OO leaves docstrings out
            raise ValueError(f"strategy {name!r} needs a docstring")
        _, *parameters = inspect.signature(select).parameters.values()
        _REGISTRY[name] = Strategy(name, select, _options(name, parameters, select.__globals__), one_of)
        return select

    return register


def list_strategies() -> dict[str, Strategy]:
    """All registered strategies by name."""
    return dict(_REGISTRY)


def get_strategy(name: str) -> Strategy:
    """Look a strategy up.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if not isinstance(name, str) or name not in _REGISTRY:
        raise ParameterError(f"strategy: expected one of {', '.join(_REGISTRY)}, found {brief(name)}")
    return _REGISTRY[name]


def _options(name: str, parameters: Sequence[inspect.Parameter], namespace: dict[str, Any]) -> tuple[Option, ...]:
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation for parameter in parameters})
    hints = get_type_hints(annotated, namespace, include_extras=True)
    options = []
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or get_origin(hint) is not Annotated:
            raise ValueError(f"strategy {name!r}: {parameter.name} must be keyword-only and Annotated[type, help]")
        base, text = get_args(hint)
        if isinstance(base, UnionType):
            (base,) = (kind for kind in get_args(base) if kind is not NoneType)
        options.append(Option(parameter.name, base, text, parameter.default is inspect.Parameter.empty))
    return tuple(options)
