"""One array of a store as readers see it: never a wrong value, and of the rest no more than is asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurestore.errors import StoreError
from featurestore.store.layout import Metadata, chunk_shape, file_index, file_name, file_shape
from featurestore.store.location import Location, remedy
from featurestore.store.shards import ShardReader

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray
    from zarr.core.buffer import NDBuffer

    Positions = NDArray[np.intp]
    Index = int | slice | Positions

_FORWARD, _BACKWARD = slice(None), slice(None, None, -1)

_CHUNKS_AT_ONCE = 32
"""Chunks that are read together along an axis of which only some positions are wanted."""


class StoredArray:
    """An array that is read in parts: tokens in reading order (on disk the final one comes first), errors clear.

    Parameters
    ----------
    path : Path or ReadOnlyPath
        The store.
    name : str
        The array.
    metadata : dict
        As committed.
    n_tokens : ndarray, (sentence,) int64, optional
        Of each sentence. What is beyond them is padding, which is not read, and whose files need not be there.
    """

    def __init__(
        self, path: Location, name: str, metadata: Metadata, n_tokens: NDArray[np.int64] | None = None
    ) -> None:
        # Absolute, because whoever reads may have another working folder by then, or be another process.
        self._path = path.absolute() if isinstance(path, Path) else path
        self._name, self._metadata, self._shown = name, metadata, str(path)
        self._dims: list[str] = metadata["dimension_names"]
        self._lengths = n_tokens if self._dims[:2] == ["sentence", "token"] else None
        self.shape: tuple[int, ...] = tuple(metadata["shape"])
        is_text = metadata["data_type"] == "string"  # numpy's StringDType breaks much of xarray
        self.dtype = np.dtype(object if is_text else metadata["data_type"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is, no open files."""
        return type(self), (self._path, self._name, self._metadata, self._lengths)

    def __getitem__(self, key: tuple[Index, ...]) -> NDArray[Any]:
        """Read some positions of each axis, in any order: as `ndarray.__getitem__` of an open mesh (`numpy.ix_`)."""
        axes = [_Axis.of(index, size) for index, size in zip(key, self.shape, strict=True)]
        if "token" in self._dims:
            axis = self._dims.index("token")
            axes[axis] = axes[axis].reversed(self.shape[axis])
        return self._ordered(axes)

    def on_disk(self, key: tuple[Index, ...]) -> NDArray[Any]:
        """Read the same with the final token first."""
        return self._ordered([_Axis.of(index, size) for index, size in zip(key, self.shape, strict=True)])

    def _ordered(self, axes: list[_Axis]) -> NDArray[Any]:
        """Read into a new array, in C order whatever the directions of its axes."""
        values = np.empty([len(axis.positions) for axis in axes], self.dtype)
        ascending = values[tuple(axis.order if isinstance(axis.order, slice) else slice(None) for axis in axes)]
        shape = chunk_shape(self._metadata)
        runs = [_runs(axis.positions, chunk) for axis, chunk in zip(axes, shape, strict=True)]
        for piece in product(*runs):
            self._fill(ascending[tuple(run.target for run in piece)], piece)
        for number, axis in enumerate(axes):
            if isinstance(axis.order, np.ndarray):
                values = values.take(axis.order, number)
        single = [axis.order if isinstance(axis.order, int) else slice(None) for axis in axes]
        return values[(*single, ...)]  # an array also of a single value, as its dtype would be lost with it

    def _fill(self, target: NDArray[Any], runs: Sequence[_Run]) -> None:
        """Read one run of each axis, but no padding."""
        source = [run.source for run in runs]
        if self._lengths is not None and isinstance(runs[1].wanted, slice):
            rows, tokens = source[:2]
            n = max(0, int(self._lengths[rows][runs[0].wanted].max()) - tokens.start)
            if n < target.shape[1]:
                target[:, n:] = self._padding
                target, source[1] = target[:, :n], slice(tokens.start, tokens.start + n)
        if not target.size:
            return
        if all(isinstance(run.wanted, slice) for run in runs):
            self._read(tuple(source), target)
            return
        covering = np.empty([part.stop - part.start for part in source], self.dtype)
        self._read(tuple(source), covering)
        for axis, run in enumerate(runs):
            if isinstance(run.wanted, np.ndarray):
                covering = covering.take(run.wanted, axis)
        target[...] = covering

    def _read(self, key: tuple[slice, ...], target: NDArray[Any]) -> None:
        for pause in (0.01, 0.1, None):
            try:
                if isinstance(self._path, Path):
                    self._read_files(self._path, key, target)
                else:
                    self._array.get_basic_selection(key, out=self._buffer(target))
            except StoreError:
                raise
            except (ValueError, RuntimeError) as error:
                # Its checksum fails: damaged, or just being replaced by a writer who appends to the same file.
                if pause is None:
                    raise self._error(f"is damaged ({error})") from error
                time.sleep(pause)
            except OSError as error:
                raise self._error(f"cannot be read ({error.strerror or error})") from error
            else:
                return

    @property
    def _padding(self) -> Any:
        fill = self._metadata["fill_value"]
        return np.nan if fill == "NaN" else fill

    def _read_files(self, folder: Path, key: tuple[slice, ...], target: NDArray[Any]) -> None:
        """Read local files side by side, each chunk straight to its place."""
        jobs = list(product(*(_cut(part, size) for part, size in zip(key, file_shape(self._metadata), strict=True))))
        if len(jobs) == 1:
            self._read_file(folder, jobs[0], target)
            return
        futures = [_readers().submit(self._read_file, folder, job, target) for job in jobs]
        wait(futures)
        for future in futures:
            future.result()

    def _read_file(self, folder: Path, parts: Sequence[_Part], target: NDArray[Any]) -> None:
        file = file_name(self._name, [part.number for part in parts])
        target = target[tuple(part.target for part in parts)]
        try:
            shard = ShardReader(folder / file, self._metadata)
        except FileNotFoundError:
            self._check_missing(file)
            target[...] = self._padding
            return
        with shard:
            chunks = (_cut(part.within, size) for part, size in zip(parts, chunk_shape(self._metadata), strict=True))
            for pieces in product(*chunks):
                place, piece = tuple(one.number for one in pieces), target[tuple(one.target for one in pieces)]
                if not shard.read_into(piece, place, tuple(one.within for one in pieces)):
                    piece[...] = self._padding

    def _error(self, found: str) -> StoreError:
        return StoreError(f"{self._shown}: array '{self._name}' {found}; {remedy(self._path)}")

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        from featurestore.store.handles import complete_files, open_array

        return open_array(complete_files(self._path, self._check_missing), self._name, self._metadata)

    @cached_property
    def _buffer(self) -> Callable[[NDArray[Any]], NDBuffer]:
        from zarr.core.buffer import default_buffer_prototype

        return default_buffer_prototype().nd_buffer.from_ndarray_like

    def _check_missing(self, file: str) -> None:
        """Refuse that a file is not there, unless it would hold nothing but padding."""
        index = file_index(file.rpartition("/")[2])
        if index is not None and self._dims[:2] == ["sentence", "token"]:
            rows, tokens, *_ = file_shape(self._metadata)
            lengths = self._lengths[index[0] * rows :][:rows] if self._lengths is not None else np.array([0])
            if lengths.max() <= index[1] * tokens:
                return
        raise StoreError(f"{self._shown}: {file} is missing; {remedy(self._path)}")


