"""Options of training on labelled patches in the look of unlabelled ones."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from seguro.core.types import Record
from seguro.data.augment import Augment


class RestyleConfig(Record):
    """The look as published; the training recipe is that of method `supervised`, so that looks compare."""

    network: str = "unet"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` of the U-Net."""
    look: Literal["fourier", "histogram"] = "fourier"
    """fourier: low-frequency amplitudes (FDA). histogram: intensities, rank for rank."""
    share: float = Field(0.01, ge=0, le=0.5)
    """Of fourier: half width of the box of exchanged amplitudes, as a fraction of the patch."""
    p_look: float = Field(1.0, ge=0, le=1)
    """Probability that a labelled patch takes on the look of an unlabelled one."""
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
    """After the look was taken on."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"network_options": {"width": 16}, "share": 0.05},
    "tiny": {"network_options": {"width": 4}, "share": 0.1, "augment": {"p_spatial": 0.2}, "average": 0.9},
}
