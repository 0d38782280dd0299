"""What X is reduced to: so many components of a method, as users write it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from featurestore.errors import ParameterError, brief
from featurestore.schema import REDUCTIONS

_GRAMMAR = re.compile(rf"({'|'.join(REDUCTIONS)})-([1-9][0-9]{{0,5}})")


@dataclass(frozen=True)
class Components:
    """So many components.

    Attributes
    ----------
    method : str
        One of `featurestore.schema.REDUCTIONS`.
    count : int
        How many there are, which become the columns of X.
    """

    method: str
    count: int

    @classmethod
    def read(cls, name: str, given: object) -> Self:
        """Read ``pca-50`` or ``umap-2``.

        Raises
        ------
        ParameterError
            If it is something else; the message starts with `name`.
        """
        match = _GRAMMAR.fullmatch(given) if isinstance(given, str) else None
        if not match:
            forms = " or ".join(f"{method}-K" for method in REDUCTIONS)
            raise ParameterError(f"{name}: expected {forms}, such as {REDUCTIONS[0]}-50, found {brief(given)}")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.method}-{self.count}"
