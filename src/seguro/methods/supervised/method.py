"""Supervised learning of any network with Dice and cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.patches import Labelled, NetworkPredictor, labelled_patch, plain_optimiser
from seguro.methods.supervised.config import PRESETS, SupervisedConfig


class Supervised:
    """Method `supervised`: the textbook setting, and the baseline of all others."""

    Config: ClassVar[type[SupervisedConfig]] = SupervisedConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(2, 3), labels="all", segments=True, monitor="max:dice")

    def __init__(self, config: SupervisedConfig, plan: Plan, build: Build) -> None:
        if config.tiling == "whole" and plan.dims != 3:
            raise ConfigError(f"tiling whole: it needs a 3-D plan, this one is {plan.dims}-D; use windows")
        self.config = config
        self.plan = plan
        network = build(
            config.network,
            in_channels=len(plan.channels),
            classes=plan.classes.n,
            plan=plan,
            **config.network_options,
        )
        self.modules = nn.ModuleDict({"network": network})

    def optimisers(self) -> dict[str, Optim]:
        """Return the one optimiser, over all parameters of the network."""
        c, network = self.config, self.modules["network"]
        if c.optimiser == "adamw":
            return plain_optimiser(c, network)
        sgd = torch.optim.SGD(
            network.parameters(),
            c.learning_rate,
            momentum=c.momentum,
            nesterov=c.momentum > 0,
            weight_decay=c.weight_decay,
        )
        return plain_optimiser(c, network, sgd)

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Labelled:
        """Return one augmented patch of a random labelled case."""
        case = cases[int(rng.choice(cases.labelled))]
        c = self.config
        return labelled_patch(case, self.plan, c.augment, rng, p_foreground=c.p_foreground)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on Dice plus cross entropy."""
        image, label, annotated = batch.image, batch.label, batch.annotated
        with run.autocast():
            logits = self.modules["network"](image)
        args = (logits.float(), label, annotated, self.plan.classes)
        ce, dice = cross_entropy(*args), soft_dice(*args)
        loss = self.config.cross_entropy_weight * ce + self.config.dice_weight * dice
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), "cross_entropy": ce.detach(), "soft_dice": dice.detach()}

    def state(self) -> dict[str, Tensor]:
        """Nothing beyond modules and optimiser."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network with the plan's tiling, or on whole volumes."""
        c = self.config
        whole = c.tiling == "whole"
        return NetworkPredictor(modules["network"], self.plan, overlap=c.overlap, whole=whole)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())
