"""Where the crops that guide a volume lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import Three
from seguro.networks.guidance import central

STEPS = 4
"""Positions per length of a crop and axis that are compared by variance, where they are whole voxels."""


def scattered(places: Tensor, size: Sequence[int], crop: Three) -> Tensor:
    """Return corners (N, K, 3) of crops at relative `places` (N, K, 3) in [0, 1), inside `size` (Z, Y, X)."""
    room = torch.tensor([n - c + 1 for n, c in zip(size, crop, strict=True)], device=places.device)
    return torch.minimum((places * room).long(), room - 1)


@torch.no_grad()
def most_varied(x: Tensor, crop: Three, k: int) -> Tensor:
    """Return the corners (N, K, 3) of the k crops of x (N, C, Z, Y, X) whose intensities vary most.

    Compared are the central crop and all crops on a grid, whose step along each axis is a quarter of the crop
    where its voxels are a multiple of 4, else all of it; the variance is averaged over channels. A further
    crop does not overlap the earlier ones, as long as there is such a crop. The same image gives the same
    crops.
    """
    corners, variance = _candidates(x.double(), crop)
    chosen = []
    for own in variance:
        free = own
        best: list[int] = []
        for _ in range(k):
            pick = int(free.argmax()) if bool(torch.isfinite(free).any()) else int(own.argmax())
            best.append(pick)
            apart = (corners - corners[pick]).abs() >= torch.tensor(crop, device=corners.device)
            free = torch.where(apart.any(dim=1), free, -torch.inf)
        chosen.append(corners[best])
    return torch.stack(chosen)


def _candidates(x: Tensor, crop: Three) -> tuple[Tensor, Tensor]:
    """Return corners (P, 3), the central one first, and the variance (N, P) of the crops there."""
    size = x.shape[2:]
    middle = central(size, crop, 1)[0].to(x.device)
    box = tuple(slice(int(f), int(f) + c) for f, c in zip(middle[0], crop, strict=True))
    inner = x[(slice(None), slice(None), *box)].flatten(2).var(dim=2, correction=0)
    block = [c // STEPS if c % STEPS == 0 else c for c in crop]
    kernel = [c // b for c, b in zip(crop, block, strict=True)]
    moments = [F.avg_pool3d(F.avg_pool3d(m, block), kernel, 1) for m in (x, x * x)]
    varied = (moments[1] - moments[0] ** 2).clamp(min=0)
    steps = [torch.arange(n, device=x.device) * b for n, b in zip(varied.shape[2:], block, strict=True)]
    grid = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).reshape(-1, 3)
    both = torch.cat([inner.unsqueeze(2), varied.flatten(2)], dim=2).mean(dim=1)
    return torch.cat([middle, grid]), both


def inside(corners: Tensor, crop: Three, size: Sequence[int]) -> Tensor:
    """Return the mask (N, 1, *size) with 1 in the crops at `corners` (N, K, 3)."""
    mask = torch.zeros((len(corners), 1, *size), device=corners.device)
    for own, where in zip(mask, corners.tolist(), strict=True):
        for corner in where:
            box = tuple(slice(f, f + c) for f, c in zip(corner, crop, strict=True))
            own[(slice(None), *box)] = 1
    return mask
