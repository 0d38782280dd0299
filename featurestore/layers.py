"""The grammar of layers on the command line, such as ``0-2,10,15-17``."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence

from featurestore.errors import ParameterError

Layers = tuple[int, ...]


def parse_layers(text: str) -> Layers:
    """Read a layer specification: numbers and inclusive ranges, separated by commas, none twice.

    Raises
    ------
    ParameterError
        If `text` is something else.

    Examples
    --------
    >>> parse_layers("0-2,10,15-17")
    (0, 1, 2, 10, 15, 16, 17)
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if not match:
            raise ParameterError(f"layers {text!r}: expected numbers and ranges such as 0-2,10,15-17, found {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ParameterError(f"layers {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        layers.extend(range(first, last + 1))
    return layer_tuple(layers)


def format_layers(layers: Layers) -> str:
    """Write layers as `parse_layers` reads them, in the same order."""
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs(layers))


def layer_tuple(value: object) -> Layers:
    """Validate layers given as an integer or a sequence of them, none twice.

    Raises
    ------
    ParameterError
        If `value` is something else.
    """
    values = [value] if isinstance(value, int) else value
    if not isinstance(values, Sequence) or not values:
        raise ParameterError(f"layers {value!r}: expected text such as 0-2,10,15-17, or a sequence of integers")
    layers = tuple(integer("layers", layer) for layer in values)
    if repeated := [layer for layer, count in Counter(layers).items() if count > 1]:
        raise ParameterError(f"layers: {', '.join(map(str, repeated))} named twice; name each layer once")
    return layers


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
