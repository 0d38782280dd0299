"""What a store holds as xarray will label it: arrays along one dim read, the others to be read in parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from featurestore.errors import StoreError
from featurestore.store.location import remedy
from featurestore.store.snapshot import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.store.arrays import Index

_IS_TOKEN = "whether the sentence has a token here; beyond it all values are NaN"

_AT_ONCE = 16
"""Coordinates that are read at once where each takes its time to arrive."""


class Readable(Protocol):
    """An array to be read in parts, by an open mesh; see `featurestore.store.arrays.StoredArray`."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __getitem__(self, key: tuple[Index, ...], /) -> NDArray[Any]: ...


class Content(NamedTuple):
    """One array: of one dim in memory; else (sentence, token, ...), and `Readable`."""

    dims: tuple[str, ...]
    values: Any
    attributes: dict[str, Any]


def contents(snapshot: Snapshot, dropped: set[str]) -> dict[str, Content]:
    """Return the arrays of a store, and `is_token`, without some; those along one dim are read.

    Raises
    ------
    StoreError
        If the store is damaged.
    """
    n_tokens = _checked_lengths(snapshot, snapshot.coord("n_tokens"))
    wanted = [name for name in snapshot.arrays if name not in dropped]
    flat = {name for name in wanted if len(snapshot.arrays[name]["shape"]) == 1}
    values: dict[str, Any] = _coords(snapshot, flat - {"n_tokens"})
    values["n_tokens"] = n_tokens.copy()  # as users may change it
    values |= {name: snapshot.array(name, n_tokens) for name in wanted if name not in flat}

    def content(name: str) -> Content:
        metadata = snapshot.arrays[name]
        return Content(tuple(metadata["dimension_names"]), values[name], metadata["attributes"])

    found = {name: content(name) for name in wanted}
    if "is_token" not in dropped:
        is_token = IsToken(n_tokens, snapshot.sizes["token"])
        found["is_token"] = Content(("sentence", "token"), is_token, {"long_name": _IS_TOKEN})
    return found


def _coords(snapshot: Snapshot, names: set[str]) -> dict[str, NDArray[Any]]:
    """Read coordinates, at once where it is the way to them that takes long."""
    if isinstance(snapshot.location, Path):
        return {name: snapshot.coord(name) for name in names}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(snapshot.coord, names), strict=True))


def _checked_lengths(snapshot: Snapshot, n_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refuse lengths of sentences by which files would be looked for that need not be there, or not be missed."""
    tokens = snapshot.sizes["token"]
    if n_tokens.size and not (n_tokens.min() >= 1 and n_tokens.max() == tokens):
        raise StoreError(
            f"{snapshot.location}: n_tokens do not fit its {tokens} tokens: damaged; {remedy(snapshot.location)}"
        )
    return n_tokens


class IsToken:
    """Whether each sentence has each token: calculated, (sentence, token) bool."""

    dtype = np.dtype(bool)

    def __init__(self, n_tokens: NDArray[np.int64], tokens: int) -> None:
        self._n_tokens = n_tokens
        self.shape = (len(n_tokens), tokens)

    def __getitem__(self, key: tuple[Index, ...]) -> NDArray[np.bool_]:
        from_end = np.arange(self.shape[1], 0, -1)
        is_token: NDArray[np.bool_] = np.greater_equal.outer(self._n_tokens[key[0]], from_end[key[1]])
        return is_token
