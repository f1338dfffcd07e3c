"""FAB: the smallest change after which a segmentation counts as broken.

Croce & Hein 2020, ICML, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
with a boundary that segmentation has: f = Dice - bar, where a case is broken once its mean Dice lies below
the bar. The mean logit difference over all voxels is not such a boundary: driving it to zero means flipping
the background as well. Sizes are in units of the threat's epsilon, channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seguro.attacks.apgd import ZeroGradients
from seguro.attacks.objectives import dice
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Attack, Best, Found, Victim, uniform
from seguro.core.errors import ConfigError

NEWTON = 60
"""Most steps of the projection; each passes at least one corner, and a handful is usual."""


@dataclass(frozen=True)
class Minimum:
    """The smallest change found for N samples.

    x: (N, C, *size) the broken input, or the clean one where none was found. size: (N,) largest change in
    units of epsilon; 0 where the clean input is broken already, infinite where none was found. score: (N,)
    mean Dice at x. bar: (N,) below which a case counts as broken. forwards, backwards: calls, in samples.
    """

    x: Tensor
    size: Tensor
    score: Tensor
    bar: Tensor
    forwards: int
    backwards: int


def project_plane(gradient: Tensor, target: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the smallest d (largest absolute value) with <gradient, d> = target and low <= d <= high.

    That is d = clip(t * s) with s the signs that move towards the target; the smallest t solves
    sum |g| min(t, room) = |target|, a concave piecewise linear equation. Newton's steps from below pass its
    corners one after the other and end exactly on the solution, without sorting. Where even the whole box
    does not reach the target, the corner of the box that comes closest.

    Args:
        gradient: (N, M).
        target: (N,).
        low: (N, M), zero or less.
        high: (N, M), zero or more.
    """
    sign = gradient.sign() * target.sign().unsqueeze(1)
    room = torch.where(sign > 0, high, -low).clamp(min=0)
    weight, need = gradient.abs(), target.abs()
    t = torch.zeros_like(need)
    for _ in range(NEWTON):
        free = room > t.unsqueeze(1)
        slope = (weight * free).sum(1)
        full = (weight * room * ~free).sum(1)
        after = torch.where(slope > 0, (need - full) / slope, torch.inf)
        after = torch.maximum(after, t)
        if bool((after == t).all()):
            break
        t = after
    return sign * torch.minimum(room, t.unsqueeze(1))


