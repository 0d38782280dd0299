"""What each SAE feature has to do with the label: measures of all features at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.errors import ParameterError, SelectionError, brief, spelled
from featurestore.explore.active_values import active_values
from featurestore.explore.reading import check_dataset
from featurestore.explore.tokens import label_numbers
from featurestore.measures.measured import measured
from featurestore.measures.significance import q_values
from featurestore.ranges import integer
from featurestore.schema import ACTIVATIONS, FINAL_TOKEN, TOKENS, Progress

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.measures.active import Active

    Array = NDArray[np.float64]

_MEANINGS = {
    "density": "share of the sentences in which the feature is active",
    "mean": "mean activation",
    "max": "largest activation",
    "active": "sentences with a label in which the feature is active",
    "mean_by_label": "mean activation in the sentences of the label",
    "pearson": "Pearson correlation of activation and label",
    "spearman": "Spearman correlation of activation and label",
    "auc": "area under the ROC curve, highest label against lowest",
    "monotonic": "Kendall's tau-a of label and mean activation",
    "p": "two-sided p of the Pearson correlation",
    "q": "false discovery rate (Benjamini-Hochberg) of p, over all features here",
    "chance": "largest absolute Pearson correlation of all features, labels permuted",
}

_BY_CHANCE = 0.95

_NONE = "has no sentence of finite values with such a token, so no feature can be measured"


def features(
    ds: xr.Dataset,
    *,
    tokens: Literal["final", "any"] = "final",
    permutations: int = 100,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> xr.Dataset:
    """Measure each SAE feature by itself and against the label. Reads all activations of the tokens that count, once.

    Sentences with values that are not finite do not count, nor those that have no such token. In bounded memory: some
    hundred sentences and 8 million active values at once; where an SAE has more of these, it is read several times.

    Parameters
    ----------
    ds : xarray.Dataset
        An open store, or a selection of it, such as ``ds.sel(layer=[12])`` or ``ds.isel(sentence=train)``.
    tokens : {"final", "any"}
        At the final token, or the maximum over all tokens of the sentence but special ones, such as a BOS. Where one
        token was selected, it is that.
    permutations : int
        How often the labels are permuted, to see how strong the best correlation would be by chance.
    seed : int
        Of the permutations.
    progress : callable
        Called as ``progress(what, done, total)``, counting the sentences of each SAE.

    Returns
    -------
    xarray.Dataset
        In memory, float64, along `layer` and `feature` (or `sae` and `feature`), with their coordinates `layer` or
        `sae_layer`, `average_l0` and `feature`. Of all sentences that count:

        - `density`: share in which the feature is active, that is, not zero;
        - `mean`, `max`: of its activation, zeros included.

        Of those that have a label:

        - `active`: in how many of them the feature is active;
        - `mean_by_label` (..., label): mean activation of each label;
        - `pearson`, `spearman`: correlation of activation and label, of values and of ranks (ties at their mean rank);
        - `auc`: how often a sentence of the highest label has a larger activation than one of the lowest, equal ones
          counted as half (Mann and Whitney's U, divided by the number of pairs);
        - `monotonic`: of all pairs of labels, the share in which the higher label has the larger mean activation, less
          the share in which it has the smaller (Kendall's tau-a): 1 where the mean rises with each label;
        - `p`: two-sided p of `pearson`, by Student's t with n - 2 degrees of freedom;
        - `q`: the same for many tests at once: false discovery rate (Benjamini and Hochberg [1]_) over all features of
          the result that are not constant;
        - `chance` (permutation): the largest absolute Pearson correlation of all these features, each time the labels
          are permuted (Westfall and Young [2]_).

        Features that are constant have NaN for all from `pearson` to `q`, and so have all if there is but one label, or
        none. Attributes: `tokens`, `sentences` and `labelled_sentences` (how many count), `permutations`, `seed`, and
        `pearson_by_chance`, the 95th percentile of `chance`: in 5 % of the permutations the best feature is as strong.

    Raises
    ------
    SelectionError
        If there are no activations, or no final token, or no sentence counts, or labels are no numbers.
    ParameterError
        If an option is something else, or `ds` no dataset.

    References
    ----------
    .. [1] Benjamini, Hochberg: Controlling the false discovery rate. 1995.
    .. [2] Westfall, Young: Resampling-based multiple testing. 1993.

    Examples
    --------
    >>> import featurestore
    >>> ds = featurestore.open_store("stores/dishonesty.zarr")
    >>> found = features(ds.sel(layer=[12, 15]))
    >>> round(found.pearson.sel(layer=15, feature=1022).item(), 3)
    -0.808
    """
    check_dataset(ds)
    if tokens not in TOKENS:
        raise ParameterError(f"{spelled('tokens')}: expected 'final' or 'any', found {brief(tokens)}")
    permutations, seed = _count("permutations", permutations), _count("seed", seed)
    array, dim = _activations(ds)
    token_positions = _token_positions(array, tokens)
    special = _special(ds, token_positions) if tokens == "any" else None
    counted, labels = _sentences(ds, token_positions, special)
    looked_at = np.zeros_like(counted)
    total, done = array.sizes.get(dim, 1) * len(labels), 0

    def read(rows: int) -> None:
        nonlocal done
        done += rows
        progress("features", done, total)

    def measured_sae(position: int) -> dict[str, Array]:
        of_sae = array.isel({dim: position}, missing_dims="ignore")
        found = []
        for active in active_values(of_sae, token_positions, special, read):
            finite = _finite(active, counted)
            looked_at[finite] = True
            of_finite = active.of_rows(finite)
            found.append(measured(of_finite, labels[finite], _kinds(labels), permutations=permutations, seed=seed))
        chance = np.fmax.reduce([part.pop("chance") for part in found])
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]} | {"chance": chance}

    saes = [measured_sae(position) for position in range(array.sizes.get(dim, 1))]
    if not looked_at.any():
        raise SelectionError(_NONE)
    values: dict[str, NDArray[Any]] = {name: np.stack([sae[name] for sae in saes]) for name in saes[0]}
    values |= {"q": q_values(values["p"]), "chance": np.fmax.reduce(values["chance"])}
    values["active"] = values["active"].astype(np.int64)
    attributes = {
        "tokens": tokens,
        "sentences": np.count_nonzero(looked_at),
        "labelled_sentences": np.count_nonzero(looked_at & ~np.isnan(labels)),
        "permutations": permutations,
        "seed": seed,
        "pearson_by_chance": float(np.quantile(values["chance"], _BY_CHANCE)) if permutations else np.nan,
    }
    return _labelled(values, array, dim, _kinds(labels), attributes)


def _count(name: str, value: object) -> int:
    number = integer(spelled(name), value)
    if number < 0:
        raise ParameterError(f"{spelled(name)}: expected 0 or more, found {number}")
    return number


def _activations(ds: xr.Dataset) -> tuple[xr.DataArray, str]:
    """Return the activations, and the dim of the SAEs, which they lack where one was selected."""
    if ACTIVATIONS not in ds:
        raise SelectionError("has no activations, so there are no features to measure")
    array = ds[ACTIVATIONS]
    if not array.size:
        raise SelectionError("has no activations in the selection, so there are no features to measure")
    dim = "sae" if "sae_layer" in array.coords else "layer"
    if unknown := [str(name) for name in array.dims if name not in ("sentence", "token", dim, "feature")]:
        raise SelectionError(
            f"has activations along {', '.join(unknown)}, which is no dim of a store; select by it first"
        )
    return array, dim


def _token_positions(array: xr.DataArray, tokens: str) -> list[int]:
    """Return positions along `token`; where it is no dim, of the one token that was selected."""
    if "token" not in array.dims:
        return [0]
    if tokens == "any":
        return [*range(array.sizes["token"])]
    found: list[int] = np.flatnonzero(array["token"].values == FINAL_TOKEN).tolist()
    if not found:
        raise SelectionError(
            f"has no final token, -1, in the selection; select it, or choose {spelled('tokens', 'any')}"
        )
    return found


def _special(ds: xr.Dataset, token_positions: list[int]) -> NDArray[np.bool_] | None:
    """Return which of these tokens are special, (sentence, token); None if there is none, or but one token."""
    if "is_special" not in ds.coords or "token" not in ds["is_special"].dims:
        return None
    special = ds["is_special"].isel(token=token_positions).transpose(..., "token").values
    values: NDArray[np.bool_] = special.reshape(-1, len(token_positions)).astype(bool)
    return values if values.any() else None


def _sentences(
    ds: xr.Dataset, token_positions: list[int], special: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], Array]:
    """Return which sentences count, and the label of each, NaN without one."""
    n = ds.sizes.get("sentence", 1)
    counted = np.ones(n, bool)
    if "n_nonfinite" in ds.coords:
        counted &= ds["n_nonfinite"].values == 0
    if "is_token" in ds.coords:
        is_token = (
            ds["is_token"]
            .isel(token=token_positions, missing_dims="ignore")
            .transpose("sentence", ..., missing_dims="ignore")
        )
        words = is_token.values.reshape(n, -1)
        counted &= (words if special is None else words & ~special).any(axis=1)
    if not counted.any():
        raise SelectionError(_NONE)
    labels = np.full(n, np.nan)
    if "label" in ds.coords:
        has_label = counted & (ds["has_label"].values if "has_label" in ds.coords else True)
        labels = np.where(has_label, label_numbers(ds), np.nan)
    return counted, labels


def _kinds(labels: Array) -> Array:
    return np.unique(labels[~np.isnan(labels)])


def _finite(active: Active, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which sentences count without those that a selection such as `where` has made NaN."""
    finite = counted.copy()
    finite[active.rows[~np.isfinite(active.values)]] = False
    return finite


def _labelled(
    values: dict[str, Array], array: xr.DataArray, dim: str, kinds: Array, attributes: dict[str, Any]
) -> xr.Dataset:
    import xarray as xr

    dims = {"mean_by_label": (dim, "feature", "label"), "chance": ("permutation",)}
    data = {
        name: (dims.get(name, (dim, "feature")), values[name], {"long_name": meaning})
        for name, meaning in _MEANINGS.items()
    }
    whole = bool(np.all(kinds == np.round(kinds)))
    coords: dict[str, Any] = {"label": kinds.astype(np.int64) if whole else kinds}
    for name, along in (("layer", dim), ("sae_layer", dim), ("average_l0", dim), ("feature", "feature")):
        if name in array.coords and (name != "layer" or dim == "layer"):
            coords[name] = (along, np.atleast_1d(array[name].values), array[name].attrs)
    return xr.Dataset(data, coords, attributes)
