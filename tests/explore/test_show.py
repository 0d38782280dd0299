"""One feature, shown: its numbers compared with the sentence NPZs, its texts with what may be in them."""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import pytest
from click import unstyle
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.cli.terminal import in_colour
from featurestore.explore import highlight
from featurestore.explore.neuronpedia import link
from featurestore.explore.view import FeatureView
from tests.refusals import complaint
from tests.sentences import write_folder, write_sentence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return a store of 40 sentences, of which each fifth has no label, and their arrays."""
    path = tmp_path_factory.mktemp("made")
    sentences = write_folder(path / "trait", 40, hidden=2)
    for index in range(0, 40, 5):
        tokens = len(sentences[index]["fragments"])
        write_sentence(path / "trait", index, hidden=2, tokens=tokens, drop=["concept_strength_label"])
        del sentences[index]["concept_strength_label"]
    featurestore.ingest(path / "trait", path / "s.zarr", model="gemma-2-2b", sae_ids="0-a-res-16k, 1-a-res-16k")
    return path / "s.zarr", sentences


@pytest.mark.parametrize("chunks", [None, {}])
def test_what_is_shown_is_what_the_sentences_hold(made: Any, chunks: Any) -> None:
    path, sentences = made
    view = featurestore.show(featurestore.open_store(path, chunks=chunks), 1, 6, top=7)
    values = [sentence["activations"][1, :, 6] for sentence in sentences]
    labels = [sentence.get("concept_strength_label") for sentence in sentences]
    strongest = [float(row.max()) for row in values]
    onsets = [int(np.flatnonzero(row)[0]) - len(row) for row in values if row.any()]
    assert (view.layer, view.feature, view.average_l0, view.sentences) == (1, 6, 3, 40)
    assert (view.active, view.maximum) == (len(onsets), max(strongest))
    assert view.onsets == (min(onsets), median_low(onsets), max(onsets))
    assert [one.label for one in view.labels] == [0, 1, 2, 3, None]
    for one in view.labels:
        of_label = [value for value, label in zip(strongest, labels, strict=True) if label == one.label]
        active = np.count_nonzero(of_label) / len(of_label)
        assert (one.sentences, one.active, one.maximum) == (len(of_label), active, max(of_label))
        assert one.mean == pytest.approx(np.mean(of_label))
    best = sorted(range(40), key=lambda index: -strongest[index])[:7]
    assert [example.sentence for example in view.examples] == best
    for example in view.examples:
        there = values[example.sentence]
        assert example.activations == tuple(there.tolist())
        assert "".join(example.tokens) == str(sentences[example.sentence]["sentence"])
        assert (example.label, example.maximum) == (labels[example.sentence], strongest[example.sentence])
        assert example.onset == int(np.flatnonzero(there)[0]) - len(there)
    assert view.link == "https://www.neuronpedia.org/gemma-2-2b/1-a-res-16k/6"


def test_a_dead_feature_and_an_infinite_one(tmp_path: Path) -> None:
    for index in range(3):
        activations = np.zeros((3, 4, 10), np.float16)
        activations[0, 1:3, 1] = [np.inf if index == 1 else index, 1]
        activations[0, 2, 2] = np.nan if index == 1 else 60000
        write_sentence(tmp_path / "trait", index, changes={"activations": activations})
    featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    dead = featurestore.show(ds, 0, 0)
    assert (dead.active, dead.maximum, dead.onsets, dead.examples) == (0, 0, (), ())
    assert str(dead).startswith("layer 0, feature 0, average L0 3: never active in 3 sentences\n\nlabel")
    infinite = featurestore.show(ds, 0, 1)
    assert [example.sentence for example in infinite.examples] == [2, 0, 1]
    assert (infinite.maximum, infinite.nonfinite_sentences) == (2, 1)
    assert "w1.0 w1.1 [[w1.2]] w1.3" in str(infinite)
    assert "\nleft out: activations that are not finite, in 1 sentence\n" in str(infinite)
    assert infinite.onsets[0] == featurestore.onset(ds, 0, 1).min() == -3
    strongest = featurestore.top_tokens(ds, 0, 1)
    assert (strongest.activation.max(), strongest.nonfinite_sentences) == (2, 1)
    assert featurestore.show(ds, 0, 2).maximum == 60000  # NaN is not active, and float16 sums overflow
    assert {one.mean for one in featurestore.show(ds, 0, 2).labels} == {60000, 0}


def test_coordinates_of_dask_and_labels_of_any_numbers(made: Any) -> None:
    ds = featurestore.open_store(made[0])
    assert featurestore.show(ds.chunk({"sentence": 16}), 1, 6) == featurestore.show(ds, 1, 6)
    halves = featurestore.show(ds.assign_coords(label=ds.label / 2), 1, 6)
    assert [one.label for one in halves.labels] == [0, 0.5, 1, 1.5, None]
    assert [line.split()[0] for line in str(halves).splitlines()[5:10]] == ["0", "0.5", "1", "1.5", "none"]
    with pytest.raises(featurestore.SelectionError, match="has labels that are no numbers"):
        featurestore.show(ds.assign_coords(label=("sentence", ["bad"] * 40)), 1, 6)
    masked = featurestore.show(ds.where(ds.label == 3), 1, 6)
    assert (masked.sentences, masked.nonfinite_sentences) == (int((ds.label == 3).sum()), 0)


class Page(HTMLParser):
    """The text of some HTML, its tags, and what its attributes hold."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.values: list[str | None] = []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attrs]


