"""Two tiny trained networks with images to attack: 2-D with three classes, 3-D with two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from seguro.attacks.threat import Threat, range_box
from seguro.attacks.victim import Truth, Victim
from seguro.core.types import Classes
from seguro.losses import cross_entropy, soft_dice


@dataclass(frozen=True)
class Nets:
    """A trained network with images and their truth.

    x: (N, C, *size) z-scored, channels of different ranges. label: (N, *size) stored labels.
    """

    net: nn.Module
    x: Tensor
    label: Tensor
    classes: Classes
    seeds: tuple[int, ...]

    @property
    def truth(self) -> Truth:
        """The truth; every class was looked for."""
        return Truth(self.label, torch.ones(len(self.x), len(self.classes.foreground)), self.classes)

    def victim(self) -> Victim:
        """A fresh victim whose calls count from zero."""
        return Victim(self.net, self.truth)

    def threat(self, eps_fraction: float) -> Threat:
        """The ball of `eps_fraction` of each channel's own range, in the box of that range."""
        low, high = range_box(self.x)
        return Threat((high - low) * eps_fraction, low, high)

    def select(self, index: list[int]) -> Nets:
        """The same network with some of the images."""
        return Nets(
            self.net, self.x[index], self.label[index], self.classes, tuple(self.seeds[i] for i in index)
        )


def named(n: int) -> Classes:
    """Exclusive classes with the background first."""
    names = ("background", "organ", "tumour")[:n]
    return Classes(names=names, values=tuple((i,) for i in range(n)))


def images(
    n: int, size: tuple[int, ...], channels: int, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return (N, C, *size) images and (N, *size) labels: a ball with a smaller one in it, in smooth noise."""
    axes = torch.meshgrid(*[torch.arange(s, dtype=torch.float32) for s in size], indexing="ij")
    grid = torch.stack(axes)  # (d, *size)
    extent = torch.tensor(size).reshape(-1, *[1] * len(size))
    x, label = [], []
    for _ in range(n):
        draw = torch.rand(2 * len(size) + 1, generator=generator)
        centre = (0.38 + 0.24 * draw[: len(size)]).reshape(extent.shape) * extent
        radius = (0.22 + 0.08 * draw[-1]) * min(size)
        inner = centre + (draw[len(size) : -1].reshape(extent.shape) - 0.5) * radius * 0.6
        hit = ((grid - centre).square().sum(0).sqrt() < radius).long()
        if classes > 2:
            hit[(grid - inner).square().sum(0).sqrt() < 0.55 * radius] = 2
        contrast = torch.tensor([[0.0, 1.0, 2.2], [0.0, -4.0, 3.0]])[:channels, :classes]
        noise = torch.randn(channels, *size, generator=generator)
        scale = torch.tensor([0.9, 3.5])[:channels].reshape(-1, *[1] * len(size))
        x.append(contrast[:, hit] + scale * noise)
        label.append(hit)
    return torch.stack(x), torch.stack(label).to(torch.uint8)


def network(dims: int, channels: int, classes: int) -> nn.Module:
    """Three convolutions with instance norms."""
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    width = 10
    return nn.Sequential(
        conv(channels, width, 3, padding=1),
        norm(width, affine=True),
        nn.SiLU(),
        conv(width, width, 3, padding=2, dilation=2),
        norm(width, affine=True),
        nn.SiLU(),
        conv(width, classes, 3, padding=1),
    )


def trained(size: tuple[int, ...], channels: int, n_classes: int, updates: int, n: int) -> Nets:
    """Train on fresh images for some updates and return the network with `n` unseen ones."""
    generator, classes = torch.Generator().manual_seed(5), named(n_classes)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = network(len(size), channels, n_classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(updates):
        x, label = images(4, size, channels, n_classes, generator)
        annotated = torch.ones(len(x), n_classes - 1)
        logits = net(x)
        loss = cross_entropy(logits, label, annotated, classes) + soft_dice(logits, label, annotated, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    net.eval().requires_grad_(False)
    x, label = images(n, size, channels, n_classes, torch.Generator().manual_seed(6))
    return Nets(net, x, label, classes, tuple(range(100, 100 + n)))


@pytest.fixture(scope="session")
def flat3() -> Nets:
    """2-D: 24 x 24, two channels, three classes."""
    return trained((24, 24), channels=2, n_classes=3, updates=200, n=6)


@pytest.fixture(scope="session")
def solid2() -> Nets:
    """3-D: 12 x 12 x 12, one channel, two classes."""
    return trained((12, 12, 12), channels=1, n_classes=2, updates=200, n=4)
