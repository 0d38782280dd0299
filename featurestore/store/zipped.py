"""The files in a zip, each read from where it lies in it: several at once, and no more than is asked for."""

from __future__ import annotations

import struct
import zipfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem

_HEADER = struct.Struct("<4s22xHH")
"""What comes before a file: a signature, and at its end the lengths of the name and of more that follow."""


class ZippedFiles:
    """The files in a zip, for Zarr, as if they were those of a file system.

    Not by `zipfile.ZipFile`, nor by fsspec's file system of it, through which only one can read at a time.

    Parameters
    ----------
    fs : AsyncFileSystem
        Where the zip is.
    path : str
        The zip.
    directory : file
        The same, to read what is in it.

    Raises
    ------
    ValueError
        If files are compressed, which cannot be read in parts.
    zipfile.BadZipFile
        If it is no zip.
    """

    async_impl = asynchronous = True

    def __init__(self, fs: AsyncFileSystem, path: str, directory: IO[bytes]) -> None:
        self._fs, self._path = fs, path
        with zipfile.ZipFile(directory) as opened:
            self._members = {member.filename: member for member in opened.infolist()}
        self._starts: dict[str, int] = {}
        if any(member.compress_type or member.flag_bits & 1 for member in self._members.values()):
            raise ValueError("expected files that are stored as they are, found compressed ones: use zip -0")

    @property
    def names(self) -> list[str]:
        """Names of all files."""
        return list(self._members)

    async def _cat_file(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if name not in self._members:
            raise FileNotFoundError(name)
        first, last, _ = slice(start, end).indices(self._members[name].file_size)
        offset = await self._start(name)
        if first >= last:
            return b""
        content: bytes = await self._fs._cat_file(self._path, start=offset + first, end=offset + last)
        return content

    async def _start(self, name: str) -> int:
        """Find out where the content of a file begins."""
        if name not in self._starts:
            offset = self._members[name].header_offset
            header = await self._fs._cat_file(self._path, start=offset, end=offset + _HEADER.size)
            if len(header) != _HEADER.size or not header.startswith(b"PK\3\4"):
                raise ValueError(f"{name} is not where the zip says")
            self._starts[name] = offset + _HEADER.size + sum(_HEADER.unpack(header)[1:])
        return self._starts[name]
