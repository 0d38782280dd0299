"""A causal language model of Hugging Face, and what it computes of a batch of sentences, by hooks on its modules."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ParameterError, SelectionError, brief, extra, first_line, shortened, spelled
from featurestore.ranges import format_numbers
from featurestore.schema import MODEL_DTYPES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tokens:
    """A sentence as its model sees it.

    Attributes
    ----------
    ids : list of int
        All tokens that go into the model.
    kept : slice
        Those that go into the store.
    special : list of bool
        Which of the kept ones are special.
    fragments : list of str
        Of each kept one the text up to and including it.
    """

    ids: list[int]
    kept: slice
    special: list[bool]
    fragments: list[str]


@dataclass(frozen=True)
class Computed:
    """What a model computed of one sentence, on its device: (T, H), or None, and the hidden states of each layer."""

    embeddings: torch.Tensor | None
    hidden_states: dict[int, torch.Tensor]


class CausalModel:
    """A causal language model, ready to run.

    Parameters
    ----------
    name : str
        What `transformers` loads: a name on the hub, a folder, or a GGUF file.
    revision : str, optional
        Of the hub.
    device : str, optional
        Such as ``"cuda"``; by default a GPU if there is one.
    dtype : str
        What it computes in.

    Raises
    ------
    ParameterError
        If it cannot be loaded, or put on that device.
    MissingExtraError
        If `transformers` or `torch` is not installed.
    """

    def __init__(
        self, name: str, *, revision: str | None = None, device: str | None = None, dtype: str = MODEL_DTYPES[0]
    ):
        with extra("transformers"):
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        self.device = _device(device)
        place, options = name, {"revision": revision} if revision else {}
        if (path := Path(name).expanduser()).is_file():
            place, options = str(path.parent), {"gguf_file": path.name}
        with _naming(name):
            self.tokenizer = AutoTokenizer.from_pretrained(place, **options)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), **options)
        self.name = path.name if path.exists() else name
        self.revision: str = getattr(model.config, "_commit_hash", None) or revision or ""
        self._model = model.base_model.to(self.device).eval()  # without its head, whose logits would be large
        self._config = model.config.get_text_config()
        self._blocks = _blocks(self._model, self._config.num_hidden_layers)
        self._longest = getattr(self._config, "max_position_embeddings", None)

    @property
    def n_layers(self) -> int:
        """Its blocks."""
        return len(self._blocks)

    @property
    def hidden(self) -> int:
        """Width of its residual stream."""
        width: int = self._config.hidden_size
        return width

    def tokens(self, text: str, keep_bos: bool) -> Tokens:
        """Cut a text into tokens, special ones included; SelectionError if there are too many."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True)
        ids, marks = encoded["input_ids"], encoded["special_tokens_mask"]
        if self._longest is not None and len(ids) > self._longest:
            found = f"{len(ids)} tokens, more than the {self._longest} that the model takes"
            raise SelectionError(f"{found}: {brief(text)}; shorten it, or leave it out")
        before = next((i for i, mark in enumerate(marks) if not mark), len(ids))
        after = next((i for i, mark in enumerate(reversed(marks)) if not mark), 0)
        kept = slice(0 if keep_bos else before, len(ids) - after)
        decode = self.tokenizer.decode
        ends = range(kept.start + 1, kept.stop + 1)
        fragments = [
            decode(ids[kept.start : end], skip_special_tokens=True, clean_up_tokenization_spaces=False) for end in ends
        ]
        return Tokens(ids, kept, [i < before for i in range(kept.start, kept.stop)], fragments)

    def run(self, batch: Sequence[Tokens], layers: Sequence[int], embeddings: str) -> Iterator[Computed]:
        """Run some sentences together, padded at their ends, and yield what was computed of each.

        Hidden states are those that each block gives, the last one's too: before the final norm.
        """
        import torch

        longest = max(len(tokens.ids) for tokens in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
            mask[row, : len(tokens.ids)] = 1
        caught: dict[int | str, torch.Tensor] = {}
        with ExitStack() as hooks, torch.inference_mode():
            for layer in layers:
                hooks.enter_context(_hooked(self._blocks[layer], caught, layer))
            if embeddings == "tokens":  # by the matrix itself, as some versions of its module scale them
                matrix = self._model.get_input_embeddings().weight
                caught["embeddings"] = torch.nn.functional.embedding(ids.to(matrix.device), matrix)
            if embeddings == "first-block":
                hooks.enter_context(_hooked(self._blocks[0], caught, "embeddings", of_input=True))
            self._model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
        for row, tokens in enumerate(batch):
            found = {key: values[row, tokens.kept] for key, values in caught.items()}
            yield Computed(found.pop("embeddings", None), {layer: found[layer] for layer in layers})


@contextmanager
def _hooked(
    module: torch.nn.Module, caught: dict[int | str, torch.Tensor], key: int | str, of_input: bool = False
) -> Iterator[None]:
    """Keep what a module gives, or is given first."""

    def given(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught[key] = arguments[0] if arguments else keywords["hidden_states"]

    def gives(_module: Any, _arguments: Any, output: Any) -> None:
        caught[key] = output[0] if isinstance(output, tuple) else output

    hook: Callable[..., Any] = module.register_forward_pre_hook if of_input else module.register_forward_hook
    handle = hook(given, with_kwargs=True) if of_input else hook(gives)
    try:
        yield
    finally:
        handle.remove()


def _blocks(model: torch.nn.Module, n: int) -> Sequence[torch.nn.Module]:
    """Find the list of blocks, whatever the architecture calls it."""
    import torch

    for name, module in model.named_modules():  # outer ones first
        if isinstance(module, torch.nn.ModuleList) and len(module) == n and "vision" not in name:
            return [*module]
    raise ParameterError(
        f"{spelled('model')}: expected a list of {n} blocks in {type(model).__name__}, found none; use writer"
    )


def checked_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raise SelectionError for layers that a model does not have."""
    if beyond := [layer for layer in layers if not 0 <= layer < n_layers]:
        found = f"the model has layers 0-{n_layers - 1}, not {format_numbers(tuple(beyond))}"
        raise SelectionError(f"{spelled('layers')}: {found}; name others")


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # which depends on how torch was built
        found = f"expected one that there is, such as cpu or cuda, found {brief(name)} ({shortened(error)})"
        raise ParameterError(f"{spelled('device')}: {found}") from error
    return device


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Say in one line what could not be loaded; what the libraries print meanwhile is not shown."""
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except ImportError as error:
        found = f"{brief(model)} needs a further library ({first_line(error)})"
        raise ParameterError(f"{spelled('model')}: {found}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        wanted = "expected the name of a causal language model on the Hugging Face hub, its folder or its GGUF file"
        raise ParameterError(f"{spelled('model')}: {wanted}, found {brief(model)} ({first_line(error)})") from error
