"""What a batch of sentences has to be: by its checksums, by what the coordinates say, and by its sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deflate
import numpy as np

from featurestore.errors import NpzError
from featurestore.schema import ACTIVATIONS
from featurestore.sources import sentences
from featurestore.store.layout import CHECKSUMS, TOKEN_COORDS
from featurestore.store.shards import ShardReader
from featurestore.store.snapshot import Snapshot
from featurestore.store.staging import Staged, count_nonfinite, signed, stage

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

Coords = dict[str, "NDArray[Any]"]
"""Every coordinate of one dim, by name."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: a file or a sentence, and what."""

    where: str
    what: str


def read(array: zarr.Array[Any], file: str, region: tuple[Any, ...], problems: list[Problem]) -> NDArray[Any] | None:
    """Read what a file of an array holds, or a part of it; None if it is damaged, which is reported."""
    try:
        return np.asarray(array[region])
    except (ValueError, RuntimeError, OSError) as error:
        problems.append(Problem(file, f"is damaged ({error})"))
        return None


def check(snapshot: Snapshot, coords: Coords, sources: dict[int, Path], rows: range) -> list[Problem]:
    """Check one batch, whose source files are known by row."""
    problems: list[Problem] = []
    expected = _read_sources(snapshot, coords, {row: sources[row] for row in rows if row in sources}, problems)
    n_nonfinite: dict[int, int] | None = dict.fromkeys(rows, 0)
    for name in snapshot.data_arrays:
        shard = snapshot.file_shape(name)[0]
        for start in range(rows.start, rows.stop, shard):
            part = _Rows(range(start, min(start + shard, rows.stop)), start // shard, coords, expected)
            found, values = _values(snapshot, name, part, problems)
            if found is None:
                n_nonfinite = None  # damaged, so the values cannot be counted
                continue
            for row, (count, checksum) in zip(part.rows, found, strict=True):
                if n_nonfinite is not None:
                    n_nonfinite[row] += count
                if signed(checksum) != coords[CHECKSUMS[name]][row]:
                    what = f"has other {name} than were ingested (CRC-32), in {', '.join(values)}"
                    problems.append(Problem(sentence_of(coords, row), what))
    for name in TOKEN_COORDS:
        _token_coord(
            snapshot, name, _Rows(rows, rows.start // snapshot.file_shape(name)[0], coords, expected), problems
        )
    for row, count in (n_nonfinite or {}).items():
        if count != coords["n_nonfinite"][row]:
            recorded = coords["n_nonfinite"][row]
            what = f"has {count} non-finite values; {recorded} were ingested"
            problems.append(Problem(sentence_of(coords, row), what))
    return list(dict.fromkeys(problems))  # the same may be wrong in many chunks


@dataclass(frozen=True, eq=False)
class _Rows:
    """Sentences that share files, the place of these along `sentence`, and what the sources say."""

    rows: range
    number: int
    coords: Coords
    expected: dict[int, Staged]


def _values(
    snapshot: Snapshot, name: str, part: _Rows, problems: list[Problem]
) -> tuple[list[tuple[int, int]] | None, list[str]]:
    """Read a shard chunk by chunk; compare it with its sources.

    Returns
    -------
    list of (int, int), or None
        Of each row, how many values are not finite, and the checksum of all; None if something cannot be read.
    list of str
        The files.
    """
    longest = part.coords["n_tokens"][part.rows.start : part.rows.stop].max()
    totals = _Totals(part, name)
    files, sound = [], True
    for file, region in snapshot.files(name, part.number):
        if region[1].start >= longest:
            continue
        files.append(file)
        try:
            with ShardReader(snapshot.path / file, snapshot.arrays[name]) as shard:
                for token in range(region[1].start, min(region[1].stop, longest)):
                    totals.start(token, tuple(snapshot.arrays[name]["shape"][2:]))
                    for place in np.ndindex(*shard.grid[2:]):
                        chunk = shard.read((0, token - region[1].start, *place))
                        totals.add(place, chunk, file, problems)
        except FileNotFoundError:  # which is reported with the files
            sound = False
        except (ValueError, RuntimeError, OSError) as error:
            problems.append(Problem(file, f"is damaged ({error})"))
            sound = False
    return (totals.found() if sound else None), files


class _Totals:
    """What the rows of a shard add up to, token by token and chunk by chunk."""

    def __init__(self, part: _Rows, name: str) -> None:
        self._part, self._name = part, name
        self._n_tokens = part.coords["n_tokens"][part.rows.start : part.rows.stop].tolist()
        self._nonfinite, self._checksums = [0] * len(part.rows), [0] * len(part.rows)

    def found(self) -> list[tuple[int, int]]:
        """Return the count of values that are not finite, and the checksum, of each row."""
        return list(zip(self._nonfinite, self._checksums, strict=True))

    def start(self, token: int, sizes: tuple[int, ...]) -> None:
        """Go on with the next token, whose values have these sizes."""
        self._width = sizes[-1]
        self._present = [i for i, n in enumerate(self._n_tokens) if token < n]
        self._absent = [i for i, n in enumerate(self._n_tokens) if token >= n]
        self._told = {}
        for i in self._present:
            source = self._part.expected.get(self._part.rows[i])
            if source and token < source.n_tokens and (self._name == ACTIVATIONS or self._name in source.dense):
                self._told[i] = source.token(self._name, token, sizes)  # what differs in length is reported

    def add(self, place: tuple[int, ...], chunk: NDArray[Any] | None, file: str, problems: list[Problem]) -> None:
        """Count, compare and sum up a chunk; None is one that is not there."""
        *outer, column = place
        if chunk is None:
            chunk = np.full((len(self._n_tokens), self._width), np.nan, np.float32)  # as it would be read
        rows = chunk.reshape(len(chunk), -1)
        start = column * rows.shape[1]
        rows = rows[:, : self._width - start]
        if not np.isnan(rows[self._absent]).all():
            beyond = [self._where(i) for i in self._absent if not np.isnan(rows[i]).all()]
            problems += [Problem(where, f"has values in {file} beyond its tokens") for where in beyond]
        is_finite = bool(np.isfinite(rows[self._present]).all())
        for i in self._present:
            row = np.ascontiguousarray(rows[i])
            self._checksums[i] = deflate.crc32(row.view(np.uint8), self._checksums[i])
            self._nonfinite[i] += 0 if is_finite else count_nonfinite(row)
            if i in self._told and row.tobytes() != self._told[i][tuple(outer)][start : start + len(row)].tobytes():
                source = self._part.expected[self._part.rows[i]]
                problems.append(Problem(self._where(i), f"differs in {file} from {source.coords['source']}"))

    def _where(self, i: int) -> str:
        return sentence_of(self._part.coords, self._part.rows[i])


def _token_coord(snapshot: Snapshot, name: str, part: _Rows, problems: list[Problem]) -> None:
    """Read a coordinate of tokens, file by file, and compare it."""
    array = snapshot.open(name)
    for file, region in snapshot.files(name, part.number):
        if not (snapshot.path / file).is_file() or (values := read(array, file, region, problems)) is None:
            continue
        for row, stored in zip(part.rows, values, strict=True):
            where = sentence_of(part.coords, row)
            if any(stored[max(0, part.coords["n_tokens"][row] - region[1].start) :]):
                problems.append(Problem(where, f"has {name} in {file} beyond its tokens"))
            if source := part.expected.get(row):
                told = [*source.token_coords[name][region[1]]]
                if stored[: len(told)].tolist() != told:
                    problems.append(Problem(where, f"differs in {file} from {source.coords['source']}"))


def _read_sources(
    snapshot: Snapshot, coords: Coords, files: dict[int, Path], problems: list[Problem]
) -> dict[int, Staged]:
    """Read a batch of source files, and compare what they say in words."""
    staged = {}
    for row, file in files.items():
        try:
            sentence_file = sentences.scan(file)
            sentence = stage(sentences.read(sentence_file), snapshot.special_first)
        except NpzError as error:
            problems.append(Problem(file.name, f"cannot be compared: {error}"))
            continue
        staged[row] = sentence
        told = sentence.coords.items()
        differing = [name for name, value in told if name != "source" and coords.get(name, {row: None})[row] != value]
        extraction = sentence_file.extraction
        labels = {"layer": extraction.layers, "sae_layer": extraction.sae_layers, "average_l0": extraction.average_l0s}
        differing += [name for name in labels if name in coords and coords[name].tolist() != [*labels[name]]]
        if differing:
            problems.append(Problem(sentence_of(coords, row), f"{', '.join(differing)} differ from {file.name}"))
    return staged


def sentence_of(coords: Coords, row: int | np.integer[Any]) -> str:
    """Name a sentence by its index, and its file if it has one."""
    source = coords["source"][row]
    return f"sentence {coords['sentence'][row]}" + (f" ({source})" if source else "")
