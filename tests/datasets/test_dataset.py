"""Dataset files: what may be in one, whoever wrote it, and how it gets its name."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import featurestore
from featurestore import DatasetError, NonFiniteError, NpzError, ParameterError
from featurestore.datasets import dataset as datasets
from featurestore.datasets import normalize
from featurestore.datasets.dataset import Columns, Dataset, read_metadata
from featurestore.datasets.normalize import Normalization, Statistics
from tests.sentences import write_folder

Arrays = dict[str, Any]

PLAIN = Normalization("none", {})


def dataset(value: float = 0, normalization: Normalization = PLAIN, **metadata: Any) -> Dataset:
    """Four rows, three columns."""
    X = np.arange(12, dtype=np.float32).reshape(4, 3) + np.float32(value)
    return Dataset(X, np.array([0, 1, 0, 1]), {name: np.asarray(of) for name, of in metadata.items()}, normalization)


# ---- normalization


@pytest.mark.parametrize("method", ["standardize", "minmax"])
def test_a_spread_too_small_for_float32_counts_as_constant(method: str) -> None:
    smallest = 2.0**-126
    spreads = np.array([0, 1e-300, 1e-42, 0.99 * smallest, smallest, 1e-30, 1])
    raw = np.stack([0 * spreads, spreads, 0 * spreads, spreads])
    (statistics,) = normalize.measure([raw])
    constant = [True, True, True, True, False, False, False]
    assert statistics.constant.tolist() == constant
    other = normalize.fit(method, [statistics]).transform(raw + 1)[0]
    assert other[:4].tolist() == [1, 1, 1, 1]  # divisor 1
    assert other[6] == {"standardize": (1 - 0.5) / 0.5, "minmax": 1}[method]
    np.testing.assert_array_equal(statistics.std[:4], 1)
    np.testing.assert_allclose(statistics.std[4:], spreads[4:] / 2)


def test_spreads_beyond_float64() -> None:
    """Without a warning of numpy's."""
    lowest, highest = np.array([-1.7e308, 5.0]), np.array([1.7e308, 5.0])
    assert Statistics(lowest, highest, lowest, highest).constant.tolist() == [False, True]


@pytest.mark.parametrize(("n", "d"), [(1, 3), (256, 513), (300, 1), (1100, 1100), (5000, 2)])
@pytest.mark.parametrize("in_order", [True, False])
def test_statistics_are_those_of_dask_to_the_bit(n: int, d: int, in_order: bool) -> None:
    """On which the bytes of datasets depend: 256 rows at a time, four of these merged, then four of those."""
    rng = np.random.default_rng(n)
    raw = (3 + rng.standard_normal((n, d), dtype=np.float32)).astype(np.float16)
    rows = np.arange(n) if in_order else rng.permutation(n)
    (found,) = normalize.measure([raw], rows)
    (extremes,) = normalize.measure_extremes([raw], rows)
    in_chunks = da.from_array(raw.repeat(2, axis=1)[rows], chunks=(256, -1)).astype(np.float64)  # never a lone column
    expected = {name: getattr(in_chunks, name)(axis=0).compute()[::2] for name in ("min", "max", "mean", "std")}
    expected["std"][expected["std"] == 0] = 1
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(found, name), values, strict=True)
    for name in ("min", "max"):
        np.testing.assert_array_equal(getattr(extremes, name), expected[name], strict=True)


@pytest.mark.parametrize("method", ["standardize", "minmax", "none"])
def test_widths_are_checked_both_ways(method: str) -> None:
    parameters = dict(zip(normalize.PARAMETERS[method], (np.zeros(3), np.full(3, 2.0)), strict=False))
    made = dataset(normalization=Normalization(method, parameters))
    for convert in (made.transform, made.inverse):
        assert convert(np.ones((2, 5, 3))).shape == (2, 5, 3)
        assert convert([1, 2, 3]).shape == (3,)
        for shape in ((2, 4), (3, 1), (), (3, 0), (0,)):
            with pytest.raises(ParameterError, match="expected 3 columns, found shape"):
                convert(np.ones(shape))
        absurd: Any
        for absurd in (["a"] * 3, np.ones(3) * 1j, None, [[1], [1, 2]], [None] * 3):
            with pytest.raises(ParameterError, match="values: expected an array of"):
                convert(absurd)
    scale = {"standardize": 2, "minmax": 2, "none": 1}[method]
    np.testing.assert_array_equal(made.transform([2, 4, 6]), np.array([2, 4, 6], np.float32) / scale, strict=True)
    np.testing.assert_array_equal(made.inverse([2, 4, 6]), np.array([2, 4, 6], np.float32) * scale, strict=True)


