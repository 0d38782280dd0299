"""Statistics of another dataset: whether they can be used, and what they were fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.described import other_input
from featurestore.errors import DatasetError, ParameterError, spelled

if TYPE_CHECKING:
    from featurestore.datasets.dataset import Dataset
    from featurestore.datasets.selected import Selected
    from featurestore.questions.choices import Choices
    from featurestore.questions.components import Components

_TRACES = ["strategy", "fingerprint", "store_digest", "sentence_indices", "input_source", "input_layers", "input_dims"]
"""Metadata without which the statistics of a dataset cannot be used for another."""


def check_input(choices: Choices, selected: Selected, other: Dataset) -> None:
    """Refuse statistics of another input; DatasetError says which it is."""
    if other.reduction and other.reduction.width != selected.width:
        found = f"its X is reduced from {other.reduction.width} columns, this one from {selected.width}"
    elif not (found := other_input(choices, selected, other.metadata)):
        return
    raise DatasetError(f"{spelled('stats_from')}: {found}; choose statistics of the same input")


def fitted_on(metadata: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Return the sentences of the training rows, or of all without a split: store, if there are several, and index."""
    indices = np.asarray(metadata["sentence_indices"])
    stores = np.asarray(metadata.get("row_store", np.full(len(indices), "")))
    rows = np.asarray(metadata.get("split", np.full(len(indices), "train"))) == "train"
    return set(zip(stores[rows].tolist(), indices[rows].tolist(), strict=True))


def check_statistics(dataset: Dataset, strategy: str, normalize: str | None, reduce: Components | None) -> None:
    """Refuse statistics of another strategy, normalization or reduction, or that cannot be traced.

    Raises
    ------
    DatasetError, ParameterError
        Which it is.
    """
    if missing := [f"meta_{name}" for name in _TRACES if name not in dataset.metadata]:
        found = f"cannot be traced, as it has no {', '.join(missing)}"
        raise DatasetError(f"{spelled('stats_from')}: {found}; build it again")
    if (other := str(dataset.metadata["strategy"])) != strategy:
        raise DatasetError(
            f"{spelled('stats_from')}: has statistics of {other}, not of {strategy}; choose another dataset"
        )
    if normalize not in (None, method := dataset.normalization.method):
        asked = spelled("normalize", normalize)
        raise ParameterError(f"{asked}: {spelled('stats_from')} has {method}; leave one of them out")
    _check_reduction(dataset, reduce)


def _check_reduction(dataset: Dataset, asked: Components | None) -> None:
    """Refuse statistics of a dataset that is not reduced as is asked."""
    found = dataset.reduction and dataset.reduction.asked
    if found != asked:
        ours, theirs = (f"reduced by {one}" if one else "not reduced" for one in (asked, found))
        problem = f"is {theirs}, and this dataset is to be {ours}; {spelled('reduce')} has to be the same for both"
        raise ParameterError(f"{spelled('stats_from')}: {problem}")
    if dataset.reduction:
        dataset.reduction.check_known("applied to other data")
