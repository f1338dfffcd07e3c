"""Square: random search that only asks for outputs, with cuboids of each sample's own.

Andriushchenko et al. 2020, ECCV, algorithms 1 and 2 (L-infinity), for volumes: the side of a cuboid is
proportional to each axis, so that flat volumes keep their shape; position, sign and acceptance are each
sample's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seguro.attacks.threat import Threat
from seguro.attacks.victim import Best, Found, Truth, Victim, rose, uniform
from seguro.core.errors import ConfigError
from seguro.losses import probabilities

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of the volume that a cuboid fills halves, out of 10,000."""
SINGLE = 0.5
"""Above this share of the volume there is room for one cuboid only."""
GAIN = 1e-7
"""Smallest fall of the soft Dice that counts; below lies rounding."""
SMOOTH = 1.0
"""Voxels added to numerator and denominator of the soft Dice."""


@dataclass(frozen=True)
class Overlap:
    """The soft Dice of N samples, and what each voxel adds to it.

    value: (N,) mean over annotated foreground classes. p: (N, F, *size) probabilities. slope: the same
    shape, derivative of the value with respect to p.
    """

    value: Tensor
    p: Tensor
    slope: Tensor

    def where(self, chosen: Tensor, other: Overlap) -> Overlap:
        """Return `other` for the samples where `chosen` (N,) is True, else this one."""
        wide = chosen.reshape(-1, *[1] * (self.p.ndim - 1))
        return Overlap(
            torch.where(chosen, other.value, self.value),
            torch.where(wide, other.p, self.p),
            torch.where(wide, other.slope, self.slope),
        )


def overlap(logits: Tensor, truth: Truth) -> Overlap:
    """Return the soft Dice of logits (N, n, *size); infinite where they are not finite."""
    p = probabilities(truth.merged(logits), truth.classes) * truth.valid.unsqueeze(1)
    hot = truth.hot
    if not truth.classes.regions:
        p, hot = p[:, 1:], hot[:, 1:]
    dims = tuple(range(2, p.ndim))
    total = p.sum(dims, keepdim=True) + hot.sum(dims, keepdim=True) + SMOOTH
    dice = (2 * (p * hot).sum(dims, keepdim=True) + SMOOTH) / total  # (N, F, 1, 1[, 1])
    share = truth.annotated / truth.annotated.sum(1, keepdim=True).clamp(min=1)
    value = (dice.flatten(1) * share).sum(1)
    slope = (2 * hot - dice) / total * share.reshape(dice.shape)
    return Overlap(torch.where(torch.isfinite(value), value, torch.inf), p, slope)


def share_at(p: float, query: float, queries: int, horizon: int | None) -> float:
    """Return the share of the volume that a cuboid fills at a query.

    Args:
        p: share at the start.
        query: number of queries made.
        queries: allowed in all.
        horizon: how far of the published 10,000 queries the schedule goes; None: query for query.

    Example:
        >>> share_at(0.8, 5, 500, None), share_at(0.8, 60, 500, None), share_at(0.8, 499, 500, 10_000)
        (0.8, 0.2, 0.0015625)
    """
    at = query if horizon is None else query * horizon / queries
    return float(p / 2 ** sum(at > limit for limit in HALVINGS))


def cuboids(draw: Tensor, share: float, size: Sequence[int], *, tiles: bool) -> tuple[Tensor, Tensor, int]:
    """Return where cuboids lie: inside (N, *size) bool, which one (N, *size) long, and their number.

    Args:
        draw: (N, d) position of each sample's cuboids, in [0, 1).
        share: of the volume that one of them fills; the side is at least one voxel and at most the axis.
        size: of the volume.
        tiles: fill the volume with cuboids instead of placing one.
    """
    n, d = draw.shape
    inside = torch.ones(n, *size, dtype=torch.bool, device=draw.device)
    which = torch.zeros(n, *size, dtype=torch.long, device=draw.device)
    count = 1
    for axis, length in enumerate(size):
        side = min(length, max(1, round(length * share ** (1 / d))))
        at = torch.arange(length, device=draw.device)
        shape = [n, *[length if a == axis else 1 for a in range(d)]]
        if tiles:
            cells = (length + side - 2) // side + 1  # whatever the offset
            tile = (at + (draw[:, axis, None] * side).floor().long()) // side
            which = which * cells + tile.reshape(shape)
            count *= cells
        else:
            first = (draw[:, axis, None] * (length - side + 1)).floor()
            inside = inside & ((at >= first) & (at < first + side)).reshape(shape)
    return inside, which, count


