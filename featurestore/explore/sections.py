"""What a report shows, section by section; what a store lacks is said in place of what it would have made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import SelectionError
from featurestore.explore import findings
from featurestore.explore.features import features
from featurestore.explore.inline import inline
from featurestore.explore.saes import measured_l0
from featurestore.explore.separability import fisher_ratio, separability
from featurestore.explore.show import show
from featurestore.explore.strongest import strongest
from featurestore.ranges import format_numbers
from featurestore.schema import ARRAYS, ATTRIBUTES, MIN_ACTIVE, Progress
from featurestore.store.info import bytes_on_disk, is_mismatch

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.store.snapshot import Snapshot

_TOP, _SHOWN, _SENTENCES = 20, 5, 5
"""Features in the table, of which so many are shown, each in so many sentences."""

_NEEDED = ("sentence", "label", "has_label", "text", "n_tokens", "n_nonfinite")

_LISTED = 10
"""Near-duplicates, groups of them, and files left out, that are listed."""


@dataclass(frozen=True)
class Figure:
    """A plot as an SVG element, or why there is none."""

    kind: str
    caption: str
    svg: str = ""
    why: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose rows can be sorted by each column."""

    caption: str
    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def shown(value: float) -> str:
    """Write a number of a table; NaN is a dash."""
    if isinstance(value, int):
        return str(value)
    return "–" if math.isnan(value) else f"{value:#.3g}".rstrip(".")  # noqa: RUF001


def all_of(ds: xr.Dataset, stored: Snapshot | None, progress: Progress) -> dict[str, Any]:
    """Return what the template shows of a dataset, and of the store that it is."""
    if missing := [name for name in _NEEDED if name not in ds.coords]:
        raise SelectionError(f"has no coordinate {missing[0]}: use a dataset as open_store returns it")
    duplicates = findings.near_duplicates(ds)
    found = [*_of_store(stored), *findings.of_sentences(ds, duplicates)]
    texts = ds["text"].values.tolist()
    layers, saes = _layers(ds, progress), _saes(ds, progress)
    return {
        "facts": [*_facts(ds, stored)],
        "findings": [*found, *layers.pop("findings", []), *saes.pop("findings", [])],
        "duplicates": [[texts[position] for position in members] for members in duplicates],
        "skipped": [f"{one['file']}: {one['reason']}" for one in stored.skipped] if stored else [],
        "most_listed": _LISTED,
        "layers": layers,
        "saes": saes,
    }


def _facts(ds: xr.Dataset, stored: Snapshot | None) -> Iterator[tuple[str, str]]:
    """Yield what `info` prints, as far as a dataset knows of it."""
    lengths = ds["n_tokens"].values
    labels = Counter(ds["label"].values[ds["has_label"].values].tolist())
    yield "sentences", f"{ds.sizes['sentence']:,}"
    yield "labels", ", ".join(f"{label}: {count:,}" for label, count in sorted(labels.items())) or "none"
    if lengths.size:
        yield "tokens a sentence", f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}"
    if "layer" in ds.dims:
        yield "layers", format_numbers(tuple(ds["layer"].values.tolist()))
    for name in ("hidden", "feature"):
        if name in ds.sizes:
            yield {"hidden": "hidden dims", "feature": "features of an SAE"}[name], f"{ds.sizes[name]:,}"
    yield "arrays", ", ".join(f"{name} {ds[name].dtype}" for name in ARRAYS if name in ds)
    if stored and (n_bytes := bytes_on_disk(stored.location)) is not None:
        yield "on disk", f"{n_bytes / 1e6:,.1f} MB"
    yield from ((name.replace("_", " "), str(ds.attrs[name])) for name in ATTRIBUTES if name in ds.attrs)


def _of_store(stored: Snapshot | None) -> Iterator[str]:
    if stored and stored.expected_sentences:
        missing = f"{stored.sizes['sentence']:,} of {stored.expected_sentences:,} sentences"
        yield f"The store is incomplete: {missing}; its ingest goes on, or was interrupted: run it again."
    if stored and stored.skipped:
        yield f"Left out when the store was made: {findings.counted(len(stored.skipped), 'file')}."


