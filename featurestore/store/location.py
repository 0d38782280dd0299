"""Where a store is: in a folder of this machine, or, to be read only, behind a URL or in a zip."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError, ParameterError, StoreError, StoreNotFoundError, brief, shown, spelled
from featurestore.paths import PathLike, as_path, is_url, without_secrets
from featurestore.store.layout import ROOT
from featurestore.store.zipped import ZippedFiles

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

StorageOptions = Mapping[str, Any]
"""What fsspec needs to know to open a URL, such as credentials and an endpoint."""

_LONGEST = 200
_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_SHORTEST_SECRET = 4


@dataclass(frozen=True)
class ReadOnlyPath:
    """A URL, or a zip: something that fsspec reads.

    As text it is the URL without passwords and queries, which may be signatures.

    Attributes
    ----------
    url : str
        Of any protocol of fsspec, also chained; one that ends in ``.zip`` or begins with ``zip::`` is a zip. Or the
        path of a zip on this machine.
    options : mapping
        What fsspec needs to open it. Never shown.
    """

    url: str
    options: StorageOptions = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return shown(without_secrets(self.url))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is, no connections; whoever reads the pickle may have another working folder."""
        return type(self), (self.url if is_url(self.url) else self.absolute, dict(self.options))

    @property
    def absolute(self) -> str:
        """As text, from whatever working folder."""
        return str(self) if is_url(self.url) else os.path.abspath(self.url)  # noqa: PTH100

    def __truediv__(self, name: str) -> ReadOnlyPath:
        url, mark, query = self.url.partition("?")
        return ReadOnlyPath(f"{url.rstrip('/')}/{name}{mark}{query}", self.options)

    @property
    def name(self) -> str:
        """The last part of the URL, without ``.zip``."""
        inner, outer = self._parts
        return (inner or outer.partition("?")[0].rstrip("/")).rpartition("/")[2].removesuffix(".zip")

    @property
    def is_zip(self) -> bool:
        """Whether it is a zip."""
        return self._parts[0] is not None

    @property
    def query(self) -> str:
        """What follows the name of each file, such as ``?token=...``; only where files are asked for by HTTP."""
        return "".join(self.url.partition("?")[1:]) if self._is_http and not self.is_zip else ""

    @property
    def _is_http(self) -> bool:
        return re.match("https?:", self.url) is not None

    @property
    def remedy(self) -> str:
        """What to do where something in it is missing or damaged."""
        return "make the zip again" if self.is_zip else "upload the store again"

    @property
    def _parts(self) -> tuple[str | None, str]:
        """Folder in a zip, None where there is no zip; and URL of the zip or of all."""
        if match := re.match(r"zip(://)?(?P<inner>[^:]*)::(?P<outer>.*)", self.url):
            return match["inner"].strip("/"), match["outer"]
        return ("" if self.url.partition("?")[0].endswith(".zip") else None), self.url

    @cached_property
    def opened(self) -> tuple[AsyncFileSystem | ZippedFiles, str]:
        """Its file system, which Zarr reads asynchronously, and its place in that.

        Opened once for all threads, as each would have connections of its own.

        Raises
        ------
        ParameterError
            If fsspec does not know the protocol.
        StoreError
            If its package is not installed, or it refuses the options, or what should be a zip is none, or not there.
        """
        if not self.is_zip:
            return self._connect(self.url.removesuffix(self.query))
        files = self._zipped()
        return files, self._folder(files.names)

    def _zipped(self) -> ZippedFiles:
        url = self._parts[1]
        try:
            with self.errors():
                fs, path = self._file_system(url)
                with fs.open(path, "rb") as directory:
                    return ZippedFiles(*self._connect(url), directory)
        except FileNotFoundError:
            where = f"check the path, and where {spelled('storage_options')} lead"
            raise StoreNotFoundError(f"{self}: no such zip; {where}") from None

    def _folder(self, names: list[str]) -> str:
        """Find the store in its zip: where its uppermost root file is."""
        if inner := self._parts[0]:
            return inner
        folders = [name.removesuffix(ROOT) for name in names if f"/{name}".endswith(f"/{ROOT}")]
        least = min((folder.count("/") for folder in folders), default=0)
        uppermost = [folder.rstrip("/") for folder in folders if folder.count("/") == least]
        if len(uppermost) != 1:
            found = f"expected a zip of one store, with its {ROOT} at the top or in one folder"
            raise StoreError(f"{self}: {found}, found {len(uppermost)} of them; zip the folder of the store")
        return uppermost[0]

    def n_bytes(self) -> int | None:
        """Size of all its files, or of the zip; None where that cannot be known."""
        from zarr.core.sync import sync

        try:
            fs, path = self._connect(self._parts[1])
            if self.is_zip:
                return int(sync(fs._info(path))["size"])
            if self._is_http:  # which lists nothing
                return None
            return sum(int(file["size"]) for file in sync(fs._find(path, detail=True)).values())
        except Exception:  # whoever may read is not always one who may list
            return None

    def _connect(self, url: str) -> tuple[AsyncFileSystem, str]:
        """Return the file system of a URL, for Zarr, and the place in it."""
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs, path = self._file_system(url, asynchronous=True)
        return (fs if fs.async_impl else AsyncFileSystemWrapper(fs, asynchronous=True)), path

    def _file_system(self, url: str, **options: Any) -> tuple[AbstractFileSystem, str]:
        from fsspec import available_protocols, get_filesystem_class, url_to_fs

        protocol = re.split("::|://", url)[0] if is_url(url) else "file"
        if protocol not in available_protocols():
            raise ParameterError(f"{self}: expected a URL, found the protocol {protocol}, which fsspec does not know")
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = f"install the extra {extra}, as by pip install '.[{extra}]'" if extra else shown(error)
            raise StoreError(f"{self}: cannot be read without another package; {remedy}") from None
        own = {name: dict(value) if isinstance(value, Mapping) else value for name, value in self.options.items()}
        with self.errors():
            fs, path = url_to_fs(url, **{**own, **options})  # which writes into the options of a protocol
        return fs, str(path)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Make one clear error of whatever a file system raises, apart from what is just not there."""
        try:
            yield
        except (FeatureStoreError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # each protocol has its own
            found = self._without_secrets(" ".join(str(error).split()) or type(error).__name__)[:_LONGEST]
            remedy = f"check the path, the network, and {spelled('storage_options')}"
            raise StoreError(f"{self}: cannot be read ({shown(found)}); {remedy}") from None

    def _without_secrets(self, text: str) -> str:
        """Leave out of a message whatever may be secret: what the options say, apart from plain URLs, and queries."""
        for value in sorted(_texts(self.options), key=len, reverse=True):
            if len(value) >= _SHORTEST_SECRET and not re.fullmatch(r"https?://[^@?]*", value):
                text = text.replace(value, "***")
        return without_secrets(text)


Location = Path | ReadOnlyPath
"""Where a store is."""


def location(path: PathLike | ReadOnlyPath, storage_options: StorageOptions | None = None) -> Location:
    """Read the place of a store: a path of this machine, of a folder or of a zip of it, or a URL.

    Nothing is opened yet.

    Parameters
    ----------
    path : str or PathLike
        The store.
    storage_options : mapping, optional
        What fsspec needs to open a URL.

    Raises
    ------
    ParameterError
        If `path` is neither, or there are `storage_options` without a URL.
    """
    if isinstance(path, ReadOnlyPath):
        return path
    options = checked_options(storage_options)
    if is_url(path) and not path.startswith("file:"):
        return ReadOnlyPath(path, options)
    if options:
        raise ParameterError(
            f"{spelled('storage_options')}: expected a URL with it, found {brief(str(path))}; leave it out"
        )
    if isinstance(path, Path) and re.match("[a-z][a-z0-9+.-]+:/", str(path)) and not path.exists():
        raise ParameterError(
            f"{shown(path)}: expected a path or a URL, found what pathlib makes of one; write it as text"
        )
    found = as_path(path.removeprefix("file://") if isinstance(path, str) else path)
    return ReadOnlyPath(str(found)) if found.suffix == ".zip" and found.is_file() else found


def checked_options(storage_options: StorageOptions | None) -> StorageOptions:
    """Check what is to be given to fsspec, without showing it; raises ParameterError."""
    if not isinstance(options := storage_options or {}, Mapping) or not all(isinstance(name, str) for name in options):
        expected = "expected options by name, such as key and secret"
        raise ParameterError(f"{spelled('storage_options')}: {expected}, found {type(options).__name__}")
    return options


def remedy(place: Location) -> str:
    """Say what to do where something in a store is missing or damaged."""
    return place.remedy if isinstance(place, ReadOnlyPath) else "see `verify`, ingest into a new store"


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in some options, however nested."""
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)
