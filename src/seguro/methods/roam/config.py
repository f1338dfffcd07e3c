"""Options of ROAM: the published recipe, and what was added to it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from seguro.core.types import Record
from seguro.data.augment import Augment
from seguro.methods.streams import NO_AUGMENT


class RoamConfig(Record):
    """Defaults are the paper's on brain MRI: Bdair et al., arXiv 2003.09439, three labelled volumes."""

    network: str = "unet-classic"
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the network, e.g. `width` (64 in the paper)."""

    layers: tuple[int | str, ...] = Field(("I", 1, "L"), min_length=1)
    """Where samples are mixed, one drawn per update: I the input, 1 to n the encoder's stages, L the last
    hidden activation, any name of the network, or none for an update without mixing."""
    layer_weights: tuple[float, ...] | None = None
    """How likely each layer is, in proportion; null: all the same."""
    p_mix: float = Field(1.0, ge=0, le=1)
    """Part of the updates that mix at all."""
    alpha: float = Field(0.75, gt=0)
    """Of the Beta law of the mixing coefficient; its larger side is the sample's own share."""
    lambda_per: Literal["batch", "sample"] = "batch"
    """Whether all samples of an update share one coefficient."""
    partner: Literal["any", "other"] = "any"
    """any: a random permutation, in which a sample may meet itself. other: always another sample."""
    group: int = Field(8, ge=2)
    """Consecutive samples that are mixed with each other; the batch is a multiple of it."""
    skips: Literal["official", "all", "auto"] = "official"
    """official: shallower skip connections stay un-mixed, as published. all: they are mixed too. auto: all
    where the network names its skip connections, official elsewhere (MONAI's)."""
    mixing: Literal["linear", "mask"] = "linear"
    """linear: activations are blended. mask: a box of the partner replaces the sample's own (CutMix, BCP)."""

    share: float = Field(0.5, gt=0, le=1)
    """Of each batch that is labelled, where there are unlabelled cases; 1 is fully supervised ROAM, in which
    nothing is guessed for whole samples: `guesses`, `strong` and `confidence` have nothing to act on."""
    temperature: float = Field(0.5, gt=0)
    """Of sharpening the guesses; 1 leaves them."""
    guesses: int = Field(1, ge=1)
    """Intensity views whose predictions are averaged; the first is the trained image itself."""
    guess_bn: Literal["train", "eval"] = "train"
    """Whether the network guesses in training mode (batch statistics, running ones move) or not."""
    teacher: bool = False
    """Guess with the averaged weights (`average`), always in evaluation mode."""
    teacher_after: float = Field(0.1, ge=0, le=1)
    """Fraction of training before which the network itself guesses, as the average lags behind."""
    confidence: float = Field(0.0, ge=0, lt=1)
    """Voxels whose guess is less sure than this count in no loss."""

    lambda_u: float = Field(75.0, ge=0)
    """Weight of the unlabelled loss at the end of the ramp."""
    lambda_norm: Literal["mean", "sum"] = "mean"
    """mean: the squared error is averaged over classes, as published, so that its weight falls with their
    number. sum: it is added up; 75 and 28 classes are then 75 / 28 = 2.68."""
    fitted_by: Literal["sample", "voxel"] = "sample"
    """sample: a labelled sample is fitted as such, whoever its partner is, as published. voxel: what comes
    from a guess counts as a guess, also in a labelled sample, and what comes from a label as a label."""
    unlabelled_loss: Literal["squared", "same"] = "squared"
    """squared: of the probabilities. same: that of the labelled samples."""
    start: float = Field(0.0, ge=0, lt=1)
    """Fraction of training on the labels alone, before anything is guessed or mixed."""
    ramp: float = Field(1.0, ge=0, le=1)
    """Fraction of the training after `start` over which that weight rises linearly from 0."""
    ramp_epochs: int | None = Field(80, ge=1)
    """Steps in which it rises (the paper's epochs); null: at every update."""
    cross_entropy_weight: float = Field(1.0, ge=0)
    dice_weight: float = Field(0.0, ge=0)
    """Of a Dice term for soft targets; the paper has none."""

    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(2e-3, ge=0)
    decay: Literal["paper", "decoupled"] = "paper"
    """paper: each step ends by multiplying every parameter by 1 - 0.02 * weight_decay. decoupled: AdamW's."""
    schedule: Literal["constant", "poly", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, le=1)
    """Fraction of training in which the learning rate rises."""
    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; null for none."""
    average: float | None = Field(None, ge=0, lt=1)
    """Decay of averaged weights that are validated and deployed; null for none."""
    p_foreground: float = Field(0.0, ge=0, le=1)
    """Probability that a labelled patch is centered on a foreground voxel."""
    augment: Augment = NO_AUGMENT
    strong: Augment | None = None
    """Intensities of the view that unlabelled samples are trained on, guessed from the milder image."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of neighboring windows at prediction."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.layer_weights is not None:
            if len(self.layer_weights) != len(self.layers):
                raise ValueError(
                    f"layer_weights has {len(self.layer_weights)} numbers for {len(self.layers)} layers"
                )
            if min(self.layer_weights) < 0 or sum(self.layer_weights) <= 0:
                raise ValueError("layer_weights must not be negative, and not all zero")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers repeat: {self.layers}; use layer_weights")
        labelled = Fraction(self.share).limit_denominator(1000) * self.group
        if labelled.denominator != 1:
            raise ValueError(f"a share of {self.share} of a group of {self.group} is not a whole number")
        if self.strong is not None and self.guesses > 1:
            raise ValueError("strong trains on another view than the one guessed from: set guesses to 1")
        if self.guesses > 1 and not self.augment.shades:
            raise ValueError(
                f"{self.guesses} guesses of the same image are one: set augment.p_intensity, or another"
            )
        if self.teacher and self.average is None:
            raise ValueError("teacher needs averaged weights: set average, e.g. 0.99")
        if self.decay == "decoupled" and self.optimiser == "adam" and self.weight_decay > 0:
            raise ValueError("decay decoupled is that of optimiser adamw; with adam use decay paper")
        return self


