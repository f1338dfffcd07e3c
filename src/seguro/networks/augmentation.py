"""Non-leaking augmentation in front of a discriminator (ADA: Karras et al., NeurIPS 2020).

Every transform is applied with probability p, so that the discriminator cannot learn the training images by
heart while the generator still learns them unaugmented; at p = 0 the images pass bit by bit. What is drawn
and what is done are apart; both can be differentiated twice with respect to the images, for R1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

SHIFT = 0.125
"""Largest whole-pixel shift, and standard deviation of a fractional one, as a fraction of the image."""
SCALE = 0.2
"""Standard deviation of the binary logarithm of a scale."""
BRIGHTNESS = 0.2
CONTRAST = 0.5
"""Standard deviation of the binary logarithm of a contrast."""
CHANCES = 9
"""Transforms with a chance of their own; the two rotations share one."""


@dataclass(frozen=True)
class Drawn:
    """One augmentation per image."""

    matrix: Tensor
    """(N, 2, 3): from a place in the augmented image to the one in the image, both (x, y) in [-1, 1]."""
    moved: Tensor
    """(N,) bool: whether the matrix is another than the identity."""
    gain: Tensor
    """(N,) factor of the intensities; negative where they are inverted."""
    offset: Tensor
    """(N,) added after it."""


def draw(p: float, rngs: Sequence[torch.Generator], size: int) -> Drawn:
    """Return an augmentation for each generator in `rngs`, which lie on the images' device.

    Args:
        p: probability of each transform.
        rngs: one per image, each used for the same count of numbers whatever p is.
        size: of the image in pixels.
    """
    device = rngs[0].device
    u = torch.stack([torch.rand(CHANCES + 9, generator=r, device=device) for r in rngs])
    g = torch.stack([torch.randn(6, generator=r, device=device) for r in rngs])
    hit = u[:, :CHANCES] < p
    turn = u[:, CHANCES : CHANCES + 2] < 1 - (1 - p) ** 0.5  # at least one of two with probability p
    v = u[:, CHANCES + 2 :]
    n = len(rngs)
    flip = torch.where(hit[:, 0] & (v[:, 0] < 0.5), -1.0, 1.0)
    quarter = torch.where(hit[:, 1], (v[:, 1] * 4).floor(), 0.0) * (pi / 2)
    whole = torch.where(hit[:, 2, None], (2 * v[:, 2:4] - 1) * SHIFT * size, 0.0).round() * (2 / size)
    scale = torch.where(hit[:, 3], torch.exp2(SCALE * g[:, 0]), 1.0)
    before = torch.where(turn[:, 0], (2 * v[:, 4] - 1) * pi, 0.0)
    stretch = torch.where(hit[:, 4], torch.exp2(SCALE * g[:, 1]), 1.0)
    after = torch.where(turn[:, 1], (2 * v[:, 5] - 1) * pi, 0.0)
    fraction = torch.where(hit[:, 5, None], 2 * SHIFT * g[:, 2:4], 0.0)
    one = torch.ones(n, device=device)
    matrix = torch.eye(3, device=device).expand(n, 3, 3)
    for step in (
        _scaled(flip, one),
        _rotated(quarter),
        _shifted(whole),
        _scaled(scale, scale),
        _rotated(before),
        _scaled(stretch, 1 / stretch),
        _rotated(after),
        _shifted(fraction),
    ):
        matrix = step @ matrix
    moved = hit[:, :6].any(1) | turn.any(1)
    offset = torch.where(hit[:, 6], BRIGHTNESS * g[:, 4], 0.0)
    sign = torch.where(hit[:, 8] & (v[:, 6] < 0.5), -1.0, 1.0)
    gain = sign * torch.where(hit[:, 7], torch.exp2(CONTRAST * g[:, 5]), 1.0)
    return Drawn(matrix[:, :2], moved, gain, offset)


def apply(x: Tensor, drawn: Drawn) -> Tensor:
    """Return the augmented images of x (N, C, Y, X); beyond its border an image is mirrored."""
    if bool(drawn.moved.any()):
        x = torch.where(drawn.moved[:, None, None, None], _sampled(x, drawn.matrix.to(x.dtype)), x)
    shape = (-1, 1, 1, 1)
    return x * drawn.gain.view(shape).to(x.dtype) + drawn.offset.view(shape).to(x.dtype)


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    one = torch.ones_like(x)
    return torch.diag_embed(torch.stack([x, y, one], dim=1))


def _rotated(angle: Tensor) -> Tensor:
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    one = torch.ones_like(angle)
    rows = [torch.stack(r, dim=1) for r in ((c, -s, zero), (s, c, zero), (zero, zero, one))]
    return torch.stack(rows, dim=1)


def _shifted(by: Tensor) -> Tensor:
    out = torch.eye(3, device=by.device).repeat(len(by), 1, 1)
    out[:, :2, 2] = by
    return out


def _sampled(x: Tensor, matrix: Tensor) -> Tensor:
    """Return x at the places that the matrix says, linearly between pixels.

    By gathering, since torch cannot differentiate `grid_sample` twice.
    """
    n, c, height, width = x.shape
    place = torch.nn.functional.affine_grid(matrix, [n, 1, height, width], align_corners=False)
    column = ((place[..., 0] + 1) * width - 1) / 2  # (N, Y, X), in pixels
    row = ((place[..., 1] + 1) * height - 1) / 2
    left, top = column.floor(), row.floor()
    flat, out = x.flatten(2), torch.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - (column - left - dx).abs()) * (1 - (row - top - dy).abs())
            index = _mirrored(top + dy, height) * width + _mirrored(left + dx, width)
            taken = flat.gather(2, index.flatten(1).unsqueeze(1).expand(n, c, -1))
            out = out + taken.view_as(x) * weight.unsqueeze(1)
    return out


def _mirrored(index: Tensor, n: int) -> Tensor:
    """Return whole numbers folded into 0 ... n - 1 at the borders, the outermost pixel twice."""
    folded = torch.remainder(index.long(), 2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)
