"""What one dataset is to be, before anything is read: its parameters, its name, its fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from featurestore.datasets.normalize import check_method
from featurestore.errors import DatasetError, ParameterError, brief, spelled
from featurestore.ranges import format_numbers
from featurestore.schema import NORMALIZATIONS, SCHEMA_VERSION
from featurestore.splits.split import SplitOptions
from featurestore.strategies import get_strategy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.datasets.dataset import Dataset
    from featurestore.datasets.journal import File
    from featurestore.strategies import Strategy

_LONGEST_NAME = 180

_TRACES = ["strategy", "fingerprint", "store_digest", "sentence_indices", "input_source", "input_layers", "input_dims"]
"""Metadata without which the statistics of a dataset cannot be used for another."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a dataset's content depends on, apart from the sentences.

    Attributes
    ----------
    strategy : Strategy
        What X and y are.
    arguments : mapping
        Its validated options, those that were given.
    normalize : str
        Method, or that of `stats_from`.
    drop_nonfinite : bool
        Whether sentences with NaN or infinity are left out.
    split : SplitOptions or None
        How rows are divided, if they are.
    stats_from : Dataset or None
        The dataset whose normalization is used, instead of one that is fitted.
    files : tuple of File
        Where some of this came from; no part of `parameters`.
    """

    strategy: Strategy
    arguments: Mapping[str, Any]
    normalize: str
    drop_nonfinite: bool = False
    split: SplitOptions | None = None
    stats_from: Dataset | None = None
    files: tuple[File, ...] = ()

    @classmethod
    def of(
        cls,
        strategy: str,
        parameters: Mapping[str, object],
        normalize: str | None = None,
        drop_nonfinite: bool = False,
        split: SplitOptions | None = None,
        stats_from: Dataset | None = None,
        files: Iterable[File] = (),
    ) -> Self:
        """Validate what a user asks for.

        Raises
        ------
        ParameterError
            If an option is unknown, missing, contradictory or unreadable.
        DatasetError
            If `stats_from` is of another strategy, or cannot be traced.
        """
        chosen = get_strategy(strategy)
        if not isinstance(drop_nonfinite, bool):
            raise ParameterError(f"{spelled('drop_nonfinite')}: expected true or false, found {brief(drop_nonfinite)}")
        if normalize is not None:
            check_method(normalize)
        if stats_from is not None:
            _check_statistics(stats_from, strategy, normalize)
            normalize = stats_from.normalization.method
        method = normalize or NORMALIZATIONS[0]
        return cls(chosen, chosen.parameters(parameters), method, drop_nonfinite, split, stats_from, tuple(files))

    @cached_property
    def parameters(self) -> str:
        """All of it as JSON, the same for the same plan on every machine: no paths, no times."""
        given: dict[str, Any] = {
            "strategy": self.strategy.name,
            "parameters": self.arguments,
            "normalize": self.normalize,
        }
        if self.drop_nonfinite:
            given["drop_nonfinite"] = True
        if self.split:
            given["split"] = self._split
        if self.stats_from:
            given["stats_from"] = str(self.stats_from.metadata["fingerprint"])
        return json.dumps(given, sort_keys=True)

    @property
    def file_name(self) -> str:
        """A name that says what is inside: strategy, parameters, normalization, and what else differs from usual."""
        words = [self.strategy.name]
        for name, value in self.arguments.items():
            words.append(f"{_dashed(name)}-{format_numbers(value) if isinstance(value, tuple) else value}")
        words.append(self.normalize)
        words += [f"{_dashed(name)}-{value}" for name, value in self._split.items()]
        if self.drop_nonfinite:
            words.append("drop-nonfinite")
        if self.stats_from:
            words.append(f"stats-from-{str(self.stats_from.metadata['fingerprint'])[:8]}")
        full = "_".join(words)
        name = re.sub(r"[^A-Za-z0-9_.,+-]", "-", full)[:_LONGEST_NAME]  # file systems hold 255 bytes
        if name != full:
            name += f"..._{hashlib.sha256(self.parameters.encode()).hexdigest()[:12]}"
        return f"{name}.npz"

    @property
    def _split(self) -> dict[str, Any]:
        """Only what was asked for; a grouping by its column's name, as its content is in the fingerprint."""
        if self.split is None:
            return {}
        named = {
            "test_size": self.split.test_size,
            "folds": self.split.folds,
            "seed": self.split.seed,
            "group_by": self.split.group_by and self.split.group_by.rpartition(":")[2],
        }
        return {name: value for name, value in named.items() if value is not None}


def split_options(
    test_size: float | None = None, folds: int | None = None, seed: int | None = None, group_by: str | None = None
) -> SplitOptions | None:
    """Return the options of a split, or None where none is given.

    Raises
    ------
    ParameterError
        If they are out of range, or a split would be neither by size nor by folds.
    """
    if all(value is None for value in (test_size, folds, seed, group_by)):
        return None
    return SplitOptions(test_size, folds, 0 if seed is None else seed, group_by)


def fingerprint(parameters: str, store_digest: str, groups_digest: str, code: str = "", split_version: str = "") -> str:
    """Identify a dataset by what it is made of, as hex digits of a SHA-256.

    Parameters
    ----------
    parameters : str
        `Plan.parameters`.
    store_digest : str
        `sentences_digest` of all sentences of the store.
    groups_digest : str
        Of the groups of ``group_by``, or nothing.
    code : str
        `Strategy.code`: nothing for built-in strategies whose values have never changed.
    split_version : str
        `Split.version`: nothing where sides have never changed, or without a split.
    """
    further = [text for text in (code, split_version and f"split {split_version}") if text]
    content = json.dumps([SCHEMA_VERSION, parameters, store_digest, groups_digest, *further])
    return hashlib.sha256(content.encode()).hexdigest()


def sentences_digest(indices: NDArray[np.int64], digests: NDArray[Any]) -> str:
    """Identify sentences by their sentence_index and content digest, in any order; hex digits of a SHA-256."""
    content = sorted(zip(indices.tolist(), digests.tolist(), strict=True))
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _check_statistics(dataset: Dataset, strategy: str, normalize: str | None) -> None:
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
