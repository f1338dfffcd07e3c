"""Supervised learning of any network with Dice and cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.data.augment import draw as draw_augmentation
from seguro.data.augment import patch_of
from seguro.data.plan import Plan
from seguro.data.sampling import centre, patch_size
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import (
    Batch,
    Build,
    Needs,
    Optim,
    Predictor,
    Run,
    Schedule,
    Slices,
    Support,
    Windows,
)
from seguro.methods.supervised.config import PRESETS, SupervisedConfig


@dataclass(frozen=True)
class Labelled:
    """One patch with its label; stacked along a first axis it is the batch."""

    image: NDArray[np.float32]
    """(C, *patch) with `patch` of the plan's dimensions."""
    label: NDArray[np.uint8]
    """(*patch) stored labels."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for."""


class Supervised:
    """Method `supervised`: the textbook setting, and the baseline of all others."""

    Config: ClassVar[type[SupervisedConfig]] = SupervisedConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(2, 3), labels="all", segments=True, monitor="max:dice")

    def __init__(self, config: SupervisedConfig, plan: Plan, build: Build) -> None:
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
        c = self.config
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        optimiser: torch.optim.Optimizer
        if c.optimiser == "sgd":
            optimiser = torch.optim.SGD(
                parameters,
                c.learning_rate,
                momentum=c.momentum,
                nesterov=c.momentum > 0,
                weight_decay=c.weight_decay,
            )
        else:
            optimiser = torch.optim.AdamW(parameters, c.learning_rate, weight_decay=c.weight_decay)
        average = {} if c.average is None else {"network": c.average}
        return {"main": Optim(optimiser, Schedule(c.schedule, warmup=c.warmup), average, c.clip)}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Labelled:
        """Return one augmented patch of a random labelled case."""
        case = cases[int(rng.choice(cases.labelled))]
        patch = patch_size(self.plan.patch, self.plan.slice_axis)
        middle = centre(case, patch, rng, p_foreground=self.config.p_foreground)
        drawn = draw_augmentation(
            rng,
            self.config.augment,
            spacing=case.grid.spacing,
            patch=patch,
            mirror=self.plan.mirror,
            classes=self.plan.classes,
        )
        image, label = patch_of(case, middle, patch, drawn)
        shape = self.plan.patch
        labels = cast(NDArray[np.uint8], label)  # the case is one of `cases.labelled`
        return Labelled(image.reshape(-1, *shape), labels.reshape(shape), case.annotated)

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
        """Return the network with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())


class NetworkPredictor(Predictor):
    """A plain network as predictor: windows in 3-D, slices in 2-D."""

    def __init__(self, network: nn.Module, plan: Plan, *, overlap: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.classes = plan.classes
        self.dims = plan.dims
        if plan.dims == 3:
            self.tiling = Windows((plan.patch[0], plan.patch[1], plan.patch[2]), overlap)
        else:
            self.tiling = Slices(plan.slice_axis, (plan.patch[0], plan.patch[1]), overlap)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, Z, Y, X) of (N, C, Z, Y, X); 2-D networks see (N, C, Y, X) of one slice."""
        if self.dims == 3:
            return self.network(x)  # type: ignore[no-any-return]
        return self.network(x.squeeze(2)).unsqueeze(2)  # type: ignore[no-any-return]
