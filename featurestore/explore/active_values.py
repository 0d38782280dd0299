"""Reading the activations of an SAE: the active ones alone, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import batched
from typing import TYPE_CHECKING

import numpy as np

from featurestore.measures.active import Active
from featurestore.store.backend import SENTENCES_PER_CHUNK

if TYPE_CHECKING:
    import xarray as xr

_ROWS = 256
"""Sentences that are read at once: fewer cost more in xarray, more are slower to be given memory."""

_READERS = 2

_MOST = 1 << 23
"""Active values that are held at once, at 12 bytes each."""


def active_values(array: xr.DataArray, tokens: Sequence[int], read: Callable[[int], None]) -> Iterator[Active]:
    """Read all activations: some features after the others, if too many are active to be held at once.

    Parameters
    ----------
    array : xarray.DataArray, (sentence, token, feature)
        Lazy, or not. A dim that is missing has one position.
    tokens : sequence of int
        Positions. Of several, each sentence's largest activation counts, and NaN does not.
    read : callable
        Called with the number of sentences that have been read, block by block, in the first pass.

    Yields
    ------
    Active
        Of all sentences, of the first features, then of the next.
    """
    todo = [range(array.sizes.get("feature", 1))]
    first_pass = True
    while todo:
        part, blocks, held = todo.pop(), list[Active](), 0
        for block in _blocks(array, tokens, part):
            blocks.append(block.of_first(len(part)))
            held += len(blocks[-1].values)
            while held > _MOST and len(part) > 1:
                half = len(part) // 2
                todo.append(part[half:])
                part = part[:half]
                blocks = [block.of_first(half) for block in blocks]
                held = sum(len(block.values) for block in blocks)
            if first_pass:
                read(block.n_rows)
        first_pass = False
        yield Active.joined(blocks)


def _blocks(array: xr.DataArray, tokens: Sequence[int], features: range) -> Iterator[Active]:
    """Read some features, block by block of the sentences; the next blocks are under way."""
    n, step = array.sizes.get("sentence", 1), SENTENCES_PER_CHUNK if array.chunks else _ROWS
    with ThreadPoolExecutor(_READERS) as pool:
        for starts in batched(range(0, n, step), 2 * _READERS):
            rows = [slice(start, min(n, start + step)) for start in starts]
            futures = [pool.submit(copy_context().run, _block, array, part, tokens, features) for part in rows]
            for future in futures:
                yield future.result()


def _block(array: xr.DataArray, rows: slice, tokens: Sequence[int], features: range) -> Active:
    shape = rows.stop - rows.start, len(features)
    positions = {"sentence": rows, "feature": slice(features.start, features.stop)}
    largest = None
    for token in tokens:
        part = array.isel(positions | {"token": token}, missing_dims="ignore")
        values = part.transpose("sentence", "feature", missing_dims="ignore").values.reshape(shape)
        largest = values if largest is None else np.fmax(largest, values)
    assert largest is not None
    return Active.of(largest)
