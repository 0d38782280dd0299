"""SAE activations of a sentence as most libraries have them: the few that are not zero, and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featurestore.sources.sentence import SparseActivations
from featurestore.sources.tensors import as_array

if TYPE_CHECKING:
    from numpy.typing import NDArray


def is_sparse(value: object) -> bool:
    """Tell whether activations are given as a list of CSR arrays or of pairs, one for each SAE."""
    return isinstance(value, list | tuple) and any(_is_csr(one) or _is_pair(one) for one in value)


def sparse_activations(value: Sequence[Any], features: int | None) -> SparseActivations:
    """Read a list of CSR arrays (T, F), or of pairs (indices, values), both (T, K), one for each SAE.

    A zero among the values says nothing, so rows of pairs may be filled up with zeros.

    Raises
    ------
    ValueError, TypeError
        If they are not that, with what was expected.
    """
    parts = [_of_csr(one) if _is_csr(one) else _of_pair(one, features) for one in value]
    kinds = {(part.tokens, part.features, part.values.dtype) for part in parts}
    if len(kinds) > 1:
        found = "; ".join(f"({tokens}, {width}) {dtype}" for tokens, width, dtype in sorted(kinds, key=str))
        raise ValueError(f"must be of the same tokens, features and dtype for each SAE, found {found}")
    ((n_tokens, n_features, _),) = kinds
    if features is not None and features != n_features:
        raise ValueError(f"must have {features} features, found {n_features}")
    saes = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])
    tokens, indices = (np.concatenate([getattr(part, name) for part in parts]) for name in ("token", "indices"))
    values = np.concatenate([part.values for part in parts])
    kept = values != 0
    saes, tokens, indices, values = saes[kept], tokens[kept], indices[kept], values[kept]
    if outside := indices[(indices < 0) | (indices >= n_features)].tolist():
        raise ValueError(f"must name features from 0 to {n_features - 1}, found {outside[0]}")
    positions = saes.astype(np.int64) * n_features + indices
    order = np.lexsort((positions, tokens))
    saes, tokens, positions, values = saes[order], tokens[order], positions[order], values[order]
    if (twice := np.flatnonzero((np.diff(positions) == 0) & (np.diff(tokens) == 0))).size:
        at = twice[0]
        feature = positions[at] % n_features
        raise ValueError(f"names feature {feature} of SAE {saes[at]} twice at token {tokens[at]}; add them up")
    starts = np.searchsorted(tokens, np.arange(n_tokens + 1))
    width = len(parts) * n_features
    return SparseActivations(
        (len(parts), n_tokens, n_features),
        starts,
        positions.astype(np.uint32 if width < 1 << 32 else np.uint64),
        values,
    )


class _Part(NamedTuple):
    """What one SAE has: of each value its token, its feature, and the value."""

    tokens: int
    features: int
    token: NDArray[np.int64]
    indices: NDArray[Any]
    values: NDArray[Any]


def _is_csr(one: object) -> bool:
    return all(hasattr(one, name) for name in ("indptr", "indices", "data", "shape"))


def _is_pair(one: object) -> bool:
    """Tell a pair of 2-d arrays from an array that is given as a list."""
    return isinstance(one, list | tuple) and len(one) == 2 and all(np.ndim(part) == 2 for part in one)


def _of_csr(one: Any) -> _Part:
    starts, indices, values = as_array(one.indptr), as_array(one.indices), as_array(one.data)
    tokens, features = one.shape
    is_sound = len(starts) == tokens + 1 and starts[0] == 0 and starts[-1] == len(indices) == len(values)
    is_sound = is_sound and starts.dtype.kind in "iu" and indices.dtype.kind in "iu" and (np.diff(starts) >= 0).all()
    if getattr(one, "format", "csr") != "csr" or not is_sound:
        raise ValueError(f"must be CSR arrays (T, F), found one of shape {one.shape} whose parts do not fit it")
    return _Part(tokens, features, np.repeat(np.arange(tokens), np.diff(starts)), indices, values)


def _of_pair(pair: Sequence[Any], features: int | None) -> _Part:
    indices, values = map(as_array, pair)
    if features is None:
        raise TypeError("holds pairs of indices and values, which do not tell the number of features; give features")
    if indices.shape != values.shape or indices.ndim != 2 or indices.dtype.kind not in "iu":
        found = f"{indices.shape} {indices.dtype} and {values.shape}"
        raise ValueError(f"must be pairs of whole indices and values of one shape (T, K), found {found}")
    token = np.repeat(np.arange(indices.shape[0]), indices.shape[1])
    return _Part(indices.shape[0], features, token, indices.ravel().astype(np.int64), values.ravel())
