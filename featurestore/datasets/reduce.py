"""Reduction: components of the normalized training rows, kept as a frozen value, applied and inverted anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.datasets.normalize import numbers
from featurestore.errors import ParameterError, extra, spelled
from featurestore.questions.components import Components
from featurestore.schema import REDUCTIONS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

PARAMETERS = dict(zip(REDUCTIONS, (("mean", "components", "explained_variance_ratio"), ()), strict=True))
"""The methods, and the names of their parameters."""

_NOTHING = 1e-12
"""Share of the variance below which a direction is an accident of rounding, and all scores on it are 0."""

_WINDOW_BYTES = 64 << 20
"""Rows are used in windows of this size, in float64."""

_EXACT_VALUES, _EXACT_SIDE = 1 << 24, 1 << 10
"""Up to so many values, and so many rows or columns, whichever are fewer, the decomposition is exact: in seconds."""

_OVERSAMPLED, _PASSES, _SEED = 10, 5, 0
"""Directions that are followed besides those asked for, how often they are turned, and where they start."""


_ROWS = 1 << 13
"""Rows of directions that are decomposed at once."""


class Rows(Protocol):
    """What can be sliced by rows, such as an array, or columns that are calculated when they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, key: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Reduction:
    """A fitted reduction of d normalized columns to k.

    Attributes
    ----------
    asked : Components
        The method, and k.
    parameters : mapping of str to ndarray
        Of ``"pca"``: `mean` (d,) float64; `components` (k, d), orthonormal, in float32, as they are most of the file of
        a dataset that is reduced, and X is no more precise; `explained_variance_ratio` (k,) float64, the share of
        each in the variance of the training rows, 0 if there is none. Of ``"umap"`` nothing.
    """

    asked: Components
    parameters: Mapping[str, NDArray[Any]]

    @property
    def width(self) -> int | None:
        """Number of columns that are reduced; None if that is not known any more."""
        return len(self.parameters["mean"]) if self.parameters else None

    def transform(self, normalized: ArrayLike) -> NDArray[np.float32]:
        """Return the scores of normalized values: ``(normalized - mean) @ components.T``.

        Parameters
        ----------
        normalized : array_like, (..., d)

        Returns
        -------
        ndarray, (..., k) float32
            Calculated in float64 and rounded once.

        Raises
        ------
        ParameterError
            If they are no numbers, or the number of columns is another, or the method can only be fitted.
        """
        self.check_known("applied to other data")
        values = numbers("normalized values", normalized, self.width).astype(np.float64)
        values -= self.parameters["mean"]
        scores: NDArray[np.float64] = values @ self.parameters["components"].T.astype(np.float64)
        return scores.astype(np.float32)

    def inverse(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Return the normalized values that scores stand for: approximate, without what the components leave out.

        Parameters
        ----------
        scores : array_like, (..., k)

        Returns
        -------
        ndarray, (..., d) float32

        Raises
        ------
        ParameterError
            If they are no numbers, or the number of columns is another, or the method can only be fitted.
        """
        self.check_known("inverted")
        values = numbers("reduced values", scores, self.asked.count).astype(np.float64)
        restored: NDArray[np.float64] = values @ self.parameters["components"].astype(np.float64)
        restored += self.parameters["mean"]
        return restored.astype(np.float32)

    def scores(self, X: Rows) -> NDArray[np.float32]:
        """Transform rows, (n, d) to (n, k), in windows that are always the same, so that all values are."""
        return np.concatenate([self.transform(window) for window in _windows(X)])

    def check_known(self, use: str) -> None:
        """Refuse a use of what is not kept; ParameterError."""
        if not self.parameters:
            raise ParameterError(f"{self.asked}: cannot be {use}; use {REDUCTIONS[0]}-{self.asked.count} for that")


def check_fit(asked: Components, n: int, d: int) -> str:
    """Say why n training rows of d columns cannot be reduced so, or nothing."""
    spare = 2 if asked.method == "umap" else 0  # which needs more rows than components
    if asked.count + spare <= n and asked.count <= d:
        return ""
    fewest = f"at least {asked.count + spare} training rows and {asked.count} columns"
    return f"{spelled('reduce', str(asked))}: expected {fewest}, found {n} and {d}; ask for fewer components"


def reduced(
    asked: Components, X: Rows, training: Rows, is_training: NDArray[np.bool_]
) -> tuple[Reduction, NDArray[Any]]:
    """Fit a reduction to training rows, and reduce all rows by it.

    Parameters
    ----------
    asked : Components
        Method and number.
    X : array-like, (n, d)
        All rows, normalized.
    training : array-like, (m, d)
        The training rows among them.
    is_training : ndarray, (n,) bool
        Which these are.

    Returns
    -------
    Reduction, ndarray (n, k) float32

    Raises
    ------
    ParameterError
        If there are fewer rows or columns than components.
    MissingExtraError
        If it is ``"umap"``, and umap-learn is not installed.
    """
    if fault := check_fit(asked, *training.shape):
        raise ParameterError(fault)
    if asked.method == "umap":
        return Reduction(asked, {}), _umap(asked.count, X, is_training)
    fitted = Reduction(asked, _pca(asked.count, training))
    return fitted, fitted.scores(X)


def _umap(k: int, X: Rows, is_training: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Embed rows; the others where the neighbours among the training rows are (McInnes, Healy, Melville 2018)."""
    import warnings

    with extra("umap"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of a part that is not used
        import umap

    values, n = X[:], int(is_training.sum())
    model = umap.UMAP(n_components=k, n_neighbors=min(15, n - 1), random_state=_SEED, n_jobs=1)
    embedded = np.empty((len(values), k), np.float32)
    embedded[is_training] = model.fit_transform(values[is_training])
    if n < len(values):
        embedded[~is_training] = model.transform(values[~is_training])
    return embedded


def _pca(k: int, X: Rows) -> dict[str, NDArray[Any]]:
    """Find the k principal components of some rows."""
    n, d = X.shape
    mean = sum((window.sum(axis=0, dtype=np.float64) for window in _windows(X)), np.zeros(d)) / n
    exact = n * d <= _EXACT_VALUES and min(n, d) <= _EXACT_SIDE
    sums, components, total = (_exact if exact else _randomized)(k, X, mean)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1, keepdims=True), axis=1)
    components = np.where(largest < 0, -components, components)  # as a decomposition leaves the signs open
    shares = sums / (total or 1.0)
    nothing = shares < _NOTHING
    components[nothing], shares[nothing] = 0, 0
    return {"mean": mean, "components": components.astype(np.float32), "explained_variance_ratio": shares}


