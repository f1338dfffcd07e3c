"""Predicting the labels of an image from what a generator paints it with, in two ways."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from seguro.core.types import Classes
from seguro.data.frame import Frame
from seguro.data.plan import Plan
from seguro.losses import probabilities
from seguro.methods.adapt.config import AdaptConfig
from seguro.methods.contract import Predictor, Slices, Support
from seguro.methods.painter import SOURCE, TARGET, paint

TINY = 1e-6
"""Smallest probability whose logarithm is taken."""
Way = Literal["intra", "inter", "ensemble"]


class AdaptPredictor(Predictor):
    """Slices of the domain that was learned last: of the source in stage source, of the target after."""

    def __init__(self, modules: nn.ModuleDict, config: AdaptConfig, plan: Plan, frame: Frame) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.config, self.frame = config, frame
        self.ways = () if config.stage == "source" else ("intra", "inter", "ensemble")
        self.classes = plan.classes
        self.tiling = Slices(plan.slice_axis, (frame.side, frame.side), config.overlap)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, 1, A, B) of planned slices (N, C, 1, A, B)."""
        image = self.frame.shown(x.squeeze(2))
        return self.frame.enlarged(self.logits(image, cast("Way | None", self.way))).unsqueeze(2)

    def logits(self, image: Tensor, way: Way | None = None) -> Tensor:
        """Return logits (N, n, size, size) of images (N, C, size, size) in [-1, 1].

        Args:
            image: of the domain that was learned last.
            way: see `AdaptConfig.prediction`; None for the config's. A source has one way only.
        """
        if self.config.stage == "source":
            return self._read(image, SOURCE, SOURCE)
        way = way or self.config.prediction
        if way == "intra":
            return self._read(image, TARGET, TARGET)
        inter = self._read(image, TARGET, SOURCE)
        if way == "inter":
            return inter
        return ensemble(self._read(image, TARGET, TARGET), inter, self.config.inter_weight, self.classes)

    def _read(self, image: Tensor, domain: int, wanted: int) -> Tensor:
        one = torch.ones(len(image), dtype=torch.long, device=image.device)
        parts = {name: self.get_submodule(name) for name in ("generator", "encoder")}
        maps = paint(parts, self.config, image, one * domain, one * wanted)[1]
        branch = self.get_submodule("source" if wanted == SOURCE else "target")
        return branch(maps)  # type: ignore[no-any-return]


def ensemble(intra: Tensor, inter: Tensor, weight: float, classes: Classes) -> Tensor:
    """Return logits whose probabilities are (1 - weight) those of `intra` plus weight those of `inter`."""
    mixed = (1 - weight) * probabilities(intra, classes) + weight * probabilities(inter, classes)
    mixed = mixed.clamp(TINY, 1 - TINY if classes.regions else None)
    return mixed.logit() if classes.regions else mixed.log()
