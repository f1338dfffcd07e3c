"""Scores a predictor under a short attack on stored cases: what selects a robust model while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from seguro.attacks.pgd import PGD
from seguro.attacks.subject import patch_subject
from seguro.attacks.threat import Epsilon, threat_of
from seguro.attacks.victim import Victim, frozen
from seguro.core.seeds import derive
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.engine.runtime import Runtime
from seguro.methods.contract import Predictor

STEPS = 5
MAX_CASES = 8
"""Cases looked at, spread evenly over the list: each costs as much as several clean predictions."""


def robust_validation(
    cases: Cases, plan: Plan, runtime: Runtime, *, epsilon: float, seed: int
) -> Callable[[Predictor], Mapping[str, float]]:
    """Return a function that gives "robust": the mean Dice of patches under PGD on soft Dice.

    Cases are shared out over ranks.

    Args:
        cases: the validation cases.
        plan: of the run.
        runtime: ranks and device.
        epsilon: largest change, as a fraction of each channel's range.
        seed: of the random starts, the same at every validation.
    """
    n = len(cases.labelled)
    chosen = sorted({int(i) for i in np.linspace(0, n - 1, min(n, MAX_CASES)).round()})
    mine = [cases.labelled[i] for i in chosen][runtime.rank :: runtime.world]
    attack = PGD("dice", steps=STEPS, step=0.5)

    def validate(predictor: Predictor) -> Mapping[str, float]:
        total = torch.zeros(2, dtype=torch.float64)
        with frozen(predictor):
            for index in mine:
                case = cases[index]
                image = case.patch((slice(None), slice(None), slice(None)))
                label = np.asarray(case.label)
                subject = patch_subject(predictor, image, label, case.annotated, device=runtime.device)
                threat = threat_of(subject.x, Epsilon(epsilon, "range"), plan)
                victim = Victim(subject.logits, subject.truth)
                found = attack(victim, subject.x, threat, [derive(seed, case.id)])
                total += torch.tensor([float(found.score[0]), 1.0], dtype=torch.float64)
        summed = runtime.total(total.to(runtime.device)).cpu()
        return {"robust": float(summed[0] / summed[1].clamp(min=1))}

    return validate