def view_of(tokens: list[str], activations: list[float]) -> FeatureView:
    example = featurestore.explore.view.Example(5, 2, max(activations), -1, tuple(tokens), tuple(activations))
    return FeatureView(1, 2, 3, 4, 1, max(activations), (-1, -1, -1), (), (example,), None)


ODD = [
    "<b>&",
    '"onmouseover="alert(1)',
    "\x1b[31mred",
    "\n",
    "\u202eevil",
    "\r",
    "</td></table><script>",
    " \ud83d",
    "é",
    "[x]",
]


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from(ODD), st.text(max_size=5)), st.sampled_from([0, 0.1, 3, 1e5])),
        min_size=1,
        max_size=20,
    )
)
def test_no_token_drives_a_terminal_or_a_page(pairs: list[tuple[str, float]]) -> None:
    tokens, activations = [token for token, _ in pairs], [value for _, value in pairs]
    activations[-1] = 1e5
    view = view_of(tokens, activations)
    shown = "".join(token if token.isprintable() else ascii(token)[1:-1] for token in tokens[-21:]).strip()
    assert str(view).isprintable() or set(re.sub(r"[^\n]", "", str(view))) == {"\n"}
    assert len(str(view).splitlines()) == len(unstyle(view.coloured()).splitlines()) == 7
    assert "\x1b" not in re.sub(r"\x1b\[(38;5;16m|48;5;\d+m|0m)", "", view.coloured())
    assert unstyle(view.coloured()).rstrip().endswith(shown)
    page = Page(view._repr_html_())
    assert shown in page.text
    assert {*page.tags} <= {"div", "p", "br", "table", "thead", "tbody", "tr", "th", "td", "span", "strong"}
    assert all(
        re.fullmatch(r"col|text-align:\w+|background:rgb\(200 80 0 / 0\.\d\d\)|[\d.,e+]+", value or "")
        for value in page.values
    )


def test_tokens_are_marked_by_their_activation() -> None:
    tokens, values = ["He", " said", " that", " it", "!"], [0, 1.25, 4, 2, float("nan")]
    assert highlight.plain(tokens, values, 4) == "He [said] [[that]] [[it]]!"
    shades = re.findall(r"48;5;(\d+)m([^\x1b]*)", highlight.coloured(tokens, values, 4))
    assert shades == [("223", " said"), ("202", " that"), ("216", " it")]
    marked = highlight.as_html(tokens, values, 4)
    assert '<span title="1.25" style="background:rgb(200 80 0 / 0.19)"> said</span>' in marked
    assert '<strong title="4" style="background:rgb(200 80 0 / 0.60)"> that</strong>' in marked


def test_of_a_long_sentence_what_is_around_its_strongest_token_is_shown() -> None:
    tokens, values = [f" {n}" for n in range(1000)], [0.0] * 1000
    values[500] = 1
    text = highlight.plain(tokens, values, 1)
    assert text == " ".join(["...", *map(str, range(460, 500)), "[[500]]", *map(str, range(501, 521))]) + "..."


