"""What a store holds, and where: several SAEs a layer, chunks, checksums, the version of the layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

import featurestore
from featurestore.store import layout
from tests.refusals import accepted, complaint, contents
from tests.sentences import sentence_arrays, write_folder, write_sentence
from tests.store.plain import DATA, SEVERAL, assert_zarr_holds

Cli = Callable[..., Result]


def test_hidden_states_of_several_saes_are_there_once(tmp_path: Path) -> None:
    """As the full run has them: each layer's hidden states beside each of its SAEs."""
    expected = write_folder(tmp_path / "in", 3, layers=[5, 0, 5, 2, 0], average_l0s=[9, 3, 2, 4, 8])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds["layer"].values.tolist() == [5, 0, 2]
    assert ds["sae_layer"].values.tolist() == [5, 0, 5, 2, 0]
    assert ds["average_l0"].values.tolist() == [9, 3, 2, 4, 8]
    assert ds["sae_layer"].dims == ds["average_l0"].dims == ("sae",)
    for arrays in expected:
        one = ds.sel(sentence=arrays["sentence_index"].item(), token=slice(-len(arrays["fragments"]), None))
        for position, layer in enumerate([5, 0, 5, 2, 0]):
            np.testing.assert_array_equal(one["hidden_states"].sel(layer=layer), arrays["hidden_states"][position])
        np.testing.assert_array_equal(one["activations"].transpose("sae", ...), arrays["activations"])
    assert featurestore.verify(tmp_path / "s.zarr", tmp_path / "in") == []


def test_repeated_hidden_states_that_differ_are_refused(cli: Cli, tmp_path: Path) -> None:
    """Also where they are equal as numbers, but not as bits."""
    arrays = sentence_arrays(1, **SEVERAL)
    hidden_states = arrays["hidden_states"].copy()
    hidden_states[1:, 0, 0] = [0.0, -0.0]
    write_sentence(tmp_path / "in", 0, **SEVERAL)
    path = write_sentence(tmp_path / "in", 1, changes={"hidden_states": hidden_states}, **SEVERAL)
    result = cli("ingest", tmp_path / "in")
    (line,) = complaint(result, str(path), "'hidden_states' differs between the SAEs of layer 5, at positions 1 and 2")
    assert line.startswith("Error: ")
    assert contents(Path()) == {}
    accepted(cli("ingest", tmp_path / "in", "--skip-bad"))
    assert [entry[0] for entry in featurestore.info("stores/in.zarr").skipped] == [path.name]


@pytest.mark.parametrize("sae_layers", [[1], [5, 0], [5, 5]])
def test_saes_on_some_layers(cli: Cli, tmp_path: Path, sae_layers: list[int]) -> None:
    expected = []
    for index in range(4):
        arrays = sentence_arrays(index, tokens=2 + index)
        own = {
            "sae_layers": np.array(sae_layers),
            "average_l0s": np.array([4, 7][: len(sae_layers)]),
            "activations": arrays["activations"][: len(sae_layers)],
        }
        write_sentence(tmp_path / "in", index, tokens=2 + index, changes=own)
        expected.append(arrays | own)
    accepted(cli("ingest", tmp_path / "in"))
    store = Path("stores/in.zarr")
    assert_zarr_holds(store, expected)
    ds = featurestore.open_store(store)
    assert ds["layer"].values.tolist() == [0, 1, 5]
    assert ds["sae_layer"].values.tolist() == sae_layers
    assert featurestore.verify(store, tmp_path / "in") == []
    target = ["--target-layer", sae_layers[0], "--target-feature", 2, "--average-l0", 4, "--input-layer", 0]
    accepted(cli("build", "--strategy", "hidden-to-feature", "--input", store, *target, "--output", "x.npz"))
    final = [arrays["activations"][0, -1, 2] for arrays in expected]
    assert featurestore.load_dataset("x.npz").y.tolist() == final
    lacking = next(layer for layer in (0, 1) if layer not in sae_layers)
    target = ["--target-layer", lacking, "--target-feature", 2]
    (line,) = complaint(cli("build", "--strategy", "hidden-to-feature", "--input", store, *target))
    assert f"no SAE of layer {lacking}: choose from" in line


