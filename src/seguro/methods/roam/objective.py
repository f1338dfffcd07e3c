"""Losses against soft targets. All are means over samples of per-sample values, so that ranks agree.

By default every sample weighs the same, however little of it counts. With `group`, every voxel that counts
does within each `group` consecutive samples, which no two ranks share: a sample of which a corner counts
weighs as little as that corner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import Classes
from seguro.losses import DICE_SMOOTH, probabilities

NOTHING = 1e-6
"""Voxels that count in a sample of which none does; of a blend of two samples a fraction of one may."""


def _over_samples(values: Tensor, voxels: Tensor, group: int | None) -> Tensor:
    """Return the mean of values (N,) of samples of which so many `voxels` (N,) count; no sample gives 0."""
    if not len(values):
        return values.sum()
    if group is None:
        return values.mean()
    weights = [len(n) * n / n.sum().clamp(min=NOTHING) for n in torch.split(voxels, group)]
    return (torch.cat(weights) * values).mean()


def _mean(per_voxel: Tensor, counts: Tensor, group: int | None) -> Tensor:
    """Return the mean (*size) over counting voxels of each sample, then over samples."""
    dims = tuple(range(1, counts.ndim))
    voxels = counts.sum(dims)
    return _over_samples((per_voxel * counts).sum(dims) / voxels.clamp(min=NOTHING), voxels, group)


def soft_cross_entropy(
    logits: Tensor, target: Tensor, counts: Tensor, classes: Classes, *, group: int | None = None
) -> Tensor:
    """Return the cross entropy of logits (N, n, *size) against probabilities of the same shape.

    `counts` is (N, *size), 1 where a voxel counts, or part of it. Of overlapping regions: mean of the binary
    ones.
    """
    if classes.regions:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return _mean(per_voxel, counts, group)
    return _mean(-(target * logits.log_softmax(1)).sum(1), counts, group)


def squared_error(
    logits: Tensor,
    target: Tensor,
    counts: Tensor,
    classes: Classes,
    *,
    summed: bool = False,
    group: int | None = None,
) -> Tensor:
    """Return the squared error of the probabilities: mean over classes, or their sum, then as above."""
    square = (probabilities(logits, classes) - target).square()
    return _mean(square.sum(1) if summed else square.mean(1), counts, group)


def dice_of_soft(
    logits: Tensor, target: Tensor, counts: Tensor, classes: Classes, *, group: int | None = None
) -> Tensor:
    """Return 1 - mean Dice of the foreground with squares in the denominator, per sample, then the mean.

    Unlike plain soft Dice it is smallest where probability and soft target agree.
    """
    weight = counts.unsqueeze(1)
    p, t = probabilities(logits, classes), target
    if not classes.regions:
        p, t = p[:, 1:], t[:, 1:]
    dims = tuple(range(2, p.ndim))
    overlap = 2 * (p * t * weight).sum(dims) + DICE_SMOOTH
    total = ((p.square() + t.square()) * weight).sum(dims) + DICE_SMOOTH
    return _over_samples((1 - overlap / total).mean(1), weight.flatten(1).sum(1), group)


def ramp(progress: float, *, until: float = 1.0, steps: int | None = None) -> float:
    """Return the share of its final value that a weight has after `progress` (0 to 1) of training.

    Linear up to `until`; with `steps`, in that many epochs numbered from 0: it is 0 in the first one.
    """
    if steps is not None:
        progress = int(progress * steps + 1e-9) / steps
    return 1.0 if until == 0 else min(max(progress / until, 0.0), 1.0)
