"""Dataset NPZs, as the training stage reads them: X, y, how they came about, and how X was normalized."""

from __future__ import annotations

import filecmp
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DatasetError, NpzError, ParameterError, naming, shown, spelled
from featurestore.normalize import PARAMETERS, Normalization
from featurestore.npz import Archive

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.preprocessing import FunctionTransformer

DATASETS = Path("generated_datasets")
"""Where datasets go that are given no other place."""

_WINDOW_BYTES = 1 << 20
"""X is normalized and written in windows of rows that a processor's cache can hold."""


class Columns:
    """Blocks of columns side by side, of some rows; like a 2-D array, but calculated when it is sliced.

    Parameters
    ----------
    blocks : sequence of ndarray, (m, d_i)
        Raw values.
    rows : ndarray, (n,) int
        Which of their rows, in this order.
    columns : ndarray, (d,) int, or slice
        Which of their columns.
    normalization : Normalization, optional
        Applied to what is sliced; without it the values are raw.
    """

    ndim = 2

    def __init__(
        self,
        blocks: Sequence[NDArray[Any]],
        rows: NDArray[np.intp],
        columns: NDArray[np.intp] | slice = slice(None),
        normalization: Normalization | None = None,
    ) -> None:
        self._blocks, self._rows, self._columns, self._normalization = blocks, rows, columns, normalization
        self.shape = len(rows), len(np.arange(sum(block.shape[1] for block in blocks))[columns])
        self.dtype = np.dtype(np.float32) if normalization else np.result_type(*blocks)

    def __getitem__(self, key: slice | tuple[slice, ...]) -> NDArray[Any]:
        part, *further = key if isinstance(key, tuple) else (key,)
        rows = self._rows[part]
        values = np.concatenate([block[rows] for block in self._blocks], axis=1)[:, self._columns]
        if self._normalization:
            values = self._normalization.transform(values)
        return values[:, *further]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training dataset: n sentences, d columns.

    Attributes
    ----------
    data : ndarray or Columns, (n, d) float32
        X, computed or still lazy: then it is normalized when it is used or saved.
    y : ndarray, (n,), or (n, k) where there are k targets
        int64 labels or float32 activations.
    metadata : mapping of str to ndarray
        Where it came from; in the file each name starts with ``meta_``.
    normalization : Normalization
        How X came from the raw values.
    """

    data: NDArray[np.float32] | Columns
    y: NDArray[Any]
    metadata: Mapping[str, NDArray[Any]]
    normalization: Normalization

    def __repr__(self) -> str:
        n, d = self.data.shape
        strategy, store = self.metadata.get("strategy"), self.metadata.get("store")
        return f"<Dataset {strategy} of {store}: X {n} x {d}, y {self.y.dtype}, {self.normalization.method}>"

    @cached_property
    def X(self) -> NDArray[np.float32]:  # noqa: N802
        """Normalized inputs, (n, d) float32; calculated at the first use and kept."""
        return np.asarray(self.data)

    def transform(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalize other raw values as X was, (..., d) to float32."""
        return self.normalization.transform(raw)

    def inverse(self, normalized: NDArray[Any]) -> NDArray[np.float32]:
        """Return normalized values to raw ones, (..., d) to float32."""
        return self.normalization.inverse(normalized)

    def transformer(self) -> FunctionTransformer:
        """Return `transform` and `inverse` as a scikit-learn transformer, for a pipeline on raw values.

        Fitting it changes nothing: it keeps the statistics of this dataset. Needs scikit-learn, which this package
        does not install by itself (``pip install featurestore[sklearn]``).
        """
        from sklearn.preprocessing import FunctionTransformer

        apply, undo = self.normalization.transform, self.normalization.inverse  # which do not hold X
        return FunctionTransformer(apply, undo, validate=False, check_inverse=False, feature_names_out="one-to-one")

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the dataset, in windows of rows, so that X never has to fit in memory.

        The file appears under its name only when it is complete. The same dataset gives the same bytes.

        Parameters
        ----------
        path : path-like
            Ends in ``.npz``.
        overwrite : bool
            Replace a file that has other content.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        DatasetError
            If `path` holds something else already and `overwrite` is false.
        OSError
            If the disk is full or the folder cannot be written.
        """
        path = check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), _unnamed_file(path.parent) as (file, source):
            with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                with _member(archive, "X") as member:
                    np.lib.format.write_array_header_1_0(
                        member, {"descr": "<f4", "fortran_order": False, "shape": self.data.shape}
                    )
                    for window in self._windows():
                        member.write(memoryview(window).cast("B") if window.size else b"")
                for name, array in self._small_arrays().items():
                    with _member(archive, name) as member:
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            _publish(source, path, overwrite)
        return path

    def _windows(self) -> Iterator[NDArray[np.float32]]:
        n, d = self.data.shape
        rows = max(1, _WINDOW_BYTES // (4 * max(1, d)))
        for start in range(0, n, rows):
            yield np.ascontiguousarray(self.data[start : start + rows])

    def _small_arrays(self) -> dict[str, NDArray[Any]]:
        normalization = self.normalization
        return {
            "y": self.y,
            **{f"meta_{name}": value for name, value in self.metadata.items()},
            "norm_method": np.array(normalization.method),
            **{f"norm_{name}": normalization.parameters[name] for name in PARAMETERS[normalization.method]},
        }


def load_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read a dataset file. Nothing in it is unpickled.

    Parameters
    ----------
    path : path-like
        A dataset as `build` wrote it.

    Returns
    -------
    Dataset
        In memory.

    Raises
    ------
    NpzError
        If the file is damaged, or is no such dataset.
    """
    path = Path(path)
    with Archive(path) as archive:
        method = _method(archive)
        arrays = {name: archive.array(name, max_bytes=path.stat().st_size) for name in archive.names}
    for name in (f"norm_{name}" for name in PARAMETERS[method]):
        if arrays[name].shape != arrays["X"].shape[1:]:
            raise NpzError(f"{path}: {name} has shape {arrays[name].shape}, X has {arrays['X'].shape}; build it again")
    return Dataset(
        arrays["X"],
        arrays["y"],
        {name.removeprefix("meta_"): value for name, value in arrays.items() if name.startswith("meta_")},
        Normalization(method, {name: arrays[f"norm_{name}"] for name in PARAMETERS[method]}),
    )


