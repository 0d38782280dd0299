"""Reading NPZ archives from strangers: nothing is unpickled, allocated or believed before it is checked.

Faster than `numpy.load`, because members are inflated by libdeflate. That goes round `zipfile`'s own checks, so
the CRC-32 is compared here. The zip format: APPNOTE 6.3; the npy format: NEP 1.
"""

from __future__ import annotations

import hashlib
import io
import math
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Self

import deflate
import numpy as np

from featurestore.errors import NpzError, shown

if TYPE_CHECKING:
    from collections.abc import Buffer, Iterator, Mapping

    from numpy.typing import NDArray

MAX_MEMBERS = 1_000
MAX_ARRAY_BYTES = 8 << 30
MAX_HEADER_BYTES = 16 << 10
MAX_DEFLATE_RATIO = 1032
"""No DEFLATE stream expands further (https://zlib.net/zlib_tech.html), so a greater claim is a lie."""

_USUAL_HEADER_BYTES = 256
_PIECE_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Header(NamedTuple):
    """What an npy header says of its array, once the member's size has confirmed it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int


class Archive:
    """The arrays of one NPZ file; a context manager.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    NpzError
        From any method, if the file is not a sound NPZ archive, naming the file and the array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):  # not even opened: a pipe would block, a device has no end
                found = _KINDS.get(stat.S_IFMT(mode), "something else")
                problem = f"cannot be read: expected a file, found {found}; remove it, or check the path"
                raise NpzError.of(path, problem)
            self._file: IO[bytes] = path.open("rb")
        except OSError as error:
            raise NpzError.of(path, f"cannot be read ({error.strerror})") from error
        try:
            self._members = self._directory()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        """Names of the arrays, in the archive's order."""
        return list(self._members)

    @property
    def digest(self) -> str:
        """SHA-256 over every array's name, size and CRC-32, as hex digits.

        Depends on the content alone, not on compression, order or time stamps, and costs no more than reading the
        archive's directory. The CRCs are compared with the data whenever an array is read.
        """
        return self.digest_with({})

    def digest_with(self, others: Mapping[str, NDArray[Any]]) -> str:
        """Return the `digest` of the same archive, if some arrays in it were others, as numpy saves them."""
        sums = {name: (member.file_size, member.CRC) for name, member in self._members.items()}
        for name, array in others.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, allow_pickle=False)
            sums[name] = len(stream.getvalue()), zlib.crc32(stream.getvalue())
        lines = sorted(f"{name} {size} {crc:08x}\n" for name, (size, crc) in sums.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def header(self, name: str) -> Header:
        """Shape and dtype of an array, without reading its data."""
        member = self._member(name)
        for limit in (_USUAL_HEADER_BYTES, MAX_HEADER_BYTES):
            head = self._read(member, min(member.compress_size, limit))
            if member.compress_type == zipfile.ZIP_DEFLATED:
                try:
                    head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, limit)
                except zlib.error as error:
                    raise self.error(name, f"is damaged ({error}); write the file again") from error
            if _header_size(head) <= limit:
                break
        return self._checked_header(name, member, head)

    def array(self, name: str, max_bytes: int = MAX_ARRAY_BYTES) -> NDArray[Any]:
        """Read an array, compare its CRC-32, and return it writable and in native byte order."""
        member = self._member(name, max_bytes)
        data = bytearray(self._read(member, member.compress_size))
        if member.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = deflate.deflate_decompress(data, member.file_size)
            except (deflate.DeflateError, ValueError) as error:
                raise self.error(name, f"is damaged (inflating: {error}); write the file again") from error
        if len(data) != member.file_size or deflate.crc32(data) != member.CRC:
            raise self.error(name, "fails its CRC-32 check: damaged; write the file again")
        header = self._checked_header(name, member, bytes(data[:MAX_HEADER_BYTES]))
        order: Literal["C", "F"] = "F" if header.fortran_order else "C"
        try:
            array: NDArray[Any] = np.ndarray(header.shape, header.dtype, data, header.offset, order=order)
        except (ValueError, TypeError, OverflowError) as error:
            raise self.error(name, f"has a shape that numpy cannot hold ({error}); write the file again") from error
        if header.dtype.kind == "U":
            self._check_unicode(name, header, data, header.offset)
        return array.astype(header.dtype.newbyteorder("="), copy=False)

    def texts(self, name: str, max_bytes: int = MAX_ARRAY_BYTES) -> list[str]:
        """Read an array of text (numpy 'U'), flat, and compare its CRC-32; piece by piece, as most of it is padding."""
        member, header = self._member(name, max_bytes), self.header(name)
        width = header.dtype.itemsize
        texts = [""] * (0 if width else math.prod(header.shape))
        rest, before = b"", header.offset
        for piece in self._pieces(member, max(_PIECE_BYTES, width)):
            data = rest + piece[before:]
            before = max(0, before - len(piece))
            whole = len(data) // width * width if width else 0
            self._check_unicode(name, header, data[:whole])
            texts += np.frombuffer(data[:whole], header.dtype).tolist() if whole else []
            rest = data[whole:]
        return texts

    def _check_unicode(self, name: str, header: Header, data: Buffer, offset: int = 0) -> None:
        code_points = np.frombuffer(data, np.dtype("u4").newbyteorder(header.dtype.byteorder), offset=offset)
        if np.any(code_points > sys.maxunicode):
            raise self.error(name, "holds characters beyond Unicode: damaged; write the file again")

    def _pieces(self, member: zipfile.ZipInfo, step: int) -> Iterator[bytes]:
        """Yield a member's data in pieces of at most `step` bytes; at the end, fail if its size or CRC-32 differ."""
        name = member.filename.removesuffix(".npy")
        inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.compress_type == zipfile.ZIP_DEFLATED else None
        left, size, crc = member.compress_size, 0, 0
        stored = self._read(member, min(left, step))
        while stored and size <= member.file_size:
            left -= len(stored)
            while stored:
                try:
                    piece = inflater.decompress(stored, step) if inflater else stored
                except zlib.error as error:
                    raise self.error(name, f"is damaged (inflating: {error}); write the file again") from error
                stored = inflater.unconsumed_tail if inflater else b""
                size, crc = size + len(piece), zlib.crc32(piece, crc)
                yield piece
            stored = self._file.read(min(left, step))
        if size != member.file_size or crc != member.CRC:
            raise self.error(name, "fails its CRC-32 check: damaged; write the file again")

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self._file) as archive:
                members = archive.infolist()
            self._size = self._file.seek(0, io.SEEK_END)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            EOFError,
            struct.error,
            OverflowError,
        ) as error:
            found = f"expected an NPZ (zip) archive, found something else or a truncated one ({error}); write it again"
            raise NpzError.of(self.path, found) from error
        except OSError as error:
            raise NpzError.of(self.path, f"cannot be read ({error.strerror or error})") from error
        if len(members) > MAX_MEMBERS:
            raise NpzError.of(self.path, f"{len(members):,} arrays, more than the limit of {MAX_MEMBERS:,}")
        named = {member.filename.removesuffix(".npy"): member for member in members}
        if len(named) < len(members):
            raise NpzError.of(self.path, "an array name appears twice; write the file again")
        return named

    def _member(self, name: str, max_bytes: int = MAX_ARRAY_BYTES) -> zipfile.ZipInfo:
        if name not in self._members:
            raise self.error(name, f"is missing; the file has {', '.join(map(shown, self._members)) or 'none'}")
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise self.error(name, "is encrypted or compressed by another method than DEFLATE; write it with numpy")
        if member.file_size > max_bytes:
            claim = f"{member.file_size:,} bytes, more than the limit of {max_bytes:,}"
            raise self.error(name, f"has {claim}; leave the file out, or divide what it holds")
        longest = member.compress_size
        if member.compress_type == zipfile.ZIP_DEFLATED:
            longest = MAX_DEFLATE_RATIO * (member.compress_size + 1)
        if member.file_size > longest or (longest == member.compress_size != member.file_size):
            raise self.error(name, f"claims {member.file_size:,} bytes, which its stored bytes cannot hold")
        return member

    def _read(self, member: zipfile.ZipInfo, size: int) -> bytes:
        """Return the first `size` stored bytes of a member."""
        name = member.filename.removesuffix(".npy")
        try:
            self._file.seek(member.header_offset)
            local = self._file.read(_LOCAL_HEADER.size)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(local)
            start = self._file.seek(name_length + extra_length, io.SEEK_CUR)
            if signature != b"PK\3\4" or start + member.compress_size > self._size:
                raise ValueError("no local header")
            return self._file.read(size)
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise self.error(
                name, "is not where the archive's directory says: damaged; write the file again"
            ) from error

    def _checked_header(self, name: str, member: zipfile.ZipInfo, head: bytes) -> Header:
        try:
            header = _parsed(head[: _header_size(head)])
            shape, dtype = header.shape, header.dtype
        except Exception as error:  # numpy evaluates the header as Python, which can fail in any way
            if isinstance(error.__cause__, TypeError):  # the header is sound, but numpy.dtype does not take its dtype
                found = f"has a dtype that numpy does not know ({str(error)[:100]})"
                raise self.error(name, f"{found}, such as float8 or bfloat16; save it as float32") from error
            raise self.error(name, "has no valid npy header: damaged; write the file again") from error
        if dtype.hasobject:
            raise self.error(name, "holds pickled objects, which are never loaded; save plain numbers or text")
        if dtype.names or dtype.subdtype:
            raise self.error(name, f"must hold plain numbers or text, found {dtype}; write the file again")
        plain = all(type(size) is int and size >= 0 for size in shape)
        if not plain or header.offset + math.prod(shape) * dtype.itemsize != member.file_size:
            raise self.error(name, f"has shape {shape} of {dtype}, which does not fit its {member.file_size:,} bytes")
        return header

    def error(self, name: str, problem: str) -> NpzError:
        """Make the error that says what is wrong with an array of this file."""
        return NpzError.of(self.path, f"array '{shown(name)}' {problem}")


def _header_size(head: bytes) -> int:
    """Return how long a header says that it is, from the beginning of the file; its first 12 bytes tell."""
    width = 2 if head[6:7] == b"\1" else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


@lru_cache(maxsize=1024)
def _parsed(head: bytes) -> Header:
    """Read an npy header, which most files of an extraction have in common; numpy may raise anything."""
    stream = io.BytesIO(head)
    with warnings.catch_warnings(action="ignore"):
        version = np.lib.format.read_magic(stream)
        # 3.0 differs from 2.0 in the encoding of fields' names alone, and arrays with fields are refused
        read = {(1, 0): np.lib.format.read_array_header_1_0} | dict.fromkeys(
            [(2, 0), (3, 0)], np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read[version](stream)
    return Header(shape, dtype, fortran_order, stream.tell())
