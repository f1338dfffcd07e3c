"""Cross pseudo supervision: two networks, each trained on what the other says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, probabilities
from seguro.methods.consistency import pseudo_label, ramp
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

OTHER = {"network": "peer", "peer": "network"}
MEDICAL: dict[str, Any] = {
    "cross_entropy_weight": 0.5,
    "dice_weight": 0.5,
    "weight": 0.1,
    "ramp": 1.0,
    "crossed": "unlabelled",
}
"""As SSL4MIS trains it on cardiac MRI."""


class CPSConfig(PeerConfig):
    """Defaults are the paper's on PASCAL VOC: Chen et al., CVPR 2021, without CutMix."""

    learning_rate: float = Field(5e-3, gt=0)
    cross_entropy_weight: float = Field(1.0, ge=0)
    dice_weight: float = Field(0.0, ge=0)
    weight: float = Field(1.5, ge=0)
    """Of the crossed loss (lambda in the paper)."""
    ramp: float = Field(0.0, ge=0, le=1)
    """Fraction of training in which that weight rises; 0: constant."""
    crossed: Literal["all", "unlabelled"] = "all"
    """On which patches the networks supervise each other."""


class CPS:
    """Method `cps`: the first network is deployed, as published."""

    Config: ClassVar[type[CPSConfig]] = CPSConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "ssl4mis": {"learning_rate": 0.01, **MEDICAL},
        "small": {**SMALL, **MEDICAL},
        "tiny": {**TINY, **MEDICAL},
    }
    needs: ClassVar[Needs] = Needs(labels="some", unlabelled="needed", group=2)

    def __init__(self, config: CPSConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self.modules = nn.ModuleDict({name: network_of(config, plan, build) for name in OTHER})
        self.shares = Shares(plan.classes)

    def optimisers(self) -> dict[str, Optim]:
        """Return one optimizer over both networks; their losses add up."""
        return {"main": optim(self.config, self.modules.parameters())}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return a patch."""
        return sample(self.config, self.plan, cases, slot, rng)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step of both networks on the labels and on each other's pseudo labels."""
        c, classes, labelled = self.config, self.plan.classes, batch.labelled > 0
        with run.autocast():
            logits = {name: self.modules[name](batch.image).float() for name in OTHER}
        pseudo = {name: pseudo_label(probabilities(z, classes), classes) for name, z in logits.items()}
        rows = ~labelled if c.crossed == "unlabelled" else labelled | ~labelled
        known = batch.annotated.new_ones((int(rows.sum()), len(classes.foreground)))
        supervised, crossed = batch.image.new_zeros(()), batch.image.new_zeros(())
        for name, other in OTHER.items():
            z = logits[name]
            supervised = supervised + fit(
                c, z[labelled], batch.label[labelled], batch.annotated[labelled], classes
            )
            crossed = crossed + cross_entropy(z[rows], pseudo[other][rows], known, classes)
        weight = c.weight * ramp(run.update / max(run.updates, 1), c.ramp)
        loss = supervised + weight * crossed
        run.backward(loss)
        run.step("main")
        agree = (pseudo["network"] == pseudo["peer"])[~labelled].float().mean()
        return {
            "loss": loss.detach(),
            "supervised": supervised.detach(),
            "crossed": crossed.detach(),
            "weight": loss.new_tensor(weight),
            "agree": agree,
            **self.shares.guessed(batch, pseudo["network"][~labelled], run),
        }

    def state(self) -> dict[str, Tensor]:
        """Return the shares of the classes, once there are some."""
        return self.shares.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the shares."""
        self.shares.load_state(state)

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the first network with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())
