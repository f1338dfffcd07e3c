"""How much memory this machine, or a container that looks like one, has left; what a process used."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class Memory(NamedTuple):
    """Bytes of main memory."""

    total: int
    available: int


def main_memory(root: Path = Path("/")) -> Memory | None:
    """Return the main memory, at most what the container's limit leaves; None where the system does not say.

    Args:
        root: of the file system; another one in tests.
    """
    try:
        text = (root / "proc/meminfo").read_text()
        rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        total, available = (int(rows[k].split()[0]) << 10 for k in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    limit = _limit(root / "sys/fs/cgroup")
    if limit is None or limit.total >= total:
        return Memory(total, available)
    return Memory(limit.total, min(available, limit.available))


def _limit(group: Path) -> Memory | None:
    """Return what the container may use in all, and of that what it does not; None without a limit."""
    for folder, most, used, cache in (
        (group, "memory.max", "memory.current", "inactive_file"),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            total, taken = (int((folder / name).read_text()) for name in (most, used))
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken -= int(rows.get(cache, 0))  # cached files give way
        except (OSError, ValueError):
            continue  # no such group, or "max"
        return Memory(total, max(total - taken, 0))
    return None


def reset_peak() -> int | None:
    """Begin a new `peak` and return the bytes that this process holds now; None where the system cannot."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def peak() -> int | None:
    """Return the most bytes that this process held at once since `reset_peak`, or since it began.

    Unlike `ru_maxrss` it holds nothing of the process that started this one. None where not told.
    """
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        line = next(s for s in STATUS.read_text().splitlines() if s.startswith(field + ":"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) << 10