def _exact(k: int, X: Rows, mean: Floats) -> tuple[Floats, Floats, float]:
    """Return the k largest variances of centred rows, as sums, and their directions, (k, d); and the sum of all."""
    centred = X[:] - mean
    if len(centred) < centred.shape[1]:
        gram = centred @ centred.T
        sums, vectors = _largest(k, gram)
        return sums, np.linalg.qr(centred.T @ vectors).Q.T, float(np.trace(gram))
    gram = centred.T @ centred
    sums, vectors = _largest(k, gram)
    return sums, vectors.T, float(np.trace(gram))


def _randomized(k: int, X: Rows, mean: Floats) -> tuple[Floats, Floats, float]:
    """Do the same by random directions (Halko, Martinsson, Tropp 2011), window by window.

    All directions that the passes find are kept, a block Krylov space (Halko, Martinsson, Shkolnisky, Tygert 2011), as
    these converge in far fewer passes. They need memory for about ``15 * k`` columns; `X` is never held.
    """
    n, d = X.shape
    block = np.random.default_rng(_SEED).standard_normal((d, min(k + _OVERSAMPLED, n, d)))
    found = np.empty((_PASSES, *block.shape[::-1]))
    for of_pass in found:
        turned = np.zeros_like(block)
        for centred in _centred(X, mean):
            turned += centred.T @ (centred @ block)
        block = _orthonormal(turned)
        of_pass[:] = block.T
    directions = _orthonormal(found.reshape(-1, d).T)
    gram, total = np.zeros((directions.shape[1],) * 2), 0.0
    for centred in _centred(X, mean):
        projected = centred @ directions
        gram += projected.T @ projected
        total += float(np.vdot(centred, centred))
    sums, vectors = _largest(k, gram)
    return sums, (directions @ vectors).T, total


def _orthonormal(columns: Floats) -> Floats:
    """Return an orthonormal basis of columns, by parts of the rows, as numpy's own makes five copies of all of them."""
    parts = [np.linalg.qr(part) for part in np.array_split(columns, -(-len(columns) // _ROWS))]
    rotations = np.linalg.qr(np.concatenate([part.R for part in parts])).Q
    ends = np.cumsum([len(part.R) for part in parts])[:-1]
    return np.concatenate([part.Q @ rotation for part, rotation in zip(parts, np.split(rotations, ends), strict=True)])


def _largest(k: int, gram: Floats) -> tuple[Floats, Floats]:
    """Return the k largest eigenvalues of a Gram matrix, and their vectors, (m, k)."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1][:k], 0), vectors[:, ::-1][:, :k]


def _centred(X: Rows, mean: Floats) -> Iterator[Floats]:
    for window in _windows(X):
        yield window - mean


def _windows(X: Rows) -> Iterator[NDArray[Any]]:
    n, d = X.shape
    rows = max(1, _WINDOW_BYTES // (8 * d))
    return (X[start : start + rows] for start in range(0, n, rows))
