"""Stores behind URLs and in zips: what the folder holds, or one clear error; never a fill value, never a secret."""

from __future__ import annotations

import http.server
import json
import logging
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import fsspec
import moto.settings
import numpy as np
import pytest
import s3fs
import xarray as xr
from click.testing import Result
from dask.base import tokenize
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

import featurestore
from featurestore.explore import plots
from featurestore.paths import is_url, without_secrets
from featurestore.store.location import ReadOnlyPath, location
from featurestore.store.snapshot import Snapshot, store_name
from tests.refusals import complaint, contents
from tests.sentences import write_folder, write_sentence

Cli = Callable[..., Result]
Place = tuple[str, dict[str, Any]]
"""A URL, and the storage_options that it needs."""

KEY, SECRET = "AKIAWHOEVER", "not-to-be-shown"
N = 40  # sentences, more than a shard holds


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """The URL of an S3 server with the public bucket `bucket`."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        fsspec.filesystem("s3", **options_of(url)).mkdir("bucket", acl="public-read")
        yield url
    finally:
        server.stop()


def options_of(endpoint: str) -> dict[str, Any]:
    return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `trait`, its store `s.zarr`, and zips of it. Not to be changed."""
    path = tmp_path_factory.mktemp("original")
    write_folder(path / "trait", N)
    featurestore.ingest(path / "trait", path / "s.zarr")
    zip_up(path / "s.zarr", path / "s.zarr.zip", within="s.zarr/")
    zip_up(path / "s.zarr", path / "s.zip")
    return path


def zip_up(store: Path, target: Path, within: str = "", **options: Any) -> Path:
    with zipfile.ZipFile(target, "a", **options) as archive:
        for file in sorted(store.rglob("*")):
            archive.write(file, f"{within}{file.relative_to(store)}")
    return target


PLACES = [
    "s3",
    "memory",
    "http",
    "query",
    "zip",
    "flat zip",
    "s3 zip",
    "chained zip",
    "zip in zip://",
    "http zip",
    "file",
]


@pytest.fixture(scope="module")
def places(original: Path, endpoint: str) -> Iterator[dict[str, Place]]:
    """The same store in all places from which stores are read."""
    options = options_of(endpoint)
    s3 = fsspec.filesystem("s3", **options)
    s3.put(str(original / "s.zarr"), "bucket/s.zarr", recursive=True, ACL="public-read")
    s3.put(str(original / "s.zarr.zip"), "bucket/s.zarr.zip", ACL="public-read")
    s3.put(str(original / "s.zarr.zip"), "bucket/s", ACL="public-read")
    memory = fsspec.filesystem("memory")
    memory.put(str(original / "s.zarr"), "/places/s.zarr", recursive=True)
    yield {
        "s3": ("s3://bucket/s.zarr", options),
        "memory": ("memory://places/s.zarr", {}),
        "http": (f"{endpoint}/bucket/s.zarr", {}),
        "query": (f"{endpoint}/bucket/s.zarr?token={SECRET}", {}),
        "zip": (str(original / "s.zarr.zip"), {}),
        "flat zip": (str(original / "s.zip"), {}),
        "s3 zip": ("s3://bucket/s.zarr.zip", options),
        "chained zip": ("zip::s3://bucket/s", options),
        "zip in zip://": ("zip://s.zarr::s3://bucket/s.zarr.zip", {"s3": options}),
        "http zip": (f"{endpoint}/bucket/s.zarr.zip?token={SECRET}", {}),
        "file": (f"file://{original / 's.zarr'}", {}),
    }
    memory.rm("/places", recursive=True)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    return places[request.param]


@pytest.fixture
def memory(original: Path) -> Iterator[Callable[[str], str]]:
    """Put a copy of the store into memory under a name of its own; returns a function that returns its URL."""
    fs = fsspec.filesystem("memory")

    def put(name: str, store: Path = original / "s.zarr") -> str:
        if fs.exists(f"/own/{name}"):
            fs.rm(f"/own/{name}", recursive=True)
        fs.put(str(store), f"/own/{name}", recursive=True)
        return f"memory://own/{name}"

    yield put
    if fs.exists("/own"):
        fs.rm("/own", recursive=True)


