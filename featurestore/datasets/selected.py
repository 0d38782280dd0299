"""The rows of a dataset, lazy: what a strategy has selected, of a population, with its tokens and layers as asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np

from featurestore.datasets import workers
from featurestore.datasets.alignment import Aligned, representable
from featurestore.errors import ParameterError, SelectionError, StrategyError, spelled
from featurestore.questions import controls
from featurestore.questions.combine import check_combinable, combined
from featurestore.questions.lazy import by_chunk
from featurestore.questions.rows import told
from featurestore.questions.tokens import ALL, Tokens, arranged, counted, each_token, of_rows, repeated

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.questions.choices import Choices

    Array = np.ndarray[Any, Any]

_ROWS = 1024
"""Rows of a chunk of columns that are made, not read."""


class Population(NamedTuple):
    """Sentences of a store, (n,) bool each: those that are asked for, and of them those that may be rows."""

    asked: Array
    usable: Array


@dataclass(frozen=True, eq=False)
class Rows:
    """What k rows are of; the same for all datasets of the same sentences and tokens.

    Attributes
    ----------
    positions : ndarray, (k,) int
        Where the sentence of each row stands in the store.
    sentences : ndarray, (k,) int64
        Its sentence_index.
    tokens : ndarray, (k,) int64, or None
        The label of its token, where a row is one.
    """

    positions: Array
    sentences: Array
    tokens: Array | None

    @cached_property
    def order(self) -> Array:
        """The rows in the order of their sentence_index, then of reading, (k,) int."""
        return np.lexsort((self.sentences,) if self.tokens is None else (self.tokens, self.sentences))


@dataclass(frozen=True, eq=False, kw_only=True)
class Selected:
    """X and y of a plan, lazy: k rows, each of a sentence, or of a token.

    Attributes
    ----------
    aligned : Aligned
        What the strategy has selected.
    rows : Rows
        What each row is of.
    short, left_out : ndarray, (m,) int64
        Sentences of the population that are no rows: those with too few tokens, and all others, such as those
        without a label.
    real : tuple of dask array, (k, d) each
        The blocks of X, one chunk wide: dask names equal ones equally.
    columns : tuple of dask array, (k, d) each
        What X is made of: the same, or what a control has in their place.
    outcome : dask array, (k,) or (k, targets)
        y.
    own_outcome : bool
        Whether each token has a y of its own.
    densest : int or None
        As in `Selection`.
    """

    aligned: Aligned
    rows: Rows
    short: Array
    left_out: Array
    real: tuple[da.Array, ...]
    columns: tuple[da.Array, ...]
    outcome: da.Array
    own_outcome: bool
    densest: int | None

    @property
    def positions(self) -> Array:
        """As of `Rows`."""
        return self.rows.positions

    @property
    def sentences(self) -> Array:
        """As of `Rows`."""
        return self.rows.sentences

    @property
    def tokens(self) -> Array | None:
        """As of `Rows`."""
        return self.rows.tokens

    @property
    def width(self) -> int:
        """Columns of X."""
        return self.densest or sum(block.shape[1] for block in self.columns)

    def usable(self) -> Array:
        """Tell which rows a dataset can hold, (k,) bool; reads X and y, in bounded memory."""
        parts = [representable(part) for part in (*self.real, self.outcome)]
        found = workers.compute([part if part.ndim == 1 else part.all(axis=1) for part in parts])
        return np.all(found, axis=0)


def select(
    aligned: Aligned,
    choices: Choices,
    ds: xr.Dataset,
    population: Population,
    known: dict[str, Rows],
    *,
    sequences: bool = False,
) -> Selected:
    """Make the rows of a dataset of what its strategy has selected. Lazy.

    Parameters
    ----------
    aligned : Aligned
        What the strategy has selected.
    choices : Choices
        What becomes of it; a control has its own function.
    ds : xarray.Dataset
        The store.
    population : Population
        Its sentences that are asked for, and may be rows.
    known : dict of str to Rows
        Rows that other datasets have; those of this one are added.
    sequences : bool
        Whether each token is a row for the time being, of which sequences are made in the end.

    Raises
    ------
    ParameterError
        If the choices do not fit what the strategy has selected.
    SelectionError
        If sentences have too few tokens, and are not to be left out.
    """
    _check(aligned, choices, sequences)
    across = ALL if sequences else choices.tokens
    kept = population.usable[aligned.positions]
    left_out = np.setdiff1d(ds["sentence"].values[population.asked], aligned.sentences[kept])
    counts, few = _tokens(aligned, choices, across, ds, kept)
    kept &= ~few
    positions, counts = aligned.positions[kept], counts[kept]
    X = combined(choices.combine, [of_rows(da.asarray(block.data), kept) for block in aligned.X])
    dims = [block.dims for block in aligned.X]
    sides = [_rows(block, of, across, across, counts) for block, of in zip(X, dims, strict=False)]
    columns = [block for token in zip_longest(*sides) for block in token if block is not None]
    targets = _rows(of_rows(da.asarray(aligned.y.data), kept), aligned.y.dims, choices.target_tokens, across, counts)
    calculated = across.how == "mean" or choices.combine != "concat"
    real = tuple(_flat(_rounded(block) if calculated else _floating(block)) for block in columns)
    return Selected(
        aligned=aligned,
        rows=_rows_of(positions, counts if across.how == "all" else None, ds, known),
        short=np.sort(aligned.sentences[few]),
        left_out=left_out,
        real=real,
        columns=real,
        outcome=targets[0] if len(targets) == 1 else _flat(da.stack(targets, axis=1)),
        own_outcome="token" in aligned.y.dims and choices.target_tokens.how == "all",
        densest=aligned.densest,
    )


def _rows_of(positions: Array, counts: Array | None, ds: xr.Dataset, known: dict[str, Rows]) -> Rows:
    """Return a row for each sentence, or with counts for each of its tokens that count."""
    key = hashlib.sha256(positions.tobytes() + (b"" if counts is None else counts.tobytes())).hexdigest()
    if key not in known:
        tokens = None
        if counts is not None:
            rows, at = each_token(counts)
            positions, tokens = positions[rows], ds["token"].values[at]
        known[key] = Rows(positions, ds["sentence"].values[positions], tokens)
    return known[key]


def controlled(selected: Selected, control: str | None, seed: int, ds: xr.Dataset) -> Selected:
    """Put what a control knows in the place of X; shuffled labels are shuffled once it is known which rows are left."""
    sentences, tokens = selected.sentences, selected.tokens
    if control == "random-columns":
        given = [sentences] if tokens is None else [sentences, tokens]
        columns = _made(partial(_random_columns, seed, selected.width), selected.width, given)
    elif control in ("text", "length"):
        texts, n_tokens = ds["text"].values[selected.positions], ds["n_tokens"].values[selected.positions]
        if tokens is not None:  # what a probe of this token can have read
            texts = ds["fragment"].load().values[selected.positions, np.searchsorted(ds["token"].values, tokens)]
            n_tokens = n_tokens + tokens + 1
        if control == "text":
            columns = _made(controls.text_columns, controls.TEXT_WIDTH + 1, [texts])
        else:
            columns = _made(controls.length_columns, 2, [texts, n_tokens])
    else:
        return selected
    return replace(selected, columns=(columns,), densest=None)


def _made(make: Callable[..., Array], width: int, given: Sequence[Array]) -> da.Array:
    """Make columns, (k, width) float32, of what is known of each row. Lazy."""
    parts = [(da.from_array(values, chunks=_ROWS, name=_name(values)), (0,)) for values in given]
    return by_chunk(make, (0, 1), *parts, new_axes={1: width}, dtype=np.float32)


def _name(values: Array) -> str:
    """Identify values by their digest, as dask's own of texts joins them, so that others may have the same."""
    digest = hashlib.sha256(values.tobytes() if values.dtype != object else b"")
    for text in values if values.dtype == object else ():
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8) + content)
    return f"given-{values.dtype.str}-{digest.hexdigest()}"


