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
    gflop: float | None = None
    """Operations of ours in plain forward passes, two per multiplication and addition; what running layers by
    planes computes again is left out. None where they were not counted."""
    peer_gflop: float | None = None


@dataclass(frozen=True)
class Job:
    """A row of the table: how to make the pair, and the limit that the work must keep."""

    make: Callable[[], Pair]
    repeats: int = 3
    clock: Callable[[], float] = time.perf_counter
    limit_s: float | None = None
    least_ratio: float | None = None
    """The peer must take at least so many times longer."""
    most_memory: float | None = None
    """Ours may need so much of the peer's peak memory at most."""
    memory: bool = True
    """Whether the peak memory of this process says something; not where the work is that of others."""
