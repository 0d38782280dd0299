"""One sentence as a caller hands it over, checked as if it had come in an NPZ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import NpzError, ParameterError, brief, spelled
from featurestore.npz import Header
from featurestore.ranges import integer, numbers
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, HIDDEN_STATES, Extraction
from featurestore.sources.contents import LABEL, contents_of
from featurestore.sources.sentence import Sentence, SparseActivations
from featurestore.sources.sparse import is_sparse, sparse_activations
from featurestore.sources.tensors import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class InCommon:
    """What all sentences of an extraction share, as far as their arrays do not tell it.

    Attributes
    ----------
    layers : tuple of int
        Each layer of the hidden states, once.
    sae_layers : tuple of int, or None
        Layer of each SAE; None for those of the hidden states.
    average_l0s : ndarray, (S,), or None
        Nominal average L0 of each SAE; None where it is not known.
    """

    layers: tuple[int, ...]
    sae_layers: tuple[int, ...] | None
    average_l0s: NDArray[Any] | None

    @classmethod
    def of(cls, layers: object, sae_layers: object, average_l0s: object) -> InCommon:
        """Read what a caller gives; ParameterError for what names no layers, or is no numbers."""
        l0s = None
        if average_l0s is not None:
            expected = f"{spelled('average_l0s')}: expected one number for each SAE, found {brief(average_l0s)}"
            try:
                l0s = np.array([*average_l0s])  # type: ignore[misc]
            except Exception as error:
                raise ParameterError(expected) from error
            if l0s.dtype.kind not in "iuf" or l0s.ndim != 1:
                raise ParameterError(expected)
        of_saes = None if sae_layers is None else _with_repeats(spelled("sae_layers"), sae_layers)
        return cls(numbers(spelled("layers"), layers) if _is_some(layers) else (), of_saes, l0s)

    def arrays(self, has_saes: bool) -> dict[str, NDArray[Any]]:
        """Return them as a sentence NPZ has them."""
        arrays = {"layers": np.array(self.layers, np.int64)} if self.layers else {}
        if has_saes and self.sae_layers is not None:
            arrays["sae_layers"] = np.array(self.sae_layers, np.int64)
        if has_saes:
            n_saes = len(self.layers if self.sae_layers is None else self.sae_layers)
            arrays["average_l0s"] = np.zeros(n_saes, np.int64) if self.average_l0s is None else self.average_l0s
        return arrays


def _with_repeats(name: str, value: Any) -> tuple[int, ...]:
    """Read numbers of which some may come several times, as a layer has several SAEs."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return numbers(name, value)
    return tuple(integer(name, number) for number in value)


def _is_some(layers: object) -> bool:
    return layers is not None and not (hasattr(layers, "__len__") and len(layers) == 0)


@dataclass(frozen=True)
class Given:
    """The arrays of one sentence, by the names that they have in an NPZ.

    Attributes
    ----------
    arrays : dict
        Its arrays; the activations can be sparse ones.
    fragments : list of str
        Its texts, which as an array would be padded to the longest.
    path : Path
        Names the sentence in messages.
    """

    arrays: Mapping[str, NDArray[Any] | SparseActivations]
    fragments: list[str]
    path: Path = field(default=Path())
    digest: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.arrays or name == "fragments"

    def header(self, name: str) -> Header:
        """Shape and dtype of an array."""
        if name == "fragments":
            return Header((len(self.fragments),), np.dtype("U1"), False, 0)
        array = self.arrays[name]
        return Header(array.shape, array.dtype, False, 0)

    def array(self, name: str, max_bytes: int = 0) -> NDArray[Any]:  # noqa: ARG002
        """Return an array, sparse activations as a dense one."""
        array = self.arrays[name]
        return array.dense() if isinstance(array, SparseActivations) else array

    def texts(self, name: str, max_bytes: int = 0) -> list[str]:  # noqa: ARG002
        """Return an array of text, flat."""
        if name == "fragments":
            return self.fragments
        texts: list[str] = self.array(name).ravel().tolist()
        return texts

    def error(self, name: str, problem: str) -> NpzError:
        """Make the error that says what is wrong with an array."""
        return NpzError.of(self.path, f"array '{name}' {problem}")

    def sentence(self) -> Sentence:
        """Check it, and return it whole.

        Raises
        ------
        NpzError
            If arrays are missing, or contradict each other; its `reason` does not name the sentence.
        """
        contents = contents_of(self)
        big = {name: self.arrays.get(name) for name in (EMBEDDINGS, HIDDEN_STATES, ACTIVATIONS)}
        special = self.arrays.get("is_special", np.zeros(contents.file.n_tokens, np.bool_))
        return Sentence(
            file=contents.file,
            text=contents.text,
            fragments=contents.fragments,
            label=contents.label,
            special=special,  # type: ignore[arg-type]
            **big,  # type: ignore[arg-type]
        )


