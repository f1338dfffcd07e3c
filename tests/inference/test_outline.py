"""Whether a mask belongs to its image: closed forms of the edge ratio, and what is not judged."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.seeds import generator
from seguro.core.types import IGNORE, Classes, Grid
from seguro.data import phantom
from seguro.data.support import Bank, Shot
from seguro.inference.outline import LEAST, edge_ratios, outline_flags


def disk(radius: float = 9.0) -> np.ndarray:
    y, x = np.mgrid[:48, :56] - np.array([24, 28])[:, None, None]
    return np.repeat((y**2 + x**2 <= radius**2)[None], 4, axis=0)


def image_of(mask, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (mask + rng.normal(0, noise, mask.shape))[None].astype(np.float32)


def test_the_outline_of_what_is_seen_follows_edges_and_another_one_does_not():
    seen, other = disk(), np.roll(disk(5.0), 8, axis=2)
    label = seen.astype(np.uint8)
    own = edge_ratios(image_of(seen), label, 0)[1]
    assert own > 3
    assert edge_ratios(image_of(other), label, 0)[1] < LEAST
    noise = np.random.default_rng(1).normal(size=(1, *seen.shape)).astype(np.float32)
    assert edge_ratios(noise, label, 0)[1] == pytest.approx(1, abs=0.1)  # nothing is anywhere


def test_units_contrast_and_axis_do_not_matter():
    seen = disk()
    image, label = image_of(seen), seen.astype(np.uint8)
    own = edge_ratios(image, label, 0)[1]
    assert edge_ratios(image * -300 + 40, label, 0)[1] == pytest.approx(own, rel=1e-3)
    turned = np.ascontiguousarray(np.moveaxis(image, 1, 3)), np.ascontiguousarray(np.moveaxis(label, 0, 2))
    assert edge_ratios(*turned, 2)[1] == pytest.approx(own)


def test_little_and_unannotated_outlines_are_not_judged():
    label = np.zeros((4, 48, 56), np.uint8)
    assert edge_ratios(image_of(label), label, 0) == {}
    label[1, 20:23, 20:23] = 1
    assert edge_ratios(image_of(label), label, 0) == {}
    half = disk().astype(np.uint8)
    half[2:] = IGNORE
    wrong = image_of(disk())
    wrong[:, 2:] = np.random.default_rng(0).normal(size=wrong[:, 2:].shape)
    assert edge_ratios(wrong, half, 0)[1] > 3


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_the_phantom_fit_and_moved_ones_are_named(seed):
    image, label = phantom.volume(generator(seed, "outline"), (8, 48, 56), 3)
    classes = Classes(names=("background", "a", "b", "c"), values=((0,), (1,), (2,), (3,)))

    def flags(mask):
        shot = Shot(image, mask.astype(np.uint8), Grid(mask.shape, np.eye(4)))
        return outline_flags(Bank("", classes, (shot,), ()), 0)

    assert flags(label) == []
    found = flags(np.roll(label, (11, 13), (1, 2)))
    assert len(found) >= 2 and all("is it another scan's?" in line for line in found)
