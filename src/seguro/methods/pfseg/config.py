"""Options of PFSeg: the published recipe, its ablation, and what was added to it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from seguro.core.types import Record, Three
from seguro.data.augment import Augment

PAPER_AUGMENT = Augment(
    p_spatial=0.5,
    rotate_deg=180.0,
    scale=(1.0, 1.0),
    elastic_vox=0.0,
    p_noise=0.0,
    p_blur=0.0,
    p_intensity=0.0,
)
"""Mirroring and any rotation, as published; the shift is an option of its own."""

GUIDED = 0.5
"""Weight of the guided loss unless told otherwise; it stands idle without guidance."""


class PfsegConfig(Record):
    """Defaults are the paper's: Wang et al., MICCAI 2021."""

    size: Three | None = None
    """(Z, Y, X) voxels of the planned grid that are trained on at once; null: the median case, or what of it
    fits the memory that the plan's patch was made for."""
    scale: int | Three | Literal["fitted"] = 2
    """How many voxels one of the low resolution spans, powers of two; fitted: 2, and 1 across thick
    slices."""
    pools: Literal["paper", "fitted"] = "paper"
    """paper: four halvings of every axis. fitted: an axis is halved while it is fine and long enough."""
    width: int = Field(32, ge=2, multiple_of=2)
    tail_width: int | None = Field(None, ge=1)
    """Channels at high resolution; null for half of `width`."""
    stem: Literal["interpolate", "pixel-unshuffle"] = "interpolate"
    """interpolate: the encoder sees the image averaged down. pixel-unshuffle: it sees every voxel, as
    further channels (holistic decomposition)."""
    lowpass: bool = False
    """A Gaussian before the image is averaged down."""
    prior: Literal["none", "plan"] = "none"
    """plan: the output begins with the classes' frequencies in the training cases."""

    guidance: Literal["central", "variance", "random", "none"] = "central"
    """Which crop is encoded at full resolution: the one in the middle, the one whose intensities vary most,
    any (at prediction always the same ones), or none."""
    crops: int = Field(1, ge=1)
    """How many of them."""
    crop: Three | None = None
    """Their (Z, Y, X) in voxels; null: low resolution over the first pool, a quarter of each axis as
    published."""
    inject: Literal["concat", "scatter"] = "concat"
    """concat: joined to the bottleneck cell by cell, wherever the crop lies, as published. scatter: joined to
    the cells that the crop covers."""

    dice: Literal["squared", "released"] = "squared"
    """squared: 2 |PY| / (|P|^2 + |Y|^2). released: without the factor 2; the best loss is then one half."""
    restoration_weight: float = Field(0.5, ge=0)
    """Of the super-resolution loss; when it and the three below are 0 there is no second decoder."""
    guided_weight: float = Field(GUIDED, ge=0)
    """Of the super-resolution loss inside the crops."""
    target_weight: float = Field(0.5, ge=0)
    """Of the target-enhanced loss."""
    similarity_weight: float = Field(0.5, ge=0)
    """Of the spatial-similarity loss."""
    similarity: Literal["paper", "mean"] = "paper"
    """paper: both outputs pooled before they are multiplied, summed over pairs of cells and divided by the
    squared cells of a slice. mean: the product is pooled, and the mean over pairs is taken, which does not
    depend on the size."""
    pool: int = Field(10, ge=1)
    """Voxels per axis that the similarity loss takes together."""
    residual: bool = False
    """Restore the difference to the low-resolution image, linearly enlarged, instead of the image; of no
    effect without a second decoder."""

    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["plateau", "poly", "cosine", "constant"] = "plateau"
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: int = Field(20, ge=0)
    """Validations without improvement before the learning rate falls."""
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of averaged weights that are validated and deployed; null for none."""

    augment: Augment = PAPER_AUGMENT
    rotate: Literal["plane", "all"] = "plane"
    """Rotations in the slices only, as published, or about every axis."""
    p_shift: float = Field(0.5, ge=0, le=1)
    shift: float = Field(0.125, ge=0, lt=0.5)
    """Largest shift within the slices, as a fraction of the size."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.guidance == "central" and self.crops > 1:
            raise ValueError(f"there is one central crop, not {self.crops}: use guidance variance or random")
        if self.guidance == "none" and (self.crops > 1 or self.crop is not None or self.inject != "concat"):
            raise ValueError("guidance none has no crops: leave crops, crop and inject out")
        self._refuse_idle()
        return self

    def _refuse_idle(self) -> None:
        """Refuse options that would change nothing, where they are not as they come."""
        if self.guidance == "none" and self.guided_weight not in (0, GUIDED):
            raise ValueError("guidance none has no crops for the guided loss: leave guided_weight out")
        if self.lowpass and self.stem == "pixel-unshuffle" and not (self.residual and self.restores):
            raise ValueError("stem pixel-unshuffle averages nothing: leave lowpass out, or set residual=true")
        if self.scale not in (1, (1, 1, 1)):
            return
        if self.lowpass:
            raise ValueError("scale 1 lowers no resolution: leave lowpass out")
        if self.tail_width is not None:
            raise ValueError("scale 1 has no layers at another resolution: leave tail_width out")

    @property
    def restores(self) -> bool:
        """Whether there is a second decoder; the guided loss needs crops."""
        guided = 0.0 if self.guidance == "none" else self.guided_weight
        return max(self.restoration_weight, guided, self.target_weight, self.similarity_weight) > 0


WITHOUT: dict[str, Any] = {
    "guidance": "none",
    "restoration_weight": 0.0,
    "guided_weight": 0.0,
    "target_weight": 0.0,
    "similarity_weight": 0.0,
}
SMALL: dict[str, Any] = {
    "scale": "fitted",
    "pools": "fitted",
    "prior": "plan",
    "guidance": "variance",
    "inject": "scatter",
    "similarity": "mean",
    "similarity_weight": 5.0,
    "residual": True,
    "learning_rate": 1e-3,
    "schedule": "poly",
    "clip": 12.0,
    "augment": Augment().model_dump(),
    "rotate": "all",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "ablation-us": WITHOUT,
    "ablation-sr": WITHOUT | {"restoration_weight": 0.5},
    "ablation-tel": WITHOUT | {"restoration_weight": 0.5, "target_weight": 0.5},
    "ablation-ssl": {"guidance": "none", "guided_weight": 0.0},
    "small": SMALL | {"width": 16, "average": 0.99},
    "tiny": SMALL | {"width": 4, "tail_width": 4, "pool": 4, "average": 0.9, "augment": {"p_spatial": 0.2}},
}
