"""The pixels that the encoder sees: of one size in all cases, so that likeness is no matter of scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from seguro.data.plan import Plan


@dataclass(frozen=True)
class Raster:
    """From planned slices (A, B) to what the encoder sees."""

    axis: int
    """Canonical axis that slices are cut along."""
    zoom: tuple[float, float]
    """Network pixels per planned pixel, of both axes."""
    stride: int
    """Network pixels per feature cell."""
    cell: float
    """Side of a feature cell in the plan's unit."""

    def size(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Return the network size of a planned slice: whole cells, at least one."""
        a, b = (
            max(round(n * z / self.stride), 1) * self.stride for n, z in zip(plane, self.zoom, strict=True)
        )
        return a, b

    def seen(self, slices: Tensor) -> Tensor:
        """Return planned slices (N, C, A, B) as the encoder sees them, smoothed where they shrink."""
        size = self.size((slices.shape[2], slices.shape[3]))
        if tuple(slices.shape[2:]) == size:
            return slices
        return F.interpolate(slices, size, mode="bilinear", align_corners=False, antialias=True)


def raster(plan: Plan, size: int, stride: int) -> Raster:
    """Return the raster in which the longer in-plane side of the median case has `size` square pixels."""
    a, b = (k for k in (0, 1, 2) if k != plan.slice_axis)
    pixel = max(plan.fingerprint.shape[k] * plan.spacing[k] for k in (a, b)) / size
    zoom = (plan.spacing[a] / pixel, plan.spacing[b] / pixel)
    return Raster(plan.slice_axis, zoom, stride, pixel * stride)
