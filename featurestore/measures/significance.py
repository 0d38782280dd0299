"""How much of what is found would be found by chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from featurestore.measures.active import Active
from featurestore.measures.moments import Moments

Array = NDArray[np.float64]

_MOST_PAIRS = 1_000_000
"""Up to these the continued fraction converges, within 6,400 terms; of ten million pairs it no longer does."""


def p_values(correlations: Array, n: int) -> Array:
    """Return the two-sided p of Pearson correlations of n pairs.

    By Student's t with n - 2 degrees of freedom, ``t = r sqrt((n - 2) / (1 - r^2))``; so p is the regularized
    incomplete beta function at ``1 - r^2``, of ``(n - 2) / 2`` and ``1 / 2``. Of more than a million pairs, by
    Wallace's normal approximation [1]_, which then is right to 7 digits.

    Returns
    -------
    ndarray, of the same shape
        NaN where the correlation is, or with fewer than 3 pairs.

    References
    ----------
    .. [1] Wallace: Bounds on normal approximations to Student's and the chi-square distributions. 1959.
    """
    if n < 3:
        return np.full_like(correlations, np.nan)
    if n > _MOST_PAIRS:
        return _of_many(correlations, n - 2)
    return _betainc((n - 2) / 2, 0.5, (1 - correlations) * (1 + correlations), correlations**2)


def _of_many(correlations: Array, freedom: int) -> Array:
    with np.errstate(divide="ignore"):  # log(0), of a correlation of 1
        squares = -freedom * np.log1p(-(correlations**2))
    z = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(squares)
    return np.asarray(np.vectorize(math.erfc, otypes=[np.float64])(z / math.sqrt(2)))


def _betainc(a: float, b: float, x: Array, rest: Array) -> Array:
    """Return the regularized incomplete beta function at x; `rest` is 1 - x, without its rounding."""
    found = np.full_like(x, np.nan)
    near = x < (a + 1) / (a + b + 2)  # where the fraction converges fast
    for chosen, p, q, at, other in ((near, a, b, x, rest), (~near & (x <= 1), b, a, rest, x)):
        at, other = at[chosen], other[chosen]
        with np.errstate(divide="ignore"):  # log(0), of a probability of 0
            front = p * np.log(at) + q * np.log(other) - math.log(p)
        front += math.lgamma(p + q) - math.lgamma(p) - math.lgamma(q)
        found[chosen] = np.exp(front) * _fraction(p, q, at)
    found[~near & (x <= 1)] = 1 - found[~near & (x <= 1)]
    return found


def _fraction(a: float, b: float, x: Array) -> Array:
    """Evaluate the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = np.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
    found = d.copy()
    for m in range(1, 10_000):
        even = m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m)) * x
        odd = -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1)) * x
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            found *= c * d
        if not x.size or np.abs(c * d - 1).max() < 1e-14:
            return found
    raise ArithmeticError(f"the continued fraction for {a:g} and {b:g} does not converge")


def q_values(p: Array) -> Array:
    """Return the false discovery rate at which each would just be kept (Benjamini and Hochberg, 1995).

    Returns
    -------
    ndarray, of the same shape
        NaN where p is, which was not tested.
    """
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    order = np.argsort(p[tested], kind="stable")
    n = len(order)
    scaled = p[tested][order] * n / np.arange(1, n + 1)
    sorted_q = np.minimum.accumulate(scaled[::-1])[::-1]
    found = np.empty(n)
    found[order] = np.minimum(sorted_q, 1)
    q[tested] = found
    return q


def strongest_by_chance(active: Active, labels: Array, moments: Moments, permutations: int, seed: int) -> Array:
    """Return the largest absolute correlation of all features, with the labels permuted.

    Parameters
    ----------
    active : Active
    labels : ndarray, (sentence,) float64
    moments : Moments
        Of both.
    permutations, seed : int
        How often, and of the generator; the same for the same number of sentences.

    Returns
    -------
    ndarray, (permutation,) float64
        NaN if all features, or the labels, are constant.
    """
    varies = ~np.isnan(moments.scale)
    if not varies.any():
        return np.full(permutations, np.nan)
    rng = np.random.default_rng(seed)
    label = labels - labels.mean()
    # Each value and index is used again and again: divided and converted once.
    values = active.values / np.where(varies, moments.scale, np.inf)[active.features]
    active = active._replace(rows=active.rows.astype(np.intp), features=active.features.astype(np.intp))
    sums = (active.sums(values * rng.permutation(label)[active.rows]) for _ in range(permutations))
    return np.array([np.abs(correlations).max() for correlations in sums])
