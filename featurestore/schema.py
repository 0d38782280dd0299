"""The vocabulary that all modules share: names, dims, and the frozen values that pass between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__version__ = "0.1.0"

SCHEMA_VERSION = 2
"""Version of the store's layout, recorded in every store."""

DATASET_VERSION = 1
"""Version of the dataset files, recorded in every dataset."""

EMBEDDINGS = "embeddings"
HIDDEN_STATES = "hidden_states"
ACTIVATIONS = "activations"

ARRAYS = (EMBEDDINGS, HIDDEN_STATES, ACTIVATIONS)
"""The data arrays of a store, each of which may be absent."""

ATTRIBUTES = ("model", "model_revision", "tokenizer", "sae_release", "sae_ids")
"""What a store's attributes say of where its values come from, if its maker has said so."""

NORMALIZATIONS = ("standardize", "minmax", "none")
"""The normalization methods; the first is the default."""

REDUCTIONS = ("pca", "umap")
"""What X can be reduced by, after it is normalized."""

EMBEDDING_KINDS = ("tokens", "first-block", "none")
"""Embeddings that `extract` keeps: as the embedding matrix gives them, as the first block receives them, or none."""

MODEL_DTYPES = ("float32", "float16", "bfloat16")
"""What a model can compute in; the first is the default, the first two can be stored."""

PLOTS = ("separability", "fisher", "l0", "norms", "pca", "trajectory", "heatmap", "activation")
"""What can be plotted."""

FINAL_TOKEN = -1
"""Label of the final token: tokens count back from the end of their sentence."""

MIN_ACTIVE = 5
"""A target feature that is active in fewer training sentences is nearly dead, unless another number is given."""

FEATURE_ORDERS = ("correlation", "spearman", "auc", "monotonic", "density", "mean", "max")
"""Measures by which features are listed; the first is the default."""

COMBINATIONS = ("concat", "mean", "difference", "sum")
"""What becomes of the layers of X; the first is the default."""

OUTCOMES = ("label", "store")
"""What a concept strategy predicts; the first is the default."""

CONTROLS = ("shuffled-labels", "random-columns", "text", "length")
"""What stands beside a dataset to say what its X or y would give by chance, or by the text alone."""

TOKENS = ("final", "any")
"""Where features are measured: at the final token, or by their maximum over all tokens."""

STORES, DATASETS = Path("stores"), Path("generated_datasets")
"""Where stores and datasets go that are given no other place: below the working folder."""

LIMITS = {"sentence": 10**7, "token": 10**6, "layer": 10**4, "sae": 10**4, "hidden": 10**6, "feature": 10**8}
"""Sizes of the dims up to which files are believed."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""


def array_dims(dtypes: tuple[str, ...], sae_dim: str) -> dict[str, tuple[str, ...]]:
    """Dims of each data array that has a dtype."""
    dims = {
        EMBEDDINGS: ("sentence", "token", "hidden"),
        HIDDEN_STATES: ("sentence", "token", "layer", "hidden"),
        ACTIVATIONS: ("sentence", "token", sae_dim, "feature"),
    }
    return {name: dims[name] for name, dtype in zip(ARRAYS, dtypes, strict=True) if dtype}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What one extraction run fixes for all its sentences; a store holds exactly one.

    Attributes
    ----------
    layers : tuple of int
        Each layer of the hidden states; without hidden states, of the SAEs, if each layer has one. Else empty.
    sae_layers : tuple of int
        Layer of each SAE, in the order of the activations; empty without activations.
    average_l0s : tuple of int or float
        Nominal average L0 of each SAE.
    hidden : int
        Width of the residual stream; 0 with neither embeddings nor hidden states.
    features : int
        Number of features of each SAE; 0 without activations.
    dtypes : tuple of str
        Of `embeddings`, `hidden_states` and `activations`, such as ``"float16"``; empty where one is absent.
    """

    layers: tuple[int, ...]
    sae_layers: tuple[int, ...]
    average_l0s: tuple[float, ...]
    hidden: int
    features: int
    dtypes: tuple[str, ...]

    @property
    def sae_dim(self) -> str:
        """Dim of the SAEs: ``"layer"`` where each layer has one, otherwise ``"sae"``."""
        return "layer" if self.sae_layers in ((), self.layers) else "sae"

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dims of each data array that there is."""
        return array_dims(self.dtypes, self.sae_dim)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dim that does not grow, as far as an array has it."""
        sizes = {"layer": len(self.layers), "sae": len(self.sae_layers)}
        sizes |= {"hidden": self.hidden, "feature": self.features}
        used = {dim for dims in self.dims.values() for dim in dims}
        return {dim: size for dim, size in sizes.items() if dim in used}

    def differences(self, other: Extraction) -> list[str]:
        """Say in words where `other` differs from this, one string a difference."""
        names = ["layers", "sae_layers", "average_l0s", "hidden", "features", "dtypes"]
        if self.sae_dim == other.sae_dim == "layer":
            names.remove("sae_layers")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name} {_brief(theirs)} instead of {_brief(ours)}" for name, ours, theirs in pairs if ours != theirs]


def _brief(value: object) -> str:
    return ",".join(str(one) or "none" for one in value) or "none" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class SentenceFile:
    """A sentence NPZ whose headers have been checked; its big arrays are still on disk.

    Attributes
    ----------
    path : Path
        The file.
    digest : str
        Identifies the content (see `featurestore.npz.Archive.digest`).
    sentence_index : int
        As in the file: counts from 0.
    n_tokens : int
        Fragments up to and including the final token.
    n_after_final : int
        Fragments after the final token, which are left out.
    extraction : Extraction
        Layers, sizes and dtypes.
    """

    path: Path
    digest: str
    sentence_index: int
    n_tokens: int
    n_after_final: int
    extraction: Extraction


@dataclass(frozen=True)
class Skipped:
    """A file that was left out of a store on request, and why."""

    file: str
    reason: str
