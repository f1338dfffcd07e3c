"""How far a painted image is from the real one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = 3
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
