"""A crop at full resolution that guides a network at low resolution: cutting it, and placing its code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seguro.core.types import Three


def central(size: Sequence[int], crop: Three, n: int) -> Tensor:
    """Return the corners (n, 1, 3) of the central crop in n volumes of `size` (Z, Y, X)."""
    corner = [(length - c) // 2 for length, c in zip(size, crop, strict=True)]
    return torch.tensor(corner).expand(n, 1, 3)


def cut(x: Tensor, corners: Tensor, crop: Three) -> Tensor:
    """Return the crops (N * K, C, *crop) of x (N, C, Z, Y, X) that begin at `corners` (N, K, 3)."""
    parts = []
    for volume, own in zip(x, corners.tolist(), strict=True):
        for corner in own:
            box = tuple(slice(f, f + c) for f, c in zip(corner, crop, strict=True))
            parts.append(volume[(slice(None), *box)])
    return torch.stack(parts)


def placed(codes: Tensor, corners: Tensor, crop: Three, cell: Three, cells: Sequence[int]) -> Tensor:
    """Return codes of crops in the cells that they cover, zero elsewhere: (N, C, *cells).

    A cell holds the mean of the codes inside it, weighted by the volume that they share with it.

    Args:
        codes: (N, K, C, *code), each over its crop.
        corners: (N, K, 3) first voxel of each crop.
        crop: (Z, Y, X) in voxels.
        cell: (Z, Y, X) voxels of one cell.
        cells: (Z, Y, X) number of cells.
    """
    samples = []
    for own, where in zip(codes, corners.tolist(), strict=True):
        total = own.new_zeros((own.shape[1], *cells))
        covered = own.new_zeros(tuple(cells))
        for code, corner in zip(own, where, strict=True):
            z, y, x = (
                shared(corner[a], crop[a], code.shape[1 + a], cell[a], cells[a]).to(code) for a in range(3)
            )
            total = total + torch.einsum("ai,bj,ck,nijk->nabc", z, y, x, code)
            covered = covered + torch.einsum("a,b,c->abc", z.sum(1), y.sum(1), x.sum(1))
        samples.append(total / covered.clamp(min=1e-6))
    return torch.stack(samples)


def shared(corner: int, crop: int, n: int, cell: int, cells: int) -> Tensor:
    """Return (cells, n): the part of each cell that each of the n codes of a crop covers, along one axis."""
    step = crop / n
    code = corner + step * torch.arange(n)
    start = cell * torch.arange(cells).unsqueeze(1)
    overlap = torch.minimum(code + step, start + cell) - torch.maximum(code, start + 0.0)
    return overlap.clamp(min=0) / cell
