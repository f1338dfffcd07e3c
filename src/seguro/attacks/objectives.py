"""What steers an attack: values to maximize, one per sample, of logits and truth.

All take (logits (N, n, *size), truth, progress of the attack in [0, 1]) and return (N,). Logits come with the
classes that are not annotated already merged into the background (`Truth.merged`), as the truth has them; no
objective takes them for an answer. Ignored voxels and regions
that were not looked for do not count. Exclusive tasks have one decision per voxel, tasks of regions one per
voxel and region; `_mean` averages over decisions. What is reported is hard Dice, whatever steers.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.attacks.victim import Objective, Truth
from seguro.core.errors import ConfigError

DICE_SMOOTH = 1.0
"""Voxels added to both sides of the Dice ratio, so that false alarms of an absent class have a gradient."""
MISSED = 0.7
"""Weight of a missed voxel in the Tversky objective, against 0.3 of a false alarm."""

SWITCH = 0.6
"""Share of the attack after which `margin_then_dice` steers by Dice."""


def _counted(logits: Tensor, truth: Truth) -> Tensor:
    """Return (N, decisions, *size) with 1 where a decision counts."""
    valid = truth.valid.unsqueeze(1).to(logits)
    if not truth.classes.regions:
        return valid
    return valid * truth.known.reshape(*truth.known.shape, *[1] * (logits.ndim - 2))


def _mean(value: Tensor, logits: Tensor, truth: Truth) -> Tensor:
    """Return the mean (N,) of values (N, decisions, *size) over the decisions that count."""
    counted = _counted(logits, truth)
    return (value * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def _log_true(logits: Tensor, truth: Truth) -> Tensor:
    """Return the log-probability (N, decisions, *size) of what is true; zero at ignored voxels."""
    if truth.classes.regions:
        return F.logsigmoid(torch.where(truth.hot > 0, logits, -logits))
    return (truth.hot * logits.log_softmax(1)).sum(1, keepdim=True)


def _advantage(logits: Tensor, truth: Truth) -> Tensor:
    """Return (N, decisions, *size) by how much the strongest wrong answer exceeds the true one, in logits.

    Zero where nothing but the background was looked for, so that no answer is wrong.
    """
    if truth.classes.regions:
        return torch.where(truth.hot > 0, -logits, logits)
    true = (truth.hot * logits).sum(1, keepdim=True)
    unknown = (truth.known == 0).reshape(*truth.known.shape, *[1] * (logits.ndim - 2))
    wrong = logits.masked_fill((truth.hot > 0) | unknown, -torch.inf).amax(1, keepdim=True)
    return torch.where(wrong == -torch.inf, 0.0, wrong - true)


def _correct(logits: Tensor, truth: Truth) -> Tensor:
    """Return (N, decisions, *size) with 1 where the prediction is right."""
    return (_advantage(logits.detach(), truth) < 0).to(logits)


def _balance(logits: Tensor, truth: Truth) -> Tensor:
    """Return weights (N, decisions, *size) by which each class that is present sums to the same."""
    counted = _counted(logits, truth)
    kinds = torch.stack([truth.hot, 1 - truth.hot], 0) if truth.classes.regions else truth.hot.unsqueeze(0)
    kinds = kinds * counted  # (kinds, N, n, *size)
    share = kinds.flatten(3).sum(3).clamp(min=1)
    weight = (kinds / share.reshape(*share.shape, *[1] * (logits.ndim - 2))).sum(0)
    weight = weight if truth.classes.regions else weight.sum(1, keepdim=True)
    total = weight.flatten(1).sum(1).clamp(min=1e-12)
    return weight * (counted.flatten(1).sum(1) / total).reshape(-1, *[1] * (weight.ndim - 1))


def cross_entropy(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Cross entropy, the mean over voxels."""
    return _mean(-_log_true(logits, truth), logits, truth)


