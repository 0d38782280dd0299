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

from featurestore.datasets import normalize
from featurestore.datasets.alignment import representable
from featurestore.datasets.dataset import Columns, Dataset
from featurestore.datasets.normalize import Normalization, Statistics
from featurestore.datasets.plans import Plan
from featurestore.errors import NonFiniteError, SelectionError, naming, spelled
from featurestore.schema import SCHEMA_VERSION, __version__

if TYPE_CHECKING:
    from featurestore.datasets.view import Source

    Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are kept in memory while datasets are built from them; larger ones in a scratch file."""

_HERE: dict[str, Any] = {"scheduler": "threads", "optimize_graph": False}
"""How dask computes, whatever scheduler the user has chosen: what is read goes into this process's memory, and dask's
optimization is left out, because it merges selecting with reading, so that a chunk that several need is read again."""

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
        selected = [self.source.select(plan) for plan in plans]
        targets = {one.target.name: one.target for one in selected}
        targets = {name: y for name, y in targets.items() if name not in self._targets}
        nonfinite = self.source.ds["n_nonfinite"].values > 0
        rows = {block.name: nonfinite[one.positions] for one in selected for block in one.columns}
        blocks = {block.name: block for one in selected for block in one.columns if block.name not in self._finite}
        suspects = {name: block[rows[name]] for name, block in blocks.items() if rows[name].any()}
        values, found = _compute(list(targets.values()), [representable(block) for block in suspects.values()])
        self._targets |= zip(targets, values, strict=True)
        for name in blocks:
            self._finite[name] = np.ones(len(rows[name]), bool)
        for name, fit in zip(suspects, found, strict=True):
            self._finite[name][rows[name]] = fit.all(axis=1)

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
        da.store(list(blocks.values()), inputs, lock=False, **_HERE)  # type: ignore[arg-type]
        for name, block in zip(blocks, inputs, strict=True):
            self._raw[name], self._finite[name] = block.raw, block.finite

    def n_bytes(self, plans: Iterable[Plan]) -> int:
        """Size of the raw X of some plans, what they share counted once."""
        return sum(int(block.nbytes) for block in self.source.blocks(plans).values())

    def forget(self) -> None:
        """Free the raw values of X."""
        self._raw.clear()

    def target(self, plan: Plan) -> Array:
        """Return y of the selected sentences, in the order of the store; it must have been read."""
        return self._targets[self.source.select(plan).target.name]

    def finite(self, plan: Plan) -> Array:
        """Tell which of the selected sentences have values that a dataset can hold, as far as they have been read.

        Returns
        -------
        ndarray, (k,) bool
            False where X or y has NaN, infinity, or what float32 (of integers, int64) cannot hold.
        """
        y = representable(self.target(plan))
        y = y.reshape(len(y), -1).all(axis=1)
        return np.all([y, *(self._finite[block.name] for block in self.source.select(plan).columns)], axis=0)

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
        selected, divided = self.source.select(plan), self.source.split(plan.split)
        stored = selected.positions[rows]
        training = rows[self.source.training_rows(plan.split)[stored]]
        columns = self._densest(plan, training)
        measured: list[Statistics] = []
        if plan.stats_from:
            fitted = plan.stats_from.normalization
        elif len(training) == 0:
            raise SelectionError(f"{self.source.path}: no training sentence is left to fit the normalization")
        else:
            measured = self._measured(plan, training)
            fitted = normalize.fit(plan.normalize, measured).of(columns)
        self._check_range(plan, rows, columns, fitted)
        n_constant = np.count_nonzero(np.hstack([found.constant for found in measured])[columns]) if measured else 0
        metadata = self._metadata(plan, rows, dropped, columns)
        if divided:
            metadata |= {"split": np.where(divided.train[stored], "train", "test")}
            metadata |= {"near_duplicates_across": divided.across, "groups_digest": divided.groups_digest}
            if divided.fold is not None:
                metadata |= {"fold": divided.fold[stored]}
            if divided.version:
                metadata |= {"split_version": divided.version}
        y = self.target(plan)[rows]
        dataset = Dataset(
            Columns(self._blocks(plan), rows, columns, fitted),
            y.astype(np.int64 if y.dtype.kind in "iub" else np.float32),
            {name: np.asarray(value) for name, value in metadata.items()},
            fitted,
        )
        return dataset, int(n_constant)

    def _blocks(self, plan: Plan) -> list[Array]:
        return [self._raw[block.name] for block in self.source.select(plan).columns]

    def _rows(self, plan: Plan) -> tuple[Array, Array]:
        """Return the rows to use, in the order of their sentence_index, and the sentences dropped."""
        finite, selected = self.finite(plan), self.source.select(plan)
        bad = np.sort(selected.sentences[~finite])
        if len(bad) == 0:
            return selected.order, bad
        some = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        what = "NaN or infinite values, or some beyond float32 or int64"
        found = f"{len(bad)} of {len(finite)} sentences have {what} (sentence_index {some})"
        if not plan.drop_nonfinite:
            raise NonFiniteError(
                f"{found}, which no dataset may hold; leave them out with {spelled('drop_nonfinite', True)}"
            )
        if len(bad) == len(finite):
            raise NonFiniteError(f"{found}, so none is left; extract them again in float32")
        return selected.order[finite[selected.order]], bad

    def _check_range(self, plan: Plan, rows: Array, columns: Array | slice, fitted: Normalization) -> None:
        """Refuse X that is not finite once it is normalized, told by the smallest and largest value of each column.

        Where the training rows vary far less than the others, these can leave the range of float32.
        """
        if plan.normalize == "none":
            return
        measured = self._measured(plan, rows)
        extremes = [np.hstack([getattr(found, name) for found in measured])[columns] for name in ("min", "max")]
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(fitted.transform(np.stack(extremes))).all(axis=0)
        if bad.any():
            found = f"{np.count_nonzero(bad)} of {len(bad)} columns of X, such as column {bad.argmax()}"
            reason = "vary so little in the rows of the statistics that float32 cannot hold the other rows normalized"
            instead = f"use {spelled('normalize', 'none')}, or leave these sentences or columns out"
            raise NonFiniteError(f"{found}, {reason}; {instead}")

    def _measured(self, plan: Plan, rows: Array) -> list[Statistics]:
        """Return the statistics of each block of X, each computed once for all plans that share it and the rows."""
        if plan.normalize == "none":
            return []
        digest = hashlib.sha256(rows).hexdigest()
        keys = [(block.name, digest) for block in self.source.select(plan).columns]
        missing = [key for key in dict.fromkeys(keys) if key not in self._statistics]
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
            kept = np.isin(selection.X[0]["feature"].values, plan.stats_from.metadata["input_features"])
            return np.flatnonzero(kept)
        blocks = Columns(self._blocks(plan), rows)
        windows = (blocks[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW))
        counts = sum(np.count_nonzero(window, axis=0) for window in windows)
        return np.sort(np.argsort(-counts, kind="stable")[: selection.densest])

    def _metadata(self, plan: Plan, rows: Array, dropped: Array, columns: Array | slice) -> dict[str, Any]:
        source, selected = self.source, self.source.select(plan)
        indices = selected.sentences[rows]
        metadata: dict[str, Any] = {
            "strategy": plan.strategy.name,
            **source.inputs(plan),
            "n_samples": len(rows),
            "sentence_indices": indices,
        }
        if "input_features" in metadata:
            metadata["input_features"] = metadata["input_features"][columns]
        if plan.strategy.code:
            metadata["strategy_code"] = plan.strategy.code
        metadata |= source.outputs(plan) | {
            "store": source.name,
            "schema_version": SCHEMA_VERSION,
            "featurestore_version": __version__,
            "parameters": plan.parameters,
            "fingerprint": source.fingerprint(plan),
            "store_digest": source.digest,
            "sentences_digest": source.digest_of(selected.positions[rows]),
            "dropped_sentence_indices": dropped,
        }
        if len(selected.sentences) < len(source.sentences):
            metadata["left_out_sentence_indices"] = np.setdiff1d(source.sentences, selected.sentences)
        return metadata


class _Input:
    """A block of X as dask stores it: raw values, and which sentences are finite."""

    def __init__(self, raw: Array, progress: Callable[[int], None]) -> None:
        self.raw, self.finite, self._progress = raw, np.zeros(len(raw), bool), progress

    def __setitem__(self, part: tuple[slice, slice], values: Array) -> None:
        self.raw[part] = values
        self.finite[part[0]] = representable(values).all(axis=1)
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


def _compute(*collections: Any) -> Any:
    return compute(*collections, **_HERE)
