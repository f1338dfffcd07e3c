"""Heights of slices in the support's scan: found by likeness, and what they say of presence."""

from __future__ import annotations

import pytest
import torch

from seguro.methods.alpnet.height import describe, farness, heights, presence


def scan(start: float, stop: float, n: int) -> torch.Tensor:
    """Descriptions of n slices between two heights of a body that changes smoothly and nowhere repeats."""
    z = torch.linspace(start, stop, n)[:, None]
    return torch.exp(-0.5 * ((z - torch.linspace(0, 1, 24)) / 0.06) ** 2)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.2, 1.0), (0.0, 0.75), (0.1, 0.9)])
def test_shift_and_stretch_of_the_field_of_view_are_found(start, stop):
    shot, query = scan(0, 1, 41), scan(start, stop, 25)
    found = heights(query, shot, "aligned")
    want = torch.linspace(start, stop, 25) * 40
    assert (found - want).abs().max() < 2.0
    plain = heights(query, shot, "fraction")
    assert (found - want).abs().mean() <= (plain - want).abs().mean() + 0.5


@pytest.mark.parametrize("prior", ["aligned", "fraction", "none"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (2, 2), (9, 9)])
def test_any_number_of_slices_has_heights_inside_the_scan(prior, n, m):
    found = heights(torch.rand(n, 5), torch.rand(m, 5), prior)
    assert found.shape == (n,) and found.min() >= 0 and found.max() <= m - 1
    assert (found.diff() >= 0).all()


def test_equal_shares_map_ends_to_ends():
    found = heights(torch.rand(11, 3), torch.rand(11, 3), "fraction")
    torch.testing.assert_close(found, torch.arange(11.0))


def test_descriptions_have_one_size_for_any_grid():
    assert describe(torch.rand(3, 5, 16, 16)).shape == describe(torch.rand(3, 5, 3, 2)).shape == (3, 80)


def flags(n: int, *on: int) -> torch.Tensor:
    out = torch.zeros(n, dtype=torch.bool)
    out[list(on)] = True
    return out


def test_presence_follows_the_slices_that_show_the_class_and_their_margin():
    shows, known = flags(10, 3, 4, 5), torch.ones(10, dtype=torch.bool)
    at = torch.tensor([0.0, 2.0, 2.5, 3.0, 5.5, 7.0])
    torch.testing.assert_close(presence(shows, known, at, 0), torch.tensor([0, 0, 0.5, 1, 0.5, 0]))
    torch.testing.assert_close(presence(shows, known, at, 1), torch.tensor([0, 1, 1, 1, 1, 0.0]))


def test_slices_nobody_annotated_say_nothing_of_their_own():
    at = torch.tensor([0.0, 4.0, 6.0, 9.0])
    alone = presence(flags(10, 4), flags(10, 4), at, 0)
    torch.testing.assert_close(alone, torch.ones(4))
    two = presence(flags(10, 4), flags(10, 4, 8), at, 0)
    torch.testing.assert_close(two, torch.tensor([1.0, 1.0, 0.5, 0.0]))


def test_farness_is_a_share_of_the_scan_and_the_whole_of_one_without_heights():
    at = torch.tensor([0.0, 2.5, 4.0, 9.0])
    torch.testing.assert_close(farness(at, torch.tensor([2, 4]), 10), torch.tensor([0.2, 0.05, 0.0, 0.5]))
    torch.testing.assert_close(farness(torch.zeros(3), torch.tensor([0]), 1), torch.ones(3))
