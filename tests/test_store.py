"""What is ingested comes back bit for bit, whatever the lengths, sizes, dtypes and batches."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import SAMPLE, sentence_arrays, write_folder, write_sentence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore import commit, ingestion, sentences, store
from featurestore.ingestion import find_store
from featurestore.schema import Sentence, SentenceFile


def assert_holds(path: Path, expected: list[dict[str, np.ndarray[Any, Any]]]) -> None:
    """Compare a whole store with the arrays of its sentences, by bytes, and padding with NaN."""
    ds = featurestore.open_store(path).compute()
    longest = max(len(arrays["fragments"]) for arrays in expected)
    assert ds.sizes["sentence"] == len(expected)
    assert ds["token"].values.tolist() == list(range(-longest, 0))
    for row, arrays in enumerate(expected):
        tokens = len(arrays["fragments"])
        sentence = ds.isel(sentence=row)
        present, padding = sentence.isel(token=slice(-tokens, None)), sentence.isel(token=slice(longest - tokens))
        for name in ("embeddings", "hidden_states", "activations"):
            source = arrays[name] if name == "embeddings" else arrays[name].swapaxes(0, 1)
            assert present[name].dtype == source.dtype
            assert present[name].values.tobytes() == np.ascontiguousarray(source).tobytes(), (row, name)
            assert np.isnan(padding[name].values).all()
        assert present["fragment"].values.tolist() == arrays["fragments"].tolist()
        assert set(padding["fragment"].values.tolist()) <= {""}
        assert sentence["text"].item() == arrays["sentence"].item()
        assert sentence["label"].item() == arrays["concept_strength_label"].item()
        assert sentence["sentence"].item() == arrays["sentence_index"].item()
        assert sentence["n_tokens"].item() == tokens
        assert sentence["source"].item() == f"sentence_{arrays['sentence_index'] + 1:06d}.npz"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Shards of four sentences, so that batch edges are near."""
    monkeypatch.setattr(store, "MAX_ROWS", 4)
    return 4


def tree(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_sample_comes_back_bit_for_bit(tmp_path: Path) -> None:
    featurestore.ingest(SAMPLE, tmp_path / "s.zarr")
    expected = []
    for path in sorted(SAMPLE.glob("*.npz")):
        with np.load(path) as arrays:
            expected.append(dict(arrays))
    assert_holds(tmp_path / "s.zarr", expected)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_batch_edges(tmp_path: Path, small_batches: int, n: int) -> None:
    expected = write_folder(tmp_path / "in", n)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected)


def test_default_batches_hold_64_sentences(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "in", 65)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected)
    assert sorted(path.name for path in (tmp_path / "s.zarr" / "hidden_states" / "c").iterdir()) == ["0", "1"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=11),
    cuts=st.sets(st.integers(1, 10)),
    dtype=st.sampled_from(["float16", "float32", ">f4"]),
    seed=st.integers(0, 99),
)
def test_any_lengths_in_any_portions(
    tmp_path_factory: pytest.TempPathFactory,
    small_batches: int,
    lengths: list[int],
    cuts: set[int],
    dtype: str,
    seed: int,
) -> None:
    """Ragged sentences, appended in portions that cross and split batches, also longer ones later."""
    base = tmp_path_factory.mktemp("portions")
    expected = []
    bounds = [0, *sorted(cut for cut in cuts if cut < len(lengths)), len(lengths)]
    for start, stop in itertools.pairwise(bounds):
        for index in range(start, stop):
            write_sentence(base / "in", index, tokens=lengths[index], dtype=dtype, seed=seed)
            arrays = sentence_arrays(index, tokens=lengths[index], dtype=dtype, seed=seed)
            for name in ("embeddings", "hidden_states"):
                arrays[name] = arrays[name].astype(arrays[name].dtype.newbyteorder("="))
            expected.append(arrays)
        done = featurestore.ingest(base / "in", base / "s.zarr")
        assert (done.added, done.present) == (stop - start, start)
        assert_holds(base / "s.zarr", expected)
    featurestore.ingest(base / "in", base / "at_once.zarr")
    assert tree(base / "s.zarr") == tree(base / "at_once.zarr")


