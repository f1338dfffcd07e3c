"""The model under attack, what is counted, and the bookkeeping that every attack shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from seguro.attacks.threat import Threat
from seguro.core.errors import ConfigError
from seguro.core.seeds import derive
from seguro.core.types import IGNORE, Classes
from seguro.losses import annotated_mask, one_hot

ABSENT = 1e4
"""How far below all others the logit of a class that is not annotated lies, once it is background."""
ZERO_GRADIENT = 0.2
"""Share of a sample's gradients that may be exactly zero before the result is flagged."""

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Truth:
    """The truth of N samples.

    label: (N, *size) stored labels. annotated: (N, foreground) 1 where the class was looked for.
    """

    label: Tensor
    annotated: Tensor
    classes: Classes

    @cached_property
    def hot(self) -> Tensor:
        """(N, n, *size) float targets, zero throughout at ignored voxels.

        What a label says of an exclusive class that is not annotated counts as background, as `merged` does.
        """
        hot = one_hot(self.label, self.classes)
        if self.classes.regions or bool((self.known == 1).all()):
            return hot
        known = self.known.reshape(*self.known.shape, *[1] * (hot.ndim - 2))
        unknown = (hot * (1 - known)).sum(1, keepdim=True)
        return torch.cat([hot[:, :1] + unknown, (hot * known)[:, 1:]], dim=1)

    @cached_property
    def valid(self) -> Tensor:
        """(N, *size) True where a voxel counts."""
        return self.label != IGNORE

    @cached_property
    def known(self) -> Tensor:
        """(N, n) 1 where a class was looked for; the background always was."""
        return annotated_mask(self.annotated, self.classes)

    def merged(self, logits: Tensor) -> Tensor:
        """Return logits (N, n, *size) in which exclusive classes that are not annotated are background."""
        if self.classes.regions or bool((self.known == 1).all()):
            return logits
        unknown = (self.known == 0).reshape(*self.known.shape, *[1] * (logits.ndim - 2))
        background = torch.zeros_like(unknown)
        background[:, 0] = True
        joint = logits.masked_fill(~(unknown | background), -torch.inf).logsumexp(1, keepdim=True)
        absent = logits.detach().masked_fill(unknown, torch.inf).amin(1, keepdim=True) - ABSENT
        return torch.cat([joint, torch.where(unknown[:, 1:], absent, logits[:, 1:])], dim=1)

    def select(self, index: Tensor) -> Truth:
        """Return the truth of the samples in `index`."""
        return Truth(self.label[index], self.annotated[index], self.classes)


Objective = Callable[[Tensor, Truth, float], Tensor]
"""(logits (N, n, *size), truth, progress of the attack in [0, 1]) -> (N,) value to maximize, per sample."""


@dataclass
class Calls:
    """How often the model was asked, in samples."""

    forwards: int = 0
    backwards: int = 0


class NotFinite(ConfigError):
    """The model returns NaN or infinity for a clean image: no attack can be measured on it."""


class Victim:
    """Any differentiable function from images to logits, with the truth of N samples.

    Args:
        logits: (N, C, *size) -> (N, n, *size); each sample's output depends on that sample alone.
        truth: of these samples.
        calls: shared counter; a fresh one by default.
    """

    def __init__(self, logits: Logits, truth: Truth, calls: Calls | None = None) -> None:
        self._logits = logits
        self.truth = truth
        self.calls = calls or Calls()

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits without recording a gradient."""
        self.calls.forwards += len(x)
        return self._logits(x).float()

    def ascend(self, x: Tensor, objective: Objective, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return (value (N,), gradient of each sample's value (N, C, *size), logits), all detached.

        A gradient that is not finite is returned as zero.

        Raises:
            ConfigError: the model does not let gradients through to its input.
        """
        x = x.detach().requires_grad_(True)
        self.calls.forwards += len(x)
        self.calls.backwards += len(x)
        with torch.enable_grad():
            logits = self._logits(x).float()
            if not logits.requires_grad:
                raise ConfigError(
                    "the model passes no gradient to its input: use attacks that only ask for outputs "
                    "(--suite blackbox), or load the model outside torch.no_grad and inference_mode"
                )
            value = objective(self.truth.merged(logits), self.truth, progress)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), torch.nan_to_num(gradient, 0.0, 0.0, 0.0), logits.detach()

    @torch.no_grad()
    def class_dice(self, logits: Tensor) -> Tensor:
        """Return hard Dice (N, foreground): 1 where both are empty, NaN where not annotated."""
        classes, truth = self.truth.classes, self.truth
        if classes.regions:
            predicted = (logits > 0).float()
        else:
            best = logits.argmax(1, keepdim=True)
            predicted = torch.zeros_like(logits).scatter_(1, best, 1.0)
        hot, predicted = truth.hot.flatten(2), (predicted * truth.valid.unsqueeze(1)).flatten(2)
        both, total = (hot * predicted).sum(2), hot.sum(2) + predicted.sum(2)
        dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
        dice = dice if classes.regions else dice[:, 1:]
        return dice.masked_fill(truth.annotated == 0, torch.nan)

    def score(self, logits: Tensor) -> Tensor:
        """Return the mean Dice (N,) over annotated classes: what an attack lowers and a report shows."""
        return torch.nan_to_num(self.class_dice(logits).nanmean(1), 1.0)

    def select(self, index: Tensor) -> Victim:
        """Return the victim with only the samples in `index`; calls count on together."""
        return Victim(self._logits, self.truth.select(index), self.calls)


