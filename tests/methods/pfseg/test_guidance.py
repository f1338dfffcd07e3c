"""Where crops lie: inside, by the rule, always the same."""

from __future__ import annotations

import pytest
import torch

from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.guidance import most_varied, scattered
from seguro.methods.pfseg.predictor import corners_of, unit
from seguro.networks.guidance import central, cut
from seguro.networks.superres import SuperRes

SIZE, CROP = (32, 48, 64), (8, 12, 16)


def image(seed: int, channels: int = 2) -> torch.Tensor:
    return torch.randn((2, channels, *SIZE), generator=torch.Generator().manual_seed(seed)).cumsum(dim=-1)


def variance(x: torch.Tensor, corners: torch.Tensor, crop=CROP) -> torch.Tensor:
    return cut(x, corners, crop).flatten(2).var(dim=2, correction=0).mean(1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("crop", [CROP, (7, 9, 11), SIZE], ids=str)
def test_the_most_varied_crop_is_inside_varies_no_less_than_the_central_one_and_repeats(seed, crop):
    x = image(seed)
    corners = most_varied(x, crop, 1)
    last = corners + torch.tensor(crop)
    assert (corners >= 0).all() and (last <= torch.tensor(SIZE)).all()
    best, middle = variance(x, corners, crop), variance(x, central(SIZE, crop, 2), crop)
    assert (best >= middle * (1 - 1e-5)).all()  # float32 of the test's own variance
    assert torch.equal(corners, most_varied(x.clone(), crop, 1))


def test_it_finds_the_only_place_where_something_is():
    x = torch.zeros(1, 1, *SIZE)
    x[..., 16:24, 36:48, 0:16] = torch.randn((8, 12, 16), generator=torch.Generator().manual_seed(0))
    assert most_varied(x, CROP, 1).tolist() == [[[16, 36, 0]]]


def test_further_crops_do_not_overlap_until_there_is_no_room():
    x = image(0)
    corners = most_varied(x, CROP, 6)
    for own in corners:
        apart = (own[:, None] - own[None]).abs() >= torch.tensor(CROP)
        assert (apart.any(-1) | torch.eye(6, dtype=torch.bool)).all()
    assert most_varied(x, SIZE, 2).tolist() == [[[0, 0, 0]] * 2] * 2


def test_an_even_image_is_guided_from_the_middle():
    assert most_varied(torch.ones(1, 1, *SIZE), CROP, 1).tolist() == central(SIZE, CROP, 1).tolist()


def test_relative_places_cover_the_volume_and_nothing_beyond():
    ends = torch.tensor([[[0.0, 0.0, 0.0], [0.9999999, 0.9999999, 0.9999999]]])
    assert scattered(ends, SIZE, CROP).tolist() == [[[0, 0, 0], [24, 36, 48]]]
    assert scattered(torch.ones(1, 1, 3), SIZE, CROP).tolist() == [[[24, 36, 48]]]


@pytest.mark.parametrize("rule", ["central", "variance", "random", "none"])
def test_prediction_is_guided_the_same_way_every_time(rule):
    network = SuperRes(in_channels=1, classes=2, width=2, guidance=rule != "none")
    x = torch.rand((2, 1, 32, 64, 64), generator=torch.Generator().manual_seed(0))
    config = PfsegConfig(guidance=rule, crops=2 if rule in ("variance", "random") else 1)
    one, two = corners_of(x, network, config), corners_of(x, network, config)
    if rule in ("central", "none"):
        assert one is None and two is None
        return
    assert torch.equal(one, two) and one.shape == (2, 2, 3)
    places = torch.full((2, 2, 3), 0.5)
    drawn = corners_of(x, network, config, places)
    assert torch.equal(drawn, one) is (rule == "variance")


def test_images_are_scaled_from_zero_to_one_and_flat_ones_are_zero():
    x = torch.stack([torch.linspace(-3, 5, 8).reshape(1, 2, 2, 2), torch.full((1, 2, 2, 2), 7.0)])
    y = unit(x)
    assert y[0].min() == 0 and y[0].max() == 1
    assert (y[1] == 0).all()
