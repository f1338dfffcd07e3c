"""What all semi-supervised methods here have in common: options, network, optimizer, samples, loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.core.types import Classes, Record
from seguro.data.augment import Augment
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import Build, Optim, Schedule
from seguro.methods.streams import NO_AUGMENT, TwoStream, is_labelled, two_stream

PAPER_AUGMENT = NO_AUGMENT.model_copy(
    update={"p_spatial": 0.5, "rotate_deg": 20.0, "scale": (1.0, 1.0), "elastic_vox": 0.0, "mirror": True}
)
"""Of the published codes for cardiac MRI: flips and turns; ours are not by right angles."""
OURS: dict[str, Any] = {
    "optimiser": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 3e-5,
    "warmup": 0.02,
    "clip": 12.0,
    "average": 0.99,
    "p_foreground": 0.5,
    "augment": Augment().model_dump(),
}
"""The training recipe of method `supervised`, so that a comparison is one of methods."""
SMALL: dict[str, Any] = {**OURS, "network_options": {"width": 16}}
TINY: dict[str, Any] = {
    **OURS,
    "network_options": {"width": 4},
    "augment": {"p_spatial": 0.2},
    "average": 0.9,
}


class PeerConfig(Record):
    """Options that all share; defaults are the common recipe of the published codes."""

    network: str = "unet"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` of the U-Net."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd only."""
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: float = Field(0.0, ge=0, le=1)
    """Fraction of training in which the learning rate rises."""
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of averaged weights that are validated and deployed; null for none."""
    p_foreground: float = Field(0.0, ge=0, le=1)
    """Probability that a labelled patch is centered on a foreground voxel."""
    cross_entropy_weight: float = Field(0.5, ge=0)
    dice_weight: float = Field(0.5, ge=0)
    augment: Augment = PAPER_AUGMENT
    """Of labelled patches, and the weak view of the unlabelled ones."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""


def network_of(config: PeerConfig, plan: Plan, build: Build) -> nn.Module:
    """Return a freshly initialized network."""
    channels, classes = len(plan.channels), plan.classes.n
    return build(config.network, in_channels=channels, classes=classes, plan=plan, **config.network_options)


def optim(config: PeerConfig, parameters: Iterable[nn.Parameter]) -> Optim:
    """Return the optimizer of `parameters`; where weights are averaged, the average is of "network"."""
    c, trained = config, [p for p in parameters if p.requires_grad]
    optimiser: torch.optim.Optimizer
    if c.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            trained, c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
        )
    else:
        optimiser = torch.optim.AdamW(trained, c.learning_rate, weight_decay=c.weight_decay)
    average = {} if c.average is None else {"network": c.average}
    return Optim(optimiser, Schedule(c.schedule, warmup=c.warmup), average, c.clip)


def sample(
    config: PeerConfig,
    plan: Plan,
    cases: Cases,
    slot: int,
    rng: np.random.Generator,
    *,
    views: int = 0,
    strong: Augment | None = None,
) -> TwoStream:
    """Return a labelled patch in even slots, an unlabelled one with `views` strong views in odd ones.

    Raises:
        ConfigError: there is no unlabelled case, or no labelled one.
    """
    if not cases.unlabelled:
        raise ConfigError(
            "no unlabelled case among those to train on: this method learns from labelled and unlabelled "
            "ones; add images without labels (or --labelled to keep labels back), or use --method supervised"
        )
    if not cases.labelled:
        raise ConfigError(
            "no labelled case among those to train on: this method needs some wherever it trains; "
            "a site of a federation without labels can take part with --method roam"
        )
    known = is_labelled(slot, 0.5)
    found = two_stream(
        cases, slot, rng, plan, config.augment,
        p_foreground=config.p_foreground, views=0 if known else views, strong=strong,
    )  # fmt: skip
    if not known:
        return found
    return replace(found, views=np.zeros((views, *found.image.shape), np.float32))  # nobody looks at them


def fit(
    config: PeerConfig, logits: Tensor, label: Tensor, annotated: Tensor | None, classes: Classes
) -> Tensor:
    """Return weighted cross entropy and Dice against stored labels (N, *size).

    `annotated` None: pseudo labels, in which every class was looked for.
    """
    looked_for = logits.new_ones((len(logits), len(classes.foreground))) if annotated is None else annotated
    args = (logits.float(), label, looked_for, classes)
    loss = logits.new_zeros((), dtype=torch.float32)
    if config.cross_entropy_weight:
        loss = loss + config.cross_entropy_weight * cross_entropy(*args)
    if config.dice_weight:
        loss = loss + config.dice_weight * soft_dice(*args)
    return loss
