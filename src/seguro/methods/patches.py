"""What patch-based methods share: a labelled patch, the plain recipe, and a plain network as predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from seguro.core.types import Record
from seguro.data.augment import Augment, intensities, patch_of, unshaded
from seguro.data.augment import draw as draw_augmentation
from seguro.data.plan import Plan
from seguro.data.sampling import at_slice, centre, patch_size
from seguro.data.store import Stored
from seguro.methods.contract import Optim, Predictor, Schedule, Slices, Support, Whole, Windows


class PlainRecipe(Record):
    """How method `supervised` trains, and methods that change only what the network is shown."""

    network: str = "unet"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` of the U-Net."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: float = Field(0.02, ge=0, le=1)
    """Fraction of training in which the learning rate rises."""
    clip: float | None = Field(12.0, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(0.99, ge=0, lt=1)
    """Decay of the averaged weights that are validated and deployed; null for none."""
    p_foreground: float = Field(0.5, ge=0, le=1)
    """Probability that a labelled patch is centered on a foreground voxel."""
    augment: Augment = Augment()
    """Geometry before the image is changed, intensities after it."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""


def plain_optimiser(
    recipe: PlainRecipe, network: nn.Module, optimiser: torch.optim.Optimizer | None = None
) -> dict[str, Optim]:
    """Return the one optimizer, AdamW or the given one, over all parameters of module "network"."""
    r = recipe
    if optimiser is None:
        optimiser = torch.optim.AdamW(network.parameters(), r.learning_rate, weight_decay=r.weight_decay)
    average = {} if r.average is None else {"network": r.average}
    return {"main": Optim(optimiser, Schedule(r.schedule, warmup=r.warmup), average, r.clip)}


@dataclass(frozen=True)
class Labelled:
    """One patch with its label; stacked along a first axis it is the batch."""

    image: NDArray[np.float32]
    """(C, *patch) with `patch` of the plan's dimensions."""
    label: NDArray[np.uint8]
    """(*patch) stored labels."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for."""


def labelled_patch(
    case: Stored,
    plan: Plan,
    augment: Augment,
    rng: np.random.Generator,
    *,
    p_foreground: float,
    look: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    index: int | None = None,
) -> Labelled:
    """Return one augmented patch of a labelled case.

    Args:
        case: has a label.
        plan: gives patch, mirroring and classes.
        augment: how strongly it is changed.
        rng: the only source of randomness.
        p_foreground: probability that the patch is centered on a foreground voxel.
        look: changes the image (C, Z, Y, X) between its geometry and the augmentation of its intensities.
        index: of the slice, in 2-D; None for any.
    """
    patch = patch_size(plan.patch, plan.slice_axis)
    middle = centre(case, patch, rng, p_foreground=p_foreground)
    if index is not None:
        middle = at_slice(middle, plan.slice_axis, index)
    drawn = draw_augmentation(
        rng, augment, spacing=case.grid.spacing, patch=patch, mirror=plan.mirror, classes=plan.classes
    )
    still = unshaded(drawn)
    image, label = patch_of(case, middle, patch, drawn if look is None else still)
    if look is not None:
        image = intensities(look(image), drawn)
    labels = cast(NDArray[np.uint8], label)  # the case is labelled
    return Labelled(image.reshape(-1, *plan.patch), labels.reshape(plan.patch), case.annotated)


class NetworkPredictor(Predictor):
    """A plain network as predictor: windows or, if `whole`, one pass in 3-D, slices in 2-D."""

    def __init__(self, network: nn.Module, plan: Plan, *, overlap: float = 0.5, whole: bool = False) -> None:
        super().__init__()
        self.network = network
        self.classes = plan.classes
        self.dims = plan.dims
        if plan.dims == 3 and whole:
            self.tiling = Whole((plan.multiple[0], plan.multiple[1], plan.multiple[2]))
        elif plan.dims == 3:
            self.tiling = Windows((plan.patch[0], plan.patch[1], plan.patch[2]), overlap)
        else:
            self.tiling = Slices(plan.slice_axis, (plan.patch[0], plan.patch[1]), overlap)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, n, Z, Y, X) of (N, C, Z, Y, X); 2-D networks see (N, C, Y, X) of one slice."""
        if self.dims == 3:
            return self.network(x)  # type: ignore[no-any-return]
        return self.network(x.squeeze(2)).unsqueeze(2)  # type: ignore[no-any-return]
