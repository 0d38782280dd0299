"""What is ingested comes back bit for bit, whatever the lengths, sizes, dtypes and batches."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.schema import SentenceFile
from featurestore.sources import sentences
from featurestore.sources.sentence import Sentence
from featurestore.store import commit, layout
from featurestore.store.ingest import find_store
from featurestore.store.snapshot import Snapshot, store_name
from tests.sentences import SAMPLE, sentence_arrays, write_folder, write_sentence


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
            if name == "hidden_states":  # each layer once, however many SAEs it has
                layers = arrays["layers"].tolist()
                source = source[:, sorted({layers.index(layer) for layer in layers})]
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
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)
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
    assert len(list((tmp_path / "s.zarr" / "fragment").glob("c.*"))) == 2
    assert len(list((tmp_path / "s.zarr" / "hidden_states").glob("c.*"))) == 3  # shards of 32


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


def test_shards_split_tokens_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that do not divide: 13 features in slices of 4, 7 tokens in shards of 3, batches cut by their bytes."""
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 4 * 4 * 4)
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "TOKENS", 3)
    monkeypatch.setattr(layout, "BATCH_ROWS", 8)
    monkeypatch.setattr("featurestore.store.append.BATCH_BYTES", 1000)  # less than a sentence
    expected = write_folder(tmp_path / "in", 9, layers=range(7), features=13)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    snapshot = Snapshot.read(tmp_path / "s.zarr")
    assert snapshot.file_shape("activations") == (4, 3, 7, 16)
    assert_holds(tmp_path / "s.zarr", expected)


def test_several_saes_of_a_layer(tmp_path: Path) -> None:
    expected = write_folder(tmp_path / "in", 3, layers=[0, 5, 5], average_l0s=[3, 2, 9])
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", expected)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds["layer"].values.tolist() == [0, 5]
    assert ds["hidden_states"].dims == ("sentence", "token", "layer", "hidden")
    assert ds["activations"].dims == ("sentence", "token", "sae", "feature")
    assert ds["sae_layer"].values.tolist() == [0, 5, 5]
    assert ds["average_l0"].values.tolist() == [3, 2, 9]


def test_open_store_is_lazy_and_labelled(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    for name in ("embeddings", "hidden_states", "activations", "fragment"):
        assert not ds[name]._in_memory  # lazy by xarray itself, without dask
        assert ds[name].chunks is None
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
    plain = plain.sortby("token").compute()
    for name in ("text", "source", "source_digest", "fragment", "token_text"):
        plain[name] = plain[name].astype(object)  # of which open_store makes Python's own text
    xr.testing.assert_identical(plain, ours.compute().drop_vars("is_token"))


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
    (tmp_path / "s.zarr" / "label" / ".DS_Store").write_text("")
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
    assert root["attributes"]["featurestore_schema"] == 2
    for name, metadata in root["consolidated_metadata"]["metadata"].items():
        assert json.loads((tmp_path / "s.zarr" / name / "zarr.json").read_text()) == metadata
        assert "crc32c" in json.dumps(metadata["codecs"])


@pytest.mark.parametrize("options", [{"layers": [0]}, {"features": 1}, {"average_l0s": [0, 0, 0]}, {"hidden": 1}])
def test_arrays_of_zeros_keep_their_chunks(tmp_path: Path, options: dict[str, Any]) -> None:
    """Zero is what Zarr fills missing chunks with, and no chunk of ours may be missing."""
    expected = write_folder(tmp_path / "in", 4, **options)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    write_sentence(tmp_path / "in", 4, tokens=9, **options)
    featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
    assert_holds(tmp_path / "s.zarr", [*expected, sentence_arrays(4, tokens=9, **options)])
    assert featurestore.verify(tmp_path / "s.zarr", tmp_path / "in") == []
    for name in ("layer", "average_l0", "feature", "token", "label", "n_nonfinite"):
        assert (tmp_path / "s.zarr" / name / "c.0").is_file()


def test_any_configuration_of_zarr(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, the same values; and the configuration is neither changed nor, among threads, mixed up."""
    expected = [sentence_arrays(index, tokens=2 + (index * 5) % 6) for index in range(5)]
    featurestore.ingest(folder, tmp_path / "plain.zarr")
    configuration = {
        "default_zarr_format": 2,
        "json_indent": None,
        "array.order": "F",
        "array.write_empty_chunks": False,
        "array.read_missing_chunks": False,
        "codec_pipeline.batch_size": 3,
    }
    with zarr.config.set(configuration):
        before = json.dumps(zarr.config.config, default=str)
        with monkeypatch.context() as patch:
            patch.setattr(zarr.config, "set", None)
            featurestore.ingest(folder, tmp_path / "s.zarr")
            assert featurestore.verify(tmp_path / "s.zarr", folder) == []
        assert json.dumps(zarr.config.config, default=str) == before
        assert_holds(tmp_path / "s.zarr", expected)
        for name in ("embeddings", "hidden_states"):
            assert featurestore.open_store(tmp_path / "s.zarr")[name][:, :2].values.flags.c_contiguous
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "plain.zarr")


def test_a_store_is_opened_by_plain_zarr_as_written(folder: Path, tmp_path: Path) -> None:
    """What is laid out here is what Zarr itself would write for these arrays."""
    featurestore.ingest(folder, tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for name, array in group.arrays():
        ours = json.loads((tmp_path / "s.zarr" / name / "zarr.json").read_text())
        assert json.loads(json.dumps(array.metadata.to_dict(), default=str)) | {"fill_value": 0} == ours | {
            "fill_value": 0
        }


@pytest.mark.parametrize("links", ["the store", "a folder above", "dangling", "dangling folder above"])
def test_stores_behind_links(folder: Path, tmp_path: Path, links: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is made, and its one lock is, where the link leads; also when its first ingest fails."""
    real, link = tmp_path / "disk" / "big" / "s.zarr", tmp_path / "stores" / "s.zarr"
    pointing, target = (link.parent, real.parent) if "above" in links else (link, real)
    pointing.parent.mkdir(exist_ok=True)
    pointing.symlink_to(target)
    if "dangling" not in links:
        target.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "Batch", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            featurestore.ingest(folder, link)
    assert [path for path in (tmp_path / "disk").rglob("*") if path.is_file()] == []
    assert featurestore.ingest(folder, link).store == link
    assert pointing.is_symlink()
    assert sorted(path.name for path in real.parent.glob("[!.]*")) == ["s.zarr"]
    assert not real.is_symlink()
    assert featurestore.verify(real, folder) == []
    assert featurestore.ingest(folder, real).added == 0


def test_one_writer_whatever_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "disk" / "s.zarr"
    featurestore.ingest(folder, real)
    (tmp_path / "link.zarr").symlink_to(real)
    (tmp_path / "to_disk").symlink_to("disk")
    (tmp_path / "again.zarr").symlink_to("link.zarr")
    write_sentence(folder, 5)
    monkeypatch.chdir(tmp_path / "disk")
    ways = [real, tmp_path / "link.zarr", tmp_path / "again.zarr", tmp_path / "to_disk" / "s.zarr"]
    ways += [Path("s.zarr"), Path("../disk/s.zarr"), Path("../to_disk/../disk/./s.zarr")]
    for held, other in itertools.product(ways, ways):
        with commit.exclusive(held, wait=False), pytest.raises(featurestore.StoreBusyError):
            featurestore.ingest(folder, other)
    assert featurestore.ingest(folder, tmp_path / "again.zarr").added == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("run/v1.5", "v1.5"),
        ("v1.5.zarr", "v1.5"),
        ("a.zarr.zarr", "a.zarr"),
        ("a.b/c", "c"),
        ("a.zarr/../b.x", "b.x"),
        (".zarr", ".zarr"),
        ("a.ZARR", "a.ZARR"),
    ],
)
def test_names_of_stores(path: str, name: str) -> None:
    assert store_name(Path(path)) == name


