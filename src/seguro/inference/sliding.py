"""Overlapping windows with Gaussian weights, pulled slab by slab: never a buffer of classes x volume.

Weights are products of one profile per axis, and windows lie on a product of starts, so the sum of weights at
a voxel is a product too. Each window is therefore weighted by per-axis shares that already add up to one:
there is no second buffer of weights and no division at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.core.types import Three
from seguro.inference.forward import Autocast, Forward
from seguro.methods.contract import Predictor, Windows

SIGMA = 1 / 8
"""Standard deviation of the Gaussian weight, as a fraction of the window; 3e-4 of the peak at a face."""

Slab = tuple[int, int, Tensor]
"""(start, stop, values): values (classes, Z, Y, X), from start to stop along the slab axis."""


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Return where windows of `patch` begin on an axis of `size` voxels, evenly spread, the ends touched.

    Neighbors overlap by at least `overlap` of a window; one window where the axis is not longer.

    Raises:
        ConfigError: overlap outside [0, 1).

    Example:
        >>> window_starts(10, 4, 0.5)
        [0, 2, 4, 6]
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap {overlap}: expected a fraction from 0 up to but not including 1")
    if size <= patch:
        return [0]
    step = max(int(patch * (1 - overlap)), 1)
    gaps = -(-(size - patch) // step)  # rounded up
    return [round(i * (size - patch) / gaps) for i in range(gaps + 1)]


def profile(n: int) -> Tensor:
    """Return the weight along one axis of a window of `n` voxels: (n,) float64, 1 in the middle, positive."""
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    return torch.exp(-0.5 * (at / (SIGMA * n)) ** 2)


def gaussian(patch: Sequence[int]) -> Tensor:
    """Return the weight of each voxel of a window, float64 of shape `patch`, positive everywhere."""
    out = torch.ones((), dtype=torch.float64)
    for n in patch:
        out = out[..., None] * profile(n)
    return out


def shares(starts: Sequence[int], patch: int) -> list[Tensor]:
    """Return for each window its share (patch,) float32 along one axis; those of a voxel add up to one."""
    weight = profile(patch)
    total = torch.zeros(starts[-1] + patch, dtype=torch.float64)
    for s in starts:
        total[s : s + patch] += weight
    return [(weight / total[s : s + patch]).float() for s in starts]


def padded(x: Tensor, size: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return x (C, Z, Y, X), edge repeated until no axis is shorter than `size`, and the voxels put before.

    The edge value, as training does beyond the volume. Half of the padding goes before, the odd voxel behind.
    """
    before = []
    for axis, n in enumerate(size):
        have = x.shape[axis + 1]
        front = max(n - have, 0) // 2
        before.append(front)
        if n > have:
            index = (torch.arange(n, device=x.device) - front).clamp(0, have - 1)
            x = x.index_select(axis + 1, index)
    return x, before


def as_tensor(x: Tensor | NDArray[np.float32]) -> Tensor:
    """Return x as a float32 tensor, without a copy where it is one already."""
    return x.float() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def slabs(
    predictor: Predictor,
    x: Tensor | NDArray[np.float32],
    tiling: Windows,
    *,
    axis: int = 0,
    batch: int = 1,
    flips: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: Autocast | None = None,
) -> Iterator[Slab]:
    """Yield blended logits of x from the low to the high end of `axis`; slabs touch and cover x exactly.

    Planes are handed on as soon as no later window touches them, so the only buffer is one window deep. The
    result stays differentiable in x where gradients are recorded.

    Args:
        predictor: called on windows (N, C, *size).
        x: (C, Z, Y, X) float32 in the planned grid.
        tiling: window size and overlap; a smaller volume is padded with its edge, then cropped.
        axis: canonical axis along which slabs are cut.
        batch: windows per call.
        flips: canonical axes mirrored at test time.
        device: where the network runs and the slabs lie.
        autocast: context of the calls.

    Yields:
        (start, stop, logits (classes, Z, Y, X) float32, `stop - start` long along `axis`).
    """
    forward = Forward(predictor, device=device, flips=flips, autocast=autocast)
    image = as_tensor(x)
    shape = image.shape[1:]
    image, before = padded(image, tiling.size)
    size = tiling.size
    starts = [window_starts(n, p, tiling.overlap) for n, p in zip(image.shape[1:], size, strict=True)]
    part = [[w.to(forward.device) for w in shares(s, p)] for s, p in zip(starts, size, strict=True)]
    a, b = (k for k in (0, 1, 2) if k != axis)
    plane = list(product(range(len(starts[a])), range(len(starts[b]))))
    room = [predictor.classes.n, *image.shape[1:]]
    room[axis + 1] = size[axis]
    buffer = torch.zeros(room, device=forward.device)
    crop = _crop(shape, before, axis)
    low, high = before[axis], before[axis] + shape[axis]
    for i, start in enumerate(starts[axis]):
        for group in (plane[k : k + batch] for k in range(0, len(plane), batch)):
            index = [_indices(axis, i, j, k) for j, k in group]
            corners = [_corner(starts, ijk) for ijk in index]
            logits = forward(torch.stack([image[_box(c, size)] for c in corners]))
            for ijk, corner, values in zip(index, corners, logits, strict=True):
                _check(values, predictor, size)
                for k in range(3):
                    values = values * _column(part[k][ijk[k]], k)
                corner[axis] = 0
                buffer[_box(corner, size)] += values
        done = starts[axis][i + 1] if i + 1 < len(starts[axis]) else start + size[axis]
        first, last = max(start, low), min(done, high)
        if last > first:
            ready = buffer.narrow(axis + 1, first - start, last - first)[crop]
            yield first - low, last - low, ready.clone()
        buffer = _shifted(buffer, axis + 1, done - start)


def _indices(axis: int, i: int, j: int, k: int) -> list[int]:
    """Return the (z, y, x) index of a window from its index along the slab axis and the two others."""
    out = [j, k]
    out.insert(axis, i)
    return out


def _corner(starts: Sequence[Sequence[int]], index: Sequence[int]) -> list[int]:
    return [s[i] for s, i in zip(starts, index, strict=True)]


def _box(corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a window in (C, Z, Y, X)."""
    return (slice(None), *(slice(c, c + n) for c, n in zip(corner, size, strict=True)))


def _crop(shape: Sequence[int], before: Sequence[int], axis: int) -> tuple[slice, ...]:
    """Return the index that undoes the padding of the two axes in the plane of a slab."""
    box = [slice(f, f + n) for f, n in zip(before, shape, strict=True)]
    box[axis] = slice(None)
    return (slice(None), *box)


def _column(share: Tensor, axis: int) -> Tensor:
    """Return a share shaped so that it multiplies (classes, Z, Y, X) along `axis`."""
    return share.reshape([-1 if k == axis else 1 for k in range(3)])


def _shifted(buffer: Tensor, dim: int, by: int) -> Tensor:
    """Return the buffer with the first `by` planes dropped and as many zero planes behind."""
    keep = buffer.narrow(dim, by, buffer.shape[dim] - by)
    return torch.cat([keep, torch.zeros_like(buffer.narrow(dim, 0, by))], dim=dim)


def _check(logits: Tensor, predictor: Predictor, size: Three) -> None:
    expected = (predictor.classes.n, *size)
    if tuple(logits.shape) != expected:
        raise ConfigError(
            f"the predictor returned {tuple(logits.shape)} (classes, z, y, x) for a window, expected "
            f"{expected}; a network must keep the size of its input"
        )
