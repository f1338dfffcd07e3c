"""Scores from the planned grid back to the file's own grid, a few planes at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.errors import GeometryError
from seguro.core.types import Three
from seguro.inference.sliding import Slab

BLOCK_BYTES = 64 << 20
"""Aimed size of one block of native scores."""


def native(
    slabs: Iterator[Slab], planned: Three, own: Three, *, axis: int, depth: int | None = None
) -> Iterator[Slab]:
    """Yield the slabs linearly interpolated to the native grid, in blocks of `depth` planes.

    The edges of the field of view coincide: native voxel i lies at (i + 0.5) * n_planned / n_native - 0.5,
    clamped to the outermost centers, as torch's `interpolate(mode="trilinear", align_corners=False)` does on
    the full array. Only the planned planes that the next block needs are held. Equal shapes pass unchanged.

    Args:
        slabs: (start, stop, scores (classes, Z, Y, X)) on the planned grid, touching, in order.
        planned: (Z, Y, X) of the planned grid.
        own: (Z, Y, X) of the native canonical grid.
        axis: slab axis, the same on both grids.
        depth: native planes per block; several models with equal `depth` yield equal blocks.

    Raises:
        GeometryError: the slabs leave a gap or end early.
    """
    n_in, n_out = planned[axis], own[axis]
    plane = tuple(n for a, n in enumerate(own) if a != axis)
    held: Tensor | None = None  # (classes, planes, A, B) from planned plane `low` on
    low = done = 0
    for start, stop, scores in slabs:
        part = scores.movedim(axis + 1, 1)
        reached = low + (0 if held is None else held.shape[1])
        if start != reached:
            raise GeometryError(f"slabs must touch: one begins at plane {start} where {reached} is next")
        held = part if held is None else torch.cat([held, part], dim=1)
        while done < n_out:
            size = depth or block_depth(held.shape[0], own, axis)
            end = min(done + size, n_out)
            first, t = _positions(done, end, n_in, n_out, held)
            last = min(int(first[-1]) + 1, n_in - 1)
            if last >= stop:
                break
            yield done, end, _resized(_between(held, first - low, t), plane).movedim(1, axis + 1)
            done = end
        needed = n_in if done == n_out else int(_positions(done, done + 1, n_in, n_out, held)[0][0])
        drop = min(max(needed - low, 0), held.shape[1])
        held, low = held[:, drop:].clone(), low + drop
    if done != n_out:
        raise GeometryError(f"the slabs ended before plane {n_in} of the planned grid")


def block_depth(classes: int, own: Three, axis: int) -> int:
    """Return how many native planes make a block of about BLOCK_BYTES, at least one."""
    plane = 4 * classes * own[0] * own[1] * own[2] // own[axis]
    return max(1, min(own[axis], BLOCK_BYTES // max(plane, 1)))


def _positions(start: int, stop: int, n_in: int, n_out: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return for native planes start..stop the planned plane below and the fraction above it."""
    at = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * n_in / n_out - 0.5).clamp(0, n_in - 1)
    first = at.floor()
    return first.long(), (at - first).to(like.dtype)


def _between(held: Tensor, first: Tensor, t: Tensor) -> Tensor:
    """Return planes of `held` (classes, planes, A, B) mixed linearly; `first` counts within `held`."""
    if not bool((t != 0).any()):
        return held.index_select(1, first.to(held.device))
    second = (first + 1).clamp(max=held.shape[1] - 1).to(held.device)
    weight = t.to(held.device).reshape(1, -1, 1, 1)
    return held.index_select(1, first.to(held.device)) * (1 - weight) + held.index_select(1, second) * weight


def _resized(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return (classes, planes, *size)."""
    if tuple(planes.shape[2:]) == size:
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
