"""Losses against soft targets. All are means over samples of per-sample values, so that ranks agree."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import Classes
from seguro.losses import DICE_SMOOTH, probabilities


def _mean(per_voxel: Tensor, counts: Tensor) -> Tensor:
    """Return the mean (*size) over counting voxels of each sample, then over samples; no sample gives 0."""
    if not len(per_voxel):
        return per_voxel.sum()
    dims = tuple(range(1, counts.ndim))
    return ((per_voxel * counts).sum(dims) / counts.sum(dims).clamp(min=1)).mean()


def soft_cross_entropy(logits: Tensor, target: Tensor, counts: Tensor, classes: Classes) -> Tensor:
    """Return the cross entropy of logits (N, n, *size) against probabilities of the same shape.

    `counts` is (N, *size), 1 where a voxel counts. Of overlapping regions: mean of the binary ones.
    """
    if classes.regions:
        return _mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1), counts)
    return _mean(-(target * logits.log_softmax(1)).sum(1), counts)


def squared_error(
    logits: Tensor, target: Tensor, counts: Tensor, classes: Classes, *, summed: bool = False
) -> Tensor:
    """Return the squared error of the probabilities: mean over classes, or their sum, then as above."""
    square = (probabilities(logits, classes) - target).square()
    return _mean(square.sum(1) if summed else square.mean(1), counts)


def dice_of_soft(logits: Tensor, target: Tensor, counts: Tensor, classes: Classes) -> Tensor:
    """Return 1 - mean Dice of the foreground with squares in the denominator, per sample, then the mean.

    Unlike plain soft Dice it is smallest where probability and soft target agree.
    """
    if not len(logits):
        return logits.sum()
    weight = counts.unsqueeze(1)
    p, t = probabilities(logits, classes), target
    if not classes.regions:
        p, t = p[:, 1:], t[:, 1:]
    dims = tuple(range(2, p.ndim))
    overlap = 2 * (p * t * weight).sum(dims) + DICE_SMOOTH
    total = ((p.square() + t.square()) * weight).sum(dims) + DICE_SMOOTH
    return (1 - overlap / total).mean()


def ramp(progress: float, *, until: float = 1.0, steps: int | None = None) -> float:
    """Return the share of its final value that a weight has after `progress` (0 to 1) of training.

    Linear up to `until`; with `steps`, in that many epochs numbered from 0: it is 0 in the first one.
    """
    if steps is not None:
        progress = int(progress * steps + 1e-9) / steps
    return 1.0 if until == 0 else min(max(progress / until, 0.0), 1.0)
