"""The residual U-Net that PFSeg is compared with, at full resolution, at a lower one, and decomposed.

All three map an image to logits of its own size, so that windows and whole volumes of any size can be
used with each: they are baselines of one framework, not programs of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.data.plan import Plan
from seguro.networks.blocks import pad_to_multiple
from seguro.networks.resolution import lowered, product, raised, shuffled, unshuffled
from seguro.networks.superres import Encoder, Hook, ResConv, Up

DEPTH = 4
"""Halvings of the published network."""


class ResUNet(nn.Module):
    """ResConv blocks, max pooling down, transposed convolutions up, concatenated skips.

    Args:
        in_channels: image channels.
        classes: output channels.
        strides: one tuple of per-axis factors (1 or 2) for each pooling; published: four times 2.
        width: channels of the first two levels, doubled on each further one; published: 32.

    Shape: (N, in_channels, Z, Y, X) -> (N, classes, Z, Y, X); sizes that the total stride does not divide are
    padded with their edge. 8,301,217 parameters at width 32, one channel, one class (as published).

    `names`, `stages` and `skips` as of `UNet`.
    """

    def __init__(
        self, *, in_channels: int, classes: int, strides: Sequence[Sequence[int]], width: int = 32
    ) -> None:
        super().__init__()
        pools = [(s[0], s[1], s[2]) for s in strides]
        widths = [width, *(width * 2**i for i in range(len(pools)))]
        self.multiple = tuple(product(s[a] for s in pools) for a in range(3))
        self.encoder = Encoder(in_channels, widths, pools)
        self.up, self.dec = nn.ModuleList(), nn.ModuleList()
        for below, here, pool in reversed(list(zip(widths[1:], widths[:-1], pools, strict=True))):
            self.up.append(Up(below, here, pool))
            self.dec.append(ResConv(2 * here, here))
        self.head = nn.Conv3d(width, classes, 1)
        up = [name for i in reversed(range(len(pools))) for name in (f"skip{i}", f"dec{i}")]
        self.stages: tuple[str, ...] = tuple(f"enc{i}" for i in range(len(pools) + 1))
        self.skips = {f"skip{i}": f"enc{i}" for i in range(len(pools))}
        self.names: tuple[str, ...] = ("input", *self.stages, *up, "last")

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return logits (N, classes, Z, Y, X); `hook` may replace any named activation."""
        at = hook or _unchanged
        x, undo = pad_to_multiple(at("input", x), self.multiple)
        *skips, x = self.encoder(x, hook)
        for level in reversed(range(len(skips))):
            up, block = self.up[-1 - level], self.dec[-1 - level]
            skip = at(f"skip{level}", skips[level])
            x = at(f"dec{level}", block(torch.cat([up(x), skip], dim=1)))
        return at("last", cast(Tensor, self.head(x)[undo]))


class Reduced(nn.Module):
    """A network that works on the image at 1 / scale.

    Shape: (N, C, *size) -> (N, classes, *size), any size.

    `names`, `stages`, `skips` and `passing` are the network's; its "input" and "last" are the full-size ones
    here.
    """

    def __init__(self, network: nn.Module, scale: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.scale = (scale[0], scale[1], scale[2])
        self.names: tuple[str, ...] | None = getattr(network, "names", None)
        self.stages: tuple[str, ...] = getattr(network, "stages", ())
        self.skips: dict[str, str] | None = getattr(network, "skips", None)
        self.passing: dict[str, tuple[str, str]] | None = getattr(network, "passing", None)

    def down(self, x: Tensor) -> Tensor:
        """Return what the network sees of the image."""
        raise NotImplementedError

    def back(self, x: Tensor) -> Tensor:
        """Return the network's logits at full size."""
        raise NotImplementedError

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return logits of the size of `x`; `hook` may replace any named activation."""
        at = hook or _unchanged
        x, undo = pad_to_multiple(at("input", x), self.scale)
        inside = () if hook is None else (_between(hook),)
        return at("last", self.back(self.network(self.down(x), *inside))[undo])


class LowResolution(Reduced):
    """The image averaged down, the logits enlarged linearly: no detail comes back."""

    def down(self, x: Tensor) -> Tensor:
        """Return the averaged image."""
        return lowered(x, self.scale)

    def back(self, x: Tensor) -> Tensor:
        """Return the enlarged logits."""
        return raised(x, self.scale)


class Decomposed(Reduced):
    """Holistic decomposition (Zeng and Zheng, 2018): a block's voxels become channels, logits the reverse.

    Nothing of the input is lost, and the network works at the cost of the low resolution. It must take
    `product(scale)` times the image's channels and return as many times the classes.
    """

    def down(self, x: Tensor) -> Tensor:
        """Return the image's voxels as channels."""
        return unshuffled(x, self.scale)

    def back(self, x: Tensor) -> Tensor:
        """Return the logits' channels as voxels."""
        return shuffled(x, self.scale)


def _unchanged(name: str, x: Tensor) -> Tensor:
    return x


def _between(hook: Hook) -> Hook:
    """Return the hook for what lies between the first and the last activation."""
    return lambda name, x: x if name in ("input", "last") else hook(name, x)


def resunet_from_plan(
    *,
    in_channels: int,
    classes: int,
    plan: Plan,
    width: int = 32,
    depth: int = DEPTH,
    resolution: Literal["full", "low", "decomposed"] = "full",
    scale: Sequence[int] | None = None,
) -> nn.Module:
    """Return the residual U-Net with up to `depth` strides of `plan`.

    Args:
        in_channels: image channels.
        classes: output channels.
        plan: gives the strides.
        width: channels of the first level.
        depth: halvings of the network.
        resolution: full; low: at `scale` times larger voxels, logits enlarged; decomposed: at that cost, but
            with every voxel.
        scale: per-axis factor of the last two; the plan's first stride when not given.

    Raises:
        ConfigError: an unknown resolution, a scale that does not fit the plan's dimensions, or a plan that
            leaves no stride.
    """
    if plan.dims != 3:
        raise ConfigError("network resunet works in 3 dimensions, the plan has 2; plan with --dims 3")
    if resolution not in ("full", "low", "decomposed"):
        raise ConfigError(f"resolution {resolution!r}: full, low or decomposed")
    if resolution == "full":
        if scale is not None:
            raise ConfigError(f"scale {tuple(scale)}: there is none at full resolution; leave it out")
        return ResUNet(
            in_channels=in_channels, classes=classes, strides=_strides(plan, 0, depth), width=width
        )
    if not plan.strides:
        raise ConfigError("the plan's patch is too small to be divided; plan with a larger one")
    factor = tuple(scale or plan.strides[0])
    if len(factor) != 3 or min(factor) < 1 or max(factor) == 1:
        raise ConfigError(f"scale {factor}: expected 3 factors, at least one of them above 1")
    n = product(factor) if resolution == "decomposed" else 1
    core = ResUNet(
        in_channels=n * in_channels, classes=n * classes, strides=_strides(plan, 1, depth), width=width
    )
    return Decomposed(core, factor) if resolution == "decomposed" else LowResolution(core, factor)


def _strides(plan: Plan, first: int, depth: int) -> tuple[tuple[int, ...], ...]:
    found = plan.strides[first : first + depth]
    if not found:
        raise ConfigError(
            f"the plan's {len(plan.strides)} stride(s) leave none for the network; plan with a larger patch"
        )
    return found
