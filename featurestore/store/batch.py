"""One batch of sentences on its way into a store's arrays.

Sentences are staged with their non-zero activations only, so that a whole batch fits in memory; each chunk is made
dense for itself, written, and forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deflate
import numpy as np

from featurestore.schema import ACTIVATIONS, ARRAYS, EMBEDDINGS, HIDDEN_STATES, Sentence
from featurestore.store.layout import CHECKSUMS, TOKEN_COORDS, file_name
from featurestore.store.shards import ShardWriter
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

MAX_LANES = 4
"""Threads that write shards; each holds one dense token of a shard's hidden states, or one dense chunk."""

NonZeros = tuple["NDArray[np.integer]", "NDArray[np.floating]"]

_DTYPES: dict[str, Any] = {"string": np.dtypes.StringDType()}


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A sentence ready to be written, small enough to hold a batch of them.

    Attributes
    ----------
    n_tokens : int
        Its tokens.
    coords : dict
        Its value of each coordinate along `sentence`.
    token_coords : dict of str to sequence
        Its values of each coordinate along `sentence` and `token`, final token first.
    dense : dict of ndarray
        `embeddings` (T, H) and `hidden_states` (T, L, H), as far as there are any, final token first.
    nonzero : list of (positions, values)
        For each token, final one first: the non-zero activations, and where they are in a flat (S, F) array.
    """

    n_tokens: int
    coords: dict[str, int | str | bool]
    token_coords: dict[str, Sequence[Any]]
    dense: dict[str, NDArray[np.floating]]
    nonzero: list[NonZeros]

    @property
    def nbytes(self) -> int:
        """Memory that its arrays and texts hold; those of long documents are large, as each repeats the last."""
        arrays = [*self.dense.values(), *(array for pair in self.nonzero for array in pair)]
        return sum(array.nbytes for array in arrays) + sum(map(len, self.token_coords["fragment"]))

    def token(self, name: str, token: int, shape: tuple[int, ...]) -> NDArray[np.floating]:
        """Return one token's values of an array, dense, in its shape: (H,), (L, H) or (S, F)."""
        if name != ACTIVATIONS:
            values: NDArray[np.floating] = self.dense[name][token]
            return values
        positions, values = self.nonzero[token]
        dense = np.zeros(shape, values.dtype)
        dense.ravel()[positions] = values
        return dense


def stage(sentence: Sentence, special_first: int) -> Staged:
    """Turn tokens round, keep the non-zero activations only, and take the checksums.

    Parameters
    ----------
    sentence : Sentence
        As its file has it.
    special_first : int
        So many tokens at the beginning are special ones, whatever the file says.
    """
    present = {name: array for name in ARRAYS if (array := getattr(sentence, name)) is not None}
    by_token = {name: (array if array.ndim == 2 else array.swapaxes(0, 1))[::-1] for name, array in present.items()}
    dense = {name: np.ascontiguousarray(by_token[name]) for name in (EMBEDDINGS, HIDDEN_STATES) if name in by_token}
    checksums = {name: deflate.crc32(array.reshape(-1).view(np.uint8)) for name, array in dense.items()}
    nonzero: list[NonZeros] = []
    n_nonfinite = sum(map(count_nonfinite, dense.values()))
    if (activations := by_token.get(ACTIVATIONS)) is not None:
        checksum = 0
        for token in activations:
            flat = token.ravel()
            checksum = deflate.crc32(flat.view(np.uint8), checksum)
            nonzero.append(_nonzero(flat))
            n_nonfinite += count_nonfinite(nonzero[-1][1])
        checksums[ACTIVATIONS] = checksum
    file = sentence.file
    texts = [after.removeprefix(before) for before, after in pairwise(("", *sentence.fragments))]
    special = [token < special_first or mark for token, mark in enumerate(sentence.special.tolist())]
    token_coords = {"fragment": sentence.fragments, "token_text": texts, "is_special": special}
    return Staged(
        n_tokens=file.n_tokens,
        coords={
            "sentence": file.sentence_index,
            "label": -1 if sentence.label is None else sentence.label,
            "has_label": sentence.label is not None,
            "n_tokens": file.n_tokens,
            "n_nonfinite": n_nonfinite,
            "text": sentence.text,
            "source": file.path.name,
            "source_digest": file.digest,
            **{CHECKSUMS[name]: signed(checksum) for name, checksum in checksums.items()},
        },
        token_coords={name: values[::-1] for name, values in token_coords.items()},
        dense=dense,
        nonzero=nonzero,
    )


