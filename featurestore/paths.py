"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeGuard

from featurestore.errors import ParameterError, brief, shortened

PathLike = str | os.PathLike[str]

_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4095
_URL = re.compile(r"[a-z][a-z0-9+.-]*(://|::.*://)|zip::")


def is_url(path: object) -> TypeGuard[str]:
    """Tell whether something is a URL, as fsspec writes them: ``s3://bucket/a``, ``zip::s3://bucket/a.zip``."""
    return isinstance(path, str) and _URL.match(path) is not None


def without_secrets(text: str) -> str:
    """Leave out passwords and queries, which may be signatures, of the URLs in a text."""
    text = re.sub(r"((?:https?|ftp)://)[^\s/'\"]*@", r"\1***@", text)  # others have a container@account there
    text = re.sub(r"(?<=://)[^\s'\"]*:[^\s'\"]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*\?)[^\s'\")]*", r"\1***", text)


def as_path(path: PathLike) -> Path:
    """Read a path; one that starts with ``~`` is below a home folder.

    Raises
    ------
    ParameterError
        If `path` is something else, a URL, no path that a file can have, or names an unknown user.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ParameterError(f"expected a path, as text or pathlib.Path, found {brief(path)}")
    if not text:
        raise ParameterError("expected a path, found an empty text; write . for the working folder")
    if is_url(text):
        readable = "only stores are read from URLs, not folders of sentences, and nothing is written there"
        raise ParameterError(
            f"{shortened(without_secrets(text))}: expected a path of this machine, found a URL; {readable}"
        )
    try:
        found = Path(text).expanduser()
        encoded = os.fsencode(found)
    except RuntimeError as error:
        raise ParameterError(f"{shortened(text)}: names no user with a home folder; write the whole path") from error
    except UnicodeEncodeError as error:
        raise ParameterError(f"{shortened(text)}: holds characters that no file name can have; rename it") from error
    if b"\0" in encoded:
        raise ParameterError(f"{shortened(text)}: holds a NUL character, which no file name can have; rename it")
    if len(encoded) > _MAX_PATH_BYTES or max(map(len, encoded.split(b"/"))) > _MAX_NAME_BYTES:
        limits = f"at most {_MAX_NAME_BYTES} bytes a name, {_MAX_PATH_BYTES} in all"
        raise ParameterError(f"{shortened(text)}: is too long for a path; expected {limits}")
    return found


def real_path(path: Path) -> Path:
    """Return where a path leads, through symbolic links and ``..``, whether there is something yet or not."""
    return Path(os.path.realpath(path))
