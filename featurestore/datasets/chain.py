"""What raw values go through to become X, one step after another: normalization, then perhaps a reduction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.datasets.normalize import Normalization
from featurestore.datasets.reduce import Reduction
from featurestore.errors import extra
from featurestore.questions.components import Components

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from sklearn.preprocessing import FunctionTransformer

Steps = Sequence[Normalization | Reduction]


def apply(values: ArrayLike, steps: Steps) -> NDArray[np.float32]:
    """Transform values by each step."""
    for step in steps:
        values = step.transform(values)
    return np.asarray(values)


def undo(values: ArrayLike, steps: Steps) -> NDArray[np.float32]:
    """Invert each step, the last one first."""
    for step in reversed(steps):
        values = step.inverse(values)
    return np.asarray(values)


def transformer(steps: Steps) -> FunctionTransformer:
    """Return both as a scikit-learn transformer, whose columns are called as those it is given, or as components."""
    with extra("sklearn"):
        from sklearn.preprocessing import FunctionTransformer

    reduced = next((step.asked for step in steps if isinstance(step, Reduction)), None)
    names = partial(_component_names, reduced) if reduced else "one-to-one"
    given: dict[str, Any] = {"kw_args": {"steps": steps}, "inv_kw_args": {"steps": steps}}
    return FunctionTransformer(apply, undo, validate=False, check_inverse=False, feature_names_out=names, **given)


def _component_names(asked: Components, _transformer: object, _names: object) -> NDArray[Any]:
    return np.array([f"{asked.method}{number}" for number in range(asked.count)], object)
