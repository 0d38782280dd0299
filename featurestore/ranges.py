"""The grammar of several layers or features, such as ``0-2,10,15-17``."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from featurestore.errors import ParameterError, brief, shortened

Numbers = tuple[int, ...]
"""Layers or features, in the order in which they are used, none twice."""

_MOST = 1_000_000
"""More than text can name, which has numbers of six digits."""

_PART = re.compile(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*")
_WIDE = re.compile(r"\s*(-?[0-9]{1,18})(?:-(-?[0-9]{1,18}))?\s*")

_LONGEST_BITS = 256
"""Of an integer, which a seed may have; the longest could not even be printed."""


def parse_numbers(name: str, text: str, *, wide: bool = False) -> Numbers:
    """Read numbers and inclusive ranges, separated by commas, none twice; if `wide`, negative and longer ones, too.

    Raises
    ------
    ParameterError
        If `text` is something else; the message starts with `name`.

    Examples
    --------
    >>> parse_numbers("--layers", "0-2,10,15-17")
    (0, 1, 2, 10, 15, 16, 17)
    """
    found: list[int] = []
    for part in text.split(","):
        match = (_WIDE if wide else _PART).fullmatch(part)
        if not match:
            expected = "expected numbers and ranges such as 0-2,10,15-17"
            within = f" in {brief(text)}" if part != text else ""
            raise ParameterError(f"{name}: {expected}, found {brief(part)}{within}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            backwards = f"the range {part.strip()} in {brief(text)} runs backwards; write {last}-{first}"
            raise ParameterError(f"{name}: {backwards}")
        if len(found) + last - first >= _MOST:
            raise ParameterError(f"{name}: {brief(text)} is more than {_MOST:,} numbers; name fewer")
        found.extend(range(first, last + 1))
    return number_tuple(name, found)


def format_numbers(numbers: Numbers) -> str:
    """Write numbers as `parse_numbers` reads them, in the same order."""
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs(numbers))


def number_tuple(name: str, value: object) -> Numbers:
    """Validate an integer, or a sequence or array (numpy's, xarray's) of them, none twice.

    Raises
    ------
    ParameterError
        If `value` is something else; the message starts with `name`.
    """
    values = _plain(name, value)
    if isinstance(values, int):
        values = [values]
    if not isinstance(values, Sequence) or isinstance(values, bytes | bytearray | memoryview) or not values:
        expected = "expected text such as 0-2,10,15-17, or a sequence of integers"
        raise ParameterError(f"{name}: {expected}, found {brief(value)}")
    found = tuple(integer(name, number) for number in islice(values, _MOST + 1))
    if len(found) > _MOST:
        raise ParameterError(f"{name}: {brief(value)} is more than {_MOST:,} numbers; name fewer")
    if repeated := [number for number, count in Counter(found).items() if count > 1]:
        raise ParameterError(f"{name}: {shortened(', '.join(map(str, repeated)))} named twice; name each once")
    return found


def numbers(name: str, value: object) -> Numbers:
    """Read numbers given as text, an integer or a sequence: `parse_numbers` or `number_tuple`."""
    return parse_numbers(name, value) if isinstance(value, str) else number_tuple(name, value)


def integer(name: str, value: object) -> int:
    """Validate an integer, numpy's and xarray's too, but no bool.

    Raises
    ------
    ParameterError
        If `value` is something else; the message starts with `name`.
    """
    plain = _plain(name, value)
    if isinstance(plain, bool):
        raise ParameterError(f"{name}: expected an integer, found {brief(value)}")
    try:
        number = operator.index(plain)  # type: ignore[arg-type]
    except Exception as error:
        raise ParameterError(f"{name}: expected an integer, found {brief(value)}") from error
    if number.bit_length() > _LONGEST_BITS:
        raise ParameterError(f"{name}: expected an integer of at most {_LONGEST_BITS} bits, found {brief(value)}")
    return number


def _plain(name: str, value: object) -> object:
    """Return Python's own integers, or lists of them, in place of numpy's and xarray's."""
    if getattr(getattr(value, "dtype", None), "kind", "") not in ("i", "u", "O"):
        return value
    import numpy as np

    try:
        return np.asarray(value).tolist()
    except Exception as error:  # of an array on another device, for one
        raise ParameterError(f"{name}: expected integers, found {brief(value)} ({shortened(error)})") from error


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split into runs of consecutive, ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