def test_values_are_those_of_the_sentences(place: Place, original: Path) -> None:
    url, options = place
    ds = featurestore.open_store(url, storage_options=options)
    xr.testing.assert_identical(ds.load(), featurestore.open_store(original / "s.zarr").load())
    for index in range(N):
        with np.load(original / "trait" / f"sentence_{index + 1:06d}.npz") as arrays:
            for name, axes in (("hidden_states", (1, 0, 2)), ("activations", (1, 0, 2)), ("embeddings", (0, 1))):
                expected = arrays[name].transpose(axes)
                found = ds[name].sel(sentence=index).values
                np.testing.assert_array_equal(found[-len(expected) :], expected)
                assert np.isnan(found[: -len(expected)]).all()


def test_xarray_opens_them_and_they_travel(place: Place, original: Path) -> None:
    url, options = place
    ds = xr.open_dataset(url, engine="featurestore", chunks={}, storage_options=options)
    travelled = pickle.loads(pickle.dumps(ds))
    xr.testing.assert_identical(travelled.load(), featurestore.open_store(original / "s.zarr").load())
    assert SECRET not in repr(ds.encoding)


def test_other_processes_read_them(places: dict[str, Place], original: Path) -> None:
    url, options = places["s3"]
    mean = featurestore.open_store(url, chunks={}, storage_options=options).hidden_states.sel(token=-1).mean("layer")
    expected = featurestore.open_store(original / "s.zarr").hidden_states.sel(token=-1).mean("layer")
    with dask.config.set({"multiprocessing.context": "spawn"}):
        np.testing.assert_array_equal(mean.compute(scheduler="processes", num_workers=1), expected)


def test_info_is_the_same(cli: Cli, place: Place, original: Path) -> None:
    url, options = place
    found, expected = featurestore.info(url, storage_options=options), featurestore.info(original / "s.zarr")
    for name, value in vars(expected).items():
        if name not in ("path", "bytes_on_disk"):
            assert getattr(found, name) == value, name
    name = url.partition("?")[0]
    size = (original / "s.zarr.zip").stat().st_size if name.endswith(("zip", "/s")) else expected.bytes_on_disk
    if name == str(original / "s.zip"):
        size = (original / "s.zip").stat().st_size
    assert found.bytes_on_disk == (None if name.endswith("s.zarr") and name.startswith("http") else size)
    printed = cli("info", url, *(["--storage-options", json.dumps(options)] if options else []))
    assert printed.exit_code == 0, printed.output
    assert SECRET not in printed.output
    assert ("unknown" in printed.output) == (found.bytes_on_disk is None)


def test_looking_is_the_same(cli: Cli, memory: Callable[..., str], original: Path) -> None:
    for line in (["features", "--top", 3, "--csv"], ["show", "--layer", 1, "--feature", 2]):
        local, remote = (cli(*line, store) for store in (original / "s.zarr", memory("s.zarr")))
        assert (remote.exit_code, remote.output) == (0, local.output)
    for number, store in enumerate((str(original / "s.zarr"), memory("s.zarr"))):
        plots.save("pca", store, f"{number}.svg", layer=1)
    assert Path("0.svg").read_bytes() == Path("1.svg").read_bytes()


def test_datasets_are_the_same_bytes(cli: Cli, place: Place, original: Path) -> None:
    """By the command line, whose file is named after the store; nothing of them tells where the store was."""
    url, options = place
    line = ["build", "--strategy", "hidden-to-concept", "--layers", "0,5", "--test-size", 0.5]
    assert cli(*line, "--input", original / "s.zarr", "--output", "local.npz").exit_code == 0
    result = cli(*line, "--input", url, *(["--storage-options", json.dumps(options)] if options else []))
    assert result.exit_code == 0, result.output
    (built,) = Path("generated_datasets").rglob("*.npz")
    assert built.parent == Path("generated_datasets/s")
    assert built.read_bytes() == Path("local.npz").read_bytes()
    dataset = featurestore.build(
        url, "hidden-to-concept", layers="0,5", test_size=0.5, storage_options=options, output="python.npz"
    )
    assert Path("python.npz").read_bytes() == built.read_bytes()
    assert str(dataset.metadata["store"]) == "s"
    for content in contents(Path()).values():
        assert SECRET.encode() not in (content or b"")
    assert not Path("stores").exists()


