"""Roots that someone has edited, with a checksum made anew: every command refuses them, by what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import featurestore
from tests.sentences import write_folder

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `trait` and its store `s.zarr`. Not to be changed."""
    path = tmp_path_factory.mktemp("original")
    write_folder(path / "trait", 3)
    featurestore.ingest(path / "trait", path / "s.zarr")
    return path


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change a root and the metadata of its arrays, and make the checksum right again."""
    file = path / "zarr.json"
    root = json.loads(file.read_text())
    del root["attributes"]["featurestore_checksum"]
    change(root, root["consolidated_metadata"]["metadata"])
    digest = hashlib.sha256(json.dumps(root, indent=2).encode()).hexdigest()
    root["attributes"]["featurestore_checksum"] = digest
    file.write_text(json.dumps(root, indent=2))


def resize(arrays: dict[str, Any], dim: str, size: object) -> None:
    for metadata in arrays.values():
        names = metadata["dimension_names"]
        metadata["shape"] = [size if name == dim else old for name, old in zip(names, metadata["shape"], strict=True)]


def put(*keys: str, value: object) -> Callable[..., object]:
    """Put a value at a place below an array's metadata."""

    def change(_root: object, arrays: dict[str, Any]) -> None:
        *way, last = keys
        place: Any = arrays
        for key in way:
            place = place[key]
        place[last] = value

    return change


EDITS: dict[str, tuple[Callable[..., object], str]] = {
    "no expected_sentences": (lambda root, _: root["attributes"].pop("expected_sentences"), "expected_sentences"),
    "text as expected": (lambda root, _: root["attributes"].update(expected_sentences="all"), "expected_sentences"),
    "True as expected": (lambda root, _: root["attributes"].update(expected_sentences=True), "expected_sentences"),
    "no skipped": (lambda root, _: root["attributes"].pop("skipped"), "skipped"),
    "garbage skipped": (lambda root, _: root["attributes"].update(skipped=[{"file": 1}]), "skipped"),
    "skipped numbers": (lambda root, _: root["attributes"].update(skipped=[1, 2]), "skipped"),
    "no version": (lambda root, _: root["attributes"].pop("featurestore_version"), "featurestore_version"),
    "other coordinates": (lambda root, _: root["attributes"].update(coordinates="x"), "coordinates"),
    "no metadata": (lambda root, _: root.pop("consolidated_metadata"), "embeddings"),
    "metadata as list": (lambda root, _: root["consolidated_metadata"].update(metadata=[]), "embeddings"),
    "not inline": (lambda root, _: root["consolidated_metadata"].update(kind="x"), "consolidated_metadata"),
    "more in the root": (lambda root, _: root.update(more=1), "the group"),
    "an array less": (lambda _, arrays: arrays.pop("label"), "label"),
    "data less": (lambda _, arrays: arrays.pop("activations"), "activations"),
    "an array more": (lambda _, arrays: arrays.update(more=arrays["label"]), "more"),
    "a name with a path": (lambda _, arrays: arrays.update({"../evil": arrays.pop("label")}), "../evil"),
    "an array as text": (lambda _, arrays: arrays.update(label="x"), "label"),
    "another codec": (put("label", "codecs", value=[{"name": "evil"}]), "codecs"),
    "no checksums": (lambda _, arrays: arrays["text"]["codecs"].pop(), "codecs"),
    "two codecs of data": (lambda _, arrays: arrays["activations"]["codecs"].append({"name": "crc32c"}), "embeddings"),
    "other dims": (put("label", "dimension_names", value=["layer"]), "dimension_names"),
    "other dtype": (put("label", "data_type", value="complex128"), "data_type"),
    "other dtype of data": (put("embeddings", "data_type", value="float64"), "float64"),
    "dtype as list": (put("embeddings", "data_type", value=[]), "embeddings"),
    "zero as padding": (put("activations", "fill_value", value=0), "fill_value"),
    "other places": (put("label", "chunk_key_encoding", value={"name": "v2"}), "chunk_key_encoding"),
    "other chunks": (put("label", "chunk_grid", "configuration", "chunk_shape", value=[5]), "chunk_grid"),
    "chunks of nothing": (
        put("activations", "chunk_grid", "configuration", "chunk_shape", value=[0, 1, 3, 10]),
        "shard",
    ),
    "huge chunks": (put("activations", "chunk_grid", "configuration", "chunk_shape", value=[10**9, 1, 3, 10]), "shard"),
    "transformers": (put("label", "storage_transformers", value=[{"name": "evil"}]), "storage_transformers"),
    "one array longer": (put("label", "shape", value=[4]), "shape"),
    "one array of other kind": (put("label", "shape", value=[3.0]), "shape"),
    "too few dims": (put("embeddings", "shape", value=[3, 7]), "embeddings"),
    **{
        f"1e15 {dim}s": (lambda _, arrays, dim=dim: resize(arrays, dim, 10**15), f"size of {dim}")
        for dim in ("sentence", "token", "layer", "hidden", "feature")
    },
    "less than no sentence": (lambda _, arrays: resize(arrays, "sentence", -1), "size of sentence"),
    "half a token": (lambda _, arrays: resize(arrays, "token", 6.5), "size of token"),
    "no layer": (lambda _, arrays: resize(arrays, "layer", 0), "size of layer"),
}


@pytest.mark.parametrize(("change", "word"), EDITS.values(), ids=EDITS.keys())
def test_foreign_root(cli: Cli, original: Path, tmp_path: Path, change: Callable[..., object], word: str) -> None:
    store = shutil.copytree(original / "s.zarr", tmp_path / "s.zarr")
    edit(store, change)
    with pytest.raises(featurestore.StoreError, match=word):
        featurestore.open_store(store)
    build = ["build", "--strategy", "hidden-to-concept", "--layer", 1, "--input", store]
    for line in (["ingest", original / "trait", "--store", store], ["info", store], ["verify", store], build):
        result = cli(*line)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        (message, *more) = result.output.strip().splitlines()
        assert str(store) in message
        assert word in message
        assert len(more) == (line[0] == "verify")  # the number of problems


def test_the_unedited_root_is_sound(cli: Cli, original: Path, tmp_path: Path) -> None:
    store = shutil.copytree(original / "s.zarr", tmp_path / "s.zarr")
    edit(store, lambda *_: None)
    assert cli("verify", store).output.endswith("sound\n")


@pytest.mark.parametrize(("dim", "size"), [("sentence", 10**6), ("sentence", 4), ("token", 10**6), ("token", 8)])
def test_sizes_that_the_files_deny(original: Path, tmp_path: Path, dim: str, size: int) -> None:
    """Sizes that a store could have, but this one has not: neither believed nor gone through."""
    store = shutil.copytree(original / "s.zarr", tmp_path / "s.zarr")
    edit(store, lambda _, arrays: resize(arrays, dim, size))
    with pytest.raises(featurestore.StoreError, match=r"missing|n_tokens"):
        featurestore.open_store(store)
    with pytest.raises(featurestore.StoreError, match=r"missing|n_tokens"):
        featurestore.info(store)
    assert featurestore.verify(store)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"attributes": []}', "null", "1" * 5000, '{"attributes": {"a": NaN}}']
)
def test_json_that_is_no_root(original: Path, tmp_path: Path, text: str) -> None:
    store = shutil.copytree(original / "s.zarr", tmp_path / "s.zarr")
    (store / "zarr.json").write_text(text)
    with pytest.raises(featurestore.StoreError, match=r"zarr\.json is not that of a feature store"):
        featurestore.open_store(store)
