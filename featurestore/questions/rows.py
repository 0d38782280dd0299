"""Populations: which sentences of a store are meant, by conditions on their coordinates or by a selection of xarray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import ParameterError, SelectionError, brief, shortened, some, spelled
from featurestore.ranges import format_numbers, number_tuple, parse_numbers
from featurestore.store.layout import SENTENCE_COORDS

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

COORDINATES = SENTENCE_COORDS | {"store": "string", "sentence_index": "int64", "label_name": "string"}
"""Of coordinates: the store's, two of several stores, and one of labels that are names."""

_TRUTH = {"false": 0, "true": 1}


@dataclass(frozen=True, order=True)
class Condition:
    """What a coordinate of sentences must be; as text, what `read_where` reads, if that has a way to write it.

    Attributes
    ----------
    name : str
        The coordinate.
    values : tuple of int, or of str
        What it may be, ascending; 0 and 1 for false and true.
    """

    name: str
    values: tuple[int, ...] | tuple[str, ...]

    def __str__(self) -> str:
        texts = [value for value in self.values if isinstance(value, str)]
        if len(texts) > 1:
            return f"{self.name} in {json.dumps(texts, ensure_ascii=False)}"
        return f"{self.name}={texts[0] if texts else self._numbers()}"

    def _numbers(self) -> str:
        values = [value for value in self.values if isinstance(value, int)]
        if COORDINATES[self.name] == "bool":
            return ",".join(text for text, value in _TRUTH.items() if value in values)
        below = [str(value) for value in values if value < 0]  # which no range can name
        others = tuple(value for value in values if value >= 0)
        return ",".join([*below, format_numbers(others)] if others else below)


def read_where(given: object) -> tuple[Condition, ...]:
    """Read conditions, all of which a sentence must meet.

    Parameters
    ----------
    given : str, sequence of str, or mapping
        Texts such as ``label=0,3``, ``n_tokens=5-12``, ``has_label=true``, or ``text=`` and a text as it is; or what
        the values of each coordinate may be: text as after the ``=``, or a value, or a sequence or array (numpy's,
        xarray's) of alternatives. `sentence` is the sentence_index.

    Returns
    -------
    tuple of Condition
        Sorted, none twice, so that what says the same is equal.

    Raises
    ------
    ParameterError
        If `given` is something else, a coordinate is unknown, or its values are unreadable.
    """
    if isinstance(given, Mapping):
        return tuple(sorted({_condition(name, value) for name, value in given.items()}))
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or isinstance(texts, bytes | bytearray | memoryview):
        expected = "expected text such as label=0,3, a sequence of such texts, or a mapping of coordinates to values"
        raise ParameterError(f"{spelled('where')}: {expected}, found {brief(given)}")
    return tuple(sorted({_condition(*_divided(text)) for text in texts}))


def _divided(text: object) -> tuple[str, str]:
    """Divide a text into the name of a coordinate and its values."""
    name, sign, values = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not sign:
        expected = "expected COORDINATE=VALUES, such as label=0,3 or n_tokens=5-12"
        raise ParameterError(f"{spelled('where')}: {expected}, found {brief(text)}")
    return name.strip(), values


def _condition(name: object, value: object) -> Condition:
    if not isinstance(name, str) or name not in COORDINATES:
        expected = f"expected a coordinate of sentences ({', '.join(sorted(COORDINATES))})"
        raise ParameterError(f"{spelled('where')}: {expected}, found {brief(name)}")
    option = f"{spelled('where')}: {name}"
    match COORDINATES[name]:
        case "bool":
            return Condition(name, _truths(option, value))
        case "string":
            return Condition(name, _texts(option, value))
        case _:
            found = parse_numbers(option, value, wide=True) if isinstance(value, str) else number_tuple(option, value)
            return Condition(name, tuple(sorted(found)))


def _truths(option: str, value: object) -> tuple[int, ...]:
    items = value.split(",") if isinstance(value, str) else _items(option, value)
    found = [_TRUTH.get(str(item).strip().lower()) if isinstance(item, bool | str) else None for item in items]
    known = {value for value in found if value is not None}
    if not known or None in found:
        raise ParameterError(f"{option}: expected true or false, found {brief(value)}")
    return tuple(sorted(known))


def _texts(option: str, value: object) -> tuple[str, ...]:
    items = _items(option, value)
    if not items or not all(isinstance(item, str) for item in items):
        raise ParameterError(f"{option}: expected a text, or a sequence of texts, found {brief(value)}")
    return tuple(sorted({str(item) for item in items}))


