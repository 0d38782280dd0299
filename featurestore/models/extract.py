"""From a language model and a list of sentences to a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ParameterError, SelectionError, StoreError, brief, spelled
from featurestore.models.causal import CausalModel, Computed, Tokens, checked_layers
from featurestore.models.listed import Listed, listed
from featurestore.models.saes import SAE, encoded, load_saes
from featurestore.paths import PathLike, as_path
from featurestore.ranges import integer, numbers
from featurestore.schema import ATTRIBUTES, EMBEDDING_KINDS, MODEL_DTYPES, STORES, Progress
from featurestore.store.snapshot import Snapshot, is_store
from featurestore.store.writer import SentenceWriter, writer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Extracted:
    """What an extraction did.

    Attributes
    ----------
    store : Path
        The store.
    added : int
        Sentences appended now.
    present : int
        Sentences of the list that were there already.
    """

    store: Path
    added: int
    present: int


def extract(
    sentences: PathLike,
    store: PathLike | None = None,
    *,
    model: str,
    model_revision: str | None = None,
    layers: Sequence[int] | str | None = None,
    sae: Sequence[str] = (),
    embeddings: str = EMBEDDING_KINDS[0],
    keep_bos: bool = False,
    batch_size: int = 16,
    device: str | None = None,
    dtype: str = MODEL_DTYPES[0],
    store_dtype: str | None = None,
    wait: bool = False,
    progress: Progress = lambda *_: None,
) -> Extracted:
    """Run sentences through a causal language model of Hugging Face, and write what it computes into a store.

    Each sentence is run once; as the model is causal, its tokens are what they would be in each cumulative fragment.
    At most 64 sentences are committed at a time. Interrupted at any point, the same call goes on with what is missing.

    Parameters
    ----------
    sentences : str or PathLike
        CSV file with a column `sentence`, and optionally `concept_strength_label` or `label`, and `sentence_index`, by
        default counted from 0.
    store : str or PathLike, optional
        The store; made if it is not there. By default ``stores/<name of the CSV>.zarr``.
    model : str
        Name on the Hugging Face hub, folder, or GGUF file. Recorded, as the tokenizer's name is.
    model_revision : str, optional
        Of the hub; the commit is recorded without, too.
    layers : sequence of int, or text such as ``"0-2,10"``, optional
        Whose hidden states are kept: the residual stream after the block, before any final norm. By default all.
    sae : sequence of str
        SAEs of the residual stream after some of the model's layers: ``LAYER=FILE.npz`` with weights (`W_enc`, `b_enc`,
        and optionally `b_dec`, `threshold` for JumpReLU, `k` for TopK), a folder saved by SAELens, or ``RELEASE:ID`` of
        SAELens. All of one width.
    embeddings : {"tokens", "first-block", "none"}
        As the embedding matrix gives them, as the first block receives them (scaled, or with positions added), or none.
    keep_bos : bool
        Keep special tokens at the beginning, such as a BOS, and mark them as special, instead of leaving them out.
    batch_size : int
        Sentences that are run together.
    device : str, optional
        Such as ``"cpu"`` or ``"cuda"``; by default a GPU if there is one.
    dtype : {"float32", "float16", "bfloat16"}
        What the model computes in.
    store_dtype : {"float32", "float16"}, optional
        Of embeddings and hidden states in the store; by default as computed, bfloat16 as float32. Activations are
        float32.
    wait : bool
        Wait while another process writes the store, instead of raising.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Extracted
        What was done.

    Raises
    ------
    ParameterError
        If an option, the list, the model or an SAE cannot be read, or they do not fit.
    SelectionError
        If the model lacks a layer, or a sentence is too long for it.
    MissingExtraError
        If `transformers`, or for SAEs of SAELens `sae-lens`, is not installed.
    StoreError
        As `writer`; also if the store says that it is of another model, or of other SAEs, or has a sentence of the list
        with another text or label.
    """
    for name, value, allowed in (
        ("embeddings", embeddings, EMBEDDING_KINDS),
        ("dtype", dtype, MODEL_DTYPES),
        ("store_dtype", store_dtype, (None, *MODEL_DTYPES[:2])),
    ):
        if value not in allowed:
            wanted = ", ".join(str(one) for one in allowed if one)
            raise ParameterError(f"{spelled(name)}: expected one of {wanted}, found {brief(value)}")
    if (size := integer(spelled("batch_size"), batch_size)) < 1:
        raise ParameterError(f"{spelled('batch_size')}: expected at least 1, found {size}")
    asked = None if layers is None else numbers(spelled("layers"), layers)
    path = as_path(sentences)
    rows = listed(path)
    causal = CausalModel(model, revision=model_revision, device=device, dtype=dtype)
    wanted_layers = asked if asked is not None else tuple(range(causal.n_layers))
    saes = load_saes(sae, causal.device)
    checked_layers([*wanted_layers, *(one.layer for one in saes)], causal.n_layers)
    if other := [one for one in saes if one.hidden != causal.hidden]:
        found = f"found {other[0].hidden} ({other[0].name})"
        raise ParameterError(f"{spelled('sae')}: expected SAEs of {causal.hidden} hidden dimensions, {found}")
    job = _Job(causal, wanted_layers, saes, embeddings, keep_bos, store_dtype)
    place = STORES / f"{path.stem}.zarr" if store is None else as_path(store)
    with writer(place, wait=wait, **job.described) as target:
        _check_same(place, job.described, rows)
        missing = {*target.missing(row.sentence_index for row in rows)}
        left = [row for row in rows if row.sentence_index in missing]
        done = 0
        for batch in batched(left, size):
            job.write(target, batch)
            done += len(batch)
            progress("extracting", done, len(left))
    return Extracted(place, len(left), len(rows) - len(left))


def _check_same(place: Path, described: Mapping[str, Any], rows: Sequence[Listed]) -> None:
    """Raise StoreError if a store is not of the same model, SAEs and layers, or has other texts or labels.

    One that does not say of which model it is, as ingested ones need not, is of another: it would be given this name.
    """
    if not is_store(place):
        return
    snapshot = Snapshot.read(place)
    said, extraction = snapshot.attributes, snapshot.extraction
    there_and_here = {name: (said.get(name), described[name]) for name in ATTRIBUTES}
    there_and_here["layers"] = extraction.layers, described["layers"]
    there_and_here["sae_layers"] = extraction.sae_layers, tuple(described["sae_layers"] or ())
    for name, (there, here) in there_and_here.items():
        if there != here:
            found = f"holds sentences of {name} {brief(there)}, not {brief(here)}"
            raise StoreError(f"{place}: {found}; choose another store ({spelled('store')})")
    columns = [snapshot.coord(name).tolist() for name in ("sentence", "text", "label", "has_label")]
    held = {index: (text, label if has else None) for index, text, label, has in zip(*columns, strict=True)}
    for row in rows:
        if (known := held.get(row.sentence_index, row[1:])) != row[1:]:
            found = f"holds sentence {row.sentence_index} as {brief(known[0])} with label {known[1]}"
            listed_as = f"the list has {brief(row.text)} with label {row.label}"
            raise StoreError(f"{place}: {found}, {listed_as}; mend the list, or choose another store")


@dataclass(frozen=True)
class _Job:
    """What is kept of each sentence."""

    model: CausalModel
    layers: tuple[int, ...]
    saes: list[SAE]
    embeddings: str
    keep_bos: bool
    store_dtype: str | None

    @property
    def described(self) -> dict[str, Any]:
        """What the store is to say of its layers, and of where its values come from."""
        releases = dict.fromkeys(sae.release for sae in self.saes)
        return {
            "layers": self.layers,
            "sae_layers": [sae.layer for sae in self.saes] if self.saes else None,
            "average_l0s": [sae.average_l0 for sae in self.saes] if self.saes else None,
            "model": self.model.name,
            "model_revision": self.model.revision or None,
            "tokenizer": self.model.name,
            "sae_release": ", ".join(releases) or None,
            "sae_ids": ", ".join(sae.name for sae in self.saes) or None,
        }

    def write(self, target: SentenceWriter, batch: Sequence[Listed]) -> None:
        """Run some sentences, and append them."""
        tokens = [self._tokens(row) for row in batch]
        needed = sorted({*self.layers, *(sae.layer for sae in self.saes)})
        for row, its, computed in zip(batch, tokens, self.model.run(tokens, needed, self.embeddings), strict=True):
            target.append(
                sentence_index=row.sentence_index,
                text=row.text,
                label=row.label,
                fragments=its.fragments,
                special=its.special,
                **self._arrays(computed),
            )

    def _tokens(self, row: Listed) -> Tokens:
        try:
            return self.model.tokens(row.text, self.keep_bos)
        except SelectionError as error:
            raise SelectionError(f"sentence {row.sentence_index}: {error}") from None

    def _arrays(self, computed: Computed) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        if computed.embeddings is not None:
            arrays["embeddings"] = self._cast(computed.embeddings)
        if self.layers:
            arrays["hidden_states"] = [self._cast(computed.hidden_states[layer]) for layer in self.layers]
        if self.saes:
            arrays["activations"] = [encoded(sae, computed.hidden_states[sae.layer]) for sae in self.saes]
        return arrays

    def _cast(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        return values if self.store_dtype is None else values.to(getattr(torch, self.store_dtype))
