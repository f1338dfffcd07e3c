"""Prototypes of classes, local and global, and the similarity of a pixel to them (the ALP module).

Ouyang et al., "Self-Supervision with Superpixels", ECCV 2020, section 3.2; batched here over slices, shots
and classes. No weights: everything is a function of features and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 20.0
"""Factor of the cosine."""
COVERED = 0.95
"""A window gives a prototype of the class that covers more of it than this."""
_ABSENT = -1e4
"""Score of a prototype that does not exist: so far below the others that its weight is exactly zero."""
_NORM = 1e-4
"""Smallest norm that a vector is divided by."""
_MEAN = 1e-5
"""Added to the area that a masked mean divides by."""


@dataclass(frozen=True)
class Pooling:
    """How prototypes are taken from features; windows in feature cells."""

    window: int
    """Side, and stride, of the windows of local prototypes."""
    gate: int
    """Side of the window that a foreground must fill somewhere before it gets local prototypes at all."""
    foreground: Literal["both", "global"] = "both"
    """both: one global prototype, and local ones where the gate is open. global: one global prototype."""
    background: Literal["local", "global"] = "local"
    """local: windows; the global prototype only where no window is covered. global: one global prototype."""
    covered: float = COVERED


@dataclass(frozen=True)
class Bank:
    """Prototypes of S slices for n classes, the background first; one entry per class.

    Classes differ in how many a slice gives at most (M), so that few prototypes cost little.
    """

    vectors: tuple[Tensor, ...]
    """(S, M, D) of length one."""
    valid: tuple[Tensor, ...]
    """(S, M) bool: which of them exist."""
    places: tuple[Tensor, ...]
    """(S, M, 2) where they were taken, in the coordinates given; zeros without."""


def prototypes(
    features: Tensor,
    masks: Tensor,
    pooling: Pooling,
    *,
    coordinates: Tensor | None = None,
    keep_empty: bool = False,
) -> Bank:
    """Return the prototypes of annotated slices.

    Args:
        features: (S, D, h, w).
        masks: (S, n, h, w) in [0, 1], how much of a cell each class covers; background first. Cells that sum
            to less than one are partly not annotated.
        pooling: windows, gate and modes.
        coordinates: (S, 2, h, w) places of the cells.
        keep_empty: whether a class that a slice does not show gives a global prototype too, which is zero.
    """
    n = masks.shape[1]
    places = features.new_zeros(len(features), 2, *features.shape[2:]) if coordinates is None else coordinates
    cells = torch.cat([features, places], dim=1)
    windows = _pooled(cells, pooling.window).flatten(2).transpose(1, 2)  # (S, M, D + 2)
    cover = _pooled(masks, pooling.window).flatten(2)  # (S, n, M)
    is_open = _pooled(masks, pooling.gate).flatten(2).amax(2) >= pooling.covered  # (S, n)
    area = masks.sum((2, 3))
    means = torch.einsum("sdhw,snhw->snd", cells, masks) / (area + _MEAN).unsqueeze(2)
    shown = torch.ones_like(area, dtype=torch.bool) if keep_empty else area > 0
    parts = []
    for c in range(n):
        local = cover[:, c] > pooling.covered
        if c == 0:
            local = local & (pooling.background == "local")
            mean = ~local.any(1)
        else:
            local = local & is_open[:, c : c + 1] & (pooling.foreground == "both")
            mean = torch.ones_like(local[:, 0])
        found, there = _packed(windows, local)
        vectors = torch.cat([means[:, c : c + 1], found], dim=1)
        parts.append((vectors, torch.cat([(mean & shown[:, c])[:, None], there], dim=1)))
    split = [(v[..., :-2], v[..., -2:], there) for v, there in parts]
    return Bank(
        tuple(unit(v, -1) for v, _, _ in split), tuple(t for *_, t in split), tuple(p for _, p, _ in split)
    )


def _pooled(x: Tensor, window: int) -> Tensor:
    """Return means over windows (S, C, ceil(h / window), ceil(w / window)); the last ones may be smaller."""
    return F.avg_pool2d(x, window, stride=window, ceil_mode=True)


def _packed(windows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen windows (S, most chosen, D) of (S, M, D), and which of these exist."""
    most = int(chosen.sum(1).max())
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    found = windows.gather(1, order.unsqueeze(2).expand(-1, -1, windows.shape[2]))
    return found, chosen.gather(1, order)


def unit(x: Tensor, dim: int) -> Tensor:
    """Return `x` with vectors along `dim` of length one; shorter ones than 1e-4 stay short."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.clamp(min=_NORM)


def scores(
    features: Tensor,
    bank: Bank,
    chosen: Sequence[Tensor],
    *,
    coordinates: Tensor | None = None,
    position_weight: float = 0.0,
) -> Tensor:
    """Return how much each cell resembles each class: the sum of softmax(s) s over prototypes, s = 20 cos.

    A class without any prototype gets the least score there is, -20.

    Args:
        features: (Q, D, h, w) of the query slices.
        bank: prototypes of S slices.
        chosen: per class, (Q, k) which of the S slices a query slice is compared with; -1 for none.
        coordinates: (Q, 2, h, w) places of the cells.
        position_weight: taken off s per squared distance of cell and prototype.

    Returns:
        (Q, n, h, w).
    """
    size = features.shape[2:]
    query = SCALE * unit(features, 1).flatten(2).transpose(1, 2)  # (Q, h w, D)
    where = None if coordinates is None or not position_weight else coordinates.flatten(2).transpose(1, 2)
    out = []
    for vectors, valid, places, index in zip(bank.vectors, bank.valid, bank.places, chosen, strict=True):
        safe = index.clamp(min=0)
        there = (valid[safe] & (index >= 0).unsqueeze(2)).flatten(1)  # (Q, k M)
        far = torch.zeros_like(there, dtype=query.dtype).masked_fill(~there, _ABSENT).unsqueeze(1)
        s = torch.baddbmm(far, query, vectors[safe].flatten(1, 2).transpose(1, 2))  # (Q, h w, k M)
        if where is not None:
            s = s - position_weight * torch.cdist(where, places[safe].flatten(1, 2)).square()
        mean = (s.softmax(dim=2) * s).sum(2)
        out.append(mean.masked_fill(~there.any(1, keepdim=True), -SCALE))
    return torch.stack(out, dim=1).reshape(len(features), len(out), *size)
