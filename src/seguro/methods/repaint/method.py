"""Labels of the source on slices painted in the target's look, and guesses on the target's own images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.data.frame import frame_of
from seguro.data.plan import Plan
from seguro.data.sampling import middle_slice
from seguro.data.store import Cases
from seguro.losses import cross_entropy, probabilities, soft_dice
from seguro.methods.consistency import draw_cut_box, inside, paste, pseudo_label, ramp
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.painter import SOURCE, TARGET, numbers, paint, painter_of, sides
from seguro.methods.patches import NetworkPredictor, labelled_patch, plain_optimiser
from seguro.methods.repaint.config import PRESETS, RepaintConfig
from seguro.methods.streams import Shares, TwoStream, shown
from seguro.networks.blocks import pad_to_multiple

GROUP = 4
"""Consecutive slots: two of the source, two of the target, one of which has a label where there are some."""
NEEDS = Needs(
    dims=(2,),
    labels="some",
    unlabelled="helps",
    monitor=None,
    begins=("generator", "encoder"),
    group=GROUP,
)
PLAIN = {"p_noise": 0.0, "p_blur": 0.0, "p_intensity": 0.0, "p_curve": 0.0}
"""Geometry alone: what the averaged network reads."""


class Repaint:
    """Method `repaint`: labels of the source in the look of the target, and guesses on the target's images.

    The painter of the run to start from is frozen, and no part of what is deployed. The guesses are those of
    the averaged network, with boxes of painted slices between them (CutMix; as in DACS, Tranheden et al.,
    WACV 2021, whose pasted parts are classes).
    """

    Config: ClassVar[type[RepaintConfig]] = RepaintConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = NEEDS

    def __init__(self, config: RepaintConfig, plan: Plan, build: Build) -> None:
        numbers(config)
        self.config = config
        self.plan = plan
        self.frame = frame_of(plan, config.size, side=config.side, limits=config.limits)
        self._framed = plan.model_copy(update={"patch": (self.frame.side,) * 2})
        channels = len(plan.channels)
        generator, encoder = painter_of(config, channels)
        encoder.requires_grad_(False)
        network = build(
            config.network, in_channels=channels, classes=plan.classes.n, plan=plan, **config.network_options
        )
        self.modules = nn.ModuleDict({"generator": generator, "encoder": encoder, "network": network})
        if not config.guess_weight:
            self.needs = replace(NEEDS, group=1, unlabelled="unused")  # type: ignore[misc]  # of this run
        self.shares = Shares(plan.classes)

    def optimisers(self) -> dict[str, Optim]:
        """Return the one optimizer, over all parameters of the network."""
        return plain_optimiser(self.config, self.modules["network"])

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return a slice of the source, painted or not, in even slots; in odd ones one of the target.

        Of the target without its label, or with it in every second slot, if it has labels; without guesses
        only these, and where there are none the source's instead.

        Raises:
            ConfigError: no labelled case of the source, or none of the target to guess on.
        """
        c = self.config
        source, target = sides([f.site for f in cases.facts], cases.labelled, c, adapts=c.guess_weight > 0)
        few = sorted(set(target) & set(cases.labelled)) if slot % 2 else []
        if slot % 2 and c.guess_weight and not (few and slot // 2 % 2 == 0):
            bare = replace(cases[int(rng.choice(target))], label=None)
            plain = c.augment.model_copy(update=PLAIN)
            return shown(bare, self._framed, plain, rng, p_foreground=0.0, views=1, strong=c.augment)
        if few:
            case, look = cases[int(rng.choice(few))], None
            index = middle_slice(case, self.frame.axis) if c.target_slices == "middle" else None
        else:
            case, index = cases[int(rng.choice(source))], None
            look = self.painted if rng.random() < c.p_painted else None
        found = labelled_patch(
            case, self._framed, c.augment, rng, p_foreground=c.p_foreground, look=look, index=index
        )
        views = np.zeros((1, *found.image.shape), np.float32)  # nobody looks at them
        return TwoStream(found.image, views, found.label, found.annotated, np.asarray(1, np.float32))

    @torch.no_grad()
    def painted(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a planned slice of the source, of the frame's size in any shape, in the target's look."""
        frame, like = self.frame, next(self.modules["generator"].parameters())
        plane = torch.from_numpy(np.ascontiguousarray(image)).reshape(1, -1, frame.side, frame.side).to(like)
        one = torch.ones(1, dtype=torch.long, device=like.device)
        found, _ = paint(self.modules, self.config, frame.shown(plane), one * SOURCE, one * TARGET)
        out: NDArray[np.float32] = (
            frame.planned(found.clamp(-1, 1)).float().cpu().numpy().reshape(image.shape)
        )
        return out

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on the labelled rows, and on the others with a labelled box, elsewhere guessed."""
        c, known = self.config, batch.labelled > 0
        rows, beside = known.nonzero().flatten(), (~known).nonzero().flatten()
        mixed, told, out = self.mixed(batch, beside, run)
        with run.autocast():
            logits = self.read(self.modules["network"], torch.cat([batch.image[rows], mixed]))
        loss = self.fit(logits[: len(rows)], batch.label[rows], batch.annotated[rows])
        if len(beside):
            guessed = self.fit(logits[len(rows) :], told, batch.annotated[beside - 1])
            weight = c.guess_weight * ramp(run.update / max(run.updates, 1), c.ramp)
            out |= {"supervised": loss.detach(), "guessed": guessed.detach()}
            loss = loss + weight * guessed
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), **out}

    def mixed(self, batch: Batch, rows: Tensor, run: Run) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return images and labels (M, *size) of rows without label, and what to log of their classes.

        Each holds a box of the labelled row before it; elsewhere its label is what the average reads there.
        """
        image, label = batch.views[rows, 0], batch.label[rows]
        if not len(rows):
            return image, label, {}
        classes, size = self.plan.classes, label.shape[1:]
        with torch.no_grad(), run.autocast():
            logits = self.read(run.averaged["network"], batch.image[rows])
        guess = pseudo_label(probabilities(logits, classes), classes)
        drawn = [
            draw_cut_box(size, run.rng("box", run.slots[row]), p=1.0, volume=self.config.box) for row in rows
        ]
        box, before = inside(drawn, size, image.device), rows - 1
        shares = self.shares.guessed(batch, guess, run)
        return paste(image, batch.image[before], box), paste(guess, batch.label[before], box), shares

    def read(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return logits (N, n, *size) of images of any size, float32."""
        padded, undo = pad_to_multiple(image, self.plan.multiple)
        return network(padded).float()[undo]  # type: ignore[no-any-return]

    def fit(self, logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
        """Return Dice plus cross entropy."""
        args = (logits, label, annotated, self.plan.classes)
        return cross_entropy(*args) + soft_dice(*args)

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
