"""Rows for training, batch by batch: read in blocks, shuffled in memory, whatever the number of sentences."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from featurestore.errors import MissingExtraError, ParameterError, brief, some, spelled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    Positions = NDArray[np.intp]

_WINDOW_BYTES = 1 << 26
"""What is gathered in memory, and shuffled there."""

_TEXT_BYTES, _PLACE_BYTES = 256, 17
"""What a text takes, about; and what is noted of each place of a token: whether there is one, and where, twice."""

_SHARD = 32
"""Sentences that lie together in the store: blocks are multiples of it."""

_BLOCKS = 8
"""Blocks of a window: more mix better, and are read in smaller pieces."""


def batches(
    ds: xr.Dataset,
    *,
    batch_size: int,
    by: Literal["token", "sentence"] = "token",
    shuffle: bool = True,
    seed: int = 0,
    variables: Sequence[str] | None = None,
    to: Literal["numpy", "torch"] = "numpy",
) -> Generator[dict[str, Any]]:
    """Go once through all rows of a dataset, for training on more than fits in memory.

    Blocks of neighbouring sentences are read, in shuffled order, into windows of some eight blocks and 64 MiB; the rows
    of a window are shuffled. While one window is trained on, a thread reads the next. In memory are two windows and a
    few batches, however many sentences there are. It is more where one sentence alone takes more than a window, and
    where `ds` leaves out single sentences, or has them in another order than the store: what lies between is read,
    too, at most 1,024 sentences at a time, which also is slower.

    Parameters
    ----------
    ds : xarray.Dataset
        Of `open_store` or `open_stores`, lazy or with chunks, or a selection of it, such as ``ds.sel(layer=12)`` or
        ``ds.sel(sentence=train)``; or any other one with the dim `sentence`, in memory or not.
    batch_size : int
        Rows of a batch; the last one may be smaller.
    by : {"token", "sentence"}
        What a row is. With ``"token"`` the tokens that `is_token` has, so no padding; what is along `sentence` only,
        such as `label`, is repeated for each. With ``"sentence"`` arrays keep the dim `token`, padded as in `ds`, and
        `is_token` is added.
    shuffle : bool
        Whether rows come in random order. Otherwise in that of `ds`, sentence by sentence, token by token.
    seed : int
        At least 0. The same seed gives the same batches of the same `variables`, on any machine; give another one each
        epoch.
    variables : sequence of str, optional
        Data variables and coordinates along `sentence`; by default the data variables that are.
    to : {"numpy", "torch"}
        Arrays, or tensors on the CPU that share the memory of the arrays. Text only comes as arrays.

    Yields
    ------
    dict of str to ndarray, or of str to torch.Tensor
        By name, rows first, in the dtype of `ds`: `sentence`, with ``by="token"`` also `token` (their labels), and
        `variables`. Nobody else has these arrays: they may be changed. NaN and infinite values are passed on as they
        are (`n_nonfinite` tells where).

    Raises
    ------
    ParameterError
        At once, if an argument is no such thing, or `ds` lacks what it needs.
    MissingExtraError
        At once, if torch is asked for and not installed.
    StoreError, TooLargeError
        Later, when values are read, as of `open_store`.

    Examples
    --------
    >>> import featurestore
    >>> ds = featurestore.open_store("stores/dishonesty.zarr").sel(layer=12)
    >>> first = next(batches(ds, batch_size=100, variables=["hidden_states", "label"]))
    >>> first["hidden_states"].shape, first["label"].shape
    ((100, 576), (100,))
    """
    _check_options(batch_size, by, shuffle, seed, to)
    rows = _Rows.of(ds, by, variables)
    convert = _to_torch(rows) if to == "torch" else dict
    windows = _windows(rows, np.random.default_rng(seed) if shuffle else None)
    return (convert(batch) for batch in _cut(windows, int(batch_size)))


@dataclass(frozen=True)
class _Rows:
    """What the rows of a dataset are made of.

    Attributes
    ----------
    variables : dict of str to Variable
        All along `sentence`.
    tokens : ndarray, (token,), optional
        Labels of the tokens, if these are rows.
    is_token : Variable, (sentence, token) bool, optional
        Which of them there are.
    """

    variables: dict[str, xr.Variable]
    tokens: NDArray[Any] | None = None
    is_token: xr.Variable | None = None

    @classmethod
    def of(cls, ds: xr.Dataset, by: str, variables: object) -> _Rows:
        """Check that a dataset has what is asked for."""
        if not isinstance(ds, xr.Dataset):
            raise ParameterError(f"ds: expected a dataset of xarray, such as of open_store, found {brief(ds)}")
        _check_dim(ds, "sentence", "select a list of sentences")
        if by == "token":
            _check_dim(ds, "token", f"select a list of tokens, or say {spelled('by', 'sentence')}")
        chosen = {name: ds[name].variable for name in ("sentence", *_checked_names(ds, by, variables))}
        if by == "token":
            chosen.pop("token", None)
            return cls(chosen, ds["token"].values, _checked_is_token(ds))
        if any("token" in variable.dims for variable in chosen.values()):
            chosen["is_token"] = _checked_is_token(ds)
        return cls(chosen)

    @property
    def window(self) -> int:
        """How many sentences are gathered in memory."""
        one_each = [variable.isel(sentence=slice(1)) for variable in self.variables.values()]
        sizes = [one.size * (_TEXT_BYTES if one.dtype == object else one.dtype.itemsize) for one in one_each]
        places = 0 if self.tokens is None else len(self.tokens) * (self.tokens.itemsize + _PLACE_BYTES)
        fitting = max(1, _WINDOW_BYTES // max(1, sum(sizes) + places))
        return fitting if fitting < _SHARD else fitting - fitting % _SHARD

    def read(self, sentences: slice | Positions) -> _Window:
        """Read some sentences; of positions in ascending order neighbours are read together."""
        values = {name: _values(variable, sentences) for name, variable in self.variables.items()}
        if self.tokens is None or self.is_token is None:
            return _Window(np.arange(len(values["sentence"])), 1, values, {})
        n, width = len(values["sentence"]), len(self.tokens)
        along_tokens = {name: values.pop(name) for name, one in self.variables.items() if "token" in one.dims}
        flat = {name: array.reshape(n * width, *array.shape[2:]) for name, array in along_tokens.items()}
        flat["token"] = np.tile(self.tokens, n)
        return _Window(np.flatnonzero(_values(self.is_token, sentences)), width, values, flat)


class _Window(NamedTuple):
    """Some sentences in memory.

    Attributes
    ----------
    places : ndarray of int
        Where rows are: sentence by sentence, and of a sentence place by place.
    width : int
        Places of a sentence.
    of_sentences, of_places : dict of str to ndarray
        Values of each sentence, and of each place.
    """

    places: Positions
    width: int
    of_sentences: Arrays
    of_places: Arrays

    def rows(self, places: Positions) -> Arrays:
        """Copy what is at some places."""
        sentences = places // self.width
        taken = {name: values.take(sentences, axis=0) for name, values in self.of_sentences.items()}
        return taken | {name: values.take(places, axis=0) for name, values in self.of_places.items()}


def _windows(rows: _Rows, rng: np.random.Generator | None) -> Iterator[_Window]:
    """Read window by window, the next one while this one is used; rows in the order in which they are to be used."""
    parts = _shuffled_parts(rows, rng) if rng else _parts(rows)
    with ThreadPoolExecutor(1, "featurestore-batches") as reader:
        coming = (reader.submit(rows.read, part) for part in parts)
        ahead = next(coming, None)
        while ahead is not None:
            window, ahead = ahead.result(), next(coming, None)
            yield window._replace(places=rng.permutation(window.places)) if rng else window
            del window  # its memory is wanted for the one after the next


def _parts(rows: _Rows) -> Iterator[slice]:
    for start in range(0, rows.variables["sentence"].size, rows.window):
        yield slice(start, start + rows.window)


def _shuffled_parts(rows: _Rows, rng: np.random.Generator) -> Iterator[Positions]:
    """Gather blocks from anywhere into windows; blocks in ascending order, as they are shuffled later."""
    n, size = rows.variables["sentence"].size, max(min(_SHARD, rows.window), rows.window // _BLOCKS // _SHARD * _SHARD)
    blocks = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    order, at_once = rng.permutation(len(blocks)), rows.window // size
    for start in range(0, len(blocks), at_once):
        yield np.concatenate([blocks[number] for number in np.sort(order[start : start + at_once])])


def _cut(windows: Iterator[_Window], size: int) -> Iterator[Arrays]:
    """Cut the rows of all windows into batches of one size, but for the last."""
    held: list[Arrays] = []
    lacking = size
    for window in windows:
        start = 0
        while start < len(window.places):
            places = window.places[start : start + lacking]
            held.append(window.rows(places))
            start, lacking = start + len(places), lacking - len(places)
            if not lacking:
                yield _joined(held)
                held, lacking = [], size
        del window
    if held:
        yield _joined(held)


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _values(variable: xr.Variable, sentences: slice | Positions) -> NDArray[Any]:
    """Read some sentences of a variable: sentences first, then tokens."""
    first = [dim for dim in ("sentence", "token") if dim in variable.dims]
    return variable.isel(sentence=sentences).compute().transpose(*first, ...).values


def _to_torch(rows: _Rows) -> Callable[[Arrays], dict[str, Any]]:
    """Return what makes tensors of arrays, sharing their memory."""
    kinds = {name: variable.dtype for name, variable in rows.variables.items()}
    if rows.tokens is not None:
        kinds["token"] = rows.tokens.dtype
    if others := [name for name, dtype in kinds.items() if dtype.kind not in "biuf"]:
        remedy = f"leave it out of {spelled('variables')}, or say {spelled('to', 'numpy')}"
        raise ParameterError(f"{spelled('to', 'torch')}: {some(others)} holds no numbers; {remedy}")
    try:
        from_numpy = import_module("torch").from_numpy
    except ImportError as error:
        raise MissingExtraError(
            f"{spelled('to', 'torch')} needs torch, which is not installed: pip install torch"
        ) from error
    return lambda batch: {name: from_numpy(values) for name, values in batch.items()}


def _check_options(batch_size: object, by: object, shuffle: object, seed: object, to: object) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ParameterError(f"{spelled(name)}: expected an integer of at least {least}, found {brief(value)}")
    for name, value, known in (("by", by, ("token", "sentence")), ("to", to, ("numpy", "torch"))):
        if not isinstance(value, str) or value not in known:
            raise ParameterError(f"{spelled(name)}: expected {' or '.join(map(repr, known))}, found {brief(value)}")
    if not isinstance(shuffle, bool):
        raise ParameterError(f"{spelled('shuffle')}: expected True or False, found {brief(shuffle)}")


def _check_dim(ds: xr.Dataset, dim: str, remedy: str) -> None:
    if dim not in ds.dims or dim not in ds.coords:
        found, done = (f"dims {some(ds.dims)}", remedy) if dim not in ds.dims else ("no labels", "assign coordinates")
        raise ParameterError(f"ds: expected a dim '{dim}' that has labels, found {found}; {done}")


def _checked_names(ds: xr.Dataset, by: str, variables: object) -> list[str]:
    """Return the names of variables that rows can be made of."""
    along = [str(name) for name, variable in ds.variables.items() if "sentence" in variable.dims]
    if by == "token":
        along.append("token")
    if variables is None:
        variables = [name for name in along if name in ds.data_vars]
    if isinstance(variables, str) or not isinstance(variables, Sequence) or not variables:
        raise ParameterError(f"{spelled('variables')}: expected a list of names, found {brief(variables)}")
    if others := [name for name in variables if name not in along]:
        expected = f"names of what is along sentence, such as {some(along)}"
        raise ParameterError(f"{spelled('variables')}: expected {expected}, found {some(map(brief, others))}")
    return list(variables)


def _checked_is_token(ds: xr.Dataset) -> xr.Variable:
    """Return which tokens there are; without it padding would be taken for tokens."""
    if "is_token" not in ds.variables:
        raise ParameterError("ds: has tokens, but no 'is_token' (sentence, token) that tells padding from them; add it")
    variable = ds["is_token"].variable
    if {*variable.dims} != {"sentence", "token"} or variable.dtype != bool:
        found = f"({', '.join(map(str, variable.dims))}) {variable.dtype}"
        raise ParameterError(f"ds: expected 'is_token' (sentence, token) bool, found {found}")
    return variable
