"""Files that appear under their name whole, or not at all, and stay there when the power fails."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from featurestore.errors import DatasetError, naming, spelled

PARTIAL = ".partial"
"""Suffix of files being written, here and in Zarr's LocalStore."""

_CHUNK_BYTES = 1 << 20


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name only at the end of a `with` block that did not fail.

    Parameters
    ----------
    path : Path
        Its name; folders that it lacks are made. Where it is a link, the file is what the link leads to, be it there
        already or not.
    overwrite : bool
        Replace a file of other content. One of the same content is left as it is.

    Raises
    ------
    DatasetError
        If there is a file of other content, and `overwrite` is false.
    OSError
        If the disk is full or the folder cannot be written.
    """
    with naming(path):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with _nameless(target.parent) as file:
            yield file
            _flush_open(file)
            if not _publish(file, target, overwrite):
                remedy = f"choose another output, or {spelled('overwrite', True)}"
                raise DatasetError(f"{path}: exists with other content; {remedy}")


@contextmanager
def _nameless(folder: Path) -> Iterator[IO[bytes]]:
    """Open a file in `folder` that has no name yet, where the system can, so that a kill leaves nothing behind."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):  # not Linux, or a file system without nameless files
        with _spare_name(folder) as spare, spare.open("x+b") as file:
            yield file
    else:
        with os.fdopen(fd, "w+b") as file:
            yield file


@contextmanager
def _spare_name(folder: Path) -> Iterator[Path]:
    """Make up a name that nothing else has, also no other thread; what is left under it is removed."""
    spare = folder / f".{secrets.token_hex(8)}{PARTIAL}"
    try:
        yield spare
    finally:
        spare.unlink(missing_ok=True)


def _publish(file: IO[bytes], path: Path, overwrite: bool) -> bool:
    """Give a complete file its name, at once; tell whether it has it, or other content stands in its way."""
    if _link(file, path) or (path.exists() and _is_copy(file, path)):
        return True
    if path.exists() and not overwrite:
        return False
    with _spare_name(path.parent) as spare:
        if not _link(file, spare):  # a file system without hard links
            file.seek(0)
            with spare.open("xb") as copy:
                shutil.copyfileobj(file, copy, _CHUNK_BYTES)
                _flush_open(copy)
        if path.exists() and not overwrite:  # by now
            return False
        spare.replace(path)
    return True


def _link(file: IO[bytes], path: Path) -> bool:
    """Give a file another name, which never replaces one; tell whether that was possible."""
    source = file.name if isinstance(file.name, str | Path) else f"/proc/self/fd/{file.fileno()}"
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # With a folder given this is linkat, which unlike link follows the /proc link of a nameless file.
        os.link(source, path.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _is_copy(file: IO[bytes], path: Path) -> bool:
    """Tell whether another file holds the same bytes."""
    with path.open("rb") as other:
        if os.fstat(file.fileno()).st_size != os.fstat(other.fileno()).st_size:
            return False
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            if chunk != other.read(_CHUNK_BYTES):
                return False
    return True


def _flush_open(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def replace(path: Path, data: bytes, *, durably: bool = True) -> None:
    """Replace a file at once, and for good if the power fails just afterwards."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durably:
                _flush_open(file)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if durably:
        sync(path.parent)


def flush(paths: Iterable[Path]) -> None:
    """Flush files, and the entries of folders, to disk."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
