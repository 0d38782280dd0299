"""What messages are made of."""

from __future__ import annotations

from featurestore.errors import some


def test_the_first_few_are_named() -> None:
    assert some([]) == ""
    assert some(range(5)) == "0, 1, 2, 3, 4"
    assert some(range(12)) == "0, 1, 2, 3, 4 and 7 more"
    assert some(iter(["a, b", "c"]), separator="; ") == "a, b; c"
