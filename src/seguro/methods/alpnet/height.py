"""Where a slice lies in the scan of the support: heights found by likeness of slices, without labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.networks.prototype import unit

GRID = 4
"""Cells per side of a slice's description."""
STRETCHES = 9
LARGEST_STRETCH = 1.4
"""Scans may cover this much more or less of the body than the support's, beside a shift."""
LARGEST_SHIFT = 0.35
"""Of the support's scan."""

Prior = Literal["aligned", "fraction", "none"]


def describe(features: Tensor) -> Tensor:
    """Return one description (Z, GRID^2 D) of each slice's features (Z, D, h, w)."""
    return F.adaptive_avg_pool2d(features, GRID).flatten(1)


def heights(query: Tensor, shot: Tensor, prior: Prior) -> Tensor:
    """Return the slice of the shot that each query slice corresponds to, (Zq,) float, in order.

    aligned: the affine map of heights under which descriptions agree best, among those near equal shares.

    Args:
        query: (Zq, F) descriptions.
        shot: (Zs, F) descriptions.
        prior: "aligned" or "fraction"; "none" is as "fraction", for lack of anything better.
    """
    n, m = len(query), len(shot)
    middle = torch.arange(n, device=query.device, dtype=torch.float32) - (n - 1) / 2
    if prior != "aligned" or n == 1 or m == 1:
        return ((m - 1) / 2 + middle * (m / n)).clamp(0, m - 1)
    mean = (query.mean(0, keepdim=True) + shot.mean(0, keepdim=True)) / 2
    alike = unit(query - mean, 1) @ unit(shot - mean, 1).T  # (Zq, Zs)
    stretch = torch.logspace(-1, 1, STRETCHES, LARGEST_STRETCH, device=query.device) * (m / n)
    shift = torch.arange(-LARGEST_SHIFT, LARGEST_SHIFT + 1e-6, 0.5 / m, device=query.device) * m
    at = (m - 1) / 2 + shift[None, :, None] + stretch[:, None, None] * middle  # (stretches, shifts, Zq)
    inside = (at >= 0) & (at <= m - 1)
    value = torch.where(inside, _between(alike, at.clamp(0, m - 1)), 0.0)
    best = int(value.sum(2).flatten().argmax())
    return at.flatten(0, 1)[best].clamp(0, m - 1)


def _between(alike: Tensor, at: Tensor) -> Tensor:
    """Return `alike` (Zq, Zs) read linearly at heights (..., Zq)."""
    low = at.floor().long().clamp(max=alike.shape[1] - 1)
    high = (low + 1).clamp(max=alike.shape[1] - 1)
    rows = torch.arange(len(alike), device=alike.device)
    part = at - low
    return (1 - part) * alike[rows, low] + part * alike[rows, high]


def presence(shows: Tensor, annotated: Tensor, at: Tensor, margin: int) -> Tensor:
    """Return how likely a class is at heights `at` (Zq,), in [0, 1], from the slices that show it.

    Between annotated slices it is interpolated, beyond the last of them it stays as it is there.

    Args:
        shows: (Zs,) bool, whether a slice of the shot shows the class.
        annotated: (Zs,) bool, whether it was looked for there; at least one.
        at: heights in slices of the shot.
        margin: slices beyond those that show it where it may still be.
    """
    known = annotated.nonzero().flatten()
    z = torch.arange(len(shows), device=shows.device, dtype=torch.float32)
    value = _interpolated(z, known.float(), shows[known].float())
    if margin:
        value = F.max_pool1d(value[None, None], 2 * margin + 1, 1, margin)[0, 0]
    return _interpolated(at, z, value)


def farness(at: Tensor, among: Tensor, n: int) -> Tensor:
    """Return how far heights `at` (Zq,) lie from the nearest of slices `among` (m,), as a share of n slices.

    A scan of one slice has no heights: as far as can be, 1.
    """
    if n == 1:
        return torch.ones_like(at)
    return (at[:, None] - among).abs().amin(1) / n


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return y (n,) at rising x (n,) read linearly at `at`, the ends continued."""
    right = torch.searchsorted(x, at.contiguous()).clamp(max=len(x) - 1)
    left = (right - 1).clamp(min=0)
    gap = (x[right] - x[left]).clamp(min=1e-6)
    part = ((at - x[left]) / gap).clamp(0, 1)
    return (1 - part) * y[left] + part * y[right]
