"""Options of learning from painted slices."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    guess_weight: float = Field(0.5, ge=0)
    """Weight of the loss on images of the target, half of them seen without label, against what the averaged
    network reads there; 0: no image of the target is looked at."""
    ramp: float = Field(0.3, ge=0, le=1)
    """Fraction of training in which that weight rises."""
    box: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of such an image that is replaced by the labelled one beside it."""

    @model_validator(mode="after")
    def _guesses(self) -> Self:
        if self.guess_weight and self.average is None:
            raise ValueError("guesses are those of the averaged network: set average, or guess_weight to 0")
        if not 0 < self.box[0] <= self.box[1] < 1:
            raise ValueError(f"box {self.box}: expected two rising shares between 0 and 1")
        return self


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
