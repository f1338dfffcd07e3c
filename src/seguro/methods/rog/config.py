"""Options of ROG: the published recipe for clean training, and how it is made adversarial."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from seguro.core.types import Record
from seguro.data.augment import Augment

PAPER_AUGMENT = Augment(
    p_spatial=0.5,
    rotate_deg=15.0,
    scale=(0.85, 1.15),
    elastic_vox=0.0,
    p_noise=0.0,
    p_blur=0.0,
    p_intensity=0.2,
    brightness=1.73,
    contrast=(0.75, 1.25),
    gamma=(0.7, 1.5),
)
"""Section 3 of the paper; brightness is uniform with the standard deviation 1 of the paper's normal law."""


class RogConfig(Record):
    """Defaults are the paper's: Daza, Perez and Arbelaez, MICCAI 2021."""

    network: str = "lattice"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` of the lattice (64 in the paper)."""
    adversary: Literal["free", "pgd", "none"] = "free"
    """free: Free adversarial training (Shafahi et al. 2019). pgd: an attack before each step (Madry et al.
    2018). none: clean training."""
    epsilon: float = Field(8 / 255, ge=0, le=1)
    """Largest perturbation, as a fraction of each sample's and channel's own range."""
    replays: int = Field(5, ge=1)
    """Steps on the same batch in Free adversarial training (m in the paper)."""
    noise_step: float = Field(1.0, gt=0)
    """Step of the perturbation in units of epsilon."""
    attack_steps: int = Field(4, ge=1)
    """Of adversary pgd: gradient steps on the input before the step on the weights."""
    attack_step: float = Field(0.5, gt=0)
    """Of adversary pgd: their length in units of epsilon."""
    clean: float = Field(0.0, ge=0, le=1)
    """Fraction of the updates, at the start, that are trained clean; the paper starts from a clean run."""
    select: Literal["clean", "robust"] = "clean"
    """Score that selects the model: Dice of clean images, or under a short attack at `epsilon`."""
    dice: Literal["paper", "smooth"] = "paper"
    """paper: no smoothing in the numerator, an absent class counts as 0 without gradient. smooth: one voxel
    in both, so that false alarms are punished."""
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    schedule: Literal["plateau", "poly", "cosine", "constant"] = "plateau"
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(50, ge=0)
    """Validations without improvement before the learning rate falls."""
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of averaged weights that are validated and deployed; null for none."""
    p_foreground: float = Field(0.5, ge=0, le=1)
    """Probability that a patch is centered on a foreground voxel."""
    augment: Augment = PAPER_AUGMENT
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""

    @field_validator("epsilon", mode="before")
    @classmethod
    def _with_unit(cls, value: object) -> object:
        """Take "8/255" and "3%" as well as a fraction; a number above 1 is refused by its bound."""
        if isinstance(value, str) and (value.endswith("%") or value.endswith("/255")):
            number, divide = (value[:-1], 100.0) if value.endswith("%") else (value[:-4], 255.0)
            return float(number) / divide
        return value


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "network_options": {"width": 16},
        "clean": 0.5,
        "schedule": "poly",
        "average": 0.99,
        "dice": "smooth",
        "augment": PAPER_AUGMENT.model_copy(update={"brightness": 0.5}).model_dump(),
    },
    "tiny": {
        "network_options": {"width": 4},
        "replays": 2,
        "schedule": "poly",
        "dice": "smooth",
        "augment": {"p_spatial": 0.2},
    },
}