class _Axis(NamedTuple):
    """What is wanted of an axis: ascending positions, each once, and the order in which they are wanted."""

    positions: Positions
    order: int | slice | Positions

    @classmethod
    def of(cls, index: Index, size: int) -> _Axis:
        if isinstance(index, int | np.integer):
            return cls(np.array([range(size)[index]]), 0)
        wanted = (
            np.arange(*index.indices(size)) if isinstance(index, slice) else np.where(index < 0, index + size, index)
        )
        steps = np.diff(wanted)
        if (steps > 0).all():
            return cls(wanted, _FORWARD)
        if (steps < 0).all():
            return cls(wanted[::-1], _BACKWARD)
        return cls(*np.unique(wanted, return_inverse=True))

    def reversed(self, size: int) -> _Axis:
        """Return the same places of an axis that is counted from its other end."""
        order = self.order
        if isinstance(order, slice):
            order = _BACKWARD if order == _FORWARD else _FORWARD
        elif isinstance(order, np.ndarray):
            order = len(self.positions) - 1 - order
        return _Axis(size - 1 - self.positions[::-1], order)


class _Run(NamedTuple):
    """Positions of an axis that are read together.

    Attributes
    ----------
    source : slice
        Covers them on disk.
    wanted : slice, or ndarray of int
        Which of these they are.
    target : slice
        Which of all positions they are.
    """

    source: slice
    wanted: slice | Positions
    target: slice


class _Part(NamedTuple):
    """What is wanted of one file or chunk along an axis.

    Attributes
    ----------
    number : int
        Which it is.
    within, target : slice
        Where it is in there, and where it goes.
    """

    number: int
    within: slice
    target: slice


def _cut(wanted: slice, size: int) -> list[_Part]:
    """Divide what is wanted of an axis among its files or chunks, all of one size."""
    parts = []
    for number in range(wanted.start // size, -(-wanted.stop // size)):
        start, stop = max(wanted.start, number * size), min(wanted.stop, (number + 1) * size)
        within = slice(start - number * size, stop - number * size)
        parts.append(_Part(number, within, slice(start - wanted.start, stop - wanted.start)))
    return parts


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "featurestore-reader")


os.register_at_fork(after_in_child=_readers.cache_clear)  # where its threads are not


def _runs(positions: Positions, chunk: int) -> list[_Run]:
    """Cut ascending positions into runs of adjacent chunks, which are read together."""
    if not len(positions):
        return []
    chunks = positions // chunk
    ends = np.diff(chunks) > 1
    if len(positions) <= positions[-1] - positions[0]:  # so the gaps within a run are bounded
        ends |= np.diff(chunks // _CHUNKS_AT_ONCE) > 0
    bounds = [0, *(np.flatnonzero(ends) + 1).tolist(), len(positions)]
    return [_run(positions[first:last], slice(first, last)) for first, last in pairwise(bounds)]


def _run(positions: Positions, target: slice) -> _Run:
    start, stop = int(positions[0]), int(positions[-1]) + 1
    wanted = slice(None) if stop - start == len(positions) else positions - start
    return _Run(slice(start, stop), wanted, target)
