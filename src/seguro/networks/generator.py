"""The data factory of RobustMedSeg (Galati et al., MICCAI 2024): a conditional StyleGAN2 generator.

The condition is one-hot(domain) ++ one-hot(z bin), and optionally an embedding of a site's images. It joins
the random style before the mapping network, so that style, domain and position are separate inputs of one
space of codes. Channels are `width` up to resolution `full` and halve with every doubling after.

Parameters as published (512 pixels, 3 domains, 29 bins, embedding of 768): 30.6 million.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.networks.equalized import (
    EqualLinear,
    ModulatedConv,
    Noise,
    Source,
    Styled,
    enlarged,
    leaky,
    pixel_norm,
)

MAPPING_RATE = 0.01
"""Factor of the learning rate in the mapping network."""
EMBEDDED = 0.8
"""Weight of the embedding beside the one-hot condition, which has the rest."""
CENTRAL = 3
"""z bins in the middle over which the mean code of a domain is taken."""
MEAN_BATCH = 1024

Content = Mapping[int, tuple[Tensor, Tensor, float]]
"""Resolution r -> (feature (N, C, r, r), mask (N, 1 or C, r, r), share f of the feature in [0, 1])."""


class Generator(nn.Module):
    """A conditional StyleGAN2 generator.

    Args:
        size: of the image, a power of two from 8.
        channels: of the image.
        domains: how many sites, scanners or modalities.
        z_bins: how many positions along the slice axis.
        latent: length of a code.
        width: channels at low resolution.
        mapping_layers: of the mapping network.
        full: the highest resolution with `width` channels; half of them at twice that, and so on.
        embedding: length of the optional embedding of a site's images; 0 for none.

    Raises:
        ConfigError: a size that is no power of two, or a number below one.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        domains: int,
        z_bins: int,
        latent: int = 512,
        width: int = 512,
        mapping_layers: int = 8,
        *,
        full: int = 64,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        check_size(size)
        if min(channels, domains, z_bins, latent, width, mapping_layers, full) < 1:
            raise ConfigError(
                "a generator needs at least one channel, domain, z bin, latent number, width and mapping "
                f"layer; found {(channels, domains, z_bins, latent, width, mapping_layers, full)}"
            )
        self.size, self.domains, self.z_bins, self.latent = size, domains, z_bins, latent
        conditions = domains + z_bins
        self.condition = EqualLinear(conditions, latent)
        self.embed = (
            nn.Sequential(EqualLinear(embedding, conditions), EqualLinear(conditions, latent))
            if embedding
            else None
        )
        self.mapping = nn.ModuleList(
            EqualLinear(latent * (1 + (i == 0)), latent, rate=MAPPING_RATE) for i in range(mapping_layers)
        )
        widths = {r: width_at(r, width, full) for r in resolutions(size)}
        self.constant = nn.Parameter(torch.randn(1, widths[4], 4, 4))
        self.styled = nn.ModuleList([Styled(widths[4], widths[4], latent, 4)])
        self.images = nn.ModuleList([ToImage(widths[4], channels, latent)])
        for r in resolutions(size)[1:]:
            self.styled.append(Styled(widths[r // 2], widths[r], latent, r, up=True))
            self.styled.append(Styled(widths[r], widths[r], latent, r))
            self.images.append(ToImage(widths[r], channels, latent))
        self.widths = widths

    @property
    def n_latent(self) -> int:
        """Codes of one image: 2 log2(size) - 2."""
        return len(self.styled) + 1

    @property
    def feature_channels(self) -> list[int]:
        """Channels of each feature map: two of every resolution, the first of which is the constant."""
        return [c for c in self.widths.values() for _ in range(2)]

    @property
    def feature_sizes(self) -> list[int]:
        """Resolution of each feature map."""
        return [r for r in self.widths for _ in range(2)]

    def conditions(self, domain: Tensor, z_bin: Tensor) -> Tensor:
        """Return y (N, domains + z_bins): the one-hot codes of domain (N,) and z_bin (N,), integers.

        Raises:
            DataError: an index that this generator does not have.
        """
        return one_hot(domain, z_bin, self.domains, self.z_bins)

    def codes(self, z: Tensor, y: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return codes w (N, latent).

        Args:
            z: (N, latent) standard normal style.
            y: (N, domains + z_bins) condition; two ones, or anything between conditions.
            embedding: (N, embedding) of the images to resemble; a row of zeros counts as none.

        Raises:
            DataError: an embedding for a generator without.
        """
        plain = pixel_norm(self.condition(y))
        condition = plain
        if embedding is not None:
            condition = EMBEDDED * self._embedded(embedding, plain) + (1 - EMBEDDED) * plain
        w = torch.cat([pixel_norm(z), condition], dim=1)
        for layer in self.mapping:
            w = leaky(layer(w))
        return w

    def _embedded(self, embedding: Tensor, plain: Tensor) -> Tensor:
        if self.embed is None:
            raise DataError("this generator was built without embeddings (embedding=0): give none")
        given = embedding.abs().sum(1, keepdim=True) > 0
        return torch.where(given, pixel_norm(self.embed(embedding)), plain)

    def spread(self, w: Tensor) -> Tensor:
        """Return w_plus (N, n_latent, latent): the code w (N, latent) at every layer."""
        return w.unsqueeze(1).expand(-1, self.n_latent, -1)

    def mixed(self, first: Tensor, second: Tensor, crossover: Tensor) -> Tensor:
        """Return w_plus of style mixing: `first` (N, latent) before layer `crossover` (N,), then `second`."""
        layer = torch.arange(self.n_latent, device=first.device)
        early = layer[None, :, None] < crossover[:, None, None]
        return torch.where(early, first.unsqueeze(1), second.unsqueeze(1))

    @torch.no_grad()
    def mean_code(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean code (domains, latent) of each domain over `n` styles and the central z bins."""
        first = max((self.z_bins - CENTRAL) // 2, 0)
        bins = range(first, min(first + CENTRAL, self.z_bins))
        device = self.constant.device
        total = torch.zeros(self.domains, self.latent, device=device)
        for start in range(0, n, MEAN_BATCH):
            rows = min(MEAN_BATCH, n - start)
            z = torch.randn(rows, self.latent, generator=generator, device=device)
            for domain in range(self.domains):
                for z_bin in bins:
                    where = torch.full((rows,), z_bin, device=device)
                    y = self.conditions(torch.full_like(where, domain), where)
                    total[domain] += self.codes(z, y).sum(0)
        return total / (n * len(bins))

    @overload
    def synthesize(
        self,
        w_plus: Tensor,
        *,
        content: Content | None = None,
        noise: Noise = "random",
        features: Literal[False] = False,
        rng: Source = None,
    ) -> Tensor: ...

    @overload
    def synthesize(
        self,
        w_plus: Tensor,
        *,
        content: Content | None = None,
        noise: Noise = "random",
        features: Literal[True],
        rng: Source = None,
    ) -> tuple[Tensor, list[Tensor]]: ...

    def synthesize(
        self,
        w_plus: Tensor,
        *,
        content: Content | None = None,
        noise: Noise = "random",
        features: bool = False,
        rng: Source = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return the image (N, channels, size, size), unbounded, real images being in [-1, 1].

        Args:
            w_plus: (N, n_latent, latent), a code per layer.
            content: what replaces or joins the activations of a resolution before the next one is made from
                them: x becomes (1 - f) x (1 - mask) + f feature.
            noise: random, fixed (the stored maps) or none.
            features: return the feature maps as well; where content was joined, the joined map.
            rng: of random noise: one, one per image, or None for torch's own state.

        Raises:
            DataError: codes of another shape, or content at a resolution that feeds none.
        """
        if w_plus.shape[1:] != (self.n_latent, self.latent):
            raise DataError(
                f"codes of shape {tuple(w_plus.shape)}: this generator takes "
                f"(N, {self.n_latent}, {self.latent})"
            )
        content = content or {}
        unknown = sorted(set(content) - set(resolutions(self.size)[:-1]))
        if unknown:
            raise DataError(
                f"content at resolution {unknown}: a generator of size {self.size} is fed at "
                f"{resolutions(self.size)[:-1]}"
            )
        x = self.constant.expand(len(w_plus), -1, -1, -1)
        maps, image, layer = [x], None, 0
        for i, r in enumerate(self.widths):
            for _ in range(1 if i == 0 else 2):
                x = self.styled[layer](x, w_plus[:, layer], noise, rng)
                maps.append(x)
                layer += 1
            made = self.images[i](x, w_plus[:, layer])  # shares its code with the next convolution
            image = made if image is None else enlarged(image) + made
            if r in content:
                x = maps[-1] = joined(x, *content[r])
        out = cast(Tensor, image)
        return (out, maps) if features else out

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images (N, channels, size, size) of styles z (N, latent) under conditions y."""
        return self.synthesize(self.spread(self.codes(z, y)))


class ToImage(nn.Module):
    """A 1x1 modulated convolution to image channels, not demodulated.

    Shape: x (N, cin, Y, X), code (N, latent) -> (N, channels, Y, X).
    """

    def __init__(self, cin: int, channels: int, latent: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(cin, channels, 1, latent, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Return this resolution's part of the image."""
        return self.conv(x, code) + self.bias[:, None, None]  # type: ignore[no-any-return]


def joined(x: Tensor, feature: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return (1 - share) x (1 - mask) + share feature, all (N, C, Y, X); mask may have one channel."""
    if feature.shape != x.shape:
        raise DataError(f"content of shape {tuple(feature.shape)}: the activations are {tuple(x.shape)}")
    return (1 - share) * x * (1 - mask) + share * feature


def one_hot(domain: Tensor, z_bin: Tensor, domains: int, z_bins: int) -> Tensor:
    """Return (N, domains + z_bins) float32 with two ones per row, of integer indices (N,).

    Raises:
        DataError: an index out of range.
    """
    for name, index, n in (("domain", domain, domains), ("z bin", z_bin, z_bins)):
        if bool(((index < 0) | (index >= n)).any()):
            raise DataError(f"{name} {index.tolist()}: expected numbers from 0 to {n - 1}")
    return torch.cat([F.one_hot(domain, domains), F.one_hot(z_bin, z_bins)], dim=1).float()


def resolutions(size: int) -> list[int]:
    """Return 4, 8, ..., size."""
    return [2**k for k in range(2, size.bit_length())]


def width_at(resolution: int, width: int, full: int) -> int:
    """Return the channels at `resolution`: `width` up to `full`, halved at every doubling after."""
    return max(width * full // max(resolution, full), 1)


def check_size(size: int) -> None:
    """Refuse sizes that cannot be reached by doubling 4: ConfigError."""
    if size < 8 or size & (size - 1):
        raise ConfigError(f"images of size {size}: expected a power of two from 8, such as 64")
