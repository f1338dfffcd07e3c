"""From a volume at high resolution to the input of a network at low resolution."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import Three

TRUNCATE = 3.0
"""Standard deviations at which the low-pass filter ends."""


def product(numbers: Iterable[int]) -> int:
    """Return the product; 1 of nothing."""
    out = 1
    for n in numbers:
        out *= n
    return out


def lowered(x: Tensor, scale: Three, *, lowpass: bool = False) -> Tensor:
    """Return x (N, C, Z, Y, X) at 1 / scale, read linearly at the middles of the larger voxels.

    Without a low-pass filter what is finer than them is aliased, from scale 4 on; at 2 it is the mean.

    Args:
        x: its size is a multiple of `scale`.
        scale: per axis.
        lowpass: Gaussian of (scale - 1) / 2 voxels first.
    """
    if scale == (1, 1, 1):
        return x
    if lowpass:
        for axis, s in enumerate(scale):
            x = _blurred(x, axis, (s - 1) / 2) if s > 1 else x
    size = [n // s for n, s in zip(x.shape[2:], scale, strict=True)]
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def _blurred(x: Tensor, axis: int, sd: float) -> Tensor:
    """Return x after a Gaussian along one axis, its edge repeated."""
    radius = ceil(TRUNCATE * sd)
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sd) ** 2)
    shape, pads = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]
    shape[2 + axis] = len(kernel)
    pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
    n, c = x.shape[:2]
    flat = F.pad(x.reshape(n * c, 1, *x.shape[2:]), pads, mode="replicate")
    return F.conv3d(flat, (kernel / kernel.sum()).reshape(shape)).reshape(x.shape)


def unshuffled(x: Tensor, scale: Three) -> Tensor:
    """Return every voxel of x (N, C, Z, Y, X) as (N, C * product(scale), *(size / scale)): space to depth."""
    n, c = x.shape[:2]
    z, y, w = (length // s for length, s in zip(x.shape[2:], scale, strict=True))
    parts = x.reshape(n, c, z, scale[0], y, scale[1], w, scale[2])
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * product(scale), z, y, w)


def shuffled(x: Tensor, scale: Three) -> Tensor:
    """Return x (N, C * product(scale), Z, Y, X) as (N, C, *(size * scale)): undoes `unshuffled`."""
    n, c = x.shape[:2]
    z, y, w = x.shape[2:]
    parts = x.reshape(n, c // product(scale), *scale, z, y, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(n, c // product(scale), z * scale[0], y * scale[1], w * scale[2])


def raised(x: Tensor, scale: Three) -> Tensor:
    """Return x (N, C, Z, Y, X) at scale times its size, trilinearly; edges of the field of view coincide."""
    size = [n * s for n, s in zip(x.shape[2:], scale, strict=True)]
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)
