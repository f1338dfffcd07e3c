"""Supervised learning on labelled patches that look like unlabelled ones: histogram matching and FDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.data.appearance import fourier_adapted, histogram_matched
from seguro.data.plan import Plan
from seguro.data.sampling import centre, crop, patch_size
from seguro.data.store import Cases
from seguro.losses import cross_entropy, soft_dice
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.patches import Labelled, NetworkPredictor, labelled_patch, plain_optimiser
from seguro.methods.restyle.config import PRESETS, RestyleConfig


class Restyle:
    """Method `restyle`: the labels of one site under the look of another, whose cases have none."""

    Config: ClassVar[type[RestyleConfig]] = RestyleConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(labels="some", unlabelled="needed")

    def __init__(self, config: RestyleConfig, plan: Plan, build: Build) -> None:
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
        """Return the one optimizer, over all parameters of the network."""
        return plain_optimiser(self.config, self.modules["network"])

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Labelled:
        """Return a labelled patch in the look of a patch from a random unlabelled case, augmented.

        Raises:
            ConfigError: there is no labelled case, or no unlabelled one.
        """
        if not (cases.labelled and cases.unlabelled):
            raise ConfigError(
                f"{len(cases.labelled)} labelled and {len(cases.unlabelled)} unlabelled cases: this method "
                "shows the labelled ones in the look of the unlabelled; it needs both wherever it trains"
            )
        c = self.config
        case = cases[int(rng.choice(cases.labelled))]

        def look(image: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._like(image, cases, rng)

        return labelled_patch(case, self.plan, c.augment, rng, p_foreground=c.p_foreground, look=look)

    def _like(
        self, image: NDArray[np.float32], cases: Cases, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return the patch in the look of one of a random unlabelled case, with the probability `p_look`."""
        if rng.random() >= self.config.p_look:
            return image
        patch = patch_size(self.plan.patch, self.plan.slice_axis)
        other = cases[int(rng.choice(cases.unlabelled))]
        seen, _ = crop(other, centre(other, patch, rng, p_foreground=0.0), patch)
        if self.config.look == "histogram":
            return histogram_matched(image, seen)
        return fourier_adapted(image, seen, self.config.share)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one step on Dice plus cross entropy."""
        with run.autocast():
            logits = self.modules["network"](batch.image)
        args = (logits.float(), batch.label, batch.annotated, self.plan.classes)
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
