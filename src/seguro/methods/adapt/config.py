"""Options of the adaptation: as published, and what is changed for small data and machines."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from seguro.data.augment import Augment
from seguro.methods.generators import GeneratorConfig
from seguro.methods.painter import SMALL_PAINTER, TINY_PAINTER, PainterConfig
from seguro.methods.streams import NO_AUGMENT

GENERATOR = tuple(GeneratorConfig.model_fields)
ENCODER = (
    *("source", "blocks", "encoder_width", "reduction", "norm", "branch_norm"),
    *("hidden", "domain_norm", "content"),
)
BUILT = tuple(n for n in GENERATOR if n not in ("side", "limits"))
"""What the weights of the generator depend on."""
READ = tuple(n for n in ENCODER if n not in ("domain_norm", "content"))
"""What the weights of encoder and source branch depend on."""


class AdaptConfig(PainterConfig):
    """Defaults are the published code's: Galati et al., MICCAI 2024 (where it contradicts itself: README)."""

    inherits: ClassVar[tuple[str, ...]] = (*GENERATOR, *ENCODER)
    """Fields that are those of the run that `--init` names, unless they are set: its weights fit no other."""
    stage: Literal["source", "adapt"] = "adapt"
    """source: encoder and label branch learn the labelled source. adapt: from there, the target joins."""
    target_slices: Literal["all", "middle"] = "all"
    """Which slices of a labelled target case show their label: all, or only the middle one of its classes."""

    mean_styles: int = Field(100_000, ge=1)
    """Random styles whose mean is the mean code of a domain."""

    pretrained: str | None = None
    """A .safetensors file with the weights of an IResNet, such as ArcFace's, that the encoder's backbone
    starts from in either stage, as published; null for chance, and in stage adapt for the run of `--init`.
    Read once, when training begins."""
    branch_norm: Literal["batch", "group", "instance", "none"] = "batch"
    """Of the label branches; none leaves the feature maps as the generator made them."""
    hidden: int = Field(128, ge=1)
    """Channels of a label branch."""
    ramp: float = Field(0.5, ge=0, le=1)
    """Fraction of training in which content takes the place of the generator's own activations, from the
    share that the encoder to start from has reached."""
    cycle: bool = True
    """Whether translations are translated back and compared with the image."""
    translated: Literal["branch", "all"] = "branch"
    """What learns from the source's labels on translations: the target's label branch alone, as published,
    or the encoder too."""
    target_branch: Literal["source", "own"] = "source"
    """What the target's label branch starts from: the source's, or its own weights."""

    l2: float = Field(1.0, ge=0)
    """Weight of the mean squared difference of images."""
    l1: float = Field(0.0, ge=0)
    """Weight of the mean absolute difference, at three scales."""
    ssim: float = Field(1.0, ge=0)
    """Weight of 1 - structural similarity."""
    gradient: float = Field(0.0, ge=0)
    """Weight of the mean absolute difference of the images' gradients."""
    perceptual: str | None = None
    """A .safetensors file with the weights of AlexNet (networks/perceptual.py), whose maps are compared too;
    null for none. Read once, when training begins."""
    perceptual_weight: float = Field(0.8, ge=0)
    """Of that distance, as published; it is computed of nothing without a file."""
    mask: float = Field(1.0, ge=0)
    """Weight of cross entropy and Dice."""
    dice: Literal["batch", "sample"] = "batch"
    """Whether Dice is of all slices of a batch together, as published, or the mean over slices."""

    optimiser: Literal["radam", "adam"] = "radam"
    """Of the encoder."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of the encoder."""
    branch_rate: float = Field(1e-3, gt=0)
    """Learning rate of the label branches (Adam)."""
    schedule: Literal["constant", "poly", "cosine"] = "constant"
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm, of the encoder and of the branches; null for none."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of averaged weights that are deployed; null for none."""
    p_foreground: float = Field(0.0, ge=0, le=1)
    """Probability that a labelled slice is chosen to show a foreground class."""
    augment: Augment = NO_AUGMENT
    view: Augment = NO_AUGMENT
    """What is done to the intensities that the encoder sees, while the image that it is to paint stays as it
    is: content that survives it has no look of its own. Without geometry."""

    select: Literal["translated", "cycle", "dice", "last"] = "translated"
    """What chooses the model of stage adapt: the loss on translated source slices or of the way there and
    back, which need no label of the target; the Dice of labelled validation cases, as published; or none."""
    prediction: Literal["intra", "inter", "ensemble"] = "ensemble"
    """intra: by the target's branch. inter: translated to the source, by its branch. ensemble: of both."""
    inter_weight: float = Field(0.6, ge=0, le=1)
    """Of inter in the ensemble's probabilities; intra has the rest."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows, where a slice is larger than the frame."""

    @model_validator(mode="after")
    def _fits(self) -> AdaptConfig:
        if not self.l2 + self.l1 + self.ssim + self.gradient:
            raise ValueError("l2, l1, ssim and gradient are all 0; images would not be compared at all")
        if self.view.p_spatial or self.view.mirror:
            raise ValueError("view moves things (p_spatial, mirror); the image to paint would not follow")
        if self.select == "cycle" and not self.cycle:
            raise ValueError("select cycle needs the cycle: leave cycle=false out, or set select=translated")
        return self


VIEW = NO_AUGMENT.model_copy(
    update={
        "p_curve": 0.75,
        "p_noise": 0.3,
        "noise_sd": 0.3,
        "p_blur": 0.2,
        "p_intensity": 0.3,
        "brightness": 0.4,
        "contrast": (0.6, 1.5),
    }
)
_OURS: dict[str, Any] = {
    "branch_norm": "none",
    "l2": 0.0,
    "l1": 1.0,
    "gradient": 1.0,
    "optimiser": "adam",
    "learning_rate": 1e-3,
    "schedule": "poly",
    "clip": 12.0,
    "p_foreground": 0.5,
    "view": VIEW.model_dump(),
    "prediction": "inter",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        **_OURS,
        **SMALL_PAINTER,
        "mean_styles": 4096,
        "hidden": 64,
        "average": 0.99,
        "augment": NO_AUGMENT.model_copy(
            update={"p_spatial": 0.5, "elastic_vox": 0.0, "mirror": True}
        ).model_dump(),
    },
    "tiny": {
        **_OURS,
        **TINY_PAINTER,
        "learning_rate": 2e-3,
        "branch_rate": 2e-3,
        "mean_styles": 64,
        "hidden": 64,
        "average": 0.9,
    },
}
