"""An open store: what several datasets have in common is selected, read, divided and measured once."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import compute
from dask.config import set as configured
from dask.core import flatten

from featurestore import normalize, splits
from featurestore.datasets import Columns, Dataset
from featurestore.errors import DatasetError, NonFiniteError, SelectionError
from featurestore.normalize import Statistics
from featurestore.plans import Plan, fingerprint, sentences_digest
from featurestore.reading import open_chunks
from featurestore.schema import ACTIVATIONS, EMBEDDINGS, SCHEMA_VERSION, __version__
from featurestore.strategies import check_feature, sae_position, sae_positions
from featurestore.targets import Target, rank

if TYPE_CHECKING:
    from featurestore.registry import Selection
    from featurestore.splits import Split, SplitOptions

    Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)

_WINDOW = 1024

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are kept in memory while datasets are built from them; larger ones in a scratch file."""


class Source:
    """A store, and what has been read of it.

    Parameters
    ----------
    store : Path
        The store.

    Attributes
    ----------
    ds : xarray.Dataset
        The open store.
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
        self._order: Array = np.argsort(self.sentences)
        self._digests = self.ds["source_digest"].values
        self.digest = sentences_digest(self.sentences[self._order], self._digests[self._order])
        self._selections: dict[str, tuple[Selection, dict[str, da.Array]]] = {}
        self._targets: dict[str, Array] = {}
        self._raw: dict[str, Array] = {}
        self._finite: dict[str, Array] = {}
        self._warned: set[str] = set()
        self._rankings: dict[tuple[Any, ...], list[Target]] = {}
        self._splits: dict[SplitOptions, Split] = {}
        self._statistics: dict[tuple[str, str], Statistics] = {}

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
        inputs = self._inputs(plan)
        if plan.stats_from is None:
            return
        if plan.arguments.get("densest"):
            inputs["input_features"] = plan.stats_from.metadata.get("input_features")  # not known before reading
        _check_statistics(plan.stats_from, inputs)
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
        grouped = plan.split and plan.split.group_by and self.split(plan.split)
        return fingerprint(plan.parameters, self.digest, grouped.groups_digest if grouped else "")

    def shape(self, plan: Plan) -> tuple[int, int]:
        """Return the shape of X before any sentence is dropped, without reading it."""
        width = sum(block.shape[1] for block in self._blocks([plan]).values())
        return len(self.sentences), self.select(plan).densest or width

    def probe(self, plans: Iterable[Plan]) -> None:
        """Read y of all plans, each chunk once; of X only chunks in which ingest has seen non-finite values."""
        plans = list(plans)
        targets = {(y := self._y(plan)).name: y for plan in plans}
        targets = {name: y for name, y in targets.items() if name not in self._targets}
        suspects = np.flatnonzero(self.ds["n_nonfinite"].values)
        inputs = {name: block for name, block in self._blocks(plans).items() if name not in self._finite}
        some = [da.isfinite(block[suspects]).all(axis=1) for block in inputs.values()] if len(suspects) else []
        with _only_what_is_needed():
            values, found = compute(list(targets.values()), some)
        self._targets |= zip(targets, values, strict=True)
        for name in inputs:
            self._finite[name] = np.ones(len(self.sentences), bool)
        for name, finite in zip(inputs, found, strict=False):
            self._finite[name][suspects] = finite

    def read(
        self, plans: Iterable[Plan], scratch: Path | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Read X and y of all plans, each chunk once.

        Parameters
        ----------
        plans : iterable of Plan
            The plans.
        scratch : Path, optional
            Folder for a nameless file, which holds what exceeds `IN_MEMORY_BYTES`; by default that of the system.
        progress : callable
            Called with the number of bytes of X that were read since the last call, by any thread.
        """
        plans = list(plans)
        self.probe(plans)
        blocks = {name: block for name, block in self._blocks(plans).items() if name not in self._raw}
        inputs = [_Input(raw, progress) for raw in _allocate(list(blocks.values()), scratch)]
        with _only_what_is_needed():
            da.store(list(blocks.values()), inputs, lock=False)  # type: ignore[arg-type]
        for name, block in zip(blocks, inputs, strict=True):
            self._raw[name], self._finite[name] = block.raw, block.finite

    def n_bytes(self, plans: Iterable[Plan]) -> int:
        """Size of the raw X of some plans, what they share counted once."""
        return sum(int(block.nbytes) for block in self._blocks(plans).values())

    def forget(self) -> None:
        """Free the raw values of X."""
        self._raw.clear()

    def target(self, plan: Plan) -> Array:
        """Return y of all sentences, in the order of the store; it must have been read."""
        return self._targets[self._y(plan).name]

    def finite(self, plan: Plan) -> Array:
        """Tell which sentences have finite values throughout, as far as they have been read; (n,) bool."""
        y = np.isfinite(self.target(plan)).reshape(len(self.sentences), -1).all(axis=1)
        return np.all([y, *(self._finite[name] for name in self._blocks([plan]))], axis=0)

    def dataset(self, plan: Plan) -> Dataset:
        """Make the dataset of a plan that has been read; X is normalized as it is used.

        Raises
        ------
        NonFiniteError
            If X or y have NaN or infinite values and the plan does not drop them, or no sentence is left.
        SelectionError
            If no sentence is left to fit the normalization.
        DatasetError
            If the statistics of another dataset do not fit.
        """
        rows, dropped = self._rows(plan)
        divided = self.split(plan.split)
        training = rows[self.training_rows(plan.split)[rows]]
        blocks = [self._raw[name] for name in self._blocks([plan])]
        columns = self._densest(plan, training)
        if plan.stats_from:
            fitted = plan.stats_from.normalization
        elif len(training) == 0:
            raise SelectionError(f"{self.path}: no training sentence is left to fit the normalization")
        else:
            fitted = normalize.fit(plan.normalize, self._measured(plan, training)).of(columns)
        metadata = self._metadata(plan, rows, dropped, columns)
        if plan.stats_from:
            _check_statistics(plan.stats_from, metadata)
        if divided:
            metadata |= {"split": np.where(divided.train[rows], "train", "test")}
            metadata |= {"near_duplicates_across": divided.across, "groups_digest": divided.groups_digest}
            if divided.fold is not None:
                metadata |= {"fold": divided.fold[rows]}
        y = self.target(plan)[rows]
        return Dataset(
            Columns(blocks, rows, columns, fitted),
            y.astype(np.int64 if y.dtype.kind in "iu" else np.float32),
            {name: np.asarray(value) for name, value in metadata.items()},
            fitted,
        )

    def constant_columns(self, plan: Plan) -> int:
        """Count the columns of X that are constant in the rows on which the normalization of a dataset was fitted."""
        if plan.normalize == "none" or plan.stats_from:
            return 0
        rows, _ = self._rows(plan)
        training = rows[self.training_rows(plan.split)[rows]]
        constant = np.concatenate([found.min == found.max for found in self._measured(plan, training)])
        return int(np.count_nonzero(constant[self._densest(plan, training)]))

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

    def _y(self, plan: Plan) -> da.Array:
        y: da.Array = da.asarray(self.select(plan).y.data)
        return y

    def _blocks(self, plans: Iterable[Plan]) -> dict[str, da.Array]:
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

    def _rows(self, plan: Plan) -> tuple[Array, Array]:
        """Return the rows to use, in the order of their sentence_index, and the sentences dropped."""
        finite = self.finite(plan)
        bad = np.sort(self.sentences[~finite])
        if len(bad) == 0:
            return self._order, bad
        some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        found = f"{len(bad)} of {len(finite)} sentences have NaN or infinite values (sentence_index {some})"
        if not plan.drop_nonfinite:
            raise NonFiniteError(f"{found}, which no dataset may hold; leave them out with --drop-nonfinite")
        if len(bad) == len(finite):
            raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
        rows: Array = self._order[finite[self._order]]
        return rows, bad

    def _measured(self, plan: Plan, rows: Array) -> list[Statistics]:
        """Return the statistics of each block of X, each computed once for all plans that share it and the rows."""
        if plan.normalize == "none":
            return []
        digest = hashlib.sha256(rows).hexdigest()
        keys = [(name, digest) for name in self._blocks([plan])]
        missing = [key for key in keys if key not in self._statistics]
        columns = [Columns([self._raw[name]], rows) for name, _ in missing]
        self._statistics |= zip(missing, normalize.measure(columns), strict=True)
        return [self._statistics[key] for key in keys]

    def _densest(self, plan: Plan, rows: Array) -> Array | slice:
        """Return the columns to keep, in their order: of equally dense ones the first."""
        selection = self.select(plan)
        if selection.densest is None:
            return slice(None)
        if plan.stats_from:  # those that it has statistics of
            return np.isin(selection.blocks[0]["feature"].values, plan.stats_from.metadata["input_features"]).nonzero()[
                0
            ]
        blocks = Columns([self._raw[name] for name in self._blocks([plan])], rows)
        windows = (blocks[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW))
        counts = sum(np.count_nonzero(window, axis=0) for window in windows)
        return np.sort(np.argsort(-counts, kind="stable")[: selection.densest])

    def _metadata(self, plan: Plan, rows: Array, dropped: Array, columns: Array | slice) -> dict[str, Any]:
        y = self.select(plan).y
        metadata: dict[str, Any] = {
            "strategy": plan.strategy.name,
            **self._inputs(plan),
            "n_samples": len(rows),
            "sentence_indices": self.sentences[rows],
        }
        if "input_features" in metadata:
            metadata["input_features"] = metadata["input_features"][columns]
        if y.name == ACTIVATIONS:
            metadata |= {
                "target_layer": y["layer"].values,
                "target_feature": y["feature"].values,
                "average_l0": y["average_l0"].values,
            }
        return metadata | {
            "store": self.name,
            "schema_version": SCHEMA_VERSION,
            "featurestore_version": __version__,
            "parameters": plan.parameters,
            "fingerprint": self.fingerprint(plan),
            "store_digest": self.digest,
            "sentences_digest": sentences_digest(self.sentences[rows], self._digests[rows])
            if len(dropped)
            else self.digest,
            "dropped_sentence_indices": dropped,
        }

    def _inputs(self, plan: Plan) -> dict[str, Any]:
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


