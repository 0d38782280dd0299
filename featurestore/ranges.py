"""The grammar of several layers or features, such as ``0-2,10,15-17``."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence

from featurestore.errors import ParameterError

Numbers = tuple[int, ...]
"""Layers or features, in the order in which they are used, none twice."""


def parse_numbers(name: str, text: str) -> Numbers:
    """Read numbers and inclusive ranges, separated by commas, none twice.

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
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        if not match:
            raise ParameterError(
                f"{name}: expected numbers and ranges such as 0-2,10,15-17, found {part!r} in {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ParameterError(f"{name}: the range {part.strip()} in {text!r} runs backwards; write {last}-{first}")
        found.extend(range(first, last + 1))
    return number_tuple(name, found)


def format_numbers(numbers: Numbers) -> str:
    """Write numbers as `parse_numbers` reads them, in the same order."""
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs(numbers))


def number_tuple(name: str, value: object) -> Numbers:
    """Validate an integer or a sequence of them, none twice.

    Raises
    ------
    ParameterError
        If `value` is something else; the message starts with `name`.
    """
    values = [value] if isinstance(value, int) else value
    if not isinstance(values, Sequence) or not values:
        raise ParameterError(f"{name}: expected text such as 0-2,10,15-17, or a sequence of integers, found {value!r}")
    found = tuple(integer(name, number) for number in values)
    if repeated := [number for number, count in Counter(found).items() if count > 1]:
        raise ParameterError(f"{name}: {', '.join(map(str, repeated))} named twice; name each once")
    return found


def numbers(name: str, value: object) -> Numbers:
    """Read numbers given as text, an integer or a sequence: `parse_numbers` or `number_tuple`."""
    return parse_numbers(name, value) if isinstance(value, str) else number_tuple(name, value)


def integer(name: str, value: object) -> int:
    """Validate an integer, numpy's too, but no bool.

    Raises
    ------
    ParameterError
        If `value` is something else; the message starts with `name`.
    """
    if isinstance(value, bool):
        raise ParameterError(f"{name}: expected an integer, found {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ParameterError(f"{name}: expected an integer, found {value!r}") from error


def runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split into runs of consecutive, ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
