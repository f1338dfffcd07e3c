"""Learning-rate factors from the declarative `Schedule` of a method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seguro.methods.contract import Schedule

PLATEAU_THRESHOLD = 1e-4
"""A validation counts as improvement when it is better by this relative amount."""


@dataclass
class PlateauState:
    """What a plateau schedule remembers between validations."""

    best: float | None = None
    waited: int = 0
    factor: float = 1.0

    def observe(self, score: float, *, higher_is_better: bool, schedule: Schedule) -> None:
        """Take one validation score into account."""
        signed = score if higher_is_better else -score
        if self.best is None or signed > self.best + PLATEAU_THRESHOLD * abs(self.best):
            self.best, self.waited = signed, 0
            return
        self.waited += 1
        if self.waited > schedule.patience:
            self.factor *= schedule.factor
            self.waited = 0


def factor(schedule: Schedule, update: int, updates: int, plateau: PlateauState) -> float:
    """Return what the learning rate is multiplied by at `update` of `updates`.

    Example:
        >>> factor(Schedule("poly", power=1.0), 25, 100, PlateauState())
        0.75
    """
    progress = min(max(update / updates, 0.0), 1.0)
    rise = min(1.0, (progress + 1e-9) / schedule.warmup) if schedule.warmup > 0 else 1.0
    if schedule.kind == "poly":
        return float(rise * (1 - progress) ** schedule.power)
    if schedule.kind == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "step":
        return float(rise * schedule.factor ** (update // schedule.every))
    if schedule.kind == "plateau":
        return rise * plateau.factor
    return rise