def test_an_sae_twice_is_refused(tmp_path: Path) -> None:
    own = {"sae_layers": np.array([1, 5, 5]), "average_l0s": np.array([3, 4, 4])}
    write_sentence(tmp_path / "in", 0, changes=own)
    with pytest.raises(featurestore.SourceError, match="'sae_layers' names a layer twice with the same average_l0"):
        featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")


def test_fractional_average_l0s(cli: Cli, tmp_path: Path) -> None:
    """They stay numbers all the way: store, option, recipe, file of a ranking, dataset."""
    expected = write_folder(tmp_path / "in", 6, **SEVERAL)
    accepted(cli("ingest", tmp_path / "in"))
    ds = featurestore.open_store("stores/in.zarr")
    assert ds["average_l0"].dtype == np.float64
    assert ds["average_l0"].values.tolist() == [3, 2.5, 9]
    assert " 2.5 " in accepted(cli("info", "stores/in.zarr"))
    target = ["--target-layer", 5, "--target-feature", 3]
    build = ["build", "--strategy", "hidden-to-feature", "--input", "stores/in.zarr", *target]
    complaint(cli(*build), "layer 5 has 2 SAEs: choose --average-l0 from [2.5, 9.0]")
    complaint(cli(*build, "--average-l0", 2), "no SAE of average L0 2", "[2.5, 9.0]")
    accepted(cli(*build, "--average-l0", 2.5, "--output", "one.npz"))
    dataset = featurestore.load_dataset("one.npz")
    assert dataset.metadata["average_l0"] == 2.5
    assert dataset.y.tolist() == [arrays["activations"][1, -1, 3] for arrays in expected]
    dataset.save("again.npz")
    assert Path("one.npz").read_bytes() == Path("again.npz").read_bytes()

    Path("ranked.csv").write_text("layer,feature_id,average_l0\n5,3,2.5\n5,3,9\n")
    for targets in ([[5, 3, 2.5], [5, 3, 9]], {"ranked": "ranked.csv"}):
        entry = {"strategy": "hidden-to-feature", "targets": targets}
        recipe = {"stores": "stores/in.zarr", "problems": "keep", "datasets": [entry]}
        jobs = featurestore.sweep(recipe).datasets
        assert [featurestore.load_dataset(job.output).metadata["average_l0"] for job in jobs] == [2.5, 9]
        assert Path(jobs[0].output).read_bytes() == Path("one.npz").read_bytes()


def test_whole_average_l0s_are_integers(tmp_path: Path) -> None:
    """Also where the file has them as floats."""
    write_sentence(tmp_path / "in", 0, average_l0s=[3.0, 2.0, 9.0])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert featurestore.open_store(tmp_path / "s.zarr")["average_l0"].dtype == np.int64


@pytest.mark.parametrize("options", [{}, {"layers": [2], "hidden": 1, "features": 1}, {"dtype": "float32"}])
def test_plain_zarr_reads_what_is_in_the_files(tmp_path: Path, options: dict[str, Any]) -> None:
    """A half-full shard is continued by sentences that are longer, also than a shard has tokens, and shorter."""
    expected = write_folder(tmp_path / "in", 5, **options)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_zarr_holds(tmp_path / "s.zarr", expected)
    for index, tokens in ((5, 33), (6, 1), (7, 70)):
        write_sentence(tmp_path / "in", index, tokens=tokens, **options)
        expected.append(sentence_arrays(index, tokens=tokens, **options))
        featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
        assert_zarr_holds(tmp_path / "s.zarr", expected)
    for index in range(8, 40):
        write_sentence(tmp_path / "in", index, tokens=1 + index % 3, **options)
        expected.append(sentence_arrays(index, tokens=1 + index % 3, **options))
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_zarr_holds(tmp_path / "s.zarr", expected)
    assert featurestore.verify(tmp_path / "s.zarr", tmp_path / "in") == []
    files = {file.name for file in (tmp_path / "s.zarr" / "embeddings").glob("c.*")}
    assert files == {"c.0.0.0", "c.0.1.0", "c.0.2.0", "c.1.0.0"}  # none of padding alone