class _Input:
    """A block of X as dask stores it: raw values, and which sentences are finite."""

    def __init__(self, raw: Array, progress: Callable[[int], None]) -> None:
        self.raw, self.finite, self._progress = raw, np.zeros(len(raw), bool), progress

    def __setitem__(self, part: tuple[slice, slice], values: Array) -> None:
        self.raw[part] = values
        self.finite[part[0]] = np.isfinite(values).all(axis=1)
        self._progress(values.nbytes)


def _allocate(blocks: Sequence[da.Array], scratch: Path | None) -> list[Array]:
    total = sum(int(block.nbytes) for block in blocks)
    if total <= IN_MEMORY_BYTES:
        return [np.empty(block.shape, block.dtype) for block in blocks]
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the mappings keep it
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but would be a crash later
                os.posix_fallocate(file.fileno(), 0, total)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(scratch or tempfile.gettempdir())) from error
        raw: list[Array] = []
        for block in blocks:
            offset = sum(array.nbytes for array in raw)
            raw.append(np.memmap(file, block.dtype, "w+", offset, block.shape))
        return raw


def _only_what_is_needed() -> Any:
    """Let dask leave out the tasks that nothing needs, but not merge those that several share."""
    return configured(array_optimize=lambda graph, keys, **_: graph.cull(set(flatten(keys))))


def _check_statistics(other: Dataset, inputs: dict[str, Any]) -> None:
    for name in ("input_source", "input_layers", "input_average_l0", "input_dims", "input_features"):
        theirs, ours = other.metadata.get(name), inputs.get(name)
        if not np.array_equal(theirs, ours):  # type: ignore[arg-type]
            raise DatasetError(
                f"--stats-from: its X has {name} {theirs}, this one has {ours}; choose statistics of the same input"
            )
