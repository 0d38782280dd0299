"""The report: what it says, that texts cannot drive it, that it is whole, and that it works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.explore.planted import planted_store
from tests.refusals import accepted, refused

HOSTILE = "</script><script>alert('x')</script> & <img src=https://example.org/x onerror=alert(1)> $\\frac{1}{0}$"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no headless browser here: apt-get install chromium")


class Page(HTMLParser):
    """A page's elements in order, each with its attributes, and the text in each kind."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all that a report warns of: hostile texts, too."""
    folder = tmp_path_factory.mktemp("odd")
    store, sentences = planted_store(folder, average_l0s=np.array([3, 3, 300]))
    for index, changes in {
        1: {"sentence": np.array(HOSTILE), "fragments": np.array([HOSTILE] * 4, "U")},
        2: {"sentence": sentences[3]["sentence"]},
        4: {"embeddings": np.full_like(sentences[4]["embeddings"], np.inf)},
    }.items():
        np.savez(folder / "planted" / f"sentence_{index + 1:06d}.npz", **{**sentences[index], **changes})
    for index in (5, 9, 13, 17):  # of label 1, which only the hostile one has now
        arrays = {name: array for name, array in sentences[index].items() if name != "concept_strength_label"}
        np.savez(folder / "planted" / f"sentence_{index + 1:06d}.npz", **arrays)
    (folder / "planted" / "sentence_000099.npz").write_text("no archive")
    shutil.rmtree(store)
    featurestore.ingest(folder / "planted", store, special_first=1, skip_bad=True)
    return store


