"""Options of training on labelled patches in the look of unlabelled ones."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from seguro.methods.patches import PlainRecipe


class RestyleConfig(PlainRecipe):
    """The look as published; the training recipe is that of method `supervised`, so that looks compare."""

    look: Literal["fourier", "histogram"] = "fourier"
    """fourier: low-frequency amplitudes (FDA). histogram: intensities, rank for rank."""
    share: float = Field(0.01, ge=0, le=0.5)
    """Of fourier: half width of the box of exchanged amplitudes, as a fraction of the patch."""
    p_look: float = Field(1.0, ge=0, le=1)
    """Probability that a labelled patch takes on the look of an unlabelled one."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"network_options": {"width": 16}, "share": 0.05},
    "tiny": {"network_options": {"width": 4}, "share": 0.1, "augment": {"p_spatial": 0.2}, "average": 0.9},
}
