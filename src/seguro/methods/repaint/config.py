"""Options of learning from painted slices."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from seguro.data.augment import Augment
from seguro.methods.painter import SMALL_PAINTER, TINY_PAINTER, PainterConfig


class RepaintConfig(PainterConfig):
    """The painter is that of the run to start from; the training recipe is that of method `supervised`."""

    inherits: ClassVar[tuple[str, ...]] = tuple(PainterConfig.model_fields)
    """Fields that are those of the run that `--init` names, unless they are set: its weights fit no other."""
    network: str = "unet"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` of the U-Net."""
    p_painted: float = Field(1.0, ge=0, le=1)
    """Probability that a slice of the source is painted in the target's look; else it is shown as it is."""
    target_slices: Literal["all", "middle"] = "all"
    """Which slices of a labelled target case are learned from: all, or only the middle one of its classes."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: float = Field(0.02, ge=0, le=1)
    """Fraction of training in which the learning rate rises."""
    clip: float | None = Field(12.0, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(0.99, ge=0, lt=1)
    """Decay of the averaged weights that are deployed; null for none."""
    p_foreground: float = Field(0.5, ge=0, le=1)
    """Probability that a slice is chosen to show a foreground class."""
    augment: Augment = Augment()
    """Geometry before painting, intensities after it."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {**SMALL_PAINTER, "network_options": {"width": 16}},
    "tiny": {
        **TINY_PAINTER,
        "network_options": {"width": 4},
        "augment": {"p_spatial": 0.2},
        "average": 0.9,
    },
}
