"""Flips: a network that mirrors along is unchanged, and left and right swap."""

import pytest
import torch

from seguro.inference.forward import Forward
from seguro.inference.tiling import planned_slabs
from seguro.methods.contract import Slices, Whole, Windows

ROUNDING = 1e-5
"""Softmax and logarithm of float32 and back."""


def softmax(x):
    return torch.softmax(x, dim=1)


@pytest.mark.parametrize("flips", [(0,), (1, 2), (0, 1, 2)])
def test_flips_change_nothing_for_a_network_that_works_voxel_by_voxel(fake, flips):
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    predictor = fake(Windows((4, 5, 6)), lambda x: 2 * x)
    out = Forward(predictor, flips=flips)(x)
    assert torch.allclose(softmax(out), softmax(2 * x), atol=ROUNDING)
    assert len(predictor.seen) == 2 ** len(flips)


def test_the_mean_is_over_probabilities(fake):
    ramp = torch.linspace(-3, 3, 6).reshape(1, 1, 1, 1, 6).expand(1, 1, 1, 1, 6)
    predictor = fake(Windows((1, 1, 6)), lambda x: torch.cat([ramp, 0 * ramp, -ramp], dim=1))
    out = softmax(Forward(predictor, flips=(2,))(torch.zeros(1, 1, 1, 1, 6)))
    one = softmax(torch.cat([ramp, 0 * ramp, -ramp], dim=1))
    assert torch.allclose(out, (one + one.flip(-1)) / 2, atol=ROUNDING)


def test_left_and_right_swap_when_mirrored_along_x_only(fake, paired):
    # "left" is always the low half of x, also in the mirrored image: right again after the swap
    x = torch.zeros(1, 1, 2, 2, 4)

    def sides(x):
        out = torch.zeros(1, 3, *x.shape[2:])
        out[:, 1, ..., :2] = 5.0
        out[:, 2, ..., 2:] = 5.0
        return out

    predictor = fake(Windows((2, 2, 4)), sides, paired)
    single = softmax(sides(x))
    assert torch.allclose(softmax(Forward(predictor, flips=(2,))(x)), single, atol=ROUNDING)
    assert torch.allclose(softmax(Forward(predictor, flips=(0, 1))(x)), single, atol=ROUNDING)
    unpaired = fake(Windows((2, 2, 4)), sides)
    assert not torch.allclose(softmax(Forward(unpaired, flips=(2,))(x)), single, atol=0.1)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_lateral_classes_swap_in_slices_of_any_axis(fake, assemble, paired, slice_axis):
    x = torch.linspace(-1, 1, 4).reshape(1, 1, 1, 4).expand(1, 4, 4, 4).clone()  # odd along canonical x

    def sides(x):
        return torch.cat([torch.zeros_like(x), 4 * x, -4 * x], dim=1)

    predictor = fake(Slices(slice_axis, (4, 4)), sides, paired)
    run = lambda flips: assemble(  # noqa: E731
        planned_slabs(predictor, x, axis=slice_axis, flips=flips), slice_axis, 4)  # fmt: skip
    plain = torch.softmax(run(()), dim=0)
    # a network that works voxel by voxel gives the same after the flip back, so only the swap remains
    mirrored = plain[[0, 2, 1]]
    flipped = torch.softmax(run((2,)), dim=0)
    expected = plain if slice_axis == 2 else (plain + mirrored) / 2
    assert torch.allclose(flipped, expected, atol=ROUNDING)


def test_regions_average_sigmoids(fake, paired):
    from seguro.core.types import Classes

    regions = Classes(names=("a", "b"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
    ramp = torch.linspace(-3, 3, 6).reshape(1, 1, 1, 1, 6)
    predictor = fake(Whole((1, 1, 1)), lambda x: torch.cat([ramp, -ramp], dim=1), regions)
    out = torch.sigmoid(Forward(predictor, flips=(2,))(torch.zeros(1, 1, 1, 1, 6)))
    assert torch.allclose(out, torch.full_like(out, 0.5), atol=ROUNDING)  # sigmoid(r) + sigmoid(-r) = 1
