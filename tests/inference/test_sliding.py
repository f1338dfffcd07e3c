"""Windows: starts, weights, and the slabs against closed forms and a full-buffer version."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from seguro.core.errors import ConfigError
from seguro.inference.sliding import gaussian, padded, shares, slabs, window_starts
from seguro.methods.contract import Windows

FLOAT32 = 2e-6
"""A few hundred float32 roundings of numbers about 1."""


@pytest.mark.parametrize("size", [1, 5, 8, 9, 16, 17, 31])
@pytest.mark.parametrize("patch", [1, 4, 8])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_starts_cover_the_axis_with_the_promised_overlap(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] == max(size - patch, 0)
    assert all(b - a <= max(int(patch * (1 - overlap)), 1) for a, b in pairwise(starts))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 7.0])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(ConfigError, match="overlap"):
        window_starts(10, 4, overlap)


def test_the_gaussian_is_positive_everywhere_and_symmetric():
    weight = gaussian((6, 9, 64))
    assert (weight > 0).all()
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert float(weight.max()) == float(weight[2, 4, 31])


@pytest.mark.parametrize(("size", "patch", "overlap"), [(17, 8, 0.5), (8, 8, 0.5), (30, 7, 0.8), (3, 5, 0.5)])
def test_shares_of_a_voxel_add_up_to_one(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    total = torch.zeros(starts[-1] + patch)
    for start, share in zip(starts, shares(starts, patch), strict=True):
        total[start : start + patch] += share
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=FLOAT32)


def test_padding_repeats_the_edge_and_is_split():
    x = torch.arange(3.0).reshape(1, 1, 1, 3)
    out, before = padded(x, (1, 2, 6))
    assert before == [0, 0, 1]
    assert out[0, 0, 0].tolist() == [0, 0, 1, 2, 2, 2]
    assert torch.equal(out[:, :, 0], out[:, :, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(9, 17, 12), (8, 8, 8), (3, 20, 5), (1, 1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_constant_stays_constant(fake, assemble, axis, shape, batch):
    predictor = fake(Windows((8, 8, 8)), lambda x: x.new_tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1, 1) * (
        torch.ones(len(x), 1, *x.shape[2:])))  # fmt: skip
    out = assemble(
        slabs(predictor, torch.zeros(1, *shape), predictor.tiling, axis=axis, batch=batch), axis, shape[axis]
    )
    expected = torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1, 1).expand(3, *shape)
    assert torch.allclose(out, expected, rtol=0, atol=2 * FLOAT32)
    assert {s[2:] for s in predictor.seen} == {(8, 8, 8)}
    assert max(s[0] for s in predictor.seen) <= batch


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(9, 17, 12), (3, 20, 5)])
def test_the_identity_gives_the_image_back(fake, assemble, axis, shape):
    predictor = fake(Windows((4, 8, 6), 0.7), lambda x: x)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    out = assemble(slabs(predictor, x, predictor.tiling, axis=axis), axis, shape[axis])
    assert torch.allclose(out, x, rtol=0, atol=4 * FLOAT32)


def naive(network, x, size, overlap):
    """Blend with two full buffers and one division."""
    x, before = padded(x, size)
    total, weights, weight = torch.zeros(3, *x.shape[1:]), torch.zeros(x.shape[1:]), gaussian(size).float()
    for corner in product(*(window_starts(n, p, overlap) for n, p in zip(x.shape[1:], size, strict=True))):
        box = tuple(slice(c, c + p) for c, p in zip(corner, size, strict=True))
        total[(slice(None), *box)] += network(x[(None, slice(None), *box)])[0] * weight
        weights[box] += weight
    return total / weights, before


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(11, 13, 18), (5, 13, 8)])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
def test_slabs_equal_the_full_buffer(fake, assemble, convolution, axis, shape, overlap):
    size = (6, 8, 7)
    predictor = fake(Windows(size, overlap), convolution)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    out = assemble(slabs(predictor, x.numpy(), predictor.tiling, axis=axis, batch=2), axis, shape[axis])
    whole, before = naive(convolution, x, size, overlap)
    box = tuple(slice(f, f + n) for f, n in zip(before, shape, strict=True))
    assert torch.allclose(
        out, whole[(slice(None), *box)], rtol=0, atol=1e-5
    )  # weights of 1e-10 in the corners


def test_no_slab_is_deeper_than_a_window(fake):
    predictor = fake(Windows((4, 8, 8)), lambda x: x.expand(-1, 3, -1, -1, -1))
    depths = [stop - start for start, stop, _ in slabs(predictor, torch.zeros(1, 50, 9, 9), predictor.tiling)]
    assert max(depths) <= 4


def test_gradients_reach_the_image_through_the_blend(fake, convolution):
    predictor = fake(Windows((4, 4, 4)), convolution)
    x = torch.randn(1, 9, 7, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    total = sum(values[1].sum() for _, _, values in slabs(predictor, x, predictor.tiling))
    total.backward()
    step = torch.zeros_like(x)
    step[0, 4, 3, 3] = 1.0
    with torch.no_grad():
        moved = sum(values[1].sum() for _, _, values in slabs(predictor, x + step, predictor.tiling))
    # linear in x, so the finite difference is the derivative; 380 voxels summed in float32
    assert float(x.grad[0, 4, 3, 3]) == pytest.approx(float((moved - total).detach()), abs=1e-4)


def test_a_network_that_changes_the_size_is_refused(fake):
    predictor = fake(Windows((4, 4, 4)), lambda x: x.expand(-1, 3, -1, -1, -1)[..., :2])
    with pytest.raises(ConfigError, match="keep the size"):
        list(slabs(predictor, np.zeros((1, 5, 5, 5), np.float32), predictor.tiling))
