"""Strategies of others: from a file, from a module, and from packages that announce them by an entry point."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from featurestore.errors import ParameterError, StrategyError, brief, shown
from featurestore.paths import PathLike, as_path
from featurestore.strategies import registry
from featurestore.strategies.registry import Strategy

GROUP = "featurestore.strategies"
"""Of the entry points that name modules with strategies."""

logger = logging.getLogger(__name__)

_MODULE = re.compile(r"\w+(\.\w+)*")

_loaded: dict[Path | str, dict[str, Strategy]] = {}
"""What each file and module has registered."""


def load_plugin(plugin: PathLike) -> dict[str, Strategy]:
    """Register the strategies of a Python file or module, as ``--plugin`` does.

    Parameters
    ----------
    plugin : str or PathLike
        A file, such as ``my_strategies.py``, or the name of a module that can be imported, such as
        ``my_package.strategies``. What is loaded already is only loaded again where the file's content has changed.

    Returns
    -------
    dict of str to Strategy
        Its strategies by name.

    Raises
    ------
    ParameterError
        If there is no such file or module, it is no Python, or registers no strategy.
    StrategyError
        If a strategy cannot be registered, as its name is taken or an option is not as it should be.
    Exception
        Whatever its own code raises.
    """
    path = as_path(plugin)
    is_file = path.suffix == ".py" or os.sep in os.fspath(plugin) or not isinstance(plugin, str)
    found = _of_file(path) if is_file else _of_module(os.fspath(plugin))
    if not found:
        raise ParameterError(f"plugin {shown(path)}: registers no strategy; decorate a function with @strategy(name)")
    return found


def list_strategies() -> dict[str, Strategy]:
    """All registered strategies by name, those of installed packages' entry points too."""
    _bring_back(_announced())
    return registry.registered()


def get_strategy(name: str) -> Strategy:
    """Look a strategy up.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    known = registry.registered()
    if not isinstance(name, str) or (name not in known and name not in (known := list_strategies())):
        expected = f"expected one of {', '.join(known)}, found {brief(name)}"
        raise ParameterError(f"strategy: {expected}; one of your own needs its plugin")
    return known[name]


def _of_file(path: Path) -> dict[str, Strategy]:
    where = f"plugin {shown(path)}"
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait, a device never end
            raise ParameterError(f"{where}: expected a Python file, found something else; name the file itself")
        source = path.read_bytes()
    except OSError as error:
        raise ParameterError(f"{where}: cannot be read ({error.strerror}); check the path") from error
    path, digest = path.resolve(), hashlib.sha256(source).hexdigest()
    known, before = _loaded.get(path, {}), registry.registered()
    if known.items() <= before.items() and {strategy.file_digest for strategy in known.values()} == {digest}:
        return known
    module = ModuleType(f"featurestore_plugin_{path.stem}_{hashlib.sha256(bytes(path) + source).hexdigest()[:12]}")
    module.__file__ = str(path)
    with _restoring(before, where):
        registry.replace_all({name: strategy for name, strategy in before.items() if known.get(name) is not strategy})
        sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    _loaded[path] = _marked(before, lambda _: digest)
    return _loaded[path]


def _of_module(name: str) -> dict[str, Strategy]:
    before = registry.registered()
    with _restoring(before, name):
        if not _exists(name):
            raise ParameterError(f"plugin {shown(name)}: no such module; install it, or name a file that ends in .py")
        import_module(name)
        now = registry.registered()
        _bring_back(_loaded.get(name, {}))  # once imported, it does not register them again

    def digest(home: str) -> str:
        return _digest_of(home if _within(home, name) else name)

    own = {key: strategy for key, strategy in now.items() if _within(strategy.select.__module__, name)}
    _loaded[name] = _marked({key: strategy for key, strategy in before.items() if key not in own}, digest)
    return _loaded[name]


def _exists(module: str) -> bool:
    try:
        return module in sys.modules or (bool(_MODULE.fullmatch(module)) and find_spec(module) is not None)
    except ModuleNotFoundError as error:
        if error.name is not None and _within(module, error.name):
            return False
        raise  # it is there, but lacks another one


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@cache
def _announced() -> dict[str, Strategy]:
    """Load what installed packages announce, once; what is broken is left out."""
    from importlib.metadata import entry_points  # late, as it is slow

    found: dict[str, Strategy] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found |= _of_module(point.module)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            logger.warning("entry point %s (%s) is broken, so it is left out: %s", point.name, point.value, problem)
    return found


def _bring_back(strategies: Mapping[str, Strategy]) -> None:
    known = registry.registered()
    registry.replace_all(known | {name: strategy for name, strategy in strategies.items() if name not in known})


def _marked(before: Mapping[str, Strategy], digest: Callable[[str], str]) -> dict[str, Strategy]:
    """Return the strategies that were not there before, marked by the digest that their modules have."""
    now = registry.registered()
    found = {
        name: replace(strategy, file_digest=digest(strategy.select.__module__))
        for name, strategy in now.items()
        if before.get(name) is not strategy
    }
    registry.replace_all(now | found)
    return found


def _digest_of(module: str) -> str:
    try:
        return hashlib.sha256(Path(sys.modules[module].__file__ or "").read_bytes()).hexdigest()
    except (KeyError, AttributeError, OSError):
        return ""


@contextmanager
def _restoring(before: Mapping[str, Strategy], where: str) -> Iterator[None]:
    """Undo what a plugin has registered when it fails, and name the line; its own exceptions keep their traceback."""
    try:
        yield
    except BaseException as error:
        for name, strategy in registry.registered().items():
            if before.get(name) is not strategy:
                sys.modules.pop(strategy.select.__module__, None)
        registry.replace_all(before)
        if isinstance(error, SyntaxError):
            place = f"{shown(error.filename)}:{error.lineno}" if error.filename else where
            raise ParameterError(f"{place}: is no Python ({error.msg}); name a Python file") from error
        if isinstance(error, StrategyError):
            raise StrategyError(f"{_place(error) or where}: {error}") from error
        if isinstance(error, OSError | SystemExit):  # which would be taken for ours
            found = f"stops with {type(error).__name__} while it is imported: {error}"
            raise StrategyError(f"{_place(error) or where}: {found}") from error
        raise


def _place(error: BaseException) -> str:
    """Name the last line outside this package, if there is one."""
    ours = (str(Path(__file__).parent.parent), "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f"{shown(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
