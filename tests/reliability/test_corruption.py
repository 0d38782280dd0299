"""Accidents to the files of a store: `verify` names the file, and reading gives the right values or an error."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

import featurestore
from featurestore import files
from featurestore.store import commit, layout
from tests.sentences import sentence_arrays, write_sentence

Cli = Callable[..., Result]
Values = dict[str, tuple[str, tuple[int, ...], bytes]]

DATA = ("embeddings", "hidden_states", "activations")
BY_SENTENCE = (
    *("sentence", "label", "has_label", "n_tokens", "n_nonfinite", "text", "source", "source_digest"),
    *(f"{name}_crc32" for name in DATA),
)
BY_TOKEN = ("fragment", "token_text", "is_special")
COORDS = (*BY_SENTENCE, *BY_TOKEN, "token", "layer", "average_l0", "feature")
KINDS = ("root", "metadata", *DATA, *COORDS)
LENGTHS = (2, 3, 1, 2, 3, 2)
"""Tokens of each sentence: a shard that is full and one that is half-full, and in each some padding."""

SWAPPABLE = (*DATA, *(name for name in BY_SENTENCE if name not in ("source", "has_label")), "fragment", "token_text")
"""Arrays of several files that differ and that a source determines; `source` is a name that may have changed."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, and chunks of coordinates, of four sentences; and no pause before a damaged file is read again."""
    _small_batches(monkeypatch)


def _small_batches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "ROWS", 4)
    patch.setattr(layout, "BATCH_ROWS", 4)
    patch.setattr(layout, "TOKENS", 2)
    patch.setattr(layout, "COORD_ROWS", 4)
    patch.setattr(time, "sleep", lambda _: None)


def write_source(folder: Path, indices: range = range(len(LENGTHS))) -> None:
    """Write sentences of which the second has a NaN and an infinity."""
    for index in indices:
        tokens = LENGTHS[index % len(LENGTHS)]
        changes = {"concept_strength_label": np.array(index)}
        if index == 1:
            changes["hidden_states"] = sentence_arrays(index, tokens=tokens)["hidden_states"]
            changes["hidden_states"].ravel()[:2] = np.nan, np.inf
        write_sentence(folder, index, tokens=tokens, changes=changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound store and its source, to copy."""
    base = tmp_path_factory.mktemp("made")
    write_source(base / "in")
    with pytest.MonkeyPatch.context() as patch:
        _small_batches(patch)
        featurestore.ingest(base / "in", base / "s.zarr")
    return base


@pytest.fixture
def sound(made: Path, tmp_path: Path) -> Path:
    """A sound store of the sentences in ``in`` beside it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "s.zarr"


def files_of(path: Path, kind: str) -> list[str]:
    """The files of a kind, by their names in the store."""
    found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if kind == "root":
        return ["zarr.json"]
    if kind == "metadata":
        return [file for file in found if file.endswith("/zarr.json")]
    return [file for file in found if file.startswith(f"{kind}/c.")]


def everything(path: Path) -> Values:
    """All values that `open_store` gives, as bytes or texts that compare exactly."""
    ds = featurestore.open_store(path).compute(scheduler="synchronous")
    values = {}
    for name, variable in ds.variables.items():
        array = variable.values
        data = array.tobytes() if array.dtype.kind in "if" else repr(array.tolist()).encode()
        values[str(name)] = (str(array.dtype), array.shape, data)
    return values


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    file.write_bytes(data)


def truncate(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.choice((0, len(data) - 1, rng.randrange(len(data))))])


def delete(file: Path, rng: random.Random) -> None:
    file.unlink()


Accident = Callable[[Path, random.Random], None]


def trials(path: Path, kind: str, accident: Accident, n: int) -> Iterator[tuple[str, random.Random]]:
    """Choose files of a kind, each as often as another, or once where one file meets the accident in one way only."""
    rng = random.Random(f"{kind} {accident.__name__}")
    found = files_of(path, kind)
    rng.shuffle(found)
    for trial in range(min(n, len(found)) if accident is delete else n):
        yield found[trial % len(found)], rng


