"""The residual U-Net: published counts and cost, lossless decomposition, sizes that nothing divides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seguro.core.errors import ConfigError
from seguro.networks.resolution import shuffled, unshuffled
from seguro.networks.resunet import (
    Decomposed,
    LowResolution,
    ResUNet,
    resunet_from_plan,
)

PUBLISHED = [(2, 2, 2)] * 4


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_numbers_of_parameters():
    assert count(ResUNet(in_channels=1, classes=1, strides=PUBLISHED)) == 8_301_217


@pytest.mark.parametrize("scale", [(2, 2, 2), (1, 2, 2), (1, 3, 2)], ids=str)
def test_decomposition_loses_nothing(scale):
    size = [2 * s for s in scale]
    x = torch.arange(2.0 * 3 * torch.Size(size).numel()).reshape(2, 3, *size)
    low = unshuffled(x, scale)
    assert low.shape == (2, 3 * torch.Size(scale).numel(), *[2] * len(scale))
    first = (0, 1, *[0] * len(scale))
    assert low[0, low.shape[1] // 3][first[2:]] == x[first]  # channels of an image channel lie together
    assert torch.equal(shuffled(low, scale), x)


def test_decomposed_and_low_resolution_identities():
    x = torch.randn(1, 2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Decomposed(nn.Identity(), (1, 2, 2))(x), x)
    flat = torch.full_like(x, 3.0)
    assert torch.allclose(LowResolution(nn.Identity(), (2, 2, 2))(flat), flat)
    ramp = torch.arange(12.0).reshape(1, 1, 1, 1, 12).expand(1, 1, 4, 4, 12).contiguous()
    low = LowResolution(nn.Identity(), (1, 1, 2))(ramp)
    assert torch.allclose(low[..., 1:-1], ramp[..., 1:-1], atol=1e-5)  # block centers keep their place


@pytest.mark.parametrize("resolution", ["full", "low", "decomposed"])
@pytest.mark.parametrize("size", [(8, 16, 16), (5, 13, 9)], ids=str)
def test_the_size_is_kept_and_a_case_does_not_depend_on_its_batch(make_plan, resolution, size):
    net = resunet_from_plan(in_channels=2, classes=3, plan=make_plan(), width=2, resolution=resolution)
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))
    y = net(x)
    assert y.shape == (2, 3, *size)
    assert y.std() > 0
    assert torch.allclose(net(x[1:]), y[1:], atol=1e-5)


def test_whole_volume_context_of_the_low_resolution(make_plan):
    """A corner's logits depend on the opposite corner."""
    net = resunet_from_plan(in_channels=1, classes=2, plan=make_plan(), width=2, resolution="low")
    x = torch.randn(1, 1, 8, 16, 16, requires_grad=True)
    net(x)[0, 1, 0, 0, 0].backward()
    assert float(x.grad[0, 0, -1, -1, -1].abs()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "half"}, "full, low or decomposed"),
        ({"scale": (2, 2, 2)}, "leave it out"),
        ({"resolution": "low", "scale": (1, 1, 1)}, "above 1"),
        ({"resolution": "low", "scale": (2, 2)}, "3 factors"),
        ({"depth": 0}, "larger patch"),
    ],
    ids=["resolution", "scale of full", "no scale", "dimensions", "depth"],
)
def test_options_that_do_not_fit_are_refused(make_plan, options, message):
    with pytest.raises(ConfigError, match=message):
        resunet_from_plan(in_channels=1, classes=2, plan=make_plan(), width=2, **options)
