"""Dataset NPZs, as the training stage reads them: X, y, how they came about, and how X was normalized."""

from __future__ import annotations

import errno
import math
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets import chain
from featurestore.datasets.columns import Columns, Sequences
from featurestore.datasets.contents import Contents
from featurestore.datasets.normalize import PARAMETERS, Normalization, numbers
from featurestore.datasets.reduce import PARAMETERS as REDUCED
from featurestore.datasets.reduce import Reduction
from featurestore.errors import DatasetError, NonFiniteError, ParameterError, some
from featurestore.files import whole_file
from featurestore.npz import Archive
from featurestore.paths import PathLike, as_path
from featurestore.store.snapshot import is_store

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from sklearn.preprocessing import FunctionTransformer

_WINDOW_BYTES = 1 << 20
"""X is normalized and written in windows of rows that a processor's cache can hold."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training dataset: n rows, each of a sentence or a token, d columns; or n sequences of T tokens.

    Attributes
    ----------
    data : ndarray, Columns or Sequences, (n, d) or (n, T, d) float32
        X, computed or still lazy: then it is normalized when it is used or saved. For a dataset with other values:
        ``dataclasses.replace(dataset, data=values)``; those of other dtypes are rounded to float32.
    y : ndarray, (n,), or (n, k) where there are k targets
        int64 labels or float32 activations.
    metadata : mapping of str to ndarray
        Where it came from; in the file each name starts with ``meta_``.
    normalization : Normalization
        How X came from the raw values.
    reduction : Reduction, optional
        What came after it, if X is reduced.
    mask : ndarray, (n, T) bool, optional
        Of sequences: where there is a token. Elsewhere X is 0, which is padding.

    Raises
    ------
    DatasetError
        If X or y have other dims, or not as many rows, or none, or something else than real numbers; if the
        normalization or reduction is of other columns, or the metadata are no plain arrays.
    """

    data: NDArray[Any] | Columns | Sequences
    y: NDArray[Any]
    metadata: Mapping[str, NDArray[Any]]
    normalization: Normalization
    reduction: Reduction | None = None
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        dims_of_X = (2,) if self.mask is None else (3,)
        for name, array, dims in (("X", self.data, dims_of_X), ("y", self.y, (1, 2))):
            if not isinstance(array, np.ndarray | Columns | Sequences):
                raise DatasetError(f"{name}: expected an array, found {type(array).__name__}")
            if array.dtype.kind not in "biuf":
                raise DatasetError(f"{name}: expected real numbers, found dtype {array.dtype}")
            if array.ndim not in dims or 0 in array.shape:
                sizes = {2: "(n, d)", 3: "(n, T, d)"}[dims[0]] if name == "X" else "(n,) or (n, k)"
                raise DatasetError(f"{name}: expected shape {sizes}, with rows and columns, found {array.shape}")
        if len(self.y) != self.data.shape[0]:
            raise DatasetError(f"y: expected a row for each of the {self.data.shape[0]} of X, found {len(self.y)}")
        if self.mask is not None and (self.mask.dtype != bool or self.mask.shape != self.data.shape[:2]):
            found = f"found {self.mask.dtype} of shape {self.mask.shape}"
            raise DatasetError(f"mask: expected bool of the shape {self.data.shape[:2]} of X, {found}")
        if self.reduction and self.reduction.asked.count != self.data.shape[-1]:
            found = f"found {self.reduction.asked.count} components"
            raise DatasetError(f"reduction: expected the {self.data.shape[-1]} columns of X, {found}")
        if self._width and self.normalization.width not in (None, self._width):
            columns = f"{self._width} columns {'that are reduced' if self.reduction else 'of X'}"
            found = f"found statistics of {self.normalization.width}"
            raise DatasetError(f"normalization: expected the {columns}, {found}")
        for name, value in self.metadata.items():
            if np.asarray(value).dtype.hasobject:
                raise DatasetError(f"metadata {name!r}: expected numbers or text, found other objects")

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.data.shape))
        strategy, store = self.metadata.get("strategy"), self.metadata.get("store")
        steps = self.normalization.method + (f", {self.reduction.asked}" if self.reduction else "")
        return f"<Dataset {strategy} of {store}: X {sizes}, y {self.y.dtype}, {steps}>"

    @property
    def _steps(self) -> tuple[Normalization | Reduction, ...]:
        """How X came from the raw values, in this order."""
        return (self.normalization, self.reduction) if self.reduction else (self.normalization,)

    @property
    def _width(self) -> int | None:
        """Number of raw columns; None if that is not known any more."""
        return self.reduction.width if self.reduction else self.data.shape[-1]

    @cached_property
    def X(self) -> NDArray[np.float32]:  # noqa: N802
        """Normalized and reduced inputs, (n, d) or (n, T, d) float32; calculated at the first use and kept.

        Not to be written to, as only `data` is saved: copy it first.

        Raises
        ------
        NonFiniteError
            If there are values that are not finite in float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            X = np.asarray(self.data, np.float32).view()
        if not np.isfinite(X).all():
            raise self._nonfinite()
        X.flags.writeable = False
        return X

    def transform(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Normalize and reduce other raw values as X was, to (..., d) float32.

        Raises
        ------
        ParameterError
            If they have not as many columns as the raw values of X, or the reduction cannot be applied to others.
        """
        return chain.apply(numbers("raw values", raw, self._width), self._steps)

    def inverse(self, normalized: ArrayLike) -> NDArray[np.float32]:
        """Return values such as X to raw ones, (..., d) to float32; where X is reduced, approximately.

        Of padding it makes what a token of all zeros would be: `mask` says where there is none.

        Raises
        ------
        ParameterError
            If they are not of d columns, or the reduction cannot be inverted.
        """
        what = "reduced values" if self.reduction else "normalized values"
        return chain.undo(numbers(what, normalized, self.data.shape[-1]), self._steps)

    def transformer(self) -> FunctionTransformer:
        """Return `transform` and `inverse` as a scikit-learn transformer, for a pipeline on raw values.

        Fitting it changes nothing: it keeps what was fitted for this dataset. Needs scikit-learn, which this package
        does not install by itself (``pip install '.[sklearn]'``).
        """
        return chain.transformer(self._steps)  # which do not hold X

    def save(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the dataset, in windows of rows, so that X never has to fit in memory.

        The file appears under its name only when it is complete. The same dataset gives the same bytes.

        Parameters
        ----------
        path : str or PathLike
            Ends in ``.npz``. Where it is a link, the file that the link leads to is written.
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
        NonFiniteError
            If X or y have values that are not finite, X as it is written, in float32.
        OSError
            If the disk is full or the folder cannot be written.
        """
        path = check_output(path)
        if not np.isfinite(self.y).all():
            raise NonFiniteError("y has NaN or infinite values, which no dataset may hold; leave these sentences out")
        with whole_file(path, overwrite=overwrite) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            with _member(archive, "X") as member:
                self._write_X(member)
            for name, array in self._small_arrays().items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        return path

    def _write_X(self, member: IO[bytes]) -> None:  # noqa: N802
        header = {"descr": "<f4", "fortran_order": False, "shape": self.data.shape}
        np.lib.format.write_array_header_1_0(member, header)
        for window in self._windows():
            if not np.isfinite(window).all():
                raise self._nonfinite()
            member.write(memoryview(window).cast("B"))

    def _windows(self) -> Iterator[NDArray[np.float32]]:
        n, *sizes = self.data.shape
        rows = max(1, _WINDOW_BYTES // (4 * math.prod(sizes)))
        for start in range(0, n, rows):
            with np.errstate(over="ignore", invalid="ignore"):  # checked by whoever asks
                window = np.ascontiguousarray(self.data[start : start + rows], "<f4")
            yield window

    def _nonfinite(self) -> NonFiniteError:
        """Make the error that says where X is not finite."""
        n, *_, d = self.data.shape
        windows = (np.isfinite(values).reshape(len(values), -1, d) for values in self._windows())
        finite = [(values.all(axis=(1, 2)), values.all(axis=(0, 1))) for values in windows]
        rows = np.flatnonzero(~np.concatenate([of_rows for of_rows, _ in finite]))
        columns = np.flatnonzero(~np.all([of_columns for _, of_columns in finite], axis=0))
        found = f"{len(rows)} of {n} rows ({some(rows)}) and {len(columns)} of {d} columns ({some(columns)})"
        return NonFiniteError(f"X is not finite in float32, in {found}; leave them out, or normalize otherwise")

    def _small_arrays(self) -> dict[str, NDArray[Any]]:
        normalization = self.normalization
        return {
            "y": self.y,
            **({} if self.mask is None else {"mask": self.mask}),
            **{f"meta_{name}": value for name, value in self.metadata.items()},
            "norm_method": np.array(normalization.method),
            **{f"norm_{name}": normalization.parameters[name] for name in PARAMETERS[normalization.method]},
            **self._reduction_arrays(),
        }

    def _reduction_arrays(self) -> dict[str, NDArray[Any]]:
        if (reduction := self.reduction) is None:
            return {}
        arrays = {f"reduce_{name}": reduction.parameters[name] for name in REDUCED[reduction.asked.method]}
        return {"reduce_method": np.array(reduction.asked.method), **arrays}


def load_dataset(path: PathLike) -> Dataset:
    """Read a dataset file. Nothing in it is unpickled.

    Parameters
    ----------
    path : str or PathLike
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
    with Archive(as_path(path)) as archive:
        contents = Contents(archive)
        X = contents.read("X")
        return Dataset(
            X,
            contents.read("y"),
            contents.metadata(),
            contents.normalization(),
            contents.reduction(),
            contents.mask(X),
        )


def read_metadata(path: PathLike, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read what a dataset file says of itself, but neither X nor y, nor anything that was not asked for.

    Parameters
    ----------
    path : str or PathLike
        A dataset.
    names : sequence of str
        Of metadata; those that the file does not have are left out.

    Returns
    -------
    dict of str to ndarray
        Text, integers of at most one dim, or a digest, as `build` writes them, whoever wrote the file; names that
        `build` does not use are plain numbers or text. Also the shape of X, as `shape`, and the method of the
        normalization, as `normalize`.

    Raises
    ------
    NpzError
        If the file is damaged, or is no such dataset.
    """
    with Archive(as_path(path)) as archive:
        contents = Contents(archive)
        arrays = {name: contents.read(f"meta_{name}") for name in names if f"meta_{name}" in contents}
        return arrays | {"shape": np.array(contents.shape), "normalize": np.array(contents.method)}


def check_output(path: PathLike, *suffixes: str) -> Path:
    """Refuse a path that no dataset can be written to, or nothing that ends in one of some other suffixes.

    Raises
    ------
    ParameterError
        If it does not end in ``.npz``, or one of the `suffixes`.
    DatasetError
        If it is a folder, a device or the like, or a link that leads to itself, or is inside a store.
    """
    path = as_path(path)
    if path.suffix not in (expected := suffixes or (".npz",)):
        raise ParameterError(f"{path}: expected an output that ends in {' or '.join(expected)}")
    if store := next((parent for parent in path.absolute().parents if is_store(parent)), None):
        raise DatasetError(f"{path}: is inside the store {store}; choose another output")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DatasetError(f"{path}: is a link that leads to itself; choose another output") from error
        return path  # there is nothing yet, or writing says what is wrong
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise DatasetError(f"{path}: expected a file, found {found}; choose another output")
    return path


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Open a member for writing, stored and dated 1980, as `numpy.savez` does."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        yield member
