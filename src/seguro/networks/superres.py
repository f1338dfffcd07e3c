"""The network of PFSeg (Wang et al., MICCAI 2021): low resolution in, full out, a crop as guidance.

A residual U-Net runs on the whole volume at 1 / scale; further stages of its decoder bring the result back to
the full grid. A small crop at full resolution is encoded too and joined at the bottleneck. A second decoder
of the same shape may restore the image itself: it is a module apart (`SuperRes.restorer`), so that what is
deployed does not hold it.

Parameters at width 32, one channel, one output: encoder 3,612,544, guidance 442,912, decoder 5,299,793;
9,355,249 in all, 14,655,042 with the restoring decoder, 8,388,049 without guidance, 8,301,217 at scale 1
without guidance (the plain residual U-Net).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Three
from seguro.data.plan import Plan
from seguro.networks.blocks import pad_to_multiple
from seguro.networks.guidance import central, cut, placed
from seguro.networks.resolution import lowered, product, unshuffled

HALVES: tuple[Three, ...] = ((2, 2, 2),) * 4
"""The published pools, between five levels of 1, 1, 2, 4 and 8 times the width."""
LOSS_MAPS = 12
"""Single-channel maps at high resolution that the losses keep per decoder."""
SLOPE = 0.01
EPS = 1e-5

Hook = Callable[[str, Tensor], Tensor]
"""Called as `hook(name, activation)`; what it returns goes on in place of the activation."""
Stem = Literal["interpolate", "pixel-unshuffle"]
Inject = Literal["concat", "scatter"]


class ResConv(nn.Module):
    """Two 3x3x3 convolutions with instance norm beside a normalized 1x1x1 shortcut, leaky ReLU on the sum.

    The norms have no parameters. The biases in front of them change nothing; they are there so that the
    number of parameters is the published one, at zero and not trained.

    Shape: (N, cin, Z, Y, X) -> (N, cout, Z, Y, X).
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(cin, cout, 3, padding=1)
        self.second = nn.Conv3d(cout, cout, 3, padding=1)
        self.shortcut = nn.Conv3d(cin, cout, 1, bias=False)
        for conv in (self.first, self.second):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
                conv.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's activation."""
        y = F.leaky_relu(normalized(self.first(x)), SLOPE, inplace=True)
        return F.leaky_relu(normalized(self.second(y)) + normalized(self.shortcut(x)), SLOPE, inplace=True)


def normalized(x: Tensor) -> Tensor:
    """Return each channel of each sample with mean 0 and variance 1; a single voxel becomes 0."""
    return torch.instance_norm(x, None, None, None, None, True, 0.1, EPS, torch.backends.cudnn.enabled)


