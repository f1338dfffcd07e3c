"""Soft targets: guesses and their sharpening, labels as probabilities, and where a target counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seguro.core.types import IGNORE, Classes
from seguro.losses import annotated_mask, one_hot, probabilities
from seguro.networks.mixing import MixPlan

COUNTS = 1 - 1e-6
"""Share of a mixed voxel's target that must be known for it to count: all, up to rounding."""


def sharpen(p: Tensor, temperature: float, classes: Classes) -> Tensor:
    """Return probabilities (N, n, *size) to the power 1 / temperature, normalized again.

    Over classes, or for overlapping regions each against its complement. The largest is divided out before
    the power, which at low temperatures would otherwise be 0 for all.
    """
    if temperature == 1:
        return p
    if classes.regions:
        largest = torch.maximum(p, 1 - p)
        power = (p / largest) ** (1 / temperature)
        return power / (power + ((1 - p) / largest) ** (1 / temperature))
    power = (p / p.amax(1, keepdim=True)) ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


@contextmanager
def mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Put the network into training or evaluation mode, and every part back as it was."""
    before = [(m, m.training) for m in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@torch.no_grad()
def guess(network: nn.Module, views: Tensor, classes: Classes) -> Tensor:
    """Return the mean (N, n, *size) of the network's probabilities for views (N, K, C, *size)."""
    found = [probabilities(network(view).float(), classes) for view in views.unbind(1)]
    return torch.stack(found).mean(0)


def incomplete(annotated: Tensor, labelled: Tensor) -> Tensor:
    """Return (N,) whether a labelled sample has a class that nobody looked for."""
    return labelled & ~(annotated > 0).all(1)


def completed(label: Tensor, annotated: Tensor, classes: Classes, p: Tensor | None) -> Tensor:
    """Return labels (N, *size) as probabilities (N, n, *size).

    Where the label is background, a class nobody looked for may be there: the background's one is shared out
    as the probabilities `p` have it. Cross entropy with that target has the gradient of the marginal loss of
    `seguro.losses`. Of overlapping regions, one that was not looked for takes its own probability.
    """
    target = one_hot(label, classes)
    if p is None:
        return target
    missing = (annotated_mask(annotated, classes) == 0).reshape(*target.shape[:2], *[1] * (target.ndim - 2))
    if classes.regions:
        return torch.where(missing, p, target)
    possible = missing.clone()
    possible[:, 0] = True
    split = torch.where(possible, p.clamp(min=1e-30), 0.0)
    split = split / split.sum(1, keepdim=True)
    return torch.where(target[:, :1] > 0, split, target)


def known(label: Tensor, labelled: Tensor, guessed: Tensor, confidence: float, classes: Classes) -> Tensor:
    """Return (N, *size) 1 where the target is known: not ignored, or guessed surely enough."""
    sure = torch.maximum(guessed, 1 - guessed).amin(1) if classes.regions else guessed.amax(1)
    rows = labelled.reshape(-1, *[1] * (label.ndim - 1))
    return torch.where(rows, label != IGNORE, sure >= confidence).float()


def mixed(target: Tensor, counts: Tensor, plan: MixPlan | None) -> tuple[Tensor, Tensor]:
    """Return target and `counts` as the network's answer is mixed.

    A mixed voxel counts where every part of its target is known.
    """
    if plan is None:
        return target, counts
    whole = plan(counts.unsqueeze(1)).squeeze(1) >= COUNTS
    return plan(target), whole.float()
