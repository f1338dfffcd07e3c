"""Auto-PGD: gradient ascent that chooses its own step sizes (Croce & Hein 2020), per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seguro.attacks.objectives import objective_of
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Best, Found, Victim, rose, uniform
from seguro.core.errors import ConfigError

MOMENTUM = 0.75
"""Weight of the new step against the last one."""
RISING = 0.75
"""Share of steps between checkpoints that must raise the objective, or the step is halved."""
FIRST, SHRINK, SHORTEST = 0.22, 0.03, 0.06
"""First interval between checkpoints, by how much each is shorter, and the shortest; shares of all steps."""
SHARES = (0.3, 0.3, 0.4)
"""Of the steps, for each of three radii (Croce, Singh & Hein 2024, SEA)."""
SEA_RADII = (2.0, 1.5, 1.0)
"""In units of epsilon."""


def checkpoints(steps: int) -> dict[int, int]:
    """Return {number of steps taken: steps since the last checkpoint} at which steps are reconsidered.

    Example:
        >>> checkpoints(20)
        {4: 4, 7: 3, 9: 2, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1, 15: 1, 16: 1, 17: 1, 18: 1, 19: 1, 20: 1}
    """
    interval, shrink, shortest = (max(int(share * steps), 1) for share in (FIRST, SHRINK, SHORTEST))
    at, found = 0, {}
    while at + interval <= steps:
        at += interval
        found[at] = interval
        interval = max(interval - shrink, shortest)
    return found


def random_start(x: Tensor, threat: Threat, seeds: Sequence[int], restart: int) -> Tensor:
    """Return x (N, C, *size) plus epsilon times uniform noise whose largest value is one, in the box."""
    u = uniform(seeds, f"start/{restart}", x.shape[1:], x)
    u = u / u.flatten(1).abs().amax(1).clamp(min=1e-12).reshape(-1, *[1] * (x.ndim - 1))
    return threat.project(x + threat.spread(threat.eps, x) * u, x)


class _Climb:
    """N independent ascents in one ball.

    Args:
        clean: (N, C, *size).
        threat: the ball and box to stay in.
        at: (N, C, *size) where to start.
    """

    def __init__(self, clean: Tensor, threat: Threat, at: Tensor) -> None:
        self.clean, self.threat, self.at, self.before = clean, threat, at, at
        n = len(at)
        self.best = at.new_full((n,), -torch.inf)
        """(N,) highest value of the objective so far."""
        self.best_at, self.best_gradient = at, torch.zeros_like(at)
        self.gradient = self.best_gradient
        self.step = at.new_full((n,), 2.0)
        """(N,) in units of epsilon."""
        self._last, self._best_then = self.best, self.best
        self._rises, self._moved = at.new_zeros(n), False
        self._halved = torch.ones(n, dtype=torch.bool, device=at.device)

    def record(self, value: Tensor, gradient: Tensor) -> None:
        """Take the value (N,) and gradient at the current points into account."""
        value = torch.nan_to_num(value, -torch.inf, torch.inf, -torch.inf)
        self._rises = self._rises + ((value > self._last) & self._last.isfinite())
        self._last, self.gradient = value, gradient
        better = value > self.best
        self.best = torch.where(better, value, self.best)
        self.best_at = torch.where(self._wide(better), self.at, self.best_at)
        self.best_gradient = torch.where(self._wide(better), gradient, self.best_gradient)

    def reconsider(self, interval: int) -> None:
        """Halve the step of samples that oscillate or are stuck, and put them back to their best point."""
        stuck = ~self._halved & (self.best <= self._best_then)
        self._halved = (self._rises < RISING * interval) | stuck
        self._best_then, self._rises = self.best, torch.zeros_like(self._rises)
        self.step = torch.where(self._halved, self.step / 2, self.step)
        self.at = torch.where(self._wide(self._halved), self.best_at, self.at)
        self.gradient = torch.where(self._wide(self._halved), self.best_gradient, self.gradient)

    def move(self) -> None:
        """Take one step, with momentum after the first (then the last two points are the same)."""
        size = self.threat.spread(self.threat.eps * self.step[:, None], self.at)
        z = self.threat.project(self.at + size * self.gradient.sign(), self.clean)
        weight = MOMENTUM if self._moved else 1.0
        new = self.at + weight * (z - self.at) + (1 - weight) * (self.at - self.before)
        self.before, self.at, self._moved = self.at, self.threat.project(new, self.clean), True

    def _wide(self, flag: Tensor) -> Tensor:
        """Return flag (N,) shaped to broadcast over images."""
        return flag.reshape(-1, *[1] * (self.at.ndim - 1))


class ZeroGradients:
    """Counts per sample how often the whole gradient was zero while Dice was left to lose."""

    def __init__(self, x: Tensor) -> None:
        self._zero, self._calls = x.new_zeros(len(x)), 0

    def see(self, gradient: Tensor, score: Tensor) -> None:
        """Count one gradient (N, C, *size) at points with these scores (N,)."""
        self._zero = self._zero + ((gradient == 0).flatten(1).all(1) & (score > 0))
        self._calls += 1

    @property
    def share(self) -> Tensor:
        """(N,) share of the calls."""
        return self._zero / max(self._calls, 1)


@dataclass(frozen=True)
class APGD:
    """Auto-PGD on any objective; what is returned is the input with the lowest hard Dice.

    Args:
        objective: a name in OBJECTIVES.
        steps: gradient calls of each restart; one further forward call measures the last point.
        restarts: each from its own random start.
        radii: go through larger balls first, as SEA_RADII times epsilon, with SHARES of the steps; only
            points in the last ball, of radius 1, count.
        name: in files and tables; "apgd-<objective>" by default.

    Raises:
        ConfigError: unknown objective, too few steps, or radii that do not fall to 1.
    """

    objective: str = "ce"
    steps: int = 20
    restarts: int = 1
    radii: tuple[float, float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        objective_of(self.objective)
        object.__setattr__(self, "name", self.name or f"apgd-{self.objective}")
        least = 3 if self.radii else 1
        if self.steps < least or self.restarts < 1:
            raise ConfigError(
                f"{self.name} needs at least {least} steps and one restart, found {self.steps} and "
                f"{self.restarts}"
            )
        if self.radii and (self.radii[-1] != 1 or list(self.radii) != sorted(self.radii, reverse=True)):
            raise ConfigError(f"radii must fall to 1, as {SEA_RADII}; found {self.radii}")

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Attack x (N, C, *size); see `Attack`."""
        best, watch = Best(victim, x, threat), ZeroGradients(x)
        traces = [
            self._restart(victim, best, watch, x, threat, seeds, restart) for restart in range(self.restarts)
        ]
        trace = traces[0]
        for more in traces[1:]:
            trace = torch.cat([trace, torch.maximum(more, trace[-1])])
        return best.found(self.name, trace=trace, rose=rose(*traces), zero=watch.share)

    def _restart(
        self,
        victim: Victim,
        best: Best,
        watch: ZeroGradients,
        x: Tensor,
        threat: Threat,
        seeds: Sequence[int],
        restart: int,
    ) -> Tensor:
        """Climb once from a random start and return the best value so far (steps in the last ball, N)."""
        objective, stages = objective_of(self.objective), self._stages()
        at, done = random_start(x, threat.scaled(stages[0][0]), seeds, restart), 0
        for radius, steps in stages:
            ball, counts = threat.scaled(radius), radius == 1
            climb, trace, intervals = _Climb(x, ball, ball.project(at, x)), [], checkpoints(steps)
            for i in range(steps):
                value, gradient, logits = victim.ascend(climb.at, objective, (done + i) / self.steps)
                score = best.see(climb.at, logits) if counts else victim.score(logits)
                watch.see(gradient, score)
                climb.record(value, gradient)
                trace.append(climb.best)
                if i in intervals:
                    climb.reconsider(intervals[i])
                climb.move()
            at, done = climb.best_at, done + steps
        best.see(climb.at, victim.logits(climb.at))
        return torch.stack(trace)

    def _stages(self) -> list[tuple[float, int]]:
        """Return (radius in units of epsilon, steps) of each ball."""
        if self.radii is None:
            return [(1.0, self.steps)]
        early = [max(1, round(share * self.steps)) for share in SHARES[:2]]
        return list(zip(self.radii, [*early, self.steps - sum(early)], strict=True))
