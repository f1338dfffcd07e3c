"""Balls and boxes: units, refusals, and that a projection lands inside."""

from __future__ import annotations

import pytest
import torch

from seguro.attacks.threat import Epsilon, Threat, parse_epsilon, parse_epsilons, range_box, threat_of
from seguro.core.errors import ConfigError, RunError
from seguro.data.plan import Intensity


class Channels:
    """As much of a plan as a threat asks for."""

    def __init__(self, *channels: Intensity) -> None:
        self.channels = channels


CT = Intensity(name="CT", scheme="ct", low=-100, high=300, mean=50, sd=40)
MR = Intensity(name="T1", scheme="zscore")


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("8/255", 8 / 255, "range"),
        ("3%", 0.03, "range"),
        ("0.5range", 0.5, "range"),
        ("20HU", 20, "hu"),
        ("0.1sd", 0.1, "sd"),
    ],
)
def test_an_epsilon_is_read_with_its_unit(text, value, unit):
    assert parse_epsilon(text) == Epsilon(pytest.approx(value), unit)
    assert parse_epsilon(str(parse_epsilon(text))).value == pytest.approx(value)


@pytest.mark.parametrize("text", ["0.03", "8", "-8/255", "8/256", "300/255", "", "nan/255", "HU"])
def test_an_epsilon_without_a_unit_or_a_sensible_number_is_refused(text):
    with pytest.raises(ConfigError, match=r"unit|range"):
        parse_epsilon(text)


def test_whole_numbers_in_a_list_are_255ths_and_zero_is_always_there():
    assert [e.number for e in parse_epsilons("16,5,8")] == [0, 5, 8, 16]
    assert [str(e) for e in parse_epsilons("10HU,0")] == ["0HU", "10HU"]
    for bad, reason in (
        ("0.03,8", "unit"),
        ("8,20HU", "several units"),
        ("0", "nothing above zero"),
        ("", "nothing"),
    ):
        with pytest.raises(ConfigError, match=reason):
            parse_epsilons(bad)


def test_hounsfield_units_become_units_of_the_scaled_image_and_are_refused_elsewhere():
    x = torch.linspace(-3.75, 6.25, 50).reshape(1, 1, 50)
    threat = threat_of(x, parse_epsilon("20HU"), Channels(CT), box="window")
    assert threat.eps.item() == pytest.approx(0.5)
    assert (threat.low.item(), threat.high.item()) == pytest.approx((-3.75, 6.25))
    with pytest.raises(ConfigError, match="Hounsfield"):
        threat_of(x, parse_epsilon("20HU"), Channels(MR))
    with pytest.raises(ConfigError, match="--box own"):
        threat_of(x, parse_epsilon("3%"), Channels(MR), box="window")


def test_each_sample_and_channel_has_its_own_epsilon():
    x = torch.stack([torch.arange(20.0).reshape(2, 10) * s for s in (1.0, 5.0)])
    x[:, 1] *= 100
    threat = threat_of(x, Epsilon(0.1, "range"), Channels(MR, MR))
    assert torch.allclose(threat.eps, torch.tensor([[0.9, 90.0], [4.5, 450.0]]))


def test_a_projection_lies_in_ball_and_box_and_moves_nothing_that_is_inside():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 6, 5, generator=generator)
    low, high = range_box(x)
    threat = Threat((high - low) * 0.1, low, high)
    wild = x + 3 * torch.randn(x.shape, generator=generator)
    inside = threat.project(wild, x)
    threat.verify(inside, x)
    assert torch.equal(threat.project(inside, x), inside)
    with pytest.raises(RunError, match="ball or box"):
        threat.verify(wild, x)
    with pytest.raises(RunError):
        threat.verify(torch.full_like(x, torch.nan), x)


def test_images_far_from_zero_may_be_rounded_and_no_more():
    x = 1e5 + torch.rand(1, 1, 30, generator=torch.Generator().manual_seed(0))
    low, high = range_box(x)
    threat = Threat((high - low) * 0.1, low, high)
    threat.verify(threat.project(x + 1, x), x)
    with pytest.raises(RunError, match="ball or box"):
        threat.verify(threat.project(x + 1, x - 0.2), x)


def test_images_outside_the_box_are_refused_by_sample_and_channel():
    x = torch.zeros(2, 2, 4)
    x[1, 0, 2] = 1.5
    threat = Threat(torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="sample 1, channel 0"):
        threat.check(x)
    with pytest.raises(ConfigError, match="shape"):
        Threat(torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2, 1)).check(x)
    with pytest.raises(ConfigError, match="zero or more"):
        Threat(-torch.ones(2, 2), -torch.ones(2, 2), 2 * torch.ones(2, 2)).check(x)
