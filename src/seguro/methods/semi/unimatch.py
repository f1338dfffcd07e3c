"""UniMatch: what is sure on a weak view is learned on two strong views and on dropped features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.core.types import Classes
from seguro.data.augment import Augment
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy, probabilities, soft_dice
from seguro.methods.consistency import (
    certainty,
    draw_cut_box,
    inside,
    paste,
    pseudo_label,
    where_sure,
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
from seguro.methods.streams import NO_AUGMENT, Shares, TwoStream
from seguro.networks.mixing import Hook, MixPoints, forward, points_of

VIEWS = 2
SMOOTH = (0.0, 1e-5)
"""Of the unlabelled Dice: a class that is nowhere sure has no gradient, instead of being unlearned."""
STRONG = NO_AUGMENT.model_copy(
    update={
        "p_intensity": 0.8,
        "brightness": 0.5,
        "contrast": (0.5, 1.5),
        "p_blur": 0.5,
        "blur_vox": (0.1, 2.0),
    }
)
"""Color jitter (without color) and blur; brightness in standard deviations, and gamma, which is ours."""


class UniMatchConfig(PeerConfig):
    """Defaults are those of Yang et al., CVPR 2023, on cardiac MRI."""

    confidence: float = Field(0.95, ge=0, lt=1)
    """Voxels of which the weak view is less sure count in no unlabelled loss."""
    strong: Augment = STRONG
    """Intensities of the two strong views."""
    cutmix: float = Field(0.5, ge=0, le=1)
    """Probability that a box of a strong view comes from another unlabelled patch of the group."""
    group: int = Field(4, ge=2, multiple_of=2)
    """Consecutive samples among which boxes are exchanged; the batch is a multiple of it."""
    drop: float = Field(0.5, ge=0, lt=1)
    """Probability with which a channel of the features is dropped."""
    drop_at: tuple[int | str, ...] = ()
    """Activations that are dropped from; empty: all that the encoder hands to the decoder, as published."""
    strong_weight: float = Field(0.5, ge=0)
    """Of both strong views together."""
    feature_weight: float = Field(0.5, ge=0)
    """Of the dropped features; labels weigh 1, and the sum is halved."""
    unlabelled_loss: Literal["dice", "cross_entropy", "same"] = "dice"
    """dice: as published for medical images; cross_entropy: for natural ones; same: that of the labels."""

    @model_validator(mode="after")
    def _has_partners(self) -> Self:
        if self.cutmix > 0 and self.group < 4:
            raise ValueError(
                f"a group of {self.group} has one unlabelled sample, nothing to exchange boxes with: "
                "set group to 4 or more, or cutmix to 0"
            )
        return self


class UniMatch:
    """Method `unimatch`."""

    Config: ClassVar[type[UniMatchConfig]] = UniMatchConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": SMALL,
        "tiny": {**TINY, "group": 2, "cutmix": 0.0},
    }
    needs: ClassVar[Needs] = Needs(labels="some", unlabelled="needed", group=4)

    def __init__(self, config: UniMatchConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self.needs = Needs(labels="some", unlabelled="needed", group=config.group)  # type: ignore[misc]  # of this run
        network = network_of(config, plan, build)
        self.modules = nn.ModuleDict({"network": network})
        self.points = points_of(network, in_channels=len(plan.channels), size=plan.patch)
        self.dropped = dropped_at(self.points, config.drop_at)
        self.shares = Shares(plan.classes)

    def optimisers(self) -> dict[str, Optim]:
        """Return the one optimizer."""
        return {"main": optim(self.config, self.modules.parameters())}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> TwoStream:
        """Return a patch: the weak view, and two strong views of the same place."""
        return sample(self.config, self.plan, cases, slot, rng, views=VIEWS, strong=self.config.strong)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on the labels, the two strong views and the dropped features."""
        c, classes, labelled = self.config, self.plan.classes, batch.labelled > 0
        network, plain = self.modules["network"], len(batch.image)
        slots = [s for s, known in zip(run.slots, labelled.tolist(), strict=True) if not known]
        masks = [self.boxes(batch.image, slots, view, run) for view in range(VIEWS)]
        strong = [self.cut(v, m) for v, m in zip(batch.views[~labelled].unbind(1), masks, strict=True)]
        with run.autocast():
            weak = torch.cat([batch.image, batch.image[~labelled]])  # the copies lose features
            logits, dropped = (
                forward(network, weak, self.points, self.dropping(plain, slots, run))
                .float()
                .tensor_split([plain])
            )
            shown = network(torch.cat(strong)).float().chunk(VIEWS)
        p = probabilities(logits[~labelled].detach(), classes)
        label, sure = pseudo_label(p, classes), certainty(p, classes)
        told = where_sure(label, sure, c.confidence)
        feature = self.fit_told(dropped, told)
        each = [self.fit_told(z, self.cut(told, m)) for z, m in zip(shown, masks, strict=True)]
        of_strong = torch.stack(each).mean()
        supervised = fit(c, logits[labelled], batch.label[labelled], batch.annotated[labelled], classes)
        loss = (supervised + c.strong_weight * of_strong + c.feature_weight * feature) / 2
        run.backward(loss)
        run.step("main")
        return {
            "loss": loss.detach(),
            "supervised": supervised.detach(),
            "strong": of_strong.detach(),
            "feature": feature.detach(),
            "sure": (sure >= c.confidence).float().mean(),
            **self.shares.guessed(batch, label, run),
        }

    def boxes(self, image: Tensor, slots: Sequence[int], view: int, run: Run) -> Tensor:
        """Return (N, *size) bool, true where a strong view of these unlabelled slots is its partner's."""
        size, p = image.shape[2:], self.config.cutmix
        drawn = [draw_cut_box(size, run.rng("box", view, slot), p=p) for slot in slots]
        return inside(drawn, size, image.device)

    def cut(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return images or labels of the unlabelled rows, in `mask` those of the next one of the group."""
        rows = torch.arange(len(x), device=x.device).reshape(-1, self.config.group // 2)
        return paste(x, x[rows.roll(1, dims=1).flatten()], mask)

    def dropping(self, plain: int, slots: Sequence[int], run: Run) -> Hook:
        """Return the hook that drops whole channels of the rows after the first `plain`, drawn per slot."""
        p = self.config.drop

        def hook(name: str, x: Tensor) -> Tensor:
            if name not in self.dropped:
                return x
            drawn = [
                torch.rand(x.shape[1], generator=run.rng("drop", name, s), device=x.device) for s in slots
            ]
            keep = (torch.stack(drawn) >= p).to(x.dtype) / (1 - p)
            keep = torch.cat([keep.new_ones((plain, x.shape[1])), keep])
            return x * keep.reshape(*keep.shape, *[1] * (x.ndim - 2))

        return hook

    def fit_told(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss against pseudo labels, of which IGNORE counts nowhere."""
        kind, classes = self.config.unlabelled_loss, self.plan.classes
        if kind == "same":
            return fit(self.config, logits, label, None, classes)
        args = (logits, label, _all(logits, classes), classes)
        return soft_dice(*args, smooth=SMOOTH) if kind == "dice" else cross_entropy(*args)

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


def dropped_at(points: MixPoints, wanted: Sequence[int | str]) -> frozenset[str]:
    """Return the activations that are dropped from: those wanted, or skips and the deepest stage.

    Raises:
        ConfigError: none are wanted and the network does not name its skips.
    """
    if wanted:
        return frozenset(points.resolve(layer) for layer in wanted)
    if points.skips is None:
        raise ConfigError(
            "this network does not name its skip connections: set drop_at to some of "
            f"{', '.join(points.names)}"
        )
    return frozenset({*points.skips, points.stages[-1]})


def _all(logits: Tensor, classes: Classes) -> Tensor:
    return logits.new_ones((len(logits), len(classes.foreground)))
