"""A store of language-model activations, labelled by xarray and kept in Zarr, and datasets built from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurestore.schema import __version__

if TYPE_CHECKING:
    from featurestore.datasets.build import build
    from featurestore.datasets.dataset import Dataset, load_dataset
    from featurestore.datasets.library import DatasetEntry, list_datasets
    from featurestore.datasets.normalize import Normalization
    from featurestore.errors import (
        DatasetError,
        FeatureStoreError,
        MissingExtraError,
        NonFiniteError,
        NpzError,
        ParameterError,
        RecipeError,
        SelectionError,
        SourceError,
        StoreBusyError,
        StoreError,
        StoreNotFoundError,
        StrategyError,
        TooLargeError,
    )
    from featurestore.explore.features import features
    from featurestore.explore.report import report
    from featurestore.explore.separability import fisher_ratio, separability
    from featurestore.explore.show import show
    from featurestore.explore.tokens import l0, onset, top_tokens, trajectory
    from featurestore.models.extract import extract
    from featurestore.recipes.sweep import Sweep, sweep
    from featurestore.sources.write_sentence import write_sentence
    from featurestore.store.batches import batches
    from featurestore.store.checks import Problem
    from featurestore.store.info import info
    from featurestore.store.ingest import ingest
    from featurestore.store.pooled import open_stores
    from featurestore.store.reading import open_store
    from featurestore.store.verify import verify
    from featurestore.store.writer import writer
    from featurestore.strategies import Selection, list_strategies, load_plugin, strategy

_HOMES = {
    "datasets.build": ["build"],
    "datasets.dataset": ["Dataset", "load_dataset"],
    "errors": [
        "DatasetError",
        "FeatureStoreError",
        "MissingExtraError",
        "NonFiniteError",
        "NpzError",
        "ParameterError",
        "RecipeError",
        "SelectionError",
        "SourceError",
        "StoreBusyError",
        "StoreError",
        "StoreNotFoundError",
        "StrategyError",
        "TooLargeError",
    ],
    "explore.features": ["features"],
    "explore.report": ["report"],
    "explore.separability": ["fisher_ratio", "separability"],
    "explore.show": ["show"],
    "explore.tokens": ["l0", "onset", "top_tokens", "trajectory"],
    "store.batches": ["batches"],
    "models.extract": ["extract"],
    "store.ingest": ["ingest"],
    "store.info": ["info"],
    "datasets.library": ["DatasetEntry", "list_datasets"],
    "datasets.normalize": ["Normalization"],
    "store.pooled": ["open_stores"],
    "store.reading": ["open_store"],
    "strategies": ["Selection", "list_strategies", "load_plugin", "strategy"],
    "recipes.sweep": ["Sweep", "sweep"],
    "store.checks": ["Problem"],
    "store.verify": ["verify"],
    "store.writer": ["writer"],
    "sources.write_sentence": ["write_sentence"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Dataset",
    "DatasetEntry",
    "DatasetError",
    "FeatureStoreError",
    "MissingExtraError",
    "NonFiniteError",
    "Normalization",
    "NpzError",
    "ParameterError",
    "Problem",
    "RecipeError",
    "Selection",
    "SelectionError",
    "SourceError",
    "StoreBusyError",
    "StoreError",
    "StoreNotFoundError",
    "StrategyError",
    "Sweep",
    "TooLargeError",
    "__version__",
    "batches",
    "build",
    "extract",
    "features",
    "fisher_ratio",
    "info",
    "ingest",
    "l0",
    "list_datasets",
    "list_strategies",
    "load_dataset",
    "load_plugin",
    "onset",
    "open_store",
    "open_stores",
    "report",
    "separability",
    "show",
    "strategy",
    "sweep",
    "top_tokens",
    "trajectory",
    "verify",
    "write_sentence",
    "writer",
]


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used: `import featurestore` and ``--help`` stay fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