class Up(nn.Module):
    """Transposed convolution (kernel 4, stride 2, padding 1 on each doubled axis, else 1), leaky ReLU."""

    def __init__(self, cin: int, cout: int, factor: Sequence[int]) -> None:
        super().__init__()
        z, y, x = ((4, 1) if f == 2 else (1, 0) for f in factor)
        kernel, padding = (z[0], y[0], x[0]), (z[1], y[1], x[1])
        stride = (factor[0], factor[1], factor[2])
        self.conv = nn.ConvTranspose3d(cin, cout, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return x enlarged by the factor."""
        return F.leaky_relu(self.conv(x), SLOPE, inplace=True)


class Encoder(nn.Module):
    """ResConvs with max pooling between them.

    Shape: (N, cin, *size) -> one map per level, the first of `size`.
    """

    def __init__(self, cin: int, widths: Sequence[int], pools: Sequence[Three]) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.blocks = nn.ModuleList(ResConv(i, o) for i, o in zip([cin, *widths], widths, strict=False))

    def forward(self, x: Tensor, hook: Hook | None = None) -> list[Tensor]:
        """Return the activation of every level.

        What `hook` makes of "encK" flows on downwards, the last one is returned so; those before it, which
        cross to a decoder, are returned as they were.
        """
        maps: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            raw = block(x if level == 0 else F.max_pool3d(x, self.pools[level - 1]))
            x = raw if hook is None else hook(f"enc{level}", raw)
            maps.append(raw)
        return [*maps[:-1], x]


class Stage(nn.Module):
    """Up, then a ResConv: one doubling of the axes that `factor` doubles.

    Shape: (N, cin, *size) -> (N, cout, *(size * factor)).
    """

    def __init__(self, cin: int, cout: int, factor: Three) -> None:
        super().__init__()
        self.up = Up(cin, cin, factor)
        self.block = ResConv(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged map."""
        return self.block(self.up(x))  # type: ignore[no-any-return]


class Tail(nn.Module):
    """From features at low resolution to the output at high resolution: stages, then a 1x1x1 convolution.

    Shape: (N, width, *low) -> (N, cout, *(low * scale)).
    """

    def __init__(self, width: int, tail_width: int, cout: int, factors: Sequence[Three]) -> None:
        super().__init__()
        widths = [width, *[tail_width] * len(factors)]
        self.stages = nn.Sequential(
            *(Stage(i, o, f) for i, o, f in zip(widths, widths[1:], factors, strict=False))
        )
        self.head = nn.Conv3d(widths[-1], cout, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the output at high resolution."""
        return self.head(self.stages(features))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Ups with concatenated skips back to low resolution (`trunk`), then the tail to high resolution.

    Shape: maps of the encoder, the last one with the guidance's code -> (N, cout, *high).
    """

    def __init__(
        self,
        bottom: int,
        widths: Sequence[int],
        pools: Sequence[Three],
        tail: Tail,
    ) -> None:
        super().__init__()
        self.up, self.blocks = nn.ModuleList(), nn.ModuleList()
        below = bottom
        for width, pool in zip(reversed(widths[:-1]), reversed(pools), strict=True):
            self.up.append(Up(below, width, pool))
            self.blocks.append(ResConv(2 * width, width))
            below = width
        self.tail = tail

    def trunk(self, maps: Sequence[Tensor]) -> Tensor:
        """Return features (N, width, *low)."""
        x = maps[-1]
        for up, block, skip in zip(self.up, self.blocks, reversed(maps[:-1]), strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        return x

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the output at high resolution."""
        return self.tail(self.trunk(maps))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shape:
    """What both decoders are built from."""

    width: int
    tail_width: int
    scale: Three
    pools: tuple[Three, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * f for f in (1, 1, 2, 4, 8))

    @property
    def stages(self) -> tuple[Three, ...]:
        """Factor of each stage after low resolution; where axes differ, those that need more go first."""
        most = max(self.scale)
        todo, out = most, []
        while todo > 1:
            z, y, x = (2 if s >= todo else 1 for s in self.scale)
            out.append((z, y, x))
            todo //= 2
        reached = [product(s[a] for s in out) for a in range(3)]
        if reached != list(self.scale):
            raise ConfigError(f"scale {self.scale}: expected powers of two per axis, such as 2 or (1, 2, 2)")
        return tuple(out)

    def decoder(self, bottom: int, cout: int) -> Decoder:
        """Return a decoder for a bottleneck of `bottom` channels."""
        tail = Tail(self.width, self.tail_width, cout, self.stages)
        return Decoder(bottom, self.widths, self.pools, tail)


class SuperRes(nn.Module):
    """Encoder at low resolution, guidance encoder and segmenting decoder.

    Args:
        in_channels: image channels.
        classes: output channels.
        scale: how many high-resolution voxels a low-resolution one spans per axis, powers of two.
        pools: four factors between the encoder's levels, 1 or 2 per axis.
        width: channels of the first level.
        tail_width: channels at high resolution; None for half of `width`.
        stem: interpolate: the encoder sees the image averaged down. pixel-unshuffle: it sees every voxel, as
            further channels (holistic decomposition).
        lowpass: Gaussian of (scale - 1) / 2 voxels before the image is averaged down.
        guidance: whether a crop at full resolution is encoded and joined at the bottleneck.
        inject: concat: cell by cell, wherever the crop lies, as published. scatter: into the cells of the
            bottleneck that the crop covers.
        crop: (Z, Y, X) of the crop in high-resolution voxels; None for low resolution over the first pool.

    Shape: (N, in_channels, *high) -> (N, classes, *high), any size (edge-padded to `multiple` inside).

    Raises:
        ConfigError: what it cannot be built with.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        scale: int | Three = 2,
        pools: Sequence[Three] = HALVES,
        width: int = 32,
        tail_width: int | None = None,
        stem: Stem = "interpolate",
        lowpass: bool = False,
        guidance: bool = True,
        inject: Inject = "concat",
        crop: Three | None = None,
    ) -> None:
        super().__init__()
        self.scale: Three = (scale, scale, scale) if isinstance(scale, int) else scale
        self.pools = tuple(pools)
        if len(self.pools) != len(HALVES) or any(f not in (1, 2) for p in self.pools for f in p):
            raise ConfigError(f"pools {self.pools}: expected {len(HALVES)} triples of 1 or 2")
        if width < 2 or width % 2:
            raise ConfigError(f"width {width}: expected an even number from 2 on")
        self.shape = Shape(width, tail_width or width // 2, self.scale, self.pools)
        self.stem, self.lowpass, self.inject, self.crop = stem, lowpass, inject, crop
        cin = in_channels * (product(self.scale) if stem == "pixel-unshuffle" else 1)
        self.encoder = Encoder(cin, self.shape.widths, self.pools)
        self.guide: Encoder | None = None
        self.bottom = 8 * width
        if guidance:
            widths = (width // 2, width, 2 * width, 2 * width)
            self.guide = Encoder(in_channels, widths, self.pools[1:])
            self.bottom += widths[-1]
        self.segment = self.shape.decoder(self.bottom, classes)

    @property
    def multiple(self) -> Three:
        """What every high-resolution axis is a multiple of."""
        z, y, x = (self.scale[a] * product(p[a] for p in self.pools) for a in range(3))
        return z, y, x

    def restorer(self, channels: int) -> Decoder:
        """Return a new decoder of the same shape, for the image: `channels` outputs, no activation."""
        return self.shape.decoder(self.bottom, channels)

    def crop_size(self, size: Sequence[int]) -> Three:
        """Return the (Z, Y, X) of the crop that guides a volume of `size` (Z, Y, X), a multiple.

        Raises:
            ConfigError: a crop that the guidance encoder cannot divide.
            DataError: a volume that is smaller than the crop, or whose bottleneck its code does not fit.
        """
        low = [n // s for n, s in zip(size, self.scale, strict=True)]
        z, y, x = (n // p for n, p in zip(low, self.pools[0], strict=True))
        if self.crop is None:
            return z, y, x
        if any(c > n for c, n in zip(self.crop, size, strict=True)):
            raise DataError(
                f"guidance crop {self.crop} is larger than the volume, {tuple(size)} (z, y, x); "
                "choose a smaller crop or leave it to the volume's size"
            )
        steps = [product(p[a] for p in self.pools[1:]) for a in range(3)]
        if any(c % s for c, s in zip(self.crop, steps, strict=True)):
            raise ConfigError(f"guidance crop {self.crop}: expected multiples of {tuple(steps)} (z, y, x)")
        if self.inject == "concat" and self.crop != (z, y, x):
            raise DataError(
                f"guidance crop {self.crop}: joined cell by cell, a volume of {tuple(size)} needs "
                f"{(z, y, x)} (z, y, x), so that its code has the bottleneck's size; use inject=scatter"
            )
        return self.crop

    def encode(self, x: Tensor, corners: Tensor | None = None) -> list[Tensor]:
        """Return the maps that both decoders start from; the last one holds the guidance's code.

        Args:
            x: (N, C, *high), `high` a multiple.
            corners: (N, K, 3) first voxels (z, y, x) of the K crops; None for the central one.
        """
        if self.stem == "interpolate":
            maps: list[Tensor] = self.encoder(lowered(x, self.scale, lowpass=self.lowpass))
        else:
            maps = self.encoder(unshuffled(x, self.scale))
        if self.guide is None:
            return maps
        size = self.crop_size(x.shape[2:])
        where = central(x.shape[2:], size, len(x)) if corners is None else corners
        codes = self.guide(cut(x, where, size))[-1]  # (N * K, 2 * width, *code)
        codes = codes.reshape(*where.shape[:2], *codes.shape[1:])
        if self.inject == "concat":
            code = codes.mean(dim=1)
        else:
            code = placed(codes, where, size, self.multiple, maps[-1].shape[2:])
        return [*maps[:-1], torch.cat([maps[-1], code], dim=1)]

    def trunk(self, x: Tensor, corners: Tensor | None = None) -> Tensor:
        """Return the features (N, width, *low) of a volume whose size is a multiple; see `encode`."""
        return self.segment.trunk(self.encode(x, corners))

    def tail(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes, *high) of what `trunk` returned."""
        return self.segment.tail(features)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, corners: Tensor | None = None) -> Tensor:
        """Return logits (N, classes, *high); corners count in the padded volume."""
        padded, undo = pad_to_multiple(x, self.multiple)
        return self.tail(self.trunk(padded, corners))[undo]


def superres_from_plan(*, in_channels: int, classes: int, plan: Plan, **options: object) -> SuperRes:
    """Return the network for a 3-D plan; it takes neither strides nor kernels of the plan.

    Raises:
        ConfigError: a 2-D plan.
    """
    if plan.dims != 3:
        raise ConfigError("network superres works on volumes: plan with --dims 3")
    return SuperRes(in_channels=in_channels, classes=classes, **options)  # type: ignore[arg-type]


def training_bytes(size: Sequence[int], batch: int, network: SuperRes, *, decoders: int = 2) -> int:
    """Return a prediction of the peak bytes of one training step on volumes of `size` (Z, Y, X).

    Counted are the float32 maps that backward needs: per ResConv its input, six of its own and the sum, and
    one map of gradients; guidance is small beside them.
    """
    voxels, shape = float(batch * product(size)), network.shape
    maps = float(decoders * (shape.width + 8 * shape.tail_width + LOSS_MAPS))
    at = product(network.scale)
    for level, width in enumerate(shape.widths):
        maps += (8 + (11 * decoders if level < len(network.pools) else 0)) * width / at
        at *= product(network.pools[level]) if level < len(network.pools) else 1
    return int(4 * voxels * maps)
