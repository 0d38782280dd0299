"""One batch of sentences on its way into a store's arrays.

Sentences are staged with their non-zero activations only, so that a whole batch fits in memory; each shard is made
dense for itself, written, and forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.schema import ACTIVATIONS, ARRAY_DIMS, EMBEDDINGS, HIDDEN_STATES, Sentence
from featurestore.store.layout import SENTENCE_COORDS
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

MAX_LANES = 4
"""Threads that write shards; each holds one dense shard of activations, at most 128 MiB."""

NonZeros = tuple["NDArray[np.integer]", "NDArray[np.floating]"]


@dataclass(frozen=True)
class Staged:
    """A sentence ready to be written, small enough to hold a batch of them.

    Attributes
    ----------
    coords : dict
        Its value of each coordinate in `SENTENCE_COORDS`.
    fragments : tuple of str
        In reading order.
    dense : dict of ndarray
        `embeddings` (T, H) and `hidden_states` (T, L, H), final token first.
    nonzero : list of (positions, values)
        For each token, final one first: the non-zero activations, and where they are in a flat (L, F) array.
    """

    coords: dict[str, int | str]
    fragments: tuple[str, ...]
    dense: dict[str, NDArray[np.floating]]
    nonzero: list[NonZeros]

    @property
    def nbytes(self) -> int:
        """Memory that its arrays and fragments hold; those of long documents are large, as each repeats the last."""
        arrays = [*self.dense.values(), *(array for pair in self.nonzero for array in pair)]
        return sum(array.nbytes for array in arrays) + sum(map(len, self.fragments))

    def token(self, name: str, token: int, shape: tuple[int, ...]) -> NDArray[np.floating]:
        """Return one token's values of an array, dense, in its shape: (H,), (L, H) or (L, F)."""
        if name != ACTIVATIONS:
            values: NDArray[np.floating] = self.dense[name][token]
            return values
        positions, values = self.nonzero[token]
        dense = np.zeros(shape, values.dtype)
        dense.ravel()[positions] = values
        return dense


def stage(sentence: Sentence) -> Staged:
    """Turn tokens round and keep the non-zero activations only."""
    activations = np.swapaxes(sentence.activations, 0, 1)[::-1]
    nonzero = [_nonzero(token) for token in activations]
    dense = {
        EMBEDDINGS: sentence.embeddings[::-1],
        HIDDEN_STATES: np.swapaxes(sentence.hidden_states, 0, 1)[::-1],
    }
    everything = [*dense.values(), *(values for _, values in nonzero)]
    coords: dict[str, int | str] = {
        "sentence": sentence.file.sentence_index,
        "label": sentence.label,
        "n_tokens": sentence.file.n_tokens,
        "n_nonfinite": sum(map(count_nonfinite, everything)),
        "text": sentence.text,
        "source": sentence.file.path.name,
        "source_digest": sentence.file.digest,
    }
    return Staged(coords, sentence.fragments, dense, nonzero)