RECOMMENDED: dict[str, Any] = {
    "network": "unet",
    "layers": ("I", 1, 2),
    "p_mix": 0.5,
    "skips": "auto",
    "mixing": "mask",
    "partner": "other",
    "group": 2,
    "guesses": 2,
    "guess_bn": "eval",
    "lambda_u": 0.5,
    "lambda_norm": "sum",
    "fitted_by": "voxel",
    "ramp": 0.5,
    "ramp_epochs": None,
    "dice_weight": 1.0,
    "optimiser": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 3e-5,
    "decay": "decoupled",
    "schedule": "poly",
    "warmup": 0.02,
    "clip": 12.0,
    "average": 0.99,
    "p_foreground": 0.5,
    "augment": Augment().model_dump(),
}
BOXES: dict[str, Any] = {
    "start": 0.25,
    "ramp": 0.0,
    "layers": ("I",),
    "p_mix": 1.0,
    "teacher": True,
    "teacher_after": 0.0,
    "guesses": 1,
    "unlabelled_loss": "same",
    "network_options": {"width": 16},
}
"""Over the recommended ones."""
MALC_SUPERVISED: dict[str, Any] = {"share": 1.0, "lambda_u": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-malc": {},
    "paper-covid": {
        "layers": (2,),
        "alpha": 1.0,
        "lambda_u": 1.0,
        "ramp_epochs": 100,
        "learning_rate": 0.02,
    },
    "mixmatch": {"layers": ("I",)},
    "paper-supervised": MALC_SUPERVISED,
    "released-code": {"layers": ("I", 1)},
    "recommended": RECOMMENDED,
    "small": {**RECOMMENDED, "network_options": {"width": 16}},
    "boxes": {**RECOMMENDED, **BOXES},
    "tiny": {
        **RECOMMENDED,
        "network_options": {"width": 4},
        "augment": {"p_spatial": 0.2},
        "average": 0.9,
        "teacher": True,
    },
}
