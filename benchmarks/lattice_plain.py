"""The lattice as one would write it with torch's layers: what `networks/lattice.py` is timed against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor, nn

from seguro.networks import lattice
from seguro.networks.lattice import EDGES, Body, Edge, Lattice, Separable, Stem


class PlainSeparable(Separable):
    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.depth(x))


class PlainStem(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm_first(self.first(x)))
        x = self.norm_second(self.second(x))
        return F.silu(x) if self.swish_last else x


class PlainBody(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm_first(self.first(F.silu(x))))
        return x + self.norm_second(self.second(y))


class PlainEdge(Edge):
    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return enlarge(self.norm(self.point(F.silu(x))), self.factor)
        return self.norm(F.conv3d(F.silu(x), self.point.weight, stride=self.factor))


class PlainLattice(Lattice):
    def forward(self, x: Tensor, hook: object = None) -> Tensor:
        skip = self.stem1(x)
        arriving = {"L0d0": self.stem2(skip)}
        for name, targets in EDGES.items():
            node = self.nodes[name](arriving.pop(name))
            for target in targets:
                sent = self._sent(name, target, node)
                arriving[target] = arriving[target] + sent if target in arriving else sent
        x = self.norm_full(self.full(F.silu(arriving["head"] + skip)))
        return self.classifier(F.silu(enlarge(x, self.stem_factor)))


PLAIN = {Separable: PlainSeparable, Stem: PlainStem, Body: PlainBody, Edge: PlainEdge, Lattice: PlainLattice}


def plain(network: Lattice) -> Lattice:
    """Return a copy of `network` (3-D) that computes the plain way."""
    out = copy.deepcopy(network)
    for module in out.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return out


def enlarge(x: Tensor, factor: tuple[int, ...]) -> Tensor:
    if set(factor) == {1}:
        return x
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=True)


def plain_norm(x: Tensor, layer: nn.Module, *, swish: bool = False) -> Tensor:
    return F.silu(layer(x)) if swish else layer(x)


def plain_pointwise(x: Tensor, conv: nn.Conv3d) -> Tensor:
    return conv(x)


TRICKS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "convolution gradients": ("convolve", lambda x, conv: conv(x)),
    "norm and swish": ("norm", plain_norm),
    "pointwise products": ("pointwise", plain_pointwise),
}
"""What each part of `networks/kernels.py` does, and torch's own in its place (channels last all the same)."""


@contextmanager
def without(tricks: frozenset[str]) -> Iterator[None]:
    """Compute the lattice without these tricks for a while."""
    if not tricks:
        yield
        return
    name, function = TRICKS[next(iter(tricks))]
    with patch.object(lattice, name, function):
        yield