def read_metadata(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read what a dataset file says of itself, but neither X nor y, nor anything that was not asked for.

    Parameters
    ----------
    path : path-like
        A dataset.
    names : sequence of str
        Of metadata; those that the file does not have are left out. The shape of X is added as `shape`, the method of
        the normalization as `normalize`.

    Raises
    ------
    NpzError
        If the file is damaged, or is no such dataset.
    """
    path = Path(path)
    with Archive(path) as archive:
        method, size = _method(archive), path.stat().st_size
        found = [name for name in names if f"meta_{name}" in archive]
        arrays = {name: archive.array(f"meta_{name}", max_bytes=size) for name in found}
        return arrays | {"shape": np.array(archive.header("X").shape), "normalize": np.array(method)}


def _method(archive: Archive) -> str:
    """Return the method of normalization of what is a dataset, as far as its directory and headers can tell."""
    where = shown(archive.path)
    if "norm_method" not in archive:
        raise NpzError(f"{where}: is no dataset of featurestore: no array 'norm_method'; check the path")
    method = str(archive.array("norm_method", max_bytes=4096))
    if method not in PARAMETERS:
        raise NpzError(f"{where}: norm_method {method!r} is none of {', '.join(PARAMETERS)}; build it again")
    expected = ["X", "y", *(f"norm_{name}" for name in PARAMETERS[method])]
    if missing := [name for name in expected if name not in archive]:
        raise NpzError(f"{where}: is no dataset of featurestore: missing {', '.join(missing)}; build it again")
    if len(archive.header("X").shape) != 2:
        raise NpzError(f"{where}: X has shape {archive.header('X').shape}, expected two dims; build it again")
    return method


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no dataset can be written to.

    Raises
    ------
    ParameterError
        If it does not end in ``.npz``.
    DatasetError
        If it is a folder.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ParameterError(f"{path}: expected an output that ends in .npz")
    if path.is_dir():
        raise DatasetError(f"{path}: expected a file, found a folder; choose another output")
    return path


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Open a member for writing, stored and dated 1980, as `numpy.savez` does."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        yield member


@contextmanager
def _unnamed_file(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file in `folder` that has no name yet, where the system can, so that a kill leaves nothing behind."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):  # not Linux, or a file system without unnamed files
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial") as file:
            os.fchmod(file.fileno(), 0o644)
            yield file, file.name
    else:
        with os.fdopen(fd, "w+b") as file:
            yield file, f"/proc/self/fd/{fd}"


def _publish(source: str, path: Path, overwrite: bool) -> None:
    """Give a complete file its name, at once."""
    try:
        _link(source, path)
        return
    except FileExistsError:
        if filecmp.cmp(source, path, shallow=False):
            return
    if not overwrite:
        raise DatasetError(f"{path}: exists with other content; choose another output, or {spelled('overwrite', True)}")
    named = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _link(source, named)
    named.replace(path)


def _link(source: str, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # With a folder given this is linkat, which unlike link follows the /proc link of an unnamed file.
        os.link(source, path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
