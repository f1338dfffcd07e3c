"""How long a training lasts and how often it is looked at: updates, or a time budget turned into updates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PROBE_UPDATES = 4
"""Updates after which a time budget is first turned into a number of updates."""
VALIDATION_SHARE = 0.1
"""Largest part of a time budget that validations may take (but never fewer than MIN_VALIDATIONS)."""
MIN_VALIDATIONS = 4


class Clock:
    """Time spent on a training over all resumes, and the part of it spent in validations."""

    def __init__(self) -> None:
        self.validations = 0
        self.validating = 0.0
        """Seconds spent in validations."""
        self._start(0.0, 0.0)

    def _start(self, spent: float, spent_cpu: float) -> None:
        self._spent, self._since = spent, time.monotonic()
        self._spent_cpu, self._since_cpu = spent_cpu, time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._spent + time.monotonic() - self._since

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of this process so far, over all threads."""
        return self._spent_cpu + time.process_time() - self._since_cpu

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Count what is done inside as one validation."""
        started = time.monotonic()
        yield
        self.validating += time.monotonic() - started
        self.validations += 1

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {
            "spent_s": self.seconds,
            "spent_cpu_s": self.cpu_seconds,
            "validating_s": self.validating,
            "validations": self.validations,
        }

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` returned."""
        self._start(float(facts["spent_s"]), float(facts["spent_cpu_s"]))
        self.validating, self.validations = float(facts["validating_s"]), int(facts["validations"])


@dataclass(frozen=True)
class Limits:
    """How long to train and how often to look.

    Exactly one of `updates` and `budget_s` is given. With a time budget the number of updates is estimated
    after the first few, again at each validation, and written to the log; such a run depends on the machine's
    speed.
    """

    updates: int | None = None
    budget_s: float | None = None
    validations: int = 20
    """Number of validations (and checkpoints) over the whole training."""
    patience: int = 0
    """Stop after so many validations without improvement; 0 for never."""

    def planned_validations(self, clock: Clock) -> int:
        """Return the validations of the training: as asked, fewer where they would eat a time budget."""
        if self.budget_s is None or not clock.validations:
            return self.validations
        each = clock.validating / clock.validations
        affordable = int(VALIDATION_SHARE * self.budget_s / max(each, 1e-3))
        return min(self.validations, max(affordable, MIN_VALIDATIONS))

    def step(self, updates: int, clock: Clock) -> int:
        """Return the updates from one look to the next, of a training of so many updates."""
        return max(1, round(updates / max(self.planned_validations(clock), 1)))

    def estimate(self, update: int, clock: Clock) -> tuple[int, float]:
        """Return how many updates fit the time budget after `update` of them, and the seconds of one."""
        per_update = (clock.seconds - clock.validating) / update
        per_validation = clock.validating / max(clock.validations, 1)
        to_come = max(self.planned_validations(clock) + 1 - clock.validations, 1)
        left = (self.budget_s or 0.0) - clock.seconds - per_validation * to_come
        return update + int(max(left, 0.0) / per_update), per_update

    def seconds_left(self, update: int, updates: int, clock: Clock) -> float:
        """Return the seconds to the end, after `update` of `updates` updates."""
        if self.budget_s is not None:
            return max(self.budget_s - clock.seconds, 0.0)
        return clock.seconds / max(update, 1) * (updates - update)
