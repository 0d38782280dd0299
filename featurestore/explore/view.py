"""What there is to see of one feature: as values, as text, in a terminal's colours, as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featurestore.explore import highlight
from featurestore.explore.highlight import number

Row = tuple[str, ...]
Highlight = Callable[[highlight.Tokens, highlight.Values, float], str]

_LABELS = ("label", "sentences", "active", "mean", "maximum", "mean of each sentence's maximum")
_EXAMPLES = ("maximum", "label", "sentence", "from")

_WIDEST = 20

_LEGEND: dict[Highlight, str] = {
    highlight.plain: "[active], [[at least half of the maximum]]",
    highlight.coloured: "the darker, the stronger",
    highlight.as_html: "the more colour, the stronger; bold from half of the maximum",
}


@dataclass(frozen=True)
class LabelSummary:
    """How active a feature is in the sentences of one label.

    Attributes
    ----------
    label : int, float or None
        None for sentences without one.
    sentences : int
        How many have activations.
    active : float
        Share of them in which it is active anywhere, 0 to 1.
    mean, maximum : float
        Of each sentence's strongest activation.
    """

    label: float | None
    sentences: int
    active: float
    mean: float
    maximum: float


@dataclass(frozen=True)
class Example:
    """A sentence in which a feature is active.

    Attributes
    ----------
    sentence : int
        Its sentence_index.
    label : int, float or None
        Its label, if it has one.
    maximum : float
        The strongest activation of its tokens.
    onset : int
        The first token at which the feature is active; -1 is the final one.
    tokens : tuple of str
        All its tokens in reading order.
    activations : tuple of float
        Of each; NaN where the token is special, or the activation not finite.
    """

    sentence: int
    label: float | None
    maximum: float
    onset: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class FeatureView:
    """What there is to see of one feature; printed as text, and shown by notebooks as HTML.

    Attributes
    ----------
    layer, feature : int
        The feature, and the layer of its SAE.
    average_l0 : int or float
        Of the SAE, nominal.
    sentences, active : int
        How many have activations, and in how many it is active.
    maximum : float
        Its strongest activation; 0 if it is never active.
    onsets : tuple of int
        Earliest, median and latest token at which it starts to fire; empty if it never does.
    labels : tuple of LabelSummary
        For each label.
    examples : tuple of Example
        The strongest sentences, the strongest first.
    link : str or None
        Its page on Neuronpedia, where the store's attributes say for certain which it is.
    nonfinite_sentences : int
        How many sentences have activations that are not finite, which are left out.
    """

    layer: int
    feature: int
    average_l0: float
    sentences: int
    active: int
    maximum: float
    onsets: tuple[int, ...]
    labels: tuple[LabelSummary, ...]
    examples: tuple[Example, ...]
    link: str | None
    nonfinite_sentences: int = 0

    def __str__(self) -> str:
        return self._text(highlight.plain)

    __repr__ = __str__

    def coloured(self) -> str:
        """Return the text with its tokens coloured for a terminal, which no token can drive."""
        return self._text(highlight.coloured)

    def _repr_html_(self) -> str:
        lines = [html.escape(line) for line in self._summary()]
        if self.link:
            lines.append('<a href="{0}" style="color:inherit">{0}</a>'.format(html.escape(self.link)))
        tables = [_html_table(rows) for rows in self._tables(highlight.as_html)]
        return f"<div><p>{'<br>'.join(lines)}</p>{''.join(tables)}</div>"

    def _text(self, marked: Highlight) -> str:
        lines = [*self._summary(), *([self.link] if self.link else [])]
        for rows in self._tables(marked):
            lines += ["", *_aligned(rows)]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        name = f"layer {self.layer}, feature {self.feature}, average L0 {self.average_l0:g}"
        left_out = [f"left out: activations that are not finite, in {_sentences(self.nonfinite_sentences)}"]
        left_out = left_out if self.nonfinite_sentences else []
        if not self.active:
            return [f"{name}: never active in {_sentences(self.sentences)}", *left_out]
        earliest, median, latest = self.onsets
        return [
            f"{name}: active in {self.active:,} of {_sentences(self.sentences)}, at most {number(self.maximum)}",
            f"starts to fire at token {median} (median; earliest {earliest}, latest {latest})",
            *left_out,
        ]

    def _tables(self, marked: Highlight) -> list[list[Row]]:
        """Return the rows of each table, its head first: numbers, and in the last column what is no number."""
        high = max((one.mean for one in self.labels), default=0)
        labels = [(*_label_cells(one), _bar(one.mean, high)) for one in self.labels]
        examples = [(*_example_cells(one), marked(one.tokens, one.activations, self.maximum)) for one in self.examples]
        tables = [[_LABELS, *labels], [(*_EXAMPLES, f"tokens: {_LEGEND[marked]}"), *examples]]
        return tables if examples else tables[:1]


def _label_cells(one: LabelSummary) -> Row:
    share = f"{100 * one.active:.0f} %"
    return _named(one.label), f"{one.sentences:,}", share, number(one.mean), number(one.maximum)


def _example_cells(one: Example) -> Row:
    return number(one.maximum), _named(one.label), str(one.sentence), str(one.onset)


def _named(label: float | None) -> str:
    if label is None:
        return "none"
    return str(label) if isinstance(label, int) else f"{label:g}"


def _sentences(n: int) -> str:
    return f"{n:,} sentence" + "s" * (n != 1)


def _bar(value: float, high: float) -> str:
    return "#" * round(_WIDEST * value / high) if high > 0 else ""


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def _html_table(rows: Sequence[Row]) -> str:
    """Make a table of rows whose cells are HTML already."""
    head, *body = (
        [*(_cell(tag, cell, "right") for cell in row[:-1]), _cell(tag, row[-1], "left")]
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    )
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(tag: str, content: str, side: str) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    return f'<{tag}{scope} style="text-align:{side}">{content}</{tag}>'
