"""Segmentation losses that know what was annotated: ignore label, mask, and classes nobody looked for.

A class that is not annotated in a case is never taken as background. In exclusive tasks its probability is
added to the background's where the label says background (marginal loss, Shi et al. 2021, Med. Image Anal.
70, eq. 4); in region tasks its term is left out. All losses are means over samples of per-sample values, so
that one rank with a batch of two and two ranks with one each give the same gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.types import IGNORE, Classes

DICE_SMOOTH = 1.0
"""Added to numerator and denominator, in voxels.

A crop without the class gives zero loss for an empty prediction."""


def one_hot(label: Tensor, classes: Classes) -> Tensor:
    """Return float targets (N, n, *size) of stored labels (N, *size); ignored voxels are zero throughout."""
    if classes.regions:
        hits = [
            torch.isin(label, torch.tensor(v, device=label.device, dtype=label.dtype)) for v in classes.values
        ]
        return torch.stack(hits, dim=1).float()
    hot = F.one_hot(torch.where(label == IGNORE, 0, label).long(), classes.n).movedim(-1, 1).float()
    return hot * (label != IGNORE).unsqueeze(1)


def annotated_mask(annotated: Tensor, classes: Classes) -> Tensor:
    """Return (N, n) with 1 where a class was looked for, as the background always was.

    `annotated` is (N, foreground).
    """
    if classes.regions:
        return annotated.float()
    return torch.cat([torch.ones_like(annotated[:, :1]), annotated], dim=1).float()


def probabilities(logits: Tensor, classes: Classes) -> Tensor:
    """Return softmax over classes, or a sigmoid per region; (N, n, *size)."""
    return logits.sigmoid() if classes.regions else logits.softmax(dim=1)


def cross_entropy(logits: Tensor, label: Tensor, annotated: Tensor, classes: Classes) -> Tensor:
    """Return the cross entropy, a scalar.

    Args:
        logits: (N, n, *size).
        label: (N, *size) stored labels; IGNORE voxels do not count.
        annotated: (N, foreground) 1 where the class was looked for in the sample's case.
        classes: the task.
    """
    valid = (label != IGNORE).float()
    known = annotated_mask(annotated, classes)
    if classes.regions:
        target = one_hot(label, classes)
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weight = known.reshape(*known.shape, *[1] * valid[0].ndim)
        per_voxel = (per_voxel * weight).sum(1) / weight.sum(1).clamp(min=1)
    else:
        per_voxel = F.nll_loss(
            _marginal_log(logits, known), label.long(), ignore_index=IGNORE, reduction="none"
        )
    dims = tuple(range(1, label.ndim))
    return ((per_voxel * valid).sum(dims) / valid.sum(dims).clamp(min=1)).mean()


def _marginal_log(logits: Tensor, known: Tensor) -> Tensor:
    """Return log-probabilities with those of unknown classes added to the background's."""
    log_p = logits.log_softmax(dim=1)
    if bool((known == 1).all()):
        return log_p
    unknown = (known == 0).reshape(*known.shape, *[1] * (logits.ndim - 2))
    background = torch.zeros_like(unknown)
    background[:, 0] = True
    merged = torch.where(unknown | background, log_p, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([merged, log_p[:, 1:]], dim=1)


def soft_dice(
    logits: Tensor,
    label: Tensor,
    annotated: Tensor,
    classes: Classes,
    *,
    smooth: tuple[float, float] = (DICE_SMOOTH, DICE_SMOOTH),
) -> Tensor:
    """Return 1 - mean soft Dice over annotated foreground classes, per sample, then the mean over samples.

    Arguments as in `cross_entropy`, and `smooth`, what is added to numerator and denominator. A sample in
    which nothing was annotated gives zero.
    """
    p = probabilities(logits, classes) * (label != IGNORE).unsqueeze(1)
    target = one_hot(label, classes)
    known = annotated_mask(annotated, classes)
    if not classes.regions:
        p, target, known = p[:, 1:], target[:, 1:], known[:, 1:]
    dims = tuple(range(2, p.ndim))
    overlap = 2 * (p * target).sum(dims) + smooth[0]
    total = p.sum(dims) + target.sum(dims) + smooth[1]
    per_class = (1 - overlap / total) * known
    return (per_class.sum(1) / known.sum(1).clamp(min=1)).mean()
