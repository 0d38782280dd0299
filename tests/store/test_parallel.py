"""What several processes ingest is the same, byte for byte, as what one does, also where one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import featurestore
from featurestore.errors import NpzError, ParameterError, StoreError
from featurestore.store import append, layout, parallel
from tests.sentences import sentence_arrays, write_folder, write_sentence
from tests.store.test_store import assert_holds, tree


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four sentences; other processes learn of it by the store alone."""
    monkeypatch.setattr(layout, "ROWS", 2)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)


def damage(path: Path) -> None:
    """Change a byte of a file's activations, which no check of its headers shows."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("activations.npy")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + entry.compress_size] ^= 1
    path.write_bytes(data)


def test_batches_of_the_usual_size(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "trait", 140)
    featurestore.ingest(tmp_path / "trait", tmp_path / "one.zarr")
    done = featurestore.ingest(tmp_path / "trait", tmp_path / "two.zarr", jobs=2)
    assert (done.added, done.n_sentences) == (140, 140)
    assert tree(tmp_path / "two.zarr") == tree(tmp_path / "one.zarr")
    assert_holds(tmp_path / "two.zarr", expected)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("there", [0, 3, 8])
def test_longer_and_longer_sentences_behind_some_that_are_there(tmp_path: Path, there: int) -> None:
    trait, lengths = tmp_path / "trait", [*range(3, 15), 40, 2, 2, 70, 2, 2]
    for index, tokens in enumerate(lengths[:there]):
        write_sentence(trait, index, tokens=tokens)
    stores = tmp_path / "one.zarr", tmp_path / "two.zarr"
    if there:
        for store in stores:
            featurestore.ingest(trait, store)
    for index, tokens in enumerate(lengths[there:], start=there):
        write_sentence(trait, index, tokens=tokens)
    for jobs, store in enumerate(stores, start=1):
        featurestore.ingest(trait, store, jobs=jobs)
    assert tree(stores[1]) == tree(stores[0])
    assert_holds(stores[1], [sentence_arrays(index, tokens=tokens) for index, tokens in enumerate(lengths)])


@pytest.mark.usefixtures("small_batches")
def test_sentences_so_long_that_each_is_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def threads(jobs: int) -> Iterator[ThreadPoolExecutor]:  # which see the limit that is set here
        with ThreadPoolExecutor(jobs) as pool:
            yield pool

    write_folder(tmp_path / "trait", 19)
    featurestore.ingest(tmp_path / "trait", tmp_path / "one.zarr")
    monkeypatch.setattr(append, "BATCH_BYTES", 1)
    monkeypatch.setattr(parallel, "_processes", threads)
    featurestore.ingest(tmp_path / "trait", tmp_path / "two.zarr", jobs=2)
    assert tree(tmp_path / "two.zarr") == tree(tmp_path / "one.zarr")


@pytest.mark.usefixtures("small_batches")
def test_damaged_files_and_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(26):
        arrays = sentence_arrays(index)
        arrays["hidden_states"][:, 0] *= 100  # as of a BOS
        arrays["embeddings"][0, 0] = np.inf if index in (8, 21) else 0
        write_sentence(tmp_path / "trait", index, changes=arrays)
    damaged = [path for path in sorted((tmp_path / "trait").iterdir()) if path.stem[-2:] in ("06", "07", "19")]
    for path in damaged:
        damage(path)
    told = []
    for jobs in (1, 2):
        store = tmp_path / str(jobs) / "s.zarr"
        caplog.clear()
        with pytest.raises(NpzError) as caught:
            featurestore.ingest(tmp_path / "trait", store, jobs=jobs)
        assert featurestore.open_store(store).sizes["sentence"] == 4
        done = featurestore.ingest(tmp_path / "trait", store, skip_bad=True, jobs=jobs)
        assert [entry.file for entry in done.skipped] == [path.name for path in damaged]
        messages = [record.getMessage().replace(str(store), "") for record in caplog.records]
        told.append((str(caught.value), done.skipped, messages, tree(store)))
    assert told[1] == told[0]
    assert "sentence_000006.npz" in told[0][0]
    assert "skip_bad=True" in told[0][0]
    assert sum("median norm" in message for message in told[0][2]) == 1
    assert sum("2 NaN or infinite values" in message for message in told[0][2]) == 1


@pytest.mark.usefixtures("small_batches")
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "trait", 40)
    featurestore.ingest(tmp_path / "trait", tmp_path / "one.zarr")

    def kill(what: str, done: int, _: int) -> None:
        if what == "ingesting" and done == 8:
            victim = multiprocessing.active_children()[0].pid
            assert victim is not None
            os.kill(victim, signal.SIGKILL)

    store = tmp_path / "two.zarr"
    with pytest.raises(StoreError, match=r"a process of its ingest .* sentences are committed; .*\(jobs=\)$") as caught:
        featurestore.ingest(tmp_path / "trait", store, jobs=2, progress=kill)
    committed = featurestore.open_store(store).sizes["sentence"]
    assert f", {committed} sentences" in str(caught.value)
    assert 8 <= committed < 40
    assert featurestore.verify(store) == []
    assert not list(store.glob("*.partial"))
    assert not multiprocessing.active_children()
    assert featurestore.ingest(tmp_path / "trait", store, jobs=2).added == 40 - committed
    assert tree(store) == tree(tmp_path / "one.zarr")


@pytest.mark.usefixtures("small_batches")
def test_an_interrupted_ingest_ends_its_processes(tmp_path: Path) -> None:
    write_folder(tmp_path / "trait", 20)

    def interrupt(what: str, done: int, _: int) -> None:
        if what == "ingesting" and done == 4:
            raise KeyboardInterrupt  # as Ctrl-C does, where it is not ignored

    store = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        featurestore.ingest(tmp_path / "trait", store, jobs=2, progress=interrupt)
    assert not multiprocessing.active_children()
    assert featurestore.open_store(store).sizes["sentence"] == 4
    assert not list(store.glob("*.partial"))


KILLED = """
import os, signal, sys
import featurestore

def die(what, done, total):
    if what == "ingesting":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    featurestore.ingest(sys.argv[1], sys.argv[2], jobs=2, progress=die)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "trait", 200)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    # Each process has the same stdout, so that this waits for the last one.
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "trait"), str(tmp_path / "s.zarr")],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    assert featurestore.open_store(tmp_path / "s.zarr").sizes["sentence"] == 64
    assert featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr", jobs=2).n_sentences == 200
    assert not list((tmp_path / "s.zarr").glob("*.partial"))


@pytest.mark.parametrize("jobs", [0, 65])
def test_numbers_of_processes_that_are_refused(folder: Path, tmp_path: Path, jobs: int) -> None:
    with pytest.raises(ParameterError, match=rf"^jobs=: expected 1 to 64 processes, found {jobs}$"):
        featurestore.ingest(folder, tmp_path / "s.zarr", jobs=jobs)
    assert not (tmp_path / "s.zarr").exists()