@pytest.fixture(scope="module")
def text(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return featurestore.report(odd, tmp_path_factory.mktemp("report") / "r.html").read_text()


def test_what_looks_wrong_is_said(text: str) -> None:
    page = Page(text)
    findings = "\n".join(page.texts["li"])
    for words in (
        "Left out when the store was made: 1 file.",
        "1 of 20 sentences have",
        "4 of 20 sentences have no label",
        "Fewer than 10 sentences have label 0-3: standard errors of accuracies are too small there.",
        "Labels are unbalanced: 0 has 5 sentences, 1 only 1",
        "2 sentences are nearly the same as another, in 1 group, of which 1 with several labels",
        "Labels can be told from the text: the strongest baseline without the model, the length alone, reaches",
        "by more than a factor of 2 in 1 of 3 SAEs",
        "1 of 30 features are never active",
        "sentence_000099.npz: expected an NPZ",
    ):
        assert words in findings, (words, findings)


def test_it_shows_the_features_and_every_plot(text: str, odd: Path) -> None:
    page = Page(text)
    figures = page.all("svg")
    kinds = [figure["aria-labelledby"].split("-")[0] for figure in figures]
    assert kinds == ["separability", "fisher", "pca", "norms", "l0", "activation", "trajectory", "heatmap"]
    assert "reaches 75 ± " in text
    assert "% in layer 5, the best of 3 layers, chosen by looking, so too high; the strongest baseline without" in text
    assert "In no layer does it exceed that by more than two standard errors of the difference." in text
    assert "in layer 5, the best of 3 layers, chosen by looking." in text
    found = featurestore.features(featurestore.open_store(odd))
    best = np.unravel_index(np.nanargmax(abs(found.pearson.values)), found.pearson.shape)
    assert f"Layer {[0, 1, 5][best[0]]}, feature {best[1]}, average L0" in page.texts["h3"][0]
    pearson = f"{found.pearson.values[best]:#.3g}"
    assert pearson in page.texts["table"][2]


def test_texts_cannot_drive_the_page(text: str) -> None:
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert "alert('x')" in "".join(page.texts["td"])
    policy = next(one["content"] for one in page.all("meta") if "content" in one and "script-src" in one["content"])
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_it_needs_no_network(text: str) -> None:
    for tag, attributes in Page(text).elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action") or "url(" in value:
                assert re.match(r"#|data:image/png;base64,|url\(#", value.strip()), (tag, name, value[:80])


def test_it_can_be_read_by_a_screen_reader(text: str) -> None:
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for figure in page.all("svg"):
        assert figure["role"] == "img"
        for reference in figure["aria-labelledby"].split():
            assert reference in ids
    assert len(page.all("figcaption")) == len(page.all("svg"))
    assert all(head["scope"] == "col" for head in page.all("th"))
    references = re.findall(r'(?:xlink:href="|url\()#([^")]+)', text) + re.findall(r' href="#([^"]+)', text)
    assert {*references} <= {*ids}


COLORS = {"light": "#ffffff", "dark": "#14181d"}


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    light = []
    for color in (one, other):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_texts_stand_out_in_both_schemes(text: str) -> None:
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", text)]
    assert len(schemes) == 3  # light, dark, printed
    for scheme in schemes:
        for name in ("ink", "quiet", "link", "alarm"):
            assert contrast(scheme[name], scheme["page"]) >= 4.5, (name, scheme)
            assert contrast(scheme[name], scheme["raised"]) >= 4.5, (name, scheme)


@pytest.mark.parametrize("lacking", ["hidden_states", "activations", "labels"])
def test_what_a_store_lacks_is_said_in_its_place(tmp_path: Path, lacking: str) -> None:
    drop = {
        "hidden_states": ("hidden_states",),
        "activations": ("activations", "average_l0s", "num_features"),
        "labels": ("concept_strength_label",),
    }[lacking]
    store, _ = planted_store(tmp_path, n=6, drop=drop)
    ds = featurestore.open_store(store).isel(layer=[0])
    page = Page(featurestore.report(ds, tmp_path / "r.html").read_text())
    words = {
        "hidden_states": "Not compared by label: the store has no hidden states",
        "activations": "Nothing to show: the store has no activations",
        "labels": "Not compared by label: the store has no labels",
    }[lacking]
    assert words in "".join(page.texts["p"])


def test_without_a_probe_layers_are_compared_all_the_same(tmp_path: Path) -> None:
    """One sentence in two versions cannot be divided without leakage."""
    store, _ = planted_store(tmp_path, n=4)
    ds = featurestore.open_store(store).sel(layer=[5])
    ds = ds.assign_coords(text=("sentence", ["the same words", "the same words!"] * 2))
    page = Page(featurestore.report(ds, tmp_path / "r.html").read_text())
    assert "Not drawn: the store cannot be cross-validated in 5 folds: the 4 sentences" in "".join(
        page.texts["figcaption"]
    )
    assert "fisher-title" in page.all("svg")[0]["aria-labelledby"]
    assert "accuracy" not in page.texts["table"][0]


def test_nothing_beyond_chance_is_no_finding(tmp_path: Path) -> None:
    store, _ = planted_store(tmp_path)
    labels = np.random.default_rng(1).permutation(np.arange(20) % 2)
    ds = featurestore.open_store(store).isel(layer=[0, 1], feature=slice(3))
    ds = ds.assign_coords(label=("sentence", labels))
    found = featurestore.features(ds)
    assert not (abs(found.pearson) > found.attrs["pearson_by_chance"]).any()
    page = Page(featurestore.report(ds, tmp_path / "r.html").read_text())
    captions = "".join(page.texts["figcaption"])
    assert "In no layer does it exceed shuffled labels by more than two standard errors." in captions
    assert "labels are told apart no better than shuffled ones, here and in all layers." in captions
    assert "No feature correlates more with the label than the best of so many does by chance." in page.texts["p"]


@pytest.mark.parametrize("empty", ["sentences", "arrays"])
def test_of_nothing_it_is_not_said_that_nothing_looks_wrong(tmp_path: Path, empty: str) -> None:
    store, _ = planted_store(tmp_path, n=4)
    ds = featurestore.open_store(store)
    ds = ds.isel(sentence=slice(0)) if empty == "sentences" else ds.drop_vars([*ds.data_vars])
    page = Page(featurestore.report(ds, tmp_path / "r.html").read_text())
    assert f"There are no {empty}" in "".join(page.texts["li"])
    assert "Nothing looks wrong." not in page.texts["p"]


def test_long_lists_are_cut(tmp_path: Path) -> None:
    store, _ = planted_store(tmp_path, drop=("hidden_states", "activations", "average_l0s", "num_features"))
    ds = featurestore.open_store(store).assign_coords(
        text=("sentence", [f"the very same words {n}" for n in range(20)])
    )
    page = Page(featurestore.report(ds, tmp_path / "r.html").read_text())
    assert "20 sentences are nearly the same as another, in 1 group" in "".join(page.texts["li"])
    assert "and 10 more" in page.texts["li"]


def test_command(tmp_path: Path, cli: Any) -> None:
    store, _ = planted_store(tmp_path, n=4, drop=("hidden_states", "activations", "average_l0s", "num_features"))
    assert "r.html: report of " in accepted(cli("report", store, "--output", "r.html"))
    accepted(cli("report", store, "--output", "r.html"))  # the same bytes
    Path("r.html").write_text("precious")
    result = cli("report", store, "--output", "r.html")
    assert "r.html: exists with other content; choose another output, or --overwrite" in result.output
    assert Path("r.html").read_text() == "precious"
    Path("r.html").unlink()
    refused(cli("report", store, "--output", "r.htm"), "expected an output that ends in .html", code=2)
    refused(cli("report", "missing.zarr", "--output", "r.html"), "missing.zarr: no such store")
    with pytest.raises(featurestore.ParameterError, match="expected a store or a dataset"):
        featurestore.report(5, "r.html")  # type: ignore[arg-type]
    ds = featurestore.open_store(store)
    with pytest.raises(featurestore.SelectionError, match="has no coordinate text: "):
        featurestore.report(ds.drop_vars("text"), "r.html")
    assert "<h1>selection</h1>" in featurestore.report(ds.isel(sentence=[0, 2]), "r.html").read_text()


PROBE = """
<script>
const found = {errors: []};
addEventListener("error", (event) => found.errors.push(event.message));
addEventListener("load", () => {
  const inner = frame.contentDocument, root = inner.documentElement;
  found.width = root.scrollWidth;
  found.page = frame.contentWindow.getComputedStyle(inner.body).backgroundColor;
  found.ink = frame.contentWindow.getComputedStyle(inner.querySelector("svg text, svg [style*='fill: #24292f']")).fill;
  const table = inner.querySelectorAll("table.sortable")[2], head = table.tHead.rows[0].cells[5];
  found.columns = [0, 1].map(() => {
    head.querySelector("button").click();
    return [head.getAttribute("aria-sort"), Array.from(table.tBodies[0].rows, (row) => row.cells[5].dataset.value)];
  });
  document.title = JSON.stringify(found);
});
</script>
<iframe id="frame" style="border: 0; width: WIDTHpx; height: 900px" srcdoc="PAGE"></iframe>
"""


def browse(path: Path, *options: str) -> tuple[str, str]:
    """Load a page in a headless browser; return its DOM, and what its console says."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}", *options, "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1200, "light")])
def test_in_a_browser(text: str, tmp_path: Path, width: int, scheme: str) -> None:
    outer = PROBE.replace("WIDTH", str(width)).replace("PAGE", html.escape(text))
    (tmp_path / "outer.html").write_text(f"<!doctype html><html><head></head><body>{outer}</body></html>")
    dark = ["--blink-settings=preferredColorScheme=0"] * (scheme == "dark")
    dom, console = browse(tmp_path / "outer.html", "--window-size=1300,1000", *dark)
    assert console == ""
    title = re.search("<title>(.*)</title>", dom)
    assert title, dom[:200]
    found = json.loads(html.unescape(title[1]))
    assert found["errors"] == []
    assert found["width"] == width  # nothing beyond the right margin
    color = COLORS[scheme]
    assert found["page"] == "rgb({}, {}, {})".format(*(int(color[i : i + 2], 16) for i in (1, 3, 5)))
    assert (found["ink"] == "rgb(230, 237, 243)") is (scheme == "dark")
    for order, (name, values) in zip(("ascending", "descending"), found["columns"], strict=True):
        numbers = [float(value) for value in values]
        assert name == order
        assert len(numbers) > 2
        assert numbers == sorted(numbers, reverse=order == "descending")


@in_browser
def test_the_browser_would_tell_of_a_script_error(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>nothing()</script>")
    assert "nothing is not defined" in browse(tmp_path / "bad.html")[1]
