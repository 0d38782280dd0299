"""Real processes: killed, interrupted, reading while another one writes, and writing against each other.

Children come from a forking server that has imported everything, so that one costs no more than its work.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import pytest

import featurestore
from featurestore import files
from featurestore.store import commit, layout
from featurestore.store.batch import Batch
from featurestore.store.shards import ShardReader
from featurestore.store.snapshot import Snapshot
from tests.reliability.contents import ARRAYS, check, tree
from tests.reliability.recording import HOWS, quick_folder
from tests.sentences import sentence_arrays, write_folder, write_sentence

CLI = Path(__file__).parents[2] / "cli.py"
ROWS = 4
SECONDS = 120
"""Far more than anything here takes: what hangs that long fails its test."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "click.testing",
        "dask.array",
        "featurestore.cli.commands",
        "featurestore.store.ingest",
        "featurestore.store.writer",
        "pytest",
        "xarray",
        "zarr",
    ]
)

type Link = Connection[Any, Any]


@contextmanager
def child(target: Callable[..., None], *arguments: object) -> Iterator[tuple[ForkServerProcess, Link]]:
    """Run ``target(link, *arguments)`` in a process, with the other end of the link; kill what is left at the end."""
    link, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, link
    finally:
        process.kill()
        process.join()
        process.close()
        link.close()


def told(link: Link, seconds: float = SECONDS) -> Any:
    """Return the next thing that a child says."""
    assert link.poll(seconds)
    return link.recv()


def ended(process: ForkServerProcess) -> int | None:
    """Wait for a child to end, and return its exit code."""
    process.join(SECONDS)
    return process.exitcode


def small_folder(folder: Path, indices: Sequence[int]) -> Path:
    """Write the smallest sentences that still differ in length, from the second batch on, so that a trial is quick."""
    for index in indices:
        write_sentence(folder, index, tokens=1 + (index > 5), layers=(0, 5))
    return folder


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder in memory, where there is room: flushing, which no process can see, costs no time there."""
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four sentences in this process, too."""
    monkeypatch.setattr(layout, "ROWS", ROWS)
    monkeypatch.setattr(layout, "BATCH_ROWS", ROWS)


# Killed


def ingest_until(link: Link, folder: Path, path: Path, last: int) -> None:
    """Child: ingest in batches of four; be killed at one of all calls that Python makes, or say how many there were.

    So a machine's speed does not matter; and other threads, and what they write, are anywhere.
    """
    monitoring, calls = sys.monitoring, itertools.count()

    def count(*_: object) -> None:
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    layout.ROWS = layout.BATCH_ROWS = ROWS
    monitoring.use_tool_id(monitoring.PROFILER_ID, "kill")
    monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.CALL, count)
    monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.CALL)
    featurestore.ingest(folder, path)
    link.send(next(calls))


def committed(path: Path, folder: Path) -> int | None:
    """Check a store, and return how many sentences it holds; None if it is not there yet."""
    if not (path / "zarr.json").exists():
        with pytest.raises(featurestore.StoreError):
            featurestore.open_store(path)
        return None
    return check(path, folder)


def chunks(path: Path) -> dict[str, bytes]:
    """All files of a store but its root, which alone says how an ingest stands."""
    files = tree(path)
    del files["zarr.json"]
    return files


