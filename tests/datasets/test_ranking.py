"""Rankings of features, compared with numpy's correlation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from featurestore.datasets.ranking import rank
from featurestore.errors import SelectionError

N, FEATURES = 300, 12

Array = np.ndarray[Any, Any]


def activations(seed: int) -> tuple[Array, Array]:
    """Features of an offset of 0 to a million and a spread of 1 or less, and labels that they follow more or less."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, N)
    spread = rng.choice([1, 0.25], FEATURES)
    noise = rng.integers(0, 8, (N, FEATURES)) * rng.integers(0, 4, FEATURES)
    values = (10.0 ** (np.arange(FEATURES) % 7) + spread * (label[:, None] + noise)).astype(np.float32)
    values[:, 3] = 1e6
    values[7, 4] = values[8, 4] = 0
    return values, label


def store(values: Array, label: Array, rows_of_a_chunk: int) -> xr.Dataset:
    """Of one layer, and a token before the final one that must not count."""
    tokens = np.stack([np.full_like(values, np.nan), values], axis=1)[:, :, None]
    array = xr.DataArray(tokens, dims=("sentence", "token", "layer", "feature")).chunk({"sentence": rows_of_a_chunk})
    coordinates = {"label": ("sentence", label), "n_nonfinite": ("sentence", np.zeros(N, int))}
    coordinates["has_label"] = ("sentence", np.ones(N, bool))
    ds = xr.Dataset({"activations": array}, {"token": [-2, -1], "layer": [2], "average_l0": ("layer", [5])})
    return ds.assign_coords(coordinates)


def ranked(ds: xr.Dataset, rows: Array, by: str = "label", top: int = FEATURES - 1) -> list[int]:
    return [int(target["target_feature"]) for target in rank(ds, by, [2], top, rows, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_an_offset_hides_no_correlation(seed: int) -> None:
    values, label = activations(seed)
    rows = np.random.default_rng(seed).random(N) < 0.8
    exact = values[rows].astype(np.longdouble)
    centred, labels = exact - exact.mean(axis=0), label[rows] - label[rows].mean()
    live = [feature for feature in range(FEATURES) if feature != 3]
    expected = np.abs(centred.T @ labels)[live] / np.sqrt((centred**2).sum(axis=0)[live] * (labels**2).sum())
    correlation = np.abs(np.corrcoef(values[rows].astype(float).T[live], label[rows])[-1, :-1])
    np.testing.assert_allclose(correlation, expected.astype(float), rtol=1e-6)
    found = ranked(store(values, label, 64), rows)
    scores = dict(zip(live, expected.astype(float), strict=True))
    assert sorted(found) == live
    assert all(scores[a] >= scores[b] - 1e-12 for a, b in pairwise(found))
    with pytest.raises(SelectionError, match="expected 12 features to rank, only 11 features are active"):
        ranked(store(values, label, 64), rows, top=FEATURES)


@pytest.mark.parametrize("by", ["label", "density"])
def test_chunks_and_schedulers_do_not_show(by: str) -> None:
    values, label = activations(9)
    values[np.random.default_rng(0).random(values.shape) < 0.3] = 0
    rows = np.arange(N) % 5 > 0
    expected = ranked(store(values, label, N), rows, by)
    for size in (1, 7, 64, 100):
        assert ranked(store(values, label, size), rows, by) == expected
    rows[:70] = False  # chunks of which no sentence counts
    assert ranked(store(values, label, 7), rows, by) == ranked(store(values, label, N), rows, by)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("computed elsewhere than in threads of this process")

    with dask.config.set(scheduler=refused):
        assert ranked(store(values, label, 64), rows, by) == ranked(store(values, label, N), rows, by)


@pytest.mark.parametrize("by", ["label", "density"])
def test_no_sentence_to_rank_by(by: str) -> None:
    values, label = activations(0)
    with pytest.raises(SelectionError, match="has no training sentence with finite values"):
        ranked(store(values, label, 64), np.zeros(N, bool), by)


def test_one_value_that_differs_is_not_constant() -> None:
    """Whichever row it is in, the first one included."""
    label = np.arange(N) % 4
    for row in (0, 150, N - 1):
        values = np.full((N, 2), 1e6, np.float32)
        values[row, 1] = np.nextafter(np.float32(1e6), np.float32(np.inf))
        assert ranked(store(values, label, 64), np.ones(N, bool), top=1) == [1]
        with pytest.raises(SelectionError, match="only 1 features"):
            ranked(store(values, label, 64), np.ones(N, bool), top=2)