def balanced_cross_entropy(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Cross entropy in which each class present weighs the same, so that a large background does not rule."""
    return _mean(-_log_true(logits, truth) * _balance(logits, truth), logits, truth)


def _of_right(loss: Tensor, logits: Tensor, truth: Truth) -> Tensor:
    """Return the mean loss with the gradient of voxels that are still right alone.

    The mean over right voxels itself falls with every voxel that turns wrong: an attack that compares values
    would take its success for failure.
    """
    right = _mean(loss * _correct(logits, truth), logits, truth)
    return right + (_mean(loss, logits, truth) - right).detach()


def masked_cross_entropy(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Cross entropy with the gradient of voxels that are still right (Croce, Singh & Hein 2024, SEA)."""
    return _of_right(-_log_true(logits, truth), logits, truth)


def balanced_masked_cross_entropy(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """As the masked one, each class weighing the same (SEA)."""
    return _of_right(-_log_true(logits, truth) * _balance(logits, truth), logits, truth)


def logit_ratio(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Difference of logits ratio: the advantage over the gap of first to third (Croce & Hein 2020, eq. 6).

    Does not change when logits are shifted or scaled. It needs three classes: samples of which fewer were
    looked for, the background included, are steered by `margin` instead.

    Raises:
        ConfigError: regions, or fewer than three classes.
    """
    if truth.classes.regions or truth.classes.n < 3:
        raise ConfigError(
            f"the objective dlr compares the first with the third class, and this task has "
            f"{'regions' if truth.classes.regions else f'{truth.classes.n} classes'}; use margin instead"
        )
    top = logits.topk(3, dim=1).values
    gap = top[:, :1] - top[:, 2:]
    ratio = _mean(_advantage(logits, truth) / (gap + 1e-12), logits, truth)
    return torch.where(truth.known.sum(1) >= 3, ratio, margin(logits, truth, progress))


def margin(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """The strongest wrong logit minus the true one, up to zero (Carlini & Wagner 2017): wrong is enough."""
    return _mean(_advantage(logits, truth).clamp(max=0), logits, truth)


def balanced_margin(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """As the margin, each class present weighing the same.

    Wrong voxels have no gradient, and all right ones the same, however sure: steps are not spent on those
    that are lost, nor on a large background. Its value rises with every gain.
    """
    return _mean(_advantage(logits, truth).clamp(max=0) * _balance(logits, truth), logits, truth)


def _overlap_loss(logits: Tensor, truth: Truth, missed: float) -> Tensor:
    """Return 1 - soft Tversky index, the mean (N,) over annotated foreground classes.

    Args:
        logits: (N, n, *size).
        truth: of the samples.
        missed: weight of what is missed, in [0, 1]; false alarms weigh the rest. One half gives Dice.
    """
    p = (logits.sigmoid() if truth.classes.regions else logits.softmax(1)) * truth.valid.unsqueeze(1)
    p, hot = p.flatten(2), truth.hot.flatten(2)
    both, smooth = (p * hot).sum(2), DICE_SMOOTH / 2
    wrong = (1 - missed) * (p.sum(2) - both) + missed * (hot.sum(2) - both)
    ratio = (both + smooth) / (both + wrong + smooth)
    ratio = ratio if truth.classes.regions else ratio[:, 1:]
    known = truth.annotated.to(ratio)
    return ((1 - ratio) * known).sum(1) / known.sum(1).clamp(min=1)


def dice(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """1 - soft Dice of the probabilities, the mean over annotated foreground classes."""
    return _overlap_loss(logits, truth, 0.5)


def margin_then_dice(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Soft Dice with the gradient of the balanced margin until SWITCH of the attack, then its own.

    The margin opens up voxels that are safely right, where Dice has no gradient to speak of; Dice then weighs
    misses against false alarms as what is reported does. Values are those of Dice throughout.
    """
    value = dice(logits, truth, progress)
    if progress >= SWITCH:
        return value
    steer = balanced_margin(logits, truth, progress)
    return steer + (value - steer).detach()


def tversky(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """As Dice, with a miss weighing more than a false alarm (Salehi et al. 2017): erases small objects.

    Raising the surroundings works against lowering the object within; where the ball allows to erase it,
    Dice falls to zero sooner this way.
    """
    return _overlap_loss(logits, truth, MISSED)


def segpgd(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Cross entropy with weight 1 - l where right and l where wrong, l = progress / 2 (Gu et al. 2022)."""
    right = _correct(logits, truth)
    weight = right * (1 - progress / 2) + (1 - right) * progress / 2
    return _mean(-_log_true(logits, truth) * weight, logits, truth)


def cospgd(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Cross entropy times the cosine of probabilities and truth, held fixed (Agnihotri et al. 2024)."""
    log_true = _log_true(logits, truth)
    if truth.classes.regions:
        p = log_true.exp().detach()
        length = (p.square() + (1 - p).square()).sqrt()
    else:
        length = logits.detach().softmax(1).norm(dim=1, keepdim=True)
    return _mean(-log_true * log_true.exp().detach() / length, logits, truth)


def jensen_shannon(logits: Tensor, truth: Truth, progress: float) -> Tensor:
    """Jensen-Shannon divergence of probabilities and truth (SEA): bounded, so that wrong voxels fade.

    With a one-hot truth it depends on the probability p of what is true alone:
    log 2 + (p log p - (1 + p) log(1 + p)) / 2.
    """
    log_p = _log_true(logits, truth)
    p = log_p.exp()
    return _mean(log(2) + (p * log_p - (1 + p) * p.log1p()) / 2, logits, truth)


OBJECTIVES: dict[str, Objective] = {
    "ce": cross_entropy,
    "balanced-ce": balanced_cross_entropy,
    "masked-ce": masked_cross_entropy,
    "balanced-masked-ce": balanced_masked_cross_entropy,
    "dlr": logit_ratio,
    "margin": margin,
    "balanced-margin": balanced_margin,
    "dice": dice,
    "margin-then-dice": margin_then_dice,
    "tversky": tversky,
    "segpgd": segpgd,
    "cospgd": cospgd,
    "js": jensen_shannon,
}


def objective_of(name: str) -> Objective:
    """Return the objective with this name.

    Raises:
        ConfigError: unknown; lists the known ones.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"objective {name!r} is not known; expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
