"""The last stage of a super-resolution tail, a few planes at a time, equal to the whole but for rounding.

Instance normalization needs the mean and variance of whole maps, so the planes are gone through three times:
first for the statistics of the first convolution and the shortcut, then for those of the second convolution,
then for the output. Only one map of `tail_width` channels is kept at high resolution; the enlarged map of
`width` channels, the largest of all, exists for a few planes only. It is computed twice, and the planes where
blocks meet more often: in blocks of 8 planes three times in all, which makes 1.56 times the operations of
the tail at once at the published widths, in blocks of 16 planes 1.42 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.types import Three
from seguro.networks.resolution import product
from seguro.networks.superres import EPS, SLOPE, ResConv, Stage, Tail, Up

DEPTH = 16
"""Planes per block: more take more memory, fewer are computed again more often."""


class Moments:
    """Mean and variance per sample and channel of a map that comes in parts (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(())
        self.square = torch.zeros(())

    def add(self, part: Tensor) -> None:
        """Take in the next voxels (N, C, Z, Y, X)."""
        n = part[0, 0].numel()
        variance, mean = torch.var_mean(part.double().flatten(2), dim=2, correction=0)  # (N, C)
        total = self.n + n
        shift = mean - self.mean.to(mean)
        self.square = self.square.to(mean) + variance * n + shift**2 * (self.n * n / total)
        self.mean = self.mean.to(mean) + shift * (n / total)
        self.n = total

    def normalize(self, x: Tensor) -> Tensor:
        """Return x (N, C, Z, Y, X) with the mean and the variance of all parts taken out."""
        scale = (self.square / self.n + EPS).rsqrt()
        mean, scale = (v.to(x.dtype)[:, :, None, None, None] for v in (self.mean, scale))
        return (x - mean) * scale


def by_planes(tail: Tail, features: Tensor, *, depth: int = DEPTH) -> Iterator[Tensor]:
    """Yield the output of `tail` in touching blocks of `depth` planes: what `tail(features)` would return.

    All stages but the last are computed whole; they are an eighth as large or smaller. Meant for prediction:
    with gradients recorded, nothing is saved.

    Args:
        tail: of at least one stage.
        features: (N, width, Z, Y, X).
        depth: planes per block.

    Yields:
        (N, classes, up to `depth`, Y * scale, X * scale).
    """
    *before, last = cast(list[Stage], list(tail.stages))
    up, block = last.up, last.block
    for stage in before:
        features = stage(features)
    n = features.shape[2] * up.conv.stride[0]
    blocks = [(a, min(a + depth, n)) for a in range(0, n, depth)]
    kept, first, short = _first(up, block, features, blocks, n)
    second = _second(block, kept, first, blocks)
    for a, b in blocks:
        own = short.normalize(block.shortcut(_enlarged(up, features, a, b)))
        y = F.leaky_relu(second.normalize(kept[:, :, a:b]) + own, SLOPE)
        yield tail.head(y)


def scale_of(tail: Tail) -> Three:
    """Return by how much the tail enlarges each axis."""
    stages = cast(list[Stage], list(tail.stages))
    z, y, x = (product(s.up.conv.stride[a] for s in stages) for a in range(3))
    return z, y, x


def tail_bytes(tail: Tail, features: Tensor) -> int:
    """Return about how many bytes the last stage holds at once when it is computed whole; 0 without one."""
    stages = cast(list[Stage], list(tail.stages))
    if not stages:
        return 0
    last = stages[-1]
    voxels = features[:, 0].numel() * product(scale_of(tail))
    # the enlarged map, and of the block the first convolution, its normalized copy, and the second
    return voxels * 4 * (last.up.conv.out_channels + 3 * last.block.first.out_channels)


def _first(
    up: Up, block: ResConv, features: Tensor, blocks: list[tuple[int, int]], n: int
) -> tuple[Tensor, Moments, Moments]:
    """Return the first convolution's map, its moments, and those of the shortcut."""
    kept = features.new_empty(0)
    first, short = Moments(), Moments()
    for a, b in blocks:
        low, high = max(a - 1, 0), min(b + 1, n)
        u = _enlarged(up, features, low, high)
        short.add(block.shortcut(u[:, :, a - low : b - low]))
        y = _convolved(block.first, u, before=a == 0, behind=b == n)
        first.add(y)
        if not kept.numel():
            kept = y.new_empty((*y.shape[:2], n, *y.shape[3:]))
        kept[:, :, a:b] = y
    return kept, first, short


def _second(block: ResConv, kept: Tensor, first: Moments, blocks: list[tuple[int, int]]) -> Moments:
    """Replace the first convolution's map by the second's, plane by plane, and return its moments."""
    second, n = Moments(), kept.shape[2]
    last = kept[:, :, :0]
    for a, b in blocks:
        raw = torch.cat([last, kept[:, :, a : min(b + 1, n)]], dim=2)
        last = kept[:, :, b - 1 : b].clone()  # the next block needs it as it was
        y = F.leaky_relu(first.normalize(raw), SLOPE)
        y = _convolved(block.second, y, before=a == 0, behind=b == n)
        second.add(y)
        kept[:, :, a:b] = y
    return second


def _enlarged(up: Up, features: Tensor, start: int, stop: int) -> Tensor:
    """Return planes start..stop of `up(features)`, from the few planes below them that matter."""
    factor = up.conv.stride[0]
    low, high = start, stop
    if factor == 2:  # each plane comes from the one below it and that one's nearer neighbor
        low, high = max((start - 1) // 2, 0), min(stop // 2 + 1, features.shape[2])
    at = start - low * factor
    return up(features[:, :, low:high])[:, :, at : at + stop - start]  # type: ignore[no-any-return]


def _convolved(conv: nn.Conv3d, x: Tensor, *, before: bool, behind: bool) -> Tensor:
    """Return the convolution of planes that come with their neighbors; zeros beyond the volume's ends."""
    x = F.pad(x, (0, 0, 0, 0, int(before), int(behind)))
    return F.conv3d(x, conv.weight, conv.bias, padding=(0, 1, 1))
