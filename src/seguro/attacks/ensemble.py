"""Suites of attacks and their true worst case: per case and class the lowest Dice that any of them found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seguro.attacks.apgd import APGD
from seguro.attacks.fab import FAB
from seguro.attacks.objectives import OBJECTIVES
from seguro.attacks.pgd import PGD, Noise, falling
from seguro.attacks.square import Square, published
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Attack, Found, Victim
from seguro.core.errors import ConfigError
from seguro.core.seeds import derive
from seguro.core.types import Classes

SUITES = ("strong", "rog", "quick", "blackbox")
NOISE = "noise"
WORST = "worst"
BLACK_BOX = ("square",)
"""Attacks that only ask for outputs."""


@dataclass(frozen=True)
class Effort:
    """How hard a suite tries."""

    steps: int = 20
    """Gradient steps of each iterative attack."""
    restarts: int = 1
    queries: int = 500
    """Of the square attack."""

    def doubled(self) -> Effort:
        """Return twice the steps and queries, for the check of convergence."""
        return replace(self, steps=2 * self.steps, queries=2 * self.queries)


def suite(name: str, classes: Classes, effort: Effort, *, bar: float | None = None) -> tuple[Attack, ...]:
    """Return the attacks of a suite, or those in a list such as "apgd-ce,square".

    rog: the paper's four, APGD on cross entropy and on DLR (three classes and more), FAB, and Square as it
    describes it. strong:
    ours. quick: its strongest member alone. blackbox: Square alone, for models without gradients.

    Args:
        name: a suite, or names of single attacks: fpgd-OBJECTIVE (a falling step), apgd-OBJECTIVE,
            pgd-OBJECTIVE, fab, square.
        classes: of the task.
        effort: steps, restarts and queries.
        bar: mean Dice below which a case counts as broken, for FAB; None: half of the case's clean Dice.

    Raises:
        ConfigError: neither; the message lists what is known.
    """
    objectives = ("ce",) if classes.regions or classes.n < 3 else ("ce", "dlr")
    members = {
        "rog": (*(f"apgd-{o}" for o in objectives), "fab", "published-square"),
        "strong": (STRONGEST, *FURTHER, "fab", "square"),
        "quick": (STRONGEST,),
        "blackbox": ("square",),
    }
    chosen = members.get(name) or tuple(dict.fromkeys(p.strip() for p in name.split(",") if p.strip()))
    if not chosen:
        raise ConfigError(f"no suite named; known are {', '.join(members)}")
    return tuple(_attack(n, effort, bar) for n in chosen)


def _attack(name: str, effort: Effort, bar: float | None) -> Attack:
    kind, _, objective = name.partition("-")
    if name == "square":
        return Square(queries=effort.queries, restarts=effort.restarts)
    if name == "published-square":
        return replace(published(effort.queries), restarts=effort.restarts)
    if name == "fab":  # its first start is the clean image
        return FAB(steps=effort.steps, restarts=effort.restarts + 1, bar=bar)
    if kind == "apgd" and objective:
        return APGD(objective, steps=effort.steps, restarts=effort.restarts)
    if kind == "fpgd" and objective:
        return falling(objective, effort.steps, effort.restarts)
    if kind == "pgd" and objective:
        return PGD(objective, steps=effort.steps, restarts=effort.restarts)
    raise ConfigError(
        f"no suite or attack {name!r}; known are {', '.join(SUITES)}, and lists of fpgd-OBJECTIVE, "
        "apgd-OBJECTIVE, pgd-OBJECTIVE, fab, square and published-square, with OBJECTIVE one of "
        f"{', '.join(OBJECTIVES)}"
    )


STRONGEST = "fpgd-margin-then-dice"
"""The attack that leaves the lowest Dice after few gradient calls (benchmarks/experiments/attack_calls)."""
FURTHER = ("apgd-tversky", "apgd-dice", "apgd-ce", "apgd-segpgd")
"""The other white-box attacks of `strong`: which one is lowest differs from case to case."""


@dataclass(frozen=True)
class Outcome:
    """What a suite found for N samples under one threat."""

    found: dict[str, Found]
    """By attack, the noise control too."""
    x: Tensor
    """(N, C, *size) the worst input of each sample."""
    score: Tensor
    """(N,) lowest mean Dice."""
    dice: Tensor
    """(N, foreground) Dice of each class at `x`."""
    lowest: Tensor
    """(N, foreground) lowest Dice of each class over every input met by any attack."""
    by: tuple[str, ...]
    """The attack that found `x`, per sample."""

    def flags(self) -> list[list[str]]:
        """Return per sample the flags of all attacks, as "attack: flag"."""
        n = len(self.score)
        return [
            [f"{name}: {flag}" for name, f in self.found.items() for flag in f.flags[i]] for i in range(n)
        ]


def run_suite(
    attacks: Sequence[Attack], victim: Victim, x: Tensor, threat: Threat, *, seed: int, cases: Sequence[str]
) -> Outcome:
    """Run every attack on every sample and keep the worst; the order of `attacks` changes no result.

    Args:
        attacks: with different names.
        victim: the model with the truth of the N samples.
        x: (N, C, *size) clean.
        threat: ball and box.
        seed: of the evaluation; each attack and sample has its own stream.
        cases: N names that key the streams, so that a sample's result does not depend on its batch.
    """
    found: dict[str, Found] = {}
    for attack in (Noise(), *attacks):
        if attack.name in found:
            raise ValueError(f"two attacks are called {attack.name}")
        found[attack.name] = attack(victim, x, threat, [derive(seed, attack.name, c) for c in cases])
    names = list(found)
    scores = torch.stack([f.score for f in found.values()])
    best = scores.argmin(0)
    at = torch.arange(len(x), device=x.device)
    return Outcome(
        found,
        torch.stack([found[names[b]].x[i] for i, b in enumerate(best.tolist())]),
        scores[best, at],
        torch.stack([f.dice for f in found.values()])[best, at],
        torch.stack([f.lowest for f in found.values()]).amin(0),  # NaN where not annotated, in all of them
        tuple(names[i] for i in best.tolist()),
    )
