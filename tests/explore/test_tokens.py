"""One feature along the tokens: compared with the sentence NPZs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import featurestore
from tests.sentences import write_folder, write_sentence

SAES = {"layers": (0, 1, 1, 5), "average_l0s": (3, 20, 80, 3)}
"""Layer 1 has two."""

N = 9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a store by name, and the arrays of its sentences: `plain`, or with several `saes` a layer."""
    path = tmp_path_factory.mktemp("made")
    sentences = {name: write_folder(path / name, N, **options) for name, options in {"plain": {}, "saes": SAES}.items()}
    for name in sentences:
        featurestore.ingest(path / name, path / f"{name}.zarr")
    return {name: (path / f"{name}.zarr", sentences[name]) for name in sentences}


@pytest.fixture(params=[None, {}], ids=["lazy", "dask"])
def chunks(request: pytest.FixtureRequest) -> Any:
    return request.param


def expected(sentences: list[dict[str, Any]], position: int, feature: int) -> list[dict[int, float]]:
    """Activation of each token of each sentence, by its label."""
    rows = [sentence["activations"][position, :, feature].tolist() for sentence in sentences]
    return [{token - len(row): value for token, value in enumerate(row)} for row in rows]


def found(along: xr.DataArray) -> list[dict[int, float]]:
    """The same of a trajectory, whose padding is NaN."""
    tokens = along.token.values.tolist()
    rows = [dict(zip(tokens, row, strict=True)) for row in along.values.tolist()]
    return [{token: value for token, value in row.items() if not math.isnan(value)} for row in rows]


def test_trajectories_are_those_of_the_sentences(made: Any, chunks: Any) -> None:
    path, sentences = made["plain"]
    ds = featurestore.open_store(path, chunks=chunks)
    for position, layer in enumerate((0, 1, 5)):
        along = featurestore.trajectory(ds, layer, 7)
        assert along.dims == ("sentence", "token")
        assert along.dtype == np.float32
        assert found(along) == expected(sentences, position, 7)
        assert [along[name].item() for name in ("layer", "average_l0", "feature")] == [layer, 3, 7]
    assert (along.chunks is None) == (chunks is None)
    texts = ["".join(row[-n:]) for row, n in zip(along.token_text.values, along.n_tokens.values, strict=True)]
    assert texts == [str(sentence["sentence"]) for sentence in sentences] == along.text.values.tolist()
    assert along.label.values.tolist() == [int(sentence["concept_strength_label"]) for sentence in sentences]


def test_of_several_saes_the_average_l0_chooses(made: Any, chunks: Any) -> None:
    path, sentences = made["saes"]
    ds = featurestore.open_store(path, chunks=chunks)
    along = featurestore.trajectory(ds, 1, 2, average_l0=80)
    assert found(along) == expected(sentences, 2, 2)
    assert (along.layer.item(), along.average_l0.item()) == (1, 80)
    assert found(featurestore.trajectory(ds, 5, 2)) == expected(sentences, 3, 2)
    with pytest.raises(featurestore.SelectionError, match=r"2 SAEs: choose average_l0= from \[20, 80\]"):
        featurestore.trajectory(ds, 1, 2)


def test_selections_are_as_good_as_whole_stores(made: Any, chunks: Any) -> None:
    ds = featurestore.open_store(made["plain"][0], chunks=chunks)
    whole = featurestore.trajectory(ds, 5, 7)
    for chosen in ({"sentence": [4, 1]}, {"token": slice(-3, -2)}, {"token": [-1, -2]}):
        xr.testing.assert_identical(featurestore.trajectory(ds.sel(chosen), 5, 7), whole.sel(chosen))
    for chosen in ({"feature": [9, 7]}, {"layer": [5]}):
        xr.testing.assert_identical(featurestore.trajectory(ds.sel(chosen), 5, 7), whole)
    labelled = featurestore.show(ds.sel(sentence=ds.label == 3), 5, 7)
    assert {example.label for example in labelled.examples} == {3}
    backwards = ds.isel(token=slice(None, None, -1))
    assert featurestore.show(backwards, 5, 7) == featurestore.show(ds, 5, 7)
    xr.testing.assert_equal(featurestore.onset(backwards, 5, 7), featurestore.onset(ds, 5, 7))


@pytest.mark.parametrize("threshold", [0, 4.5, 100, -1])
def test_onset_is_the_first_token_above_the_threshold(made: Any, chunks: Any, threshold: float) -> None:
    path, sentences = made["plain"]
    onset = featurestore.onset(featurestore.open_store(path, chunks=chunks), 1, 3, threshold)
    firsts = [
        min((token for token, value in row.items() if value > threshold), default=math.nan)
        for row in expected(sentences, 1, 3)
    ]
    np.testing.assert_array_equal(onset.values, firsts)
    assert onset.dims == ("sentence",)


def test_the_strongest_tokens_come_with_what_led_up_to_them(made: Any, chunks: Any) -> None:
    path, sentences = made["plain"]
    ds = featurestore.open_store(path, chunks=chunks)
    every = [
        (value, sentence, token)
        for sentence, row in enumerate(expected(sentences, 2, 4))
        for token, value in row.items()
        if value
    ]
    every.sort(key=lambda one: -one[0])
    for top in (3, 1000):
        strongest = featurestore.top_tokens(ds, 5, 4, top=top)
        table = strongest.to_pandas()
        assert table[["activation", "sentence", "token"]].to_numpy().tolist() == [list(one) for one in every[:top]]
        assert table.index.tolist() == list(range(1, len(every[:top]) + 1))
    for row in table.itertuples():
        fragments = sentences[row.sentence]["fragments"]
        assert row.fragment == fragments[row.token]
        assert row.fragment.endswith(row.token_text)
        assert row.text == fragments[-1]
    there = ds.activations.sel(layer=5, feature=4).sel(sentence=strongest.sentence, token=strongest.token)
    np.testing.assert_array_equal(there.values, strongest.activation.values)


