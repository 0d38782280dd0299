"""The grammar of layer specifications."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import ParameterError
from featurestore.ranges import format_numbers, parse_numbers

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
