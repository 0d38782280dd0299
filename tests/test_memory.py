"""How much memory is left, by what the system and the control groups say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestore import memory

MIB = 1 << 20
UNLIMITED_1 = 9223372036854771712


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with 8,000 MiB available; returns what writes files of it."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")

    def write(name: str, text: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    write(
        "proc/meminfo",
        f"MemTotal:       16777216 kB\nMemFree:  1024 kB\nMemAvailable:   {8000 << 10} kB\nBuffers: 1 kB",
    )
    return write


def group(write: Any, folder: str, *, limit: object, used: int, version: int = 2, **stat: int) -> None:
    """Write a control group; sizes in MiB."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write(f"cgroup/{folder}/{names[0]}", limit * MIB if isinstance(limit, int) and limit < MIB else limit)
    write(f"cgroup/{folder}/{names[1]}", used * MIB)
    write(f"cgroup/{folder}/memory.stat", "\n".join(f"{name} {size * MIB}" for name, size in stat.items()))


def test_of_this_machine() -> None:
    left = memory.available()
    assert left is None or left > MIB


def test_of_the_system(machine: Any) -> None:
    assert memory.available() == 8000 * MIB
    machine("proc/self/cgroup", "0::/user.slice/session.scope")  # whose files are not there
    assert memory.available() == 8000 * MIB


def test_where_nothing_is_known(tmp_path: Path, machine: Any) -> None:
    (tmp_path / "proc" / "meminfo").unlink()
    assert memory.available() is None
    machine("proc/self/cgroup", "0::/")
    group(machine, "", limit="max", used=10)
    assert memory.available() is None
    group(machine, "", limit=100, used=10)
    assert memory.available() == 90 * MIB


def test_of_a_group(machine: Any) -> None:
    """Its page cache can be given up; that of shared memory cannot, and is in `file` alone."""
    machine("proc/self/cgroup", "0::/job")
    group(machine, "job", limit=1000, used=900, anon=100, file=800, shmem=50, active_file=500, inactive_file=250)
    assert memory.available() == (1000 - 900 + 750) * MIB
    group(machine, "job", limit=1000, used=900)
    assert memory.available() == 100 * MIB
    group(machine, "job", limit=1000, used=1010)
    assert memory.available() == 0
    group(machine, "job", limit=9000, used=500)
    assert memory.available() == 8000 * MIB
    group(machine, "job", limit="max", used=500)
    assert memory.available() == 8000 * MIB


def test_of_the_tightest_of_nested_groups(machine: Any) -> None:
    machine("proc/self/cgroup", "0::/outer/middle/inner")
    group(machine, "outer", limit=2000, used=1500)
    group(machine, "outer/middle", limit=3000, used=100)
    group(machine, "outer/middle/inner", limit="max", used=50)
    assert memory.available() == 500 * MIB
    group(machine, "outer/middle/inner", limit=300, used=50)
    assert memory.available() == 250 * MIB
    group(machine, "other", limit=10, used=10)
    assert memory.available() == 250 * MIB


def test_of_a_container_with_a_namespace(machine: Any) -> None:
    """Whose own group is the top of all that it sees."""
    machine("proc/self/cgroup", "0::/")
    group(machine, "", limit=512, used=112, inactive_file=10)
    assert memory.available() == 410 * MIB
    machine("proc/self/cgroup", "0::/../..")  # of a process that was moved into it from outside
    assert memory.available() == 410 * MIB


def test_of_groups_of_version_1(machine: Any) -> None:
    machine("proc/self/cgroup", "12:cpu,cpuacct:/x\n5:memory:/outer/inner\n1:name=systemd:/a:b\n0::/unified")
    group(machine, "cpu,cpuacct/x", limit=1, used=1, version=1)
    group(machine, "memory", limit=UNLIMITED_1, used=5000, version=1)
    assert memory.available() == 8000 * MIB
    group(machine, "memory/outer", limit=1000, used=800, version=1, inactive_file=0, total_inactive_file=300)
    assert memory.available() == 500 * MIB
    group(machine, "memory/outer/inner", limit=400, used=390, version=1, active_file=20, total_active_file=30)
    assert memory.available() == 40 * MIB


def test_of_a_container_of_version_1(machine: Any) -> None:
    """Which sees its own group at the top, but is told of where it is on the host."""
    machine("proc/self/cgroup", "5:memory:/docker/0123abc")
    group(machine, "memory", limit=600, used=100, version=1)
    assert memory.available() == 500 * MIB