def test_stores_with_dots_in_their_names(cli: Any, tmp_path: Path) -> None:
    for version in ("v1.5", "v1.6"):
        write_folder(tmp_path / version, 3, seed=int(version[-1]))
        assert cli("ingest", tmp_path / version, "--store", f"run/{version}").exit_code == 0
        built = cli("build", "--strategy", "hidden-to-concept", "--layer", 1, "--input", f"run/{version}")
        assert built.exit_code == 0, built.output
    listed = featurestore.list_datasets("generated_datasets", "run")
    assert [(entry.file.split("/")[0], entry.store, entry.state) for entry in listed] == [
        ("v1.5", "v1.5", "current"),
        ("v1.6", "v1.6", "current"),
    ]


def test_attributes_are_what_netcdf_takes(folder: Path, tmp_path: Path) -> None:
    write_sentence(folder, 5, drop=["layers"])
    featurestore.ingest(folder, tmp_path / "s.zarr", skip_bad=True)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert ds.attrs == {"featurestore_schema": 2, "featurestore_version": featurestore.__version__}
    texts = [name for name, coord in ds.coords.items() if coord.dtype == object]
    part = ds[["hidden_states"]].isel(token=-1).astype("f4").drop_vars(texts)
    part.to_netcdf(tmp_path / "part.nc", engine="scipy")
    np.testing.assert_array_equal(xr.load_dataset(tmp_path / "part.nc").hidden_states, part.hidden_states)


def test_incomplete_stores_say_so_once(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ROWS", 4)
    monkeypatch.setattr(layout, "BATCH_ROWS", 4)
    write_folder(tmp_path / "trait", 11)
    read = sentences.read

    def interrupted(file: SentenceFile) -> Sentence:
        if file.sentence_index == 9:
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(sentences, "read", interrupted)
        assert cli("ingest", tmp_path / "trait", "--store", "s.zarr").exit_code == 130
    build = ["build", "--strategy", "hidden-to-concept", "--layer", 1, "--input", "s.zarr", "--output", "x.npz"]
    for line in (["info", "s.zarr"], build):
        assert cli(*line).output.count("8 of 11") == 1
    assert (featurestore.info("s.zarr").sentences, featurestore.info("s.zarr").expected_sentences) == (8, 11)
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: records.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("featurestore"), "handlers", [handler])
    featurestore.open_store("s.zarr")
    assert len(records) == 1
    assert "s.zarr is incomplete: 8 of 11 sentences" in records[0]
    featurestore.ingest(tmp_path / "trait", "s.zarr")
    featurestore.open_store("s.zarr")
    assert len(records) == 1
    assert featurestore.info("s.zarr").expected_sentences is None


