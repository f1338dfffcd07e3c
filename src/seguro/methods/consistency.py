"""What semi-supervised methods are made of: ramps, pseudo labels and where they count, boxes, pasting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from seguro.core.types import IGNORE, Classes
from seguro.losses import probabilities

Box = tuple[slice, ...]


def ramp(progress: float, until: float) -> float:
    """Return the share of its final value that a weight has: exp(-5 (1 - t)^2), t = progress / until up to 1.

    Laine and Aila 2017; `until` 0 for no ramp.
    """
    if until == 0:
        return 1.0
    rest = 1.0 - min(max(progress / until, 0.0), 1.0)
    return math.exp(-5.0 * rest * rest)


def squared_difference(logits: Tensor, target: Tensor, classes: Classes) -> Tensor:
    """Return the mean squared difference of probabilities and `target`, both (N, n, *size); a scalar."""
    return (probabilities(logits, classes) - target).square().mean()


@torch.no_grad()
def pseudo_label(p: Tensor, classes: Classes) -> Tensor:
    """Return stored labels (N, *size) uint8 of probabilities (N, n, *size).

    Overlapping regions above one half are painted in the order in which predictions are.
    """
    if not classes.regions:
        return p.argmax(dim=1).to(torch.uint8)
    label = torch.zeros_like(p[:, 0], dtype=torch.uint8)
    for region, value in zip(p.unbind(1), classes.paint, strict=True):
        label[region > 0.5] = value
    return label


@torch.no_grad()
def certainty(p: Tensor, classes: Classes) -> Tensor:
    """Return (N, *size) the probability of the label, of regions the least sure; from (N, n, *size)."""
    return torch.maximum(p, 1 - p).amin(dim=1) if classes.regions else p.amax(dim=1)


def where_sure(label: Tensor, sure: Tensor, threshold: float) -> Tensor:
    """Return the label (N, *size), IGNORE where `sure` is below the threshold."""
    return torch.where(sure >= threshold, label, torch.full_like(label, IGNORE))


def largest_components(label: Tensor) -> Tensor:
    """Return labels (N, *size), 2-D or 3-D, in which each value but 0 keeps its largest piece.

    Voxels of a piece touch by faces.
    """
    kept = label.cpu().numpy().copy()
    for sample in kept:
        for value in np.setdiff1d(sample, (0, IGNORE)):
            mask = sample == value
            pieces, n = ndimage.label(mask)
            if n > 1:
                largest = int(np.bincount(pieces.ravel())[1:].argmax()) + 1
                sample[mask & (pieces != largest)] = 0
    return torch.from_numpy(kept).to(label.device)


def uniforms(n: int, generator: torch.Generator) -> list[float]:
    """Return `n` numbers in [0, 1)."""
    return [float(u) for u in torch.rand(n, generator=generator, device=generator.device).cpu()]


def _placed(lengths: Sequence[int], size: Sequence[int], where: Sequence[float]) -> Box:
    """Return the box of `lengths` at the place inside `size` that numbers in [0, 1) choose."""
    starts = [int(u * (n - length + 1)) for length, n, u in zip(lengths, size, where, strict=True)]
    return tuple(slice(s, s + length) for s, length in zip(starts, lengths, strict=True))


def draw_zero_box(size: Sequence[int], share: float, generator: torch.Generator) -> Box:
    """Return a box of `share` of every axis, anywhere inside (BCP, section 3.1)."""
    lengths = [max(1, int(n * share + 1e-9)) for n in size]
    return _placed(lengths, size, uniforms(len(size), generator))


def draw_cut_box(
    size: Sequence[int],
    generator: torch.Generator,
    *,
    p: float,
    volume: tuple[float, float] = (0.02, 0.4),
    ratio: float = 0.3,
) -> Box | None:
    """Return the box that CutMix replaces, with probability `p`, else None.

    Args:
        size: of the patch.
        generator: the only source of randomness.
        p: how often there is one.
        volume: smallest and largest share of the patch.
        ratio: smallest ratio of the two last sides; the largest is its inverse.
    """
    happens, part, shape, *where = uniforms(3 + len(size), generator)
    if happens >= p:
        return None
    side = (volume[0] + part * (volume[1] - volume[0])) ** (1 / len(size))
    low, high = max(ratio, side * side), min(1 / ratio, 1 / (side * side))  # no side is longer than the patch
    stretch = math.sqrt(low + shape * (high - low))
    sides = [side] * (len(size) - 2) + [side * stretch, side / stretch]
    lengths = [min(max(1, int(n * s)), n) for n, s in zip(size, sides, strict=True)]
    return _placed(lengths, size, where)


def inside(boxes: Sequence[Box | None], size: Sequence[int], device: torch.device) -> Tensor:
    """Return (N, *size) bool, true inside each sample's box."""
    mask = torch.zeros((len(boxes), *size), dtype=torch.bool)
    for row, box in zip(mask, boxes, strict=True):
        if box is not None:
            row[box] = True
    return mask.to(device)


def paste(onto: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return `onto` with `other` where `mask` (N, *size) is true; (N, *size), or (N, C, *size)."""
    return torch.where(mask if onto.ndim == mask.ndim else mask.unsqueeze(1), other, onto)