@pytest.mark.parametrize("accident", [flip, truncate, delete])
@pytest.mark.parametrize("kind", KINDS)
def test_an_accident_to_any_file(
    sound: Path, cli: Cli, tmp_path: Path, long: bool, kind: str, accident: Accident
) -> None:
    right = everything(sound)
    for trial, (name, rng) in enumerate(trials(sound, kind, accident, 40 if long else 3)):
        before = (sound / name).read_bytes()
        accident(sound / name, rng)
        problems = featurestore.verify(sound)
        assert name in [problem.where for problem in problems], (name, problems)
        if trial == 0:
            result = cli("verify", sound)
            assert result.exit_code == 1
            for problem in problems:
                assert f"{problem.where}: {problem.what}" in result.output
            assert f"{sound}: {len(problems)} problems" in result.output
        with suppress(featurestore.StoreError):
            assert everything(sound) == right, name
        (sound / name).write_bytes(before)
    assert featurestore.verify(sound) == []


def rows(path: Path) -> list[dict[str, bytes]]:
    """What a store holds of each sentence by Zarr alone, without the checks of featurestore."""
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    held: list[dict[str, bytes]] = [{} for _ in LENGTHS]
    for name in (*DATA, *BY_SENTENCE, *BY_TOKEN):
        array = group[name]
        assert isinstance(array, zarr.Array)
        for row, value in zip(held, np.asarray(array[:]), strict=True):
            row[name] = value.tobytes() if name in DATA else repr(np.asarray(value).tolist()).encode()
    return held


@pytest.mark.parametrize("kind", SWAPPABLE)
def test_a_file_in_the_place_of_another(sound: Path, cli: Cli, tmp_path: Path, long: bool, kind: str) -> None:
    """The checksums are right, so only the source can tell; each sentence with a wrong value is named."""
    before, source = rows(sound), tmp_path / "in"
    sources = sorted(path.name for path in source.iterdir())
    rng = random.Random(kind)
    for trial in range(40 if long else 3):
        one, other = (sound / name for name in rng.sample(files_of(sound, kind), 2))
        kept = one.read_bytes(), other.read_bytes()
        one.write_bytes(kept[1])
        if rng.random() < 0.5:
            other.write_bytes(kept[0])
        concerned = {name for old, new, name in zip(before, rows(sound), sources, strict=True) if old != new}
        assert concerned
        problems = featurestore.verify(sound, source)
        for name in concerned:
            assert any(name in problem.where for problem in problems), (one, other, name, problems)
        if trial == 0:
            result = cli("verify", sound, "--source", source)
            assert result.exit_code == 1
            for problem in problems:
                assert f"{problem.where}: {problem.what}" in result.output
        one.write_bytes(kept[0])
        other.write_bytes(kept[1])
    assert featurestore.verify(sound, source) == []


@pytest.mark.parametrize("how", ["delete", "flip"])
@pytest.mark.parametrize("kind", [*DATA, *BY_TOKEN, *BY_SENTENCE])
def test_appending_never_makes_damage_look_sound(sound: Path, cli: Cli, tmp_path: Path, kind: str, how: str) -> None:
    """What an append continues is read with the same checks as anything else; the store stays as it is."""
    first_of_last = {file: (sound / file).read_bytes() for file in files_of(sound, kind)}
    damaged = max(first_of_last, key=lambda file: [int(part) for part in file.split(".")[1:2]])
    if how == "delete":
        (sound / damaged).unlink()
    else:
        flip(sound / damaged, random.Random(0))
    write_sentence(tmp_path / "in", len(LENGTHS), tokens=1)
    result = cli("ingest", tmp_path / "in", "--store", sound)
    assert result.exit_code == 1
    assert "verify" in result.output
    assert "Traceback" not in result.output
    (sound / damaged).write_bytes(first_of_last[damaged])
    assert featurestore.open_store(sound).sizes["sentence"] == len(LENGTHS)
    featurestore.ingest(tmp_path / "in", sound)
    assert featurestore.verify(sound, tmp_path / "in") == []


