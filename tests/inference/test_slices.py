"""Slices: any axis, planes larger and smaller than the window, against windows one voxel thick."""

import pytest
import torch
from torch import nn

from seguro.core.errors import ConfigError
from seguro.inference import slices, sliding, whole
from seguro.inference.tiling import planned_slabs, slab_axis
from seguro.methods.contract import Slices, Whole, Windows

FLOAT32 = 1e-5


@pytest.fixture
def plane_network():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 3, 3, padding=1).requires_grad_(False)
    return lambda x: network(x.squeeze(2)).unsqueeze(2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(7, 11, 13), (5, 4, 9), (1, 6, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_slices_equal_windows_one_voxel_thick(fake, assemble, plane_network, axis, shape, batch):
    tiling = Slices(axis, (6, 8), 0.4)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(4))
    predictor = fake(tiling, plane_network)
    out = assemble(slices.slabs(predictor, x, tiling, batch=batch), axis, shape[axis])
    size = [6, 8]
    size.insert(axis, 1)

    def thin(w):  # windows come in canonical order; the network wants the slice axis first
        return plane_network(w.movedim(axis + 2, 2)).movedim(2, axis + 2)

    windows = sliding.slabs(fake(Windows(tuple(size)), thin), x, Windows(tuple(size), 0.4), axis=axis)
    assert torch.allclose(out, assemble(windows, axis, shape[axis]), rtol=0, atol=FLOAT32)
    assert {s[2:] for s in predictor.seen} == {(1, 6, 8)}


@pytest.mark.parametrize("shape", [(7, 11, 13), (8, 8, 8), (1, 1, 1)])
def test_whole_pads_to_the_multiple_and_crops_exactly(fake, assemble, shape):
    predictor = fake(Whole((4, 8, 2)), lambda x: x)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
    assert torch.equal(assemble(whole.slabs(predictor, x, predictor.tiling, axis=1), 1, shape[1]), x)
    assert all(n % m == 0 for n, m in zip(predictor.seen[0][2:], (4, 8, 2), strict=True))


def test_a_slice_network_refuses_another_slab_axis(fake, plane_network):
    with pytest.raises(ConfigError, match="slices along 2"):
        planned_slabs(fake(Slices(2, (4, 4)), plane_network), torch.zeros(1, 4, 4, 4), axis=0)


def test_the_slab_axis_is_the_slices_own_or_the_cheapest():
    assert slab_axis([Windows((8, 8, 8)), Slices(2, (4, 4))], (99, 9, 9)) == 2
    assert slab_axis([Windows((8, 8, 8))], (10, 40, 20)) == 1
    with pytest.raises(ConfigError, match="different axes"):
        slab_axis([Slices(0, (4, 4)), Slices(1, (4, 4))], (9, 9, 9))