def given(
    common: InCommon,
    *,
    sentence_index: int,
    text: str,
    label: int | None = None,
    fragments: Iterable[str] | None = None,
    tokens: Iterable[str] | None = None,
    special: Any = None,
    embeddings: Any = None,
    hidden_states: Any = None,
    activations: Any = None,
    features: int | None = None,
) -> Given:
    """Read what a caller hands over of one sentence; its arrays are not checked yet.

    Raises
    ------
    ParameterError
        If something cannot be read as what it should be.
    """
    index = integer(spelled("sentence_index"), sentence_index)
    whose = f"sentence {index}"
    texts = _fragments(whose, fragments, tokens)
    arrays: dict[str, NDArray[Any] | SparseActivations] = {
        "sentence": np.array(_text(whose, "text", text)),
        "sentence_index": np.array(index),
        "is_final_token": np.arange(len(texts)) == len(texts) - 1,
    }
    if label is not None:
        arrays[LABEL] = np.array(integer(f"{whose}: {spelled('label')}", label))
    big = {"is_special": special, EMBEDDINGS: embeddings, HIDDEN_STATES: hidden_states, ACTIVATIONS: activations}
    for name, value in big.items():
        if value is None:
            continue
        try:
            is_csr = name == ACTIVATIONS and is_sparse(value)
            arrays[name] = sparse_activations(value, features) if is_csr else as_array(value)
        except Exception as error:  # of other libraries' arrays, any
            raise ParameterError(f"{whose}: array '{name}' {_reason(error, value)}") from error
    needs_layers = hidden_states is not None or (activations is not None and common.sae_layers is None)
    if needs_layers and not common.layers:
        raise ParameterError(f"{whose}: expected {spelled('layers')}, to name the layers of its arrays, found none")
    if features is not None and activations is not None:
        arrays["num_features"] = np.array(integer(f"{whose}: {spelled('features')}", features))
    return Given(arrays | common.arrays(activations is not None), texts, Path(whose))


def _reason(error: Exception, value: object) -> str:
    known = isinstance(error, ValueError | TypeError) and str(error).startswith(("must", "names", "holds"))
    return str(error) if known else f"must be an array, found {brief(value)} ({brief(str(error))})"


def _fragments(whose: str, fragments: Iterable[str] | None, tokens: Iterable[str] | None) -> list[str]:
    """Return the cumulative texts, given as such or token by token."""
    if (fragments is None) == (tokens is None):
        found = "neither" if fragments is None else "both"
        wanted = f"{spelled('fragments')} (cumulative texts) or {spelled('tokens')} (the text of each)"
        raise ParameterError(f"{whose}: expected either {wanted}, found {found}")
    name, values = ("fragments", fragments) if tokens is None else ("tokens", tokens)
    if values is None or isinstance(values, str | Set | Mapping) or not isinstance(values, Iterable):
        raise ParameterError(f"{whose}: {spelled(name)}: expected a list of texts, found {brief(values)}")
    texts = [_text(whose, name, one) for one in values]
    return [_kept(one) for one in (texts if tokens is None else accumulate(texts))]


def _text(whose: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ParameterError(f"{whose}: {spelled(name)}: expected text, found {brief(value)}")
    return str(value)


def _kept(text: str) -> str:
    """Return what an array of numpy keeps of a text, and so an NPZ."""
    return text.rstrip("\0")


def checked(given: Given, extraction: Extraction | None) -> Sentence:
    """Check a sentence, also against those before it.

    Raises
    ------
    ParameterError
        Naming the sentence, the array, what was expected and what was found.
    """
    try:
        sentence = given.sentence()
    except NpzError as error:
        raise ParameterError(f"{given.path}: {error.reason}") from error
    if extraction and (differences := extraction.differences(sentence.file.extraction)):
        found = "; ".join(differences)
        raise ParameterError(f"{given.path}: does not fit the store: {found}; write it into a store of its own")
    return sentence