@pytest.mark.parametrize("name", ["plain", "saes"])
def test_l0_counts_active_features(made: Any, chunks: Any, name: str) -> None:
    path, sentences = made[name]
    whole = 4 * max(sentence["activations"].size for sentence in sentences) * N
    l0 = featurestore.l0(featurestore.open_store(path, chunks=chunks, max_bytes=whole / 4))
    assert l0.dims == ("sentence", "token", "layer" if name == "plain" else "sae")
    assert (l0.chunks is None) == (chunks is None)
    for row, sentence in zip(l0.values, sentences, strict=True):
        counts = np.count_nonzero(sentence["activations"], axis=-1).T
        np.testing.assert_array_equal(row[-len(counts) :], counts)
        assert np.isnan(row[: -len(counts)]).all()


def test_nan_is_not_active(made: Any, chunks: Any) -> None:
    path, sentences = made["plain"]
    ds = featurestore.open_store(path, chunks=chunks)
    masked = featurestore.l0(ds.where(ds.label == 3))
    xr.testing.assert_identical(masked, featurestore.l0(ds).where(ds.label == 3))
    some = featurestore.l0(ds.where(ds.feature > 2))
    for row, sentence in zip(some.values, sentences, strict=True):
        counts = np.count_nonzero(sentence["activations"][:, :, 3:], axis=-1).T
        np.testing.assert_array_equal(row[-len(counts) :], counts)


def test_special_tokens_are_no_onset_and_no_example(tmp_path: Path) -> None:
    for index in range(2):
        activations = np.zeros((3, 4, 10), np.float32)
        activations[:, 0] = 100
        activations[:, 2] = index
        changes = {"activations": activations, "is_special": np.arange(4) == 0}
        write_sentence(tmp_path / "trait", index, changes=changes)
    featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert featurestore.trajectory(ds, 0, 0).values[:, 0].tolist() == [100, 100]
    assert featurestore.l0(ds).values[:, 0].tolist() == [[10, 10, 10]] * 2
    np.testing.assert_array_equal(featurestore.onset(ds, 0, 0).values, [np.nan, -2])
    assert featurestore.top_tokens(ds, 0, 0).activation.values.tolist() == [1]
    found = featurestore.features(ds, tokens="any", permutations=0)
    assert found["max"].sel(layer=0).values.tolist() == [1] * 10
    assert found["density"].sel(layer=0).values.tolist() == [0.5] * 10
    view = featurestore.show(ds, 0, 0)
    assert (view.active, view.maximum, view.onsets) == (1, 1, (-2, -2, -2))
    np.testing.assert_array_equal(view.examples[0].activations, [np.nan, 0, 1, 0])


REFUSED = [
    ({"layer": 2}, featurestore.SelectionError, "has no SAE of layer 2: choose from 0-1,5"),
    ({"feature": 10}, featurestore.SelectionError, "has no feature 10: choose from 0-9"),
    ({"feature": -1}, featurestore.SelectionError, "has no feature -1: choose from 0-9"),
    ({"average_l0": 4}, featurestore.SelectionError, r"no SAE of average L0 4: choose from \[3\]"),
    ({"feature": [1, 2]}, featurestore.ParameterError, r"feature=: expected an integer, found \[1, 2\]"),
    ({"layer": "1"}, featurestore.ParameterError, "layer=: expected an integer, found '1'"),
    (
        {"ds": "stores/x.zarr"},
        featurestore.ParameterError,
        "expected a dataset as of open_store, found 'stores/x.zarr'",
    ),
]


@pytest.mark.parametrize(
    "look", [featurestore.trajectory, featurestore.onset, featurestore.top_tokens, featurestore.show]
)
@pytest.mark.parametrize(("asked", "kind", "message"), REFUSED)
def test_what_there_is_not_is_refused_in_a_line(made: Any, look: Any, asked: Any, kind: Any, message: str) -> None:
    ds = featurestore.open_store(made["plain"][0])
    with pytest.raises(kind, match=message):
        look(**{"ds": ds, "layer": 1, "feature": 1} | asked)


def test_selections_that_lack_something_are_refused_in_a_line(made: Any) -> None:
    ds = featurestore.open_store(made["plain"][0])
    for lacking, message in (
        (ds.sel(layer=1), "has no dim layer: select by a list"),
        (ds.sel(sentence=1), "has no dim sentence"),
        (ds.drop_vars("token_text"), "has no coordinate token_text"),
        (ds.drop_vars("activations"), "has no activations, only embeddings, hidden states"),
    ):
        with pytest.raises(featurestore.SelectionError, match=message):
            featurestore.trajectory(lacking, 1, 1)
        with pytest.raises(featurestore.SelectionError, match=message):
            featurestore.l0(lacking)
    with pytest.raises(featurestore.SelectionError, match="has no sentences"):
        featurestore.show(ds.isel(sentence=[]), 1, 1)
    tops: list[Any] = [featurestore.top_tokens, featurestore.show]
    for look in tops:
        with pytest.raises(featurestore.ParameterError, match="top=: expected at least 1, found 0"):
            look(ds, 1, 1, top=0)
    for threshold in ("a", math.nan):
        with pytest.raises(featurestore.ParameterError, match="threshold=: expected a number"):
            featurestore.onset(ds, 1, 1, threshold=threshold)  # type: ignore[arg-type]
