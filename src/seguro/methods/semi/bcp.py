"""BCP: labelled and unlabelled patches are pasted into each other, a teacher labels the unlabelled part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seguro.core.types import IGNORE
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import probabilities
from seguro.methods.consistency import (
    draw_zero_box,
    inside,
    largest_components,
    paste,
    pseudo_label,
)
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.patches import NetworkPredictor
from seguro.methods.semi.recipe import (
    SMALL,
    TINY,
    PeerConfig,
    fit,
    network_of,
    optim,
    sample,
)
from seguro.methods.streams import Shares, TwoStream


class BCPConfig(PeerConfig):
    """Defaults are the paper's on cardiac MRI: Bai et al., CVPR 2023."""

    average: float = Field(0.99, ge=0, lt=1)
    """Decay of the teacher, which is validated and deployed."""
    pretrain: float = Field(0.25, ge=0, le=1)
    """Fraction of training in which labelled patches are pasted into each other only (10,000 of 40,000)."""
    box: float = Field(2 / 3, gt=0, lt=1)
    """Side of the pasted box, as a fraction of the patch (beta)."""
    pseudo_weight: float = Field(0.5, ge=0)
    """Of voxels with pseudo labels; those with labels weigh 1 (alpha)."""
    components: Literal["largest", "all"] = "largest"
    """Whether of each class of a pseudo label only the largest piece is kept."""
    directions: Literal["split", "both"] = "split"
    """split: half of the pairs have the labelled patch inside, half outside, as published. both: every pair
    both ways, at twice the cost."""
    group: int = Field(4, ge=2, multiple_of=2)
    """Consecutive samples that are pasted into each other; the batch is a multiple of it."""

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.directions == "split" and self.group % 4:
            raise ValueError(
                f"a group of {self.group} does not split into halves of labelled and unlabelled samples: "
                "set group to a multiple of 4, or directions to both"
            )
        return self


@dataclass(frozen=True)
class Pairs:
    """Which rows of a batch are pasted into which, and what their voxels weigh."""

    outside: Tensor
    """(R,) rows that are seen outside of the box."""
    inside: Tensor
    """(R,) rows that are seen inside."""
    weights: tuple[float, float]
    """Of the voxels outside and inside."""


class BCP:
    """Method `bcp`."""

    Config: ClassVar[type[BCPConfig]] = BCPConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": SMALL,
        "tiny": {**TINY, "group": 2, "directions": "both"},
    }
    needs: ClassVar[Needs] = Needs(labels="some", unlabelled="needed", group=4)

    def __init__(self, config: BCPConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self.needs = Needs(labels="some", unlabelled="needed", group=config.group)  # type: ignore[misc]  # of this run
        self.modules = nn.ModuleDict({"network": network_of(config, plan, build)})
        self.shares = Shares(plan.classes)

    def optimisers(self) -> dict[str, Optim]:
        """Return the student's optimizer, whose moving average is the teacher."""
        return {"main": optim(self.config, self.modules.parameters())}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return a patch."""
        return sample(self.config, self.plan, cases, slot, rng)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on labelled patches pasted into each other, later on both kinds pasted both ways."""
        c, labelled = self.config, batch.labelled > 0
        label, annotated, out = batch.label.clone(), batch.annotated.clone(), {}
        pretraining = run.update < c.pretrain * run.updates
        if not pretraining:
            pseudo = self.pseudo_labels(batch.image[~labelled], run)
            label[~labelled], annotated[~labelled] = pseudo, 1
            out = self.shares.guessed(batch, pseudo, run)
        pairs = pairs_of(labelled, c, pretraining=pretraining)
        masks = self.masks(batch.image, run)
        loss = batch.image.new_zeros(())
        for pair in pairs:
            mask = masks[pair.outside // c.group]
            with run.autocast():
                logits = self.modules["network"](
                    paste(batch.image[pair.outside], batch.image[pair.inside], mask)
                )
            for rows, hidden, weight in zip(
                (pair.outside, pair.inside), (mask, ~mask), pair.weights, strict=True
            ):
                seen = label[rows].masked_fill(hidden, IGNORE)
                loss = loss + weight * fit(c, logits, seen, annotated[rows], self.plan.classes)
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), **out}

    def pseudo_labels(self, image: Tensor, run: Run) -> Tensor:
        """Return the teacher's labels (N, *size) of unlabelled images."""
        with torch.no_grad(), run.autocast():
            logits = run.averaged["network"](image).float()
        label = pseudo_label(probabilities(logits, self.plan.classes), self.plan.classes)
        return largest_components(label) if self.config.components == "largest" else label

    def masks(self, image: Tensor, run: Run) -> Tensor:
        """Return (groups, *size) bool, true inside the box, one box for each group of the rank."""
        c, size = self.config, image.shape[2:]
        groups = [slot // c.group for slot in run.slots][:: c.group]
        boxes = [draw_zero_box(size, c.box, run.rng("box", group)) for group in groups]
        return inside(boxes, size, image.device)

    def state(self) -> dict[str, Tensor]:
        """Return the shares of the classes, once there are some."""
        return self.shares.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the shares."""
        self.shares.load_state(state)

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network, of the loop's averaged modules the teacher, with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())


def pairs_of(labelled: Tensor, config: BCPConfig, *, pretraining: bool) -> list[Pairs]:
    """Return what is pasted into what, within groups (section 3.2).

    Args:
        labelled: (N,) bool, of each group one half.
        config: how.
        pretraining: labelled samples are pasted into each other, unlabelled ones left out.
    """
    half, alpha = config.group // 2, config.pseudo_weight
    known = labelled.nonzero().flatten().reshape(-1, half)
    other = (~labelled).nonzero().flatten().reshape(-1, half)
    if config.directions == "both":
        if pretraining:
            return [Pairs(known.flatten(), known.roll(1, dims=1).flatten(), (1.0, 1.0))]
        known, other = known.flatten(), other.flatten()
        return [Pairs(other, known, (alpha, 1.0)), Pairs(known, other, (1.0, alpha))]
    known_a, other_a = known[:, : half // 2].flatten(), other[:, : half // 2].flatten()
    known_b, other_b = known[:, half // 2 :].flatten(), other[:, half // 2 :].flatten()
    if pretraining:
        return [Pairs(known_a, known_b, (1.0, 1.0))]
    return [Pairs(other_a, known_a, (alpha, 1.0)), Pairs(known_b, other_b, (1.0, alpha))]
