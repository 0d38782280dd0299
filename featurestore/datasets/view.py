"""An open store, and what plans mean in it: their selections, their splits, their fingerprints. Nothing big is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from featurestore.datasets.alignment import Aligned, align
from featurestore.datasets.fingerprints import fingerprint, sentences_digest, stores_digest
from featurestore.datasets.plans import Plan
from featurestore.datasets.ranking import Target, rank
from featurestore.datasets.reuse import check_input, fitted_on
from featurestore.datasets.selected import Population, Rows, Selected, controlled, select
from featurestore.errors import SelectionError, StrategyError, lacking, some, spelled
from featurestore.questions.choices import Choices
from featurestore.questions.labels import Labels, crossed, read_labels, relabelled, store_labels
from featurestore.questions.rows import Condition, met
from featurestore.questions.tokens import FINAL
from featurestore.splits import split as splits
from featurestore.store.location import Location
from featurestore.store.pooled import pooled
from featurestore.store.reading import open_store
from featurestore.store.snapshot import Snapshot, store_name
from featurestore.strategies import Selection
from featurestore.strategies.contained import check_option

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.datasets.dataset import Dataset
    from featurestore.splits.split import Split

    Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


_OWN_VALUES = {
    "source_digest": "keep the coordinate sentence as it was opened",
    "label": "save other labels in a CSV file, and name it as labels_from",
}
"""Coordinates by which a dataset that was changed since it was opened is told, and what to do instead."""


def _opened(stores: Sequence[Location]) -> xr.Dataset:
    if len(stores) == 1:
        return open_store(stores[0], chunks={})
    return pooled([Snapshot.read(store) for store in stores], chunks={})


class StoreView:
    """An open store, or several as one.

    Parameters
    ----------
    store : Path or ReadOnlyPath, or a sequence of them
        The store; of several, what `featurestore.open_stores` makes of them.
    outline : xarray.Dataset, optional
        What it will hold, if it is not there yet, or not up to date (see `featurestore.store.outline.outline`).

    Attributes
    ----------
    path : str
        Of the store, or of each, for messages.
    names : tuple of str
        Of the stores, without their folders.
    readable : bool
        Whether there are values to read, not only an outline of them.
    ds : xarray.Dataset
        Its content, lazy.
    sentences : ndarray, (n,) int64
        The sentence_index of each sentence; of several stores, its number among all of theirs.
    digests : ndarray, (n,) of str
        The digest of its content.
    digest : str
        SHA-256 over the sentence_index and content digest of all sentences, as hex digits; of several stores, over
        their names and digests.

    Raises
    ------
    StoreError
        If it is no store.
    SelectionError
        If it has no sentence.
    """

    def __init__(self, store: Location | Sequence[Location], outline: xr.Dataset | None = None) -> None:
        stores = store if isinstance(store, Sequence) else [store]
        self.path = " and ".join(map(str, stores))
        self.names = tuple(map(store_name, stores))
        self.readable = outline is None
        self.ds = _opened(stores) if outline is None else outline
        for coord in self.ds.coords.values():
            if coord.ndim == 1 and isinstance(coord.data, np.ndarray):  # of more dims they are lazy
                coord.data.flags.writeable = False  # all strategies see the same
        self.sentences = self.ds["sentence"].values
        if len(self.sentences) == 0:
            raise SelectionError(f"{self.path}: holds no sentences yet; ingest some first")
        self.digests = self.ds["source_digest"].values
        self.digest = self.digest_of(np.arange(len(self.sentences)))
        self._aligned: dict[str, Aligned] = {}
        self._selected: dict[str, Selected] = {}
        self._rows: dict[str, Rows] = {}
        self._warned: set[str] = set()
        self._rankings: dict[tuple[Any, ...], list[Target]] = {}
        self._labels: dict[str, Labels] = {}
        self._splits: dict[tuple[Any, ...], Split] = {}

    @property
    def name(self) -> str:
        """Name of the store, or of all."""
        return "+".join(self.names)

    def named(self, sentences: Array) -> list[tuple[str, int]]:
        """Return the name of the store and the sentence_index of each of some sentences."""
        if len(self.names) == 1:
            return [(self.name, index) for index in sentences.tolist()]
        about = self.about(sentences, "index", "store")
        return list(zip(about["store"].tolist(), about["index"].tolist(), strict=True))

    def about(self, sentences: Array, name: str, stores: str) -> dict[str, Array]:
        """Say which sentences these are, as metadata: by their sentence_index, and of several stores by their store."""
        if len(self.names) == 1:
            return {name: sentences}
        at = self._places(sentences)
        return {name: self.ds["sentence_index"].values[at], stores: self.ds["store"].values[at].astype(str)}

    def _places(self, sentences: Array) -> Array:
        """Return where some sentences, all of which are there, stand in the store."""
        order = np.argsort(self.sentences)
        places: Array = order[np.searchsorted(self.sentences, sentences, sorter=order)]
        return places

    def select(self, plan: Plan) -> Selected:
        """Return X and y of a plan, lazy.

        Raises
        ------
        SelectionError
            If the store lacks what is asked for.
        StrategyError
            If what the strategy returns is no dataset.
        ParameterError
            If an option does not fit what the strategy has selected.
        """
        if plan.selection not in self._selected:
            aligned, choices = self._align(plan), plan.choices
            with lacking(self.path):
                population, sequences = self.population(plan), plan.strategy.sequences
                try:
                    selected = select(aligned, choices, self.ds, population, self._rows, sequences=sequences)
                except StrategyError as error:
                    raise StrategyError(f"{plan.strategy.name}: {error}") from None
                self._selected[plan.selection] = controlled(selected, choices.control, plan.seed, self.ds)
        return self._selected[plan.selection]

    def _align(self, plan: Plan) -> Aligned:
        key = repr((plan.called, plan.choices.y, plan.choices.labels_from, plan.choices.classes))
        if key not in self._aligned:
            selection = self._selection(plan)
            try:
                self._aligned[key] = align(selection, self.sentences, self.ds["token"].values)
            except StrategyError as error:
                raise StrategyError(f"{plan.strategy.name}: {error}") from None
        return self._aligned[key]

    def _selection(self, plan: Plan) -> Selection:
        """Call the strategy, whose own errors are told from ours."""
        ds = self.labelled(plan.choices)
        try:
            for option in plan.strategy.options:
                if option.name in plan.arguments:
                    check_option(self.ds, option, plan.arguments[option.name])
            return plan.strategy.select(ds.copy(), **plan.arguments)
        except SelectionError as error:
            raise SelectionError(f"{self.path}: {error}") from None
        except SystemExit as stop:
            raise StrategyError(f"{plan.strategy.name}: ends in sys.exit({stop.code!r}); raise an error") from None
        except Exception as error:
            error.add_note(f"in the strategy {plan.strategy.name}")
            raise

    def labels(self, choices: Choices) -> Labels | None:
        """Return the labels that are used in place of the store's, if there are any.

        Raises
        ------
        ParameterError
            If the file cannot be read, or does not say the label of every sentence.
        """
        if (source := choices.labels_from) is None:
            return None
        if source not in self._labels:
            self._labels[source] = read_labels(self.ds, source)
        return self._labels[source]

    def outcomes(self, choices: Choices) -> Labels | None:
        """Return the labels that are predicted in place of the store's, if there are any: those, or the stores.

        Raises
        ------
        ParameterError
            If it is to be the store, and there is but one.
        """
        return store_labels(self.ds, self.names) if choices.y == "store" else self.labels(choices)

    def labelled(self, choices: Choices) -> xr.Dataset:
        """Return the store with the labels that are predicted, mapped to classes, as strategies and rankings see it."""
        return relabelled(self.ds, self.outcomes(choices), choices.classes)

    def population(self, plan: Plan) -> Population:
        """Tell which sentences are asked for, and may be rows.

        Asked for are those that meet all conditions, and if they are for testing have no near-duplicate among those for
        training. Those of them that have none of the classes are no rows.
        """
        asked = met(relabelled(self.ds, self.labels(plan.choices), None), plan.choices.where)
        if divided := self.split(plan):
            asked = asked & ~divided.out
        usable = asked & self.labelled(plan.choices)["has_label"].values if plan.choices.classes else asked
        return Population(asked, usable)

    def those_of(self, part: xr.Dataset) -> Condition | None:
        """Return the condition that leaves the sentences of a dataset of this store; none if these are all there are.

        Raises
        ------
        SelectionError
            If one is not in the store, or there are none, or they have been numbered or labelled otherwise.
        """
        sentences = np.atleast_1d(part["sentence"].values)
        if len(foreign := np.setdiff1d(sentences, self.sentences)) or not len(sentences):
            found = f"found sentence_index {some(foreign)}" if len(foreign) else "found none"
            raise SelectionError(
                f"{self.path}: expected sentences of the store, {found}; open it again and select some"
            )
        at = self._places(sentences)
        for name, instead in _OWN_VALUES.items():
            if name in part.coords and not np.array_equal(np.atleast_1d(part[name].values), self.ds[name].values[at]):
                found = f"its {name} is another than that of the store, whose values are used"
                raise SelectionError(f"{self.path}: the dataset was changed: {found}; {instead}")
        everything = len(sentences) == len(self.sentences)
        return None if everything else Condition("sentence", tuple(np.sort(sentences).tolist()))

    def check(self, plan: Plan) -> None:
        """Check a plan against the store, without reading what is to be built.

        Raises
        ------
        SelectionError
            If the store lacks what is asked for.
        DatasetError
            If the statistics of another dataset are of another input.
        """
        selected = self.select(plan)
        if plan.stats_from is not None:
            check_input(plan.choices, selected, plan.stats_from)
            self._warn_of_test_rows(plan, plan.stats_from)
            self._warn_of_other_numbers(plan, plan.stats_from)

    def _warn_of_other_numbers(self, plan: Plan, other: Dataset) -> None:
        labels = self.outcomes(plan.choices)
        theirs = np.asarray(other.metadata.get("label_names", ())).tolist()
        if labels and theirs and not plan.choices.classes and theirs != [*labels.names]:
            found = f"{some(theirs)} there, {some(labels.names)} here"
            what = f"labels have other numbers than in its y: {found}; number them by {spelled('classes')}"
            self._warn(f"{spelled('stats_from')}: {what}")

    def _warn(self, what: str) -> None:
        """Warn once."""
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", what)

    def _warn_of_test_rows(self, plan: Plan, other: Dataset) -> None:
        if (divided := self.split(plan)) is None:
            return
        test = self.sentences[~divided.train & ~divided.out]
        n = len(fitted_on(other.metadata) & {*self.named(test)})
        if n:
            self._warn(f"{spelled('stats_from')}: its statistics include {n} of the {len(test)} test sentences")

    def rank(self, by: str, layers: Sequence[int], top: int, rows: Array, plan: Plan, min_active: int) -> list[Target]:
        """Find the features that rank first in the training rows among some (see `featurestore.datasets.ranking.rank`).

        By the labels, the split and the target tokens of a plan (the final one, where they are not pooled), once for
        all that ask for the same.
        """
        choices = plan.choices
        labels = choices.y, choices.labels_from, choices.classes
        tokens = choices.target_tokens if choices.target_tokens.how in ("mean", "max") else FINAL
        at = tokens, choices.special
        key = (by, tuple(layers), top, rows.tobytes(), plan.split, labels, min_active, at)
        if key not in self._rankings:
            counted = self.training_rows(plan) & np.isin(np.arange(len(self.sentences)), rows)
            ds = self.labelled(choices)
            self._rankings[key] = rank(ds, by, layers, top, counted, min_active, tokens=tokens, special=choices.special)
        return self._rankings[key]

    def split(self, plan: Plan) -> Split | None:
        """Return how the sentences are divided, all of the store, whichever are rows; None without a split.

        Raises
        ------
        SelectionError
            If they cannot be divided so.
        ParameterError
            If the groups or labels are missing or unreadable.
        """
        if plan.split is None:
            return None
        key = plan.split, plan.choices.y, plan.choices.labels_from
        if key not in self._splits:
            labels = self.outcomes(plan.choices)  # before they are mapped, so that sides do not depend on classes
            if labels and plan.choices.y == "store":
                labels = crossed(labels, self.ds)
            with lacking(self.path):
                divided = splits.split(relabelled(self.ds, labels, None), plan.split)
            self._splits[key] = replace(divided, stratified_by=labels.said) if labels else divided
        return self._splits[key]

    def training_rows(self, plan: Plan) -> Array:
        """Tell which sentences are training rows: all of them, without a split; (n,) bool."""
        divided = self.split(plan)
        return np.ones(len(self.sentences), bool) if divided is None else divided.train

    def fingerprint(self, plan: Plan) -> str:
        """Identify the dataset that a plan makes of this store."""
        return fingerprint(
            plan.json,
            self.digest,
            self.groups_digest(plan),
            plan.strategy.code,
            self.split_version(plan),
            self.labels_digest(plan),
        )

    def split_version(self, plan: Plan) -> str:
        """Return the version of the sides that a plan gives the sentences; nothing where they have never changed."""
        divided = self.split(plan)
        return divided.version if divided else ""

    def groups_digest(self, plan: Plan) -> str:
        """Identify the groups of the sentences that a plan keeps together; nothing without ``group_by``."""
        grouped = plan.split and plan.split.group_by and self.split(plan)
        return grouped.groups_digest if grouped else ""

    def labels_digest(self, plan: Plan) -> str:
        """Identify the labels that a plan takes from elsewhere; nothing where they are the store's."""
        labels = self.labels(plan.choices)
        return labels.digest if labels else ""

    def digest_of(self, positions: Array) -> str:
        """Identify the content of the sentences that stand there in the store, in any order; of several, by store."""
        if len(self.names) == 1:
            return sentences_digest(self.sentences[positions], self.digests[positions])
        indices, stores = (self.ds[name].values[positions] for name in ("sentence_index", "store"))
        digests = self.digests[positions]
        of_each = {
            name: sentences_digest(indices[stores == name], digests[stores == name])
            for name in self.names
            if (stores == name).any()
        }
        return stores_digest(of_each) if len(of_each) > 1 else next(iter(of_each.values()))

    def shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape of X before any sentence is dropped, without reading it."""
        selected = self.select(plan)
        width = plan.choices.width(selected.width)
        if not plan.strategy.sequences:
            return len(selected.positions), width
        lengths = np.unique(selected.positions, return_counts=True)[1]
        return len(lengths), int(lengths.max(initial=0)), width

    def blocks(self, plans: Iterable[Plan]) -> dict[str, da.Array]:
        """Return the blocks that are read or made for X of some plans, by name, what they share once."""
        selected = [self.select(plan) for plan in plans]
        return {block.name: block for one in selected for block in (*one.real, *one.columns)}

    def n_bytes(self, plans: Iterable[Plan]) -> int:
        """Size of the raw X of some plans, what they share counted once."""
        return sum(int(block.nbytes) for block in self.blocks(plans).values())