def test_info_by_any_scheduler(folder: Path, tmp_path: Path) -> None:
    """What must be in this process runs in its threads, whatever scheduler is set."""
    featurestore.ingest(folder, tmp_path / "s.zarr")

    def unusable(*_: object, **__: object) -> None:
        raise AssertionError

    with dask.config.set(scheduler=unusable):
        measured = [sae.measured_l0 for sae in featurestore.info(tmp_path / "s.zarr").saes]
    final = [sentence_arrays(index, tokens=2 + (index * 5) % 6)["activations"][:, -1] for index in range(5)]
    np.testing.assert_allclose(measured, (np.array(final) != 0).sum(axis=2).mean(axis=0))


def test_long_documents(tmp_path: Path, small_batches: int) -> None:
    """Fragments are written chunk by chunk of 64 tokens: lengths about these, appended to each other."""
    lengths = [65, 3, 64, 66, 130]
    expected = []
    for index, tokens in enumerate(lengths):
        write_sentence(tmp_path / "in", index, tokens=tokens, layers=[2], hidden=1, features=1)
        expected.append(sentence_arrays(index, tokens=tokens, layers=[2], hidden=1, features=1))
        featurestore.ingest(tmp_path / "in", tmp_path / "s.zarr")
        assert_holds(tmp_path / "s.zarr", expected)
    featurestore.ingest(tmp_path / "in", tmp_path / "at_once.zarr")
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "at_once.zarr")
    assert featurestore.verify(tmp_path / "s.zarr", tmp_path / "in") == []


def test_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert featurestore.ingest("~/trait", "~/s.zarr").store == tmp_path / "s.zarr"
    assert featurestore.open_store("~/s.zarr").sizes["sentence"] == featurestore.info("~/s.zarr").sentences == 5
    assert featurestore.verify("~/s.zarr", "~/trait") == []
    assert find_store("~/s.zarr") == tmp_path / "s.zarr"
    assert find_store("~/trait") == Path("stores/trait.zarr")
    assert not (tmp_path / "~").exists()
    no_path: Any = b"s.zarr"
    for function in (featurestore.open_store, featurestore.info, featurestore.verify, featurestore.ingest, find_store):
        with pytest.raises(featurestore.ParameterError, match="expected a path"):
            function(no_path)


def test_without_assertions_and_docstrings(folder: Path, tmp_path: Path) -> None:
    code = (
        "import featurestore as f\n"
        f"f.ingest({str(folder)!r}, 's.zarr')\n"
        f"if f.verify('s.zarr', {str(folder)!r}) or f.info('s.zarr').sentences != 5: raise SystemExit('wrong')"
    )
    subprocess.run([sys.executable, "-OO", "-c", code], check=True, cwd=tmp_path)
    assert featurestore.verify(tmp_path / "s.zarr", folder) == []


def test_an_open_store_stays_that_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the working folder, and whoever unpickles it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    featurestore.ingest(folder, "s.zarr")
    write_folder(tmp_path / "other", 5, seed=1)
    featurestore.ingest(tmp_path / "other", tmp_path / "there" / "s.zarr")
    ds = featurestore.open_store("s.zarr")
    expected = ds.hidden_states.copy().values
    monkeypatch.chdir(tmp_path / "there")
    assert not np.array_equal(featurestore.open_store("s.zarr").hidden_states, expected, equal_nan=True)
    for again in (ds, pickle.loads(pickle.dumps(ds))):
        np.testing.assert_array_equal(again.hidden_states, expected)


def test_a_store_that_is_deleted_while_it_is_open(folder: Path, tmp_path: Path) -> None:
    featurestore.ingest(folder, tmp_path / "s.zarr")
    ds = featurestore.open_store(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr")
    for name in ("hidden_states", "token_text"):
        with pytest.raises(featurestore.StoreError, match=r"s\.zarr: \w+/c"):
            ds[name].load()


def test_a_shard_of_another_dtype_is_damage(tmp_path: Path) -> None:
    for dtype in ("f2", "f4"):
        for index in range(3):
            arrays = sentence_arrays(index, tokens=4)
            write_sentence(
                tmp_path / dtype,
                index,
                changes={name: arrays[name].astype(dtype) for name in ("embeddings", "hidden_states", "activations")},
            )
        featurestore.ingest(tmp_path / dtype, tmp_path / f"{dtype}.zarr")
    for name in ("embeddings", "hidden_states", "activations"):
        shard = next((tmp_path / "f2.zarr" / name).glob("c.*"))
        shutil.copy(shard, tmp_path / "f4.zarr" / name / shard.name)
        with pytest.raises(featurestore.StoreError, match=f"array '{name}' is damaged"):
            featurestore.open_store(tmp_path / "f4.zarr")[name].load()
