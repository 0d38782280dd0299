"""Tiny models with random weights, made from a configuration alone; nothing is fetched from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WORDS = ["he", "lied", "to", "them", "about", "it", "and", "then", "slept", "well", ".", "never", "again"]
TEXTS = ["he lied .", "then he slept well and lied again .", "never"]


def save_tiny(folder: Path, kind: str) -> Path:
    """Save a model of a kind with four layers, and a tokenizer of words, which puts a BOS in front."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["<bos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", unk_token="<unk>")
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": None}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=32, **sizes)
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 32}
        if kind == "gemma2":
            config = transformers.Gemma2Config(head_dim=8, sliding_window=4, **sizes)
        else:
            config = transformers.LlamaConfig(**sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, which begin as ones or zeros
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a tiny model of each kind."""
    return save_tiny(tmp_path / str(request.param), request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a tiny Llama."""
    return save_tiny(tmp_path / "llama", "llama")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A list of three sentences of other lengths."""
    path = tmp_path / "said.csv"
    path.write_text("sentence,label\n" + "".join(f"{text},{label}\n" for label, text in enumerate(TEXTS)))
    return path
