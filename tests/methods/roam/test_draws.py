"""What is drawn has the law it should have: layers, shares, partners, boxes."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.seeds import generator
from seguro.methods.roam.draws import draw_box, draw_lambda, draw_layer, draw_partners


def test_every_layer_of_the_set_is_drawn_a_third_of_the_time():
    rng = generator(0, "layer")
    counts = np.bincount([draw_layer(rng, 3, None) for _ in range(10_000)], minlength=3)
    assert (np.abs(counts / 10_000 - 1 / 3) < 0.015).all()  # three standard deviations; the last one too


def test_weights_of_layers_are_their_shares():
    rng = generator(0, "layer")
    counts = np.bincount([draw_layer(rng, 3, (2, 0, 6)) for _ in range(10_000)], minlength=3)
    assert counts[1] == 0 and abs(counts[0] / 10_000 - 0.25) < 0.015


@pytest.mark.parametrize(("alpha", "mean"), [(0.75, 0.778), (1.0, 0.75)])
def test_the_own_share_is_the_larger_side(alpha, mean):
    rng = generator(0, "lambda")
    drawn = np.array([draw_lambda(rng, alpha) for _ in range(50_000)])
    assert drawn.min() >= 0.5 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_partners_are_a_permutation_and_of_kind_other_never_oneself(n):
    rng = generator(0, "partner")
    own = {"any": 0, "other": 0}
    for _ in range(200):
        for kind in own:
            found = draw_partners(rng, n, kind)
            assert sorted(found) == list(range(n))
            own[kind] += int((found == np.arange(n)).sum())
    assert own["any"] > 0 and (own["other"] == 0 or n == 1)


@pytest.mark.parametrize(("size", "lam"), [((40, 40), 0.75), ((20, 30, 40), 0.5), ((8, 8), 1.0)])
def test_a_box_takes_the_partners_share_of_the_volume(size, lam):
    for key in range(5):
        mask = draw_box(generator(key), size, lam)
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert 1 - mask.mean() == pytest.approx(1 - lam, abs=0.03)  # sides are whole voxels
        holes = np.argwhere(mask == 0)
        if len(holes):
            low, high = holes.min(0), holes.max(0) + 1
            assert np.prod(high - low) == len(holes)  # one box