def _random_columns(seed: int, width: int, sentences: Array, tokens: Array | None = None) -> Array:
    return controls.random_columns(sentences, tokens, width, seed)


def _tokens(aligned: Aligned, choices: Choices, across: Tokens, ds: xr.Dataset, kept: Array) -> tuple[Array, Array]:
    """Return which tokens count, (k, T) bool, and which sentences that are kept have too few, (k,) bool."""
    if not (needed := max(across.needed, choices.target_tokens.needed)):
        return np.zeros((len(kept), 1), bool), np.zeros(len(kept), bool)
    counts = counted(ds, special=choices.special)[aligned.positions]
    few = kept & (counts.sum(axis=1) < needed)
    if few.any() and not choices.drop_short:
        named = {"tokens": choices.tokens, "target_tokens": choices.target_tokens}
        asked = " and ".join(spelled(name, str(one)) for name, one in named.items() if one.needed == needed)
        of_each = told(ds, np.sort(aligned.sentences[few]))
        found = f"{few.sum()} of {kept.sum()} sentences have fewer ({of_each})"
        remedy = f"leave them out: {spelled('drop_short', True)}"
        raise SelectionError(f"{asked or 'sequences'}: expected {needed} tokens or more, {found}; {remedy}")
    return counts, few


def _rows(array: da.Array, dims: tuple[Any, ...], tokens: Tokens, across: Tokens, counts: Array) -> list[da.Array]:
    """Make rows of a block of X, or of y, of which there is one a sentence or one a token; several side by side."""
    found = arranged(array, tokens, counts) if "token" in dims else [array]
    if across.how == "all" and not ("token" in dims and tokens.how == "all"):
        return [repeated(one, counts) for one in found]
    return found


