"""Options of the supervised baseline."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from seguro.methods.patches import PlainRecipe


class SupervisedConfig(PlainRecipe):
    """Defaults are this project's recipe for an hour's training from scratch; preset "paper" is nnU-Net's."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(0.99, ge=0, lt=1)
    """Of sgd only (Nesterov)."""
    dice_weight: float = Field(1.0, ge=0)
    cross_entropy_weight: float = Field(1.0, ge=0)
    tiling: Literal["windows", "whole"] = "windows"
    """At prediction. windows: of the plan's patch. whole: one pass over the volume, in 3-D."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "optimiser": "sgd",
        "learning_rate": 0.01,
        "warmup": 0.0,
        "average": None,
        "p_foreground": 0.33,
        "augment": {
            "p_spatial": 0.2,
            "rotate_deg": 30.0,
            "scale": (0.7, 1.4),
            "elastic_vox": 0.0,
            "p_intensity": 0.15,
        },
    },
    "small": {"network_options": {"width": 16}},
    "strong": {
        "network_options": {"width": 16},
        "augment": {
            "p_spatial": 0.8,
            "rotate_deg": 30.0,
            "scale": (0.7, 1.4),
            "p_noise": 0.5,
            "noise_sd": 0.5,
            "p_blur": 0.5,
            "blur_vox": (0.5, 2.0),
            "p_intensity": 0.8,
            "brightness": 0.8,
            "contrast": (0.4, 1.8),
            "gamma": (0.4, 2.5),
        },
    },
    "tiny": {"network_options": {"width": 4}, "augment": {"p_spatial": 0.2}, "average": 0.9},
}
