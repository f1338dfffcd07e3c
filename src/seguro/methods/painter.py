"""A generator behind an encoder, painting slices in the look of a site: options, parts, and who is who."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.methods.generators import SMALL, TINY, GeneratorConfig, generator_of
from seguro.networks.generator import Generator
from seguro.networks.translator import Encoder

SOURCE, TARGET = 0, 1
"""Numbers of the two domains in encoder and batch."""
_OURS: dict[str, Any] = {"reduction": 2, "norm": "group", "encoder_width": 16}
SMALL_PAINTER: dict[str, Any] = {**SMALL, **_OURS, "blocks": (1, 1, 1)}
"""Fields of a preset for minutes on a CPU."""
TINY_PAINTER: dict[str, Any] = {**TINY, **_OURS, "blocks": (1, 1)}
"""For tests."""


class PainterConfig(GeneratorConfig):
    """A generator, and what reads a slice for it; defaults as published (Galati et al., MICCAI 2024)."""

    source: str | None = None
    """Site whose labelled cases are the source; null for all labelled cases (but those of `target`)."""
    target: str | None = None
    """Site that is adapted to, with or without labels; null for all cases that are not the source's, or where
    no source is named for all without label."""
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    """Residual blocks of each stage of the encoder; content at as many resolutions."""
    encoder_width: int = Field(64, ge=1)
    """Channels of the encoder's first stage."""
    reduction: Literal[2, 4] = 4
    """`size` over the finest resolution of content; the encoder sees images of twice that resolution."""
    norm: Literal["batch", "group", "instance"] = "batch"
    """Of the encoder. batch: running statistics after training, so that no prediction depends on its
    neighbors; group, instance: of each image alone."""
    domain_norm: bool = True
    """Whether source and target each have their own normalization."""
    content: bool = True
    """Whether content features enter the generator; without, everything passes through the codes."""
    route: Literal["image", "output"] = "image"
    """Whose normalization a translation uses: the domain of the image, or the one that is asked for."""

    @model_validator(mode="after")
    def _two_sites(self) -> PainterConfig:
        if self.source is not None and self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}; expected two sites")
        return self


def painter_of(config: PainterConfig, channels: int) -> tuple[Generator, Encoder]:
    """Return an untrained generator, whose weights are frozen, and an encoder that fits it."""
    c, generator = config, generator_of(config, channels)
    generator.requires_grad_(False)
    encoder = Encoder(
        c.size,
        channels,
        generator.n_latent,
        c.latent,
        generator.widths,
        blocks=c.blocks,
        width=c.encoder_width,
        reduction=c.reduction,
        norm=c.norm,
    )
    return generator, encoder


def paint(
    modules: nn.ModuleDict | Mapping[str, nn.Module],
    config: PainterConfig,
    image: Tensor,
    domain: Tensor,
    wanted: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Return images (N, C, size, size) painted in the look of `wanted`, and the feature maps behind them.

    Args:
        modules: with "generator" and "encoder".
        config: of the run.
        image: (N, C, size, size) in [-1, 1].
        domain: (N,) of the images.
        wanted: (N,) domain to paint them in.
    """
    encoder, generator = modules["encoder"], modules["generator"]
    route = wanted if config.route == "output" else domain
    codes, found = encoder(image, route if config.domain_norm else torch.zeros_like(route), wanted)
    share = float(encoder.get_buffer("share"))
    content = {r: (feature, mask, share) for r, (feature, mask) in found.items()} if config.content else None
    painted, maps = generator.synthesize(  # type: ignore[operator]
        codes, content=content, noise="fixed", features=True
    )
    return painted, maps


def sides(
    sites: Sequence[str], labelled: Sequence[int], config: PainterConfig, *, adapts: bool = True
) -> tuple[list[int], list[int]]:
    """Return the indices of the labelled source cases, and of the target's.

    Args:
        sites: of each case.
        labelled: indices of the cases whose labels may be seen.
        config: names source and target, or not.
        adapts: whether there has to be a target.

    Raises:
        ConfigError: there is no source, or no target where there has to be one.
    """
    if config.target is not None:
        target = [i for i, s in enumerate(sites) if s == config.target]
    elif config.source is not None:
        target = [i for i, s in enumerate(sites) if s != config.source]
    else:
        target = sorted(set(range(len(sites))) - set(labelled))
    other = set(target)
    source = [i for i in labelled if (i not in other if config.source is None else sites[i] == config.source)]
    known = f"the sites are {', '.join(sorted(set(sites)))}"
    if set(sites) == {"site1"}:
        known = "no case is said to be of a site: name sites in patients.csv, with columns id, patient, site"
    if not source:
        raise ConfigError(
            f"no labelled case of the source (source={config.source!r}, {known}): adaptation learns to "
            "segment there; name the site with labels, --set source=SITE"
        )
    if adapts and not target:
        raise ConfigError(
            f"no case of the target (target={config.target!r}, {known}): give the images to adapt to "
            "(imagesUn, or a site named with --set target=SITE)"
        )
    return source, target


def numbers(config: PainterConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of the source's and of the target's domains among the generator's.

    A side whose site is not named has all domains but the other's; their mean codes are averaged.

    Raises:
        ConfigError: a site that is none of them.
    """
    names = config.domains
    for site in (config.source, config.target):
        if site is not None and names and site not in names:
            raise ConfigError(
                f"site {site!r} is none of the generator's domains ({', '.join(names)}); name one of them, "
                "or train the factory with it"
            )
    found = []
    for own, other in ((config.source, config.target), (config.target, config.source)):
        rest = [i for i, n in enumerate(names) if n != other]
        found.append(tuple([names.index(own)] if own in names else rest or [0]))
    return found[0], found[1]
