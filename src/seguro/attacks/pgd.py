"""Projected gradient descent with a fixed or falling step, and the control of random signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seguro.attacks.apgd import ZeroGradients, random_start
from seguro.attacks.objectives import objective_of
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Best, Found, Victim, rose, uniform
from seguro.core.errors import ConfigError


@dataclass(frozen=True)
class PGD:
    """Steps along the sign of the gradient (Madry et al. 2018), of fixed length by default.

    With `steps=1, step=1, start="clean"` the only point tried is x + epsilon * sign(gradient), in the box
    (the fast gradient sign method). `falling` makes a strong attack of few steps.

    Args:
        objective: a name in OBJECTIVES.
        steps: gradient calls of each restart; one further forward call measures the last point.
        restarts: each from its own random start.
        step: in units of epsilon; of the first step, where it falls.
        decay: "linear" lets the step fall from `step` to `step` / `steps`.
        momentum: weight of earlier gradients, each scaled to a mean size of one (Dong et al. 2018).
        start: "random" in the ball, or "clean": the first search starts at the image itself.
        name: in files and tables; "pgd-<objective>" by default.

    Raises:
        ConfigError: unknown objective, or settings out of range.
    """

    objective: str = "ce"
    steps: int = 20
    restarts: int = 1
    step: float = 0.25
    decay: Literal["none", "linear"] = "none"
    momentum: float = 0.0
    start: Literal["random", "clean"] = "random"
    name: str = ""

    def __post_init__(self) -> None:
        objective_of(self.objective)
        object.__setattr__(self, "name", self.name or f"pgd-{self.objective}")
        if self.steps < 1 or self.restarts < 1 or self.step <= 0 or self.momentum < 0:
            raise ConfigError(
                f"{self.name} needs steps and restarts of at least 1, a step above 0 and a momentum of 0 "
                f"or more; found {self.steps}, {self.restarts}, {self.step} and {self.momentum}"
            )

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Attack x (N, C, *size); see `Attack`."""
        best, watch, objective = Best(victim, x, threat), ZeroGradients(x), objective_of(self.objective)
        size, values = threat.spread(threat.eps * self.step, x), []
        for restart in range(self.restarts):
            clean = self.start == "clean" and restart == 0
            at = x if clean else random_start(x, threat, seeds, restart)
            memory = torch.zeros_like(x)
            for i in range(self.steps):
                value, gradient, logits = victim.ascend(at, objective, i / self.steps)
                watch.see(gradient, best.see(at, logits))
                values.append(torch.nan_to_num(value, -torch.inf, torch.inf, -torch.inf))
                memory = self.momentum * memory + _unit(gradient)
                left = 1 - i / self.steps if self.decay == "linear" else 1.0
                at = threat.project(at + left * size * memory.sign(), x)
            best.see(at, victim.logits(at))
        seen = torch.stack(values)
        climbs = torch.split(seen, self.steps)
        return best.found(self.name, trace=seen.cummax(0).values, rose=rose(*climbs), zero=watch.share)


def falling(objective: str, steps: int, restarts: int) -> PGD:
    """Return PGD whose step falls from twice epsilon to zero, from the clean image on: "fpgd-OBJECTIVE"."""
    return PGD(objective, steps, restarts, 2.0, "linear", start="clean", name=f"fpgd-{objective}")


def _unit(gradient: Tensor) -> Tensor:
    """Return gradients (N, C, *size) scaled to a mean absolute value of one in each sample."""
    size = gradient.abs().flatten(1).mean(1).reshape(-1, *[1] * (gradient.ndim - 1))
    return torch.where(size > 0, gradient / size, gradient)


@dataclass(frozen=True)
class Noise:
    """The control: random signs of size epsilon at every voxel, the worst of a few draws.

    What it costs is what the size of a change costs, not the attack.
    """

    draws: int = 3
    name: str = "noise"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"the noise control needs at least one draw, found {self.draws}")

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Try the draws on x (N, C, *size); see `Attack`."""
        best, size = Best(victim, x, threat), threat.spread(threat.eps, x)
        for draw in range(self.draws):
            sign = torch.where(uniform(seeds, f"sign/{draw}", x.shape[1:], x) < 0, -1.0, 1.0)
            at = threat.project(x + size * sign, x)
            best.see(at, victim.logits(at))
        return best.found(self.name)
