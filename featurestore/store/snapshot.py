"""A store as one commit has left it: what its metadata say, and its arrays in that shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featurestore.errors import StoreError, StoreNotFoundError, spelled
from featurestore.paths import real_path
from featurestore.schema import ACTIVATIONS, ARRAYS, ATTRIBUTES, SCHEMA_VERSION, Extraction, __version__
from featurestore.store.arrays import StoredArray
from featurestore.store.layout import ROOT, Metadata, chunk_shape, file_name, file_shape
from featurestore.store.location import Location, ReadOnlyPath
from featurestore.store.root import Root, check_root, decode_root, encode

if TYPE_CHECKING:
    import numpy as np
    import zarr
    from numpy.typing import NDArray


def store_name(path: Location) -> str:
    """Name of a store: that of its folder or zip, without a final ``.zarr`` or ``.zip``."""
    name = real_path(path).name if isinstance(path, Path) else path.name
    return name.removesuffix(".zarr") or name


def is_store(path: Location) -> bool:
    """Whether an ingest has made something at this path; what is behind a URL or in a zip can be nothing else."""
    return not isinstance(path, Path) or (path / ROOT).is_file()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A store as one commit has left it, whatever is written meanwhile.

    Attributes
    ----------
    location : Path or ReadOnlyPath
        The store.
    root : dict
        Its metadata, complete and checked.
    """

    location: Location
    root: Root

    @classmethod
    def read(cls, path: Location) -> Self:
        """Read the metadata that are committed now.

        Raises
        ------
        StoreNotFoundError
            If there is nothing at `path`.
        StoreError
            If it is something else, foreign, damaged, or of another schema.
        """
        return cls(path, _read_root(path))

    def __dask_tokenize__(self) -> tuple[str, bytes]:
        """Identify its content, by which dask names what is read of it: not that of an earlier commit."""
        place = self.location
        return str(place) if isinstance(place, Path) else place.url, encode(self.root)

    @property
    def path(self) -> Path:
        """The folder of the store, where it is one of this machine."""
        assert isinstance(self.location, Path)
        return self.location

    @property
    def arrays(self) -> dict[str, Metadata]:
        """The metadata of each array."""
        metadata: dict[str, Metadata] = self.root["consolidated_metadata"]["metadata"]
        return metadata

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of each dim."""
        sizes: dict[str, int] = {}
        for metadata in self.arrays.values():
            sizes.update(zip(metadata["dimension_names"], metadata["shape"], strict=True))
        return sizes

    @property
    def attributes(self) -> dict[str, Any]:
        """What the root says besides its arrays."""
        attributes: dict[str, Any] = self.root["attributes"]
        return attributes

    @property
    def described(self) -> dict[str, Any]:
        """Its attributes that tell users where its values come from, all of them text or numbers."""
        names = ("featurestore_schema", "featurestore_version", *ATTRIBUTES)
        return {name: self.attributes[name] for name in names if name in self.attributes}

    @property
    def expected_sentences(self) -> int | None:
        """How many sentences it is to have, if its ingest is not complete."""
        expected: int | None = self.attributes["expected_sentences"]
        return expected

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The files that were left out when it was made: `file` and `reason` of each."""
        skipped: list[dict[str, str]] = self.attributes["skipped"]
        return skipped

    @property
    def special_first(self) -> int:
        """So many tokens at the beginning of each sentence are special ones, whatever its file says."""
        count: int = self.attributes["special_first"]
        return count

    @property
    def is_complete(self) -> bool:
        """Whether no ingest has to go on with it, not even with its arrays' own metadata."""
        return self.expected_sentences is None and not self.stale_metadata()

    @cached_property
    def extraction(self) -> Extraction:
        """What all its sentences share."""
        sae_dim = "sae" if "sae_layer" in self.arrays else "layer"
        layers = self._labels("layer")
        has_saes = ACTIVATIONS in self.arrays
        return Extraction(
            layers=layers,
            sae_layers=() if not has_saes else layers if sae_dim == "layer" else self._labels("sae_layer"),
            average_l0s=self._labels("average_l0"),
            hidden=self.sizes.get("hidden", 0),
            features=self.sizes.get("feature", 0),
            dtypes=tuple(self.arrays[name]["data_type"] if name in self.arrays else "" for name in ARRAYS),
        )

    def _labels(self, name: str) -> tuple[Any, ...]:
        """Return the values of a coordinate, whole ones as int; none where there is no such coordinate."""
        values = self.coord(name).tolist() if name in self.arrays else []
        return tuple(int(value) if float(value).is_integer() else value for value in values)

    @property
    def data_arrays(self) -> list[str]:
        """Names of the data arrays that there are."""
        return [name for name in ARRAYS if name in self.arrays]

    def file_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what one file of an array holds: a shard, or a chunk where there are none."""
        return file_shape(self.arrays[name])

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what is compressed as one in an array."""
        return chunk_shape(self.arrays[name])

    def open(self, name: str, *, writable: bool = False) -> zarr.Array[Any]:
        """Return a handle on an array as it is on disk, the final token first."""
        from zarr.storage import LocalStore

        from featurestore.store.handles import open_array

        return open_array(LocalStore(self.path, read_only=not writable), name, self.arrays[name])

    def array(self, name: str, n_tokens: NDArray[np.int64] | None = None) -> StoredArray:
        """Return an array to be read in parts, tokens in reading order, errors clear."""
        return StoredArray(self.location, name, self.arrays[name], n_tokens)

    def coord(self, name: str) -> NDArray[Any]:
        """Read a coordinate whole.

        Raises
        ------
        StoreError
            If a file of it is damaged or missing.
        """
        return self.array(name)[(slice(None),)]

    def files(self, name: str, row: int | None = None) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """Yield every file of an array, or of one row of them along `sentence`, and the region that it holds."""
        shape, sizes = self.arrays[name]["shape"], self.file_shape(name)
        indices = [range(-(-size // step)) for size, step in zip(shape, sizes, strict=True)]
        if row is not None:
            indices[0] = range(row, row + 1)
        for index in product(*indices):
            region = tuple(
                slice(i * step, min((i + 1) * step, size)) for i, step, size in zip(index, sizes, shape, strict=True)
            )
            yield file_name(name, index), region

    def stale_metadata(self) -> list[str]:
        """Name the arrays whose own metadata, which plain Zarr readers use, are not what the root says."""

        def is_current(name: str, metadata: Metadata) -> bool:
            file = self.path / name / ROOT
            return file.is_file() and file.read_bytes() == encode(metadata)

        return [name for name, metadata in self.arrays.items() if not is_current(name, metadata)]

    def resized(self, sentences: int, tokens: int) -> Self:
        """Return the same with other numbers of sentences and tokens, as it may be committed next."""
        sizes = self.sizes | {"sentence": sentences, "token": tokens}
        resized = {
            name: metadata | {"shape": [sizes[dim] for dim in metadata["dimension_names"]]}
            for name, metadata in self.arrays.items()
        }
        consolidated = self.root["consolidated_metadata"] | {"metadata": resized}
        return replace(self, root=self.root | {"consolidated_metadata": consolidated})

    def with_attributes(self, **attributes: Any) -> Self:
        """Return the same with other attributes, as it may be committed next."""
        return replace(self, root=self.root | {"attributes": dict(sorted((self.attributes | attributes).items()))})


def _read_root(path: Location) -> Root:
    data = _root_bytes(path)
    try:
        root, is_intact = decode_root(data)
        version = root["attributes"]["featurestore_schema"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: its {ROOT} is not that of a feature store, or damaged; check the path") from error
    if version != SCHEMA_VERSION:
        is_newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise StoreError(
            f"{path}: has schema version {version}, this featurestore {__version__} reads {SCHEMA_VERSION}; "
            f"{'upgrade featurestore' if is_newer else 'ingest again, into a new store'}"
        )
    if not is_intact:
        raise StoreError(f"{path}: its {ROOT} is damaged (checksum); restore it, or ingest into a new store")
    try:
        check_root(root)
    except ValueError as error:
        raise StoreError(f"{path}: its {ROOT} is foreign: {error}; restore it, or ingest into a new store") from error
    return root


def _root_bytes(path: Location) -> bytes:
    if isinstance(path, ReadOnlyPath):
        return _remote_root_bytes(path)
    if is_store(path):
        with suppress(FileNotFoundError):  # its writer has just given it up
            return (path / ROOT).read_bytes()
    if not path.exists():
        raise StoreNotFoundError(f"{path}: no such store; make it by an ingest with {spelled('store', str(path))}")
    ingestible = path.is_dir() and any(path.glob("sentence_*.npz"))
    found = "a folder of sentence NPZs; ingest it first" if ingestible else "something else; check the path"
    if path.suffix == ".zip":
        found = "a zip, of which a store can only be read; unzip it first"
    raise StoreError(f"{path}: expected a feature store, found {found}")


def _remote_root_bytes(path: ReadOnlyPath) -> bytes:
    from featurestore.store.handles import read_object

    if (data := read_object(path, ROOT)) is None:
        where = f"it has no {ROOT}; check the path, and where {spelled('storage_options')} lead"
        raise StoreNotFoundError(f"{path}: no such store: {where}")
    return data
