"""The vocabulary that all modules share: names, dims, and the frozen values that pass between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__version__ = "0.1.0"

SCHEMA_VERSION = 1
"""Version of the store's layout and of the dataset files, recorded in both."""

EMBEDDINGS = "embeddings"
HIDDEN_STATES = "hidden_states"
ACTIVATIONS = "activations"

ARRAY_DIMS = {
    EMBEDDINGS: ("sentence", "token", "hidden"),
    HIDDEN_STATES: ("sentence", "token", "layer", "hidden"),
    ACTIVATIONS: ("sentence", "token", "layer", "feature"),
}
"""The three data arrays of a store and their dims."""

NORMALIZATIONS = ("standardize", "minmax", "none")
"""The normalization methods; the first is the default."""

FINAL_TOKEN = -1
"""Label of the final token: tokens count back from the end of their sentence."""

MIN_ACTIVE = 5
"""A target feature that is active in fewer training sentences is nearly dead, unless another number is given."""

STORES, DATASETS = Path("stores"), Path("generated_datasets")
"""Where stores and datasets go that are given no other place: below the working folder."""

LIMITS = {"sentence": 10**7, "token": 10**6, "layer": 10**4, "hidden": 10**6, "feature": 10**8}
"""Sizes of the dims up to which files are believed."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""

Dtypes = tuple[str, str, str]


@dataclass(frozen=True)
class Extraction:
    """What one extraction run fixes for all its sentences; a store holds exactly one.

    Attributes
    ----------
    layers : tuple of int
        Layer of each SAE configuration; a layer with several SAEs appears several times.
    average_l0s : tuple of int
        Nominal average L0 of each SAE configuration.
    hidden : int
        Width of the residual stream.
    features : int
        Number of SAE features.
    dtypes : tuple of str
        Of `embeddings`, `hidden_states` and `activations`, such as ``"float16"``.
    """

    layers: tuple[int, ...]
    average_l0s: tuple[int, ...]
    hidden: int
    features: int
    dtypes: Dtypes

    def differences(self, other: Extraction) -> list[str]:
        """Say in words where `other` differs from this, one string a difference."""
        names = ("layers", "average_l0s", "hidden", "features", "dtypes")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name} {_brief(theirs)} instead of {_brief(ours)}" for name, ours, theirs in pairs if ours != theirs]


def _brief(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
class Sentence:
    """One sentence's content, T tokens in reading order, the final token last.

    Attributes
    ----------
    file : SentenceFile
        Where it came from.
    text : str
        The sentence.
    fragments : tuple of str
        The T cumulative fragments.
    label : int
        Concept strength.
    embeddings : ndarray, (T, H)
        Before the first block.
    hidden_states : ndarray, (L, T, H)
        Residual stream after each layer.
    activations : ndarray, (L, T, F)
        SAE features.
    """

    file: SentenceFile
    text: str
    fragments: tuple[str, ...]
    label: int
    embeddings: NDArray[np.floating]
    hidden_states: NDArray[np.floating]
    activations: NDArray[np.floating]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out of a store on request, and why."""

    file: str
    reason: str