def _check(aligned: Aligned, choices: Choices, sequences: bool) -> None:
    """Refuse choices that the strategy has made itself."""
    if sequences and not any("token" in block.dims for block in aligned.X):
        raise StrategyError(f"X: expected the dim token, of which sequences are made, found {aligned.X[0].dims}")
    if choices.tokens.how != "final" and not any("token" in block.dims for block in aligned.X):
        raise ParameterError(_chosen("tokens", str(choices.tokens), "X", aligned.X[0]))
    if "target_tokens" in choices.given and "token" not in aligned.y.dims:
        raise ParameterError(_chosen("target_tokens", str(choices.target_tokens), "y", aligned.y))
    if choices.y == "store" and aligned.y.name != "label":
        found = f"found one that predicts {aligned.y.name or 'something else'}"
        raise ParameterError(
            f"{spelled('y', 'store')}: expected a strategy that predicts the label, {found}; leave it out"
        )
    if choices.tokens.side_by_side and aligned.densest is not None:
        found = f"found {spelled('tokens', str(choices.tokens))}, which has a column of each token"
        raise ParameterError(f"{spelled('densest')}: expected one column a feature, {found}; leave one of them out")
    check_combinable(choices.combine, aligned.X)


def _chosen(name: str, value: str, side: str, array: xr.DataArray) -> str:
    found = f"found {array.name or 'an array'} of {' x '.join(map(str, array.dims))}"
    return f"{spelled(name, value)}: expected {side} with the dim token, {found}; leave the option out"


def _rounded(block: da.Array) -> da.Array:
    dims = tuple(range(block.ndim))
    return by_chunk(_to_float32, dims, (block, dims), dtype=np.float32)


def _to_float32(values: Array) -> Array:
    with np.errstate(over="ignore"):  # which is looked for later
        return values.astype(np.float32)


def _floating(block: da.Array) -> da.Array:
    if block.dtype.kind == "f":
        return block
    floats: da.Array = block.astype(np.float32 if block.dtype.itemsize <= 2 else np.float64)  # of two bytes exactly
    return floats


def _flat(block: da.Array) -> da.Array:
    width = math.prod(block.shape[1:])  # which -1 cannot stand for where there are no rows
    flat: da.Array = block.rechunk(dict.fromkeys(range(1, block.ndim), -1)).reshape(len(block), width)
    return flat
