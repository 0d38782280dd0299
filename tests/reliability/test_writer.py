"""What a writer guarantees beyond an ingest: sentences that were appended are committed, whatever ends its block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import featurestore
from tests.reliability.recording import quick_folder, serial, write_sentences

LENGTHS = [1, 2, 1, 1, 1, 1, 1, 1, 2]


@pytest.fixture
def disk() -> Iterator[Path]:
    with quick_folder() as base:
        (base / "disk").mkdir()
        yield base / "disk"


def test_interrupted_anywhere_between_sentences(disk: Path) -> None:
    """Ctrl-C while the model runs: all sentences that were appended are committed, the whole batches and the rest."""
    sentences = write_sentences(disk.parent / "in", LENGTHS)
    for n in range(len(LENGTHS)):
        path = disk / f"{n}.zarr"
        with serial(), pytest.raises(KeyboardInterrupt), featurestore.writer(path, layers=(0, 5)) as store:  # noqa: PT012
            for arrays in sentences[:n]:
                store.append(
                    sentence_index=arrays["sentence_index"].item(), text="x", fragments=arrays["fragments"].tolist(),
                    hidden_states=arrays["hidden_states"],
                )  # fmt: skip
            raise KeyboardInterrupt
        assert path.exists() == (n > 0)
        if n:
            assert (featurestore.info(path).sentences, featurestore.info(path).expected_sentences) == (n, n)


def test_one_writer_at_a_time(disk: Path) -> None:
    """The second is told at once; who reads meanwhile sees what is committed."""
    sentences = write_sentences(disk.parent / "in", LENGTHS)
    path = disk / "s.zarr"
    with featurestore.writer(path, layers=(0, 5)) as store:
        store.append(sentence_index=0, text="x", tokens=["x"], hidden_states=sentences[0]["hidden_states"])
        busy = pytest.raises(featurestore.StoreBusyError, match="is being written by process")
        with busy, featurestore.writer(path, layers=(0, 5)):
            pytest.fail("there are two writers")
        with pytest.raises(featurestore.StoreBusyError, match="is being written by process"):
            featurestore.ingest(disk.parent / "in", path)
        assert not path.exists()
    assert featurestore.info(path).sentences == 1
