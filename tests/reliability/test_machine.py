"""Any sequence of ingests, interruptions, kills and accidents, against a plain model of what a store is to hold."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import featurestore
from featurestore import files
from featurestore.sources import sentences
from featurestore.store import batch, commit, layout
from tests.sentences import sentence_arrays, write_sentence

Arrays = dict[str, np.ndarray[Any, Any]]

FOLDERS = ("first", "second")
STEPS: dict[str, tuple[object, str, int]] = {
    "read": (sentences, "read", 8),
    "scan": (sentences, "scan", 8),
    "coordinate": (batch.Batch, "_write_coord", 16),
    "shard": (batch.Batch, "_write_shard", 8),
    "batch": (batch.Batch, "write", 2),
    "flush": (files, "flush", 6),
    "sync": (files, "sync", 40),
    "move": (Path, "replace", 40),
    "commit": (commit.Writer, "_commit", 2),
    "replace": (files, "replace", 18),
    "metadata": (commit.Writer, "_write_array_metadata", 3),
    "clean": (commit.Writer, "_clean", 1),
    "finish": (commit.Writer, "finish", 1),
}
"""Where an ingest is interrupted, and at the how manieth call at most."""


class Interruption:
    """Raise once, before or after the n-th call of a function."""

    def __init__(self, error: type[BaseException], n: int, after: bool) -> None:
        self.error, self.left, self.after = error, n, after

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, interrupted."""

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if self.error is KeyboardInterrupt and threading.current_thread() is not threading.main_thread():
                return function(*arguments, **options)  # Python interrupts the main thread only
            self.left -= 1
            due = self.left == 0
            if due and not self.after:
                raise self.error("interrupted")
            result = function(*arguments, **options)
            if due:
                raise self.error("interrupted")
            return result

        return interrupted


