"""Mean Teacher: a student agrees, on a noisy view, with the moving average of its own weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from seguro.data.augment import Augment
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import probabilities
from seguro.methods.consistency import pseudo_label, ramp, squared_difference
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
from seguro.methods.streams import NO_AUGMENT, Shares, TwoStream

NOISE = NO_AUGMENT.model_copy(update={"p_noise": 1.0, "noise_sd": 0.2})
"""Gaussian noise of a standard deviation up to 0.2, on average the published 0.1."""


class MeanTeacherConfig(PeerConfig):
    """Tarvainen and Valpola, NeurIPS 2017; values of its use in medical segmentation (SSL4MIS)."""

    average: float = Field(0.99, ge=0, lt=1)
    """Decay of the teacher, which is validated and deployed."""
    consistency_weight: float = Field(0.1, ge=0)
    ramp: float = Field(1.0, ge=0, le=1)
    """Fraction of training in which that weight rises."""
    strong: Augment = NOISE
    """Intensities of the student's view of unlabelled patches."""


class MeanTeacher:
    """Method `mean-teacher`."""

    Config: ClassVar[type[MeanTeacherConfig]] = MeanTeacherConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "small": SMALL, "tiny": TINY}
    needs: ClassVar[Needs] = Needs(labels="some", unlabelled="needed", group=2)

    def __init__(self, config: MeanTeacherConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self.modules = nn.ModuleDict({"network": network_of(config, plan, build)})
        self.shares = Shares(plan.classes)

    def optimisers(self) -> dict[str, Optim]:
        """Return the student's optimizer, whose moving average is the teacher."""
        return {"main": optim(self.config, self.modules.parameters())}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return a patch: the weak view, and one strong view of the same place."""
        return sample(self.config, self.plan, cases, slot, rng, views=1, strong=self.config.strong)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on the labels and on agreement with the teacher."""
        c, classes, labelled = self.config, self.plan.classes, batch.labelled > 0
        image = torch.where(
            labelled.reshape(-1, *[1] * (batch.image.ndim - 1)), batch.image, batch.views[:, 0]
        )
        with run.autocast():
            logits = self.modules["network"](image).float()
            with torch.no_grad():
                teacher = probabilities(run.averaged["network"](batch.image[~labelled]).float(), classes)
        supervised = fit(c, logits[labelled], batch.label[labelled], batch.annotated[labelled], classes)
        consistency = squared_difference(logits[~labelled], teacher, classes)
        weight = c.consistency_weight * ramp(run.update / max(run.updates, 1), c.ramp)
        loss = supervised + weight * consistency
        run.backward(loss)
        run.step("main")
        return {
            "loss": loss.detach(),
            "supervised": supervised.detach(),
            "consistency": consistency.detach(),
            "weight": loss.new_tensor(weight),
            **self.shares.guessed(batch, pseudo_label(teacher, classes), run),
        }

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