@dataclass(frozen=True)
class Found:
    """What an attack found for N samples."""

    name: str
    x: Tensor
    """(N, C, *size): the input with the lowest score met, the clean one included."""
    score: Tensor
    """(N,) mean Dice there."""
    dice: Tensor
    """(N, foreground) Dice there; NaN where not annotated."""
    lowest: Tensor
    """(N, foreground) lowest Dice of each class over every input met."""
    forwards: int
    backwards: int
    """Calls of the model, in samples."""
    flags: tuple[tuple[str, ...], ...]
    """Per sample: "zero gradient", "nan", ..."""
    trace: Tensor | None = None
    """(steps, N) best value of the steering objective so far."""
    rose: Tensor | None = None
    """(N,) whether the steering objective ever exceeded its value where a search began; None where it was
    measured only once."""
    minimum: Tensor | None = None
    """(N,) smallest change found that breaks the sample, in units of epsilon, infinite where none was found;
    of attacks that look for it."""


class Attack(Protocol):
    """A frozen dataclass of settings that is called on a batch; `seeds` holds one seed per sample."""

    @property
    def name(self) -> str:
        """Name in files and tables."""

    def __call__(self, victim: Victim, x: Tensor, threat: Threat, seeds: Sequence[int]) -> Found:
        """Attack the N samples x (N, C, *size)."""


class Best:
    """Per sample the input with the lowest score ever seen; starts with the clean input.

    Selection is on the reported metric, whatever objective steers the attack.

    Args:
        victim: gives scores; called once, for the clean input.
        x: (N, C, *size).
        threat: ball and box, checked here and asserted at the end.

    Raises:
        ConfigError: inputs outside the box.
        NotFinite: the model returns no finite numbers for the clean input.
    """

    def __init__(self, victim: Victim, x: Tensor, threat: Threat) -> None:
        threat.check(x)
        self.victim, self.clean, self.threat = victim, x, threat
        self._start = (victim.calls.forwards, victim.calls.backwards)
        logits = victim.logits(x)
        if not bool(torch.isfinite(logits).all()):
            raise NotFinite("the model returns NaN or infinity for the clean image; nothing can be attacked")
        self.logits = logits
        self.x = x.clone()
        self.dice = victim.class_dice(logits)
        self.lowest = self.dice.clone()
        self.score = victim.score(logits)
        self._flags: list[set[str]] = [set() for _ in range(len(x))]

    def see(self, adversarial: Tensor, logits: Tensor) -> Tensor:
        """Take an input and its logits into account; returns its scores (N,), infinite where not finite."""
        index = torch.arange(len(adversarial), device=adversarial.device)
        return self.see_at(index, adversarial, logits)

    def see_at(self, index: Tensor, adversarial: Tensor, logits: Tensor) -> Tensor:
        """Take inputs of the samples in `index` into account, as `see`."""
        part = self.victim.select(index) if len(index) < len(self.x) else self.victim
        finite = torch.isfinite(logits).flatten(1).all(1)
        dice, score = part.class_dice(logits), part.score(logits)
        score = torch.where(finite, score, torch.inf)
        for i in index[~finite].tolist():
            self._flags[i].add("nan")
        kept = finite.unsqueeze(1) & (dice < self.lowest[index])
        self.lowest[index] = torch.where(kept, dice, self.lowest[index])
        better = score < self.score[index]
        where = index[better]
        self.x[where], self.dice[where], self.score[where] = adversarial[better], dice[better], score[better]
        return score

    def flag(self, name: str, where: Tensor) -> None:
        """Add a flag to the samples where `where` (N,) is True."""
        for i in where.nonzero().flatten().tolist():
            self._flags[i].add(name)

    def found(
        self,
        name: str,
        *,
        trace: Tensor | None = None,
        rose: Tensor | None = None,
        zero: Tensor | None = None,
    ) -> Found:
        """Return the result, ball and box asserted.

        Args:
            name: of the attack.
            trace: (steps, N) best steering value so far.
            rose: (N,) whether that value rose in any search.
            zero: (N,) share of gradients that were exactly zero.
        """
        if zero is not None:
            self.flag("zero gradient", zero > ZERO_GRADIENT)
        self.threat.verify(self.x, self.clean)
        calls = self.victim.calls
        return Found(
            name,
            self.x,
            self.score,
            self.dice,
            self.lowest,
            calls.forwards - self._start[0],
            calls.backwards - self._start[1],
            tuple(tuple(sorted(f)) for f in self._flags),
            trace,
            rose,
        )


def rose(*searches: Tensor) -> Tensor | None:
    """Return (N,) whether the objective exceeded its first value in any search, each of values (steps, N)."""
    longer = [values.amax(0) > values[0] for values in searches if len(values) > 1]
    return torch.stack(longer).any(0) if longer else None


def uniform(seeds: Sequence[int], key: str, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return values (N, *shape) in [-1, 1), each sample from its own seed, placed as `like`.

    Drawn on the CPU, so that every device gets the same; the global generators are not touched.
    """
    parts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(derive(seed, key))
        parts.append(torch.rand(*shape, generator=generator) * 2 - 1)
    return torch.stack(parts).to(like)


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Put a module into evaluation mode without parameter gradients, and restore both after."""
    modes = [(m, m.training) for m in module.modules()]
    asked = [(p, p.requires_grad) for p in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield module
    finally:
        for m, training in modes:
            m.training = training
        for p, wanted in asked:
            p.requires_grad_(wanted)
