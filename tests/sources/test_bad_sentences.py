"""Bad sentence files: each is named in one line, and nothing is written."""

from __future__ import annotations

import io
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import npz
from featurestore.sources import contents as small
from featurestore.sources import sentences
from tests.refusals import (
    STORE,
    Change,
    Cli,
    accepted,
    build,
    complaint,
    contents,
    loaded,
    names_bad,
    skipped,
)
from tests.sentences import sentence_arrays, write_folder, write_sentence
from tests.sources.spoiling import BAD, DAMAGED, MEMBERS, Evil, a_pipe, flipped

BAD_NAME = "sentence_000003.npz"

bad_files = pytest.mark.parametrize(("spoil", "words"), (BAD | DAMAGED).values(), ids=(BAD | DAMAGED).keys())


@bad_files
def test_bad_file_is_refused(cli: Cli, tmp_path: Path, spoil: Change, words: Sequence[str]) -> None:
    write_folder(tmp_path / "trait", 4)
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, *words)
    assert contents(Path()) == {}


@bad_files
def test_bad_file_leaves_store_unchanged(
    cli: Cli, begun: Path, tmp_path: Path, spoil: Change, words: Sequence[str]
) -> None:
    shutil.copytree(begun / "trait", tmp_path / "trait")
    shutil.copytree(begun / "stores", "stores")
    before = contents(Path())
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, *words)
    assert contents(Path()) == before


@pytest.mark.parametrize(
    "how",
    ["no zip", "a folder", "a pipe", "a device", "no layers", "pickled sentence", "other H", "index twice", *DAMAGED],
)
def test_bad_file_is_skipped_until_repaired(cli: Cli, tmp_path: Path, how: str) -> None:
    spoil, words = (BAD | DAMAGED)[how]
    write_folder(tmp_path / "trait", 4)
    path = write_sentence(tmp_path / "trait", 2)
    spoil(path)
    output = accepted(cli("ingest", tmp_path / "trait", "--skip-bad"))
    assert f"left out {path}: " in output
    assert list(skipped()) == [BAD_NAME]
    assert all(word in skipped()[BAD_NAME] for word in words)
    assert loaded().sentence.values.tolist() == [0, 1, 3]

    accepted(cli("ingest", tmp_path / "trait"))  # a recorded file is no longer refused
    assert list(skipped()) == [BAD_NAME]
    assert loaded().sentence.values.tolist() == [0, 1, 3]

    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_sentence(tmp_path / "trait", 2)
    accepted(cli("ingest", tmp_path / "trait"))
    assert skipped() == {}
    ds = loaded()
    assert ds.sentence.values.tolist() == [0, 1, 3, 2]
    expected = sentence_arrays(2)["hidden_states"].swapaxes(0, 1)
    np.testing.assert_array_equal(ds.hidden_states.sel(sentence=2).isel(token=slice(-4, None)), expected)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("name", ["sentence", "hidden_states", "unknown"])
def test_nothing_is_unpickled(cli: Cli, tmp_path: Path, name: str) -> None:
    shape = sentence_arrays(0)[name].shape if name in MEMBERS else ()
    write_sentence(tmp_path / "trait", 0, changes={name: np.full(shape, Evil(), dtype=object)})
    for command in (["ingest"], ["ingest", "--skip-bad"], ["build", "--strategy", "hidden-to-concept", "--layer", 1]):
        folder = ["--input", tmp_path / "trait"] if command[0] == "build" else [tmp_path / "trait"]
        cli(*command, *folder)
    assert not Path("unpickled").exists()


def test_several_bad_files_are_all_named(cli: Cli, folder: Path) -> None:
    broken = {
        write_sentence(folder, 1, drop=["layers"]): "'layers'",
        write_sentence(folder, 2, hidden=7): "hidden 7 instead of 6",
        write_sentence(folder, 3, changes={"sentence_index": np.array(0)}): "sentence_000001.npz",
    }
    result = cli("ingest", folder)
    for path, word in broken.items():
        names_bad(result, path, word)
    assert len(complaint(result, "3 of 5 files", "nothing was written", "--skip-bad")) == 4
    assert contents(Path()) == {}


def test_only_bad_files(cli: Cli, tmp_path: Path) -> None:
    path = write_sentence(tmp_path / "trait", 0, drop=["layers"])
    for options in ([], ["--skip-bad"]):
        names_bad(cli("ingest", tmp_path / "trait", *options), path, "'layers'")
        assert contents(Path()) == {}


@pytest.mark.parametrize("compressed", [False, True])
def test_only_damaged_files(cli: Cli, tmp_path: Path, compressed: bool) -> None:
    path = write_sentence(tmp_path / "trait", 2)
    flipped("hidden_states", compressed)(path)
    for options in ([], ["--skip-bad"]):
        names_bad(cli("ingest", tmp_path / "trait", *options), path, "'hidden_states'", "damaged")
        assert contents(Path()) == {}


def test_new_bad_file_beside_a_recorded_one(cli: Cli, folder: Path) -> None:
    recorded = write_sentence(folder, 1, drop=["layers"])
    accepted(cli("ingest", folder, "--skip-bad"))
    before = contents(Path())
    path = write_sentence(folder, 5, drop=["fragments"])
    names_bad(cli("ingest", folder), path, "'fragments'")
    assert contents(Path()) == before
    accepted(cli("ingest", folder, "--skip-bad"))
    assert list(skipped()) == [recorded.name, path.name]