def test_a_killed_ingest_loses_nothing_and_goes_on(base: Path, small_batches: None, long: bool) -> None:
    """Killed at any moment, and perhaps once more while it goes on."""
    stops = (ROWS, 2 * ROWS, 11)
    batches, whole = {}, {}
    for start, stop in itertools.pairwise((0, *stops)):
        small_folder(base / "in", range(start, stop))
        featurestore.ingest(base / "in", base / "batches.zarr")
        batches[stop], whole = chunks(base / "batches.zarr"), tree(base / "batches.zarr")
    assert check(base / "batches.zarr", base / "in") == stops[-1]
    with child(ingest_until, base / "in", base / "whole.zarr", -1) as (process, link):
        n_calls = told(link)
        assert ended(process) == 0
    assert tree(base / "whole.zarr") == whole

    rng = np.random.default_rng(0)
    states: Counter[str] = Counter()
    while states.total() < (500 if long else 30):
        path = base / "killed.zarr"
        before = 0
        for last in rng.integers(n_calls, size=rng.integers(1, 3)).tolist():
            with child(ingest_until, base / "in", path, last) as (process, _):
                if ended(process) != -signal.SIGKILL:
                    assert process.exitcode == 0
                    break
            n = committed(path, base / "in")
            assert (n or 0) >= before
            before = n or 0
            clean = chunks(path) == batches[n] if n else not path.exists()
            states[f"{'no store' if n is None else n}{'' if clean else ' and more on its way'}"] += 1
        featurestore.ingest(base / "in", path)
        assert tree(path) == whole
        shutil.rmtree(path)
    counts = {state.partition(" and")[0] for state in states}
    print(f"\n{states.total()} kills within {n_calls} calls; sentences committed: {dict(sorted(states.items()))}")
    assert len(counts) >= 3
    assert any(state.endswith("on its way") for state in states)


# Interrupted


def n_committed(path: Path) -> int:
    """How many sentences the root says that there are."""
    return Snapshot.read(path).sizes["sentence"] if (path / "zarr.json").exists() else 0


INTERRUPTED = """
import importlib, itertools, os, signal, sys
from featurestore.cli.commands import main

_, module, name, nth, *sys.argv[1:] = sys.argv
function, calls = getattr(importlib.import_module(module), name), itertools.count(1)

def interrupted(*arguments, **options):
    if next(calls) == int(nth):
        os.kill(os.getpid(), signal.SIGINT)
    return function(*arguments, **options)

setattr(sys.modules[module], name, interrupted)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
main()
"""
"""A command line that sends itself Ctrl-C just before the n-th call of a function."""

FLUSH, READ = "featurestore.files flush", "featurestore.sources.sentences read"
MOMENTS = [
    (FLUSH, 1, None),  # the store is not there yet
    (FLUSH, 2, None),  # it is there, and empty; the first batch is written
    (FLUSH, 4, 64),  # the first batch is committed, the second one is written
    (READ, 128, 64),  # the main thread waits for others, who read
]
MORE_MOMENTS = [(READ, 1, None), (READ, 64, None), (FLUSH, 6, 128)]
"""Function, number of its call, and how many of 130 sentences are committed then."""


def test_ctrl_c_says_how_to_go_on(base: Path, long: bool) -> None:
    write_folder(base / "in", 130)
    featurestore.ingest(base / "in", base / "whole.zarr")
    for trial, (function, nth, left) in enumerate(MOMENTS + (MORE_MOMENTS if long else [])):
        path = base / f"{trial}.zarr"
        ingest = ["ingest", str(base / "in"), "--store", str(path)]
        stopped = run("-c", INTERRUPTED, *function.split(), str(nth), *ingest)
        assert stopped.returncode == 130, stopped
        assert re.search(r"(?i)the same\s+command", stopped.stderr)
        assert "Traceback" not in stopped.stderr
        assert committed(path, base / "in") == left
        again = run(str(CLI), *ingest)
        assert again.returncode == 0, again
        assert f"130 sentences ({130 - (left or 0)} added" in again.stdout
        assert check(path, base / "in") == 130
        assert tree(path) == tree(base / "whole.zarr")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("batch", [1, 2])