def test_sweeps_and_listings(cli: Cli, places: dict[str, Place], original: Path, memory: Callable[..., str]) -> None:
    url, options = places["s3"]
    ranked = {"rank_by": "density", "top": 2}
    study: dict[str, Any] = {
        "stores": url,
        "problems": "keep",
        "datasets": [
            {"strategy": "hidden-to-concept", "layer": "all"},
            {"strategy": "hidden-to-feature", "targets": ranked},
        ],
    }
    Path("recipe.yaml").write_text(json.dumps(study))
    given = ["--storage-options", json.dumps(options)]
    assert "to build 5 datasets" in cli("sweep", "recipe.yaml", "--dry-run", *given).output
    assert not Path("generated_datasets").exists()
    assert "built 5 datasets" in cli("sweep", "recipe.yaml", *given).output
    assert "5 up to date" in cli("sweep", "recipe.yaml", *given).output
    local = featurestore.sweep(study | {"stores": str(original / "s.zarr"), "output": "local"})
    for job in local.datasets:
        assert (Path("generated_datasets/s") / job.output.name).read_bytes() == job.output.read_bytes()
    mixed = featurestore.sweep(study | {"stores": [url], "output": "local"}, storage_options=options)
    assert {job.state for job in mixed.datasets} == {"current"}

    def states(stores: object, *more: object) -> set[str]:
        entries = json.loads(cli("datasets", "--json", "-q", "--stores", stores, *more).output)
        assert len(entries) == 5
        return {entry["state"] for entry in entries}

    assert states("s3://bucket", *given) == {"current"}
    assert states(original) == {"current"}
    memory("s.zarr.zip", original / "s.zarr.zip")
    assert states("memory://own") == {"current"}
    assert states("memory://nothing") == {"unknown"}
    write_folder(Path("trait"), 3)
    featurestore.ingest("trait", "other/s.zarr")
    assert states("other") == {"stale"}
    Path("zips").mkdir()
    zip_up(Path("other/s.zarr"), Path("zips/s.zarr.zip"))
    assert states("zips") == {"stale"}


def test_a_store_that_cannot_be_asked_makes_no_dataset_stale(
    original: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, endpoint: str
) -> None:
    s3 = fsspec.filesystem("s3", **options_of(endpoint))
    s3.mkdir("private")
    s3.pipe_file("private/s.zarr/zarr.json", b"{}")
    featurestore.build(original / "s.zarr", "hidden-to-concept", layer=0, output=tmp_path / "x.npz")
    (entry,) = featurestore.list_datasets(tmp_path, f"{endpoint}/private")
    assert entry.state == "unknown"
    assert "/private/s.zarr: cannot be read (403" in caplog.text


