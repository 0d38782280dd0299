"""An open store, and what plans mean in it: their selections, their splits, their fingerprints. Nothing big is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from featurestore.datasets.alignment import Aligned, align
from featurestore.datasets.fingerprints import fingerprint, sentences_digest
from featurestore.datasets.plans import Plan
from featurestore.datasets.ranking import Target, rank
from featurestore.errors import DatasetError, SelectionError, StrategyError, lacking, spelled
from featurestore.ranges import format_numbers
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, HIDDEN_STATES
from featurestore.splits import split as splits
from featurestore.store.location import Location
from featurestore.store.reading import open_store
from featurestore.store.snapshot import store_name
from featurestore.strategies import Option, Selection, check_feature, sae_layers, sae_position, sae_positions

if TYPE_CHECKING:
    import xarray as xr

    from featurestore.datasets.dataset import Dataset
    from featurestore.splits.split import Split, SplitOptions

    Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


class StoreView:
    """An open store.

    Parameters
    ----------
    store : Path or ReadOnlyPath
        The store.
    outline : xarray.Dataset, optional
        What it will hold, if it is not there yet, or not up to date (see `featurestore.store.outline.outline`).

    Attributes
    ----------
    readable : bool
        Whether there are values to read, not only an outline of them.
    ds : xarray.Dataset
        Its content, lazy.
    sentences : ndarray, (n,) int64
        The sentence_index of each sentence.
    digests : ndarray, (n,) of str
        The digest of its content.
    digest : str
        SHA-256 over the sentence_index and content digest of all sentences, as hex digits.

    Raises
    ------
    StoreError
        If it is no store.
    SelectionError
        If it has no sentence.
    """

    def __init__(self, store: Location, outline: xr.Dataset | None = None) -> None:
        self.path = store
        self.readable = outline is None
        self.ds = open_store(store, chunks={}) if outline is None else outline
        for coord in self.ds.coords.values():
            if coord.ndim == 1 and isinstance(coord.data, np.ndarray):  # of more dims they are lazy
                coord.data.flags.writeable = False  # all strategies see the same
        self.sentences = self.ds["sentence"].values
        if len(self.sentences) == 0:
            raise SelectionError(f"{store}: holds no sentences yet; ingest some first")
        self.digests = self.ds["source_digest"].values
        self.digest = sentences_digest(self.sentences, self.digests)
        self._selections: dict[str, Aligned] = {}
        self._warned: set[str] = set()
        self._rankings: dict[tuple[Any, ...], list[Target]] = {}
        self._splits: dict[SplitOptions, Split] = {}

    @property
    def name(self) -> str:
        """Name of the store, without its folder."""
        return store_name(self.path)

    def select(self, plan: Plan) -> Aligned:
        """Return X and y of a plan, lazy.

        Raises
        ------
        SelectionError
            If the store lacks what is asked for.
        StrategyError
            If what the strategy returns is no dataset.
        """
        key = f"{plan.strategy.name} {sorted(plan.arguments.items())}"
        if key not in self._selections:
            selection = self._selection(plan)
            try:
                self._selections[key] = align(selection, self.sentences)
            except StrategyError as error:
                raise StrategyError(f"{plan.strategy.name}: {error}") from None
        return self._selections[key]

    def _selection(self, plan: Plan) -> Selection:
        """Call the strategy, whose own errors are told from ours."""
        try:
            for option in plan.strategy.options:
                if option.name in plan.arguments:
                    self.check_option(option, plan.arguments[option.name])
            return plan.strategy.select(self.ds.copy(), **plan.arguments)
        except SelectionError as error:
            raise SelectionError(f"{self.path}: {error}") from None
        except SystemExit as stop:
            raise StrategyError(f"{plan.strategy.name}: ends in sys.exit({stop.code!r}); raise an error") from None
        except Exception as error:
            error.add_note(f"in the strategy {plan.strategy.name}")
            raise

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
        if plan.stats_from is not None:
            self._check_same_input(plan, plan.stats_from)
            self._warn_of_test_rows(plan.stats_from, plan.split)

    def _check_same_input(self, plan: Plan, other: Dataset) -> None:
        for name, ours in self.inputs(plan).items():
            theirs = np.asarray(other.metadata.get(name))
            if name == "input_features" and self.select(plan).densest is not None:
                ours = ours[np.isin(ours, theirs)]  # the ones that it has statistics of
            if not np.array_equal(theirs, ours):
                found = f"its X has {name} {theirs}, this one has {ours}"
                raise DatasetError(f"{spelled('stats_from')}: {found}; choose statistics of the same input")

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
            logger.warning("%s: %s", spelled("stats_from"), found)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of its hidden states; where there are none, of its SAEs."""
        return tuple(self.ds["layer"].values.tolist()) if HIDDEN_STATES in self.ds else self.sae_layers

    @property
    def sae_layers(self) -> tuple[int, ...]:
        """Layers that have an SAE, each once."""
        return tuple(dict.fromkeys(sae_layers(self.ds))) if ACTIVATIONS in self.ds else ()

    def average_l0s(self, layer: int) -> list[float]:
        """Return the average L0 of each SAE of a layer."""
        return [self.ds["average_l0"].values[position].item() for position in sae_positions(self.ds, layer)]

    def check_option(self, option: Option, value: Any) -> None:
        """Check the layers or features that an option names; raises SelectionError if the store lacks one."""
        if option.names_layers:
            known = tuple(dict.fromkeys((*self.layers, *self.sae_layers)))
            for layer in np.ravel(value).tolist():
                if known and layer not in known:
                    raise SelectionError(f"has no layer {layer}: choose from {format_numbers(known)}")
        elif option.names_features:
            for feature in np.ravel(value).tolist():
                check_feature(self.ds, feature)

    def check_target(self, target: Target) -> None:
        """Check a feature; raises SelectionError if the store lacks it, or the layer has several SAEs."""
        sae_position(self.ds, int(target["target_layer"]), target.get("average_l0"))
        check_feature(self.ds, int(target["target_feature"]))

    def rank(
        self, by: str, layers: Sequence[int], top: int, rows: Array, split: SplitOptions | None, min_active: int
    ) -> list[Target]:
        """Find the features that rank first in the training rows among some (see `featurestore.datasets.ranking.rank`).

        Once for all that ask for the same.
        """
        key = (by, tuple(layers), top, rows.tobytes(), split, min_active)
        if key not in self._rankings:
            counted = self.training_rows(split) & np.isin(np.arange(len(self.sentences)), rows)
            self._rankings[key] = rank(self.ds, by, layers, top, counted, min_active)
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
            with lacking(self.path):
                self._splits[options] = splits.split(self.ds, options)
        return self._splits[options]

    def training_rows(self, options: SplitOptions | None) -> Array:
        """Tell which sentences are training rows: all of them, without a split; (n,) bool."""
        divided = self.split(options)
        return np.ones(len(self.sentences), bool) if divided is None else divided.train

    def fingerprint(self, plan: Plan) -> str:
        """Identify the dataset that a plan makes of this store."""
        return fingerprint(
            plan.json, self.digest, self.groups_digest(plan), plan.strategy.code, self.split_version(plan)
        )

    def split_version(self, plan: Plan) -> str:
        """Return the version of the sides that a plan gives the sentences; nothing where they have never changed."""
        divided = self.split(plan.split)
        return divided.version if divided else ""

    def groups_digest(self, plan: Plan) -> str:
        """Identify the groups of the sentences that a plan keeps together; nothing without ``group_by``."""
        grouped = plan.split and plan.split.group_by and self.split(plan.split)
        return grouped.groups_digest if grouped else ""

    def digest_of(self, positions: Array) -> str:
        """Identify the content of the sentences that stand there in the store, in any order."""
        if len(positions) == len(self.sentences):
            return self.digest
        return sentences_digest(self.sentences[positions], self.digests[positions])

    def shape(self, plan: Plan) -> tuple[int, int]:
        """Return the shape of X before any sentence is dropped, without reading it."""
        selected = self.select(plan)
        return len(selected.positions), selected.width

    def blocks(self, plans: Iterable[Plan]) -> dict[str, da.Array]:
        """Return the blocks of X of some plans by name, what they share once."""
        return {block.name: block for plan in plans for block in self.select(plan).columns}

    def n_bytes(self, plans: Iterable[Plan]) -> int:
        """Size of the raw X of some plans, what they share counted once."""
        return sum(int(block.nbytes) for block in self.blocks(plans).values())

    def inputs(self, plan: Plan) -> dict[str, Any]:
        """Say what X is, as far as it is known without reading it."""
        blocks = self.select(plan).X
        layers = [_about(block, "layer") for block in blocks if block.name != EMBEDDINGS]
        inputs = {
            "input_source": "+".join(dict.fromkeys(str(block.name or "unnamed") for block in blocks)),
            "input_layers": np.hstack([np.array([], np.int64), *(found for found in layers if found is not None)]),
            "input_dims": self.shape(plan)[1],
        }
        if blocks[0].name == ACTIVATIONS:
            about = {f"input_{name}": _about(blocks[0], coord) for name, coord in _ABOUT_ACTIVATIONS.items()}
            inputs |= {name: value for name, value in about.items() if value is not None}
        return inputs

    def outputs(self, plan: Plan) -> dict[str, Any]:
        """Say which features y is, if it is of activations."""
        y = self.select(plan).y
        if y.name != ACTIVATIONS:
            return {}
        names = {"target_layer": "layer", "target_feature": "feature", "average_l0": "average_l0"}
        about = {name: _about(y, coord) for name, coord in names.items()}
        return {name: value for name, value in about.items() if value is not None}


_ABOUT_ACTIVATIONS = {"average_l0": "average_l0", "features": "feature"}


def _about(array: xr.DataArray, coord: str) -> Array | None:
    """Return a coordinate of the columns, if there is one of numbers."""
    known = array.coords.get(coord)
    if known is None or known.ndim > 1 or "sentence" in known.dims or known.dtype.kind not in "iuf":
        return None
    values: Array = array[coord].values
    return values