@dataclass(frozen=True)
class Square:
    """Random search over cuboids of changes of size epsilon.

    The published attack proposes one cuboid a query and keeps it if the objective falls. A segmentation
    tells more: its answer is local. With `tiles` every other proposal takes two queries: the first changes
    all cuboids of a tiling of the sample's own offset, the second only those whose voxels the first one
    changed for the better, and the better of both is kept if the objective falls.

    Args:
        queries: forward calls per sample and restart, besides the one of the clean input; fewer once no
            sample of the batch has Dice left to lose.
        p: share of the volume that the first cuboids fill.
        restarts: independent runs.
        oracle: what decides: "soft", the soft Dice; "dice", the Dice itself, for which labels are enough.
        tiles: as above; without effect under "dice".
        horizon: see `share_at`; 10,000 rescales the whole published schedule, None leaves it unscaled.

    Raises:
        ConfigError: settings without sense.
    """

    queries: int = 500
    p: float = 0.8
    restarts: int = 1
    oracle: Literal["soft", "dice"] = "soft"
    tiles: bool = True
    horizon: int | None = 1000
    name: str = "square"

    def __post_init__(self) -> None:
        least = min(self.queries, self.restarts, 1 if self.horizon is None else self.horizon)
        if least < 1 or not 0 < self.p <= 1:
            raise ConfigError(
                "Square needs queries, restarts and horizon of at least 1 and p in (0, 1], found "
                f"{self.queries}, {self.restarts}, {self.horizon} and {self.p}"
            )

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Attack the N samples x (N, C, *size); the trace is 1 - the deciding Dice, query by query.

        Raises:
            ConfigError: inputs outside the box.
        """
        best = Best(victim, x, threat)
        traces = [
            _Search(self, victim, x, threat, [*seeds], f"square/{r}", best).run()
            for r in range(self.restarts)
        ]
        trace = torch.cat(traces).cummax(0).values
        return best.found(self.name, trace=trace, rose=rose(*traces))


def published(queries: int = 5000) -> Square:
    """Return the attack as ROG describes it: one cuboid a query, Dice decides, schedule not rescaled."""
    return Square(queries, oracle="dice", tiles=False, horizon=None)


class _Search:
    """One run of random search on N samples."""

    def __init__(
        self,
        settings: Square,
        victim: Victim,
        x: Tensor,
        threat: Threat,
        seeds: list[int],
        key: str,
        best: Best,
    ) -> None:
        self.settings, self.victim, self.x, self.threat = settings, victim, x, threat
        self.seeds, self.key, self.best = seeds, key, best
        self.eps = threat.spread(threat.eps, x)
        self.trace: list[Tensor] = []
        self.rounds = 0

    def run(self) -> Tensor:
        """Return the trace (queries made, N)."""
        stripes = uniform(self.seeds, f"{self.key}/start", (self.x.shape[1], 1, *self.x.shape[3:]), self.x)
        self.current = self._change(stripes, self.x)
        self.value, self.now = self._ask(self.current)
        self.trace.append(1 - self.value)
        while len(self.trace) < self.settings.queries and bool((self.best.score > 0).any()):
            self._round(len(self.trace))
        return torch.stack(self.trace)

    def _round(self, query: int) -> None:
        settings, size = self.settings, self.x.shape[2:]
        share = share_at(settings.p, query, settings.queries, settings.horizon)
        self.rounds += 1
        tiles = settings.tiles and settings.oracle == "soft" and share <= SINGLE and self.rounds % 2 == 0
        place = uniform(self.seeds, f"{self.key}/{query}/place", (len(size),), self.x) / 2 + 0.5
        inside, which, count = cuboids(place, share, size, tiles=tiles)
        signs = uniform(self.seeds, f"{self.key}/{query}/sign", (self.x.shape[1], count), self.x)
        sign = torch.gather(signs, 2, which.flatten(1).unsqueeze(1).expand(-1, signs.shape[1], -1))
        proposal = self._propose(inside.unsqueeze(1), sign.reshape(self.x.shape))
        value, then = self._ask(proposal)
        self._note(value)
        if tiles and len(self.trace) < settings.queries:
            kept = self._helpful(then, which, count)
            part = torch.where(kept, proposal, self.current)
            part_value, part_then = self._ask(part)
            better = part_value < value
            proposal = torch.where(self._wide(better), part, proposal)
            value, then = torch.where(better, part_value, value), then.where(better, part_then)
            self._take(proposal, value, then)
            self._note(self.value)
        else:
            self._take(proposal, value, then)

    def _take(self, proposal: Tensor, value: Tensor, then: Overlap) -> None:
        better = value < self.value - GAIN
        self.current = torch.where(self._wide(better), proposal, self.current)
        self.value, self.now = torch.where(better, value, self.value), self.now.where(better, then)
        self.trace[-1] = torch.maximum(self.trace[-1], 1 - self.value)

    def _note(self, value: Tensor) -> None:
        self.trace.append(torch.maximum(self.trace[-1], 1 - value))

    def _propose(self, inside: Tensor, sign: Tensor) -> Tensor:
        """Return the current change with cuboids replaced; by their opposite where that changes nothing."""
        proposal = torch.where(inside, self._change(sign, self.x), self.current)
        same = (proposal == self.current).flatten(1).all(1)
        if bool(same.any()):
            opposite = torch.where(inside, self._change(-sign, self.x), self.current)
            proposal = torch.where(self._wide(same), opposite, proposal)
        return proposal

    def _helpful(self, then: Overlap, which: Tensor, count: int) -> Tensor:
        """Return (N, 1, *size) True in cuboids whose voxels lowered the linearized soft Dice."""
        gain = ((then.p - self.now.p) * self.now.slope).sum(1).flatten(1)  # (N, voxels)
        sums = gain.new_zeros(len(gain), count).scatter_add_(1, which.flatten(1), gain)
        return torch.gather(sums < 0, 1, which.flatten(1)).reshape(which.shape).unsqueeze(1)

    def _ask(self, adversarial: Tensor) -> tuple[Tensor, Overlap]:
        logits = self.victim.logits(adversarial)
        score = self.best.see(adversarial, logits)
        then = overlap(logits, self.victim.truth)
        return (then.value if self.settings.oracle == "soft" else score), then

    def _change(self, sign: Tensor, x: Tensor) -> Tensor:
        return self.threat.project(x + torch.where(sign >= 0, self.eps, -self.eps), x)

    def _wide(self, chosen: Tensor) -> Tensor:
        return chosen.reshape(-1, *[1] * (self.x.ndim - 1))
