"""What in a store a researcher should know of before believing a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from featurestore.ranges import format_numbers
from featurestore.schema import ARRAYS
from featurestore.splits.duplicates import group_near_duplicates
from featurestore.store.info import L0_TOLERANCE, is_mismatch

if TYPE_CHECKING:
    import xarray as xr

_IMBALANCE = 3
"""How many times as many sentences as the rarest label the most frequent one may have."""


FEW = 10
"""Of a label with fewer sentences, the standard error of its recall is too small: 0 where all or none are right."""


def counted(n: int, thing: str) -> str:
    """Write a number of things."""
    return f"{n:,} {thing}" + "s" * (n != 1)


def near_duplicates(ds: xr.Dataset) -> list[list[int]]:
    """Return the positions of sentences that are nearly the same, a list for each group of two or more."""
    groups: dict[int, list[int]] = {}
    for position, group in enumerate(group_near_duplicates(ds["text"].values.tolist()).tolist()):
        groups.setdefault(group, []).append(position)
    return [members for members in groups.values() if len(members) > 1]


def of_sentences(ds: xr.Dataset, duplicates: list[list[int]]) -> Iterator[str]:
    """Yield what is odd about the sentences and their labels, a sentence each."""
    n, nonfinite = ds.sizes["sentence"], ds["n_nonfinite"].values
    if not n:
        yield "There are no sentences."
    if not any(name in ds for name in ARRAYS):
        yield "There are no arrays, only sentences, so there is nothing to look at."
    if bad := np.count_nonzero(nonfinite):
        values = counted(int(nonfinite.sum()), "NaN or infinite value")
        yield f"{bad:,} of {n:,} sentences have {values}; plots, features and probes leave these sentences out."
    if unlabelled := n - np.count_nonzero(ds["has_label"].values):
        yield f"{unlabelled:,} of {n:,} sentences have no label; what is by label leaves them out."
    yield from _of_labels(Counter(ds["label"].values[ds["has_label"].values].tolist()))
    if duplicates:
        alike, labels = sum(map(len, duplicates)), ds["label"].values
        mixed = sum(len(set(labels[members].tolist())) > 1 for members in duplicates)
        found = f"{alike:,} sentences are nearly the same as another, in {counted(len(duplicates), 'group')}"
        yield f"{found}, of which {mixed:,} with several labels; splits and probes keep each group on one side."


def _of_labels(counts: Counter[int]) -> Iterator[str]:
    if len(counts) == 1:
        yield f"All labelled sentences have the label {next(iter(counts))}, so there is nothing to tell apart."
    elif counts:
        if rare := sorted(label for label, count in counts.items() if count < FEW):
            listed = format_numbers(tuple(rare))
            yield f"Fewer than {FEW} sentences have label {listed}: standard errors of accuracies are too small there."
        (most, n_most), (least, n_least) = counts.most_common()[0], counts.most_common()[-1]
        if n_most > _IMBALANCE * n_least:
            found = f"Labels are unbalanced: {most} has {counted(n_most, 'sentence')}, {least} only {n_least:,}"
            yield f"{found}. Accuracies here are balanced, those of plain classifiers are not."


_WITHOUT_MODEL = {"text": "the words alone", "length": "the length alone"}


def _strongest_without_model(found: xr.Dataset) -> str:
    """Return which baseline without the model tells most, given what `separability` has found."""
    return max(_WITHOUT_MODEL, key=lambda name: np.nan_to_num(float(found[name]), nan=-1))


def without_model(found: xr.Dataset) -> str:
    """Say how well the labels can be told without the model at best, and what chance is."""
    name = _strongest_without_model(found)
    accuracy, error, chance = (100 * float(found[one]) for one in (name, f"{name}_error", "chance"))
    strongest = f"the strongest baseline without the model, {_WITHOUT_MODEL[name]}"
    return f"{strongest}, reaches {accuracy:.0f} ± {error:.0f} %; chance is {chance:.0f} %"


def of_baselines(found: xr.Dataset) -> Iterator[str]:
    """Yield what tells the labels without the model, given what `separability` has found."""
    name = _strongest_without_model(found)
    if found[name] > found["chance"] + 2 * found[f"{name}_error"]:
        yield f"Labels can be told from the text: {without_model(found)}. What a layer tells must exceed that."


def exceeds_without_model(found: xr.Dataset) -> bool:
    """Tell whether a layer exceeds that by more than two standard errors of the difference, taken as independent."""
    name = _strongest_without_model(found)
    error = np.hypot(found["accuracy_error"], found[f"{name}_error"])
    return bool((found["accuracy"] > found[name] + 2 * error).any())


def of_saes(measured: xr.Dataset) -> Iterator[str]:
    """Yield what is odd about the SAEs, given what `measured_l0` has found."""
    if wrong := int(is_mismatch(measured["nominal"], measured["measured"]).sum()):
        found = f"L0 differs from the nominal one by more than a factor of {L0_TOLERANCE:g}"
        yield f"The measured {found} in {wrong:,} of {measured.sizes['sae']:,} SAEs: check the extraction."
