"""Plots: what is drawn is what the sentence NPZs hold, on any axes, into files that are whole and always the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

import featurestore
from featurestore.explore import plots
from featurestore.explore.plots import style
from featurestore.explore.plots.saving import KINDS
from featurestore.explore.reading import drawn
from featurestore.schema import PLOTS
from tests.explore.planted import LAYERS, planted_store
from tests.refusals import accepted, refused

matplotlib.use("agg")

OPTIONS: dict[str, dict[str, Any]] = {
    kind: {"layer": 5, "feature": 3} for kind in ("trajectory", "heatmap", "activation")
} | {"pca": {"layer": 5}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    return planted_store(tmp_path_factory.mktemp("planted"))


@pytest.fixture(params=[None, {}], ids=["lazy", "dask"])
def ds(planted: Any, request: pytest.FixtureRequest) -> Any:
    return featurestore.open_store(planted[0], chunks=request.param)


def new_axes() -> Any:
    return Figure().add_subplot()


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}


def tokens(sentences: list[dict[str, Any]], name: str, position: int, *last: Any) -> np.ndarray[Any, Any]:
    """Values of each sentence at each of its tokens but the BOS, NaN before them: (sentence, token)."""
    longest = max(len(one["fragments"]) for one in sentences)
    values = np.full((len(sentences), longest), np.nan)
    for row, one in zip(values, sentences, strict=True):
        row[longest - len(one["fragments"]) + 1 :] = one[name][(position, slice(1, None), *last)]
    return values


def test_trajectory(ds: Any, planted: Any) -> None:
    ax: Any = plots.trajectory(ds, layer=5, feature=3, ax=new_axes())
    values = tokens(planted[1], "activations", 2, 3)
    drawn = lines(ax)
    for label in range(4):
        rows = values[label::4]  # all of one length, so that no mean is of few sentences
        length = np.count_nonzero(~np.isnan(rows[0]))
        np.testing.assert_allclose(drawn[str(label)][-length:], rows[:, -length:].mean(axis=0), rtol=1e-6)
        assert np.isnan(drawn[str(label)][:-length]).all()
    np.testing.assert_array_equal(
        np.sort(np.concatenate([one for name, one in drawn.items() if name[0] == "_"])),
        np.sort(np.pad(values.ravel(), (0, 20), constant_values=np.nan)),
    )
    assert "layer 5, feature 3" in ax.get_legend().get_title().get_text()


def test_a_mean_of_few_sentences_is_not_drawn(planted: Any) -> None:
    ds = featurestore.open_store(planted[0]).load()
    ds = ds.assign_coords(label=("sentence", np.zeros(20, int)))
    drawn = lines(plots.trajectory(ds, 5, 3, ax=new_axes()))["0"]
    values = tokens(planted[1], "activations", 2, 3)
    most = np.count_nonzero(~np.isnan(values), axis=0) >= 10
    np.testing.assert_array_equal(~np.isnan(drawn), most)
    assert not most.all()
    np.testing.assert_allclose(drawn[most], np.nanmean(values[:, most], axis=0), rtol=1e-6)


def test_heatmap(ds: Any, planted: Any) -> None:
    no_label = np.arange(20) == 7
    ax: Any = plots.heatmap(ds.assign_coords(has_label=("sentence", ~no_label)), layer=5, feature=3, ax=new_axes())
    values = tokens(planted[1], "activations", 2, 3)
    order = sorted(range(20), key=lambda row: (not no_label[row], row % 4, -np.nanmax(values[row])))
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), values[order].astype("f4"))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["none", "0", "1", "2", "3"]
    assert ax.images[0].get_extent() == [-6.5, -0.5, 19.5, -0.5]


def test_a_label_looks_the_same_whichever_others_there_are() -> None:
    every = {look.value: look for look in style.label_styles(np.arange(36))}
    assert len({(look.color, look.marker) for look in every.values()}) == 36
    for some in ([0, 3], [3, 7, 20], [5]):
        assert style.label_styles(np.array(some)) == [every[value] for value in some]
    ranked = style.label_styles(np.array([-1, 100, 2000]))
    assert [look.value for look in ranked] == [-1, 100, 2000]
    assert len({look.color for look in ranked}) == 3


def test_special_tokens_do_not_set_the_scale(planted: Any) -> None:
    ds = featurestore.open_store(planted[0]).load()
    ds = ds.assign(activations=ds.activations.where(~ds.is_special | ~ds.is_token, 9000))
    ax: Any = plots.heatmap(ds, layer=5, feature=3, ax=new_axes())
    assert ax.images[0].get_clim()[1] < 100
    assert "grey: no token, or a special one" in ax.get_title(loc="left")
    assert plots.trajectory(ds, layer=5, feature=3, ax=new_axes()).get_ylim()[1] < 100


def test_norms_of_rare_tokens_are_refused(planted: Any) -> None:
    ds = featurestore.open_store(planted[0])
    with pytest.raises(featurestore.SelectionError, match="has no token that half of the sentences have"):
        plots.norms(ds.sel(token=[-6]), ax=new_axes())


@pytest.mark.parametrize("kind", PLOTS)
def test_what_is_no_dataset_or_masked_is_refused(planted: Any, kind: str) -> None:
    ds, options = featurestore.open_store(planted[0]), OPTIONS.get(kind, {})
    for other in (planted[0], str(planted[0]), ds.activations, None):
        with pytest.raises(featurestore.ParameterError, match="expected a dataset as of open_store"):
            KINDS[kind](other, **options, ax=new_axes())
    with pytest.raises(featurestore.SelectionError, match=r"has no (dim sentence|coordinate label)"):
        KINDS[kind](ds.isel(sentence=0).drop_vars("label"), **options, ax=new_axes())
    masked = ds.where(ds.label > 1)
    if kind not in ("trajectory", "heatmap"):  # they show where there is nothing
        with pytest.raises(featurestore.SelectionError, match=r"as a mask \(where\) makes them"):
            KINDS[kind](masked, **options, ax=new_axes())


def test_activation(ds: Any, planted: Any) -> None:
    ax: Any = plots.activation(ds, layer=0, feature=2, ax=new_axes())
    values = np.array([one["activations"][0, -1, 2] for one in planted[1]], "f8")
    points = [one for one in ax.collections if hasattr(one, "get_sizes")]
    bars = [one for one in ax.collections if hasattr(one, "get_segments")]
    for label in range(4):
        own = values[label::4]
        np.testing.assert_array_equal(points[label].get_offsets()[:, 1], own.astype("f4"))
        (segment,) = bars[label].get_segments()
        error = scipy.stats.sem(own)
        np.testing.assert_allclose(segment[:, 1], [own.mean() - error, own.mean() + error], atol=1e-5)
        assert ax.get_xticklabels()[label].get_text() == f"{label}\n{np.count_nonzero(own)} of 5"


def test_norms(ds: Any, planted: Any) -> None:
    ax: Any = plots.norms(ds, ax=new_axes())
    norms = np.array([norms_of(planted[1], row) for row in range(3)])
    there = np.count_nonzero(~np.isnan(norms[0]), axis=0) >= 10
    drawn = ax.images[0].get_array()
    np.testing.assert_allclose(drawn, np.nanmedian(norms[:, :, there], axis=1), rtol=1e-5)
    assert drawn.max() < 100  # without the BOS, whose norm is above 1,000
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1", "5"]


def norms_of(sentences: list[dict[str, Any]], row: int) -> np.ndarray[Any, Any]:
    """Norms of a layer at each word, NaN elsewhere: (sentence, token)."""
    norms = np.full((len(sentences), 6), np.nan)
    for out, one in zip(norms, sentences, strict=True):
        words = np.linalg.norm(one["hidden_states"][row, 1:].astype("f8"), axis=-1)
        out[6 - len(words) :] = words
    return norms


def test_pca(ds: Any, planted: Any) -> None:
    ax: Any = plots.pca(ds, layer=5, ax=new_axes())
    X = np.array([one["hidden_states"][2, -1] for one in planted[1]], "f8")
    U, s, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    drawn = np.empty((20, 2))
    for label in range(4):
        drawn[label::4] = ax.collections[label].get_offsets()
    np.testing.assert_allclose(abs(drawn), abs(U[:, :2] * s[:2]), rtol=1e-4, atol=1e-3)
    assert f"{100 * s[0] ** 2 / (s**2).sum():.0f} % of the variance" in ax.get_xlabel()


def test_l0(ds: Any, planted: Any) -> None:
    ax: Any = plots.l0(ds, ax=new_axes())
    means = np.array([(one["activations"][:, 1:] != 0).sum(axis=-1).mean(axis=-1) for one in planted[1]])
    np.testing.assert_allclose(ax.collections[1].get_offsets()[:, 1], means.mean(axis=0) / 3)
    np.testing.assert_array_equal(ax.collections[1].get_offsets()[:, 0], LAYERS)
    low, high = ax.get_ylim()
    assert low * high == pytest.approx(1)


def test_l0_of_several_saes_a_layer(tmp_path: Path) -> None:
    from tests.sentences import write_folder

    write_folder(tmp_path / "several", 3, layers=(0, 5, 5), average_l0s=(2, 20, 200))
    featurestore.ingest(tmp_path / "several", tmp_path / "s.zarr")
    ax: Any = plots.l0(featurestore.open_store(tmp_path / "s.zarr"), ax=new_axes())
    x = ax.collections[1].get_offsets()[:, 0]
    assert len(set(x)) == 3
    assert x.round().tolist() == [0, 5, 5]


def test_separability_and_fisher_draw_what_was_measured(planted: Any) -> None:
    ds = featurestore.open_store(planted[0])
    found = featurestore.separability(ds, folds=2, repeats=1)
    ax: Any = plots.separability(found, ax=new_axes())
    probe, shuffled = (container.lines[0].get_ydata() for container in ax.containers)
    np.testing.assert_allclose(probe, 100 * found.accuracy)
    np.testing.assert_allclose(shuffled, 100 * found.shuffled)
    assert lines(ax)["chance"].tolist() == [25, 25]
    assert lines(ax)["words alone"].tolist() == [100 * found.text] * 2
    assert lines(ax)["length alone"].tolist() == [100 * found["length"]] * 2
    spans = sorted((patch.get_y(), patch.get_height()) for patch in ax.patches)
    bands = sorted((100 * (found[name] - found[f"{name}_error"]), 200 * found[f"{name}_error"])
                   for name in ("text", "length"))  # fmt: skip
    np.testing.assert_allclose(spans, bands)
    assert ax.get_ylim() == (0, 100)
    assert "the rarest label has 5, so errors are too small" in ax.get_legend().get_title().get_text()
    found.attrs["rarest"] = 10
    assert "too small" not in plots.separability(found, ax=new_axes()).get_legend().get_title().get_text()  # type: ignore[union-attr]
    ratios = featurestore.fisher_ratio(ds)
    drawn = lines(plots.fisher(ds, ax=new_axes()))
    np.testing.assert_allclose(drawn["between / within labels"], ratios.ratio)
    np.testing.assert_allclose(drawn["shuffled labels, 95th percentile"], ratios.shuffled)


def test_without_axes_a_new_figure_is_drawn(planted: Any) -> None:
    import matplotlib.pyplot as plt

    ax: Any = plots.pca(featurestore.open_store(planted[0]), layer=0)
    assert ax.get_figure().get_figwidth() == 3.4
    plt.close(ax.get_figure())


@pytest.mark.parametrize("kind", ["trajectory", "norms"])
def test_files_are_the_same_each_time(planted: Any, cli: Any, kind: str) -> None:
    store = planted[0]
    options = [word for name, value in OPTIONS.get(kind, {}).items() for word in (f"--{name}", value)]
    assert f"{kind} of {store}" in accepted(cli("plot", kind, store, "--output", "a.svg", *options))
    accepted(cli("plot", kind, store, "--output", "b.svg", *options))
    svg = Path("a.svg").read_bytes()
    assert svg == Path("b.svg").read_bytes()
    assert b"<dc:date>" not in svg
    assert len(svg) < 60_000
    accepted(cli("plot", kind, store, "--output", "a.svg", *options))  # the same content


def test_a_png_is_as_wide_as_a_column(planted: Any, cli: Any) -> None:
    accepted(cli("plot", "pca", planted[0], "--layer", 5, "--output", "a.png"))
    header = Path("a.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20]) == 3.4 * 300


def test_every_plot_is_a_command_and_public() -> None:
    assert tuple(KINDS) == PLOTS
    assert {*PLOTS, "save"} == {*plots.__all__}


def test_bad_input_is_refused_in_one_line(planted: Any, cli: Any) -> None:
    store = planted[0]

    def plot(kind: str, *options: object, output: str = "a.svg") -> Any:
        return cli("plot", kind, store, "--output", output, *options)

    refused(plot("pca"), "pca needs --layer", code=2)
    refused(plot("heatmap", "--layer", 5), "heatmap needs --feature", code=2)
    refused(plot("fisher", "--layer", 5), "--layer: is no option of fisher", code=2)
    refused(plot("pca", "--layer", 3), f"{store}: has no hidden states of layer 3: choose from 0-1,5")
    refused(plot("heatmap", "--layer", 5, "--feature", 10), "has no feature 10: choose from 0-9")
    refused(plot("l0", output="a.pdf"), "a.pdf: expected an output that ends in .svg or .png", code=2)
    refused(plot("l0", output=str(store / "a.svg")), "is inside the store")
    refused(plot("nothing"), "'nothing' is not one of", code=2)
    refused(cli("plot", "l0", "missing.zarr", "--output", "a.svg"), "missing.zarr: no such store")
    with pytest.raises(featurestore.ParameterError, match="kind=: expected one of separability"):
        plots.save("nothing", store, "a.svg")
    bare = featurestore.open_store(store).drop_vars(["activations", "hidden_states"])
    for kind in ("norms", "pca", "l0", "trajectory", "separability"):
        with pytest.raises(featurestore.SelectionError, match=r"has no (hidden states|activations)"):
            KINDS[kind](bare, **OPTIONS.get(kind, {}), ax=new_axes())


def test_other_content_is_not_replaced(planted: Any, cli: Any) -> None:
    Path("a.svg").write_text("precious")
    options = ["plot", "l0", planted[0], "--output", "a.svg"]
    assert "a.svg: exists with other content; choose another output, or --overwrite" in cli(*options).output
    assert Path("a.svg").read_text() == "precious"
    accepted(cli(*options, "--overwrite"))
    assert Path("a.svg").read_text() != "precious"


def test_a_missing_extra_is_named(planted: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(cli("plot", "l0", planted[0], "--output", "a.svg"), "needs matplotlib", "pip install '.[plots]'")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused(cli("report", planted[0], "--output", "a.html"), "needs jinja2", "pip install '.[report]'")


def test_of_many_sentences_whole_blocks_are_drawn() -> None:
    """Few chunks are read then, and what is not finite is left out."""
    n = 1000
    ds = xr.Dataset(coords={"sentence": np.arange(n), "n_nonfinite": ("sentence", np.arange(n) % 100 == 0)})
    kept = drawn(ds, most=100).sentence.values
    assert len(kept) == 100
    assert (np.diff(kept) > 0).all()
    assert not (kept % 100 == 0).any()
    assert len({*(kept // 32)}) <= 5
    assert (drawn(ds, most=100, seed=1).sentence.values != kept).any()
    assert drawn(ds, most=n).sizes["sentence"] == 990