def _items(option: str, value: object) -> Sequence[object]:
    """Return the alternatives of a value: the items of a sequence or array, otherwise itself."""
    if hasattr(value, "dtype"):
        import numpy as np

        try:
            value = np.asarray(value).tolist()
        except Exception as error:  # of an array on another device, for one
            raise ParameterError(f"{option}: expected values, found {brief(value)} ({shortened(error)})") from error
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        return [value]
    return value


def met(ds: xr.Dataset, conditions: Iterable[Condition]) -> NDArray[np.bool_]:
    """Tell which sentences meet all conditions, (n,) bool; one on `label` only those that have a label.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or one with other values of the same coordinates.
    conditions : iterable of Condition
        As of `read_where`.

    Raises
    ------
    SelectionError
        If `ds` lacks a coordinate.
    """
    import numpy as np

    kept = np.ones(ds.sizes["sentence"], bool)
    for condition in conditions:
        values = _coordinate(ds, condition.name, condition)
        if COORDINATES[condition.name] == "string":
            wanted = {*condition.values}
            kept &= np.array([value in wanted for value in values.tolist()], bool)
        else:
            kept &= np.isin(values, condition.values)
        if condition.name == "label":
            kept &= _coordinate(ds, "has_label", condition)
    return kept


def _coordinate(ds: xr.Dataset, name: str, condition: Condition) -> NDArray[Any]:
    if name == "sentence_index" and name not in ds.coords:
        name = "sentence"  # which of one store is the same
    if name == "label_name" and name not in ds.coords:
        raise SelectionError(f"has no names of labels; take labels that have some: {spelled('labels_from')}")
    if name not in ds.coords:
        asks = f"which {spelled('where')} asks for ({shortened(condition)})"
        raise SelectionError(f"has no coordinate {name}, {asks}; leave that out")
    values: NDArray[Any] = ds[name].values
    return values


def where_json(conditions: Iterable[Condition]) -> list[str]:
    """Write conditions for people and for JSON, such as ``["label=0,3", "n_tokens=5-12"]``; equal only for equal ones.

    Alternative texts are written as in ``source in ["a.npz", "b.npz"]``.
    """
    return [str(condition) for condition in conditions]


def told(ds: xr.Dataset, sentences: NDArray[np.int64]) -> str:
    """Say which sentences these are, in messages: a few by their sentence_index, and of several stores by their store.

    Parameters
    ----------
    ds : xarray.Dataset
        The store, or several.
    sentences : ndarray, (m,) int64
        Some of its `sentence`.
    """
    if "store" not in ds.coords:
        return f"sentence_index {some(sentences)}"
    stores = ds["store"].sel(sentence=sentences)
    named = zip(stores["sentence_index"].values, stores.values, strict=True)
    return f"sentence_index {some(f'{index} of {store}' for index, store in named)}"


def store_of(ds: xr.Dataset) -> str:
    """Tell which store a dataset of xarray was opened from, and check that it says its sentences; values are not read.

    xarray keeps the store along with what selects, sorts, adds or drops; not along with `where`, `map`, `astype`,
    `fillna`, `merge`, `drop_encoding`, and `to_dataset` of an array.

    Parameters
    ----------
    ds : xarray.Dataset
        As `open_store` returns it, or a selection of that.

    Returns
    -------
    str
        Path or URL of the store, without passwords and queries.

    Raises
    ------
    ParameterError
        If `ds` is no dataset, does not say its store or its sentences, or has one twice.
    """
    import numpy as np
    import xarray as xr

    remedy = f"pass the store's path, and {spelled('where')} for a part of it"
    if not isinstance(ds, xr.Dataset):
        found = f"an array, {brief(ds.name)}" if isinstance(ds, xr.DataArray) else brief(ds)
        raise ParameterError(f"store: expected a dataset as of open_store, found {found}; {remedy}")
    source = ds.encoding.get("source")
    if "store" in ds.coords:
        part = f"{spelled('where')} {{'sentence': ds.sentence}} for a part of them"
        raise ParameterError(f"store: the dataset is of several stores; pass a list of their paths, and {part}")
    if not isinstance(source, str):
        raise ParameterError(f"store: the dataset does not say which store it is of, as after where or map; {remedy}")
    if "sentence" not in ds.coords or ds["sentence"].dtype.kind not in "iu":
        raise ParameterError(f"store: the dataset does not say its sentences by an integer coordinate; {remedy}")
    found, counts = np.unique(ds["sentence"].values, return_counts=True)
    if (counts > 1).any():
        twice = f"the dataset has the sentence {found[counts > 1][0]} twice"
        raise ParameterError(f"store: {twice}; select each once, or {remedy}")
    return source