def _figure(kind: str, title: str, caption: str, ds: xr.Dataset, **options: Any) -> Figure:
    try:
        return Figure(kind, caption, inline(kind, title, caption, ds, **options))
    except SelectionError as error:
        return Figure(kind, caption, why=str(error))


def _layers(ds: xr.Dataset, progress: Progress) -> dict[str, Any]:
    """Compare the layers by how well the labels can be told apart."""
    found, why = _tried(separability, ds, progress)
    ratios, why_no_ratio = _tried(fisher_ratio, ds, progress)
    norms = _figure("norms", "Norms by layer and token", "Median norm, by layer and token.", ds, progress=progress)
    if ratios is None:
        return {"why": why_no_ratio, "figures": [norms], "table": None}
    by = ratios["ratio"] if found is None else found["accuracy"]
    best = int(by["layer"].values[np.argmax(np.nan_to_num(by.values, nan=-1))])
    chosen, of_probe = _chosen(best, len(by), _exceeds(found, ratios)), "" if found is None else _of_probe(found, best)
    of_ratio = "Variance between labels, divided by the variance within."
    if not _exceeds(None, ratios):
        of_ratio += " In no layer does it exceed that of shuffled labels."
    figures = [
        Figure("separability", "Accuracy of a probe.", why=why) if found is None
        else _figure("separability", "Accuracy of a probe by layer", of_probe, found),
        _figure("fisher", "Fisher ratio by layer", of_ratio, ratios),
        _figure(
            "pca", f"Principal components of layer {best}",
            f"Final tokens along the directions of most variance, in {chosen}.", ds, layer=best,
        ),
        norms,
    ]  # fmt: skip
    notes = [] if found is None else [*findings.of_baselines(found)]
    return {"why": "", "findings": notes, "figures": figures, "table": _layer_table(found, ratios)}


def _exceeds(found: xr.Dataset | None, ratios: xr.Dataset) -> bool:
    """Tell whether labels are told apart in any layer better than shuffled ones; by the probe, where there is one."""
    if found is None:
        return bool((ratios["ratio"] > ratios["shuffled"]).any())
    return _probe_exceeds(found)


def _probe_exceeds(found: xr.Dataset) -> bool:
    return bool((found["accuracy"] > found["shuffled"] + 2 * found["shuffled_error"]).any())


def _chosen(best: int, n: int, exceeds: bool) -> str:
    """Name the layer that is shown, and why."""
    if not exceeds:
        return f"layer {best}; labels are told apart no better than shuffled ones, here and in all layers"
    return f"layer {best}" + (f", {_best_of(n)}" if n > 1 else "")


def _best_of(n: int) -> str:
    return f"the best of {n} layers, chosen by looking"


def _tried(measure: Callable[..., xr.Dataset], ds: xr.Dataset, progress: Progress) -> tuple[xr.Dataset | None, str]:
    """Return what is measured, or why it cannot be."""
    try:
        return measure(ds, progress=progress), ""
    except SelectionError as error:
        return None, str(error)


def _layer_table(found: xr.Dataset | None, ratios: xr.Dataset) -> Table:
    columns = {"layer": ratios["layer"].values.tolist()}
    if found is not None:
        names = {"accuracy, %": "accuracy", "± standard error": "accuracy_error", "shuffled labels, %": "shuffled"}
        columns |= {title: (100 * found[name]).values.tolist() for title, name in names.items()}
    columns |= {"Fisher ratio": ratios["ratio"].values.tolist()}
    columns |= {"95 % of shuffled below": ratios["shuffled"].values.tolist()}
    return Table("How well the labels can be told apart", tuple(columns), [*zip(*columns.values(), strict=True)])


def _of_probe(found: xr.Dataset, best: int) -> str:
    """Say in words what the plot shows."""
    there = found.sel(layer=best)
    accuracy, error = (100 * float(there[name]) for name in ("accuracy", "accuracy_error"))
    top = f"A logistic probe of the final token reaches {accuracy:.0f} ± {error:.0f} % in layer {best}"
    if (n := found.sizes["layer"]) > 1:
        top += f", {_best_of(n)}, so too high"
    said = f"{top}; {findings.without_model(found)}."
    if not _probe_exceeds(found):
        said += " In no layer does it exceed shuffled labels by more than two standard errors."
    elif not findings.exceeds_without_model(found):
        said += " In no layer does it exceed that by more than two standard errors of the difference."
    return said


