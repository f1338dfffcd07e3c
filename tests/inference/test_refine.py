"""Refined blocks: where they lie, what they change, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seguro.core.errors import ConfigError
from seguro.inference.refine import Refined, entropy, most_uncertain, refined
from seguro.methods.contract import Whole, Windows


def test_entropy_in_bits():
    p = torch.tensor([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]).reshape(2, 3, 1, 1)
    assert entropy(p, regions=False).flatten().tolist() == pytest.approx([1.0, 0.0, 0.8112781])
    assert entropy(p, regions=True).flatten().tolist() == pytest.approx([1.0, 0.0, 0.8112781])


def test_the_most_doubtful_blocks_come_first_and_do_not_repeat():
    doubt = torch.zeros(20, 20, 20)
    doubt[2:6, 2:6, 2:6] = 0.5
    doubt[14:18, 14:18, 14:18] = 1.0
    corners = most_uncertain(doubt, (6, 6, 6), 5)
    covered = torch.zeros_like(doubt)
    for z, y, x in corners:
        covered[z : z + 6, y : y + 6, x : x + 6] = 1
        assert max(z, y, x) + 6 <= 20
    assert len(corners) == len(set(corners)) <= 5
    z, y, x = corners[0]
    sums = [doubt[a : a + 6, b : b + 6, c : c + 6].sum() for a, b, c in corners]
    assert sums[0] == max(sums) and min(z, y, x) >= 12
    assert float((doubt * covered).sum()) > 0.7 * float(doubt.sum())


def test_where_nothing_is_doubtful_nothing_is_chosen():
    assert most_uncertain(torch.zeros(9, 9, 9), (4, 4, 4), 3) == []
    assert most_uncertain(torch.ones(3, 9, 9), (4, 20, 4), 1) == [(0, 0, 0)]  # blocks are cut to the volume


@pytest.fixture
def pair(fake):
    """A coarse predictor that doubts one corner, and a fine one that says class one everywhere."""

    def coarse(x):
        out = torch.zeros(len(x), 3, *x.shape[2:]) + torch.tensor([20.0, 0.0, 0.0]).reshape(1, 3, 1, 1, 1)
        out[:, :, :5, :5, :5] = 0.1 * x[:, :, :5, :5, :5]
        return out

    def fine(x):
        return torch.tensor([0.0, 9.0, 0.0]).reshape(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:]) + 0 * x

    return fake(Whole((1, 1, 1)), coarse), fake(Windows((5, 5, 5)), fine)


def test_only_the_doubtful_block_changes(pair):
    coarse, fine = pair
    x = torch.zeros(1, 1, 12, 12, 12)
    before, after = coarse(x), Refined(coarse, fine, blocks=1)(x)
    assert fine.seen == [(1, 1, 5, 5, 5)]
    assert after[0, :, 2, 2, 2].tolist() == [0.0, 9.0, 0.0]  # the middle of the block is the fine one's
    far = torch.ones(12, 12, 12, dtype=torch.bool)
    far[:5, :5, :5] = False
    assert torch.equal(after[0][:, far], before[0][:, far])
    assert float(after[0, 1, 4, 2, 2]) == pytest.approx(9 * 0.5 / 1.25)  # half a voxel from the face


def test_gradients_reach_the_image_through_both(pair):
    coarse, fine = pair
    plain = fine.answer
    fine.answer = lambda x: plain(x) + 2 * x
    x = torch.zeros(1, 1, 12, 12, 12, requires_grad=True)
    Refined(coarse, fine, blocks=1)(x)[0, 1, 2, 2, 2].backward()
    assert float(x.grad[0, 0, 2, 2, 2]) == pytest.approx(2.0)


def test_a_volume_smaller_than_a_block(pair):
    coarse, fine = pair
    after = Refined(coarse, fine, blocks=3)(torch.zeros(1, 1, 3, 12, 4))
    assert after.shape == (1, 3, 3, 12, 4)
    assert fine.seen[0] == (1, 1, 5, 5, 5)
    assert float(after[0, 1, 1, 2, 2]) > 8


def test_models_that_do_not_go_together(pair):
    coarse, fine = pair
    with pytest.raises(ConfigError, match="works in windows"):
        Refined(coarse, coarse, blocks=1)

    def model(predictor, planned):
        return SimpleNamespace(
            predictor=predictor, folder="m", sha256="s", plan=SimpleNamespace(preprocessing_hash=planned)
        )

    with pytest.raises(ConfigError, match="whole volumes"):
        refined(model(fine, "a"), model(fine, "a"), blocks=1)
    with pytest.raises(ConfigError, match="planned differently"):
        refined(model(coarse, "a"), model(fine, "b"), blocks=1)
    with pytest.raises(ConfigError, match="0 blocks"):
        refined(model(coarse, "a"), model(fine, "a"), blocks=0)
