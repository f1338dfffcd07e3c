"""The U-Net: parameter count in closed form, hooks that see and replace every activation, any plan."""

from __future__ import annotations

import pytest
import torch

from seguro.networks.unet import UNet, training_bytes


def count(in_channels, classes, widths, kernels, strides):
    """Parameters written out: convolutions without bias, norms, transposed convolutions, head."""

    def block(cin, cout, k):
        return cin * cout * k + cout * cout * k + 4 * cout

    volumes = [int(torch.tensor(k).prod()) for k in kernels]
    total = sum(block(in_channels if i == 0 else widths[i - 1], w, volumes[i]) for i, w in enumerate(widths))
    for i, s in enumerate(strides):
        total += widths[i + 1] * widths[i] * int(torch.tensor(s).prod()) + widths[i]
        total += block(2 * widths[i], widths[i], volumes[i])
    return total + widths[0] * classes + classes


CASES = [
    ([(2, 2)], [(3, 3), (3, 3)], 4, 1, 3, (8, 8)),
    ([(2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3, 4, 2, 3, (8, 12, 8)),
    ([(1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)], 3, 1, 2, (4, 8, 8)),
]


@pytest.mark.parametrize(("strides", "kernels", "width", "cin", "classes", "size"), CASES)
def test_parameters_and_output(strides, kernels, width, cin, classes, size):
    net = UNet(in_channels=cin, classes=classes, strides=strides, kernels=kernels, width=width)
    widths = [width * 2**i for i in range(len(kernels))]
    assert sum(p.numel() for p in net.parameters()) == count(cin, classes, widths, kernels, strides)
    x = torch.randn(2, cin, *size)
    y = net(x)
    assert y.shape == (2, classes, *size) and y.std() > 0
    alone = net(x[1:])
    assert torch.allclose(alone, y[1:], atol=1e-5)  # float32: a case does not depend on its batch


@pytest.mark.parametrize(("strides", "kernels", "width", "cin", "classes", "size"), CASES)
def test_a_hook_sees_every_name_in_order_and_its_answer_counts(strides, kernels, width, cin, classes, size):
    net = UNet(in_channels=cin, classes=classes, strides=strides, kernels=kernels, width=width)
    x = torch.randn(1, cin, *size)
    seen: list[str] = []
    plain = net(x)
    same = net(x, lambda name, a: (seen.append(name), a)[1])
    assert tuple(seen) == net.names
    assert torch.equal(plain, same)
    for name in net.names:
        changed = net(x, lambda n, a, name=name: a * -2 + 1 if n == name else a)
        assert not torch.equal(plain, changed), name


def test_memory_prediction_grows_with_batch_and_patch():
    small = training_bytes((32, 32, 32), 1, [(2, 2, 2)] * 2)
    assert training_bytes((32, 32, 32), 2, [(2, 2, 2)] * 2) == pytest.approx(2 * small, rel=1e-6)
    assert training_bytes((64, 32, 32), 1, [(2, 2, 2)] * 2) == pytest.approx(2 * small, rel=1e-6)
