"""ROAM: guess, sharpen, mix labelled and unlabelled samples at a random layer, fit the mixed targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run, Schedule
from seguro.methods.patches import NetworkPredictor
from seguro.methods.roam.config import PRESETS, RoamConfig
from seguro.methods.roam.draws import draw_box, draw_lambda, draw_layer, draw_partners, generator_of
from seguro.methods.roam.objective import dice_of_soft, ramp, soft_cross_entropy, squared_error
from seguro.methods.roam.targets import completed, guess, incomplete, known, mixed, mode, sharpen
from seguro.methods.streams import Shares, TwoStream, two_stream
from seguro.networks.mixing import MixPlan, Skips, forward_mixed, points_of

UNMIXED = "none"
"""The layer of an update without mixing."""
PAPER_SHRINK = 0.02
"""Each step multiplies every parameter by 1 minus this times the weight decay (section 3)."""


class Roam:
    """Method `roam`: mixing at a random layer, semi-supervised or fully supervised."""

    Config: ClassVar[type[RoamConfig]] = RoamConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(
        dims=(2, 3), labels="some", unlabelled="helps", segments=True, monitor="max:dice"
    )

    def __init__(self, config: RoamConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        unlabelled: Literal["unused", "helps"] = "unused" if config.share == 1 else "helps"
        self.needs = Needs(labels="some", unlabelled=unlabelled, group=config.group)  # type: ignore[misc]  # of this run
        network = build(
            config.network,
            in_channels=len(plan.channels),
            classes=plan.classes.n,
            plan=plan,
            **config.network_options,
        )
        self.modules = nn.ModuleDict({"network": network})
        self.points = points_of(network, in_channels=len(plan.channels), size=plan.patch)
        self.layers = [n if n == UNMIXED else self.points.resolve(n) for n in config.layers]
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"layers {config.layers} are {self.layers}: one repeats; use layer_weights")
        self.skips: Skips = self._skips(config.skips)
        for layer in self.layers:
            if layer != UNMIXED:
                self.points.mixed_at(layer, self.skips)  # refuses here what it would refuse in training
        self.even = config.group if config.fitted_by == "voxel" else None
        """Samples over which every voxel weighs the same; None: every sample does."""
        self.shares = Shares(plan.classes)

    def _skips(self, asked: Literal["official", "all", "auto"]) -> Skips:
        if asked == "auto":
            return "all" if self.points.tells else "official"
        return asked

    def optimisers(self) -> dict[str, Optim]:
        """Return Adam over all parameters, by default at a constant rate."""
        c = self.config
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        kind = torch.optim.Adam if c.optimiser == "adam" else torch.optim.AdamW
        optimiser = kind(
            parameters, c.learning_rate, weight_decay=c.weight_decay if c.decay == "decoupled" else 0.0
        )
        average = {} if c.average is None else {"network": c.average}
        return {"main": Optim(optimiser, Schedule(c.schedule, warmup=c.warmup), average, c.clip)}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return one patch, of a labelled case in even slots and of an unlabelled one in odd slots."""
        c = self.config
        views = 0 if c.share == 1 else c.guesses - 1 + (c.strong is not None)
        return two_stream(
            cases, slot, rng, self.plan, c.augment,
            p_foreground=c.p_foreground, views=views, strong=c.strong, share=c.share,
        )  # fmt: skip

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on the mixed batch, before `start` on the labelled samples as they are."""
        labelled = batch.labelled > 0
        early = self.progress(run) < 0 and bool(labelled.any())
        loss, out = (self._on_labels if early else self._on_all)(batch, labelled, run)
        run.backward(loss)
        if run.step("main"):
            self._shrink()
        return {"loss": loss.detach(), **out}

    def _on_labels(self, batch: Batch, labelled: Tensor, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        only = replace(batch, **{f.name: getattr(batch, f.name)[labelled] for f in fields(batch)})
        target, counts = self._targets(only, labelled[labelled], run)
        with run.autocast():
            logits = self.modules["network"](only.image)
        even = self.even and round(self.even * self.config.share)  # the labelled ones of a group
        loss = self._fit(logits.float(), target, counts, even=even)
        return loss, {"supervised": loss.detach()}

    def _on_all(self, batch: Batch, labelled: Tensor, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        target, counts = self._targets(batch, labelled, run)
        image = self._trained_on(batch, labelled)
        plan = self.mix_plan(image, run)
        with run.autocast():
            logits = forward_mixed(self.modules["network"], image, self.points, plan)
        supervised, unlabelled = self._losses(logits.float(), target, counts, labelled, plan)
        if bool(labelled.all()):
            return supervised, {"supervised": supervised.detach()}
        weight = self.weight(run)
        out = {
            "supervised": supervised.detach(),
            "unlabelled": unlabelled.detach(),
            "weight": supervised.new_tensor(weight),
        }
        out |= self.shares.observe(target, counts, labelled, run)
        return supervised + weight * unlabelled, out

    def progress(self, run: Run) -> float:
        """Return how much of the training after `start` is done, 0 to 1; negative before it."""
        start = self.config.start
        return (run.update / max(run.updates, 1) - start) / (1 - start)

    def weight(self, run: Run) -> float:
        """Return the weight of the unlabelled loss in this update."""
        c = self.config
        return c.lambda_u * ramp(self.progress(run), until=c.ramp, steps=c.ramp_epochs)

    def mix_plan(self, image: Tensor, run: Run) -> MixPlan | None:
        """Return what this update mixes, for the rank's images (N, C, *size); None: nothing.

        Layer and, unless drawn per sample, share are the same on all ranks; partners are of the same group.
        """
        c = self.config
        layer = self.layers[draw_layer(generator_of(run, "layer"), len(self.layers), c.layer_weights)]
        if layer == UNMIXED or generator_of(run, "mix").random() >= c.p_mix:
            return None
        slots = list(run.slots)[: len(image)]
        shares = [draw_lambda(generator_of(run, "lambda"), c.alpha)] * len(slots)
        if c.lambda_per == "sample":
            shares = [draw_lambda(generator_of(run, "lambda", slot), c.alpha) for slot in slots]
        partners = []
        for start in range(0, len(slots), c.group):
            rng = generator_of(run, "partner", slots[start] // c.group)
            partners.append(start + draw_partners(rng, min(c.group, len(slots) - start), c.partner))
        mask = None
        if c.mixing == "mask":
            boxes = [
                draw_box(generator_of(run, "box", slot), image.shape[2:], share)
                for slot, share in zip(slots, shares, strict=True)
            ]
            mask = torch.from_numpy(np.stack(boxes)).unsqueeze(1).to(image.device)
        lam = torch.tensor(shares if c.lambda_per == "sample" else shares[0], device=image.device)
        permutation = torch.from_numpy(np.concatenate(partners)).to(image.device)
        return MixPlan(layer, lam, permutation, self.skips, mask)

    def _targets(self, batch: Batch, labelled: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Return probabilities (N, n, *size) to fit, labels or guesses, and where they are known."""
        c, classes = self.config, self.plan.classes
        guesses = batch.image.new_zeros((len(labelled), classes.n, *batch.image.shape[2:]))
        partial = incomplete(batch.annotated, labelled)
        if bool(partial.any()):
            guesses[partial] = self._guess(batch.image[partial].unsqueeze(1), run)
        target = completed(batch.label, batch.annotated, classes, guesses if bool(partial.any()) else None)
        if not bool(labelled.all()):
            views = batch.image[~labelled].unsqueeze(1)
            if c.guesses > 1:
                views = torch.cat([views, batch.views[~labelled][:, : c.guesses - 1]], dim=1)
            guesses[~labelled] = self._guess(views, run)
            target[~labelled] = sharpen(guesses[~labelled], c.temperature, classes)
        return target, known(batch.label, labelled, guesses, c.confidence, classes)

    def _guess(self, views: Tensor, run: Run) -> Tensor:
        """Return probabilities for views (N, K, C, *size), of the network or of its average."""
        c = self.config
        teacher = c.teacher and run.update >= c.teacher_after * run.updates
        network = run.averaged["network"] if teacher else self.modules["network"]
        with mode(network, c.guess_bn == "train" and not teacher), run.autocast():
            return guess(network, views, self.plan.classes)

    def _trained_on(self, batch: Batch, labelled: Tensor) -> Tensor:
        """Return the images, those of unlabelled samples in their strong view where there is one."""
        if self.config.strong is None or not batch.views.shape[1]:
            return batch.image  # type: ignore[no-any-return]
        rows = labelled.reshape(-1, *[1] * (batch.image.ndim - 1))
        return torch.where(rows, batch.image, batch.views[:, -1])

    def _losses(
        self, logits: Tensor, target: Tensor, counts: Tensor, labelled: Tensor, plan: MixPlan | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of what was labelled and that of what was guessed; the target is not yet mixed."""
        fitted, whole = mixed(target, counts, plan)
        if self.config.fitted_by == "sample":
            parts = [[x[rows] for x in (logits, fitted, whole)] for rows in (labelled, ~labelled)]
            return self._fit(*parts[0], even=self.even), self._fit_guesses(*parts[1])
        own = labelled.float().reshape(-1, 1, *[1] * (counts.ndim - 1)).expand_as(counts.unsqueeze(1))
        share = (own if plan is None else plan(own)).squeeze(1)  # of each voxel that comes from a label
        return self._fit(logits, fitted, whole * share, even=self.even), self._fit_guesses(
            logits, fitted, whole * (1 - share)
        )

    def _fit(self, logits: Tensor, target: Tensor, counts: Tensor, *, even: int | None) -> Tensor:
        """Return the loss against labels; `even`: samples over which every voxel weighs the same."""
        c, classes = self.config, self.plan.classes
        args = (logits, target, counts, classes)
        loss = c.cross_entropy_weight * soft_cross_entropy(*args, group=even)
        if c.dice_weight:
            loss = loss + c.dice_weight * dice_of_soft(*args, group=even)
        return loss

    def _fit_guesses(self, logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """Return the loss against guesses, before its weight."""
        if self.config.unlabelled_loss == "same":
            return self._fit(logits, target, counts, even=self.even)
        summed = self.config.lambda_norm == "sum"
        return squared_error(logits, target, counts, self.plan.classes, summed=summed, group=self.even)

    @torch.no_grad()
    def _shrink(self) -> None:
        """Multiply every parameter as the published code does after each step."""
        if self.config.decay == "paper" and self.config.weight_decay:
            for parameter in self.modules.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 - PAPER_SHRINK * self.config.weight_decay)

    def state(self) -> dict[str, Tensor]:
        """Return the shares of the classes, once there are some."""
        return self.shares.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the shares."""
        self.shares.load_state(state)

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())
