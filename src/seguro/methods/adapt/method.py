"""Adaptation (phase 2 of RobustMedSeg): a frozen generator between a labelled source and a bare target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.data.frame import frame_of
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.adapt.config import PRESETS, AdaptConfig
from seguro.methods.adapt.objective import TERMS, batch_dice, image_loss
from seguro.methods.adapt.predictor import AdaptPredictor
from seguro.methods.adapt.sample import Shown, draw
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run, Schedule
from seguro.methods.painter import SOURCE, TARGET, numbers, paint, painter_of
from seguro.networks.perceptual import Perceptual, perceptual_from
from seguro.networks.translator import LabelBranch
from seguro.networks.weights import tensors_from

MONITORS = {"translated": "min:translated", "cycle": "min:cycle", "dice": "max:dice", "last": None}
BETAS = (0.95, 0.999)
"""Of the encoder's optimizer, as published."""
BRANCH = {SOURCE: "source", TARGET: "target"}


class Adapt:
    """Method `adapt`: learns to segment a site without labels through images of its look.

    Even updates paint every slice in its own domain's look; odd ones paint it in the other's and back. The
    source's labels hold for what is painted from its slices, in whichever look.
    """

    Config: ClassVar[type[AdaptConfig]] = AdaptConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(
        dims=(2,), labels="some", unlabelled="helps", segments=True, monitor="min:translated", group=2,
        begins=("generator",),
    )  # fmt: skip

    def __init__(self, config: AdaptConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self._of_generator = numbers(config)
        c, channels, alone = config, len(plan.channels), config.stage == "source"
        unlabelled: Literal["unused", "helps"] = "unused" if alone else "helps"
        self.needs = replace(  # type: ignore[misc]  # of this run
            type(self).needs,
            monitor="max:dice" if alone else MONITORS[c.select],
            unlabelled=unlabelled,
            scored=partial(learned, config),
            begins=("generator",) if alone else ("generator", "encoder", "source"),
        )
        self.frame = frame_of(plan, c.size, side=c.side, limits=c.limits)
        generator, encoder = painter_of(c, channels)
        maps = generator.feature_channels
        source, target = (
            LabelBranch(maps, plan.classes.n, c.size, hidden=c.hidden, norm=c.branch_norm) for _ in range(2)
        )
        self.modules = nn.ModuleDict(
            {"generator": generator, "encoder": encoder, "source": source, "target": target}
        )
        (target if alone else source).requires_grad_(False)
        if not c.content:
            encoder.contents.requires_grad_(False)
            encoder.gates.requires_grad_(False)
        self._looks: Perceptual | None = None
        """Distance by feature maps, where the config names a file; it is no part of the model."""
        self._shared = 0.0
        """The encoder's share of content that this run starts from."""
        self._seen: dict[str, Tensor] = {}
        """The last losses that the model may be selected by; only odd updates have them."""

    def optimisers(self) -> dict[str, Optim]:
        """Return one optimizer of the encoder and one of the label branch that learns.

        The weights to start from are there now, so the mean codes of their generator are taken, the
        target's branch is made the source's, and content goes on from where their encoder was.
        """
        c, encoder, generator = self.config, self.modules["encoder"], self.modules["generator"]
        if c.perceptual is not None:
            self._looks = perceptual_from(Path(c.perceptual)).to(next(generator.parameters()).device)
        if c.pretrained is not None:
            encoder.start_from(tensors_from(Path(c.pretrained), "pretrained"))  # type: ignore[operator]
        rng = torch.Generator(device=next(generator.parameters()).device).manual_seed(0)
        means = generator.mean_code(c.mean_styles, rng)  # type: ignore[operator]
        sides = [means[list(side)].mean(0) for side in self._of_generator]
        encoder.get_buffer("mean").copy_(torch.stack(sides))
        self._shared = float(encoder.get_buffer("share"))
        if c.stage == "adapt" and c.target_branch == "source":
            self.modules["target"].load_state_dict(self.modules["source"].state_dict())
        own = [p for p in encoder.parameters() if p.requires_grad]
        learns = "source" if c.stage == "source" else "target"
        optimiser: torch.optim.Optimizer
        if c.optimiser == "radam":
            optimiser = torch.optim.RAdam(own, c.learning_rate, betas=BETAS)
        else:
            optimiser = torch.optim.Adam(own, c.learning_rate, betas=BETAS)
        average = {} if c.average is None else {"encoder": c.average}
        average_branch = {} if c.average is None else {learns: c.average}
        schedule = Schedule(c.schedule)
        branch = torch.optim.Adam(self.modules[learns].parameters(), c.branch_rate)
        return {
            "encoder": Optim(optimiser, schedule, average, c.clip),
            "branch": Optim(branch, schedule, average_branch, c.clip),
        }

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Shown:
        """Return a slice of the source in even slots, of the target in odd ones."""
        return draw(cases, slot, rng, config=self.config, plan=self.plan, frame=self.frame)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step: within the domains, or (stage adapt, odd updates) across them and back."""
        ramp = self.config.ramp * run.updates
        risen = 1.0 if run.update >= ramp else run.update / ramp
        share = self._shared + (1 - self._shared) * risen
        self.modules["encoder"].get_buffer("share").fill_(share)
        alone = self.config.stage == "source"
        inside = alone or run.update % 2 == 0
        if not (alone or self._seen):
            with torch.no_grad():  # so that their means, which select the model, are over all updates
                self._keep(self._across(batch, run))
        parts = self._within(batch, run) if inside else self._across(batch, run)
        loss = torch.stack(list(parts.values())).sum()
        run.backward(loss)
        run.step()
        logged = {k: v.detach() for k, v in parts.items()}
        if not inside:
            self._keep(logged)
        return {**self._seen, **logged, "loss": loss.detach(), "share": loss.new_tensor(share)}

    def _keep(self, losses: Mapping[str, Tensor]) -> None:
        self._seen = {k: losses[k] for k in ("translated", "cycle") if k in losses}

    def _within(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Return the losses of painting slices in their own look; the source's labels reach the encoder."""
        with run.autocast():
            painted, maps = paint(self.modules, self.config, batch.view, batch.domain, batch.domain)
            logits = self._labels(batch, maps, SOURCE, SOURCE)
            few = self._few(batch, maps, TARGET, run, detach=True)
        parts = {
            "reconstruction": self._image_loss(painted, batch.image),
            "mask": self._fit(logits, batch, SOURCE, run),
        }
        return parts | ({} if few is None else {"few": self._fit(few, batch, TARGET, run)})

    def _across(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Return the losses of painting slices in the other's look, and these back in their own."""
        c, other = self.config, 1 - batch.domain
        with run.autocast():
            painted, maps = paint(self.modules, c, batch.view, batch.domain, other)
            logits = self._labels(batch, maps, SOURCE, TARGET, detach=c.translated == "branch")
            few = self._few(batch, maps, SOURCE, run, detach=False)
        parts = {"translated": self._fit(logits, batch, SOURCE, run)}
        if few is not None:
            parts["few"] = self._fit(few, batch, TARGET, run)
        if not c.cycle:
            return parts
        with run.autocast():
            there = painted.detach().float().clamp(-1, 1)
            back, maps = paint(self.modules, c, there, other, batch.domain)
            logits = self._labels(batch, maps, SOURCE, SOURCE)
            few = self._few(batch, maps, TARGET, run, detach=True)
        parts |= {"cycle": self._image_loss(back, batch.image), "mask": self._fit(logits, batch, SOURCE, run)}
        return parts | ({} if few is None else {"few_cycle": self._fit(few, batch, TARGET, run)})

    def _labels(
        self, batch: Batch, maps: Sequence[Tensor], domain: int, branch: int, *, detach: bool = False
    ) -> Tensor:
        """Return logits of the rows of `domain` by a label branch, its input with or without gradient."""
        rows = batch.domain == domain
        chosen = [m[rows].detach() if detach else m[rows] for m in maps]
        return self.modules[BRANCH[branch]](chosen)  # type: ignore[no-any-return]

    def _few(
        self, batch: Batch, maps: Sequence[Tensor], branch: int, run: Run, *, detach: bool
    ) -> Tensor | None:
        """Return logits of the target's rows, where on any rank one of them has a label."""
        labelled = batch.annotated[batch.domain == TARGET].sum()
        if self.config.stage == "source" or float(run.mean(labelled)) == 0:
            return None
        return self._labels(batch, maps, TARGET, branch, detach=detach)

    def _fit(self, logits: Tensor, batch: Batch, domain: int, run: Run) -> Tensor:
        """Return weighted cross entropy plus Dice of the rows of `domain`; unlabelled ones count as 0."""
        rows = batch.domain == domain
        args = (logits.float(), batch.label[rows], batch.annotated[rows], self.plan.classes)
        whole = self.config.dice == "batch"
        dice = batch_dice(*args, run.mean, run.world) if whole else soft_dice(*args)
        return self.config.mask * (cross_entropy(*args) + dice)

    def _image_loss(self, painted: Tensor, image: Tensor) -> Tensor:
        seen: int = self.modules["encoder"].seen  # type: ignore[assignment]
        loss = image_loss(painted, image, {n: getattr(self.config, n) for n in TERMS}, seen)
        if self._looks is None:
            return loss
        a, b = (F.adaptive_avg_pool2d(x.float(), seen) for x in (painted, image))
        apart: Tensor = self._looks(a, b)
        return loss + self.config.perceptual_weight * apart

    def state(self) -> dict[str, Tensor]:
        """Return the last losses that the model may be selected by."""
        return dict(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        self._seen = {k: v.clone() for k, v in state.items()}

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the predictor of the domain that is learned."""
        return AdaptPredictor(modules, self.config, self.plan, self.frame)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())


def learned(config: AdaptConfig, site: str) -> bool:
    """Return whether the model segments `site`, so that its validation cases say how well."""
    own, other = (config.source, config.target)
    if config.stage == "adapt":
        own, other = other, own
    return site == own if own is not None else site != other
