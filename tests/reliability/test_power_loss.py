"""Power fails while an ingest or a writer is at work: what was committed is on disk, whatever else is there too.

Of the unflushed writes that is any subset.

The model knows no particular file system: the content of a file is safe once the file was flushed, a name once its
folder was; of all else any subset may be lost. Only a renaming within a folder is done or not done, never half.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from featurestore import files
from featurestore.store import layout
from featurestore.store.commit import Writer
from featurestore.store.snapshot import Snapshot
from tests.reliability.recording import (
    HOWS,
    Disk,
    Operation,
    Sentences,
    held,
    quick_folder,
    serial,
    tree,
    tree_after,
    write_sentences,
    write_tree,
)

Tree = dict[str, bytes | None]

PARTS = ([1, 2, 1, 1, 1, 1, 1, 1, 1], [1], [3, 1])
"""Three commits; one sentence into a half-full shard; two, one of them longer than all before, fill it."""

STORE = Path("new/stores/s.zarr")

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the paths of descriptors in /proc")


@dataclass(eq=False)
class File:
    """A file: its content, and what of it is on disk for good."""

    content: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    """A folder: the names on disk for good, and the changes since, each one or two names; None is a name removed."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def entries(self, kept: list[bool] | None = None) -> dict[str, File | Folder]:
        """Return the names, with all or some of the changes."""
        entries: dict[str, File | Folder | None] = {**self.durable}
        for change, keep in zip(self.changes, kept or [True] * len(self.changes), strict=True):
            entries |= change if keep else {}
        return {name: node for name, node in entries.items() if node}


