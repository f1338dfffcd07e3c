"""SSL-ALPNet: an encoder whose prototypes tell superpixels apart, learned from images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.data.superpixels import Superpixels
from seguro.methods.alpnet import episodes
from seguro.methods.alpnet.config import PRESETS, AlpnetConfig
from seguro.methods.alpnet.episodes import Episode
from seguro.methods.alpnet.objective import Objective
from seguro.methods.alpnet.predictor import FewShot, pooling
from seguro.methods.alpnet.raster import raster
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run, Schedule
from seguro.networks.encoders import ResNet, build_encoder
from seguro.networks.pretrained import start_from


class Alpnet:
    """Method `alpnet`: segments an organ that one annotated scan shows; trained without any annotation."""

    Config: ClassVar[type[AlpnetConfig]] = AlpnetConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(
        dims=(2,), labels="none", segments=True, monitor=None, support=True, regions=Superpixels()
    )

    def __init__(self, config: AlpnetConfig, plan: Plan, build: Build) -> None:
        _refuse_unknown(config.excluded, plan)
        self.config = config
        self.plan = plan
        self.needs = replace(type(self).needs, regions=config.superpixels)  # type: ignore[misc]  # of this run
        self.encoder = build_encoder(
            config.encoder, in_channels=len(plan.channels), width=config.width, features=config.features
        )
        self.modules = nn.ModuleDict({"encoder": self.encoder})
        self.raster = raster(plan, config.size, self.encoder.stride)
        a, b = (plan.fingerprint.shape[k] for k in (0, 1, 2) if k != plan.slice_axis)
        self.size = self.raster.size((a, b))
        windows = pooling(config, self.raster, config.train_window)
        self.objective = Objective(windows, config.background_weight, config.align)

    def optimisers(self) -> dict[str, Optim]:
        """Return the one optimizer, over the encoder; public weights are read here, as training begins."""
        c = self.config
        if c.weights and isinstance(self.encoder, ResNet):
            start_from(self.encoder, c.weights)
        parameters = list(self.modules.parameters())
        optimiser: torch.optim.Optimizer
        if c.optimiser == "sgd":
            optimiser = torch.optim.SGD(
                parameters, c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
            )
        else:
            optimiser = torch.optim.AdamW(parameters, c.learning_rate, weight_decay=c.weight_decay)
        schedule = Schedule(c.schedule, warmup=c.warmup, factor=c.step_factor, every=c.step_every)
        return {"main": Optim(optimiser, schedule, clip=c.clip)}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Episode:
        """Return one episode: two views of one superpixel."""
        return episodes.draw(
            cases,
            rng,
            raster=self.raster,
            size=self.size,
            transforms=self.config.transforms,
            adjacent=self.config.episode == "adjacent",
            excluded=self.config.excluded,
        )

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on segmentation plus alignment loss."""
        n = len(batch.query)
        with run.autocast():
            features = self.modules["encoder"](torch.cat([batch.support, batch.query])).float()
        losses = self.objective(features[:n], batch.support_mask, features[n:], batch.query_mask)
        loss = sum(losses.values(), start=torch.zeros((), device=features.device))
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), **{k: v.detach() for k, v in losses.items()}}

    def state(self) -> dict[str, Tensor]:
        """Nothing beyond modules and optimizer."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the encoder with prototypes of whatever support it is given."""
        return FewShot(modules["encoder"], self.plan, self.config)  # type: ignore[arg-type]  # an Encoder

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())


def _refuse_unknown(excluded: Mapping[str, Sequence[int]], plan: Plan) -> None:
    """Refuse to exclude slices of a case that no fold has; plans without folds know no cases.

    Raises:
        ConfigError: there is such a case.
    """
    known = {i for fold in plan.folds for i in (*fold.train, *fold.validation)}
    unknown = sorted(set(excluded) - known)
    if known and unknown:
        raise ConfigError(
            f"excluded: {', '.join(unknown[:5])} ({len(unknown)} of {len(excluded)}) is no case of the plan, "
            f"so that nothing would be excluded; expected ids such as {min(known)}"
        )
