"""Options of learning from painted slices."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from seguro.methods.painter import SMALL_PAINTER, TINY_PAINTER, PainterConfig
from seguro.methods.patches import PlainRecipe


class RepaintConfig(PainterConfig, PlainRecipe):
    """The painter is that of the run to start from; the training recipe is that of method `supervised`."""

    inherits: ClassVar[tuple[str, ...]] = tuple(PainterConfig.model_fields)
    """Fields that are those of the run that `--init` names, unless they are set: its weights fit no other."""
    p_painted: float = Field(1.0, ge=0, le=1)
    """Probability that a slice of the source is painted in the target's look; else it is shown as it is."""
    target_slices: Literal["all", "middle"] = "all"
    """Which slices of a labelled target case are learned from: all, or only the middle one of its classes."""


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
