"""A writer that dies, or meets an error, at any file operation: nothing committed is lost, and it can go on."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import featurestore
from tests.reliability.recording import (
    EXIT,
    Disk,
    Operation,
    Sentences,
    failing_at,
    held,
    quick_folder,
    serial,
    tree,
    write_sentences,
)

LENGTHS = [1, 2, 1, 1, 1, 1, 1, 1, 2]
STORE = Path("new/s.zarr")
FAULTS = ("exit", "EIO", "ENOSPC")

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the paths of descriptors in /proc")


def write(path: Path, sentences: Sentences) -> list[int]:
    """Append what is missing, and return it."""
    with featurestore.writer(path, layers=(0, 5), average_l0s=(3, 3)) as store:
        missing = store.missing(range(len(sentences)))
        for arrays in (sentences[index] for index in missing):
            store.append(
                sentence_index=arrays["sentence_index"].item(),
                text=arrays["sentence"].item(),
                label=arrays["concept_strength_label"].item(),
                fragments=arrays["fragments"].tolist(),
                embeddings=arrays["embeddings"],
                hidden_states=arrays["hidden_states"],
                activations=arrays["activations"],
            )
    return missing


def write_and_die(disk: Path, sentences: Sentences, point: int) -> None:
    with serial(), Disk(disk, failing_at(point, "exit")):
        write(disk / STORE, sentences)


def fail(disk: Path, sentences: Sentences, fault: str, point: int) -> bool:
    """Fail at an operation; tell whether the caller hears of it."""
    if fault == "exit":
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["pytest", "dask", "featurestore.store.writer", "zarr.storage"])
        process = processes.Process(target=write_and_die, args=(disk, sentences, point))
        process.start()
        process.join()
        assert process.exitcode == EXIT
        return True
    with serial(), Disk(disk, failing_at(point, fault)):
        try:
            write(disk / STORE, sentences)
        except (OSError, featurestore.FeatureStoreError):
            return True
    return False


@pytest.fixture
def disk() -> Iterator[Path]:
    with quick_folder() as base:
        (base / "disk").mkdir()
        yield base / "disk"


def test_any_operation(disk: Path, long: bool) -> None:
    """From the first one to the last: whole batches of four are there, and the same again completes the store."""
    sentences = write_sentences(disk.parent / "in", LENGTHS)
    operations: list[Operation] = []
    with serial(), Disk(disk, operations.append):
        write(disk / STORE, sentences)
    finished = tree(disk)
    assert held(disk / STORE, sentences, from_files=False) == len(sentences)
    points = [(point, fault) for point in range(len(operations)) for fault in FAULTS]
    problems = []
    for point, fault in points if long else points[:: max(1, len(points) // 40)]:
        shutil.rmtree(disk)
        disk.mkdir()
        where = f"{fault} at {operations[point].kind} {operations[point].path}"
        try:
            is_heard = fail(disk, sentences, fault, point)
            after = held(disk / STORE, sentences, from_files=False)
            assert after in (None, 0, 4, 8, 9)
            assert is_heard or after == 9
            with serial():
                assert write(disk / STORE, sentences) == [*range(after or 0, 9)]
            assert tree(disk) == finished
        except (AssertionError, OSError, featurestore.FeatureStoreError) as error:
            problems.append(f"{where}: {type(error).__name__} {str(error)[:300]}")
    assert not problems, "\n".join([f"{len(problems)} problems:", *problems])


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
