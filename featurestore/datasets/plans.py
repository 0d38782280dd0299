"""What one dataset is to be, before anything is read: its options, and its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featurestore.datasets.normalize import check_method
from featurestore.datasets.reuse import check_statistics
from featurestore.errors import ParameterError, brief, spelled
from featurestore.questions.choices import NONE, Choices
from featurestore.ranges import format_numbers, integer
from featurestore.schema import DATASETS, NORMALIZATIONS
from featurestore.splits.options import SplitOptions
from featurestore.strategies import get_strategy

if TYPE_CHECKING:
    from featurestore.datasets.dataset import Dataset
    from featurestore.datasets.journal import File
    from featurestore.questions.rows import Condition
    from featurestore.strategies import Strategy

_LONGEST_NAME = 180


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Everything that a dataset's content depends on, apart from the sentences.

    Attributes
    ----------
    strategy : Strategy
        What X and y are.
    arguments : mapping
        Its validated options, those that were given.
    choices : Choices
        What else its rows, X and y are.
    normalize : str
        Method, or that of `stats_from`.
    drop_nonfinite : bool
        Whether sentences with NaN or infinity are left out.
    split : SplitOptions or None
        How rows are divided, if they are.
    stats_from : Dataset or None
        The dataset whose normalization and reduction are used, instead of some that are fitted.
    seed : int
        Of a control.
    files : tuple of File
        Where some of this came from; no part of `json`.
    """

    strategy: Strategy
    arguments: Mapping[str, Any]
    normalize: str
    choices: Choices = NONE
    drop_nonfinite: bool = False
    split: SplitOptions | None = None
    stats_from: Dataset | None = None
    seed: int = 0
    files: tuple[File, ...] = ()

    @classmethod
    def of(
        cls,
        strategy: str,
        options: Mapping[str, object],
        *,
        choices: Choices = NONE,
        normalize: str | None = None,
        drop_nonfinite: bool = False,
        split: SplitOptions | None = None,
        stats_from: Dataset | None = None,
        seed: int = 0,
        files: Iterable[File] = (),
    ) -> Self:
        """Validate what a user asks for; `options` are those of the strategy.

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
            check_statistics(stats_from, strategy, normalize, choices.reduce)
            normalize = stats_from.normalization.method
        if choices.y == "store" and split and split.test_store is not None:
            both = f"{spelled('y', 'store')} and {spelled('test_store')}"
            raise ParameterError(f"{both}: no test row would be of a store that is learned; leave one of them out")
        return cls(
            strategy=chosen,
            arguments=chosen.arguments(options),
            choices=choices.fitting(strategy, sequences=chosen.sequences),
            normalize=normalize or NORMALIZATIONS[0],
            drop_nonfinite=drop_nonfinite,
            split=split,
            stats_from=stats_from,
            seed=seed,
            files=tuple(files),
        )

    def within(self, condition: Condition | None) -> Self:
        """Return the same of a population that has to meet one more condition, if there is any."""
        if condition is None:
            return self
        where = tuple(sorted({*self.choices.where, condition}))
        return replace(self, choices=replace(self.choices, where=where))

    @cached_property
    def selection(self) -> str:
        """What X and y depend on before they are normalized or divided; the same for the same selection."""
        # The file of labels by its path, as another of the same column may have other ones.
        choices, drawn = replace(self.choices, reduce=None), self._drawn and self.seed
        return repr((self.called, choices, drawn, self.split if self.split and self.split.test_store else None))

    @property
    def _drawn(self) -> bool:
        """Whether its control is drawn at random."""
        return self.choices.control in ("shuffled-labels", "random-columns")

    @cached_property
    def called(self) -> str:
        """The call of the strategy."""
        return repr((self.strategy.name, sorted(self.arguments.items())))

    @cached_property
    def json(self) -> str:
        """All of it as JSON, the same for the same plan on every machine: no paths, no times."""
        given: dict[str, Any] = {
            "strategy": self.strategy.name,
            "parameters": self.arguments,
            "normalize": self.normalize,
            **self.choices.given,
        }
        if self._drawn and not self.split:  # whose seed is the same
            given["seed"] = self.seed
        if self.drop_nonfinite:
            given["drop_nonfinite"] = True
        if self.split:
            given["split"] = self._split
        if self.stats_from:
            given["stats_from"] = str(self.stats_from.metadata["fingerprint"])
        return json.dumps(given, sort_keys=True)

    @property
    def file_name(self) -> str:
        """A name that says what is inside: strategy, options, normalization, and what else differs from usual."""
        words = [self.strategy.name]
        for name, value in self.arguments.items():
            words.append(f"{_dashed(name)}-{format_numbers(value) if isinstance(value, tuple) else value}")
        words += [_word(name, value) for name, value in self.choices.given.items()]
        if self._drawn and self.seed and not self.split:
            words.append(f"seed-{self.seed}")
        words.append(self.normalize)
        words += [f"{_dashed(name)}-{value}" for name, value in self._split.items()]
        if self.drop_nonfinite:
            words.append("drop-nonfinite")
        if self.stats_from:
            words.append(f"stats-from-{str(self.stats_from.metadata['fingerprint'])[:8]}")
        full = "_".join(words)
        name = re.sub(r"[^A-Za-z0-9_.,+=-]", "-", full)[:_LONGEST_NAME]  # file systems hold 255 bytes
        if name != full:
            name += f"..._{hashlib.sha256(self.json.encode()).hexdigest()[:12]}"
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
            "test_store": self.split.test_store,
        }
        return {name: value for name, value in named.items() if value is not None}


def split_options(
    test_size: float | None = None,
    folds: int | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    test_store: str | None = None,
) -> SplitOptions | None:
    """Return the options of a split, or None where none is given.

    Raises
    ------
    ParameterError
        If they are out of range, or a split would be neither by size nor by folds.
    """
    if all(value is None for value in (test_size, folds, seed, group_by, test_store)):
        return None
    return SplitOptions(
        test_size=test_size, folds=folds, seed=0 if seed is None else seed, group_by=group_by, test_store=test_store
    )


def read_seed(seed: object) -> int:
    """Read a seed; ParameterError if it is no integer of at least 0."""
    if (number := integer(spelled("seed"), seed)) < 0:
        raise ParameterError(f"{spelled('seed')}: expected 0 or more, found {brief(number)}")
    return number


def default_output(store: str, plan: Plan, folder: Path = DATASETS) -> Path:
    """Name a dataset after what is in it: ``generated_datasets/<store>/<strategy and its options>.npz``."""
    return folder / store / plan.file_name


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _word(name: str, value: object) -> str:
    """Say in a file's name what was chosen."""
    if name == "where":
        conditions = [str(one).replace("-and-", " and ") for one in value]  # type: ignore[attr-defined]
        return f"where-{'-and-'.join(conditions)}"  # spaces are told by a digest
    return _dashed(name) if value is True else f"{_dashed(name)}-{value}"
