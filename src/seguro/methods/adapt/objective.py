"""How far a painted image is from the real one, and Dice over a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import IGNORE, Classes
from seguro.losses import annotated_mask, one_hot, probabilities

SCALES = 3
SMOOTH = 1e-5
"""Added to numerator and denominator of the batch's Dice, in pixels, as published."""
WINDOW = 7
"""Pixels across over which structural similarity is measured."""
RANGE = 2.0
"""Of images in [-1, 1]."""


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of images (N, C, Y, X)."""
    return (a - b).square().mean()


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference of images (N, C, Y, X), averaged over three halvings."""
    total = a.new_zeros(())
    for scale in range(SCALES):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + (a - b).abs().mean()
    return total / SCALES


def edges(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference of the differences of neighboring pixels."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - mean structural similarity (Wang et al. 2004) of images in [-1, 1], uniform windows."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, stride=1)

    first, second = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    top = (2 * ma * mb + first) * (2 * cov + second)
    return 1 - (top / ((ma**2 + mb**2 + first) * (va + vb + second))).mean()


def batch_dice(
    logits: Tensor,
    label: Tensor,
    annotated: Tensor,
    classes: Classes,
    mean: Callable[[Tensor], Tensor],
    world: int = 1,
) -> Tensor:
    """Return 1 - soft Dice of the batch of all ranks together, averaged over classes, a scalar.

    Its gradient, averaged over ranks, is that of the joined batch: a quotient's is linear in what a rank has
    of numerator and denominator, given those of all.

    Args:
        logits: (N, n, *size).
        label: (N, *size) stored labels; IGNORE does not count.
        annotated: (N, foreground) 1 where the class was looked for in the sample's case.
        classes: the task.
        mean: over ranks, detached.
        world: how many ranks there are.
    """
    known = annotated_mask(annotated, classes).reshape(len(label), -1, *[1] * (label.ndim - 1))
    valid = (label != IGNORE).unsqueeze(1)
    target = one_hot(label, classes) * known
    p = probabilities(logits, classes) * known * valid
    dims = (0, *range(2, p.ndim))
    overlap, total = 2 * (p * target).sum(dims), p.sum(dims) + target.sum(dims)
    smooth = SMOOTH / world  # beside means, what SMOOTH is beside sums
    top, bottom = mean(overlap) + smooth, mean(total) + smooth
    of_rank = (overlap - overlap.detach()) / bottom - (total - total.detach()) * top / bottom**2
    return (1 - top / bottom - of_rank).mean()


TERMS = {"l2": squared, "l1": absolute, "ssim": dissimilarity, "gradient": edges}


def image_loss(painted: Tensor, real: Tensor, weights: Mapping[str, float], seen: int) -> Tensor:
    """Return the weighted sum of TERMS, a scalar; means over samples of per-sample values.

    Args:
        painted: (N, C, size, size), unbounded.
        real: as `painted`, in [-1, 1].
        weights: of each term; those of weight 0 are not computed.
        seen: resolution at which the images are compared.
    """
    painted, real = (F.adaptive_avg_pool2d(x.float(), seen) for x in (painted, real))
    total = torch.zeros((), device=real.device)
    for name, weight in weights.items():
        if weight:
            total = total + weight * TERMS[name](painted, real)
    return total
