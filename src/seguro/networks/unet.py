"""The U-Net that every method is compared with: 2-D or 3-D, anisotropic strides, named activations.

Ronneberger et al. 2015 and Çiçek et al. 2016, with instance normalization and strided convolutions as in
nnU-Net (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seguro.data.plan import Plan
from seguro.networks.blocks import CONV, CONV_TRANSPOSE, ConvBlock, initialize

Hook = Callable[[str, Tensor], Tensor]
"""Called as `hook(name, activation)`; what it returns goes on in place of the activation."""


class UNet(nn.Module):
    """Encoder of strided blocks, decoder of transposed convolutions and concatenated skips.

    Args:
        in_channels: image channels.
        classes: output channels.
        strides: one tuple of per-axis factors for each downsampling.
        kernels: kernel per level, `len(strides) + 1` tuples.
        width: channels of the first level; doubled per level up to `max_width`.
        max_width: largest number of channels.

    Shape: (N, in_channels, *size) -> (N, classes, *size), `size` a multiple of the total stride.

    `names` lists the activations in the order a hook sees them: "input", "enc0" ... "encL", then for each
    decoder level "skipK" and "decK", and "last" (the logits). "encK" flows on downwards, "skipK" is its copy
    that crosses. `stages` are the encoder's, `skips` says what each skip is a copy of.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        width: int = 32,
        max_width: int = 320,
    ) -> None:
        super().__init__()
        dims = len(kernels[0])
        widths = [min(width * 2**i, max_width) for i in range(len(kernels))]
        self.enc = nn.ModuleList()
        for level, (kernel, out) in enumerate(zip(kernels, widths, strict=True)):
            cin = in_channels if level == 0 else widths[level - 1]
            self.enc.append(
                ConvBlock(cin, out, kernel=kernel, stride=1 if level == 0 else strides[level - 1])
            )
        self.up = nn.ModuleList()
        self.dec = nn.ModuleList()
        for level in range(len(strides)):
            factor = tuple(strides[level])
            self.up.append(
                CONV_TRANSPOSE[dims](widths[level + 1], widths[level], kernel_size=factor, stride=factor)
            )
            self.dec.append(ConvBlock(2 * widths[level], widths[level], kernel=kernels[level]))
        self.head = CONV[dims](widths[0], classes, kernel_size=1)
        initialize(self)
        down = [f"enc{i}" for i in range(len(kernels))]
        up = [name for i in reversed(range(len(strides))) for name in (f"skip{i}", f"dec{i}")]
        self.names: tuple[str, ...] = ("input", *down, *up, "last")
        self.stages: tuple[str, ...] = tuple(down)
        self.skips = {f"skip{i}": f"enc{i}" for i in range(len(strides))}

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return logits (N, classes, *size); `hook` may replace any named activation."""
        at = hook or _unchanged
        x = at("input", x)
        skips = []
        for level, block in enumerate(self.enc):
            raw = block(x)
            skips.append(raw)
            x = at(f"enc{level}", raw)
        for level in reversed(range(len(self.dec))):
            skip = at(f"skip{level}", skips[level])
            x = at(f"dec{level}", self.dec[level](torch.cat([self.up[level](x), skip], dim=1)))
        return at("last", self.head(x))


def _unchanged(name: str, x: Tensor) -> Tensor:
    return x


def unet_from_plan(
    *, in_channels: int, classes: int, plan: Plan, width: int = 32, max_width: int = 320
) -> UNet:
    """Return the U-Net with the strides and kernels of `plan`."""
    return UNet(
        in_channels=in_channels,
        classes=classes,
        strides=plan.strides,
        kernels=plan.kernels,
        width=width,
        max_width=max_width,
    )


def training_bytes(
    patch: Sequence[int], batch: int, strides: Sequence[Sequence[int]], *, width: int = 32
) -> int:
    """Return a prediction of the peak bytes of one training step, for the planner's memory budget.

    Counted per level: the float32 maps that backward needs (input of each convolution, normalization and
    activation of two encoder and two decoder blocks) and one map of gradients.
    """
    voxels = float(batch)
    for n in patch:
        voxels *= n
    total = 0.0
    for level in range(len(strides) + 1):
        maps = 11 if level < len(strides) else 5
        total += voxels * min(width * 2**level, 320) * maps * 4
        if level < len(strides):
            for factor in strides[level]:
                voxels /= factor
    return int(total)
