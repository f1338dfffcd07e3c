"""How a model is attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from seguro.core.errors import ConfigError
from seguro.core.types import Case

Center = Literal["foreground", "middle"]
Box = Literal["own", "window"]


@dataclass(frozen=True)
class AttackOptions:
    """How a model is attacked."""

    suite: str = "strong"
    """See `seguro.attacks.ensemble.suite`."""
    eps: str = "0,5,8,16"
    """Strengths, see `seguro.attacks.threat.parse_epsilons`."""
    steps: int = 20
    restarts: int = 1
    queries: int = 500
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of single attacks, by the attack's name in the tables; see `seguro.attacks.tuning`."""
    whole_volume: bool = False
    """Attack the volume through its blended windows instead of one patch of each case."""
    center: Center = "foreground"
    """Of the patch; foreground needs the truth, as published."""
    box: Box = "own"
    threshold: float | None = None
    """Mean Dice below which a case is broken; None: half of the mean clean Dice."""
    cases: str = "validation"
    limit: int | None = None
    """So many cases, evenly spread over the list; None for all."""
    save: bool = False
    """Also write the attacked volumes as NIfTI; only of whole volumes."""
    check: int = 3
    """Cases on which convergence and the unbounded attack are checked."""
    seed: int = 0
    device: str = "cpu"
    memory_gib: float | None = None
    """Memory that whole volumes may take; None: what is free. Changes no result."""

    def __post_init__(self) -> None:
        """Refuse what would have no sense."""
        for name, value, known in (
            ("center", self.center, get_args(Center)),
            ("box", self.box, get_args(Box)),
        ):
            if value not in known:
                raise ConfigError(f"--{name} {value}: expected {', '.join(known)}")
        if self.check < 0:
            raise ConfigError(f"check {self.check}: a number of cases, 0 for none")
        if min(self.steps, self.restarts, self.queries, self.limit or 1) < 1:
            raise ConfigError("iterations, restarts, queries and limit must be at least 1")
        if self.memory_gib is not None and not (self.whole_volume and self.memory_gib > 0):
            raise ConfigError(
                f"--memory {self.memory_gib:g}: GiB above 0 that whole volumes may take; it has no effect "
                "without --whole-volume"
            )
        if self.save and not self.whole_volume:
            raise ConfigError("--save writes whole volumes: add --whole-volume")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold}: a Dice above 0, at most 1")


def spread(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """Return at most `limit` cases, evenly spread over the list."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[int(i)] for i in np.linspace(0, len(cases) - 1, limit).round()]
