"""It learns two volumes by heart, sooner with the second decoder, which beats plain enlarging by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from seguro.methods.pfseg.config import PRESETS
from seguro.methods.pfseg.predictor import unit
from seguro.networks.resolution import lowered, raised

STEPS = 150
RECIPE: dict[str, Any] = {
    "width": 8,
    "tail_width": 4,
    "pool": 4,
    "prior": "plan",
    "learning_rate": 5e-3,
    "schedule": "poly",
}


def dice(predictor, batch) -> float:
    with torch.no_grad():
        found = predictor(batch.image).argmax(1)
    return float(
        2 * ((found == 1) & (batch.label == 1)).sum() / ((found == 1).sum() + (batch.label == 1).sum())
    )


def learnt(made, batch, **config: Any) -> tuple[list[float], Any]:
    """Return Dice after every fifth step, and the method."""
    method, run = made(**(RECIPE | config))
    predictor, trace = method.predictor(method.modules), []
    for step in range(1, STEPS + 1):
        method.update(batch, run)
        run.update += 1
        if step % 5 == 0:
            trace.append(dice(predictor, batch))
    return trace, method


@pytest.mark.slow
def test_two_volumes_are_learnt_by_heart_and_sooner_with_super_resolution(made, batch_of):
    batch = batch_of()
    full, method = learnt(made, batch, residual=True)
    alone, _ = learnt(made, batch, **PRESETS["ablation-us"])
    assert max(full) >= 0.90 and max(alone) >= 0.85
    reached = [next(i for i, d in enumerate(t) if d >= 0.7) for t in (full, alone)]
    assert reached[0] <= reached[1]
    x = unit(batch.image)
    with torch.no_grad():
        restored = method.restored(method.network.encode(x), x)
        enlarged = raised(lowered(x, (2, 2, 2)), (2, 2, 2))
        gain = 10 * torch.log10(F.mse_loss(enlarged, x) / F.mse_loss(restored, x))
    assert gain >= 0.5  # decibels