class Model:
    """A disk whose power may fail after any operation."""

    def __init__(self) -> None:
        self.root = Folder()

    def _find(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for name in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.entries()[name]
        return node

    def _change(self, nodes: dict[str, File | Folder | None]) -> None:
        """Change names; what becomes of one within a folder becomes of the other, as with any journal."""
        changes: defaultdict[str, dict[str, File | Folder | None]] = defaultdict(dict)
        for path, node in nodes.items():
            changes[str(Path(path).parent)][Path(path).name] = node
        for parent, change in changes.items():
            folder = self._find(parent)
            assert isinstance(folder, Folder)
            folder.changes.append(change)

    def apply(self, operation: Operation) -> None:
        """Do what an operation does."""
        path, target = operation.path, operation.target
        match operation.kind:
            case "create":
                self._change({path: File()})
            case "mkdir":
                self._change({path: Folder()})
            case "unlink" | "rmdir":
                self._change({path: None})
            case "replace":
                self._change({target: self._find(path), path: None})
            case "link":
                self._change({target: self._find(path)})
            case kind:
                self._apply_inside(kind, self._find(path), operation.data)

    def _apply_inside(self, kind: str, node: File | Folder, data: bytes) -> None:
        if isinstance(node, Folder):
            assert kind == "fsync"
            node.durable, node.changes = node.entries(), []
        elif kind == "write":
            node.content += data
        elif kind == "truncate":
            node.content = b""
        else:
            assert kind == "fsync"
            node.durable = node.content

    def after_power_loss(self, choose: Choice) -> Tree:
        """Return one of the trees that may be found."""
        found: Tree = {}
        self._collect(self.root, "", choose, found)
        return found

    def _collect(self, folder: Folder, path: str, choose: Choice, found: Tree) -> None:
        for name, node in folder.entries([choose.name() for _ in folder.changes]).items():
            if isinstance(node, Folder):
                found[path + name] = None
                self._collect(node, f"{path}{name}/", choose, found)
            else:
                found[path + name] = node.content if node.content == node.durable else choose.content(node)


class Choice:
    """What is on disk of what was not flushed: each name, and each content, with some probability."""

    def __init__(self, names: float, contents: float, seed: str = "") -> None:
        self._names, self._contents, self._random = names, contents, random.Random(seed)

    def name(self) -> bool:
        """Whether a change of a name is there."""
        return self._random.random() < self._names

    def content(self, file: File) -> bytes:
        """What is there of a file: all, what was flushed before, half, or zeros."""
        if self._random.random() < self._contents:
            return file.content
        half = file.content[: len(file.content) // 2]
        return self._random.choice([file.durable, half, bytes(len(file.content))])


@dataclass(frozen=True)
class State:
    """A disk after power was lost, and how many sentences must be on it; None before there must be a store."""

    tree: Tree
    committed: int | None


def record(base: Path, how: str) -> tuple[list[Operation], Sentences]:
    """Ingest, or write, in parts; return the operations, with a mark where something is durable, and the sentences."""
    sentences: Sentences = []
    (base / "disk").mkdir()
    replace, append = files.replace, Writer.append
    with serial(), Disk(base / "disk") as disk, pytest.MonkeyPatch.context() as patch:

        def replacing(path: Path, data: bytes, **options: bool) -> None:
            replace(path, data, **options)
            if path == base / "disk" / STORE / layout.ROOT and (n := Snapshot.read(path.parent).sizes["sentence"]):
                disk.mark(n)

        def appending(writer: Writer, *arguments: Any) -> None:
            disk.mark(writer.n_sentences)  # also 0: the store was made
            append(writer, *arguments)

        patch.setattr(files, "replace", replacing)
        patch.setattr(Writer, "append", appending)
        for lengths in PARTS:
            sentences += write_sentences(base / "in", lengths, len(sentences))
            HOWS[how](base / "in", base / "disk" / STORE)
            disk.mark(len(sentences))
    return disk.done, sentences


def possible_states(operations: list[Operation], n_random: int) -> Iterator[list[State]]:
    """Yield, for the time after each operation, distinct states: four extremes and some at random."""
    model, committed = Model(), None
    seen: set[tuple[int | None, frozenset[tuple[str, bytes | None]]]] = set()
    for point, operation in enumerate(operations):
        if operation.kind == "mark":
            committed = int(operation.path)
        else:
            model.apply(operation)
        choices = [Choice(names, contents, f"{point}") for names in (0, 1) for contents in (0, 1)]
        for number in range(n_random):
            likely = (0.1, 0.5, 0.9)[number % 3]
            choices.append(Choice(likely, random.Random(f"{point} {number}").random(), f"{point} {number}"))
        states = []
        for choice in choices:
            found = model.after_power_loss(choice)
            key = committed, frozenset(found.items())
            if key not in seen:
                seen.add(key)
                states.append(State(found, committed))
        yield states


def spread(operations: list[Operation], n: int, n_random: int = 4) -> list[State]:
    """Return about so many of the possible states: all around each commit and each mark, and evenly of all others."""
    made = {str(STORE / layout.ROOT), str(STORE)}
    near = {i + j for i, operation in enumerate(operations) if operation.target in made for j in range(-3, 3)}
    near |= {i for i, operation in enumerate(operations) if operation.kind == "mark"}
    first: list[State] = []
    others: list[State] = []
    for point, states in enumerate(possible_states(operations, n_random)):
        (first if point in near else others).extend(states)
    step = max(1, len(others) // max(1, n - len(first)))
    return [*first, *others[::step]]


class Scene:
    """A recorded ingest, and a place where power was lost."""

    def __init__(self, base: Path, how: str) -> None:
        self.base, self.how = base, how
        self.operations, self.sentences = record(base, how)
        self.resumed: set[frozenset[tuple[str, bytes | None]]] = set()
        model = Model()
        for operation in self.operations:
            if operation.kind != "mark":
                model.apply(operation)
        self.finished = tree(base / "disk")
        assert model.after_power_loss(Choice(1, 1)) == self.finished, "an operation was not recorded"
        assert self.held() == len(self.sentences)

    def held(self) -> int | None:
        return held(self.base / "disk" / STORE, self.sentences, from_files=self.how == "ingest")

    def problem(self, state: State, *, resume: bool) -> str | None:
        """Say what is wrong with a state, also after ingesting again, unless that went well from the same tree."""
        path = self.base / "disk" / STORE
        shutil.rmtree(self.base / "disk")
        write_tree(self.base / "disk", state.tree)
        try:
            with serial():
                n = self.held()
                assert (-1 if n is None else n) >= (-1 if state.committed is None else state.committed), f"{n} are left"
                found = frozenset(state.tree.items())
                if resume and found not in self.resumed:
                    done = HOWS[self.how](self.base / "in", path)
                    assert tree_after(done, self.base / "disk") == self.finished
                    self.resumed.add(found)
        except Exception as error:
            return f"{state.committed} committed: {type(error).__name__} {str(error)[:300]}"
        return None


@pytest.fixture(scope="module", params=[*HOWS])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with quick_folder() as base:
        yield Scene(base, request.param)


@pytest.mark.parametrize("half", [0, 1])
def test_what_was_committed_survives(scene: Scene, long: bool, half: int) -> None:
    states = spread(scene.operations, 2000 if long else 200)[half::2]
    assert len(states) >= 100
    states = states if long or scene.how == "ingest" else states[::8]  # the commit is the same
    problems = [problem for state in states if (problem := scene.problem(state, resume=True))]
    assert not problems, "\n".join([f"{len(problems)} of {len(states)}:", *problems[:20]])


@pytest.mark.parametrize("unflushed", ["files", "folders", "both"])
def test_without_flushing_it_would_not(scene: Scene, long: bool, unflushed: str) -> None:
    """The states above prove nothing unless some are bad once a flush is left out."""
    if scene.how == "writer" and not long:
        pytest.skip("the flushes are those of an ingest; --long tests them")
    files: set[str] = set()
    for operation in scene.operations:
        if operation.kind in ("create", "truncate"):
            files.add(operation.path)
        elif operation.kind == "replace" and operation.path in files:
            files.add(operation.target)
    ignored = {"files": {True}, "folders": {False}, "both": {True, False}}[unflushed]
    operations = [
        operation
        for operation in scene.operations
        if operation.kind != "fsync" or (operation.path in files) not in ignored
    ]
    bad = 0
    states = spread(operations, 1000 if long else 100)
    for state in states:
        bad += scene.problem(state, resume=False) is not None
        if bad and not long:
            break
    print(f"\n{unflushed} not flushed: {bad} of {len(states)} bad")
    assert bad
