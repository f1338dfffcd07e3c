"""Operations in closed form, and the published costs of PFSeg's baselines for 128 x 192 x 192 voxels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seguro.networks.cost import GIGA, flops, forward_flops, on_meta
from seguro.networks.resunet import LowResolution, ResUNet
from seguro.networks.superres import SuperRes

PUBLISHED = [(2, 2, 2)] * 4
FULL = (1, 1, 128, 192, 192)


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (nn.Conv3d(2, 5, 3, padding=1), (1, 2, 4, 6, 8), 2 * 4 * 6 * 8 * 27 * 2 * 5),
        (nn.Conv3d(2, 5, 1, stride=2), (3, 2, 4, 6, 8), 2 * 3 * 2 * 3 * 4 * 2 * 5),
        (nn.ConvTranspose3d(2, 5, 4, 2, 1), (1, 2, 4, 6, 8), 2 * 4 * 6 * 8 * 64 * 2 * 5),
        (nn.Linear(7, 3), (11, 7), 2 * 11 * 7 * 3),
        (nn.LeakyReLU(), (9, 9), 0),
    ],
    ids=["convolution", "strided", "transposed", "linear", "activation"],
)
def test_closed_forms(layer, size, expected):
    assert forward_flops(layer, size) == expected


def test_a_backward_pass_costs_two_forward_passes_but_for_the_first_layer():
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)).to("meta")
    x = torch.empty(1, 1, 8, 8, 8, device="meta")
    first, second = 2 * 512 * 27 * 4, 2 * 512 * 27 * 16
    assert flops(lambda: net(x).sum().backward()) == 2 * first + 3 * second


@pytest.mark.parametrize(
    ("network", "shape", "giga"),
    [
        (ResUNet(in_channels=1, classes=1, strides=PUBLISHED), FULL, 1468),
        (ResUNet(in_channels=1, classes=1, strides=PUBLISHED), (27, 1, 64, 96, 96), 4955),
        (LowResolution(ResUNet(in_channels=1, classes=1, strides=PUBLISHED), (2, 2, 2)), FULL, 184),
    ],
    ids=["full resolution", "27 windows", "low resolution"],
)
def test_published_costs(network, shape, giga):
    assert forward_flops(network, shape) / GIGA == pytest.approx(giga, abs=1)
    assert {p.device.type for p in network.parameters()} == {"cpu"}  # only the copy went to meta


def test_published_costs_of_pfseg():
    """Segmenting 464, without guidance 461; both decoders 878, the guidance encoder run once."""
    network = SuperRes(in_channels=1, classes=1)
    assert forward_flops(network, FULL) / GIGA == pytest.approx(464, abs=1)
    alone = SuperRes(in_channels=1, classes=1, guidance=False)
    assert forward_flops(alone, FULL) / GIGA == pytest.approx(461, abs=1)
    segment, restore = on_meta(network), on_meta(network.restorer(1))
    x = torch.empty(FULL, device="meta")

    def training() -> tuple[torch.Tensor, torch.Tensor]:
        maps = segment.encode(x)
        return segment.segment(maps), restore(maps)

    with torch.no_grad():
        assert flops(training) / GIGA == pytest.approx(878, abs=2)