@pytest.mark.parametrize("name", ["embeddings/c.0", "label/c.1.2", "label/c", "fragment/c", "activations/c.x.0.0.0"])
def test_strange_files_are_in_nobodys_way(sound: Path, tmp_path: Path, name: str) -> None:
    (sound / name).write_text("mine")
    write_sentence(tmp_path / "in", len(LENGTHS), tokens=1)
    assert featurestore.ingest(tmp_path / "in", sound).added == 1
    assert (sound / name).read_text() == "mine"
    assert [problem.where for problem in featurestore.verify(sound)] == [name]


def test_a_problem_is_told_once(sound: Path) -> None:
    """However many chunks show it."""
    one, other = files_of(sound, "activations")[:2]
    kept = (sound / one).read_bytes()
    (sound / one).write_bytes((sound / other).read_bytes())
    (sound / other).write_bytes(kept)
    problems = featurestore.verify(sound)
    assert problems
    assert len(set(problems)) == len(problems)


@pytest.mark.parametrize("name", ["layer", "average_l0", "feature", "token"])
def test_labels_of_another_store(sound: Path, tmp_path: Path, name: str) -> None:
    """A file that holds other labels, with a right checksum, in the place of the store's own."""
    wrong = np.arange(50, 50 + {"layer": 3, "average_l0": 3, "feature": 10, "token": 3}[name])
    shutil.copytree(sound, tmp_path / "other.zarr")
    other = zarr.open_array(tmp_path / "other.zarr" / name, mode="r+")
    other[:] = wrong
    shutil.copy(tmp_path / "other.zarr" / name / "c.0", sound / name / "c.0")
    assert featurestore.verify(sound, tmp_path / "in")


def test_a_root_of_an_earlier_commit(sound: Path, tmp_path: Path) -> None:
    """The store is as it was then; what came later is named, and ingested again."""
    root, right = (sound / "zarr.json").read_bytes(), everything(sound)
    write_source(tmp_path / "in", range(6, 9))
    featurestore.ingest(tmp_path / "in", sound)
    later = everything(sound)
    (sound / "zarr.json").write_bytes(root)
    assert everything(sound) == right
    assert {problem.where for problem in featurestore.verify(sound)} >= {"sentence/zarr.json", "activations/c.2.0.0.0"}
    featurestore.ingest(tmp_path / "in", sound)
    assert featurestore.verify(sound, tmp_path / "in") == []
    assert everything(sound) == later


@pytest.mark.parametrize("masking", ["label/zarr.json", "label/c.0"])
def test_one_accident_does_not_hide_another(sound: Path, masking: str) -> None:
    """All data are read by the root metadata, whatever else is wrong."""
    damaged = "hidden_states/c.0.1.0.0"
    (sound / masking).unlink()
    flip(sound / damaged, random.Random(0))
    assert {problem.where for problem in featurestore.verify(sound)} >= {masking, damaged}


def test_the_next_ingest_restores_metadata(sound: Path, tmp_path: Path) -> None:
    """As `verify` says, also if there is nothing new to ingest."""
    (sound / "activations" / "zarr.json").unlink()
    (sound / "label" / "zarr.json").write_bytes(b"{}")
    problems = {problem.where: problem.what for problem in featurestore.verify(sound)}
    assert {*problems} == {"activations/zarr.json", "label/zarr.json"}
    assert all("the next ingest restores it" in what for what in problems.values())
    featurestore.ingest(tmp_path / "in", sound)
    assert featurestore.verify(sound) == []


def test_a_sound_store(sound: Path, cli: Cli, tmp_path: Path) -> None:
    assert featurestore.verify(sound) == []
    assert featurestore.verify(sound, tmp_path / "in") == []
    for options in ([], ["--source", tmp_path / "in"]):
        result = cli("verify", sound, *options)
        assert (result.exit_code, result.output) == (0, f"{sound}: sound\n")


