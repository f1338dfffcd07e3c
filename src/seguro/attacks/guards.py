"""Checks that say whether an evaluation can be believed (Carlini et al. 2019).

A guard that fails does not change a number; it marks the evaluation as not reliable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NOISE_DROP = 0.03
"""Largest loss of Dice under random signs that still says: it is the attack, not the size of the change."""
CONVERGED = 0.02
"""Largest further loss of Dice when steps and queries are doubled."""
ORDER = 0.02
"""By how much the black-box attack may be below the white-box ones."""
UNBOUNDED = 0.05
"""Largest Dice left when the whole range is allowed."""
REPEATED = 0.005
"""Largest mean change of Dice when the worst inputs are predicted once more; GPUs flip single voxels."""
FLAGGED = 0.1
"""Largest share of cases with a flag, or in which an attack does not raise its objective."""

Floats = NDArray[np.float64]


class Guard(NamedTuple):
    """One check; `passed` None where it was not made."""

    name: str
    passed: bool | None
    detail: str


def kept_inside(n: int) -> Guard:
    """Every returned input was asserted to lie in its ball and box; one outside stops the evaluation."""
    return Guard("ball and box", True, f"asserted on {n} returned inputs")


def noise(clean: Floats, noisy: Floats, worst: Floats) -> Guard:
    """Random signs of the same size change little where the attack changes much; arrays of Dice per case."""
    drop, attack = float((clean - noisy).mean()), float((clean - worst).mean())
    return Guard(
        "noise control", drop <= NOISE_DROP, f"random signs cost {drop:.3f} Dice, the worst case {attack:.3f}"
    )


def moved(clean: Floats, worst: Floats) -> Guard:
    """The attack changed something: else it did not work, or epsilon is too small to say anything."""
    n = int((worst < clean).sum())
    return Guard("the attack has an effect", n > 0, f"Dice fell in {n} of {len(clean)} cases")


def flags(per_case: Sequence[Sequence[str]]) -> Guard:
    """Few cases had zero gradients or outputs that were not finite."""
    hit = [f for f in per_case if f]
    names = sorted({name for f in hit for name in f})
    share = len(hit) / max(len(per_case), 1)
    detail = f"{len(hit)} of {len(per_case)} cases" + (f": {', '.join(names)}" if names else "")
    return Guard("gradients and outputs", share <= FLAGGED, detail)


def order(white: Floats, black: Floats) -> Guard:
    """Attacks with gradients are not weaker than the one without: else the gradients are masked."""
    gap = float((white - black).mean())
    return Guard(
        "white box at least as strong as black box",
        gap <= ORDER,
        f"mean Dice {white.mean():.3f} with gradients, {black.mean():.3f} without",
    )


def converged(once: Floats, twice: Floats, strengths: Sequence[str]) -> Guard:
    """Doubled effort finds hardly more, at any strength: where little is left, there is little to find.

    Args:
        once: (strengths, cases) Dice.
        twice: the same with twice the steps and queries.
        strengths: names, as "8/255".
    """
    gaps = (once - twice).mean(1)
    worst = int(gaps.argmax())
    detail = (
        f"doubled steps and queries cost at most {gaps[worst]:.3f} Dice more, at {strengths[worst]}, "
        f"on {once.shape[1]} cases"
    )
    return Guard("convergence", bool(gaps[worst] <= CONVERGED), detail)


def unbounded(left: Floats) -> Guard:
    """With the whole range allowed nothing is left of the prediction: else the attack itself is broken."""
    passed = float(left.mean()) <= UNBOUNDED
    advice = "" if passed else f", expected at most {UNBOUNDED}: attack with more --iters, or train longer"
    return Guard("unbounded epsilon", passed, f"mean Dice {left.mean():.3f} at epsilon = range{advice}")


def climbing(climbed: Mapping[str, Sequence[bool | None]]) -> Guard:
    """Every attack raises its own objective from where it began: else it only tries its starting points.

    Args:
        climbed: by attack, per case; None where the objective was not followed.
    """
    told = {n: [c for c in cases if c is not None] for n, cases in climbed.items()}
    told = {n: cases for n, cases in told.items() if cases}
    if not told:
        return Guard("objectives rise", None, "no attack follows its objective over several steps")
    stuck = {n: cases.count(False) for n, cases in told.items()}
    bad = [f"{n} in {k} of {len(told[n])} cases" for n, k in stuck.items() if k > FLAGGED * len(told[n])]
    detail = f"not that of {', '.join(bad)}" if bad else f"of {len(told)} attacks"
    return Guard("objectives rise", not bad, detail)


def repeatable(recorded: Floats, again: Floats) -> Guard:
    """The worst inputs give the same Dice once more: else the model is random, and the worst case is luck."""
    change = float(np.abs(recorded - again).mean())
    detail = f"predicted once more, the worst inputs differ by {change:.3f} Dice"
    return Guard("repeatable", change <= REPEATED, detail)


def as_json(guards: Sequence[Guard]) -> list[dict[str, Any]]:
    """Return the guards as JSON values."""
    return [g._asdict() for g in guards]
