"""Options of the data factory: StyleGAN2 as published, and what is changed for small data and machines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from seguro.core.types import Record


class FactoryConfig(Record):
    """Defaults are the published code's: Galati et al., MICCAI 2024 (where it contradicts itself: README)."""

    domains: tuple[str, ...] = ()
    """Names of the sites, in the order of their number; filled in from the data or the federation where not
    given. With none there is one domain, whatever the site."""
    size: int = Field(512, ge=8)
    """Of the image in pixels, a power of two."""
    side: int | None = Field(None, ge=8)
    """Of the square that is shown, in planned voxels; null for the longer side of the median case."""
    limits: tuple[float, float] | None = None
    """Planned intensities that become -1 and 1; null for those of the plan's scheme (data/frame.py)."""
    z_bins: int = Field(29, ge=1)
    """Positions along the slice axis that are told apart."""
    width: int = Field(512, ge=1)
    """Channels at low resolution, of both networks."""
    full: int = Field(64, ge=4)
    """The highest resolution with `width` channels; halved at every doubling after."""
    latent: int = Field(512, ge=1)
    mapping_layers: int = Field(8, ge=1)
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
    discriminator: Literal["shared", "local"] = "shared"
    """Whether it leaves a site: local cuts messages by a third and tells less, and departs from the paper."""

    @model_validator(mode="after")
    def _fits(self) -> FactoryConfig:
        if self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected a power of two, such as 64")
        twice = sorted({d for d in self.domains if self.domains.count(d) > 1})
        if twice:
            raise ValueError(f"domains name {', '.join(twice)} twice; each site needs its own")
        if self.limits is not None and self.limits[0] >= self.limits[1]:
            raise ValueError(f"limits are {self.limits}; the first must be below the second")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "size": 64,
        "z_bins": 8,
        "width": 64,
        "full": 32,
        "latent": 128,
        "mapping_layers": 4,
        "average": 0.99,
        "regularize": "beside",
        "r1": 1.0,
        "augment": True,
        "augment_images": 20_000,
    },
    "tiny": {
        "size": 32,
        "z_bins": 4,
        "width": 32,
        "full": 16,
        "latent": 64,
        "mapping_layers": 2,
        "group": 2,
        "average": 0.9,
        "regularize": "beside",
        "r1": 1.0,
    },
}