class Ingests(RuleBasedStateMachine):
    """A store, two source folders, and the model: what was asked of the store, and how much of it is committed.

    A rule that does not apply does nothing. As a precondition that would decide what Hypothesis draws next, and how
    much an interrupted ingest has committed may depend on its threads, which Hypothesis calls flaky.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.store = self.base / "s.zarr"
        self.files: dict[str, dict[int, Arrays]] = {folder: {} for folder in FOLDERS}
        self.committed: dict[int, Arrays] = {}
        self.kept: list[tuple[xr.Dataset, dict[int, Arrays]]] = []
        self.tidy = self.intact = True
        self.next = 0

    def teardown(self) -> None:
        """Whatever happened, ingesting again completes the store."""
        try:
            if not self.intact:
                return  # the step that failed says more
            for folder in FOLDERS:
                if self.files[folder]:
                    self.ingest(folder)
            for folder in FOLDERS:
                if self.files[folder]:
                    others = {self._shown(index) for index in self.committed if index not in self.files[folder]}
                    assert {p.where for p in featurestore.verify(self.store, self.base / folder)} == others
            self.reread()
        finally:
            shutil.rmtree(self.base)

    def _shown(self, index: int) -> str:
        return f"sentence {index} (sentence_{index + 1:06d}.npz)"

    def _add(self, folder: str, tokens: int) -> None:
        write_sentence(self.base / folder, self.next, tokens=tokens)
        self.files[folder][self.next] = sentence_arrays(self.next, tokens=tokens)
        self.next += 1

    def _pending(self, folder: str) -> dict[int, Arrays]:
        return {index: arrays for index, arrays in self.files[folder].items() if index not in self.committed}

    def _check(self) -> list[str]:
        """The store holds what is committed; return the files that the next ingest will remove or restore."""
        if not self.store.exists():
            assert not self.committed
            return []
        compare(featurestore.open_store(self.store), self.committed)
        problems = featurestore.verify(self.store)
        assert all("the next ingest" in problem.what for problem in problems), problems
        return [problem.where for problem in problems]

    @initialize(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6))
    def begin(self, lengths: list[int]) -> None:
        for tokens in lengths:
            self._add(FOLDERS[0], tokens)

    @rule(folder=st.sampled_from(FOLDERS), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5))
    def add_sentences(self, folder: str, lengths: list[int]) -> None:
        for tokens in lengths:
            self._add(folder, tokens)

    @rule(folder=st.sampled_from(FOLDERS), more=st.integers(1, 2))
    def add_one_longer_than_all(self, folder: str, more: int) -> None:
        longest = max(len(arrays["fragments"]) for files in self.files.values() for arrays in files.values())
        if longest < 9:
            self._add(folder, longest + more)

    @rule(folder=st.sampled_from(FOLDERS))
    def ingest(self, folder: str) -> None:
        if not self.files[folder]:
            return
        pending = self._pending(folder)
        self.intact = False
        done = featurestore.ingest(self.base / folder, self.store)
        assert (done.added, done.present) == (len(pending), len(self.files[folder]) - len(pending))
        self.committed |= pending
        left = self._check()
        assert not (pending and left)
        self.tidy, self.intact = not left, True

    @rule(
        folder=st.sampled_from(FOLDERS),
        step=st.sampled_from(list(STEPS)).flatmap(
            lambda name: st.tuples(st.just(name), st.integers(1, STEPS[name][2]))
        ),
        after=st.booleans(),
        error=st.sampled_from([KeyboardInterrupt, OSError, MemoryError]),
        killed=st.booleans(),
    )
    def ingest_interrupted(
        self, folder: str, step: tuple[str, int], after: bool, error: type[BaseException], killed: bool
    ) -> None:
        """Interrupt an ingest, which cleans up after itself; or kill it, and nothing is cleaned."""
        pending = self._pending(folder)
        if not pending:
            return
        self.intact = False
        owner, name, _ = STEPS[step[0]]
        interruption = Interruption(error, step[1], after)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, interruption.wrap(getattr(owner, name)))
            if killed:
                patch.setattr(commit.Writer, "discard", lambda _: None)
            try:
                featurestore.ingest(self.base / folder, self.store)
            except error:
                assert interruption.left <= 0
        held = featurestore.open_store(self.store).sizes["sentence"] if self.store.exists() else 0
        assert held >= len(self.committed)
        self.committed |= dict([*pending.items()][: held - len(self.committed)])
        assert held == len(self.committed)
        left = self._check()
        if self.tidy and not killed:  # at most, plain Zarr readers do not see the last batch yet
            assert all(name.endswith("/zarr.json") for name in left), left
        self.tidy, self.intact = not left, True

    @rule()
    def keep_open(self) -> None:
        if self.store.exists():
            self.kept = [*self.kept, (featurestore.open_store(self.store), dict(self.committed))][-3:]

    @rule()
    def reread(self) -> None:
        """What was opened earlier keeps showing what was committed then."""
        for ds, expected in self.kept:
            compare(ds, expected)

    @rule(seed=st.integers(0, 999), how=st.sampled_from(["flip", "truncate", "delete"]))
    def accident(self, seed: int, how: str) -> None:
        """Something happens to a file; it is detected; and the file is restored."""
        if not (self.committed and self.tidy):
            return
        self.intact = False
        rng = random.Random(seed)
        file = rng.choice(sorted(file for file in self.store.rglob("*") if file.is_file()))
        before = file.read_bytes()
        if how == "flip":
            damaged = bytearray(before)
            damaged[rng.randrange(len(before))] ^= rng.randrange(1, 256)
            file.write_bytes(damaged)
        elif how == "truncate":
            file.write_bytes(before[: rng.randrange(len(before))])
        else:
            file.unlink()
        name = file.relative_to(self.store).as_posix()
        assert name in {problem.where for problem in featurestore.verify(self.store)}
        file.write_bytes(before)
        self.intact = True


def compare(lazy: xr.Dataset, expected: dict[int, Arrays]) -> None:
    """Compare a whole dataset with the arrays of its sentences, by bytes."""
    ds = lazy.compute(scheduler="synchronous")
    assert ds["sentence"].values.tolist() == [*expected]
    longest = ds.sizes["token"]
    assert longest == max((len(arrays["fragments"]) for arrays in expected.values()), default=0)
    for row, arrays in enumerate(expected.values()):
        tokens = len(arrays["fragments"])
        first = longest - tokens
        for name in ("embeddings", "hidden_states", "activations"):
            values = ds[name].values[row]
            source = arrays[name] if name == "embeddings" else arrays[name].swapaxes(0, 1)
            assert values[first:].tobytes() == source.tobytes(), (row, name)
            assert np.isnan(values[:first]).all(), (row, name)
        assert ds["fragment"].values[row].tolist() == [""] * first + arrays["fragments"].tolist()
        assert ds["text"].values[row] == arrays["sentence"]
        assert ds["label"].values[row] == arrays["concept_strength_label"]
        assert ds["n_tokens"].values[row] == tokens


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("commits", [1, 2, 3])
def test_an_error_just_after_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int, killed: bool
) -> None:
    """The root is replaced, and the ingest does not live to know it: what is committed stays, whole."""
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)
    for index in range(6):
        write_sentence(tmp_path / "in", index, tokens=1 + index % 3)
    expected = {index: sentence_arrays(index, tokens=1 + index % 3) for index in range(6)}
    replace, left = files.replace, commits

    def replaced(path: Path, data: bytes, **options: bool) -> None:
        nonlocal left
        replace(path, data, **options)
        left -= path == tmp_path / "s.zarr" / "zarr.json"
        if not left:
            raise OSError("the folder cannot be flushed")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", replaced)
        if killed:
            patch.setattr(commit.Writer, "discard", lambda _: None)
        with pytest.raises(OSError, match="cannot be flushed"):
            featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    held = (4, 6, 6)[commits - 1]
    compare(featurestore.open_store(tmp_path / "s.zarr"), dict([*expected.items()][:held]))
    assert featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr").added == 6 - held
    assert featurestore.verify(tmp_path / "s.zarr", tmp_path / "in") == []
    compare(featurestore.open_store(tmp_path / "s.zarr"), expected)


def test_any_sequence(long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)  # the tests of power loss are about that
    run_state_machine_as_test(
        Ingests,
        settings=settings(
            max_examples=100 if long else 10,
            stateful_step_count=50 if long else 30,
            deadline=None,
            derandomize=not long,
            suppress_health_check=list(HealthCheck),
        ),
    )