def test_changed_file_is_refused(cli: Cli, folder: Path) -> None:
    accepted(cli("ingest", folder))
    before = contents(Path())
    path = write_sentence(folder, 2, seed=1)
    names_bad(cli("ingest", folder), path, "sentence_index 2", "other content", "--store")
    assert contents(Path()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concept_strength_label": 3}, ["label (3 instead of 2)", "alone differs", "corrected", "--store"]),
        ({"sentence": "another"}, ["text", "alone differs"]),
        ({"concept_strength_label": 0, "sentence": ""}, ["label (0 instead of 2) and text", "alone differs"]),
        ({"concept_strength_label": 3, "embeddings": np.zeros((4, 6), "f2")}, ["with other content"]),
        ({"token_positions": np.zeros(4)}, ["with other content"]),
    ],
)
def test_changed_label_is_named(cli: Cli, tmp_path: Path, changes: dict[str, Any], words: Sequence[str]) -> None:
    write_folder(tmp_path / "trait", 2)
    write_sentence(tmp_path / "trait", 2)
    accepted(cli("ingest", tmp_path / "trait"))
    before = contents(Path())
    path = write_sentence(tmp_path / "trait", 2, changes={name: np.array(value) for name, value in changes.items()})
    line = names_bad(cli("ingest", tmp_path / "trait"), path, "sentence_index 2", *words)
    assert contents(Path()) == before
    assert ("--labels-from" in line) == (changes.keys() == {"concept_strength_label"})


def test_all_labels_changed(cli: Cli, tmp_path: Path) -> None:
    """Nothing of the folder is in its store any more, but it is no other folder of that name."""
    write_folder(tmp_path / "trait", 3)
    accepted(cli("ingest", tmp_path / "trait"))
    for index in range(3):
        changes = {"concept_strength_label": np.array(7 + index)}
        path = write_sentence(tmp_path / "trait", index, tokens=2 + (index * 5) % 6, changes=changes)
        names_bad(cli("ingest", tmp_path / "trait"), path, f"label ({7 + index} instead of {index})", "alone differs")


def test_special_files_elsewhere(cli: Cli, folder: Path) -> None:
    """A pipe among the sources to verify, or in the place of a dataset, is named and not opened either."""
    accepted(cli("ingest", folder))
    a_pipe(folder / "sentence_000002.npz")
    complaint(cli("verify", STORE, "--source", folder), "sentence_000002.npz", "found a pipe")
    os.mkfifo("other.npz")
    complaint(build(cli, STORE, "--stats-from", "other.npz"), "other.npz", "found a pipe")


def test_npy_3(cli: Cli, tmp_path: Path) -> None:
    """The newest version of the npy format, which numpy itself writes for names of fields only."""
    path = write_sentence(tmp_path / "trait", 0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sentence_arrays(0).items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(3, 0))
            archive.writestr(f"{name}.npy", stream.getvalue())
    accepted(cli("ingest", tmp_path / "trait"))
    np.testing.assert_array_equal(loaded().hidden_states[0], sentence_arrays(0)["hidden_states"].swapaxes(0, 1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<U", ">U"])
def test_fragments_of_a_long_document(tmp_path: Path, save: Callable[..., None], dtype: str) -> None:
    """The array is larger than other small arrays may be; its padding is not kept in memory."""
    fragments = np.array(["ä" * 3 * n for n in range(1, 2501)]).astype(dtype)
    assert fragments.nbytes > small.MAX_SMALL_BYTES
    save(tmp_path / "a.npz", fragments=fragments)
    tracemalloc.start()
    with npz.Archive(tmp_path / "a.npz") as archive:
        found = archive.texts("fragments", small.MAX_FRAGMENTS_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == fragments.tolist()
    assert peak < 1.5 * sum(len(text) + 80 for text in found)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_limit_for_fragments(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    path = write_sentence(tmp_path / "trait", 0, tokens=50)
    if not compressed:
        np.savez(path, **sentence_arrays(0, tokens=50))  # type: ignore[arg-type]
    assert sentence_arrays(0, tokens=50)["fragments"].nbytes > 10_000
    with monkeypatch.context() as patch:
        patch.setattr(sentences, "MAX_FRAGMENTS_BYTES", 10_000)
        names_bad(cli("ingest", tmp_path / "trait"), path, "'fragments'", "limit of 10,000")
    flipped("fragments", compressed=True)(path)
    names_bad(cli("ingest", tmp_path / "trait"), path, "'fragments'", "damaged")


def test_fragments_after_the_final_token_are_left_out(cli: Cli, tmp_path: Path) -> None:
    path = write_sentence(tmp_path / "trait", 0, tokens=5, changes={"is_final_token": np.arange(5) == 2})
    output = accepted(cli("ingest", tmp_path / "trait"))
    (line,) = [line for line in output.splitlines() if line.startswith("Warning: ")]
    assert path.name in line
    assert "fragments after the final token" in line
    arrays, ds = sentence_arrays(0, tokens=5), loaded().isel(sentence=0)
    assert ds.sizes["token"] == int(ds.n_tokens) == 3
    assert ds.fragment.values.tolist() == arrays["fragments"][:3].tolist()
    np.testing.assert_array_equal(ds.embeddings, arrays["embeddings"][:3])
    np.testing.assert_array_equal(ds.hidden_states, arrays["hidden_states"][:, :3].swapaxes(0, 1))
    np.testing.assert_array_equal(ds.activations, arrays["activations"][:, :3].swapaxes(0, 1))
