"""What `speed.py` times: two ways to do one piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Ours and the peer's way to do one piece of work; `peer` None where there is nothing to compare with."""

    size: str
    ours: Callable[[], object]
    peer_name: str | None = None
    peer: Callable[[], object] | None = None


@dataclass(frozen=True)
class Job:
    """A row of the table: how to make the pair, and the limit that the work must keep."""

    make: Callable[[], Pair]
    repeats: int = 3
    clock: Callable[[], float] = time.perf_counter
    limit_s: float | None = None
    least_ratio: float | None = None
    """The peer must take at least so many times longer."""
