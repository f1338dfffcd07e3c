"""The lattice of ROG (Daza, Pérez and Arbeláez, MICCAI 2021): 14 nodes on 4 levels, every sum of edges.

Separable convolutions, instance norm and swish throughout, no bias but the norms'; two stems, nodes that are
pre-activated residual blocks, and a head at full resolution. 2,596,192 + 59 M + 32 C parameters at width 64,
for M channels and C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seguro.core.errors import ConfigError
from seguro.data.plan import Plan
from seguro.networks.blocks import CONV, INSTANCE_NORM, pad_to_multiple
from seguro.networks.kernels import channels_last, convolve, every, norm, pointwise

EDGES: dict[str, tuple[str, ...]] = {
    "L0d0": ("L0d2", "L1d1"),
    "L1d1": ("L0d2", "L1d3", "L2d2"),
    "L0d2": ("L0d4", "L1d3"),
    "L2d2": ("L1d3", "L2d4", "L3d3"),
    "L1d3": ("L0d4", "L1d5", "L2d4"),
    "L3d3": ("L2d4", "L3d5"),
    "L0d4": ("L0d6", "L1d5"),
    "L2d4": ("L1d5", "L2d6", "L3d5"),
    "L1d5": ("L0d6", "L1d7", "L2d6"),
    "L3d5": ("L2d6",),
    "L0d6": ("L0d8", "L1d7"),
    "L2d6": ("L1d7",),
    "L1d7": ("L0d8",),
    "L0d8": ("head",),
}
"""Node to the nodes that its output goes to, in the order of computation; L is the level, d the depth."""
FIXED = 2
"""Downsamplings below those that `strides` gives; each halves every axis."""

Hook = Callable[[str, Tensor], Tensor]
"""Called as `hook(name, activation)`; what it returns goes on in place of the activation."""
Size = tuple[int, ...]


class Separable(nn.Module):
    """Depthwise 3^n convolution with the stride, then pointwise.

    Shape: (N, cin, *size) -> (N, cout, *ceil(size / stride)).
    """

    def __init__(self, cin: int, cout: int, stride: Size) -> None:
        super().__init__()
        conv = partial(CONV[len(stride)], bias=False)
        self.depth = conv(cin, cin, kernel_size=3, stride=stride, padding=1, groups=cin)
        self.point = conv(cin, cout, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        return pointwise(convolve(x, _conv(self.depth)), _conv(self.point))


class Stem(nn.Module):
    """Two separable convolutions with norm, the second strided; swish between them, and after if asked."""

    def __init__(self, cin: int, cmid: int, cout: int, stride: Size, *, swish_last: bool) -> None:
        super().__init__()
        one = (1,) * len(stride)
        self.first, self.norm_first = Separable(cin, cmid, one), _norm(cmid, stride)
        self.second, self.norm_second = Separable(cmid, cout, stride), _norm(cout, stride)
        self.swish_last = swish_last

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at 1 / stride."""
        x = norm(self.first(x), self.norm_first, swish=True)
        return norm(self.second(x), self.norm_second, swish=self.swish_last)


class Body(nn.Module):
    """x + norm(conv(swish(norm(conv(swish(x)))))), separable convolutions of `c` channels."""

    def __init__(self, c: int, dims: int) -> None:
        super().__init__()
        one = (1,) * dims
        self.first, self.norm_first = Separable(c, c, one), _norm(c, one)
        self.second, self.norm_second = Separable(c, c, one), _norm(c, one)

    def forward(self, x: Tensor) -> Tensor:
        """Return the node's activation, of the shape of `x`."""
        y = norm(self.first(F.silu(x)), self.norm_first, swish=True)
        return x + norm(self.second(y), self.norm_second)


