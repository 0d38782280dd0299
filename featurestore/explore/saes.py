"""How many features of each SAE are active, against its nominal average L0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import SelectionError
from featurestore.explore.reading import drawn
from featurestore.explore.tokens import l0, of_words
from featurestore.schema import ACTIVATIONS, Progress
from featurestore.strategies import sae_dim

if TYPE_CHECKING:
    import xarray as xr


_MOST_SENTENCES = 128
"""Sentences of which all activations are read, which takes far longer than those of the final tokens."""


def measured_l0(
    ds: xr.Dataset, *, seed: int = 0, most: int = _MOST_SENTENCES, progress: Progress = lambda *_: None
) -> xr.Dataset:
    """Compare the L0 measured at all tokens but special ones with the nominal one. Reads all activations, SAE by SAE.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it that keeps its dims. Sentences with non-finite values are left out.
    seed, most : int
        Of more sentences, so many are drawn at random.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    xarray.Dataset
        Over (sae,): `layer`, `nominal`, `measured` (mean over the sentences of their mean L0), `low` and
        `high` (of the sentences, 5 % have a smaller and 5 % a larger one). Attribute `sentences`. Not lazy.

    Raises
    ------
    SelectionError
        If there are no activations, no sentence whose values are finite, the dataset lacks a dim, or values are
        NaN, as a mask makes them.
    ParameterError
        If `ds` is no dataset, or a number is too small.
    """
    import xarray as xr

    ds = drawn(ds, most, seed)
    _refuse_masked(ds)
    dim = sae_dim(ds)
    n, parts = ds.sizes.get(dim, 1), []
    for position in range(n):
        parts.append(l0(ds.isel({dim: [position]} if dim in ds.dims else {})).compute())
        progress("counting features", position + 1, n)
    active = xr.concat(parts, dim)
    means = of_words(active).mean("token").values
    low, high = np.nanquantile(means, [0.05, 0.95], axis=0)
    variables = {
        "layer": active["sae_layer" if "sae" in active.dims else "layer"].values,
        "nominal": active["average_l0"].values,
        "measured": np.nanmean(means, axis=0),
        "low": low,
        "high": high,
    }
    return xr.Dataset(
        {name: ("sae", values) for name, values in variables.items()}, attrs={"sentences": ds.sizes["sentence"]}
    )


def _refuse_masked(ds: xr.Dataset) -> None:
    """Refuse activations that are NaN where there is a token: they would count as active.

    Those as of the store have none; only what was calculated of them, which has lost their encoding, is looked at.
    """
    if ACTIVATIONS not in ds or "preferred_chunks" in ds[ACTIVATIONS].encoding:
        return
    if bool((ds[ACTIVATIONS].isnull() & ds["is_token"]).any()):
        raise SelectionError("has NaN at tokens, as a mask (where) makes them: select by sel or isel instead")