def count_nonfinite(values: NDArray[np.floating]) -> int:
    """Count NaN and infinite values."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def signed(checksum: int) -> int:
    """Return a CRC-32 as it is kept, as a signed integer of 32 bits."""
    return checksum - (1 << 32) if checksum >> 31 else checksum


def _nonzero(flat: NDArray[np.floating]) -> NonZeros:
    # Bits rather than values: -0.0 is kept, and comparing integers is faster.
    positions = np.flatnonzero(flat.view(f"u{flat.itemsize}") != 0)
    return positions.astype(np.uint32 if flat.size < 1 << 32 else np.uint64), flat[positions]


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


class Batch:
    """Sentences to append, and the rows of the last shard that they continue.

    Shards and chunks are always written whole: rows beyond the last sentence as padding, rows before the first one as
    they are committed. So nothing that an abandoned batch left behind can survive under them.

    Parameters
    ----------
    committed : Snapshot
        The store.
    sentences : sequence of Staged
        No more than the batch has room for.
    folder : Path
        Where the files are written, by the same names as in the store.

    Attributes
    ----------
    snapshot : Snapshot
        What is to be committed once the batch is written.
    """

    def __init__(self, committed: Snapshot, sentences: Sequence[Staged], folder: Path) -> None:
        self._committed, self._sentences, self._folder = committed, sentences, folder
        self._old, self._old_tokens = committed.sizes["sentence"], committed.sizes["token"]
        self._new = self._old + len(sentences)
        self._tokens = max(self._old_tokens, *(staged.n_tokens for staged in sentences))
        self.snapshot = committed.resized(self._new, self._tokens)

    def write(self) -> None:
        """Write all chunks that the batch touches."""
        for name in [name for name in self.snapshot.arrays if name in self._sentences[0].coords]:
            dtype = self.snapshot.arrays[name]["data_type"]
            values = [staged.coords[name] for staged in self._sentences]
            self._write_coord(name, np.array(values, _DTYPES.get(dtype, dtype)))
        if self._tokens > self._old_tokens:
            labels = self._target("token")
            labels[:] = -1 - np.arange(labels.shape[0])
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

    def _write_coord(self, name: str, values: NDArray[Any]) -> None:
        target = self._target(name)
        first = self._old - self._old % target.chunks[0]
        whole = np.zeros(target.shape[0] - first, values.dtype)
        whole[: self._old - first] = self._committed.open(name)[first:]
        whole[self._old - first :][: len(values)] = values
        target[first:] = whole

    def _write_token_coord(self, name: str) -> None:
        """Write a chunk at a time, as each fragment repeats all that come before it in its sentence."""
        committed, target = self._committed.open(name), self._target(name)
        rows, step = target.chunks
        first = self._old - self._old % rows
        kept_tokens = np.asarray(self._committed.open("n_tokens")[first:]).tolist()
        for start in range(0, max([*kept_tokens, *(staged.n_tokens for staged in self._sentences)]), step):
            columns = slice(start, start + step)
            dtype = self.snapshot.arrays[name]["data_type"]
            whole = np.zeros((rows, step), _DTYPES.get(dtype, dtype))
            kept = np.asarray(committed[first:, columns])
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
            kept_tokens = np.asarray(self._committed.open("n_tokens")[start : self._old]).tolist() if kept else []
            yield _Shard(number, kept, sentences, max([*kept_tokens, *(staged.n_tokens for staged in sentences)]))

    def _write_shard(self, name: str, shard: _Shard, start: int) -> None:
        """Write the file of some tokens of a shard, token by token."""
        shape = self.snapshot.file_shape(name)
        index = (shard.number, start // shape[1], *[0] * (len(shape) - 2))
        committed = self._committed.open(name)
        first = shard.number * shape[0]
        fill = self._fill_activations if name == ACTIVATIONS else self._fill_dense
        with ShardWriter(self._folder / file_name(name, index), self.snapshot.arrays[name]) as writer:
            for token in range(start, min(start + shape[1], shard.longest)):
                kept = None
                if shard.kept and token < self._old_tokens:
                    kept = np.asarray(committed[first : self._old, token])
                fill(writer, name, shard, token, start, kept)

    def _fill_dense(
        self, writer: ShardWriter, name: str, shard: _Shard, token: int, start: int, kept: NDArray[Any] | None
    ) -> None:
        """Write the chunks of one token of embeddings or hidden states."""
        rows, _, *sizes = self.snapshot.file_shape(name)
        values = np.full((*sizes[:-1], rows, sizes[-1]), np.nan, self.snapshot.arrays[name]["data_type"])
        if kept is not None:
            values[..., : shard.kept, :] = np.moveaxis(kept, 0, -2)
        for row, staged in enumerate(shard.sentences, shard.kept):
            if token < staged.n_tokens:
                values[..., row, :] = staged.dense[name][token]
        for place in np.ndindex(*sizes[:-1]):
            writer.add((0, token - start, *place, 0), values[place])

    def _fill_activations(
        self, writer: ShardWriter, name: str, shard: _Shard, token: int, start: int, kept: NDArray[Any] | None
    ) -> None:
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
        dense[[row for row in range(rows) if row not in {row for row, *_ in present}]] = np.nan
        for sae in range(n_saes):
            if kept is not None:
                dense[: shard.kept, :features] = kept[:, sae]
            for row, positions, values, bounds in present:
                part = slice(bounds[sae], bounds[sae + 1])
                dense[row, :features] = 0
                dense[row, positions[part] - sae * features] = values[part]
            for i, column in enumerate(range(0, width, step)):
                chunk = np.ascontiguousarray(dense[:, column : column + step])
                writer.add((0, token - start, sae, i), chunk)

    def _target(self, name: str) -> zarr.Array[Any]:
        """Return a handle on the array as it is to be, enlarged to whole chunks."""
        dims = self.snapshot.arrays[name]["dimension_names"]
        chunks = dict(zip(dims, self.snapshot.file_shape(name), strict=True))
        rows, tokens = chunks.get("sentence", 1), chunks.get("token", 1)
        whole = self.snapshot.resized(-(-self._new // rows) * rows, -(-self._tokens // tokens) * tokens)
        return replace(whole, path=self._folder).open(name, writable=True)