def test_credentials_of_the_environment_and_of_fsspec(
    places: dict[str, Place], original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = places["s3"]
    expected = featurestore.open_store(original / "s.zarr").load()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
        xr.testing.assert_identical(featurestore.open_store(url).load(), expected)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    xr.testing.assert_identical(featurestore.open_store(url).load(), expected)


def files_of(store: Path) -> list[str]:
    return sorted(file.relative_to(store).as_posix() for file in store.rglob("*") if file.is_file())


def objects(original: Path) -> list[str]:
    """Names of all objects of the store that hold values."""
    return [name for name in files_of(original / "s.zarr") if not name.endswith("zarr.json")]


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_a_missing_object_is_an_error(original: Path, memory: Callable[..., str], chunks: Any) -> None:
    fs = fsspec.filesystem("memory")
    for name in objects(original):
        url = memory("s.zarr")
        fs.rm(f"/own/s.zarr/{name}")
        with pytest.raises(featurestore.StoreError, match=f"{name} is missing; upload the store again") as caught:
            featurestore.open_store(url, chunks=chunks).load()
        assert str(caught.value).startswith(url)
        assert "\n" not in str(caught.value)
        fs.rm("/own", recursive=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("x"), "is missing"),
        (OSError("cut"), r"cannot be read \(cut\)"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_object_that_goes_away_between_its_index_and_a_chunk(
    memory: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    url = memory("s.zarr")
    read = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        if end is not None:
            raise error
        return read(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    ds = featurestore.open_store(url)
    with pytest.raises(featurestore.StoreError, match=words) as caught:
        ds.hidden_states.sel(layer=5, token=-1).load()
    assert str(caught.value).startswith("memory://own/s.zarr: ")


def test_a_missing_object_of_s3_is_an_error(original: Path, endpoint: str) -> None:
    options = options_of(endpoint)
    s3 = fsspec.filesystem("s3", **options)
    s3.put(str(original / "s.zarr"), "bucket/holey.zarr", recursive=True)
    for name in ("hidden_states/c.1.0.0.0", "label/c.0"):
        s3.rm(f"bucket/holey.zarr/{name}")
        with pytest.raises(featurestore.StoreError, match=f"{name} is missing"):
            featurestore.open_store("s3://bucket/holey.zarr", storage_options=options).load()
        with pytest.raises(featurestore.StoreError, match=f"{name} is missing"):
            featurestore.build("s3://bucket/holey.zarr", "hidden-to-concept", layer=0, storage_options=options)
    s3.rm("bucket/holey.zarr/zarr.json")
    with pytest.raises(featurestore.StoreNotFoundError, match=r"it has no zarr\.json"):
        featurestore.open_store("s3://bucket/holey.zarr", storage_options=options)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"more",
}


def harm(place: Any, expected: xr.Dataset, options: Any = None) -> str:
    """Return the one line that a damaged store is refused with, or nothing for one that still has all values."""
    try:
        found = featurestore.open_store(place, storage_options=options).load()
    except featurestore.StoreError as error:
        line = str(error)
    else:
        xr.testing.assert_identical(found, expected)
        return ""
    assert line.startswith(f"{place}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_object_is_an_error(original: Path, places: dict[str, Place], damage: Any, endpoint: str) -> None:
    """Or where the damage is in no chunk, such as between them, the values are right."""
    options = options_of(endpoint)
    s3 = fsspec.filesystem("s3", **options)
    expected = featurestore.open_store(original / "s.zarr").load()
    for name in ("hidden_states/c.0.0.0.0", "activations/c.1.0.0.0", "text/c.0", "zarr.json"):
        s3.put(str(original / "s.zarr"), "bucket/damaged.zarr", recursive=True)
        s3.pipe_file(f"bucket/damaged.zarr/{name}", damage((original / "s.zarr" / name).read_bytes()))
        error = harm("s3://bucket/damaged.zarr", expected, options)
        if error:
            assert "damaged" in error or "zarr.json" in error
        else:
            assert damage is DAMAGES["flipped"]
            assert name.startswith(("hidden", "activations"))


def test_damaged_zips(original: Path, tmp_path: Path) -> None:
    """Flipped bytes anywhere in a zip: the right values, or one error."""
    data = (original / "s.zarr.zip").read_bytes()
    expected = featurestore.open_store(original / "s.zarr").load()
    path = tmp_path / "s.zip"
    errors = set()
    for position in range(3, len(data), len(data) // 40):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        errors.add(harm(path, expected))
    assert errors > {""}


def two_stores(original: Path, path: Path) -> None:
    zip_up(original / "s.zarr", path, "a/")
    zip_up(original / "s.zarr", path, "b/")


def without_root(original: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text/c.0", b"")


ZIPS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no zip": (lambda _, path: path.write_text("hello"), "not a zip file"),
    "empty": (lambda _, path: path.write_bytes(b""), "not a zip file"),
    "cut": (lambda original, path: path.write_bytes((original / "s.zip").read_bytes()[:5000]), "not a zip file"),
    "compressed": (lambda o, path: zip_up(o / "s.zarr", path, compression=zipfile.ZIP_DEFLATED), "use zip -0"),
    "two stores": (two_stores, "found 2 of them"),
    "no store": (without_root, "found 0 of them"),
}


@pytest.mark.parametrize(("make", "words"), ZIPS.values(), ids=ZIPS.keys())
def test_zips_of_something_else(cli: Cli, original: Path, make: Callable[[Path, Path], object], words: str) -> None:
    path = Path("x.zip")
    make(original, path)
    with pytest.raises(featurestore.StoreError, match=words):
        featurestore.open_store(path)
    (line,) = complaint(cli("info", path), words)
    assert line.startswith("Error: x.zip: ")


def test_one_of_two_stores_in_a_zip(original: Path, tmp_path: Path) -> None:
    two_stores(original, tmp_path / "x.zip")
    found = location(f"zip://b::{tmp_path / 'x.zip'}")
    assert store_name(found) == "b"
    xr.testing.assert_identical(
        featurestore.open_store(str(f"zip://b::{tmp_path / 'x.zip'}")).load(),
        featurestore.open_store(original / "s.zarr").load(),
    )


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "no such store": ("s3://bucket/no.zarr", {}, 1, "no such store"),
    "no such bucket": ("s3://no-such-bucket/s.zarr", {}, 1, "no such store"),
    "no such zip": ("s3://bucket/no.zip", {}, 1, "no such zip"),
    "unknown option": ("s3://bucket/s.zarr", {"bogus": SECRET}, 1, "unexpected keyword argument 'bogus'"),
    "unknown protocol": ("s4://bucket/s.zarr", {}, 2, "protocol s4"),
    "no package": ("gs://bucket/s.zarr", {}, 1, "gcsfs"),
    "no memory": ("memory://no/s.zarr", {}, 1, "no such store"),
    "a folder of stores": ("s3://bucket", {}, 1, "no such store"),
}


@pytest.mark.parametrize(("url", "more", "code", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_one_line(
    cli: Cli, places: dict[str, Place], endpoint: str, url: str, more: dict[str, Any], code: int, words: str
) -> None:
    options = options_of(endpoint) | more if url.startswith("s3") else more
    given = ["--storage-options", json.dumps(options)] if options else []
    for line in (["info", url], ["build", "--strategy", "embedding-to-concept", "--input", url]):
        *_, message = complaint(cli(*line, *given), words, code=code)
        assert message.startswith(f"Error: {url}: ")
        assert SECRET not in message
    with pytest.raises(featurestore.FeatureStoreError, match=words) as caught:
        featurestore.open_store(url, storage_options=options)
    assert SECRET not in str(caught.value)


def test_wrong_credentials(places: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # so that it looks at keys
    url, options = places["s3"]
    with pytest.raises(featurestore.StoreError, match=r"s3://bucket/s.zarr: cannot be read \(") as caught:
        featurestore.open_store(url, storage_options=options)
    assert "storage_options" in str(caught.value)
    assert not {KEY, SECRET} & set(str(caught.value).split())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_no_credentials(places: dict[str, Place], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    url, options = places["s3"]
    with pytest.raises(featurestore.StoreError, match="Unable to locate credentials"):
        featurestore.open_store(url, storage_options={"endpoint_url": options["endpoint_url"]})


def test_no_server(places: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    options = options_of("http://127.0.0.1:1") | {"config_kwargs": {"retries": {"max_attempts": 1}}}
    with pytest.raises(featurestore.StoreError, match="Could not connect to the endpoint URL"):
        featurestore.open_store("s3://bucket/s.zarr", storage_options=options)
    with pytest.raises(featurestore.StoreError, match="cannot be read"):
        featurestore.open_store("http://127.0.0.1:1/s.zarr")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(featurestore.StoreError, match=r"pip install '\.\[s3\]'"):
        featurestore.open_store("s3://bucket/s.zarr")


def test_a_server_that_sends_files_whole(original: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(original))) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            ds = featurestore.open_store(f"http://127.0.0.1:{server.server_port}/s.zarr")
            with pytest.raises(featurestore.StoreError, match="HTTP range requests"):
                ds.hidden_states.isel(token=-1, layer=1).load()
            with pytest.raises(featurestore.StoreError, match="range requests"):
                featurestore.open_store(f"http://127.0.0.1:{server.server_port}/s.zip")
        finally:
            server.shutdown()


URL = f"s3://{KEY}:{SECRET}@bucket/x?signature={SECRET}"
WRITING = {
    "ingest": ["ingest", URL],
    "ingest --store": ["ingest", "trait", "--store", URL],
    "verify": ["verify", URL],
    "build --output": ["build", "--strategy", "embedding-to-concept", "--input", "trait", "--output", URL],
    "build --stats-from": ["build", "--strategy", "embedding-to-concept", "--input", "trait", "--stats-from", URL],
    "sweep": ["sweep", URL],
    "datasets": ["datasets", URL],
}


@pytest.mark.parametrize("line", WRITING.values(), ids=WRITING.keys())
def test_where_only_paths_are_taken(cli: Cli, line: list[str]) -> None:
    *_, message = complaint(cli(*line), "s3://***@bucket/x?***", "expected a path of this machine, found a URL", code=2)
    assert message.startswith("Error: ")
    assert SECRET not in message
    assert contents(Path()) == {}


def test_where_only_paths_are_taken_in_python(folder: Path, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: featurestore.ingest(URL),
        lambda: featurestore.ingest(folder, URL),
        lambda: featurestore.verify(URL),
        lambda: featurestore.build(folder, "embedding-to-concept", output=URL),
        lambda: featurestore.load_dataset(URL),
        lambda: featurestore.list_datasets(URL),
    ]
    for call in calls:
        with pytest.raises(featurestore.ParameterError, match="expected a path of this machine") as caught:
            call()
        assert SECRET not in str(caught.value)
    with pytest.raises(featurestore.RecipeError, match="expected a path of this machine"):
        featurestore.sweep({"stores": str(folder), "output": URL, "datasets": [{"strategy": "embedding-to-concept"}]})


def test_a_zip_cannot_be_written(cli: Cli, original: Path) -> None:
    shutil.copy(original / "s.zip", "s.zip")
    before = Path("s.zip").read_bytes()
    complaint(cli("verify", "s.zip"), "unzip it first")
    complaint(cli("ingest", original / "trait", "--store", "s.zip"), "s.zip: expected a feature store or nothing")
    assert Path("s.zip").read_bytes() == before


@pytest.mark.parametrize("options", ["{", "[]", "1", f'"{SECRET}"', "[" * 100_000, f"{{'secret': '{SECRET}'}}"])
def test_storage_options_that_are_none(cli: Cli, options: str) -> None:
    *_, line = complaint(cli("info", "memory://x", "--storage-options", options), "expected a JSON object", code=2)
    assert SECRET not in line


def test_storage_options_where_there_is_no_url(original: Path) -> None:
    for path in (original / "s.zarr", original / "s.zip", "no.zarr"):
        with pytest.raises(featurestore.ParameterError, match="storage_options=: expected a URL") as caught:
            featurestore.open_store(path, storage_options={"key": SECRET})
        assert SECRET not in str(caught.value)
    wrong: Any
    for wrong in (SECRET, [SECRET], {1: SECRET}):
        with pytest.raises(featurestore.ParameterError, match="storage_options=: expected options by name") as caught:
            featurestore.open_store("s3://bucket/s.zarr", storage_options=wrong)
        assert SECRET not in str(caught.value)


def test_urls_that_went_through_pathlib() -> None:
    with pytest.raises(featurestore.ParameterError, match=r"s3:/bucket/x: .*write it as text"):
        featurestore.open_store(Path("s3://bucket/x"))


def test_secrets_are_shown_nowhere() -> None:
    path = ReadOnlyPath(URL, {"secret": SECRET, "client_kwargs": {"headers": [{"Authorization": SECRET}]}})
    assert SECRET not in f"{path} {path!r}"
    with pytest.raises(featurestore.StoreError) as caught, path.errors():
        raise ValueError(f"no access to https://a/b?c={SECRET}\nby {SECRET} at http://host:1/a")
    assert str(caught.value).count("\n") == 0
    assert SECRET not in str(caught.value)
    assert "http://host:1/a" in str(caught.value)
    for url in ("https://SECRET@host/x.zarr", "s3://key:SEC/RET@bucket/x", "https://key:p@SECRET@host/x"):
        assert "SEC" not in without_secrets(f"cannot read {url}: no access")
        assert without_secrets(url).startswith(f"{url.partition('://')[0]}://***@")
    assert without_secrets("abfs://container@account/x") == "abfs://container@account/x"


def test_tokens_of_dask_know_content_but_no_credentials(memory: Callable[..., str], tmp_path: Path) -> None:
    url = memory("s.zarr")

    def token(options: dict[str, Any]) -> str:
        return str(tokenize(Snapshot.read(location(url, options))))

    assert token({}) == token({"use_listings_cache": True})
    write_folder(tmp_path / "trait", 3)
    featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr")
    before = token({})
    memory("s.zarr", tmp_path / "s.zarr")
    assert token({}) != before


def test_an_upload_in_order_is_never_torn(original: Path, tmp_path: Path, memory: Callable[..., str]) -> None:
    """As the page on the store says: data, then the arrays' own metadata, then the root; the reader sees old or new."""
    write_folder(tmp_path / "trait", N)
    featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr")
    url = memory("s.zarr", tmp_path / "s.zarr")
    for index in range(N, N + 5):
        write_sentence(tmp_path / "trait", index, tokens=9)
    held = featurestore.open_store(url)
    featurestore.ingest(tmp_path / "trait", tmp_path / "s.zarr")
    new = featurestore.open_store(tmp_path / "s.zarr").load()
    old = featurestore.open_store(original / "s.zarr").load()
    fs = fsspec.filesystem("memory")
    for name in sorted(
        files_of(tmp_path / "s.zarr"), key=lambda name: (name.endswith("zarr.json"), name == "zarr.json")
    ):
        xr.testing.assert_identical(featurestore.open_store(url).load(), old)
        fs.pipe_file(f"/own/s.zarr/{name}", (tmp_path / "s.zarr" / name).read_bytes())
    xr.testing.assert_identical(featurestore.open_store(url).load(), new)
    xr.testing.assert_identical(held.load(), old)


def test_opening_asks_for_nothing_twice_and_lists_nothing(
    places: dict[str, Place], monkeypatch: pytest.MonkeyPatch, original: Path
) -> None:
    asked: list[tuple[str, str]] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **options: Any) -> Any:
        asked.append((method, options.get("Key", "")))
        return await call(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    url, options = places["s3"]
    ds = featurestore.open_store(url, storage_options=options)
    one_dim = [name for name, array in Snapshot.read(original / "s.zarr").arrays.items() if len(array["shape"]) == 1]
    expected = ["s.zarr/zarr.json", *(f"s.zarr/{name}/c.0" for name in one_dim)]
    assert sorted(asked) == sorted(("get_object", key) for key in expected)
    asked.clear()
    assert ds.hidden_states.sel(layer=5, token=-1).values.shape == (N, 6)
    keys = {f"s.zarr/hidden_states/c.{row}.0.0.0" for row in range(2)}
    assert {key for _, key in asked} == keys
    assert len(asked) == 2 * len(keys)  # its index, and one chunk


def test_coordinates_are_read_at_once(memory: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = memory("s.zarr")
    together = threading.Barrier(4, timeout=60)
    read = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.rpartition("/s.zarr/")[2] in ("label/c.0", "text/c.0", "source/c.0", "layer/c.0"):
            together.wait()  # which only goes on once all four are here
        return read(self, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert len(featurestore.open_store(url).label) == N


def test_what_is_local_needs_none_of_their_libraries(original: Path) -> None:
    code = (
        "import sys, featurestore\n"
        f"featurestore.open_store({str(original / 's.zarr')!r}).load()\n"
        f"featurestore.open_store({str(original / 's.zip')!r}).load()\n"
        "assert not {'s3fs', 'aiohttp', 'botocore', 'aiobotocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(
            (url, True)
            for url in ("s3://b/x", "memory://x", "zip::s3://b/x", "zip://a::x.zip", "simplecache::s3://b/x")
        ),
        *((path, False) for path in ("s3:/b/x", "a/b://c", "a::b", "", "C:x", Path("s3://b"), None, b"s3://b")),
    ],
)
def test_urls_are_told_from_paths(path: object, expected: bool) -> None:
    assert is_url(path) == expected


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://b/a/x.zarr", "x"),
        ("s3://b/a/x.zarr/", "x"),
        ("s3://b/x.zarr.zip", "x"),
        ("https://h/x.zip?a=b.zarr/c", "x"),
        ("zip::s3://b/x.zarr.zip", "x"),
        ("zip://y.zarr::s3://b/x.zip", "y"),
        ("simplecache::s3://b/x.zarr", "x"),
    ],
)
def test_names_of_stores(url: str, name: str) -> None:
    assert store_name(location(url)) == name


def test_incomplete_stores_are_warned_of(
    memory: Callable[..., str], caplog: pytest.LogCaptureFixture, original: Path, tmp_path: Path
) -> None:
    snapshot = Snapshot.read(original / "s.zarr").with_attributes(expected_sentences=N + 1)
    from featurestore.store.root import encode_root

    store = shutil.copytree(original / "s.zarr", tmp_path / "s.zarr")
    (store / "zarr.json").write_bytes(encode_root(snapshot.root))
    with caplog.at_level(logging.WARNING):
        featurestore.open_store(memory("s.zarr", store))
    assert "memory://own/s.zarr is incomplete" in caplog.text
