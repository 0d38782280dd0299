"""What can go wrong, as one tree of exceptions:

    FeatureStoreError
    ├── NpzError (ValueError)        an NPZ file that is damaged, unsafe or of the wrong content
    ├── SourceError (ValueError)     a folder of sentence NPZs that cannot be ingested
    ├── StoreError (ValueError)      a path that is no store, or a store that does not fit what is asked
    │   ├── StoreNotFoundError (FileNotFoundError)
    │   └── StoreBusyError (BlockingIOError)     another process is writing it
    ├── SelectionError (LookupError) a layer, feature or SAE that the store does not hold
    ├── TooLargeError (MemoryError)  a selection that does not fit into memory
    ├── StrategyError (ValueError)   a strategy that cannot be registered, or whose X and y are no dataset
    ├── ParameterError (TypeError)   an option that is unknown, missing, contradictory or unreadable
    ├── NonFiniteError (ValueError)  NaN or infinity where a dataset needs numbers
    ├── DatasetError (ValueError)    a dataset that cannot be written where it should be, or used as asked
    ├── RecipeError (ValueError)     a recipe that asks for something impossible or unreadable
    └── MissingExtraError (ImportError)      a library that is not installed, and the extra that would install it

Every message names its subject, what was expected, what was found, and what to do about it, in the language of whoever
asked: options are spelled ``layers=`` in Python, ``--layers`` on the command line, ``layers`` in a recipe.
"""

from __future__ import annotations

import json
import re
import reprlib
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Language = Literal["Python", "command line", "recipe"]

_language: ContextVar[Language] = ContextVar("language", default="Python")
_LONGEST = 80
_SOME = 5
_REPR = reprlib.Repr(maxlevel=3, maxstring=_LONGEST - 10, maxother=_LONGEST - 10, maxlong=40)


class FeatureStoreError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...], dict[str, Any]]:
        """Pickle as exceptions do; without this `distributed` would rebuild those that are an OSError, and fail."""
        return type(self), self.args, self.__dict__


class NpzError(FeatureStoreError, ValueError):
    """An NPZ file that is damaged, unsafe or of the wrong content.

    Attributes
    ----------
    reason : str
        What is wrong, without the name of the file.
    """

    reason = ""

    @classmethod
    def of(cls, path: object, reason: str) -> Self:
        """Make the error that says what is wrong with a file."""
        error = cls(f"{shown(path)}: {reason}")
        error.reason = reason
        return error


class SourceError(FeatureStoreError, ValueError):
    """A folder of sentence NPZs that cannot be ingested."""


class StoreError(FeatureStoreError, ValueError):
    """A path that is no feature store, or a store that does not fit what is asked of it."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No store at this path."""

    __str__ = Exception.__str__


class StoreBusyError(StoreError, BlockingIOError):
    """Another process is writing the store."""

    __str__ = Exception.__str__


class SelectionError(FeatureStoreError, LookupError):
    """A layer, feature or SAE that the store does not hold."""


class TooLargeError(FeatureStoreError, MemoryError):
    """A selection that does not fit into memory."""


class StrategyError(FeatureStoreError, ValueError):
    """A strategy that cannot be registered, or returns something else than a dataset's X and y."""


class ParameterError(FeatureStoreError, TypeError):
    """An option that is unknown, missing, contradictory or unreadable."""


class NonFiniteError(FeatureStoreError, ValueError):
    """NaN or infinite values among those a dataset would hold."""


class DatasetError(FeatureStoreError, ValueError):
    """A dataset that cannot be written where it should be, or used as asked."""


class RecipeError(FeatureStoreError, ValueError):
    """A recipe that asks for something impossible or unreadable; one line for each fault."""


class MissingExtraError(FeatureStoreError, ImportError):
    """A library that is not installed, because it belongs to an extra."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra installs what is imported meanwhile."""
    try:
        yield
    except ImportError as error:
        needed = f"needs {error.name}, which is not installed"
        raise MissingExtraError(f"{needed}: install the extra {name}, as by pip install '.[{name}]'") from error


@contextmanager
def speaking(language: Language) -> Iterator[None]:
    """Spell options in this language, in messages that are made meanwhile, in this thread."""
    before = _language.set(language)
    try:
        yield
    finally:
        _language.reset(before)


def spelled(name: str, value: object = None) -> str:
    """Spell an option, or an option with a value, as whoever reads the message would write it."""
    match _language.get():
        case "Python":
            return f"{name}={'' if value is None else repr(value)}"
        case "command line":
            flag = f"--{name.replace('_', '-')}"
            return flag if value is None or value is True else f"{flag} {value!r}"
        case "recipe":
            return name if value is None else f"{name}: {json.dumps(value)}"


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Say what a system error is about, where the system names nothing, or a file that is only on its way."""
    try:
        yield
    except FeatureStoreError:
        raise
    except OSError as error:
        named = str(error.filename)
        if error.filename is None or named.endswith(".partial") or named.startswith("/proc/self/fd/"):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextmanager
def lacking(store: object) -> Iterator[None]:
    """Say which store it is that does not hold what is asked for."""
    try:
        yield
    except SelectionError as error:
        if str(error).startswith(f"{store}: "):
            raise
        raise SelectionError(f"{store}: {error}") from None


def shown(name: object) -> str:
    """Spell a file name so that it stays on one line and cannot drive a terminal."""
    text = str(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def shortened(text: object) -> str:
    """Spell a text as `shown` does, cut to what a message has room for."""
    line = shown(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def first_line(error: Exception) -> str:
    """Spell what another library says of an error, cut to what a message has room for."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0])


def brief(value: object) -> str:
    """Spell a value that was found, whatever it is, as `repr` does, but on one short line."""
    try:
        return shortened(re.sub(r"\s*\n\s*", " ", _REPR.repr(value)))
    except Exception:  # a foreign __repr__ may do anything, and the longest integers have none
        return shortened(f"<{type(value).__name__}>")


def some(items: Iterable[object], separator: str = ", ") -> str:
    """Name the first few of some items, and say how many more there are."""
    names = [str(item) for item in items]
    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return separator.join(names[:_SOME]) + more
