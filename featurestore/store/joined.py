"""Several stores as one: their arrays one below the other along `sentence`, tokens lined up at the final one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import StoreError, brief, some
from featurestore.schema import LIMITS
from featurestore.store.contents import Content, Readable, contents
from featurestore.store.snapshot import Snapshot, store_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.store.arrays import Index

_PADDING = {"f": np.nan, "b": False, "O": ""}
"""What stands where a sentence has no token, by kind of dtype."""

_SENTENCE = f"number of the store, from 0, times {LIMITS['sentence']}, plus sentence_index"
_STORE = "name of the store that the sentence is of"


@dataclass(frozen=True)
class Pool:
    """Stores of one extraction, each under a name of its own, in this order.

    Attributes
    ----------
    snapshots : tuple of Snapshot
        As each was committed.
    """

    snapshots: tuple[Snapshot, ...]

    @property
    def location(self) -> str:
        """Where they are, as messages say it."""
        return some(snapshot.location for snapshot in self.snapshots)

    @property
    def names(self) -> list[str]:
        """The name of each store."""
        return [store_name(snapshot.location) for snapshot in self.snapshots]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dim."""
        each = [snapshot.sizes for snapshot in self.snapshots]
        return each[0] | {"sentence": sum(one["sentence"] for one in each), "token": max(one["token"] for one in each)}

    @property
    def data_arrays(self) -> list[str]:
        """Names of the data arrays that each has."""
        return self.snapshots[0].data_arrays

    @property
    def described(self) -> dict[str, Any]:
        """The attributes that all share."""
        first, *others = (snapshot.described for snapshot in self.snapshots)
        return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}

    def contents(self, dropped: set[str]) -> dict[str, Content]:
        """Return their arrays as those of one store, without some; raises StoreError as `contents` of each does."""
        each = [contents(snapshot, dropped) for snapshot in self.snapshots]
        longest = max(range(len(each)), key=lambda number: self.snapshots[number].sizes["token"])
        found = each[longest].copy()  # which has all labels of tokens
        for name, content in found.items():
            if "sentence" in content.dims:
                found[name] = content._replace(values=_joined([one[name].values for one in each]))
        if "sentence" in found:
            index = found["sentence"]
            numbered = [self._numbered(number, one["sentence"].values) for number, one in enumerate(each)]
            found["sentence"] = Content(index.dims, np.concatenate(numbered), {"long_name": _SENTENCE})
            found["sentence_index"] = index
        if "store" not in dropped:
            counts = [snapshot.sizes["sentence"] for snapshot in self.snapshots]
            found["store"] = Content(("sentence",), np.array(self.names, object).repeat(counts), {"long_name": _STORE})
        return found

    def _numbered(self, number: int, sentences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number the sentences of a store so that they are no other's."""
        most = LIMITS["sentence"] - 1
        if len(beyond := sentences[(sentences < 0) | (sentences > most)]):
            found = f"expected each sentence_index in 0 to {most}, found {brief(beyond[0].item())}"
            raise StoreError(f"{self.snapshots[number].location}: {found}; open it by itself")
        return number * LIMITS["sentence"] + sentences


def _joined(values: Sequence[Any]) -> Any:
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else Joined(values)


class Joined:
    """Arrays (sentence, token, ...) one below the other, the last token of each above that of the next.

    Parameters
    ----------
    parts : sequence of Readable
        The arrays, of one dtype, and of one shape but for the first two axes. What one lacks in tokens is padding.
    """

    def __init__(self, parts: Sequence[Readable]) -> None:
        self._parts = parts
        self.dtype = parts[0].dtype
        tokens = max(part.shape[1] for part in parts)
        self.shape: tuple[int, ...] = (sum(part.shape[0] for part in parts), tokens, *parts[0].shape[2:])

    def __getitem__(self, key: tuple[Index, ...]) -> NDArray[Any]:
        """Read some positions of each axis, as `StoredArray` does; of each part those alone that are its own."""
        axes = [np.atleast_1d(np.arange(size)[index]) for index, size in zip(key, self.shape, strict=True)]
        values = self._read(*axes)
        return values[(*(0 if isinstance(index, int | np.integer) else slice(None) for index in key), ...)]

    def _read(self, rows: NDArray[np.intp], tokens: NDArray[np.intp], *rest: NDArray[np.intp]) -> NDArray[Any]:
        values, start = None, 0
        for part in self._parts:
            stop, padding = start + part.shape[0], self.shape[1] - part.shape[1]
            here, there = (start <= rows) & (rows < stop), tokens >= padding
            key = (rows[here] - start, tokens[there] - padding, *rest)
            start = stop
            if here.all() and there.all():
                return part[key]
            if values is None:
                shape = [len(axis) for axis in (rows, tokens, *rest)]
                values = np.full(shape, _PADDING[self.dtype.kind], self.dtype)
            if here.any() and there.any():
                values[np.ix_(here, there)] = part[key]
        assert values is not None
        return values
