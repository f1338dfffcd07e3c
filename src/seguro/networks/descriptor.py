"""A hand-made embedding of images, in place of one from a large network that was trained elsewhere.

The same kinds of numbers as those of `evaluation.generated`, but such that can be followed downhill: how
much lies below each intensity and each edge strength (counts in bins have no slope towards a bin far away),
and the spread and edge strength at four scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INTENSITIES = 16
"""Places over [-1, 1]."""
EDGES = 8
"""Places of the binary logarithm of edge strength, from the weakest to the strongest."""
WEAKEST, STRONGEST = -7.0, 1.0
SCALES = 4
LENGTH = INTENSITIES + EDGES + 2 * SCALES
TINY = 1e-6
"""Square of an edge strength below which there is no edge; a root has no slope at 0."""


def descriptor(images: Tensor) -> Tensor:
    """Return (N, LENGTH) of unit length for images (N, C, Y, X) in about [-1, 1], the mean over channels."""
    n, c, height, width = images.shape
    x = images.float().reshape(n * c, 1, height, width)
    strength = _strength(x)
    parts = [_below(x, -1.0, 1.0, INTENSITIES), _below(strength.log2(), WEAKEST, STRONGEST, EDGES)]
    for scale in range(SCALES):
        if scale and min(x.shape[-2:]) >= 4:
            x = F.avg_pool2d(x, 2)
        spread = (x.var((1, 2, 3), unbiased=False) + TINY).sqrt()
        parts += [spread[:, None], _strength(x).mean((1, 2, 3))[:, None]]
    rows = torch.cat(parts, dim=1).view(n, c, -1).mean(1)
    return F.normalize(rows, dim=1)


def _strength(x: Tensor) -> Tensor:
    dy, dx = x.diff(dim=-2)[..., :-1], x.diff(dim=-1)[..., :-1, :]
    return (dy.square() + dx.square() + TINY).sqrt()


def _below(values: Tensor, low: float, high: float, places: int) -> Tensor:
    """Return (N, places): what part of the values lies at or below each place, linearly between two."""
    place = ((values - low) / (high - low)).clamp(0, 1).flatten(1) * (places - 1)
    return torch.stack([(k + 1 - place).clamp(0, 1).mean(1) for k in range(places)], dim=1)
