"""An open store, and what plans mean in it: their selections, their splits, their fingerprints. Nothing big is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from featurestore import splits
from featurestore.errors import DatasetError, SelectionError
from featurestore.plans import Plan, fingerprint, sentences_digest
from featurestore.reading import open_chunks
from featurestore.schema import ACTIVATIONS, EMBEDDINGS
from featurestore.strategies import check_feature, sae_position, sae_positions
from featurestore.targets import Target, rank

if TYPE_CHECKING:
    from featurestore.datasets import Dataset
    from featurestore.registry import Selection
    from featurestore.splits import Split, SplitOptions

    Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


class Source:
    """An open store.

    Parameters
    ----------
    store : Path
        The store.

    Attributes
    ----------
    ds : xarray.Dataset
        Its content, lazy.
    sentences : ndarray, (n,) int64
        The sentence_index of each sentence.
    digests : ndarray, (n,) of str
        The digest of its content.
    order : ndarray, (n,) int
        Positions of the sentences, in the order of their sentence_index.
    digest : str
        SHA-256 over the sentence_index and content digest of all sentences, as hex digits.

    Raises
    ------
    StoreError
        If it is no store.
    SelectionError
        If it has no sentence.
    """

    def __init__(self, store: Path) -> None:
        self.path = store
        self.ds = open_chunks(store)
        self.sentences = self.ds["sentence"].values
        if len(self.sentences) == 0:
            raise SelectionError(f"{store}: holds no sentences yet; ingest some first")
        if expected := self.ds.attrs["expected_sentences"]:
            found = f"{len(self.sentences)} of {expected} sentences"
            logger.warning("%s is incomplete: %s; its ingest goes on, or was interrupted: run it again", store, found)
        self.order: Array = np.argsort(self.sentences)
        self.digests = self.ds["source_digest"].values
        self.digest = sentences_digest(self.sentences, self.digests)
        self._selections: dict[str, tuple[Selection, dict[str, da.Array]]] = {}
        self._warned: set[str] = set()
        self._rankings: dict[tuple[Any, ...], list[Target]] = {}
        self._splits: dict[SplitOptions, Split] = {}

    @property
    def name(self) -> str:
        """Name of the store, without its folder."""
        return self.path.resolve().stem

    def select(self, plan: Plan) -> Selection:
        """Return X and y of a plan, lazy.

        Raises
        ------
        SelectionError
            If the store lacks what is asked for.
        """
        return self._selected(plan)[0]

    def check(self, plan: Plan) -> None:
        """Check a plan against the store, without reading what is to be built.

        Raises
        ------
        SelectionError
            If the store lacks what is asked for.
        DatasetError
            If the statistics of another dataset are of another input.
        """
        self.select(plan)
        if plan.stats_from is None:
            return
        for name, ours in self.inputs(plan).items():
            theirs = plan.stats_from.metadata.get(name)
            chosen_by_theirs = name == "input_features" and self.select(plan).densest is not None
            if not chosen_by_theirs and not np.array_equal(theirs, ours):  # type: ignore[arg-type]
                found = f"its X has {name} {theirs}, this one has {ours}"
                raise DatasetError(f"--stats-from: {found}; choose statistics of the same input")
        self._warn_of_test_rows(plan.stats_from, plan.split)

    @property
    def layers(self) -> tuple[int, ...]:
        """Its layers, each once."""
        return tuple(dict.fromkeys(self.ds["layer"].values.tolist()))

    def average_l0s(self, layer: int) -> list[int]:
        """Return the average L0 of each SAE of a layer."""
        return [int(self.ds["average_l0"].values[position]) for position in sae_positions(self.ds, layer)]

    def check_option(self, name: str, value: Any) -> None:
        """Check a value of an option that names layers or features by its usual ending.

        Raises
        ------
        SelectionError
            If the store lacks it.
        """
        numbers = value if isinstance(value, tuple) else (value,)
        if name.endswith(("layer", "layers")):
            for number in numbers:
                sae_positions(self.ds, number)
        elif name.endswith(("feature", "features")):
            for number in numbers:
                check_feature(self.ds, number)

    def check_target(self, target_layer: int, target_feature: int, average_l0: int | None = None) -> None:
        """Check a feature; raises SelectionError if the store lacks it, or the layer has several SAEs."""
        sae_position(self.ds, target_layer, average_l0)
        check_feature(self.ds, target_feature)

    def rank(
        self, by: str, layers: Sequence[int], top: int, split: SplitOptions | None, min_active: int
    ) -> list[Target]:
        """Find the features that rank first in the training rows (see `featurestore.targets.rank`); once for all."""
        key = (by, tuple(layers), top, split, min_active)
        if key not in self._rankings:
            rows = self.training_rows(split)
            self._rankings[key] = rank(self.ds, by, layers, top, rows, min_active)
        return self._rankings[key]

    def split(self, options: SplitOptions | None) -> Split | None:
        """Return how the sentences are divided, if they are.

        Raises
        ------
        SelectionError
            If they cannot be divided so.
        ParameterError
            If the groups are missing or unreadable.
        """
        if options is None:
            return None
        if options not in self._splits:
            try:
                self._splits[options] = splits.split(self.ds, options)
            except SelectionError as error:
                raise SelectionError(f"{self.path}: {error}") from None
        return self._splits[options]

    def training_rows(self, options: SplitOptions | None) -> Array:
        """Tell which sentences are training rows: all of them, without a split; (n,) bool."""
        divided = self.split(options)
        return np.ones(len(self.sentences), bool) if divided is None else divided.train

    def fingerprint(self, plan: Plan) -> str:
        """Identify the dataset that a plan makes of this store."""
        return fingerprint(plan.parameters, self.digest, self.groups_digest(plan), plan.strategy.code)

    def groups_digest(self, plan: Plan) -> str:
        """Identify the groups of the sentences that a plan keeps together; nothing without ``group_by``."""
        grouped = plan.split and plan.split.group_by and self.split(plan.split)
        return grouped.groups_digest if grouped else ""

    def shape(self, plan: Plan) -> tuple[int, int]:
        """Return the shape of X before any sentence is dropped, without reading it."""
        width = sum(block.shape[1] for block in self.blocks([plan]).values())
        return len(self.sentences), self.select(plan).densest or width

    def _warn_of_test_rows(self, other: Dataset, options: SplitOptions | None) -> None:
        divided = self.split(options)
        if divided is None or other.metadata["store_digest"] != self.digest:
            return
        theirs = other.metadata["sentence_indices"]
        theirs = theirs[other.metadata.get("split", np.full(len(theirs), "train")) == "train"]
        test = self.sentences[~divided.train]
        found = f"its statistics include {np.isin(test, theirs).sum()} of the {len(test)} test sentences"
        if np.isin(test, theirs).any() and found not in self._warned:
            self._warned.add(found)
            logger.warning("--stats-from: %s", found)

    def y(self, plan: Plan) -> da.Array:
        """Return y of a plan, lazy."""
        y: da.Array = da.asarray(self.select(plan).y.data)
        return y

    def blocks(self, plans: Iterable[Plan]) -> dict[str, da.Array]:
        """Return the blocks of X by name: dask names equal selections equally."""
        return {name: block for plan in plans for name, block in self._selected(plan)[1].items()}

    def _selected(self, plan: Plan) -> tuple[Selection, dict[str, da.Array]]:
        """Return the selection of a plan, and its blocks of X, 2-D and one dask chunk wide."""
        key = f"{plan.strategy.name} {sorted(plan.arguments.items())}"
        if key not in self._selections:
            try:
                selection = plan.strategy.select(self.ds, **plan.arguments)
            except SelectionError as error:
                raise SelectionError(f"{self.path}: {error}") from None
            blocks = {}
            for array in [da.asarray(block.data) for block in selection.blocks]:
                flat = array.rechunk(dict.fromkeys(range(1, array.ndim), -1)).reshape(len(array), -1)
                blocks[flat.name] = flat
            self._selections[key] = selection, blocks
        return self._selections[key]

    def inputs(self, plan: Plan) -> dict[str, Any]:
        """Say what X is, as far as it is known without reading it."""
        blocks = self.select(plan).blocks
        layers = [block["layer"].values for block in blocks if block.name != EMBEDDINGS and "layer" in block.coords]
        inputs = {
            "input_source": blocks[0].name,
            "input_layers": np.hstack(layers) if layers else np.array([], np.int64),
            "input_dims": self.shape(plan)[1],
        }
        if blocks[0].name == ACTIVATIONS:
            inputs |= {
                "input_average_l0": blocks[0]["average_l0"].values,
                "input_features": blocks[0]["feature"].values,
            }
        return inputs
