"""PFSeg: the whole volume at low resolution, segmented and restored at full resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.losses import cross_entropy
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run, Schedule
from seguro.methods.pfseg import objective
from seguro.methods.pfseg.config import PRESETS, PfsegConfig
from seguro.methods.pfseg.grid import pools_of, scale_of, size_of, whole_size
from seguro.methods.pfseg.guidance import inside
from seguro.methods.pfseg.predictor import WholePredictor, corners_of, unit
from seguro.methods.pfseg.sample import WholeVolume, whole_volume
from seguro.networks.guidance import central
from seguro.networks.resolution import lowered, raised
from seguro.networks.superres import SuperRes


class Pfseg:
    """Method `pfseg`: whole volumes at once, guided by super-resolution."""

    Config: ClassVar[type[PfsegConfig]] = PfsegConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(3,), whole=True, labels="all", segments=True, monitor="max:dice")

    def __init__(self, config: PfsegConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        scale = scale_of(config, plan)
        network = build(
            "superres",
            in_channels=len(plan.channels),
            classes=plan.classes.n,
            plan=plan,
            scale=scale,
            pools=pools_of(config, plan, scale),
            width=config.width,
            tail_width=config.tail_width,
            stem=config.stem,
            lowpass=config.lowpass,
            guidance=config.guidance != "none",
            inject=config.inject,
            crop=config.crop,
        )
        self.network = cast(SuperRes, network)
        self.size = size_of(config, plan, self.network)
        if config.guidance != "none":
            try:
                self.network.crop_size(self.size)  # before anything is trained
            except DataError as error:  # here the options do not fit, not a case
                raise ConfigError(str(error)) from error
        if config.prior == "plan":
            set_prior(self.network, plan)
        self.modules = nn.ModuleDict({"network": network})
        if config.restores:
            restorer = self.network.restorer(len(plan.channels))
            if config.residual:  # so that it begins as the enlarged image
                nn.init.zeros_(restorer.tail.head.weight)
                nn.init.zeros_(cast(Tensor, restorer.tail.head.bias))
            self.modules["restorer"] = restorer

    @property
    def notes(self) -> tuple[str, ...]:
        """Say where training sees less than a case, which the memory of the plan decides."""
        whole = whole_size(self.plan, self.network)
        if self.config.size is not None or self.size == whole:
            return ()
        seen, case = (" x ".join(map(str, size)) for size in (self.size, whole))
        return (
            f"trained on {seen} of the median case's {case} voxels at once: the plan's memory holds no more; "
            f"for all of it: --set size=[{','.join(map(str, whole))}], or a larger seguro plan --memory",
        )

    def optimisers(self) -> dict[str, Optim]:
        """Return Adam over all trained parameters."""
        c = self.config
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(parameters, c.learning_rate, weight_decay=c.weight_decay)
        schedule = Schedule(c.schedule, factor=c.plateau_factor, patience=c.plateau_patience)
        average = {} if c.average is None else {"network": c.average}
        return {"main": Optim(optimiser, schedule, average, c.clip)}

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> WholeVolume:
        """Return one augmented volume of a random labelled case."""
        case = cases[int(rng.choice(cases.labelled))]
        return whole_volume(case, self.size, self.plan, self.config, rng)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on the weighted sum of all losses."""
        x = unit(batch.image)
        corners = corners_of(x, self.network, self.config, batch.places)
        with run.autocast():
            maps = self.network.encode(x, corners)
            logits = self.network.segment(maps)
            restored = self.restored(maps, x) if self.config.restores else None
        losses = self.losses(
            logits.float(), None if restored is None else restored.float(), x, corners, batch
        )
        loss = torch.stack([self.weight(name) * value for name, value in losses.items()]).sum()
        run.backward(loss)
        run.step("main")
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def restored(self, maps: list[Tensor], x: Tensor) -> Tensor:
        """Return the restored image, at least 0, of the encoder's maps of x."""
        out: Tensor = self.modules["restorer"](maps)
        if self.config.residual:
            scale = self.network.scale
            out = out + raised(lowered(x, scale, lowpass=self.config.lowpass), scale)
        return out.relu()

    def weight(self, name: str) -> float:
        """Return the weight of the loss called `name`."""
        return float(getattr(self.config, f"{name}_weight", 1.0))

    def losses(
        self, logits: Tensor, restored: Tensor | None, x: Tensor, corners: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """Return every loss whose weight is not 0, by name, before weighting.

        Args:
            logits: (N, n, *size).
            restored: (N, C, *size), None without the second decoder.
            x: (N, C, *size) the image in [0, 1].
            corners: of the crops, None for the central one.
            batch: gives label and annotated classes.
        """
        c, classes = self.config, self.plan.classes
        labels = (batch.label, batch.annotated, classes)
        p, y, known = objective.foreground(logits, *labels)
        factor = 2.0 if c.dice == "squared" else 1.0
        out = {
            "cross_entropy": cross_entropy(logits, *labels),
            "dice": objective.squared_dice(p, y, known, factor=factor),
        }
        if restored is None:
            return out
        if c.restoration_weight:
            out["restoration"] = objective.restoration(restored, x)
        if c.guided_weight and self.network.guide is not None:
            crop = self.network.crop_size(x.shape[2:])
            where = central(x.shape[2:], crop, len(x)) if corners is None else corners
            mask = inside(where, crop, x.shape[2:]).to(x.device)
            out["guided"] = objective.restoration(restored, x, mask)
        if c.target_weight:
            out["target"] = objective.target_enhanced(p, restored, y, x, known)
        if c.similarity_weight:
            out["similarity"] = objective.spatial_similarity(
                p, restored, y, x, known, pool=c.pool, norm=c.similarity
            )
        return out

    def state(self) -> dict[str, Tensor]:
        """Nothing beyond modules and optimiser."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the network without the restoring decoder, on whole volumes."""
        return WholePredictor(cast(SuperRes, modules["network"]), self.plan.classes, self.config)

    def shared(self) -> list[str]:
        """Everything may leave a site."""
        return list(self.modules.state_dict())


def set_prior(network: SuperRes, plan: Plan) -> None:
    """Let the output begin with each class's mean part of a training case.

    Raises:
        ConfigError: the plan knows no volumes.
    """
    found, classes = plan.fingerprint, plan.classes
    total_ml = float(np.prod([s.median for s in found.extent])) / 1000
    if total_ml <= 0 or not found.volume_ml:
        raise ConfigError("prior plan: the plan knows no volumes of its classes; set prior=none")
    cases = max(found.n_labelled, 1)
    parts = [
        found.volume_ml[name].median / total_ml * min(found.present.get(name, 0) / cases, 1.0)
        if name in found.volume_ml
        else 0.0
        for name in classes.foreground
    ]
    p = torch.tensor(parts).clamp(1e-5, 0.9)
    bias = p.logit() if classes.regions else torch.cat([(1 - p.sum()).clamp(min=1e-2).reshape(1), p]).log()
    with torch.no_grad():
        cast(Tensor, network.segment.tail.head.bias).copy_(bias)