class Edge(nn.Module):
    """Between levels: swish, pointwise to half ("up") or double ("down") the channels, norm, resampling."""

    def __init__(self, cin: int, cout: int, factor: Size, *, up: bool) -> None:
        super().__init__()
        self.point = CONV[len(factor)](cin, cout, kernel_size=1, bias=False)
        self.norm = _norm(cout, factor)
        self.factor, self.up = factor, up

    def forward(self, x: Tensor) -> Tensor:
        """Return what arrives at the other level."""
        if not self.up:
            x = every(x, self.factor)  # before swish: the other voxels are never read
        x = norm(pointwise(F.silu(x), _conv(self.point)), self.norm)
        return _enlarge(x, self.factor) if self.up else x


class Lattice(nn.Module):
    """The lattice network.

    Args:
        in_channels: image channels.
        classes: output channels.
        strides: per-axis factors of stem 1, stem 2 and level 0 to 1; two halvings of every axis follow.
        width: channels of level 0, doubled per level; half as many in the stems. 64 in the paper.
        checkpointed: compute the nodes' insides again in backward instead of keeping them: less memory,
            about a third more time.

    Shape: (N, in_channels, *size) -> (N, classes, *size), any size (edge-padded to the total stride inside).

    `names` lists the activations in the order a hook sees them: "input", "stem1" (also the skip to the
    head), "stem2", the nodes ("L0d0" ...: before their outgoing edges), and "last" (the logits). `stages`
    are those on the way down. A hook also sees every edge as what arrives ("L0d0-L0d2", "stem1-head");
    `passing` says from where to where each goes.

    Raises:
        ConfigError: strides or width it cannot be built with.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        strides: Sequence[Sequence[int]],
        width: int = 64,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        first, second, third = _checked(strides)
        if width < 2 or width % 2:
            raise ConfigError(f"lattice: width must be even and at least 2, found {width}")
        dims, half = len(first), width // 2
        widths = [width * 2**level for level in range(4)]
        factors = [third, *[(2,) * dims] * FIXED]
        self.checkpointed = checkpointed
        self.multiple = _total(strides)
        self.stem1 = Stem(in_channels, half, half, first, swish_last=True)
        self.stem2 = Stem(half, half, width, second, swish_last=False)
        self.nodes = nn.ModuleDict({n: Body(widths[_level(n)], dims) for n in EDGES})
        self.edges = nn.ModuleDict({f"{a}-{b}": edge for a, b, edge in _edges(widths, factors)})
        self.to_head = Edge(width, half, second, up=True)
        self.full = CONV[dims](half, half, kernel_size=3, padding=1, bias=False)
        self.norm_full = _norm(half, first)
        self.classifier = CONV[dims](half, classes, kernel_size=1, bias=False)
        self.stem_factor = first
        self.names: tuple[str, ...] = ("input", "stem1", "stem2", *EDGES, "last")
        self.stages: tuple[str, ...] = ("stem1", "stem2", *(n for n in EDGES if n[1] == n[3]))
        sent = [(a, b) for a, targets in EDGES.items() for b in targets]
        self.passing = {f"{a}-{b}": (a, "last" if b == "head" else b) for a, b in [*sent, ("stem1", "head")]}

    def forward(self, x: Tensor, hook: Hook | None = None) -> Tensor:
        """Return logits (N, classes, *size); `hook` may replace any named activation."""
        at = hook or _unchanged
        x, undo = pad_to_multiple(at("input", x), self.multiple)
        skip = at("stem1", self.stem1(channels_last(x)))
        arriving = {"L0d0": at("stem2", self.stem2(skip))}
        for name, targets in EDGES.items():
            node = at(name, self._node(name, arriving.pop(name)))
            for target in targets:
                sent = at(f"{name}-{target}", self._sent(name, target, node))
                arriving[target] = arriving[target] + sent if target in arriving else sent
        x = F.silu(arriving["head"] + at("stem1-head", skip))
        x = norm(convolve(x, _conv(self.full)), self.norm_full)
        x = F.silu(_enlarge(x, self.stem_factor))
        logits = pointwise(x, _conv(self.classifier))
        return at("last", logits[undo])

    def _node(self, name: str, x: Tensor) -> Tensor:
        if self.checkpointed and self.training:
            return cast(Tensor, checkpoint(self.nodes[name], x, use_reentrant=False))
        return cast(Tensor, self.nodes[name](x))

    def _sent(self, name: str, target: str, node: Tensor) -> Tensor:
        if target == "head":
            return cast(Tensor, self.to_head(node))
        edge = f"{name}-{target}"
        return cast(Tensor, self.edges[edge](node)) if edge in self.edges else node


def _edges(widths: Sequence[int], factors: Sequence[Size]) -> list[tuple[str, str, Edge]]:
    """Return (from, to, edge) for the edges that change the level."""
    out = []
    for name, targets in EDGES.items():
        for target in targets:
            if target != "head" and _level(name) != _level(target):
                a, b = _level(name), _level(target)
                out.append((name, target, Edge(widths[a], widths[b], factors[min(a, b)], up=b < a)))
    return out


def _unchanged(name: str, x: Tensor) -> Tensor:
    return x


def _level(name: str) -> int:
    return int(name[1])


def _norm(channels: int, like: Size) -> nn.Module:
    return INSTANCE_NORM[len(like)](channels, affine=True)


def _conv(layer: nn.Module) -> nn.Conv3d:
    return cast(nn.Conv3d, layer)


def _enlarge(x: Tensor, factor: Size) -> Tensor:
    """Return `x` interpolated linearly to `factor` times its size, corners on corners."""
    if all(f == 1 for f in factor):
        return x
    size = [n * f for n, f in zip(x.shape[2:], factor, strict=True)]
    return F.interpolate(x, size=size, mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=True)


def _checked(strides: Sequence[Sequence[int]]) -> tuple[Size, Size, Size]:
    """Return the three strides as tuples."""
    found = [tuple(int(f) for f in s) for s in strides]
    if (
        len(found) != 3
        or len({len(s) for s in found}) != 1
        or len(found[0]) not in CONV
        or min(min(s) for s in found) < 1
    ):
        raise ConfigError(
            f"lattice: strides must be three tuples (stem 1, stem 2, level 0 to 1) of two or three factors "
            f"of at least 1, found {found}"
        )
    return found[0], found[1], found[2]


def _total(strides: Sequence[Sequence[int]]) -> Size:
    """Return the total downsampling per axis, the fixed halvings included."""
    out = [2**FIXED] * len(strides[0])
    for stride in strides:
        out = [a * b for a, b in zip(out, stride, strict=True)]
    return tuple(out)


def strides_of(plan: Plan) -> tuple[Size, Size, Size]:
    """Return the lattice's three strides for the total downsampling of `plan`.

    Of each axis' halvings in the plan, two are the fixed ones; of the rest up to three are placed as late as
    possible, as in ROG's own plans, which therefore come out exactly. An axis that the plan halves less than
    twice is halved twice all the same (the network pads), one halved more than five times five times: the
    coarsest level is 1/32.
    """
    halvings = [m.bit_length() - 1 for m in plan.multiple]
    free = [min(max(h - FIXED, 0), 3) for h in halvings]
    first, second, third = (tuple(2 if f >= 3 - i else 1 for f in free) for i in range(3))
    return first, second, third


def lattice_from_plan(
    *,
    in_channels: int,
    classes: int,
    plan: Plan,
    width: int = 64,
    strides: Sequence[Sequence[int]] | None = None,
    checkpointed: bool = False,
) -> Lattice:
    """Return the lattice with `strides`, or those that `plan` stands for (see `strides_of`)."""
    if strides is not None and len(strides) and len(strides[0]) != plan.dims:
        raise ConfigError(f"lattice: strides {strides} in a {plan.dims}-D plan need {plan.dims} factors each")
    return Lattice(
        in_channels=in_channels,
        classes=classes,
        strides=strides if strides is not None else strides_of(plan),
        width=width,
        checkpointed=checkpointed,
    )
