"""The training stage (s5) can use a dataset: it loads it, infers the task, splits and trains; of sequences as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore
from tests.sentences import SAMPLE


@pytest.mark.parametrize(
    ("strategy", "parameters", "task"),
    [
        ("embedding-to-feature", {"target_layer": 15, "target_feature": 100}, "regression"),
        ("hidden-to-feature", {"target_layer": 15, "target_feature": 100}, "regression"),
        ("hidden-to-concept", {"layers": "15-17"}, "classification"),
    ],
)
def test_load_split_and_train(tmp_path: Path, strategy: str, parameters: dict[str, Any], task: str) -> None:
    featurestore.ingest(SAMPLE, tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    if task == "regression":  # a feature that is active somewhere
        active = (ds.activations.sel(token=-1, layer=15) > 0).sum("sentence").values
        parameters = parameters | {"target_feature": int(active.argmax())}
    featurestore.build(tmp_path / "s.zarr", strategy, output=tmp_path / "d.npz", **parameters)

    data = np.load(tmp_path / "d.npz", allow_pickle=True)
    X, y = data["X"], data["y"]
    assert X.ndim == 2
    assert np.isfinite(X).all()
    assert y.ndim == 1
    integral = np.all(y == np.round(y))
    assert ("classification" if integral and len(np.unique(y)) <= 10 else "regression") == task
    stratify = y if task == "classification" else None
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=stratify)
    model = LogisticRegression(max_iter=2000) if task == "classification" else Ridge(alpha=100.0)
    model = make_pipeline(StandardScaler(), model).fit(X_train, y_train)
    assert model.predict(X_test).shape == y_test.shape
    if task == "classification":
        assert model.score(X_test, y_test) > 0.4  # chance is 0.25
    elif strategy == "hidden-to-feature":  # the embedding of a final full stop is always the same
        assert model.score(X_train, y_train) > 0.5


def test_sequences_say_what_they_are(tmp_path: Path) -> None:
    """Models of rows refuse them by themselves, by their dims; the tokens that the mask names are rows again."""
    featurestore.ingest(SAMPLE, tmp_path / "s.zarr")
    options: dict[str, Any] = {"layer": 15, "normalize": "none"}
    featurestore.build(tmp_path / "s.zarr", "hidden-sequence-to-concept", output=tmp_path / "d.npz", **options)
    rows = featurestore.build(tmp_path / "s.zarr", "hidden-to-concept", **options)
    with np.load(tmp_path / "d.npz") as data:
        X, y, mask, dims = data["X"], data["y"], data["mask"], data["meta_input_dims"]
    assert X.ndim == 3
    assert dims.tolist() == list(X.shape[1:])
    with pytest.raises(ValueError, match="3"):
        LogisticRegression().fit(X, y)
    final = X[:, -1]
    np.testing.assert_array_equal(final, rows.X)
    np.testing.assert_array_equal(y, rows.y)
    means = X.sum(axis=1) / mask.sum(axis=1, keepdims=True)  # as padding is 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(means, y)
    assert model.score(means, y) > 0.5
