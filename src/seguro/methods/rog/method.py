"""ROG: clean training of a lattice network, then Free adversarial training, on any network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run, Schedule
from seguro.methods.patches import Labelled, NetworkPredictor, labelled_patch
from seguro.methods.rog.config import PRESETS, RogConfig
from seguro.methods.rog.noise import Ball

PAPER_SMOOTH = (0.0, 1e-5)
"""Added to the numerator and the denominator of the paper's Dice."""


class Rog:
    """Method `rog`: a network that does not break when its input is perturbed."""

    Config: ClassVar[type[RogConfig]] = RogConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(2, 3), labels="all", segments=True, monitor="max:dice")

    def __init__(self, config: RogConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        if config.select == "robust":
            self.needs = replace(type(self).needs, monitor="max:robust")  # type: ignore[misc]  # of this run
        network = build(
            config.network,
            in_channels=len(plan.channels),
            classes=plan.classes.n,
            plan=plan,
            **config.network_options,
        )
        self.modules = nn.ModuleDict({"network": network})
        self._noise: Tensor | None = None

    def optimisers(self) -> dict[str, Optim]:
        """Return Adam with AMSGrad over all parameters (section 3)."""
        c = self.config
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(parameters, c.learning_rate, weight_decay=c.weight_decay, amsgrad=True)
        schedule = Schedule(c.schedule, factor=c.plateau_factor, patience=c.plateau_patience)
        average = {} if c.average is None else {"network": c.average}
        return {"main": Optim(optimiser, schedule, average, c.clip)}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Labelled:
        """Return one augmented patch of a random labelled case."""
        case = cases[int(rng.choice(cases.labelled))]
        c = self.config
        return labelled_patch(case, self.plan, c.augment, rng, p_foreground=c.p_foreground)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one clean step, one step after an attack, or `replays` steps that share their gradients."""
        adversary = self.config.adversary
        if adversary == "none" or run.update < self.config.clean * run.updates:
            loss = self._loss(batch.image, batch, run)
            run.backward(loss)
            run.step("main")
            return {"loss": loss.detach()}
        return self._free(batch, run) if adversary == "free" else self._pgd(batch, run)

    def _loss(self, image: Tensor, batch: Batch, run: Run) -> Tensor:
        """Return Dice plus cross entropy of `image` in place of the batch's own."""
        with run.autocast():
            logits = self.modules["network"](image)
        args = (logits.float(), batch.label, batch.annotated, self.plan.classes)
        smooth = PAPER_SMOOTH if self.config.dice == "paper" else (1.0, 1.0)
        return soft_dice(*args, smooth=smooth) + cross_entropy(*args)

    def _free(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Replay the batch: one backward gives the gradients of the weights and of the noise (4.1)."""
        ball = Ball.around(batch.image, self.config.epsilon)
        noise = torch.zeros_like(batch.image) if self._noise is None else self._noise
        loss = torch.zeros(())
        for _ in range(self.config.replays):
            delta = noise.detach().requires_grad_(True)
            loss = self._loss(ball.apply(batch.image, delta), batch, run)
            run.backward(loss)
            gradient = cast(Tensor, delta.grad)
            if run.step("main"):  # after an overflow the noise stays as it was
                noise = ball.step(delta.detach(), gradient, self.config.noise_step)
        self._noise = noise
        return {"loss": loss.detach(), "noise": (noise.abs() / ball.eps.clamp(min=1e-12)).mean()}

    def _pgd(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Attack the batch from a random start, then step on what was found (Madry et al. 2018)."""
        ball = Ball.around(batch.image, self.config.epsilon)
        parts = []
        for slot in run.slots:
            shape = batch.image.shape[1:]
            parts.append(torch.rand(shape, generator=run.rng("start", slot), device=batch.image.device))
        noise = (torch.stack(parts) * 2 - 1) * ball.eps
        for _ in range(self.config.attack_steps):
            delta = noise.detach().requires_grad_(True)
            gradient = run.grad(self._loss(ball.apply(batch.image, delta), batch, run), delta)
            noise = ball.step(delta.detach(), gradient, self.config.attack_step)
        loss = self._loss(ball.apply(batch.image, noise), batch, run)
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), "noise": (noise.abs() / ball.eps.clamp(min=1e-12)).mean()}

    def state(self) -> dict[str, Tensor]:
        """Return the noise of this rank's batch slots, once there is one."""
        return {} if self._noise is None else {"noise": self._noise}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the noise."""
        if "noise" in state:
            self._noise = state["noise"].clone()

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())