@dataclass(frozen=True)
class FAB:
    """The minimum-norm attack, from several starts, then bisection on the way to the clean image.

    Args:
        steps: gradient calls of each start.
        restarts: starts; the first from the clean image, the others from random points.
        bar: mean Dice below which a case counts as broken; None: half of each sample's clean Dice.
        warm_start: before these, `steps` more gradient calls of descent with a radius that grows until the
            case is broken and shrinks while it is; its result is the first point of the second start.
        margin: f = soft Dice - margin * bar, so that the Dice lies below the bar, not on it.
        bias, overshoot: alpha_max and eta of the paper.
        back: share of the way to the clean image that is gone once broken. The paper's 0.9 (beta) throws away
            where the boundary is: on the test networks it found changes 1.6 times as large.
        trust: longest step, in units of the smallest size found so far. The soft Dice is far from linear, and
            full steps leave the region where broken inputs are small; the paper has no such limit.
        largest: radius in epsilon at which the warm start stops growing, and random starts stay.
        bisections: forward calls of the last search.
    """

    steps: int = 40
    restarts: int = 3
    bar: float | None = None
    warm_start: bool = True
    margin: float = 0.98
    bias: float = 0.1
    overshoot: float = 1.05
    back: float = 0.1
    trust: float = 0.2
    largest: float = 16.0
    bisections: int = 8
    name: str = "fab"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.bisections < 0:
            raise ConfigError(
                "FAB needs steps and restarts of at least 1, and bisections of 0 or more; found "
                f"{self.steps}, {self.restarts} and {self.bisections}"
            )
        for name in ("largest", "trust", "margin", "overshoot"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"FAB needs {name} above 0, found {getattr(self, name)}")
        for name in ("bias", "back"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"FAB needs {name} from 0 to 1, found {getattr(self, name)}")

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Attack x (N, C, *size) within epsilon: what was met inside, and the smallest change brought inside.

        The smallest change is also tried stretched to the whole of epsilon, and by its signs.
        """
        best = Best(victim, x, threat)
        run = _Run(self, victim, x, threat, seeds, best)
        run.all()
        change = run.change / run.size.clamp(min=1e-12).reshape(run.wide)  # largest 1, or zero
        for u in (run.change.clamp(-1, 1), change, run.change.sign()):
            at = threat.project(run.image(u), x)
            best.see(at, victim.logits(at))
        return replace(best.found(self.name, zero=run.watch.share), minimum=run.size)

    def minimum(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Minimum:
        """Return the smallest change found for each of the N samples, however large against epsilon."""
        best, start = Best(victim, x, threat), (victim.calls.forwards, victim.calls.backwards)
        run = _Run(self, victim, x, threat, seeds, best)
        run.all()
        calls = victim.calls
        return Minimum(
            torch.where(
                torch.isfinite(run.size).reshape(run.wide), threat_box(run.image(run.change), threat), x
            ),
            run.size,
            run.score,
            run.bar,
            calls.forwards - start[0] + len(x),
            calls.backwards - start[1],
        )


def threat_box(x: Tensor, threat: Threat) -> Tensor:
    """Return x (N, C, *size) moved into the box alone."""
    low, high = (threat.spread(v, x) for v in (threat.low, threat.high))
    return torch.minimum(torch.maximum(x, low), high)


def bar_of(bar: float | None, clean: Tensor) -> Tensor:
    """Return the Dice (N,) below which samples count as broken: `bar`, or half the clean Dice (N,)."""
    return clean / 2 if bar is None else torch.full_like(clean, bar)


class _Run:
    """All starts on N samples; changes `u` are in units of epsilon, (N, C, *size)."""

    def __init__(
        self,
        settings: FAB,
        victim: Victim,
        x: Tensor,
        threat: Threat,
        seeds: Sequence[int],
        best: Best,
    ) -> None:
        self.settings, self.victim, self.x, self.threat, self.seeds = settings, victim, x, threat, seeds
        self.best, self.watch = best, ZeroGradients(x)
        self.wide = (-1, *[1] * (x.ndim - 1))
        self.eps = threat.spread(threat.eps, x)
        low, high = (threat.spread(v, x) - x for v in (threat.low, threat.high))
        free = self.eps > 0
        self.low = torch.where(free, low.clamp(max=0) / self.eps, 0.0)
        self.high = torch.where(free, high.clamp(min=0) / self.eps, 0.0)
        self.bar = bar_of(settings.bar, best.score)
        broken = (best.score < self.bar) | (best.score <= 0)
        self.change = torch.zeros_like(x)
        self.score = best.score.clone()
        self.size = torch.where(broken, 0.0, torch.inf)

    def image(self, u: Tensor) -> Tensor:
        """Return the images of changes u."""
        return self.x + u * self.eps

    def box(self, u: Tensor) -> Tensor:
        """Return u within the box of the images."""
        return torch.minimum(torch.maximum(u, self.low), self.high)

    def all(self) -> None:
        """Make every start and the last search."""
        if self.settings.warm_start:
            self.warm()
        for restart in range(self.settings.restarts):
            self.start(restart)
        self.bisect()

    def ask(self, u: Tensor, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return f (N,), its gradient by u (N, M), where the bar is broken (N,); keeps what is smallest."""
        at = self.image(u)
        value, gradient, logits = self.victim.ascend(at, dice, progress)
        score = self.note(u, at, logits)
        self.watch.see(gradient, score)
        broken = score < self.bar
        f = 1 - value - self.settings.margin * self.bar
        # a soft Dice below the bar must not turn the step around while the Dice is above it
        f = torch.where(broken, f, torch.maximum(f, score.clamp(max=1) - self.settings.margin * self.bar))
        return torch.nan_to_num(f, 0.0), -(gradient * self.eps).flatten(1), broken

    def note(self, u: Tensor, at: Tensor, logits: Tensor) -> Tensor:
        """Return the scores (N,); keeps broken inputs that are smaller than before."""
        size = u.abs().flatten(1).amax(1)
        inside = (size <= 1).nonzero().flatten()
        if len(inside):
            near = self.threat.select(inside).project(at[inside], self.x[inside])
            self.best.see_at(inside, near, logits[inside])
        finite = torch.isfinite(logits).flatten(1).all(1)
        score = torch.where(finite, self.victim.score(logits), torch.inf)
        smaller = (score < self.bar) & (size < self.size)
        self.change = torch.where(smaller.reshape(self.wide), u, self.change)
        self.size = torch.where(smaller, size, self.size)
        self.score = torch.where(smaller, score, self.score)
        return score

    def warm(self) -> None:
        """Descend along signs within a radius that grows until broken and shrinks while broken."""
        u, radius, steps = torch.zeros_like(self.x), torch.ones_like(self.size), self.settings.steps
        for i in range(steps):
            _, gradient, broken = self.ask(u, i / steps)
            rate = 1 + 0.3 * (1 - i / steps)
            size = u.abs().flatten(1).amax(1)
            radius = torch.where(
                broken, torch.minimum(radius, size) / rate, radius * (rate if i % 2 else 1.0)
            )
            radius = torch.minimum(radius, self.size).clamp(max=self.settings.largest)
            r = radius.reshape(self.wide)
            step = r * (0.5 - 0.4 * i / steps)
            u = u - step * gradient.reshape(u.shape).sign()
            u = self.box(torch.minimum(torch.maximum(u, -r), r))

    def start(self, restart: int) -> None:
        """Make one start of FAB."""
        settings = self.settings
        u = torch.zeros_like(self.x)
        if restart == 1 and settings.warm_start:
            u = self.change.clone()
        elif restart:
            reach = torch.where(torch.isfinite(self.size), self.size, 1.0).clamp(max=settings.largest)
            noise = uniform(self.seeds, f"fab/{restart}", self.x.shape[1:], self.x)
            u = self.box(noise * 0.5 * reach.reshape(self.wide))
        for i in range(settings.steps):
            f, gradient, broken = self.ask(u, i / settings.steps)
            u = self.step(
                torch.where(broken.reshape(self.wide), u * (1 - settings.back), u), f, gradient, broken
            )

    def step(self, u: Tensor, f: Tensor, gradient: Tensor, broken: Tensor) -> Tensor:
        """Return the next point: projections of u and of the clean image on the linearized boundary."""
        settings, flat = self.settings, u.flatten(1)
        low, high = self.low.flatten(1), self.high.flatten(1)
        scale = torch.where(torch.isfinite(self.size), self.size, flat.abs().amax(1).clamp(min=1.0))
        most = (settings.trust * scale).unsqueeze(1)
        ahead = project_plane(gradient, -f, low - flat, high - flat)
        ahead = torch.maximum(torch.minimum(ahead, most), -most)
        clean = project_plane(gradient, (gradient * flat).sum(1) - f, low, high)
        clean = torch.maximum(torch.minimum(clean, scale.unsqueeze(1)), -scale.unsqueeze(1))
        near, far = ahead.abs().amax(1), clean.abs().amax(1)
        alpha = (near / (near + far).clamp(min=1e-12)).clamp(max=settings.bias).unsqueeze(1)
        eta = settings.overshoot
        after = (1 - alpha) * (flat + eta * ahead) + alpha * eta * clean
        after = self.box(after.reshape(u.shape))
        return torch.where(broken.reshape(self.wide), u, after)

    def bisect(self) -> None:
        """Shrink the smallest changes towards the clean image as far as they stay broken."""
        low, high = torch.zeros_like(self.size), torch.ones_like(self.size)
        whole = self.change.clone()
        for _ in range(self.settings.bisections):
            middle = (low + high) / 2
            u = whole * middle.reshape(self.wide)
            at = self.image(u)
            broken = self.note(u, at, self.victim.logits(at)) < self.bar
            low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)


