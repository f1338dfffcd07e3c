"""The classic U-Net: the published number of parameters, its initialization, any plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seguro.networks.classic import ClassicUNet


@pytest.mark.parametrize(
    ("width", "classes", "parameters"),
    [(64, 28, 31_046_044), (64, 5, 31_044_549), (32, 28, 7_767_260), (16, 28, 1_944_700), (8, 28, 487_628)],
)
def test_parameters_are_the_published_networks(width, classes, parameters):
    with torch.device("meta"):
        net = ClassicUNet(classes=classes, width=width)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_stages_have_the_published_sizes_and_channels():
    seen = {}

    def note(name, x):
        seen[name] = tuple(x.shape[1:])
        return x

    with torch.device("meta"):
        ClassicUNet(classes=28)(torch.empty(1, 1, 256, 256), note)
    wanted = {f"enc{i}": (64 * 2**i, 256 // 2**i, 256 // 2**i) for i in range(5)}
    wanted |= {f"{n}{i}": wanted[f"enc{i}"] for i in range(4) for n in ("skip", "dec")}
    wanted |= {"input": (1, 256, 256), "last": (28, 256, 256)}
    assert seen == wanted


def test_initialization_is_xavier_normal_with_zero_biases():
    torch.manual_seed(0)
    net = ClassicUNet(classes=3, width=16)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 19 and all(m.bias is not None and not m.bias.any() for m in convs)
    weight = net.enc[4][3].weight  # 256 -> 256, 3 x 3
    wanted = (2 / (256 * 9 + 256 * 9)) ** 0.5
    assert weight.std().item() == pytest.approx(wanted, rel=0.01)  # of 590,000 draws
    assert net.up[0][0].bias.abs().max() > 0  # transposed convolutions as the framework has them


CASES = [
    (((2, 2),) * 2, None, (8, 12), 1),
    (((1, 2, 2), (2, 2, 2)), [(1, 3, 3), (3, 3, 3), (3, 3, 3)], (4, 8, 12), 2),
]


@pytest.mark.parametrize(("strides", "kernels", "size", "cin"), CASES)
def test_a_hook_sees_every_name_in_order_and_its_answer_counts(strides, kernels, size, cin):
    net = ClassicUNet(classes=3, in_channels=cin, strides=strides, kernels=kernels, width=4).eval()
    x = torch.randn(2, cin, *size)
    seen: list[str] = []
    plain = net(x)
    assert plain.shape == (2, 3, *size)
    assert torch.equal(plain, net(x, lambda name, a: (seen.append(name), a)[1]))
    assert tuple(seen) == net.names
    for name in net.names:
        changed = net(x, lambda n, a, name=name: a * 2 + 1 if n == name else a)
        assert not torch.equal(plain, changed), name
