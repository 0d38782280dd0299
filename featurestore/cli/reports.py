"""What commands print."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from featurestore.datasets.library import DatasetEntry
from featurestore.errors import shown
from featurestore.ranges import format_numbers
from featurestore.schema import ATTRIBUTES

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.recipes.sweep import Sweep
    from featurestore.store.info import StoreInfo

_RANKINGS = {"correlation": "label", "density": "density"}
"""What recipes call the orders of features that they know."""

COLUMNS = [field.name for field in fields(DatasetEntry)]

_USUAL = {"tokens": "final"}
"""What need not be shown, besides what is empty."""


def info(found: StoreInfo) -> str:
    """Describe a store."""
    tokens = "{} to {}, median {}".format(*(found.tokens[i] for i in (0, 2, 1))) if found.tokens else "none"
    sentences = f"{found.sentences:,}"
    if found.expected_sentences:
        sentences += (
            f" of {found.expected_sentences:,}: INCOMPLETE, its ingest goes on, or was interrupted: run it again"
        )
    labels = [f"{label}: {count:,}" for label, count in found.labels.items()]
    unlabelled = [f"without: {found.unlabelled:,}"] * bool(found.unlabelled)
    rows = {
        "sentences": sentences,
        "labels": ", ".join([*labels, *unlabelled]) or "none",
        "tokens a sentence": tokens,
        "layers": format_numbers(found.layers) or "none",
        "hidden": f"{found.hidden:,}",
        "features": f"{found.features:,}",
        "dtypes": ", ".join(f"{name} {dtype}" for name, dtype in found.dtypes.items()),
        "non-finite values": f"{found.nonfinite_values:,} in {found.nonfinite_sentences:,} sentences",
        "on disk": "unknown" if found.bytes_on_disk is None else f"{found.bytes_on_disk / 1e6:,.1f} MB",
        "left out": f"{len(found.skipped):,} files",
    }
    rows |= {name.replace("_", " "): text for name, text in found.described.items() if name in ATTRIBUTES}
    lines = [f"{found.path}", *(f"  {name:18} {value}" for name, value in rows.items())]
    lines += [f"    {file}: {reason}" for file, reason in found.skipped]
    lines += ["", "  layer  average L0  measured at final tokens"] if found.saes else []
    for sae in found.saes:
        mark = "  MISMATCH: check the extraction" if sae.mismatch else ""
        lines.append(f"  {sae.layer:5}  {sae.average_l0:10g}  {sae.measured_l0:24.1f}{mark}")
    return "\n".join(lines)


def sweep(done: Sweep, dry_run: bool) -> str:
    """Say what a sweep has built, or would build: then each dataset, with its shape and size."""
    lines = [f"{store}: {report}" for store, report in done.splits.items()]
    if dry_run:
        rows = [
            (str(job.output), job.state, " x ".join(map(str, job.shape)), f"{job.n_bytes / 1e6:,.1f} MB")
            for job in done.datasets
        ]
        lines += table([("dataset", "state", "X", "size"), *rows])
    faults = Counter(f"{job.store}: {job.problem}" for job in done.in_state("unfit"))
    lines += [f"left out: {fault} ({_datasets(count)})" for fault, count in faults.items()]
    todo = done.in_state("new", "stale")
    size = sum(job.n_bytes for job in todo) / 1e6
    built = f"{'to build' if dry_run else 'built'} {_datasets(len(todo))} ({size:,.1f} MB) in {done.output}"
    return "\n".join([*lines, f"{built}, {len(done.in_state('current'))} up to date, {faults.total()} left out"])


def datasets(entries: Sequence[DatasetEntry], form: str | None) -> str:
    """List datasets as a table, JSON or CSV."""
    records = [asdict(entry) for entry in entries]
    if form == "json":
        return json.dumps(records, indent=2)
    flat = [{name: _cell(value) for name, value in record.items()} for record in records]
    if form == "csv":
        return _csv([COLUMNS, *([record[name] for name in COLUMNS] for record in flat)])
    told = [name for name in COLUMNS if any(record[name] not in ("", _USUAL.get(name)) for record in flat)]
    visible = [name for name in told if name != "fingerprint"]
    lines = table([visible, *([record[name] for name in visible] for record in flat)]) if flat else []
    return "\n".join([*lines, _datasets(len(entries))])


def features(best: xr.Dataset) -> str:
    """List features with their measures; by correlation, below how strong the best of so many would be by chance."""
    about, columns = best.attrs, _feature_columns(best)
    lines = [
        f"{about['features']:,} features in {about['sentences']:,} sentences, {about['labelled_sentences']:,} with a "
        f"label; by {about['by']}, of those active in {about['min_active']} sentences or more"
    ]
    chance = about["pearson_by_chance"]
    if about["by"] == "correlation" and not math.isnan(chance):  # of Pearson correlations, and of no other measure
        often = f"in 5 % of {about['permutations']} permutations of the labels"
        lines.append(f"by chance: {often}, the strongest correlation of all features is above {chance:.3f}")
    if about["tokens"] == "final" and about["by"] in _RANKINGS:
        lines.append(
            f"a recipe's `rank_by: {_RANKINGS[about['by']]}` finds the same; with a split, in its training rows"
        )
    in_csv_alone = ("mean_", "average_l0") if "layer" in best.coords else ("mean_",)
    visible = [name for name in columns if not name.startswith(in_csv_alone)]
    cells = [[name, *(_figure(name, value) for value in columns[name])] for name in visible]
    return "\n".join([*lines, "", *table([*zip(*cells, strict=True)], str.rjust)])


def features_csv(best: xr.Dataset) -> str:
    """List features as a ranking that recipes take."""
    columns = _feature_columns(best)
    rows = [["" if value != value else value for value in row] for row in zip(*columns.values(), strict=True)]
    return _csv([[*columns], *rows])


def _feature_columns(best: xr.Dataset) -> dict[str, list[float]]:
    """Return what is known of each feature, first where it is, in the words of ``ranked_features.csv``."""
    layer = "sae_layer" if "sae_layer" in best.coords else "layer"
    arrays = {"layer": best[layer], "average_l0": best["average_l0"], "feature_id": best["feature"]}
    arrays |= {str(name): array for name, array in best.data_vars.items() if array.dims == ("rank",)}
    arrays |= {f"mean_{label.item()}": best["mean_by_label"].sel(label=label) for label in best["label"]}
    return {name: array.values.tolist() for name, array in arrays.items()}


def _figure(name: str, value: float) -> str:
    if name in ("pearson", "spearman", "monotonic"):
        return f"{value:+.3f}"
    if name in ("p", "q"):
        return f"{value:.1e}"
    if name == "auc":
        return f"{value:.3f}"
    if isinstance(value, int) or name == "average_l0":
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")


def table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Align the columns of some rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(align, row, widths)).rstrip() for row in rows]


def _datasets(n: int) -> str:
    return f"{n:,} dataset" + "s" * (n != 1)


def _joined(value: object) -> object:
    return " and ".join(map(str, value)) if isinstance(value, list) else value


def _cell(value: object) -> str:
    match value:
        case tuple():
            return format_numbers(value)
        case dict():
            return shown(" ".join(f"{name}={_joined(item)}" for name, item in value.items()))
        case None:
            return ""
    return shown(value)
