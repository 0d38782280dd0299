"""Sentences straight from a model into a store, with no NPZs between."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore.errors import ParameterError, StoreError, brief, naming, shown, spelled
from featurestore.paths import PathLike, as_path
from featurestore.ranges import integer
from featurestore.schema import Extraction
from featurestore.sources.given import Given, InCommon, checked, given
from featurestore.store import layout
from featurestore.store.append import has_bos, is_full, warn_of_bos, warn_of_nonfinite
from featurestore.store.commit import Writer, check_free, exclusive
from featurestore.store.described import described
from featurestore.store.layout import CHECKSUMS, TOKEN_COORDS
from featurestore.store.snapshot import is_store
from featurestore.store.staging import Staged, stage

logger = logging.getLogger(__name__)

_CONTENT = ("label", "has_label", "n_tokens", "text", *CHECKSUMS.values())
"""Coordinates that tell whether a sentence is the one that the store holds."""


@contextmanager
def writer(
    store: PathLike,
    *,
    layers: Sequence[int] | str = (),
    sae_layers: Sequence[int] | str | None = None,
    average_l0s: Sequence[float] | None = None,
    wait: bool = False,
    **attributes: str | None,
) -> Iterator[SentenceWriter]:
    """Write sentences into a store as a model gives them, with the guarantees of `ingest`.

    They are committed in batches. Killed at any moment, the store opens at its last committed batch, and `missing` says
    what is left to do. When the `with` block is left by an exception, Ctrl-C included, the sentences that were appended
    are committed first, and if there are any, the store says that it is incomplete until another block ends well. No
    other process can write the store meanwhile; all can read it. The store equals one ingested from NPZs of the same
    values (`write_sentence`), but for the coordinates `source`, which is empty, and `source_digest`.

    Parameters
    ----------
    store : str or PathLike
        The store; made with its first batch if it is not there.
    layers : sequence of int, or text such as ``"0-2,10"``
        Each layer of the hidden states, once, in the order of the arrays. Not needed for embeddings alone.
    sae_layers : sequence of int, or text, optional
        Layer of each SAE, in the order of the activations; by default `layers`. A layer may have several.
    average_l0s : sequence of int or float, optional
        Nominal average L0 of each SAE, which tells the SAEs of a layer apart. By default 0: not known.
    wait : bool
        Wait while another process writes the store, instead of raising.
    **attributes : str, optional
        What the store is to say of where its values come from: `model`, `model_revision`, `tokenizer`, `sae_release`,
        `sae_ids`. What is not given stays as it is.

    Yields
    ------
    SentenceWriter
        With `missing` and `append`.

    Raises
    ------
    ParameterError
        If an option cannot be read.
    StoreError
        If `store` is something else; `StoreBusyError` if another process writes it.

    Examples
    --------
    >>> with featurestore.writer("stores/mine.zarr", layers=range(26), model="gemma-2-2b") as store:  # doctest: +SKIP
    ...     for index in store.missing(range(len(texts))):
    ...         tokens, embeddings, hidden_states = run(texts[index])
    ...         store.append(sentence_index=index, text=texts[index], tokens=tokens,
    ...                      embeddings=embeddings, hidden_states=hidden_states)
    """
    path, said = as_path(store), described(attributes, "writer")
    shared = InCommon.of(layers, sae_layers, average_l0s)
    with exclusive(path, wait) as real:
        with naming(path):
            writing = SentenceWriter(real, shared, said)
        try:
            yield writing
            with naming(path):
                writing.finish()
        except BaseException:
            writing.rescue()
            raise


class SentenceWriter:
    """Takes sentences for a store, and commits them batch by batch; made by `writer`. Threads may share it."""

    def __init__(self, path: Path, shared: InCommon, attributes: Mapping[str, str]) -> None:
        self._path, self._shared, self._attributes = path, shared, attributes
        self._writer = Writer(path) if is_store(path) else None
        if self._writer is None:
            check_free(path)
        snapshot = self._writer.snapshot if self._writer else None
        self._extraction: Extraction | None = snapshot.extraction if snapshot else None
        self._special_first = snapshot.special_first if snapshot else 0
        self._stored: dict[int, list[Any]] = {}  # in the order of the store
        if snapshot:
            names = ["sentence", *(name for name in _CONTENT if name in snapshot.arrays)]
            columns = [snapshot.coord(name).tolist() for name in names]
            self._stored = {index: content for index, *content in zip(*columns, strict=True)}
        self._rows = {index: row for row, index in enumerate(self._stored)}
        self._wanted: set[int] = set()
        self._turn = threading.RLock()
        self._has_ended = False
        self._batch: list[Staged] = []
        self._nonfinite: dict[str, int] = {}

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Tell which sentences the store lacks.

        Parameters
        ----------
        indices : iterable of int
            Their `sentence_index`; all that the store is to have, so that it can say how many are left.

        Returns
        -------
        list of int
            Those that have not been appended, in the order given.
        """
        name = spelled("indices")
        if isinstance(indices, str) or not isinstance(indices, Iterable):
            raise ParameterError(f"{name}: expected integers, such as range(100), found {brief(indices)}")
        asked = [integer(name, index) for index in indices]
        with self._turn:
            self._wanted.update(asked)
            return [index for index in asked if index not in self._stored]

    def append(
        self,
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
    ) -> None:
        """Append a sentence of T tokens; the store has it when its batch is full, or the `with` block ends.

        Arrays are those of numpy, PyTorch (also on a GPU, and in a graph), JAX, or of any library by ``__array__`` or
        DLPack: float16 or float32, which stay what they are, or bfloat16, which becomes the float32 of the same values.
        They are copied. The first sentence of a store says which of the three big ones it has, H, F and the dtypes.

        Parameters
        ----------
        sentence_index : int
            Identifies the sentence, from 0. One that the store has with the same content is passed over.
        text : str
            The sentence.
        label : int, optional
            How strongly the concept is there.
        fragments : iterable of str, optional
            T texts: the sentence up to and including each token.
        tokens : iterable of str, optional
            Instead of them the T texts of the tokens, which are joined.
        special : array, (T,) bool, optional
            Which tokens are special ones, such as a BOS.
        embeddings : array, (T, H), optional
            Each token before the first block.
        hidden_states : array, (L, T, H), optional
            Residual stream after each of the layers; also as a list of L arrays (T, H).
        activations : array, (S, T, F), optional
            SAE features, 0 where inactive; also as a list of S arrays (T, F), of S CSR arrays (T, F) of SciPy, or of S
            pairs (indices, values), both (T, K), as a TopK SAE gives them. Values of 0 there say nothing.
        features : int, optional
            F; needed with pairs.

        Raises
        ------
        ParameterError
            If arrays are missing, contradict each other, or do not fit the sentences before.
        StoreError
            If the store has the sentence with other content, or the `with` block has ended.
        """
        raw = given(
            self._shared, sentence_index=sentence_index, text=text, label=label, fragments=fragments, tokens=tokens,
            special=special, embeddings=embeddings, hidden_states=hidden_states, activations=activations,
            features=features,
        )  # fmt: skip
        with self._turn:
            self._take(raw)

    def _take(self, raw: Given) -> None:
        if self._has_ended:  # and another process may be writing
            raise StoreError(f"{shown(self._path)}: the `with` block of this writer has ended; append in another one")
        sentence = checked(raw, self._extraction)
        staged = _identified(stage(sentence, self._special_first))
        index = sentence.file.sentence_index
        content = [staged.coords[name] for name in _CONTENT if name in staged.coords]
        if index in self._stored:
            if self._stored[index] != content or not self._has_tokens(self._rows[index], staged):
                found = f"sentence_index {index} is there with other content, which stays"
                raise StoreError(f"{shown(self._path)}: {found}; choose another index, or another store")
            return
        with naming(self._path):
            self._commit_if_full()  # one whose commit failed before
            self._extraction = self._extraction or sentence.file.extraction
            self._rows[index], self._stored[index] = len(self._rows), content
            self._batch.append(staged)
            if n := int(staged.coords["n_nonfinite"]):
                self._nonfinite[f"sentence {index}"] = n
            self._commit_if_full()

    def _has_tokens(self, row: int, staged: Staged) -> bool:
        """Tell whether the tokens of a sentence that was appended before have the same texts and marks."""
        committed = self._writer.n_sentences if self._writer else 0
        if row >= committed or self._writer is None:
            there: Mapping[str, Sequence[Any]] = self._batch[row - committed].token_coords
        else:
            place = (slice(row, row + 1), slice(0, staged.n_tokens))
            snapshot = self._writer.snapshot
            there = {name: snapshot.array(name).on_disk(place)[0].tolist() for name in TOKEN_COORDS}
        return all([*there[name]] == [*values] for name, values in staged.token_coords.items())

    def _commit_if_full(self) -> None:
        if is_full(self._batch, self._writer.room if self._writer else layout.BATCH_ROWS):
            self._commit()

    def _commit(self) -> None:
        """Write and commit the batch; after an error it holds what was not committed."""
        if not self._batch or self._extraction is None:
            return
        if self._writer is None:
            if has_bos(self._batch):
                warn_of_bos("mark it as a special one in a new store")
            self._writer = Writer.create(self._path, self._extraction, self._special_first)
        before = self._writer.n_sentences
        self._writer.snapshot = self._writer.snapshot.with_attributes(**self._attributes)  # committed with the batch
        try:
            self._writer.append(self._batch, len(self._stored.keys() | self._wanted))
        except BaseException:
            self._writer.discard()
            self._batch = self._batch[self._writer.n_sentences - before :]
            self._writer = self._writer if is_store(self._path) else None
            raise
        self._batch = []

    def rescue(self) -> None:
        """Commit what was appended before an error, which is what the caller is to hear of."""
        with self._turn:
            self._has_ended = True
            n = len(self._batch)
            try:
                self._commit()
            except Exception as error:
                logger.warning("%s: the last %d sentences could not be committed (%s)", shown(self._path), n, error)

    def finish(self) -> None:
        """Commit the rest, and declare the store complete."""
        with self._turn:
            self._has_ended = True
            self._commit()
            if self._writer is not None:
                self._writer.finish(self._writer.skipped, self._attributes)
        warn_of_nonfinite(self._nonfinite)


def _identified(staged: Staged) -> Staged:
    """Give a sentence that came from no file the digest of its content."""
    coords = staged.coords | {"source": "", "source_digest": ""}
    digest = hashlib.sha256(json.dumps(coords, sort_keys=True).encode())
    for name, values in sorted(staged.token_coords.items()):
        for value in values:  # one by one, as fragments are long
            digest.update(json.dumps([name, value]).encode())
    return replace(staged, coords=coords | {"source_digest": digest.hexdigest()})