def _saes(ds: xr.Dataset, progress: Progress) -> dict[str, Any]:
    """Measure the SAEs, and show the features that say most of the label."""
    try:
        measured, found = measured_l0(ds, progress=progress), features(ds, progress=progress)
    except SelectionError as error:
        return {"why": str(error), "figures": [], "table": None, "features": None}
    never = (found["density"] == 0).sum("feature").values.ravel()
    total = found["density"].size
    notes = [*findings.of_saes(measured)]
    if never.any():
        idle = f"{int(never.sum()):,} of {total:,} features are never active at the final token of a sentence"
        notes.append(f"{idle}; where sentences are few, that is to be expected.")
    wrong = is_mismatch(measured["nominal"], measured["measured"])
    rows = zip(
        measured["layer"].values.tolist(), measured["nominal"].values.tolist(), measured["measured"].values.tolist(),
        np.where(wrong, "no", "yes").tolist(), never.tolist(), strict=True,
    )  # fmt: skip
    caption = "Active features at a token, divided by the nominal average L0 of the SAE."
    return {
        "why": "",
        "findings": notes,
        "figures": [_figure("l0", "Measured L0 against the nominal one", caption, measured)],
        "table": Table(
            "SAEs",
            ("layer", "nominal L0", "measured L0", "within a factor of 2", "never active at the final token"),
            [*rows],
        ),
        "features": _features(ds, found, progress),
    }


_MEASURES = ("density", "mean", "max", "pearson", "spearman", "auc", "monotonic", "q")


def _features(ds: xr.Dataset, found: xr.Dataset, progress: Progress) -> dict[str, Any]:
    """Show the features that correlate most with the label; without labels, those that are most often active."""
    by = "correlation" if found.sizes["label"] > 1 else "density"
    try:
        best = strongest(found, by, _TOP, MIN_ACTIVE)
    except SelectionError as error:
        return {"why": str(error), "note": "", "figures": [], "table": None, "views": []}
    of_sae = best["sae_layer" if "sae_layer" in best.coords else "layer"]
    columns = [of_sae, best["average_l0"], best["feature"], *(best[name] for name in _MEASURES)]
    rows = [*zip(*(column.values.tolist() for column in columns), strict=True)]
    views = [
        show(ds, layer, feature, _SENTENCES, average_l0, progress=progress)
        for layer, average_l0, feature, *_ in rows[:_SHOWN]
    ]
    layer, average_l0, feature, *_ = rows[0]
    about = f"feature {feature} of layer {layer}"
    chosen: dict[str, Any] = {"layer": layer, "feature": feature, "average_l0": average_l0}
    figures = [
        _figure("activation", f"Activation of {about} by label", f"The first of them, {about}, at the final token.", ds,
                **chosen),
        _figure("trajectory", f"Trajectory of {about}", "The same along the sentences, aligned where they end.", ds,
                **chosen),
        _figure("heatmap", f"Heat map of {about}", "The same at each token of each sentence.", ds, **chosen),
    ]  # fmt: skip
    table = Table(_ranked(found, by), ("layer", "average L0", "feature", *_MEASURES), rows)
    note = "" if by == "density" or _beyond_chance(found) else _NOT_BEYOND_CHANCE
    return {"why": "", "note": note, "figures": figures, "table": table, "views": views}


_NOT_BEYOND_CHANCE = "No feature correlates more with the label than the best of so many does by chance."


def _beyond_chance(found: xr.Dataset) -> bool:
    return bool((abs(found["pearson"]) > found.attrs["pearson_by_chance"]).any())


def _ranked(found: xr.Dataset, by: str) -> str:
    if by == "density":
        return "Features that are active most often at the final token"
    chance = found.attrs["pearson_by_chance"]
    by_chance = f"by chance, the best of all {found['density'].size:,} reaches {chance:.2f} in 5 % of the cases"
    return f"Features that correlate most with the label at the final token; {by_chance}"
