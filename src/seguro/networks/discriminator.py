"""The conditional residual discriminator of RobustMedSeg's data factory (StyleGAN2, projected condition).

Parameters as published (512 pixels, 3 domains, 29 bins, embedding of 768): 29.7 million.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from seguro.core.errors import DataError
from seguro.networks.equalized import EPS, EqualConv, EqualLinear, leaky, pixel_norm
from seguro.networks.generator import check_size, resolutions, width_at


class Discriminator(nn.Module):
    """Tells real images from made ones, given what they are said to show.

    Args:
        size: of the image, a power of two from 8.
        channels: of the image.
        domains: as of the generator.
        z_bins: as of the generator.
        latent: length of the projection.
        width: channels at low resolution.
        full: the highest resolution with `width` channels; half of them at twice that, and so on.
        embedding: length of the optional embedding of a site's images; 0 for none.
        group: consecutive images whose spread it is shown.

    Shape: x (N, channels, size, size), y (N, domains + z_bins) -> scores (N,), unbounded, high for real.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        domains: int,
        z_bins: int,
        latent: int = 512,
        width: int = 512,
        *,
        full: int = 64,
        embedding: int = 0,
        group: int = 4,
    ) -> None:
        super().__init__()
        check_size(size)
        self.group = group
        widths = {r: width_at(r, width, full) for r in resolutions(size)}
        self.stem = EqualConv(channels, widths[size], 1)
        self.blocks = nn.ModuleList(Block(widths[r], widths[r // 2]) for r in reversed(resolutions(size)[1:]))
        self.last = EqualConv(widths[4] + 1, widths[4], 3)
        self.hidden = EqualLinear(widths[4] * 16, widths[4])
        self.head = EqualLinear(widths[4], latent)
        self.condition = EqualLinear(domains + z_bins, latent)
        self.embed = EqualLinear(embedding, latent) if embedding else None

    def forward(self, x: Tensor, y: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return one score per image; an `embedding` (N, embedding) of zeros counts as none."""
        x = leaky(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = leaky(self.last(torch.cat([x, spread(x, self.group)], dim=1)))
        h = self.head(leaky(self.hidden(x.flatten(1))))
        h = h * pixel_norm(self.condition(y))
        if embedding is not None:
            h = h * self._embedded(embedding)
        return h.sum(1) / sqrt(h.shape[1])  # type: ignore[no-any-return]

    def _embedded(self, embedding: Tensor) -> Tensor:
        if self.embed is None:
            raise DataError("this discriminator was built without embeddings (embedding=0): give none")
        given = embedding.abs().sum(1, keepdim=True) > 0
        projected: Tensor = self.embed(embedding)
        return torch.where(given, projected, torch.ones_like(projected))


class Block(nn.Module):
    """Two convolutions, the second of which halves the size, beside a halved shortcut; unit variance.

    Shape: (N, cin, Y, X) -> (N, cout, Y/2, X/2).
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first = EqualConv(cin, cin, 3)
        self.second = EqualConv(cin, cout, 3, down=True)
        self.shortcut = EqualConv(cin, cout, 1, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's activation."""
        y = leaky(self.second(leaky(self.first(x))))
        return (y + self.shortcut(x)) / sqrt(2)  # type: ignore[no-any-return]


def spread(x: Tensor, group: int) -> Tensor:
    """Return (N, 1, Y, X): the mean standard deviation of x (N, C, Y, X) over groups of consecutive images.

    A generator that makes one image again and again is seen by it. Where N is not a multiple of `group`, the
    largest smaller group that divides it is taken; an image alone has no spread.
    """
    n, _, height, width = x.shape
    group = max(g for g in range(1, group + 1) if n % g == 0)
    parts = x.reshape(n // group, group, *x.shape[1:])
    deviation = (parts.var(1, unbiased=False) + EPS).sqrt().mean((1, 2, 3))  # (n / group,)
    return deviation.repeat_interleave(group)[:, None, None, None].expand(n, 1, height, width)
