"""One batch of sentences on its way into a store's arrays: each chunk is made dense for itself, and forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.schema import ACTIVATIONS
from featurestore.store.layout import TOKEN_COORDS, file_index, file_name
from featurestore.store.shards import ShardWriter
from featurestore.store.snapshot import Snapshot
from featurestore.store.staging import Staged

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

MAX_LANES = 4
"""Threads that write shards; each holds one dense token of a shard's hidden states, or one dense chunk."""

_DTYPES: dict[str, Any] = {"string": np.dtypes.StringDType()}


@dataclass(frozen=True, eq=False)
class _Shard:
    """Sentences that are written into files of their own, row by row.

    Attributes
    ----------
    number : int
        Its place along `sentence`.
    kept : int
        How many of its first rows are committed already, and stay.
    sentences : sequence of Staged
        The rows after those.
    longest : int
        Tokens of its longest sentence.
    """

    number: int
    kept: int
    sentences: Sequence[Staged]
    longest: int


class _Growth:
    """Sentences that are to follow those of a store, written aside.

    Parameters
    ----------
    committed : Snapshot
        The store.
    sentences, tokens : int
        How many there are to append, and how many the longest of them has.
    folder : Path
        Where the files are written, by the same names as in the store.

    Attributes
    ----------
    snapshot : Snapshot
        What is to be committed once all is written.
    """

    def __init__(self, committed: Snapshot, sentences: int, tokens: int, folder: Path) -> None:
        self._committed, self._folder = committed, folder
        self._old, self._old_tokens = committed.sizes["sentence"], committed.sizes["token"]
        self._n_tokens = committed.coord("n_tokens")
        self._array = cache(partial(committed.array, n_tokens=self._n_tokens))
        self._new = self._old + sentences
        self._tokens = max(self._old_tokens, tokens)
        self.snapshot = committed.resized(self._new, self._tokens)

    def write(self) -> None:
        """Write all files that are to change."""
        raise NotImplementedError

    def _write_coord(self, name: str, values: Any) -> None:
        dtype = self.snapshot.arrays[name]["data_type"]
        values = np.asarray(values, _DTYPES.get(dtype, dtype))
        target = self._target(name)
        first = self._old - self._old % target.chunks[0]
        whole = np.zeros(target.shape[0] - first, values.dtype)
        whole[: self._old - first] = self._kept(name, first)
        whole[self._old - first :][: len(values)] = values
        target[first:] = whole

    def _write_token_labels(self) -> None:
        if self._tokens > self._old_tokens:
            labels = self._target("token")
            labels[:] = -1 - np.arange(labels.shape[0])

    def _kept(self, name: str, first: int, *places: int | slice) -> NDArray[Any]:
        """Read the committed sentences of an array from the `first` on; StoreError if a file is damaged or missing."""
        rest = len(self._committed.arrays[name]["shape"]) - 1 - len(places)
        return self._array(name).on_disk((slice(first, self._old), *places, *[slice(None)] * rest))

    def _target(self, name: str) -> zarr.Array[Any]:
        """Return a handle on the array as it is to be, enlarged to whole chunks."""
        dims = self.snapshot.arrays[name]["dimension_names"]
        chunks = dict(zip(dims, self.snapshot.file_shape(name), strict=True))
        rows, tokens = chunks.get("sentence", 1), chunks.get("token", 1)
        whole = self.snapshot.resized(-(-self._new // rows) * rows, -(-self._tokens // tokens) * tokens)
        return replace(whole, location=self._folder).open(name, writable=True)


class Batch(_Growth):
    """Sentences to append, and the rows of the last shard that they continue.

    Shards and chunks are always written whole: rows beyond the last sentence as padding, rows before the first one as
    they are committed. So nothing that an abandoned batch left behind can survive under them.

    Parameters
    ----------
    committed, folder
        As those of `_Growth`.
    sentences : sequence of Staged
        No more than the batch has room for.
    """

    def __init__(self, committed: Snapshot, sentences: Sequence[Staged], folder: Path) -> None:
        super().__init__(committed, len(sentences), max(staged.n_tokens for staged in sentences), folder)
        self._sentences = sentences

    def write(self) -> None:
        """Write all chunks that the batch touches."""
        for name in [name for name in self.snapshot.arrays if name in self._sentences[0].coords]:
            self._write_coord(name, [staged.coords[name] for staged in self._sentences])
        self._write_token_labels()
        for name in TOKEN_COORDS:
            self._write_token_coord(name)
        jobs = [
            (name, shard, start)
            for name in self.snapshot.data_arrays[::-1]  # the largest first
            for shard in self._shards(self.snapshot.file_shape(name)[0])
            for start in range(0, shard.longest, self.snapshot.file_shape(name)[1])
        ]
        with ThreadPoolExecutor(min(MAX_LANES, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: self._write_shard(*job), jobs))

    def _write_token_coord(self, name: str) -> None:
        """Write a chunk at a time, as each fragment repeats all that come before it in its sentence."""
        target = self._target(name)
        rows, step = target.chunks
        first = self._old - self._old % rows
        lengths = [*self._n_tokens[first:].tolist(), *(staged.n_tokens for staged in self._sentences)]
        for start in range(0, max(lengths), step):
            columns = slice(start, start + step)
            dtype = self.snapshot.arrays[name]["data_type"]
            whole = np.zeros((rows, step), _DTYPES.get(dtype, dtype))
            kept = self._kept(name, first, slice(start, min(start + step, self._old_tokens)))
            whole[: len(kept), : kept.shape[1]] = kept
            for row, staged in enumerate(self._sentences, self._old - first):
                part = staged.token_coords[name][columns]
                whole[row, : len(part)] = part
            target[first:, columns] = whole

    def _shards(self, rows: int) -> Iterator[_Shard]:
        """Divide the batch, with the committed rows of the shard that it continues."""
        for number in range(self._old // rows, -(-self._new // rows)):
            start = number * rows
            sentences = self._sentences[max(0, start - self._old) : max(0, start + rows - self._old)]
            kept = max(0, self._old - start)
            lengths = [*self._n_tokens[start:].tolist(), *(staged.n_tokens for staged in sentences)]
            yield _Shard(number, kept, sentences, max(lengths))

    def _write_shard(self, name: str, shard: _Shard, start: int) -> None:
        """Write the file of some tokens of a shard, token by token."""
        shape = self.snapshot.file_shape(name)
        index = (shard.number, start // shape[1], *[0] * (len(shape) - 2))
        fill = self._fill_activations if name == ACTIVATIONS else self._fill_dense
        with ShardWriter(self._folder / file_name(name, index), self.snapshot.arrays[name]) as writer:
            for token in range(start, min(start + shape[1], shard.longest)):
                fill(writer, name, shard, token, start)

    def _fill_dense(self, writer: ShardWriter, name: str, shard: _Shard, token: int, start: int) -> None:
        """Write the chunks of one token of embeddings or hidden states."""
        rows, _, *sizes = self.snapshot.file_shape(name)
        values = np.full((*sizes[:-1], rows, sizes[-1]), np.nan, self.snapshot.arrays[name]["data_type"])
        if shard.kept and token < self._old_tokens:
            values[..., : shard.kept, :] = np.moveaxis(self._kept(name, shard.number * rows, token), 0, -2)
        for row, staged in enumerate(shard.sentences, shard.kept):
            if token < staged.n_tokens:
                values[..., row, :] = staged.dense[name][token]
        for place in np.ndindex(*sizes[:-1]):
            writer.add((0, token - start, *place, 0), values[place])

    def _fill_activations(self, writer: ShardWriter, name: str, shard: _Shard, token: int, start: int) -> None:
        """Write the chunks of one token of activations, each made dense in the same memory."""
        rows, _, n_saes, width = self.snapshot.file_shape(name)
        step, features = self.snapshot.chunk_shape(name)[3], self.snapshot.sizes["feature"]
        dense = np.zeros((rows, width), self.snapshot.arrays[name]["data_type"])
        dense[:, features:] = np.nan
        ends = np.arange(n_saes + 1) * features
        present = [
            (row, positions, values, np.searchsorted(positions, ends.astype(positions.dtype)).tolist())
            for row, staged in enumerate(shard.sentences, shard.kept)
            if token < staged.n_tokens
            for positions, values in [staged.nonzero[token]]
        ]
        dense[np.setdiff1d(range(rows), [row for row, *_ in present])] = np.nan
        for sae in range(n_saes):
            if shard.kept and token < self._old_tokens:
                dense[: shard.kept, :features] = self._kept(name, shard.number * rows, token, sae)
            for row, positions, values, bounds in present:
                part = slice(bounds[sae], bounds[sae + 1])
                dense[row, :features] = 0
                dense[row, positions[part] - sae * features] = values[part]
            for i, column in enumerate(range(0, width, step)):
                chunk = np.ascontiguousarray(dense[:, column : column + step])
                writer.add((0, token - start, sae, i), chunk)


class Block(_Growth):
    """The sentences of a store of their own, with the same layout, that follow those of a store of whole batches.

    Their shards and chunks do not depend on where they stand, so that these are moved, and only renamed.

    Parameters
    ----------
    committed, folder
        As those of `_Growth`.
    block : Snapshot
        The other store, which is no store any more afterwards.
    """

    def __init__(self, committed: Snapshot, block: Snapshot, folder: Path) -> None:
        super().__init__(committed, block.sizes["sentence"], block.sizes["token"], folder)
        self._block = block

    def write(self) -> None:
        """Write the coordinates of sentences, and move all else."""
        for name, metadata in self.snapshot.arrays.items():
            if metadata["dimension_names"] == ["sentence"]:
                self._write_coord(name, self._block.coord(name))
            elif metadata["dimension_names"][0] == "sentence":
                self._move(name)
        self._write_token_labels()

    def _move(self, name: str) -> None:
        for file in (self._block.path / name).iterdir():
            if index := file_index(file.name):
                row = self._old // self.snapshot.file_shape(name)[0]
                target = self._folder / file_name(name, (row + index[0], *index[1:]))
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
