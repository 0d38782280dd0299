"""The raw values of datasets, each piece of a store read once for all that share it: first y, then X.

`probe` reads y, by which a plan can be judged; of what it returns `read` makes what `featurestore.datasets.assembly`
needs. So neither can come in the wrong order, and what was read is freed with the last value that holds it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from featurestore.datasets import normalize, workers
from featurestore.datasets.alignment import representable
from featurestore.datasets.columns import Columns
from featurestore.datasets.normalize import Extremes, Normalization, Statistics
from featurestore.errors import naming
from featurestore.questions.tokens import of_rows

if TYPE_CHECKING:
    from featurestore.datasets.plans import Plan
    from featurestore.datasets.selected import Selected
    from featurestore.datasets.view import StoreView

    Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 256 << 20
"""Raw inputs up to this size are kept in memory while datasets are built from them; larger ones in a scratch file."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Probed:
    """A plan of a store, and what is known of its dataset before X is read: k rows are selected.

    Attributes
    ----------
    view : StoreView
        The store.
    plan : Plan
        What the dataset is to be.
    y : ndarray, (k,) or (k, targets)
        Its y, in the order of the store.
    finite_blocks : tuple of ndarray, (k,) bool
        For each block of X, which rows a dataset can hold, as far as it has been read; of a control, what its real
        counterpart can hold, so that both have the same rows.
    """

    view: StoreView
    plan: Plan
    y: Array
    finite_blocks: tuple[Array, ...]

    @property
    def selected(self) -> Selected:
        """Its rows, lazy."""
        return self.view.select(self.plan)

    @property
    def finite(self) -> Array:
        """Which rows have values that a dataset can hold, as far as they have been read.

        Returns
        -------
        ndarray, (k,) bool
            False where X or y has NaN, infinity, or what float32 (of integers, int64) cannot hold.
        """
        y = representable(self.y).all(axis=tuple(range(1, self.y.ndim)))
        return np.all([y, *self.finite_blocks], axis=0)

    @property
    def nonfinite(self) -> Array:
        """The sentences that have a row that is not `finite`, each once, (m,) int64."""
        return np.unique(self.selected.sentences[~self.finite])

    @property
    def kept(self) -> Array:
        """Which rows are of other sentences, (k,) bool."""
        return ~np.isin(self.selected.sentences, self.nonfinite)

    @property
    def training(self) -> Array:
        """Which rows are for training, (k,) bool: all of them, without a split."""
        return self.view.training_rows(self.plan)[self.selected.positions]


type Measure[E: Extremes] = Callable[[Sequence[Array], Array], list[E]]

Part = tuple[str, str]
"""Name of a block, and digest of some rows of it."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of X by name, and what has been measured of them, once for all datasets that share block and rows.

    Attributes
    ----------
    raw : mapping of str to ndarray, (k, d)
        Their raw values.
    statistics : dict
        Of some rows of some of them.
    extremes : dict
        The same, where that is enough.
    """

    raw: Mapping[str, Array]
    statistics: dict[Part, Statistics] = field(default_factory=dict)
    extremes: dict[Part, Extremes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded(Probed):
    """A plan of which X is read, too, so that its dataset can be assembled.

    Attributes
    ----------
    blocks : Blocks
        Of X, together with those of the plans that were read with it.
    """

    blocks: Blocks

    def inputs(
        self, rows: Array, columns: Array | slice = slice(None), normalization: Normalization | None = None
    ) -> Columns:
        """Return some rows and columns of X, calculated when they are sliced."""
        return Columns([self.blocks.raw[name] for name in self._names], rows, columns, normalization)

    def statistics(self, rows: Array) -> list[Statistics]:
        """Return the statistics of each block of X in some rows."""
        return self._measured(rows, normalize.measure, self.blocks.statistics)

    def extremes(self, rows: Array) -> list[Extremes]:
        """Return the smallest and largest values of each block of X in some rows."""
        return self._measured(rows, normalize.measure_extremes, self.blocks.extremes)

    def _measured[E: Extremes](self, rows: Array, measure: Measure[E], known: dict[Part, E]) -> list[E]:
        digest = hashlib.sha256(rows).hexdigest()
        keys = [(name, digest) for name in self._names]
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        names = [name for name, _ in missing]
        if workers.active():  # which read what they measure once more
            lazy = {block.name: block for block in self.selected.columns}
            found = workers.apply(partial(_of_one, rows=rows, measure=measure), [lazy[name] for name in names])
        else:
            found = measure([self.blocks.raw[name] for name in names], rows)
        known |= zip(missing, found, strict=True)
        return [known[key] for key in keys]

    @property
    def _names(self) -> list[str]:
        return [block.name for block in self.selected.columns]


def _of_one[E: Extremes](block: Array, rows: Array, measure: Measure[E]) -> E:
    return measure([block], rows)[0]


def probe(view: StoreView, plans: Sequence[Plan]) -> list[Probed]:
    """Read y of some plans, each chunk once; of X only chunks in which ingest has seen non-finite values."""
    selected = [view.select(plan) for plan in plans]
    outcomes = {one.outcome.name: one.outcome for one in selected}
    nonfinite = view.ds["n_nonfinite"].values > 0
    blocks = {block.name: (block, nonfinite[one.positions]) for one in selected for block in one.real}
    rows = {name: suspected for name, (_, suspected) in blocks.items()}
    suspects = {name: of_rows(block, suspected) for name, (block, suspected) in blocks.items() if suspected.any()}
    computed = workers.compute([*outcomes.values(), *(representable(block) for block in suspects.values())])
    y, fit = dict(zip(outcomes, computed, strict=False)), computed[len(outcomes) :]
    finite = {name: np.ones(len(suspected), bool) for name, suspected in rows.items()}
    for name, found in zip(suspects, fit, strict=True):
        finite[name][rows[name]] = found.all(axis=1)
    return [
        Probed(
            view=view, plan=plan, y=y[one.outcome.name], finite_blocks=tuple(finite[block.name] for block in one.real)
        )
        for plan, one in zip(plans, selected, strict=True)
    ]


def read(
    probed: Sequence[Probed], scratch: Path | None = None, progress: Callable[[int], None] = lambda _: None
) -> list[Loaded]:
    """Read X of some plans, each chunk once.

    Parameters
    ----------
    probed : sequence of Probed
        The plans.
    scratch : Path, optional
        Folder for a nameless file, which holds what exceeds `IN_MEMORY_BYTES`; by default that of the system.
    progress : callable
        Called with the number of bytes of X that were read since the last call, by any thread.

    Returns
    -------
    list of Loaded
        In the same order.
    """
    lazy = {block.name: block for one in probed for block in (*one.selected.real, *one.selected.columns)}
    inputs = [_Input(raw, progress) for raw in _allocate(list(lazy.values()), scratch)]
    workers.store(list(lazy.values()), inputs)
    stored = dict(zip(lazy, inputs, strict=True))
    blocks = Blocks({name: block.raw for name, block in stored.items()})
    return [
        Loaded(
            view=one.view,
            plan=one.plan,
            y=one.y,
            finite_blocks=tuple(stored[block.name].finite for block in one.selected.real),
            blocks=blocks,
        )
        for one in probed
    ]


class _Input:
    """A block of X as dask stores it: raw values, and which rows are finite."""

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