def problems_of(sound: Path, source: Path) -> dict[str, str]:
    """What `verify` says of each file or sentence, where it says one thing."""
    problems = featurestore.verify(sound, source)
    assert len({problem.where for problem in problems}) == len(problems)
    return {problem.where: problem.what for problem in problems}


def test_a_changed_source_file(sound: Path, tmp_path: Path) -> None:
    write_sentence(tmp_path / "in", 2, tokens=LENGTHS[2], seed=1)
    problems = problems_of(sound, tmp_path / "in")
    assert {*problems} == {"sentence_000003.npz", "sentence 2 (sentence_000003.npz)"}
    assert "with other content" in problems["sentence_000003.npz"]


def test_a_sentence_without_a_file(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "sentence_000004.npz").unlink()
    problems = problems_of(sound, tmp_path / "in")
    assert {*problems} == {"sentence 3 (sentence_000004.npz)"}
    assert str(tmp_path / "in") in problems["sentence 3 (sentence_000004.npz)"]


def test_a_file_that_is_not_in_the_store(sound: Path, tmp_path: Path) -> None:
    write_sentence(tmp_path / "in", 11)
    problems = problems_of(sound, tmp_path / "in")
    assert {*problems} == {"sentence_000012.npz"}
    assert "not in the store" in problems["sentence_000012.npz"]


@pytest.mark.parametrize("where", ["data", "directory"])
def test_a_damaged_source_file(sound: Path, tmp_path: Path, where: str) -> None:
    path = tmp_path / "in" / "sentence_000001.npz"
    data = bytearray(path.read_bytes())
    # The data of the activations are named by a local header, which comes first, or there is no directory any more.
    data[data.index(b"activations.npy") + 60 if where == "data" else -22] ^= 0xFF
    path.write_bytes(data)
    problems = featurestore.verify(sound, tmp_path / "in")
    assert any(problem.where == path.name and "cannot be compared" in problem.what for problem in problems)


@pytest.mark.parametrize(("killed_at", "call"), [("flush", 1), ("flush", 2), ("_write_array_metadata", 1)])
def test_stale_files_are_named(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str, call: int
) -> None:
    """Killed with a batch aside, with its files in place, or with the root replaced: that is said, and no more."""
    held = featurestore.open_store(sound).sizes["sentence"]
    write_sentence(tmp_path / "in", 6, tokens=5)
    before = {path for path in sound.rglob("*") if path.is_file()}
    owner = commit.Writer if hasattr(commit.Writer, killed_at) else files

    original, calls = getattr(owner, killed_at), itertools.count(1)

    def kill(*arguments: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        append = commit.Writer.append

        def killed(*arguments: Any) -> None:
            patch.setattr(owner, killed_at, kill)
            append(*arguments)

        patch.setattr(commit.Writer, "append", killed)
        patch.setattr(commit.Writer, "discard", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            featurestore.ingest(tmp_path / "in", sound)
    committed = killed_at == "_write_array_metadata"
    assert featurestore.open_store(sound).sizes["sentence"] == held + committed
    problems = featurestore.verify(sound)
    named = {problem.where for problem in problems}
    stale = {path.relative_to(sound).as_posix() for path in sound.rglob("*") if path.is_file() and path not in before}
    if committed:
        assert named == {f"{name}/zarr.json" for name in (*DATA, *BY_SENTENCE, *BY_TOKEN, "token")}
    else:
        assert named == stale
        assert stale
    assert all("the next ingest" in problem.what for problem in problems)
    featurestore.ingest(tmp_path / "in", sound)
    assert featurestore.verify(sound, tmp_path / "in") == []


def test_no_store(tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(featurestore.StoreNotFoundError):
        featurestore.verify(tmp_path / "nothing.zarr")
    result = cli("verify", tmp_path / "nothing.zarr")
    assert result.exit_code == 1
    assert "no such store" in result.output


def test_no_source(sound: Path, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(featurestore.SourceError):
        featurestore.verify(sound, tmp_path / "nowhere")
    assert cli("verify", sound, "--source", tmp_path / "nowhere").exit_code == 1