def luminance(rgb: tuple[float, float, float]) -> float:
    """As of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_tokens_are_legible() -> None:
    for shade in highlight._SHADES:
        parts = [(shade - 16) // 36, (shade - 16) // 6 % 6, (shade - 16) % 6]
        red, green, blue = (55.0 + 40 * part if part else 0.0 for part in parts)
        assert contrast((red, green, blue), (0, 0, 0)) >= 4.5
    tint, opacity = [float(part) for part in highlight._TINT.split()], highlight._MOST_OPAQUE
    for page, text in (
        ((255,) * 3, (33,) * 3),
        ((17,) * 3, (238,) * 3),
        ((30,) * 3, (204,) * 3),
    ):  # light, dark, VS Code
        for share in (0.1, 0.5, 1):
            red, green, blue = (
                share * opacity * t + (1 - share * opacity) * p for t, p in zip(tint, page, strict=True)
            )
            assert contrast((red, green, blue), text) >= 4.5


def neuronpedia(ids: str, model: str = "gemma-2-2b", *, alone: bool = True) -> str | None:
    return link({"model": model, "sae_ids": ids}, 12, 7, 22, alone=alone)


def test_a_link_is_formed_only_where_it_is_certain() -> None:
    base = "https://www.neuronpedia.org/gemma-2-2b"
    ids = "11-gemmascope-res-16k, 12-gemmascope-res-16k"
    assert neuronpedia(ids) == neuronpedia(ids.replace(",", "")) == f"{base}/12-gemmascope-res-16k/7"
    assert neuronpedia("gemma-2-2b/12-gemmascope-res-16k", "google/gemma-2-2b") == f"{base}/12-gemmascope-res-16k/7"
    several = "12-gemmascope-res-16k__l0-22 12-gemmascope-res-16k__l0-41 12-gemmascope-res-16k"
    assert neuronpedia(several, alone=False) == f"{base}/12-gemmascope-res-16k__l0-22/7"
    assert neuronpedia(ids, alone=False) is None  # which of the layer's?
    assert neuronpedia("12-gemmascope-res-16k 12-gemmascope-mlp-16k") is None
    assert neuronpedia("layer_12/width_16k/average_l0_22") is None  # not its name there
    assert neuronpedia(ids, "google/gemma-2-2b") is neuronpedia(ids, "") is None
    assert neuronpedia("12-<script>") is neuronpedia("") is link({}, 12, 7, 22, alone=True) is None


def test_the_command_prints_it(cli: Any, made: Any) -> None:
    path, _ = made
    view = featurestore.show(featurestore.open_store(path), 5, 3, top=2)
    assert cli("show", path, "--layer", 5, "--feature", 3, "--top", 2).output == f"{view}\n"
    complaint(
        cli("show", path, "--layer", 2, "--feature", 3), f"Error: {path}: has no SAE of layer 2: choose from 0-1,5"
    )
    complaint(cli("show", path, "--layer", 1, "--feature", 99), f"{path}: has no feature 99: choose from 0-9")
    complaint(cli("show", path, "--layer", 1, "--feature", 3, "--average-l0", 9), "has no SAE of average L0 9")
    complaint(cli("show", path, "--layer", 1, "--feature", 3, "--top", 0), "--top: expected at least 1", code=2)
    complaint(cli("show", "nothing", "--layer", 1, "--feature", 3), "nothing: no such store")


def test_a_terminal_has_colours(made: Any) -> None:
    path, _ = made
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "featurestore", "show", path, "--layer", "1", "--feature", "6", "-q"]
    environment = os.environ | {"NO_COLOR": "", "TERM": "xterm-256color"}
    subprocess.run(command, check=True, stdout=terminal, env=environment, cwd=Path(__file__).parents[2])
    os.close(terminal)
    printed = os.read(main, 1 << 16).decode().replace("\r\n", "\n")
    os.close(main)
    assert printed == f"{featurestore.show(featurestore.open_store(path), 1, 6).coloured()}\n"


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "term", "expected"),
    [(True, "", "xterm", True), (True, "1", "xterm", False), (True, "", "dumb", False), (False, "", "xterm", False)],
)
def test_colours_are_for_terminals_whose_users_want_them(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, no_color: str, term: str, expected: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    assert in_colour() is expected


def test_the_page_says_all_that_the_text_says(made: Any) -> None:
    view = featurestore.show(featurestore.open_store(made[0]), 1, 6)
    page = Page(view._repr_html_())
    assert page.tags.count("tr") == 2 + len(view.labels) + len(view.examples)
    for line in view._summary():
        assert html.unescape(line) in page.text
    assert view.link in page.values
