"""The classic U-Net (Ronneberger et al. 2015) as ROAM trained it: batch normalization, max-pooling, biases.

By default the published network: width 64, four poolings, 31,043,648 + 576 M + 65 C parameters for C
classes and M channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seguro.data.plan import Plan
from seguro.networks.blocks import CONV, CONV_TRANSPOSE

BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
PLANNED_WIDEST = 1024
"""Most channels of a planned network: those of the published one at its bottom."""

Hook = Callable[[str, Tensor], Tensor]
"""Called as `hook(name, activation)`; what it returns goes on in place of the activation."""


class ClassicUNet(nn.Module):
    """Blocks of two convolutions, each with batch normalization and ReLU; pooled down, transposed up.

    Args:
        classes: output channels.
        in_channels: image channels.
        strides: one tuple of per-axis factors for each pooling.
        kernels: kernel per level, `len(strides) + 1` tuples; None: 3 along every axis.
        width: channels of the first level, doubled per level.
        max_width: largest number of channels; None for no limit.

    Shape: (N, in_channels, *size) -> (N, classes, *size), `size` a multiple of the total stride.

    `names`, `stages` and `skips` as of `UNet`.
    """

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 1,
        strides: Sequence[Sequence[int]] = ((2, 2),) * 4,
        kernels: Sequence[Sequence[int]] | None = None,
        width: int = 64,
        max_width: int | None = None,
    ) -> None:
        super().__init__()
        levels = len(strides)
        kernels = kernels or [(3,) * len(strides[0])] * (levels + 1)
        dims = len(kernels[0])
        widths = [min(width * 2**i, max_width or width * 2**i) for i in range(levels + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.enc = nn.ModuleList(_block(a, b, k) for a, b, k in zip(inputs, widths, kernels, strict=True))
        self.pool = nn.ModuleList(MAX_POOL[dims](tuple(s)) for s in strides)
        self.up = nn.ModuleList(
            _up(below, here, s) for below, here, s in zip(widths[1:], widths[:-1], strides, strict=True)
        )
        self.dec = nn.ModuleList(
            _block(2 * here, here, k) for here, k in zip(widths[:-1], kernels[:-1], strict=True)
        )
        self.head = CONV[dims](widths[0], classes, kernel_size=1)
        _initialize(self)
        self.stages: tuple[str, ...] = tuple(f"enc{i}" for i in range(levels + 1))
        self.skips = {f"skip{i}": f"enc{i}" for i in range(levels)}
        up = [name for i in reversed(range(levels)) for name in (f"skip{i}", f"dec{i}")]
        self.names: tuple[str, ...] = ("input", *self.stages, *up, "last")

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return logits (N, classes, *size); `hook` may replace any named activation."""
        at = hook or _unchanged
        x = at("input", x)
        skips = []
        for level, block in enumerate(self.enc):
            raw = block(self.pool[level - 1](x) if level else x)
            skips.append(raw)
            x = at(f"enc{level}", raw)
        for level in reversed(range(len(self.dec))):
            skip = at(f"skip{level}", skips[level])
            x = at(f"dec{level}", self.dec[level](torch.cat([self.up[level](x), skip], dim=1)))
        return at("last", self.head(x))


def _block(cin: int, cout: int, kernel: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    dims = len(kernel)
    for n in (cin, cout):
        conv = CONV[dims](n, cout, kernel_size=tuple(kernel), padding=tuple(k // 2 for k in kernel))
        layers += [conv, BATCH_NORM[dims](cout), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _up(cin: int, cout: int, factor: Sequence[int]) -> nn.Sequential:
    dims, stride = len(factor), tuple(factor)
    conv = CONV_TRANSPOSE[dims](cin, cout, kernel_size=stride, stride=stride)
    return nn.Sequential(conv, BATCH_NORM[dims](cout), nn.ReLU(inplace=True))


def _initialize(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases of ordinary convolutions; the rest as torch has it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _unchanged(name: str, x: Tensor) -> Tensor:
    return x


def classic_from_plan(
    *,
    in_channels: int,
    classes: int,
    plan: Plan,
    width: int = 64,
    max_width: int | None = PLANNED_WIDEST,
) -> ClassicUNet:
    """Return the classic U-Net with the strides and kernels of `plan`."""
    return ClassicUNet(
        in_channels=in_channels,
        classes=classes,
        strides=plan.strides,
        kernels=plan.kernels,
        width=width,
        max_width=max_width,
    )
