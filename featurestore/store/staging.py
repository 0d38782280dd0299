"""Sentences ready to be written: turned round, their checksums taken, small enough to hold a batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import deflate
import numpy as np

from featurestore.schema import ACTIVATIONS, EMBEDDINGS, HIDDEN_STATES
from featurestore.sources.sentence import Sentence, SparseActivations
from featurestore.store.layout import CHECKSUMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DENSE = (EMBEDDINGS, HIDDEN_STATES)
"""The data arrays that are held whole."""

NonZeros = tuple["NDArray[np.integer]", "NDArray[np.floating]"]


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
    by_token = {name: array for name in _DENSE if (array := getattr(sentence, name)) is not None}
    by_token = {name: (array if array.ndim == 2 else array.swapaxes(0, 1))[::-1] for name, array in by_token.items()}
    dense = {name: np.array(array, order="C") for name, array in by_token.items()}  # whoever gave it may change theirs
    checksums = {name: deflate.crc32(array.reshape(-1).view(np.uint8)) for name, array in dense.items()}
    nonzero: list[NonZeros] = []
    n_nonfinite = sum(map(count_nonfinite, dense.values()))
    if sentence.activations is not None:
        checksum = 0
        for flat, found in _activations(sentence.activations):
            checksum = deflate.crc32(flat.view(np.uint8), checksum)
            nonzero.append(found)
            n_nonfinite += count_nonfinite(found[1])
        checksums[ACTIVATIONS] = checksum
    file = sentence.file
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
        token_coords={name: values[::-1] for name, values in _token_coords(sentence, special_first).items()},
        dense=dense,
        nonzero=nonzero,
    )


def _token_coords(sentence: Sentence, special_first: int) -> dict[str, Sequence[Any]]:
    """Return what is known of each token, in reading order."""
    fragments = sentence.fragments
    texts = [after.removeprefix(before) for before, after in pairwise(("", *fragments))]
    special = [token < special_first or mark for token, mark in enumerate(sentence.special.tolist())]
    return {"fragment": fragments, "token_text": texts, "is_special": special}


def count_nonfinite(values: NDArray[np.floating]) -> int:
    """Count NaN and infinite values."""
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def signed(checksum: int) -> int:
    """Return a CRC-32 as it is kept, as a signed integer of 32 bits."""
    return checksum - (1 << 32) if checksum >> 31 else checksum


def _activations(
    activations: NDArray[np.floating] | SparseActivations,
) -> Iterator[tuple[NDArray[np.floating], NonZeros]]:
    """Yield each token's activations, final one first: all of them, flat, and those that are not zero."""
    if not isinstance(activations, SparseActivations):
        for token in range(activations.shape[1])[::-1]:
            flat = activations[:, token].ravel()
            yield flat, _nonzero(flat)
        return
    saes, tokens, features = activations.shape
    flat = np.zeros(saes * features, activations.values.dtype)
    for token in range(tokens)[::-1]:
        positions, values = activations.token(token)
        flat[positions] = values
        yield flat, (positions, values)
        flat[positions] = 0


def _nonzero(flat: NDArray[np.floating]) -> NonZeros:
    # Bits rather than values: -0.0 is kept, and comparing integers is faster.
    positions = np.flatnonzero(flat.view(f"u{flat.itemsize}") != 0)
    return positions.astype(np.uint32 if flat.size < 1 << 32 else np.uint64), flat[positions]
