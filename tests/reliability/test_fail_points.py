"""An ingest, or a writer, that dies or meets an error at any file operation: nothing committed is lost."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import featurestore
from tests.reliability.recording import (
    EXIT,
    HOWS,
    Disk,
    Operation,
    Sentences,
    failing_at,
    held,
    quick_folder,
    run_and_die,
    serial,
    tree,
    tree_after,
    write_sentences,
    write_tree,
)

Tree = dict[str, bytes | None]

LENGTHS = [1, 2, 1, 1, 1, 1, 1, 1, 2]
BATCHES = (0, 4, 8, 9)
STORE = Path("new/stores/s.zarr")
AROUND = {*STORE.parents, STORE.with_name(f"{STORE.name}.lock")}
FAULTS = ("exit", "EIO", "ENOSPC", "interrupt")
STARTS = {"creating": 0.02, "created": 0.15, "second batch": 0.6, "third batch": 0.85, "finishing": 0.97}
"""States that an ingest left which was killed so far through its operations; from each, another is resumed."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the paths of descriptors in /proc")


class Scene:
    """Ingests that fail, each in a folder of its own, and what became of them."""

    def __init__(self, base: Path, how: str) -> None:
        self.how, self.run = how, HOWS[how]
        self.base, self.source = base, base / "in"
        self.sentences: Sentences = write_sentences(self.source, LENGTHS)
        self.completed: set[frozenset[tuple[str, bytes | None]]] = set()
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(
            ["pytest", "dask", "featurestore.store.ingest", "featurestore.store.writer", "zarr.storage"]
        )
        self.operations = self.record({})
        self.finished = tree(self.disk)
        assert self.held() == BATCHES[-1]
        assert featurestore.verify(self.disk / STORE) == []
        assert not [name for name in self.finished if name.endswith((".partial", ".lock"))]

    @property
    def disk(self) -> Path:
        return self.base / "disk"

    def held(self) -> int | None:
        return held(self.disk / STORE, self.sentences, from_files=self.how == "ingest")

    def restore(self, start: Tree) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)
        write_tree(self.disk, start)

    def record(self, start: Tree) -> list[Operation]:
        """All operations that an ingest attempts, from the state that another left."""
        self.restore(start)
        operations: list[Operation] = []
        with serial(), Disk(self.disk, operations.append):
            done = self.run(self.source, self.disk / STORE)
        assert not start or tree_after(done, self.disk) == self.finished
        return operations

    def killed(self, point: int) -> Tree:
        """Return what an ingest leaves that ends at an operation."""
        arguments = self.how, self.disk, self.source, self.disk / STORE, point
        process = self.processes.Process(target=run_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == EXIT
        return tree(self.disk)

    def check(self, start: Tree, before: int | None, fault: str, point: int) -> None:
        """Fail at an operation; check what is left; ingest again, unless that was done from the same state."""
        path = self.disk / STORE
        error: BaseException | None = None
        if fault == "exit":
            left = self.killed(point)
        else:
            with serial(), Disk(self.disk, failing_at(point, fault)):
                try:
                    self.run(self.source, path)
                except (OSError, featurestore.FeatureStoreError, KeyboardInterrupt) as raised:
                    error = raised  # kept, as a notebook does
            left = tree(self.disk)
        after = self.held()
        assert after in (None, *BATCHES)
        if before:
            assert after is not None
            assert after >= before
        elif fault != "exit" and not after:
            assert error
            if fault == "interrupt":  # while the lock is taken, which is left then, held by nobody
                left = {name: data for name, data in left.items() if Path(name) not in AROUND}
            assert start or not left, sorted(left)
        state = frozenset((re.sub(r"\b[0-9a-f]{32}\b", "", name), data) for name, data in left.items())
        if state not in self.completed:
            with serial():
                done = self.run(self.source, path)
            assert (done.present, done.added) == (after or 0, BATCHES[-1] - (after or 0))
            assert tree_after(done, self.disk) == self.finished  # which was checked
            self.completed.add(state)

    def check_all(self, start: Tree, operations: list[Operation], chosen: Iterable[tuple[int, str]]) -> None:
        """Check faults at operations, each from the same start, and name all that went wrong."""
        self.restore(start)
        before = self.held()
        n, problems = 0, []
        for point, fault in chosen:
            n += 1
            self.restore(start)
            try:
                self.check(start, before, fault, point)
            except (AssertionError, OSError, featurestore.FeatureStoreError, KeyboardInterrupt) as error:
                where = f"{fault} at operation {point} ({operations[point].kind} {operations[point].path})"
                problems.append(f"{where}: {type(error).__name__} {str(error)[:300]}")
        assert not problems, "\n".join([f"{len(problems)} of {n}:", *problems])


def everything(operations: list[Operation]) -> Iterator[tuple[int, str]]:
    """Every operation with every fault."""
    return itertools.product(range(len(operations)), FAULTS)


def sample(operations: list[Operation], step: int) -> Iterator[tuple[int, str]]:
    """Every so many-th operation, the faults taking turns."""
    return zip(range(step // 2, len(operations), step), itertools.cycle(FAULTS), strict=False)


def critical(operations: list[Operation]) -> Iterator[tuple[int, str]]:
    """Every operation on the lock and the folders around it with every fault; on the store's root they take turns."""
    turns: defaultdict[tuple[str, str], Iterator[str]] = defaultdict(lambda: itertools.cycle(FAULTS))
    made = {path.with_name(path.name + suffix) for path in (STORE, STORE / "zarr.json") for suffix in ("", ".partial")}
    for point, operation in enumerate(operations):
        if Path(operation.path) in AROUND:
            yield from ((point, fault) for fault in FAULTS)
        elif Path(operation.path) in made:
            yield point, next(turns[operation.kind, operation.path])


@pytest.fixture(scope="module", params=[*HOWS])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with quick_folder() as base:
        yield Scene(base, request.param)


def test_first_run(scene: Scene, long: bool) -> None:
    operations = scene.operations
    chosen = everything(operations) if long else sample(operations, 41)
    if scene.how == "ingest" and not long:  # the writer has the same lock, folders and root
        chosen = itertools.chain(critical(operations), sample(operations, 80))
    scene.check_all({}, operations, chosen)


@pytest.mark.parametrize("start", STARTS)
def test_resumed_run(scene: Scene, long: bool, start: str) -> None:
    scene.restore({})
    left = scene.killed(int(STARTS[start] * len(scene.operations)))
    operations = scene.record(left)
    scene.check_all(
        left,
        operations,
        sample(operations, 1 if long else max(1, len(operations) // (6 if scene.how == "ingest" else 2))),
    )