def minimum_by_bisection(
    victim: Victim,
    x: Tensor,
    threat: Threat,
    seeds: Sequence[int],
    attack: Attack,
    *,
    bar: float | None = None,
    largest: float = 4.0,
    steps: int = 6,
) -> Minimum:
    """Return the smallest epsilon, in units of the threat's, at which an attack breaks each sample.

    Args:
        victim: as for an attack.
        x: (N, C, *size).
        threat: its epsilon is the unit.
        seeds: one per sample.
        attack: made anew at every epsilon.
        bar: as in `FAB`.
        largest: first epsilon tried; a sample that it does not break counts as never broken.
        steps: bisections; the size is right to largest / 2 ** steps, above.
    """
    start = (victim.calls.forwards, victim.calls.backwards)
    clean = victim.score(victim.logits(x))
    level = bar_of(bar, clean)
    done = (clean < level) | (clean <= 0)
    size = torch.where(done, 0.0, torch.inf)
    low, kept, score = torch.zeros_like(size), x.clone(), clean.clone()
    trial = torch.full_like(size, largest)
    for _ in range(steps + 1):
        index = (~done).nonzero().flatten()
        if not len(index):
            break
        found = attack(
            victim.select(index),
            x[index],
            threat.scaled(trial).select(index),
            [seeds[i] for i in index.tolist()],
        )
        broken = found.score < level[index]
        hit, missed = index[broken], index[~broken]
        kept[hit], score[hit], size[hit] = found.x[broken], found.score[broken], trial[hit]
        low[missed] = trial[missed]
        done = done | ~torch.isfinite(size)  # the largest did not break it
        trial = torch.where(torch.isfinite(size), (low + size) / 2, trial)
    calls = victim.calls
    return Minimum(kept, size, score, level, calls.forwards - start[0], calls.backwards - start[1])
