"""The losses of PFSeg: segmentation, restoration of the image, and what ties the two together.

P (N, F, Z, Y, X) are probabilities of the F foreground classes and Y their labels, both zero where the label
says ignore; S (N, C, Z, Y, X) is the restored image and X the true one, in [0, 1]; `known` (N, F) is 1 where
a class was looked for. Each loss is the mean over samples of per-sample values.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import IGNORE, Classes
from seguro.losses import annotated_mask, one_hot, probabilities


def foreground(
    logits: Tensor, label: Tensor, annotated: Tensor, classes: Classes
) -> tuple[Tensor, Tensor, Tensor]:
    """Return P, Y and `known` of logits (N, n, *size), stored labels (N, *size) and annotated (N, F)."""
    first = 0 if classes.regions else 1
    p = probabilities(logits, classes)[:, first:] * (label != IGNORE).unsqueeze(1)
    return p, one_hot(label, classes)[:, first:], annotated_mask(annotated, classes)[:, first:]


def of_classes(per_class: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the known classes of (N, F), then over samples; 0 where none is known."""
    return ((per_class * known).sum(1) / known.sum(1).clamp(min=1)).mean()


def squared_dice(p: Tensor, y: Tensor, known: Tensor, *, factor: float = 2.0) -> Tensor:
    """Return 1 - (factor |PY| + 1) / (|P|^2 + |Y|^2 + 1); factor 1 is that of the released code."""
    dims = (2, 3, 4)
    overlap, total = (p * y).sum(dims), (p * p).sum(dims) + (y * y).sum(dims)
    return of_classes(1 - (factor * overlap + 1) / (total + 1), known)


def restoration(s: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of the image; inside `mask` (N, 1, Z, Y, X), still over all voxels."""
    error = s - x if mask is None else mask * (s - x)
    return error.square().mean()


def target_enhanced(p: Tensor, s: Tensor, y: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Return the mean squared error of P S against Y X, of each class and channel."""
    per_class = [
        sum(
            (p[:, f] * s[:, c] - y[:, f] * x[:, c]).square().mean(dim=(1, 2, 3)) / s.shape[1]
            for c in range(s.shape[1])
        )
        for f in range(p.shape[1])
    ]
    return of_classes(torch.stack([torch.as_tensor(v) for v in per_class], dim=1), known)


def spatial_similarity(
    p: Tensor,
    s: Tensor,
    y: Tensor,
    x: Tensor,
    known: Tensor,
    *,
    pool: int,
    norm: Literal["paper", "mean"],
) -> Tensor:
    """Return how far the affinities between places differ, of each class and channel.

    With a and b what the cells of `pool`^3 voxels hold of P S and Y X, |a a' - b b'| over all pairs of cells:
    "paper" pools P and S apart, sums, and divides by (h w)^2 of the h x w cells of a slice; "mean" pools the
    product and takes the mean, so that it is 0 for a perfect output and depends on no size.
    """
    rows = []
    for f in range(p.shape[1]):
        per_channel = []
        for c in range(s.shape[1]):
            one, two, truth, image = p[:, f], s[:, c], y[:, f], x[:, c]
            apart = norm == "paper"
            a = pooled(one, pool) * pooled(two, pool) if apart else pooled(one * two, pool)
            b = pooled(truth * image, pool)
            cells = a[0].numel()
            divide = (a.shape[2] * a.shape[3]) ** 2 if apart else cells**2
            per_channel.append(affinity_difference(a.flatten(1), b.flatten(1)) / divide)
        rows.append(torch.stack(per_channel).mean(0))
    return of_classes(torch.stack(rows, dim=1), known)


def pooled(x: Tensor, pool: int) -> Tensor:
    """Return the means of x (N, Z, Y, X) over blocks of `pool` voxels per axis, what is left over dropped.

    An axis shorter than `pool` is one block.
    """
    size = [min(pool, n) for n in x.shape[1:]]
    return F.avg_pool3d(x.unsqueeze(1), size).squeeze(1)


def affinity_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return (N,) the sum over pairs i, j of |a_i a_j - b_i b_j| for a and b (N, cells)."""
    return torch.stack(
        [(torch.outer(u, u) - torch.outer(v, v)).abs().sum() for u, v in zip(a, b, strict=True)]
    )
