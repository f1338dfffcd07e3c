"""Supervised learning on the source's slices as an adaptation paints them in the look of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from seguro.core.types import IGNORE
from seguro.data.frame import frame_of
from seguro.data.plan import Plan
from seguro.data.sampling import middle_slice
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.painter import SOURCE, TARGET, numbers, paint, painter_of, sides
from seguro.methods.patches import Labelled, NetworkPredictor, labelled_patch, plain_optimiser
from seguro.methods.repaint.config import PRESETS, RepaintConfig
from seguro.networks.blocks import pad_to_multiple


class Repaint:
    """Method `repaint`: labels of the source under the look of the target, which need not be at hand.

    The painter of the run to start from is frozen, and no part of what is deployed.
    """

    Config: ClassVar[type[RepaintConfig]] = RepaintConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(2,), labels="some", monitor=None, begins=("generator", "encoder"))

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

    def optimisers(self) -> dict[str, Optim]:
        """Return the one optimizer, over all parameters of the network."""
        return plain_optimiser(self.config, self.modules["network"])

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Labelled:
        """Return a slice of the source, painted or not; in odd slots one of the target, if that has labels.

        Raises:
            ConfigError: no labelled case of the source.
        """
        c = self.config
        source, target = sides([f.site for f in cases.facts], cases.labelled, c, adapts=False)
        few = sorted(set(target) & set(cases.labelled))
        if few and slot % 2:
            case = cases[int(rng.choice(few))]
            index = middle_slice(case, self.frame.axis) if c.target_slices == "middle" else None
            return labelled_patch(
                case, self._framed, c.augment, rng, p_foreground=c.p_foreground, index=index
            )
        case = cases[int(rng.choice(source))]
        look = self.painted if rng.random() < c.p_painted else None
        return labelled_patch(case, self._framed, c.augment, rng, p_foreground=c.p_foreground, look=look)

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
        """Do one step on Dice plus cross entropy."""
        image, _ = pad_to_multiple(batch.image, self.plan.multiple)
        down, right = (a - b for a, b in zip(image.shape[2:], batch.label.shape[1:], strict=True))
        label = F.pad(batch.label, (0, right, 0, down), value=IGNORE)
        with run.autocast():
            logits = self.modules["network"](image)
        args = (logits.float(), label, batch.annotated, self.plan.classes)
        loss = cross_entropy(*args) + soft_dice(*args)
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach()}

    def state(self) -> dict[str, Tensor]:
        """Nothing beyond modules and optimizer."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network with the plan's tiling."""
        return NetworkPredictor(modules["network"], self.plan, overlap=self.config.overlap)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())
