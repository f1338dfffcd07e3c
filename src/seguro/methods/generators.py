"""What methods share that work with a generator of slices: its options, and the generator that they make."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from seguro.core.types import Record
from seguro.networks.generator import Generator

SMALL: dict[str, Any] = {
    "size": 64,
    "z_bins": 8,
    "width": 64,
    "full": 32,
    "latent": 128,
    "mapping_layers": 4,
}
"""Fields of a preset for minutes on a CPU."""
TINY: dict[str, Any] = {"size": 32, "z_bins": 4, "width": 32, "full": 16, "latent": 64, "mapping_layers": 2}
"""For tests."""


class GeneratorConfig(Record):
    """A generator and what slices look like to it; defaults as published (Galati et al., MICCAI 2024)."""

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
    """Channels at low resolution."""
    full: int = Field(64, ge=4)
    """The highest resolution with `width` channels; halved at every doubling after."""
    latent: int = Field(512, ge=1)
    mapping_layers: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _can_be(self) -> GeneratorConfig:
        if self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; expected a power of two, such as 64")
        twice = sorted({d for d in self.domains if self.domains.count(d) > 1})
        if twice:
            raise ValueError(f"domains name {', '.join(twice)} twice; each site needs its own")
        if self.limits is not None and self.limits[0] >= self.limits[1]:
            raise ValueError(f"limits are {self.limits}; the first must be below the second")
        return self


def generator_of(config: GeneratorConfig, channels: int, *, embedding: int = 0) -> Generator:
    """Return an untrained generator of images with so many channels; see `Generator` for `embedding`."""
    c, n = config, max(len(config.domains), 1)
    return Generator(
        c.size, channels, n, c.z_bins, c.latent, c.width, c.mapping_layers, full=c.full, embedding=embedding
    )
