"""Options of SSL-ALPNet: superpixels, episodes, prototypes, and how a support is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from seguro.core.types import Record
from seguro.data.superpixels import Superpixels


class Transforms(Record):
    """How the two views of an episode are changed; defaults are the published ones, at `size` 256.

    Lengths in pixels are for slices of 256 pixels and grow with `size`.
    """

    rotate_deg: float = Field(5.0, ge=0)
    shift_px: float = Field(5.0, ge=0)
    shear_deg: float = Field(5.0, ge=0, lt=90)
    shear_about: Literal["corner", "middle"] = "corner"
    """The published shear is about the corner and so also moves the slice, by up to 22 pixels."""
    zoom: tuple[float, float] = (0.9, 1.2)
    elastic_px: float = Field(10.0, ge=0)
    """Factor of the smoothed noise that displaces pixels (standard deviation about 0.03 of it)."""
    elastic_sigma_px: float = Field(5.0, gt=0)
    gamma: tuple[float, float] = (0.5, 1.5)
    views: Literal["both", "query"] = "both"
    """Which view is changed; the published code changes both, independently."""
    outside: Literal["minimum", "zero"] = "minimum"
    """Value beyond the slice; the published zero is the mean grey, not air."""


class AlpnetConfig(Record):
    """Constants of the method are the published ones: Ouyang et al., ECCV 2020 (TMI 2022).

    Encoder, size and optimizer are for training from scratch; preset "paper" has the published ones.
    """

    superpixels: Superpixels = Superpixels()
    episode: Literal["same", "adjacent"] = "same"
    """same: both views show one slice. adjacent: neighboring slices that share a supervoxel (ADNet)."""
    excluded: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Case id -> planned slices that no episode shows: for benchmarks that keep organs out of training.
    Ids that no fold of the plan has are refused."""
    transforms: Transforms = Transforms()
    size: int = Field(128, ge=8)
    """Pixels of the longer in-plane side of the median case, as the encoder sees it."""
    encoder: Literal["residual", "resnet50", "resnet101"] = "residual"
    width: int = Field(32, ge=2)
    """Channels of the first layer (64 of a resnet's public weights)."""
    features: int = Field(64, ge=2)
    """Channels of the feature map."""
    weights: str | None = None
    """Of a resnet: a .safetensors file with the names of torchvision, "online" to download those trained on
    COCO by way of torchvision, "timm" its default ones of ImageNet; null: from scratch. Read once, when
    training begins."""
    foreground: Literal["both", "global"] = "both"
    """both: a global prototype, and local ones where the mask fills a window of `gate`. global: one only."""
    background: Literal["local", "global"] = "local"
    train_window: float = Field(4.0, gt=0)
    test_window: float = Field(2.0, gt=0)
    gate: float = Field(4.0, gt=0)
    """Window that a foreground must fill somewhere before it gets local prototypes."""
    window_unit: Literal["cells", "mm"] = "cells"
    """Of the three windows: feature cells, or millimeters (pixels of pictures), rounded to cells."""
    background_weight: float = Field(0.05, gt=0)
    """Of the background in the segmentation loss; the foreground's is 1."""
    align: float = Field(1.0, ge=0)
    """Weight of the alignment loss; 0: none."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "step", "constant", "poly"] = "cosine"
    warmup: float = Field(0.1, ge=0, le=1)
    """Fraction of training in which the learning rate rises."""
    step_factor: float = Field(0.95, gt=0, le=1)
    """Of schedule step: what the learning rate falls to every `step_every` updates."""
    step_every: int = Field(1000, ge=1)
    clip: float | None = Field(5.0, gt=0)
    """Largest gradient norm; null for none."""
    nearest: int = Field(3, ge=0)
    """Annotated slices of each shot, the nearest in height, that a slice is compared with; 0: all."""
    prior: Literal["aligned", "fraction", "none"] = "aligned"
    """What a slice's height in the support's scan is taken from: features of whole slices, its share of the
    volume, or nothing, so that every class is looked for everywhere."""
    margin: float = Field(0.0, ge=0, le=1)
    """Of a class beyond the slices that show it, as a share of the support's scan."""
    reach: float = Field(0.1, gt=0, le=1)
    """How far from its annotated slices a shot speaks where another is annotated nearer, as a share of its
    scan: of presence by a Gaussian of this width, of looks up to this much farther than the nearest shot."""
    position_weight: float = Field(0.0, ge=0)
    """How much distance in the slice counts against likeness, per squared radius of the body."""

    @model_validator(mode="after")
    def _consistent(self) -> AlpnetConfig:
        if self.episode == "adjacent" and self.superpixels.kind != "supervoxels":
            raise ValueError(
                f"episode adjacent needs ids that slices share: set superpixels.kind=supervoxels "
                f"(found {self.superpixels.kind})"
            )
        if self.weights and self.encoder == "residual":
            raise ValueError("weights are for a resnet: set encoder=resnet101 or resnet50")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "size": 256,
        "encoder": "resnet101",
        "width": 64,
        "features": 256,
        "optimiser": "sgd",
        "weight_decay": 5e-4,
        "schedule": "step",
        "warmup": 0.0,
        "clip": None,
        "nearest": 0,
        "prior": "none",
        "transforms": {"outside": "zero"},
    },
    "small": {
        "transforms": {"shear_about": "middle"},
        "superpixels": {"min_size": 400 / 256**2, "unit": "share"},
    },
    "tiny": {
        "size": 32,
        "width": 8,
        "features": 16,
        "train_window": 2.0,
        "test_window": 1.0,
        "gate": 2.0,
        "transforms": {"shear_about": "middle"},
        "superpixels": {"min_size": 0.02, "unit": "share"},
    },
}