def count_nonfinite(values: NDArray[np.floating]) -> int:
    """Count NaN and infinite values."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def _nonzero(token: NDArray[np.floating]) -> NonZeros:
    flat = token.ravel()
    # Bits rather than values: -0.0 is kept, and comparing integers is faster.
    positions = np.flatnonzero(flat.view(f"u{flat.itemsize}") != 0)
    return positions.astype(np.uint32 if flat.size <= 1 << 32 else np.uint64), flat[positions]


class Batch:
    """Sentences to append, and the rows of the last shard that they continue.

    Shards and chunks are always written whole: rows beyond the last sentence as padding, rows before the first one as
    they are committed. So nothing that an abandoned batch left behind can survive under them.

    Parameters
    ----------
    committed : Snapshot
        The store.
    sentences : sequence of Staged
        No more than the last shard has room for.
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
        self._tokens = max(self._old_tokens, *(len(staged.nonzero) for staged in sentences))
        self._rows, _, self._shard_layers, _ = committed.file_shape(ACTIVATIONS)
        self._first = self._old - self._old % self._rows
        self._kept = self._old - self._first
        self.snapshot = committed.resized(self._new, self._tokens)

    def write(self) -> None:
        """Write all chunks that the batch touches."""
        for name, kind in SENTENCE_COORDS.items():
            dtype = np.dtypes.StringDType() if kind == "string" else kind
            self._write_coord(name, np.array([staged.coords[name] for staged in self._sentences], dtype))
        if self._tokens > self._old_tokens:
            labels = self._target("token")
            labels[:] = -1 - np.arange(labels.shape[0])

        kept = np.asarray(self._committed.open("n_tokens")[self._first :])
        lengths = kept.tolist() + [len(staged.nonzero) for staged in self._sentences]
        self._write_fragments(max(lengths))
        lanes = min(MAX_LANES, os.cpu_count() or 1)
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(self._write_tokens, [range(lane, max(lengths), lanes) for lane in range(lanes)]))

    def _write_coord(self, name: str, values: NDArray[Any]) -> None:
        target = self._target(name)
        first = self._old - self._old % target.chunks[0]
        whole = np.zeros(target.shape[0] - first, values.dtype)
        whole[: self._old - first] = self._committed.open(name)[first:]
        whole[self._old - first :][: len(values)] = values
        target[first:] = whole

    def _write_fragments(self, longest: int) -> None:
        """Write a chunk at a time, as each fragment repeats all that come before it in its sentence."""
        committed, target = self._committed.open("fragment"), self._target("fragment")
        for start in range(0, longest, target.chunks[1]):
            columns = slice(start, start + target.chunks[1])
            whole = np.zeros((self._rows, target.chunks[1]), np.dtypes.StringDType())
            kept = np.asarray(committed[self._first :, columns])
            whole[: self._kept, : kept.shape[1]] = kept
            for row, staged in enumerate(self._sentences, self._kept):
                part = staged.fragments[::-1][columns]
                whole[row, : len(part)] = part
            target[self._first :, columns] = whole

    def _write_tokens(self, tokens: Sequence[int]) -> None:
        """Write the shards of some tokens, in ascending order, of all three arrays."""
        committed = {name: self._committed.open(name) for name in ARRAY_DIMS}
        target = {name: self._target(name) for name in ARRAY_DIMS}
        _, _, layers, features = target[ACTIVATIONS].shape
        shard = np.zeros((self._rows, self._shard_layers * features), target[ACTIVATIONS].dtype)
        shard[self._kept + len(self._sentences) :] = np.nan
        earlier = -1
        for token in tokens:
            for name in (EMBEDDINGS, HIDDEN_STATES):
                dense = np.full((self._rows, *target[name].shape[2:]), np.nan, target[name].dtype)
                for row, staged in enumerate(self._sentences, self._kept):
                    if token < len(staged.dense[name]):
                        dense[row] = staged.dense[name][token]
                self._keep(dense, committed[name], token, ...)
                target[name][self._first :, token] = dense
            for start in range(0, layers, self._shard_layers):
                group = slice(start, min(start + self._shard_layers, layers))
                filled = self._fill(shard, token, earlier, start * features, group.stop * features)
                dense = shard.reshape(self._rows, -1, features)[:, : group.stop - start]
                self._keep(dense, committed[ACTIVATIONS], token, group)
                target[ACTIVATIONS][self._first :, token, group] = dense
                for row, positions in filled:
                    shard[row, positions] = 0
            earlier = token

    def _fill(
        self, shard: NDArray[Any], token: int, earlier: int, start: int, stop: int
    ) -> list[tuple[int, NDArray[np.integer]]]:
        """Put non-zero activations into a shard of zeros, and say where.

        Rows that had the `earlier` token, and do not have this one, become NaN for good.
        """
        filled: list[tuple[int, NDArray[np.integer]]] = []
        for row, staged in enumerate(self._sentences, self._kept):
            if token < len(staged.nonzero):
                positions, values = staged.nonzero[token]
                inside = slice(*np.searchsorted(positions, np.array([start, stop], positions.dtype)))
                local = positions[inside] - positions.dtype.type(start)
                shard[row, local] = values[inside]
                filled.append((row, local))
            elif earlier < len(staged.nonzero):
                shard[row] = np.nan
        return filled

    def _keep(self, dense: NDArray[Any], committed: zarr.Array[Any], token: int, layers: Any) -> None:
        """Put the committed sentences of the shard where they were."""
        if self._kept:
            present = token < self._old_tokens
            dense[: self._kept] = committed[self._first :, token, layers] if present else np.nan

    def _target(self, name: str) -> zarr.Array[Any]:
        """Return a handle on the array as it is to be, enlarged to whole chunks."""
        dims = self.snapshot.arrays[name]["dimension_names"]
        chunks = dict(zip(dims, self.snapshot.file_shape(name), strict=True))
        rows, tokens = chunks.get("sentence", 1), chunks.get("token", 1)
        whole = self.snapshot.resized(-(-self._new // rows) * rows, -(-self._tokens // tokens) * tokens)
        return replace(whole, path=self._folder).open(name, writable=True)
