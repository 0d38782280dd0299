"""The datasets of one store, put together: what they have in common is read and measured once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import compute
from dask.config import set as configured
from dask.core import flatten

from featurestore import normalize
from featurestore.datasets import Columns, Dataset
from featurestore.errors import NonFiniteError, SelectionError, naming
from featurestore.normalize import Statistics
from featurestore.plans import Plan, sentences_digest
from featurestore.schema import ACTIVATIONS, SCHEMA_VERSION, __version__

if TYPE_CHECKING:
    from featurestore.sources import Source

    Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are kept in memory while datasets are built from them; larger ones in a scratch file."""

_WINDOW = 1024
"""Rows that are counted at once."""

_BLOCKS = 4
"""Blocks that are measured as one array: a few, as each costs dask as much as all, but their copies need memory."""


class Assembly:
    """Raw values of a store, and the datasets that are made of them.

    Parameters
    ----------
    source : Source
        The store.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._targets: dict[str, Array] = {}
        self._raw: dict[str, Array] = {}
        self._finite: dict[str, Array] = {}
        self._statistics: dict[tuple[str, str], Statistics] = {}

    def probe(self, plans: Iterable[Plan]) -> None:
        """Read y of all plans, each chunk once; of X only chunks in which ingest has seen non-finite values."""
        plans = list(plans)
        targets = {(y := self.source.y(plan)).name: y for plan in plans}
        targets = {name: y for name, y in targets.items() if name not in self._targets}
        suspects = np.flatnonzero(self.source.ds["n_nonfinite"].values)
        inputs = {name: block for name, block in self.source.blocks(plans).items() if name not in self._finite}
        some = [da.isfinite(block[suspects]).all(axis=1) for block in inputs.values()] if len(suspects) else []
        with _only_what_is_needed():
            values, found = compute(list(targets.values()), some)
        self._targets |= zip(targets, values, strict=True)
        for name in inputs:
            self._finite[name] = np.ones(len(self.source.sentences), bool)
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
        blocks = {name: block for name, block in self.source.blocks(plans).items() if name not in self._raw}
        inputs = [_Input(raw, progress) for raw in _allocate(list(blocks.values()), scratch)]
        with _only_what_is_needed():
            da.store(list(blocks.values()), inputs, lock=False)  # type: ignore[arg-type]
        for name, block in zip(blocks, inputs, strict=True):
            self._raw[name], self._finite[name] = block.raw, block.finite

    def n_bytes(self, plans: Iterable[Plan]) -> int:
        """Size of the raw X of some plans, what they share counted once."""
        return sum(int(block.nbytes) for block in self.source.blocks(plans).values())

    def forget(self) -> None:
        """Free the raw values of X."""
        self._raw.clear()

    def target(self, plan: Plan) -> Array:
        """Return y of all sentences, in the order of the store; it must have been read."""
        return self._targets[self.source.y(plan).name]

    def finite(self, plan: Plan) -> Array:
        """Tell which sentences have finite values throughout, as far as they have been read; (n,) bool."""
        y = np.isfinite(self.target(plan)).reshape(len(self.source.sentences), -1).all(axis=1)
        return np.all([y, *(self._finite[name] for name in self.source.blocks([plan]))], axis=0)

    def dataset(self, plan: Plan) -> tuple[Dataset, int]:
        """Make the dataset of a plan that has been read; X is normalized as it is used.

        Returns
        -------
        Dataset, int
            And how many columns of X are constant in the rows on which the normalization was fitted.

        Raises
        ------
        NonFiniteError
            If X or y have NaN or infinite values and the plan does not drop them, or no sentence is left.
        SelectionError
            If no sentence is left to fit the normalization.
        """
        rows, dropped = self._rows(plan)
        divided = self.source.split(plan.split)
        training = rows[self.source.training_rows(plan.split)[rows]]
        blocks = [self._raw[name] for name in self.source.blocks([plan])]
        columns = self._densest(plan, training)
        measured: list[Statistics] = []
        if plan.stats_from:
            fitted = plan.stats_from.normalization
        elif len(training) == 0:
            raise SelectionError(f"{self.source.path}: no training sentence is left to fit the normalization")
        else:
            measured = self._measured(plan, training)
            fitted = normalize.fit(plan.normalize, measured).of(columns)
        n_constant = np.count_nonzero(np.hstack([found.constant for found in measured])[columns]) if measured else 0
        metadata = self._metadata(plan, rows, dropped, columns)
        if divided:
            metadata |= {"split": np.where(divided.train[rows], "train", "test")}
            metadata |= {"near_duplicates_across": divided.across, "groups_digest": divided.groups_digest}
            if divided.fold is not None:
                metadata |= {"fold": divided.fold[rows]}
        y = self.target(plan)[rows]
        dataset = Dataset(
            Columns(blocks, rows, columns, fitted),
            y.astype(np.int64 if y.dtype.kind in "iu" else np.float32),
            {name: np.asarray(value) for name, value in metadata.items()},
            fitted,
        )
        return dataset, int(n_constant)

    def _rows(self, plan: Plan) -> tuple[Array, Array]:
        """Return the rows to use, in the order of their sentence_index, and the sentences dropped."""
        finite = self.finite(plan)
        bad = np.sort(self.source.sentences[~finite])
        if len(bad) == 0:
            return self.source.order, bad
        some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        found = f"{len(bad)} of {len(finite)} sentences have NaN or infinite values (sentence_index {some})"
        if not plan.drop_nonfinite:
            raise NonFiniteError(f"{found}, which no dataset may hold; leave them out with --drop-nonfinite")
        if len(bad) == len(finite):
            raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
        rows: Array = self.source.order[finite[self.source.order]]
        return rows, bad

    def _measured(self, plan: Plan, rows: Array) -> list[Statistics]:
        """Return the statistics of each block of X, each computed once for all plans that share it and the rows."""
        if plan.normalize == "none":
            return []
        digest = hashlib.sha256(rows).hexdigest()
        keys = [(name, digest) for name in self.source.blocks([plan])]
        missing = [key for key in keys if key not in self._statistics]
        groups = [[self._raw[name] for name, _ in group] for group in batched(missing, _BLOCKS)]
        # A lone column twice, because numpy adds up one column in another order than one of several.
        columns = [Columns(group * 2 if group[0].shape[1] == 1 else group, rows) for group in groups]
        measured = zip(groups, normalize.measure(columns), strict=True)
        parts = [part for group, found in measured for part in found.parts([block.shape[1] for block in group])]
        self._statistics |= zip(missing, parts, strict=True)
        return [self._statistics[key] for key in keys]

    def _densest(self, plan: Plan, rows: Array) -> Array | slice:
        """Return the columns to keep, in their order: of equally dense ones the first."""
        selection = self.source.select(plan)
        if selection.densest is None:
            return slice(None)
        if plan.stats_from:  # those that it has statistics of
            return np.isin(selection.blocks[0]["feature"].values, plan.stats_from.metadata["input_features"]).nonzero()[
                0
            ]
        blocks = Columns([self._raw[name] for name in self.source.blocks([plan])], rows)
        windows = (blocks[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW))
        counts = sum(np.count_nonzero(window, axis=0) for window in windows)
        return np.sort(np.argsort(-counts, kind="stable")[: selection.densest])

    def _metadata(self, plan: Plan, rows: Array, dropped: Array, columns: Array | slice) -> dict[str, Any]:
        source = self.source
        y, indices = source.select(plan).y, source.sentences[rows]
        metadata: dict[str, Any] = {
            "strategy": plan.strategy.name,
            **source.inputs(plan),
            "n_samples": len(rows),
            "sentence_indices": indices,
        }
        if "input_features" in metadata:
            metadata["input_features"] = metadata["input_features"][columns]
        if y.name == ACTIVATIONS:
            metadata |= {
                "target_layer": y["layer"].values,
                "target_feature": y["feature"].values,
                "average_l0": y["average_l0"].values,
            }
        if plan.strategy.code:
            metadata["strategy_code"] = plan.strategy.code
        return metadata | {
            "store": source.name,
            "schema_version": SCHEMA_VERSION,
            "featurestore_version": __version__,
            "parameters": plan.parameters,
            "fingerprint": source.fingerprint(plan),
            "store_digest": source.digest,
            "sentences_digest": sentences_digest(indices, source.digests[rows]) if len(dropped) else source.digest,
            "dropped_sentence_indices": dropped,
        }


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
    with naming(scratch or tempfile.gettempdir()), tempfile.TemporaryFile(dir=scratch) as file:  # the mappings keep it
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, but would be a crash later
            os.posix_fallocate(file.fileno(), 0, total)
        raw: list[Array] = []
        for block in blocks:
            offset = sum(array.nbytes for array in raw)
            raw.append(np.memmap(file, block.dtype, "w+", offset, block.shape))
        return raw


def _only_what_is_needed() -> Any:
    """Let dask leave out the tasks that nothing needs, but not merge those that several share."""
    return configured(array_optimize=lambda graph, keys, **_: graph.cull(set(flatten(keys))))
