"""Options of the data factory: StyleGAN2 as published, and what is changed for small data and machines."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from seguro.methods.generators import SMALL, TINY, GeneratorConfig


class FactoryConfig(GeneratorConfig):
    """Defaults are the published code's: Galati et al., MICCAI 2024 (where it contradicts itself: README)."""

    group: int = Field(4, ge=2, multiple_of=2)
    """Consecutive images whose spread the discriminator sees; the batch is a multiple of it. Even, since path
    length is taken of every second image."""
    learning_rate: float = Field(0.002, gt=0)
    """Of both networks, before the correction for lazy regularization."""
    average: float = Field(0.5 ** (32 / 10_000), ge=0, lt=1)
    """Decay of the averaged generator per turn of the generator."""
    r1: float = Field(10.0, ge=0)
    """Weight of the gradient penalty at real images."""
    r1_every: int = Field(16, ge=1)
    """Turns of the discriminator from one to the next."""
    path: float = Field(2.0, ge=0)
    """Weight of the path length."""
    path_every: int = Field(4, ge=1)
    """Turns of the generator from one to the next."""
    path_decay: float = Field(0.01, gt=0, le=1)
    """How fast the mean path length follows."""
    regularize: Literal["instead", "beside"] = "instead"
    """instead: a turn that regularizes does nothing else, as published. beside: it also plays the game."""
    mixing: float = Field(0.9, ge=0, le=1)
    """Probability that a made image mixes two styles."""
    augment: bool = False
    """Adaptive augmentation of what the discriminator sees."""
    augment_target: float = Field(0.6, ge=-1, le=1)
    """Mean sign of its scores on real images that augmentation holds it at."""
    augment_images: int = Field(500_000, ge=1)
    """Images over which the probability of augmentation may go from 0 to 1."""
    augment_every: int = Field(8, ge=1)
    """Turns of the discriminator from one change of the probability to the next."""
    embedding: str = "none"
    """What sums up the images of a site for both networks, in half of the turns: none; descriptor, the mean
    of 32 hand-made numbers (networks/descriptor.py); or, as published, that of CLIP's, whose weights lie in
    the .safetensors file that is named here (networks/clip.py). The file is read when training begins."""
    embedding_length: int = Field(768, ge=1)
    """Numbers of CLIP's embedding: 768 for ViT-L/14."""
    guide: float = Field(50.0, ge=0)
    """Weight of the squared angle between the embeddings of made images and of their site, in the turns that
    are given it, while refining."""
    guide_share: float = Field(7000 / 707_000, ge=0, le=1)
    """Part of training, at its end, that refines."""
    discriminator: Literal["shared", "local"] = "shared"
    """Whether it leaves a site: local cuts messages by a third and tells less, and departs from the paper."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.embedding not in ("none", "descriptor") and not self.embedding.endswith(".safetensors"):
            raise ValueError(
                f"embedding is {self.embedding!r}; expected none, descriptor, or a .safetensors file with "
                "the weights of CLIP (a pickled checkpoint can run code when opened and is never loaded)"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        **SMALL,
        "average": 0.99,
        "regularize": "beside",
        "r1": 1.0,
        "augment": True,
        "augment_images": 20_000,
    },
    "tiny": {
        **TINY,
        "group": 2,
        "average": 0.9,
        "regularize": "beside",
        "r1": 1.0,
    },
}
