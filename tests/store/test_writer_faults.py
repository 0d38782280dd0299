"""A writer that is used in ways that nobody meant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from featurestore import files
from featurestore.store.writer import SentenceWriter


def append(store: SentenceWriter, index: int, **changes: Any) -> None:
    given: dict[str, Any] = {"text": "x", "tokens": ["x"], "embeddings": np.full((1, 3), index, np.float32)}
    store.append(sentence_index=index, **given | changes)


def test_after_its_block(tmp_path: Path) -> None:
    """It no longer holds the lock: what it took would be lost, or come between another writer's batches."""
    with featurestore.writer(tmp_path / "s.zarr") as store:
        append(store, 0)
    with pytest.raises(featurestore.StoreError, match="the `with` block of this writer has ended; append in another"):
        append(store, 1)
    with pytest.raises(RuntimeError), featurestore.writer(tmp_path / "s.zarr") as failed:
        raise RuntimeError
    with pytest.raises(featurestore.StoreError, match="the `with` block of this writer has ended"):
        append(failed, 1)
    assert featurestore.info(tmp_path / "s.zarr").sentences == 1


def test_threads_share_it(tmp_path: Path) -> None:
    with featurestore.writer(tmp_path / "s.zarr") as store, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(append, store, index) for index in range(200)]:
            done.result()
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert sorted(ds.sentence.values.tolist()) == [*range(200)]
    assert ds.embeddings[:, 0, 0].values.tolist() == ds.sentence.values.tolist()
    assert featurestore.verify(tmp_path / "s.zarr") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_in_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C as the block ends: what was appended is committed all the same, but the store is not declared complete."""
    flush, failures = files.flush, [error]

    def fail_once(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return flush(*arguments)

    monkeypatch.setattr(files, "flush", fail_once)
    with pytest.raises(error), featurestore.writer(tmp_path / "s.zarr") as store:  # noqa: PT012
        for index in range(10):
            append(store, index)
    assert not failures
    info = featurestore.info(tmp_path / "s.zarr")
    assert (info.sentences, info.expected_sentences) == (10, 10)
    with featurestore.writer(tmp_path / "s.zarr") as store:
        assert store.missing(range(10)) == []
    assert featurestore.info(tmp_path / "s.zarr").expected_sentences is None
    assert featurestore.verify(tmp_path / "s.zarr") == []


@pytest.mark.parametrize("texts", [{"a", "ab"}, {"a": 1, "ab": 2}])
def test_texts_without_an_order(tmp_path: Path, texts: Any) -> None:
    with (
        pytest.raises(featurestore.ParameterError, match="sentence 0: fragments=: expected a list of texts, found"),
        featurestore.writer(tmp_path / "s.zarr") as store,
    ):
        append(store, 0, tokens=None, fragments=texts, embeddings=np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("indices", [5, None, "abc"])
def test_missing_takes_integers(tmp_path: Path, indices: Any) -> None:
    with (
        pytest.raises(featurestore.ParameterError, match=r"indices=: expected integers, such as range\(100\), found"),
        featurestore.writer(tmp_path / "s.zarr") as store,
    ):
        store.missing(indices)
