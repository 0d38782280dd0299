"""How sentences are to be divided, as users say it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurestore.errors import ParameterError, brief, spelled
from featurestore.ranges import integer


@dataclass(frozen=True)
class SplitOptions:
    """How to split; validated when made.

    Attributes
    ----------
    test_size : float or None
        Fraction of the sentences that are for testing, between 0 and 1.
    folds : int or None
        Number of folds, at least 2.
    seed : int
        Of the shuffling, at least 0.
    test_store : str or None
        Name of the store whose sentences are for testing, all others for training; of several stores alone. Test
        sentences that belong together with a training sentence are left out.
    group_by : str or None
        What else belongs together: a coordinate of the sentences, such as ``n_tokens``, or ``FILE.csv:COLUMN``. An
        empty cell and NaN are no group, and 3 and 3.0 are the same.

    Raises
    ------
    ParameterError
        If one is of the wrong type or out of range, neither `test_size`, `folds` nor `test_store` is given, or
        `test_size` and `test_store` are.
    """

    test_size: float | None = None
    folds: int | None = None
    seed: int = 0
    group_by: str | None = None
    test_store: str | None = None

    def __post_init__(self) -> None:
        size: object = self.test_size
        if size is None and self.folds is None and self.test_store is None:
            names = ("seed", "group_by", "test_size", "folds", "test_store")
            raise ParameterError("{} and {} need {}, {} or {}".format(*map(spelled, names)))
        if self.test_store is not None and not (isinstance(self.test_store, str) and self.test_store):
            raise ParameterError(
                f"{spelled('test_store')}: expected the name of a store, found {brief(self.test_store)}"
            )
        if self.test_store is not None and size is not None:
            both = " and ".join(map(spelled, ("test_size", "test_store")))
            raise ParameterError(
                f"{both}: expected one of them, as each says which rows are for testing; leave one out"
            )
        number = isinstance(size, int | float | np.floating) and not isinstance(size, bool)
        if size is not None and not (number and 0 < size < 1):  # type: ignore[operator]
            expected = "expected a fraction between 0 and 1, such as 0.2"
            raise ParameterError(f"{spelled('test_size')}: {expected}, found {brief(size)}")
        folds = None if self.folds is None else integer(spelled("folds"), self.folds)
        if folds is not None and folds < 2:
            raise ParameterError(f"{spelled('folds')}: expected at least 2, found {brief(folds)}")
        if (seed := integer(spelled("seed"), self.seed)) < 0:
            raise ParameterError(f"{spelled('seed')}: expected 0 or more, found {brief(seed)}")
        if self.group_by is not None and not (isinstance(self.group_by, str) and self.group_by):
            expected = "expected a coordinate or FILE.csv:COLUMN"
            raise ParameterError(f"{spelled('group_by')}: {expected}, found {brief(self.group_by)}")
        # Plain numbers in place of numpy's, which JSON does not know.
        plain = {"test_size": None if size is None else float(size), "folds": folds, "seed": seed}  # type: ignore[arg-type]
        for name, value in plain.items():
            object.__setattr__(self, name, value)
