"""It learns two volumes by heart, no later with the second decoder, which beats plain enlarging by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from seguro.methods.pfseg.config import PRESETS
from seguro.methods.pfseg.predictor import unit
from seguro.networks.resolution import lowered, raised

STEPS = 150
EARLY = 60
"""Steps without the second decoder, which is asked for Dice only."""
RECIPE: dict[str, Any] = {
    "width": 8,
    "tail_width": 4,
    "pool": 4,
    "prior": "plan",
    "learning_rate": 2e-3,
    "schedule": "poly",
}


def dice(predictor, batch) -> float:
    with torch.no_grad():
        found = predictor(batch.image).argmax(1)
    return float(
        2 * ((found == 1) & (batch.label == 1)).sum() / ((found == 1).sum() + (batch.label == 1).sum())
    )


def learnt(made, batch, steps: int, **config: Any) -> tuple[list[float], Any]:
    """Return Dice after every step, and the method."""
    method, run = made(**(RECIPE | config))
    predictor, trace = method.predictor(method.modules), []
    for _ in range(steps):
        method.update(batch, run)
        run.update += 1
        trace.append(dice(predictor, batch))
    return trace, method


def best_threshold(batch) -> float:
    """Return the Dice of the best single threshold on the image."""
    image, label = batch.image[:, 0], batch.label == 1
    masks = [image > t for t in torch.linspace(float(image.min()), float(image.max()), 100)]
    return max(float(2 * (m & label).sum() / (m.sum() + label.sum())) for m in masks)


def test_no_threshold_finds_the_lesion(batch_of):
    """It has satellites, and another body is as bright: what follows is more than brightness."""
    batch = batch_of()
    assert best_threshold(batch) < 0.8
    assert all(ndimage.label(label)[1] > 1 for label in batch.label.numpy() == 1)


@pytest.mark.slow
def test_two_volumes_are_learnt_by_heart_no_later_with_super_resolution(made, batch_of):
    batch = batch_of()
    full, method = learnt(made, batch, STEPS, residual=True)
    alone, _ = learnt(made, batch, EARLY, **PRESETS["ablation-us"])
    assert max(full) >= 0.90 and max(alone) >= 0.85
    reached = [next(i for i, d in enumerate(t, 1) if d >= 0.7) for t in (full, alone)]
    assert 1 < reached[0] <= reached[1]
    x = unit(batch.image)
    with torch.no_grad():
        restored = method.restored(method.network.encode(x), x)
        enlarged = raised(lowered(x, (2, 2, 2)), (2, 2, 2))
        gain = 10 * torch.log10(F.mse_loss(enlarged, x) / F.mse_loss(restored, x))
    assert gain >= 0.5  # decibels
