"""Layers and features as text, numbers and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from featurestore import ParameterError
from featurestore.ranges import format_numbers, integer, parse_numbers
from featurestore.ranges import numbers as read_numbers

numbers = st.integers(0, 999)


@given(st.lists(numbers, min_size=1, max_size=40, unique=True))
def test_single_numbers_are_kept_in_order(layers: list[int]) -> None:
    assert parse_numbers("--layers", ",".join(map(str, layers))) == tuple(layers)


@given(st.lists(numbers, min_size=1, max_size=40, unique=True))
def test_format_is_the_inverse_of_parse(layers: list[int]) -> None:
    assert parse_numbers("--layers", format_numbers(tuple(layers))) == tuple(layers)


@given(st.integers(0, 900), st.integers(0, 99))
def test_ranges_include_both_ends(first: int, length: int) -> None:
    assert parse_numbers("--layers", f"{first}-{first + length}") == tuple(range(first, first + length + 1))


@given(st.text(alphabet="0123456789,- a", max_size=12))
def test_anything_is_either_layers_or_refused(text: str) -> None:
    """Whatever is accepted means the union of its parts, each named once."""
    try:
        layers = parse_numbers("--layers", text)
    except ParameterError:
        return
    expected: list[int] = []
    for part in text.split(","):
        ends = [int(end) for end in part.split("-")]
        expected += range(ends[0], ends[-1] + 1)
    assert layers == tuple(expected)
    assert len(set(layers)) == len(layers) > 0


@pytest.mark.parametrize("text", ["", "a", "5-2", "1,,2", "-3", "1-", ",1", "1,", "0.5", "1--2", "0,0", "0-3,2", "٣"])
def test_what_is_no_layer_specification(text: str) -> None:
    with pytest.raises(ParameterError):
        parse_numbers("--layers", text)


def test_the_documented_example() -> None:
    assert parse_numbers("--layers", "0-2,10,15-17") == (0, 1, 2, 10, 15, 16, 17)


@given(st.lists(numbers, min_size=1, max_size=9, unique=True), st.sampled_from(["i1", "u2", "i8", "O"]))
def test_arrays_and_sequences_mean_their_numbers(layers: list[int], dtype: str) -> None:
    layers = [layer % 128 for layer in layers]
    layers = [*dict.fromkeys(layers)]
    array = np.array(layers, dtype)
    for value in (layers, tuple(layers), array, xr.DataArray(array), list(array), ",".join(map(str, layers))):
        found = read_numbers("--layers", value)
        assert found == tuple(layers)
        assert {type(number) for number in found} == {int}


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), xr.DataArray(3)])
def test_one_number(value: Any) -> None:
    assert read_numbers("--layers", value) == (3,)
    assert (integer("--layer", value), type(integer("--layer", value))) == (3, int)


def test_a_range_object() -> None:
    assert read_numbers("--layers", range(2, 9, 3)) == (2, 5, 8)


class Broken:
    """Whose text fails, as does everything else."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __index__(self) -> int:
        raise RuntimeError


class Endless:
    """Whose text has a million lines."""

    def __repr__(self) -> str:
        return "line\n" * 1_000_000


def looped() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    "value",
    [
        True, np.True_, 1.0, np.float64(1), np.datetime64("2020"), None, b"0-1", bytearray(b"\1"), memoryview(b"\1"),
        {1, 2}, {1: 2}, [], (), np.array([], int), np.array([0.0, 1.0]), np.array([True]), np.array(["1"]),
        np.array([[0, 1]]), xr.DataArray([0.5]), [[0]], ["1"], [None], [1, True], iter([1]), range(10**30), [1, 1],
        np.array([1, 1]), looped(), Broken(), [Broken()], Endless(), 10**5000, "\0", "a" * 5000, "1," * 3000,
        "0-999999," * 3000,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_names_no_numbers(value: Any) -> None:
    for read in (read_numbers, integer):
        with pytest.raises(ParameterError, match=r"^--layers") as caught:
            read("--layers", value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
