"""The tokens of a sentence, marked by their activation: as plain text, in a terminal's colours, as HTML.

Token texts are those of strangers: what does not print is escaped, so that it cannot drive a terminal or a page.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import click
import numpy as np

from featurestore.errors import shown

_SHADES = (230, 223, 216, 209, 202)
"""Of 256 colours, from cream to orange: black text on them has a contrast of 6.9 or more."""

_BLACK = 16

_TINT, _MOST_OPAQUE = "200 80 0", 0.6
"""Over a page's own background: its own text stays legible on it, be the page light or dark."""

_BEFORE, _AFTER = 40, 20
"""Tokens around the strongest one that are shown of a long sentence."""

_LEFT_OUT = "..."

Tokens = Sequence[str]
Values = Sequence[float]


def number(value: float) -> str:
    """Write an activation."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def plain(tokens: Tokens, values: Values, high: float) -> str:
    """Put active tokens into brackets, those of at least half of `high` into double ones."""
    return _joined(
        _bracketed(token, 2 if share >= 0.5 else 1) if value > 0 else token
        for token, share, value in _shares(tokens, values, high)
    )


def _bracketed(token: str, n: int) -> str:
    word = token.lstrip(" ")
    return f"{token[: len(token) - len(word)]}{'[' * n}{word}{']' * n}"


def coloured(tokens: Tokens, values: Values, high: float) -> str:
    """Colour active tokens for a terminal of 256 colours: the stronger, the darker."""
    return _joined(
        click.style(token, fg=_BLACK, bg=_SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)])
        if value > 0
        else token
        for token, share, value in _shares(tokens, values, high)
    )


def as_html(tokens: Tokens, values: Values, high: float) -> str:
    """Tint active tokens, with their activation as the title; those of at least half of `high` are bold, too."""
    return _joined(
        _span(html.escape(token), share, value) if value > 0 else html.escape(token)
        for token, share, value in _shares(tokens, values, high)
    )


def _span(token: str, share: float, value: float) -> str:
    tag = "strong" if share >= 0.5 else "span"
    tint = f"background:rgb({_TINT} / {share * _MOST_OPAQUE:.2f})"
    return f'<{tag} title="{number(value)}" style="{tint}">{token}</{tag}>'


def _shares(tokens: Tokens, values: Values, high: float) -> Iterator[tuple[str, float, float]]:
    """Yield what is shown of a sentence: each token, its share of the highest activation, and its activation."""
    strongest = int(np.argmax(np.nan_to_num(values, nan=-np.inf)))
    start, stop = max(0, strongest - _BEFORE), strongest + _AFTER + 1
    if start > 0:
        yield _LEFT_OUT, 0, 0
    for token, value in zip(tokens[start:stop], values[start:stop], strict=True):
        yield shown(token), 1 if value >= high else value / high, value
    if stop < len(tokens):
        yield _LEFT_OUT, 0, 0


def _joined(tokens: Iterator[str]) -> str:
    return "".join(tokens).strip()