def test_shards_and_chunks_are_as_documented(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 1)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    group: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert (group["embeddings"].shards, group["embeddings"].chunks) == ((32, 32, 6), (32, 1, 6))
    assert (group["hidden_states"].shards, group["hidden_states"].chunks) == ((32, 32, 3, 6), (32, 1, 1, 6))
    assert (group["activations"].shards, group["activations"].chunks) == ((32, 32, 3, 10), (32, 1, 1, 10))


def four_shards(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Make a store of six sentences of four tokens, in shards of two sentences and two tokens."""
    monkeypatch.setattr(layout, "ROWS", 2)
    monkeypatch.setattr(layout, "BATCH_ROWS", 2)
    monkeypatch.setattr(layout, "TOKENS", 2)
    for index in range(6):
        write_sentence(folder, index, seed=seed)
    featurestore.ingest(folder, store)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("first", "second"), [("0.0", "0.1"), ("0.0", "1.0"), ("1.0", "2.1")])
def test_verify_finds_shards_that_are_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str, second: str
) -> None:
    """Each is sound by itself: only the sentences' own checksums tell."""
    store = tmp_path / "s.zarr"
    four_shards(tmp_path / "in", store, monkeypatch, seed=0)
    end = ".0" * (2 if name != "embeddings" else 1)
    one, other = (store / name / f"c.{place}{end}" for place in (first, second))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    rows = {2 * int(place[0]) + row for place in (first, second) for row in (0, 1)}
    problems = featurestore.verify(store)
    assert {problem.where for problem in problems} == {f"sentence {row} (sentence_{row + 1:06d}.npz)" for row in rows}
    assert all(f"has other {name} than were ingested" in problem.what for problem in problems)


@pytest.mark.parametrize("name", DATA)
def test_verify_finds_a_shard_of_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for seed in (0, 1):
        four_shards(tmp_path / f"in{seed}", tmp_path / f"s{seed}.zarr", monkeypatch, seed)
    (file,) = (tmp_path / "s1.zarr" / name).glob("c.2.1.*")
    shutil.copy(file, tmp_path / "s0.zarr" / name)
    problems = featurestore.verify(tmp_path / "s0.zarr")
    assert [problem.where.split()[1] for problem in problems] == ["4", "5"]
    assert all(file.name in problem.what for problem in problems)
    assert featurestore.verify(tmp_path / "s1.zarr") == []


def test_a_store_of_layout_1_is_refused_with_the_remedy(cli: Cli, folder: Path) -> None:
    accepted(cli("ingest", folder))
    file = Path("stores/trait.zarr/zarr.json")
    root = json.loads(file.read_text())
    del root["attributes"]["featurestore_checksum"]
    root["attributes"]["featurestore_schema"] = 1
    digest = hashlib.sha256(json.dumps(root, indent=2).encode()).hexdigest()
    root["attributes"]["featurestore_checksum"] = digest
    file.write_text(json.dumps(root, indent=2))
    before = contents(Path("stores/trait.zarr"))
    build = ["build", "--strategy", "hidden-to-concept", "--layer", 1, "--input"]
    store = "stores/trait.zarr"
    for line in (["ingest", folder], ["info", store], ["verify", store], [*build, store], [*build, folder]):
        (message, *more) = complaint(cli(*line), f"{store}: has schema version 1", "reads 2", "into a new store")
        assert "ingest again, into a new store" in message
        assert len(more) == (line[0] == "verify")  # the number of problems
    assert contents(Path("stores/trait.zarr")) == before
