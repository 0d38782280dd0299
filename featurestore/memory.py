"""How much memory is left, so that what cannot fit is refused before the system kills the process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that can be allocated without swapping: of the system, or of the control groups (v1 or v2) of this process.

    Returns
    -------
    int or None
        None where the system does not tell.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo"), re.MULTILINE)
    return min([int(found[1]) << 10 if found else None, *_left_in_groups()], key=_or_infinite)


def _left_in_groups() -> Iterator[int | None]:
    """Yield what each control group has left: its limit less what it uses, but for the page cache it can give up."""
    for line in _read(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit, usage = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        top = _CGROUP / controllers
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            yield _left(group, limit, usage)
            if group == top:
                break


def _left(group: Path, limit: str, usage: str) -> int | None:
    allowed, used = _read(group / limit).strip(), _read(group / usage).strip()
    if not (allowed.isdecimal() and used.isdecimal()):
        return None
    stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _read(group / "memory.stat"), re.MULTILINE))
    # In version 1 only what is named total_ is, as the usage, that of the groups below, too.
    cache = sum(int(stat.get(f"total_{name}", stat.get(name, "0"))) for name in ("active_file", "inactive_file"))
    return max(0, int(allowed) - int(used) + cache)


def _or_infinite(number: int | None) -> float:
    return float("inf") if number is None else number


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
