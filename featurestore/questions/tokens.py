"""What becomes of the dim `token` of X and y: one token, several pooled or side by side, or a row each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from featurestore.errors import ParameterError, brief
from featurestore.questions.lazy import by_chunk

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    Array = np.ndarray[Any, Any]

_GRAMMAR = re.compile(r"final|mean|max|all|(last|first)-([1-9][0-9]{0,5})")

_AT_ONCE = 4
"""Tokens that are pooled by one task: fewer copies of what is pooled so far, for as many more chunks in memory."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a sentence make a row, and how.

    Attributes
    ----------
    how : str
        ``"final"``, ``"mean"``, ``"max"``, ``"last"``, ``"first"`` or ``"all"``, which makes a row of each.
    count : int
        How many ``"last"`` or ``"first"`` ones stand side by side; otherwise 1.
    """

    how: str = "final"
    count: int = 1

    @classmethod
    def read(cls, name: str, given: object) -> Self:
        """Read ``final``, ``mean``, ``max``, ``all``, ``last-3`` or ``first-2``.

        Raises
        ------
        ParameterError
            If it is something else; the message starts with `name`.
        """
        match = _GRAMMAR.fullmatch(given) if isinstance(given, str) else None
        if not match:
            expected = "expected final, mean, max, all, last-K or first-K, such as last-3"
            raise ParameterError(f"{name}: {expected}, found {brief(given)}")
        return cls(match[1], int(match[2])) if match[1] else cls(match[0])

    def __str__(self) -> str:
        return f"{self.how}-{self.count}" if self.side_by_side else self.how

    @property
    def side_by_side(self) -> bool:
        """Whether tokens are concatenated."""
        return self.how in ("last", "first")

    @property
    def needed(self) -> int:
        """How many tokens a sentence has to have that count."""
        return 0 if self.how == "final" else self.count


FINAL, ALL = Tokens(), Tokens("all")


def counted(ds: xr.Dataset, *, special: bool) -> Array:
    """Tell which tokens count, (sentence, token) bool: no padding, and special ones only if asked for.

    What that is told by stays in memory, as many datasets ask for it.
    """
    is_token: Array = ds["is_token"].load().values
    return is_token if special else is_token & ~ds["is_special"].load().values


def each_token(counts: Array) -> tuple[Array, Array]:
    """Return sentence and token of each row that ``all`` makes, as positions: token after token."""
    tokens, sentences = np.nonzero(counts.T)
    return sentences, tokens


def arranged(array: da.Array, tokens: Tokens, counts: Array) -> list[da.Array]:
    """Make rows of the tokens of some sentences. Lazy; each chunk is read once, and few are held at a time.

    Parameters
    ----------
    array : dask array, (k, T, ...)
        In reading order, the final token last.
    tokens : Tokens
        Which, and how.
    counts : ndarray, (k, T) bool
        The tokens that count, in each sentence as many as are needed.

    Returns
    -------
    list of dask array, (k, ...) each
        One, or one for each token that is to stand beside the others, in reading order; with ``all`` the rows are those
        of `each_token`. The mean is in float64, all else in the dtype of `array`.
    """
    import dask.array as da

    match tokens.how:
        case "final":
            return [array[:, -1]]
        case "mean":
            total = _pooled(array, counts, np.add, 0, np.dtype(np.float64))
            many = np.maximum(1, counts.sum(axis=1)).reshape(-1, *[1] * (total.ndim - 1))
            return [total / da.from_array(many, chunks=(total.chunks[0], *[1] * (total.ndim - 1)))]
        case "max":
            return [_pooled(array, counts, np.maximum, _lowest(array.dtype), array.dtype)]
        case "all":
            return [_each([array[:, token] for token in range(array.shape[1])], counts)]
    return [_one(array, chosen) for chosen in _nth(tokens, counts)]


def repeated(array: da.Array, counts: Array) -> da.Array:
    """Repeat what there is one of a sentence, (k, ...), in the rows that ``all`` makes of its tokens. Lazy."""
    return _each([array] * counts.shape[1], counts)


def of_rows(array: da.Array, rows: Array) -> da.Array:
    """Keep some rows, (k,) bool, of each chunk by itself, which dask's own indexing would mix with others. Lazy."""
    import dask.array as da

    if rows.all():
        return array
    parts = np.split(rows, np.cumsum(array.chunks[0])[:-1])
    used = [i for i, part in enumerate(parts) if part.any()]
    some: da.Array = array.blocks[used] if used else array[:0]  # the others need not be read
    if not used:
        return some
    mask = da.from_array(np.concatenate([parts[i] for i in used]), chunks=(some.chunks[0],))
    dims, kept = tuple(range(array.ndim)), tuple(int(parts[i].sum()) for i in used)
    return by_chunk(_masked, dims, (some, dims), (mask, (0,)), dtype=array.dtype, adjust_chunks={0: kept})


def _each(of_tokens: Sequence[da.Array], counts: Array) -> da.Array:
    """Put one below the other what there is of each token, (k, ...), of the sentences in which it counts."""
    import dask.array as da

    used = np.flatnonzero(counts.any(axis=0)).tolist() or [0]
    rows: da.Array = da.concatenate([of_rows(of_tokens[token], counts[:, token]) for token in used])
    return rows


def _nth(tokens: Tokens, counts: Array) -> list[Array]:
    """Tell which token of each sentence stands at each place, a list of (k, T) bool."""
    if tokens.how == "first":
        nth, places = np.cumsum(counts, axis=1), range(1, tokens.count + 1)
    else:
        nth, places = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1], range(tokens.count, 0, -1)
    return [counts & (nth == place) for place in places]


def _one(array: da.Array, chosen: Array) -> da.Array:
    """Return one token of each sentence, (k, ...)."""
    at = np.flatnonzero(chosen.any(axis=0)).tolist()
    alone: da.Array = array[:, at[0]] if len(at) == 1 else _pooled(array, chosen, _later, 0, array.dtype)
    return alone


def _pooled(
    array: da.Array, chosen: Array, update: Callable[..., Array], start: float, dtype: np.dtype[Any]
) -> da.Array:
    """Go through the tokens in reading order, and update each sentence by those of them that are chosen."""
    import dask.array as da

    used = np.flatnonzero(chosen.any(axis=0)).tolist()
    dims, (rows, _, *others) = (0, *range(2, array.ndim)), array.chunks
    pooled: da.Array = da.full((len(array), *array.shape[2:]), start, dtype=dtype, chunks=(rows, *others))
    for tokens in batched(used, _AT_ONCE):
        which = da.from_array(chosen[:, tokens], chunks=(rows, -1))
        values = [(array[:, token], dims) for token in tokens]
        pooled = by_chunk(partial(_updated, update), dims, (pooled, dims), (which, (0, 1)), *values, dtype=dtype)
    return pooled


def _updated(update: Callable[..., Array], pooled: Array, chosen: Array, *values: Array) -> Array:
    pooled = pooled.copy()
    with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite, which are looked for later
        for rows, of_token in zip(chosen.T, values, strict=True):
            if rows.all():
                update(pooled, of_token, out=pooled)
            else:
                pooled[rows] = update(pooled[rows], of_token[rows])
    return pooled


def _later(_: Array, values: Array, out: Array | None = None) -> Array:
    """Let a token take the place of what was there."""
    if out is None:
        return values
    out[...] = values
    return out


def _masked(values: Array, rows: Array) -> Array:
    return values[rows]


def _lowest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return -np.inf
    return False if dtype.kind == "b" else np.iinfo(dtype).min