def test_awkward_values_survive(tmp_path: Path) -> None:
    """Negative zero and NaN payloads are bits like any other; Fortran order is an accident of the writer."""
    arrays = sentence_arrays(0)
    activations = arrays["activations"].copy()
    activations[0, 0, :3] = np.array([-0.0, np.nan, np.inf], np.float32)
    activations.view(np.uint32)[1, 1, 0] = 0x7FC12345
    changes = {"activations": activations, "hidden_states": np.asfortranarray(arrays["hidden_states"])}
    write_sentence(tmp_path / "in", 0, changes=changes)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", [arrays | changes])


def test_shards_split_layers_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that do not divide: 7 layers in shards of 2, 13 features in slices of 4, batches cut by their bytes."""
    monkeypatch.setattr(store, "_SHARD_BYTES", 2 * 4 * 13 * 4 + 1)
    monkeypatch.setattr(store, "_CHUNK_BYTES", 4 * 4 * 4)
    monkeypatch.setattr(store, "MAX_ROWS", 4)
    monkeypatch.setattr(ingestion, "BATCH_BYTES", 1000)  # less than a sentence
    expected = write_folder(tmp_path / "in", 9, layers=range(7), features=13)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    root = store.read_root(tmp_path / "s.zarr")
    assert store.chunk_shape(root, "activations") == (4, 1, 2, 16)
    assert_holds(tmp_path / "s.zarr", expected)


def test_several_saes_of_a_layer(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "in", 3, layers=[0, 5, 5], average_l0s=[3, 2, 9])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds["layer"].values.tolist() == [0, 5, 5]
    assert ds["average_l0"].values.tolist() == [3, 2, 9]


def test_open_store_is_lazy_and_labelled(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    for name in ("embeddings", "hidden_states", "activations", "fragment"):
        assert ds[name].chunks is not None
    source = sentence_arrays(3, tokens=2 + 15 % 6)
    one = ds.activations.sel(sentence=3, token=-1, layer=5, feature=7)
    assert float(one) == source["activations"][2, -1, 7]
    np.testing.assert_array_equal(ds.hidden_states.sel(sentence=3, layer=1, token=-2), source["hidden_states"][1, -2])
    assert ds.hidden_states.sel(token=slice(-9, -8)).values.size == 0
    np.testing.assert_array_equal(
        ds.hidden_states.isel(token=[0, 3, -1], layer=[2, 0]), ds.hidden_states.values[:, [0, 3, -1]][:, :, [2, 0]]
    )
    np.testing.assert_array_equal(ds.embeddings[1, ::-2], ds.embeddings.values[1, ::-2])


def test_plain_xarray_reads_it(folder: Path, tmp_path: Path) -> None:
    """On disk the final token comes first; everything else is as `open_store` shows it."""
    featurestore.ingest(folder, tmp_path / "s.zarr")
    plain, ours = xr.open_zarr(tmp_path / "s.zarr"), featurestore.open_store(tmp_path / "s.zarr")
    assert plain["token"].values.tolist() == [-1, -2, -3, -4, -5, -6, -7][: ours.sizes["token"]]
    assert len(plain.attrs["featurestore_checksum"]) == 64
    plain.attrs = {name: plain.attrs[name] for name in ("featurestore_schema", "featurestore_version")}
    xr.testing.assert_identical(plain.sortby("token").compute(), ours.compute())


def test_ingest_again_reads_no_arrays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    before = tree(tmp_path / "s.zarr")
    monkeypatch.setattr(commit, "exclusive", None)
    monkeypatch.setattr(sentences, "scan", None)
    monkeypatch.setattr(sentences, "read", None)
    done = featurestore.ingest(folder, tmp_path / "s.zarr")
    assert (done.added, done.present) == (0, 5)
    assert tree(tmp_path / "s.zarr") == before


def test_content_not_packing_identifies_a_sentence(folder: Path, tmp_path: Path) -> None:
    """The same arrays, saved without compression and in another order, are the same sentence."""
    featurestore.ingest(folder, tmp_path / "s.zarr")
    path = folder / "sentence_000002.npz"
    with np.load(path) as arrays:
        contents = dict(reversed(list(arrays.items())))
    np.savez(path, **contents)
    assert featurestore.ingest(folder, tmp_path / "s.zarr").present == 5


def test_changed_sentence_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    before = tree(tmp_path / "s.zarr")
    write_sentence(folder, 2, seed=9)
    write_sentence(folder, 7)
    with pytest.raises(featurestore.SourceError, match=r"sentence_000003\.npz: sentence_index 2 .* other content"):
        featurestore.ingest(folder, tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == before


def test_resume_equals_uninterrupted(tmp_path: Path, small_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_folder(tmp_path / "in", 11)
    featurestore.ingest(tmp_path / "in", tmp_path / "whole.zarr")
    read = sentences.read

    def interrupted(file: SentenceFile) -> Sentence:
        if file.sentence_index == 9:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(sentences, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected[:8])
    assert featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr").added == 3
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")


def test_abandoned_batch_leaves_no_trace(tmp_path: Path, small_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the chunks and the root; then other, shorter sentences take the rows."""
    expected = write_folder(tmp_path / "in", 6)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    shutil.copytree(tmp_path / "in", tmp_path / "other")
    for index in (6, 7, 8):
        write_sentence(tmp_path / "in", index, tokens=100)
    with monkeypatch.context() as patch:
        patch.setattr(commit.Writer, "_commit", lambda *_: (_ for _ in ()).throw(MemoryError))
        patch.setattr(commit.Writer, "discard", lambda _: None)  # as if killed
        with pytest.raises(MemoryError):
            featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected)
    write_sentence(tmp_path / "other", 9, tokens=1)
    featurestore.ingest(tmp_path / "other", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", [*expected, sentence_arrays(9, tokens=1)])
    featurestore.ingest(tmp_path / "other", tmp_path / "fresh.zarr")
    committed, fresh = tree(tmp_path / "s.zarr"), tree(tmp_path / "fresh.zarr")
    assert committed == fresh


def test_what_is_in_the_way_is_left_alone(folder: Path, tmp_path: Path) -> None:
    """Also a folder that looks like the inside of a store."""
    for name in ("text", "label", "source"):
        (tmp_path / "corpus" / name).mkdir(parents=True)
        (tmp_path / "corpus" / name / "precious.txt").write_text("mine")
    before = tree(tmp_path / "corpus")
    with pytest.raises(featurestore.StoreError, match="something else"):
        featurestore.ingest(folder, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == before
    featurestore.ingest(folder, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "label" / "c" / ".DS_Store").write_text("")
    write_sentence(folder, 5)
    assert featurestore.ingest(folder, tmp_path / "s.zarr").added == 1


def test_copies_count_once(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "sentence_000002.npz", folder / "sentence_000099.npz")
    assert featurestore.ingest(folder, tmp_path / "s.zarr", skip_bad=True).n_sentences == 5
    assert featurestore.ingest(folder, tmp_path / "s.zarr").present == 5


def test_rows_come_in_the_order_of_their_sentences(tmp_path: Path) -> None:
    """However the store came about, the same sentences give the same bytes."""
    write_folder(tmp_path / "in", 6)
    (tmp_path / "late").mkdir()
    for number in (1, 4):
        name = f"sentence_{number:06d}.npz"
        (tmp_path / "in" / name).rename(tmp_path / "late" / name)
    featurestore.ingest(tmp_path / "in", tmp_path / "portions" / "s.zarr")
    featurestore.ingest(tmp_path / "late", tmp_path / "portions" / "s.zarr")
    shutil.copytree(tmp_path / "in", tmp_path / "late", dirs_exist_ok=True)
    featurestore.ingest(tmp_path / "late", tmp_path / "at_once" / "s.zarr")
    for way in ("portions", "at_once"):
        output = tmp_path / way / "out.npz"
        featurestore.build(tmp_path / way / "s.zarr", "hidden-to-concept", layers=[0, 5], output=output)
    assert (tmp_path / "portions" / "out.npz").read_bytes() == (tmp_path / "at_once" / "out.npz").read_bytes()
    assert featurestore.load_dataset(tmp_path / "portions" / "out.npz").metadata["sentence_indices"].tolist() == [
        *range(6)
    ]


def test_build_input_of_another_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "a" / "sentences", 3)
    write_folder(tmp_path / "b" / "sentences", 3, seed=1)
    assert find_store("a/sentences") == Path("stores/sentences.zarr")
    with pytest.raises(featurestore.StoreError, match="another folder of that name"):
        find_store("b/sentences")


def test_root_metadata_is_plain_json(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    root = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())
    assert root["attributes"]["featurestore_schema"] == 1
    for name, metadata in root["consolidated_metadata"]["metadata"].items():
        assert json.loads((tmp_path / "s.zarr" / name / "zarr.json").read_text()) == metadata
        assert "crc32c" in json.dumps(metadata["codecs"])