def test_ctrl_c_just_after_a_commit(
    base: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """The root is replaced, but the writer does not know yet: it must not clean up what is committed."""
    path, replace = base / "s.zarr", files.replace
    expected = write_folder(base / "in", 11)

    def interrupted(target: Path, data: bytes, **options: bool) -> None:
        replace(target, data, **options)
        if target == path / "zarr.json" and n_committed(path) == batch * ROWS:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featurestore.ingest(base / "in", path)
    assert committed(path, base / "in") == batch * ROWS
    featurestore.ingest(base / "in", path)
    assert check(path, base / "in") == len(expected)


# Reading while another process writes

MIN_SIZES = 10
"""So many sizes of the store each reader sees at least, however slow the writer is."""


def n_tokens(index: int) -> int:
    """Lengths that grow now and then, so that the store's token dimension does, too."""
    return 1 + index % 3 + index // 40


@cache
def source(index: int) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of a sentence, token first, as `append_on` writes them into NPZs."""
    arrays = sentence_arrays(index, tokens=n_tokens(index))
    return arrays | {name: arrays[name].swapaxes(0, 1) for name in ("hidden_states", "activations")}


def append_on(link: Link, base: Path, stop: Event, unsafe: bool, how: str) -> None:
    """Child: append sentence after sentence, each by an ingest or a writer of its own, to shards of 16."""
    layout.ROWS = layout.BATCH_ROWS = 16
    append = commit_first if unsafe else commit.Writer.append
    with mock.patch.object(commit.Writer, "append", append):
        for index in itertools.count():
            write_sentence(base / f"{index:06d}", index, tokens=n_tokens(index))
            HOWS[how](base / f"{index:06d}", base / "s.zarr")
            if stop.is_set():
                link.send(index + 1)
                return
            if index == 0:
                link.send("ready")


def commit_first(
    writer: commit.Writer,
    *arguments: Any,
    append: Callable[..., None] = commit.Writer.append,
    write: Callable[[Batch], Any] = Batch.write,
) -> None:
    """Append as a careless writer does: say that the sentences are there, then put their values in place."""

    def careless(batch: Batch) -> None:
        write(batch)
        writer._commit(batch.snapshot)
        aside = batch._folder
        for file in aside.glob("*/c.*"):
            if file.parent.name not in ARRAYS:
                file.replace(writer.snapshot.path / file.relative_to(aside))
        time.sleep(0.1)  # what the values take on a slow disk

    with mock.patch.object(Batch, "write", careless):
        append(writer, *arguments)


def read_on(link: Link, path: Path, goal: int, seed: int) -> None:
    """Child: read random places of a store until `goal` values were right, at many sizes of it, or one was wrong.

    A store stays open for a while, so it is also read with handles that are older than its files; and the disk is
    slow now and then, so that files are replaced between a read of a shard's index and one of its chunks.
    """
    rng = np.random.default_rng(seed)
    delays = itertools.cycle(rng.uniform(0, 0.1, 997) * (rng.random(997) < 0.05))
    counts: Counter[str] = Counter()
    sizes, wrong, errors = set[int](), list[object](), list[str]()
    sleep, compressed = time.sleep, ShardReader._compressed

    def retry(seconds: float) -> None:
        counts["retries"] += 1
        sleep(seconds)

    def slow(*arguments: Any) -> Any:
        sleep(next(delays))
        return compressed(*arguments)

    def compare(what: object, found: Any, expected: Any) -> None:
        if found == expected if isinstance(found, list) else found.tobytes() == expected.tobytes():
            counts["right"] += 1
        else:
            wrong.append(what)

    dask.config.set(scheduler="synchronous")
    with mock.patch("time.sleep", retry), mock.patch.object(ShardReader, "_compressed", slow):
        while (counts["right"] < goal or len(sizes) < MIN_SIZES) and not wrong and len(errors) < goal:
            try:
                ds = featurestore.open_store(path)
                n, longest = ds.sizes["sentence"], ds.sizes["token"]
                sizes.add(n)
                compare("sentence", ds["sentence"].values.tolist(), list(range(n)))
                compare("n_tokens", ds["n_tokens"].values.tolist(), [n_tokens(index) for index in range(n)])
                arrays = ds[[*ARRAYS]].reset_coords(drop=True)
                for _ in range(20):
                    index = n - 1 if rng.random() < 0.25 else int(rng.integers(n))
                    place = int(rng.integers(longest))
                    token = place - (longest - n_tokens(index))
                    layer = int(rng.integers(ds.sizes["layer"]))
                    one = arrays.isel(sentence=index, token=place, layer=layer).compute()
                    where = f"sentence {index} of {n}, token {token}, layer {layer}"
                    for name in ARRAYS:
                        expected = source(index)[name][max(token, 0)]
                        expected = expected if name == "embeddings" else expected[layer]
                        expected = expected if token >= 0 else np.full_like(expected, np.nan)
                        compare((where, name), one[name].values, expected)
                fragments = [word for word in ds["fragment"].isel(sentence=index).values.tolist() if word]
                compare((n, index, "fragment"), fragments, source(index)["fragments"].tolist())
                texts = [source(index)["sentence"].item() for index in range(n)]
                compare((n, "text"), ds["text"].values.tolist(), texts)
            except featurestore.StoreError as error:
                errors.append(str(error))
    link.send((counts["right"], wrong, errors, counts["retries"], sizes))


def read_while_written(
    base: Path, goal: int, unsafe: bool, how: str = "ingest"
) -> tuple[int, list[object], list[str], set[int], int]:
    """Let two processes read while a third one appends, and sum up what they found; one that is wrong is enough."""
    stop = CONTEXT.Event()
    path = base / "s.zarr"
    with child(append_on, base, stop, unsafe, how) as (writer, written):
        assert told(written) == "ready"
        with child(read_on, path, goal // 2, 1) as (_, one), child(read_on, path, goal // 2, 2) as (_, two):
            reading: list[Any] = [one, two]
            found: list[Any] = []
            while reading and not any(wrong for _, wrong, *_ in found):
                ready = wait(reading, 30 * SECONDS)
                assert ready
                found += [link.recv() for link in reading if link in ready]
                reading = [link for link in reading if link not in ready]
        stop.set()
        n = told(written)
        assert ended(writer) == 0
    right = sum(reader[0] for reader in found)
    wrong, errors = ([what for reader in found for what in reader[part]] for part in (1, 2))
    retries, sizes = sum(reader[3] for reader in found), set().union(*(reader[4] for reader in found))
    print(
        f"\n{right} reads right, {len(wrong)} wrong {wrong[:2]}, {len(errors)} errors {errors[:2]}, {retries} retries; "
    )
    print(f"{n} sentences appended, {len(sizes)} sizes of the store seen")
    return right, wrong, errors, sizes, n


@pytest.mark.parametrize("how", HOWS)
def test_readers_never_see_wrong_values_while_another_process_appends(base: Path, long: bool, how: str) -> None:
    goal = 100_000 if long else {"ingest": 2_000, "writer": 500}[how]
    right, wrong, errors, sizes, n = read_while_written(base, goal, unsafe=False, how=how)
    assert wrong == []
    assert right >= goal
    assert len(errors) < goal // 100, errors
    assert len(sizes) >= MIN_SIZES
    assert check(base / "s.zarr", *(base / f"{i:06d}" for i in range(n)), from_files=how == "ingest") == n


def test_readers_catch_a_writer_that_commits_before_it_writes(base: Path) -> None:
    """The test above can fail."""
    _, wrong, *_ = read_while_written(base, 1_000_000, unsafe=True)  # it takes about a thousand
    assert wrong


# Writing against each other


def write_when_told(link: Link, barrier: Barrier, how: str) -> None:
    """Child: ingest, or write, as often as it is told to, always together with the other one."""
    layout.ROWS = layout.BATCH_ROWS = ROWS
    while order := link.recv():
        folder, path, wait = order
        barrier.wait(SECONDS)
        try:
            done = HOWS[how](folder, path, wait=wait)
            link.send(done.added)
        except featurestore.StoreBusyError as error:
            link.send(str(error))


@pytest.mark.parametrize("how", HOWS)
def test_two_writers_lose_and_double_nothing(base: Path, small_batches: None, long: bool, how: str) -> None:
    """Half of the trials wait for each other; in the other half, one may be refused, and is told by whom."""
    folders = [small_folder(base / "a", range(4, 7)), small_folder(base / "b", range(7, 9))]
    expected = []
    for trial, order in enumerate((folders, folders[::-1])):
        for folder in order:
            HOWS[how](folder, base / f"whole{trial}.zarr")
        assert check(base / f"whole{trial}.zarr", *order, from_files=how == "ingest") == 5
        expected.append(tree(base / f"whole{trial}.zarr"))
    added = [3, 2]
    outcomes: Counter[str] = Counter()
    n_trials, named = 500 if long else {"ingest": 50, "writer": 10}[how], 0
    barrier = CONTEXT.Barrier(2)
    with child(write_when_told, barrier, how) as (a, link_a), child(write_when_told, barrier, how) as (b, link_b):
        pids, links = [a.pid, b.pid], [link_a, link_b]
        for trial in range(20 * n_trials):
            if trial >= n_trials and named:
                break
            path, wait = base / f"{trial}.zarr", trial % 2 == 0
            for folder, link in zip(folders, links, strict=True):
                link.send((folder, path, wait))
            said = [told(link) for link in links]
            refused = [number for number in (0, 1) if said[number] != added[number]]
            assert len(refused) <= (0 if wait else 1), said
            for number in refused:
                holder = f"process {pids[1 - number]} on [^;]+"  # who is just coming or going has no name
                found = re.search(f"is being written by ({holder}|another process); ", said[number])
                assert found, said[number]
                named += found[1] != "another process"
                assert HOWS[how](folders[number], path).added == added[number]
            first = expected.index(tree(path))
            assert not path.with_name(f"{path.name}.lock").exists()
            shutil.rmtree(path)
            outcomes[f"{'ab'[first]} first, {'waited' if wait else 'refused' if refused else 'after it'}"] += 1
        for link in links:
            link.send(None)
        assert (ended(a), ended(b)) == (0, 0)
    print(f"\n{outcomes.total()} pairs of writers: {dict(sorted(outcomes.items()))}; {named} times the holder named")
    assert named


def hold(link: Link, path: Path) -> None:
    """Child: hold a store's lock for ever."""
    with commit.exclusive(path, wait=False):
        link.send("held")
        link.recv()


def write_waiting(link: Link, folder: Path, path: Path, how: str) -> None:
    """Child: ingest, or write, in batches of four, and say when it waits for another writer."""

    def say(*_: object) -> None:
        link.send("waiting")

    layout.ROWS = layout.BATCH_ROWS = ROWS
    with mock.patch.object(commit.logger, "info", say):
        HOWS[how](folder, path, wait=True)


@pytest.mark.parametrize("how", HOWS)
def test_a_dead_holder_blocks_nobody(base: Path, small_batches: None, how: str) -> None:
    folders = [small_folder(base / str(index), [index, index + 1]) for index in (0, 2, 4)]
    for trial in range(3):
        path = base / f"{trial}.zarr"
        with child(hold, path) as (holder, held):
            assert told(held) == "held"
            with pytest.raises(featurestore.StoreBusyError, match=f"is being written by process {holder.pid} on "):
                HOWS[how](folders[0], path)
            if trial == 0:  # nobody waits
                holder.kill()
                assert ended(holder) == -signal.SIGKILL
                assert path.with_name(f"{path.name}.lock").exists()
                for folder in folders:
                    HOWS[how](folder, path)
            else:  # three wait
                with (
                    child(write_waiting, folders[0], path, how) as (first, link_1),
                    child(write_waiting, folders[1], path, how) as (second, link_2),
                    child(write_waiting, folders[2], path, how) as (third, link_3),
                ):
                    assert [told(link) for link in (link_1, link_2, link_3)] == ["waiting"] * 3
                    assert not path.exists()
                    holder.kill()
                    assert [ended(process) for process in (first, second, third)] == [0, 0, 0]
        orders = itertools.permutations(folders)
        assert [order for order in orders if holds(path, order, how)]
        assert not path.with_name(f"{path.name}.lock").exists()


def holds(path: Path, folders: Sequence[Path], how: str) -> bool:
    """Whether a store holds exactly these folders, in this order."""
    try:
        return check(path, *folders, from_files=how == "ingest") == 6
    except AssertionError:
        return False