# ---- a dataset in memory


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": np.zeros(3)}, "y: expected a row for each of the 4 of X, found 3"),
        ({"y": np.zeros((4, 1, 1))}, r"y: expected shape \(n,\) or \(n, k\)"),
        ({"y": np.array(1)}, "y: expected shape"),
        ({"y": np.array(["a"] * 4)}, "y: expected real numbers"),
        ({"y": [0, 1, 0, 1]}, "y: expected an array, found list"),
        ({"data": np.zeros(4)}, r"X: expected shape \(n, d\)"),
        ({"data": np.zeros((4, 3, 1))}, "X: expected shape"),
        ({"data": np.zeros((4, 0))}, "X: expected shape"),
        ({"data": np.zeros((4, 3), complex)}, "X: expected real numbers"),
        ({"data": None}, "X: expected an array, found NoneType"),
        ({"normalization": Normalization("minmax", {"min": np.zeros(2), "max": np.ones(2)})}, "3 columns of X.* of 2"),
        ({"metadata": {"a": np.array([None])}}, "metadata 'a': expected numbers or text"),
    ],
)
def test_what_is_no_dataset(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        dataclasses.replace(dataset(), **changes)


def test_values_are_replaced_not_written_to(tmp_path: Path) -> None:
    made = dataset()
    with pytest.raises(ValueError, match="read-only"):
        made.X[0, 0] = 5
    assert made.data[0:1].tolist() == [[0, 1, 2]]
    other = made.X * np.float64(2)
    replaced = dataclasses.replace(made, data=other)
    replaced.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as saved:
        np.testing.assert_array_equal(saved["X"], np.arange(0, 24, 2, dtype=np.float32).reshape(4, 3), strict=True)
    np.testing.assert_array_equal(replaced.X, other.astype(np.float32), strict=True)


@pytest.mark.parametrize("window", [1, 1 << 20])
@pytest.mark.parametrize("kind", ["lazy", "ready"])
def test_finite_means_finite_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, kind: str
) -> None:
    """float64 holds them, float32 does not; and nothing appears under the name."""
    monkeypatch.setattr(datasets, "_WINDOW_BYTES", window)
    raw = np.zeros((40, 3))
    raw[[7, 30], [1, 2]] = 1e10
    statistics = Normalization("standardize", {"mean": np.zeros(3), "std": np.full(3, 1e-30)})
    data: Any = Columns([raw], np.arange(40), slice(None), statistics) if kind == "lazy" else raw * 1e30
    made = Dataset(data, np.zeros(40), {}, statistics)
    found = r"2 of 40 rows \(7, 30\) and 2 of 3 columns \(1, 2\)"
    with pytest.raises(NonFiniteError, match=found):
        made.save(tmp_path / "x.npz")
    with pytest.raises(NonFiniteError, match=found):
        made.X  # noqa: B018
    with pytest.raises(NonFiniteError, match="y has NaN"):
        dataclasses.replace(dataset(), y=np.array([0, 1, np.nan, 1])).save(tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


# ---- files of others


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """A store of 24 sentences, and the arrays of a dataset of it. Not to be changed."""
    path = tmp_path_factory.mktemp("built")
    write_folder(path / "trait", 24)
    featurestore.ingest(path / "trait", path / "s.zarr")
    featurestore.build(path / "s.zarr", "hidden-to-concept", layer=0, test_size=0.25, output=path / "d.npz")
    with np.load(path / "d.npz") as saved:
        return path / "s.zarr", dict(saved)


def written(path: Path, arrays: Arrays, **changes: Any) -> Path:
    """Write a dataset with some arrays changed; None leaves one out."""
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


TAMPERED: list[tuple[str, Any]] = [
    ("X", None),
    ("X", np.zeros(24, np.float32)),
    ("X", np.zeros((24, 6, 1), np.float32)),
    ("X", np.zeros((0, 6), np.float32)),
    ("X", np.full((24, 6), np.nan, np.float32)),
    ("X", np.full((24, 6), np.inf, np.float16)),
    ("X", np.full((24, 6), 0.1)),
    ("X", np.full((24, 6), 1e300)),
    ("X", np.full((24, 6), 2**24 + 1)),
    ("X", np.full((24, 6), "x")),
    ("X", np.full((24, 6), 1j)),
    ("y", None),
    ("y", np.zeros(3)),
    ("y", np.array(0)),
    ("y", np.zeros((24, 1, 1))),
    ("y", np.zeros((24, 0))),
    ("y", np.full(24, np.nan)),
    ("y", np.full(24, "a")),
    ("y", np.full(24, 1j)),
    ("norm_method", None),
    ("norm_method", np.array("robust")),
    ("norm_method", np.array(["standardize"])),
    ("norm_method", np.array(b"standardize")),
    ("norm_method", np.array(1)),
    ("norm_mean", None),
    ("norm_mean", np.full(6, np.inf)),
    ("norm_mean", np.full(6, 1j)),
    ("norm_mean", np.full(6, "a")),
    ("norm_mean", np.zeros((1, 6))),
    ("norm_mean", np.zeros(7)),
    ("norm_std", np.zeros(6)),
    ("norm_std", np.full(6, -1.0)),
    ("norm_std", np.full(6, np.nan)),
    ("norm_std", np.array(1.0)),
    ("meta_strategy", np.array(["a", "b"])),
    ("meta_strategy", np.array(1)),
    ("meta_strategy", np.array(b"hidden-to-concept")),
    ("meta_input_source", np.array(["hidden_states"])),
    ("meta_input_layers", np.array(0)),
    ("meta_input_layers", np.array([0.5])),
    ("meta_input_layers", np.array([np.inf])),
    ("meta_input_layers", np.array(["0"])),
    ("meta_input_layers", np.array([2**63], np.uint64)),
    ("meta_input_dims", np.array(5)),
    ("meta_input_dims", np.array([6])),
    ("meta_n_samples", np.array(23)),
    ("meta_sentence_indices", np.zeros((2, 2))),
    ("meta_sentence_indices", np.arange(23)),
    ("meta_sentence_indices", np.arange(24.0)),
    ("meta_split", np.array(["train"])),
    ("meta_split", np.full(24, "x")),
    ("meta_split", np.zeros(24)),
    ("meta_fold", np.zeros(3, int)),
    ("meta_fingerprint", np.array("../../x")),
    ("meta_fingerprint", np.array(["0" * 64])),
    ("meta_fingerprint", np.array("A" * 64)),
    ("meta_store_digest", np.array("0" * 63)),
    ("meta_store_digest", np.array(3)),
    ("meta_parameters", np.array(["{}"])),
    ("meta_groups_digest", np.array(1)),
    ("meta_target_layer", np.array([[1]])),
    ("meta_target_feature", np.array(np.nan)),
    ("meta_dropped_sentence_indices", np.array(["a"])),
    ("meta_left_out_sentence_indices", np.array(1)),
    ("meta_anything", np.array([{}])),
]


@pytest.mark.parametrize(("name", "value"), TAMPERED, ids=[f"{name} {i}" for i, (name, _) in enumerate(TAMPERED)])
def test_a_tampered_dataset(cli: Any, built: tuple[Path, Arrays], name: str, value: Any) -> None:
    """Refused when it is loaded, and as the source of statistics: one line, which names the file and the array."""
    store, arrays = built
    path = written(Path("t.npz"), arrays, **{name: value})
    with pytest.raises(NpzError) as error:
        featurestore.load_dataset(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith("t.npz: ")
    assert name in str(error.value)
    result = cli("build", "--strategy", "hidden-to-concept", "--layer", 0, "--input", store, "--stats-from", path)
    assert result.exit_code == 1, result.exception
    assert result.output == f"Error: {error.value}\n"
    assert [path.name for path in Path().iterdir()] == ["t.npz"]


def test_largest_below_smallest(tmp_path: Path) -> None:
    fitted = Normalization("minmax", {"min": np.zeros(3), "max": np.array([1.0, 0, -1])})
    dataset(normalization=fitted).save(tmp_path / "x.npz")
    with pytest.raises(NpzError, match="'norm_max' must be norm_min or more"):
        featurestore.load_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "name",
    ["strategy", "fingerprint", "store_digest", "sentence_indices", "input_source", "input_layers", "input_dims"],
)
def test_statistics_that_cannot_be_traced(cli: Any, built: tuple[Path, Arrays], name: str) -> None:
    store, arrays = built
    path = written(Path("t.npz"), arrays, **{f"meta_{name}": None})
    assert name not in featurestore.load_dataset(path).metadata
    result = cli("build", "--strategy", "hidden-to-concept", "--layer", 0, "--input", store, "--stats-from", path)
    assert result.exit_code == 1, result.exception
    assert result.output == f"Error: --stats-from: cannot be traced, as it has no meta_{name}; build it again\n"


def test_other_dtypes_of_the_same_values(tmp_path: Path, built: tuple[Path, Arrays]) -> None:
    _, arrays = built
    changes: Arrays = {
        "X": np.arange(144, dtype=np.int64).reshape(24, 6),
        "y": arrays["y"].astype(np.uint8),
        "norm_mean": np.arange(6, dtype=np.float16),
        "norm_std": np.ones(6, bool),
        "meta_sentence_indices": np.arange(24, dtype=np.int16),
    }
    loaded = featurestore.load_dataset(written(tmp_path / "t.npz", arrays, **changes))
    np.testing.assert_array_equal(loaded.X, np.arange(144, dtype=np.float32).reshape(24, 6), strict=True)
    np.testing.assert_array_equal(loaded.y, arrays["y"])
    assert [values.dtype for values in loaded.normalization.parameters.values()] == [np.float64, np.float64]
    np.testing.assert_array_equal(loaded.transform(np.full(6, 9)), np.arange(9, 3, -1, dtype=np.float32), strict=True)


def test_the_old_scripts_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", X=np.zeros((3, 2)), y=np.zeros(3), metadata=np.array({}))
    with pytest.raises(NpzError) as error:
        featurestore.load_dataset(tmp_path / "old.npz")
    words = "is no dataset of featurestore: no norm_method among X, y, metadata; read it with numpy.load, or build"
    assert words in str(error.value)


REFUSED: dict[str, list[Any]] = {
    "parameters": [1j, [["{}"]], b"{}"],
    "store": [np.inf, ["a"]],
    "input_layers": [[1j], [1e308], ["12", "x"], np.inf, [2**64 - 1], [[1]], [True], 1],
    "target_layer": [np.inf, np.nan, "x", [[1]], np.array(1, "M8[s]"), 2**63],
    "split": ["train", ["train"] * 23, [1.0] * 24],
}
TEXTS = ["[" * 100_000, "9" * 5000, "[1]", "a\0b", '{"split": {"a": "\x1b[2J"}}', "\ud800", "../x"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_metadata_of_another_kind(tmp_path: Path, built: tuple[Path, Arrays], name: str, value: Any) -> None:
    path = written(tmp_path / "t.npz", built[1], **{f"meta_{name}": np.array(value)})
    with pytest.raises(NpzError, match=f"array 'meta_{name}'") as error:
        read_metadata(path, [name])
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_are_read_as_they_are(tmp_path: Path, built: tuple[Path, Arrays], text: str) -> None:
    path = written(tmp_path / "t.npz", built[1], meta_parameters=np.array(text), meta_store=np.array(text))
    read = read_metadata(path, ["parameters", "store"])
    assert read["parameters"].tolist() == read["store"].tolist() == text


def test_metadata_of_a_dataset(built: tuple[Path, Arrays], tmp_path: Path) -> None:
    path = written(tmp_path / "t.npz", built[1])
    read = read_metadata(path, ["input_layers", "split", "no_such_name"])
    assert {name: value.tolist() for name, value in read.items()} == {
        "input_layers": [0],
        "split": built[1]["meta_split"].tolist(),
        "shape": [24, 6],
        "normalize": "standardize",
    }
    for changes in ({"y": np.zeros(3)}, {"norm_std": np.ones(5)}, {"X": np.zeros((24, 6), "U1")}):
        with pytest.raises(NpzError):
            read_metadata(written(path, built[1], **changes), [])


# ---- how a file gets its name


def test_contents_are_compared_not_time_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system whose time stamps tell nothing apart."""
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: os.stat_result([*stat(*args, **kwargs)[:7], 0, 0, 0]))
    path = tmp_path / "x.npz"
    for value in (1, 1, 2, 1, 3):
        dataset(value).save(path, overwrite=True)
        assert featurestore.load_dataset(path).X[0, 0] == value
    with pytest.raises(DatasetError, match="other content"):
        dataset(4).save(path)


@pytest.mark.parametrize("target", ["there", "dangling", "without a folder"])
def test_a_link_is_written_through(tmp_path: Path, target: str) -> None:
    file = tmp_path / ("new/folder" if target == "without a folder" else "") / "file.npz"
    link = tmp_path / "link.npz"
    (tmp_path / "middle.npz").symlink_to(file)
    link.symlink_to("middle.npz")
    if target == "there":
        dataset(1).save(file)
        with pytest.raises(DatasetError, match=r"link\.npz: exists with other content"):
            dataset(2).save(link)
        assert featurestore.load_dataset(file).X[0, 0] == 1
    dataset(2).save(link, overwrite=target == "there")
    dataset(2).save(link)
    assert (link.readlink(), (tmp_path / "middle.npz").readlink()) == (Path("middle.npz"), file)
    assert not file.is_symlink()
    assert featurestore.load_dataset(file).X[0, 0] == 2
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["loop", "loop above", "pipe", "folder"])
def test_an_output_that_is_no_file(cli: Any, built: tuple[Path, Arrays], kind: str) -> None:
    path = Path("x.npz")
    match kind:
        case "loop":
            path.symlink_to("y.npz")
            Path("y.npz").symlink_to("x.npz")
        case "loop above":
            Path("above").symlink_to("above")
            path = Path("above/x.npz")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    result = cli("build", "--strategy", "hidden-to-concept", "--layer", 0, "--input", built[0], "--output", path)
    assert result.exit_code == 1, result.exception
    words = {"pipe": "expected a file, found no regular file", "folder": "expected a file, found a folder"}
    words |= dict.fromkeys(["loop", "loop above"], "is a link that leads to itself")
    assert result.output == f"Error: {path}: {words[kind]}; choose another output\n"


def test_the_longest_names(tmp_path: Path) -> None:
    name = "ä" * 125 + "a.npz"
    assert len(name.encode()) == 255
    for value in (1, 2):
        dataset(value).save(tmp_path / name, overwrite=True)
        assert featurestore.load_dataset(tmp_path / name).X[0, 0] == value
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ParameterError, match="too long"):
        dataset().save(tmp_path / f"a{name}")


def without(function: str, code: int, monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = int) -> None:
    """Let `os.link`, or opening a nameless file, fail."""
    real: Callable[..., Any] = getattr(os, function)

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if function == "open" and args[0] & os.O_TMPFILE != os.O_TMPFILE:
            return real(path, *args, **kwargs)
        before()
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, function, failing)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.ENOENT])
@pytest.mark.parametrize("lacking", [["link"], ["open"], ["link", "open"]])
def test_file_systems_without_links_or_nameless_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[str], code: int
) -> None:
    dataset(1).save(tmp_path / "usual.npz")
    for function in lacking:
        without(function, code, monkeypatch)
    path = tmp_path / "x.npz"
    dataset(1).save(path)
    dataset(1).save(path)
    assert path.read_bytes() == (tmp_path / "usual.npz").read_bytes()
    with pytest.raises(DatasetError, match="other content"):
        dataset(2).save(path)
    assert featurestore.load_dataset(path).X[0, 0] == 1
    dataset(2).save(path, overwrite=True)
    assert featurestore.load_dataset(path).X[0, 0] == 2
    assert {file.name for file in tmp_path.iterdir()} == {"usual.npz", "x.npz"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    without("link", errno.EPERM, monkeypatch, before=lambda: path.write_text("precious"))
    with pytest.raises(DatasetError, match="other content"):
        dataset().save(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_at_the_last_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path), None, str(target))

    path = tmp_path / "x.npz"
    dataset(1).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match=r"Input/output error: '\S*x\.npz'"):
        dataset(2).save(path, overwrite=True)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_threads_that_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its new file complete before any replaces the old one."""
    path, together, replace = tmp_path / "x.npz", threading.Barrier(4), Path.replace
    errors: list[Exception] = []

    def meet(file: Path, target: Path) -> Path:
        together.wait()
        return replace(file, target)

    def write(value: int) -> None:
        try:
            dataset(value).save(path, overwrite=True)
        except Exception as error:
            errors.append(error)
            together.abort()

    dataset(9).save(path)
    monkeypatch.setattr(Path, "replace", meet)
    threads = [threading.Thread(target=write, args=[value]) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]
    assert featurestore.load_dataset(path).X[0, 0] in range(4)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset(3, strategy="a").save("~/x.npz")
    assert (tmp_path / "x.npz").is_file()
    assert featurestore.load_dataset("~/x.npz").X[0, 0] == 3
    assert read_metadata("~/x.npz", ["strategy"])["strategy"] == "a"
