"""The losses: zero where nothing is wrong, blind where they should be, and their sizes by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seguro.core.types import IGNORE, Classes
from seguro.losses import cross_entropy
from seguro.methods.pfseg import objective
from seguro.methods.pfseg.config import PRESETS, PfsegConfig
from seguro.methods.pfseg.guidance import inside

SHAPE = (8, 16, 16)
ORGANS = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
ONE = torch.ones(2, 1)


@pytest.fixture
def perfect():
    """Blocks of cells that are all target or all background: p, s, y, x of two samples."""
    y = torch.zeros(2, 1, *SHAPE)
    y[0, :, :4, 4:12, :8] = 1
    y[1, :, 4:, :8, 8:] = 1
    x = torch.rand((2, 1, *SHAPE), generator=torch.Generator().manual_seed(0))
    return y.clone(), x.clone(), y, x


def noisy(t: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return (t + 0.3 * torch.rand(t.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def test_a_perfect_output_costs_nothing_and_half_by_the_released_dice(perfect):
    p, s, y, x = perfect
    assert objective.squared_dice(p, y, ONE).item() == pytest.approx(0, abs=1e-6)
    assert objective.squared_dice(p, y, ONE, factor=1.0).item() == pytest.approx(0.5, abs=1e-2)
    assert objective.restoration(s, x).item() == 0
    assert objective.target_enhanced(p, s, y, x, ONE).item() == 0
    for norm in ("mean", "paper"):
        assert objective.spatial_similarity(p, s, y, x, ONE, pool=4, norm=norm).item() == 0


def test_the_published_similarity_of_a_perfect_output_is_not_zero_where_cells_are_mixed(perfect):
    """It multiplies means of cells, where the truth has the mean of products; ours has it on both sides."""
    p, s, y, x = (t.roll((1, 2, 1), (2, 3, 4)) for t in perfect)
    mean, paper = (
        objective.spatial_similarity(p, s, y, x, ONE, pool=4, norm=n).item() for n in ("mean", "paper")
    )
    assert mean == 0 and paper > 1e-3
    a, b = (F.avg_pool3d(y, 4) * F.avg_pool3d(x, 4)).flatten(1), F.avg_pool3d(y * x, 4).flatten(1)
    by_hand = [float((torch.outer(u, u) - torch.outer(v, v)).abs().sum()) for u, v in zip(a, b, strict=True)]
    assert paper == pytest.approx(np.mean(by_hand) / (4 * 4) ** 2, rel=1e-4)


@pytest.mark.parametrize("regions", [False, True], ids=["exclusive", "regions"])
def test_the_cross_entropy_of_a_perfect_output_falls_to_zero(perfect, regions):
    """A class, or the published binary task: as the logits grow, so that nothing but their sign counts."""
    _, _, y, _ = perfect
    one = Classes(names=("a",), values=((1,),), regions=True, paint=(1,))
    classes = one if regions else Classes(names=("background", "a"), values=((0,), (1,)))
    sign = 2 * y - 1
    found = [
        cross_entropy(k * (sign if regions else torch.cat([-sign, sign], 1)), y[:, 0].byte(), ONE, classes)
        for k in (0, 2, 4, 40)
    ]
    assert all(a > b for a, b in pairwise(found))
    assert found[0].item() == pytest.approx(np.log(2)) and found[-1].item() == pytest.approx(0, abs=1e-6)


def test_the_released_dice_of_many_voxels_is_one_half():
    y = torch.ones(1, 1, 20, 20, 20)
    assert objective.squared_dice(y, y, ONE[:1], factor=1.0).item() == pytest.approx(0.5, abs=1e-3)


def test_squared_dice_by_hand_and_an_absent_class():
    p, y = torch.full((1, 1, 2, 2, 2), 0.5), torch.zeros(1, 1, 2, 2, 2)
    y[..., 0] = 1
    assert objective.squared_dice(p, y, ONE[:1]).item() == pytest.approx(1 - (2 * 2 + 1) / (2 + 4 + 1))
    zero = torch.zeros_like(y)
    assert objective.squared_dice(zero, zero, ONE[:1]).item() == 0  # not NaN


def test_the_guided_loss_sees_the_crop_only_and_counts_over_the_whole_volume(perfect):
    _, s, _, x = perfect
    mask = inside(torch.tensor([[[2, 4, 4]], [[0, 0, 0]]]), (4, 4, 8), SHAPE)
    assert mask.sum(dim=(1, 2, 3, 4)).tolist() == [128, 128]
    outside = s + (1 - mask)
    assert objective.restoration(outside, x, mask).item() == 0
    assert objective.restoration(s + mask, x, mask).item() == pytest.approx(128 / np.prod(SHAPE))


def test_the_target_enhanced_loss_ignores_the_image_where_there_is_no_target(perfect):
    p, s, y, x = perfect
    before = objective.target_enhanced(0.6 * p, s, y, x, ONE)
    after = objective.target_enhanced(0.6 * p, s + 0.5 * (1 - y), y, x, ONE)
    assert before.item() == after.item() > 0
    assert objective.target_enhanced(0.6 * p, s + 0.5 * y, y, x, ONE).item() != before.item()


def test_the_published_similarity_is_a_sum_over_the_squared_cells_of_a_slice(perfect):
    p, s, y, x = (t.double() for t in perfect)
    p, s = noisy(p).double(), noisy(s, 2).double()
    found = objective.spatial_similarity(p, s, y, x, ONE, pool=4, norm="paper").item()
    a = (F.avg_pool3d(p, 4) * F.avg_pool3d(s, 4)).flatten(1)
    b = F.avg_pool3d(y * x, 4).flatten(1)
    by_hand = [
        sum(abs(float(u[i] * u[j] - v[i] * v[j])) for i in range(len(u)) for j in range(len(u)))
        for u, v in zip(a, b, strict=True)
    ]
    assert found == pytest.approx(np.mean(by_hand) / (4 * 4) ** 2, rel=1e-6)


def test_the_mean_similarity_does_not_depend_on_the_size_the_published_does(perfect):
    p, s, y, x = perfect
    p, s = noisy(p), noisy(s, 2)
    once, twice = (
        {
            norm: objective.spatial_similarity(
                *(t.repeat(1, 1, *repeat) for t in (p, s, y, x)), ONE, pool=4, norm=norm
            ).item()
            for norm in ("mean", "paper")
        }
        for repeat in ((1, 1, 1), (2, 2, 2))
    )
    assert twice["mean"] == pytest.approx(once["mean"], rel=0.05)
    assert twice["paper"] == pytest.approx(4 * once["paper"], rel=0.05)  # the squared number of slices


def test_cells_of_the_published_volume_and_of_a_short_axis():
    assert objective.pooled(torch.zeros(1, 128, 192, 192), 10).shape == (1, 12, 19, 19)
    assert objective.pooled(torch.zeros(1, 6, 40, 40), 10).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("name", ["squared_dice", "target_enhanced", "spatial_similarity"])
def test_a_class_that_nobody_looked_for_costs_nothing(perfect, name):
    _, s, y, x = perfect
    y = y.repeat(1, 2, 1, 1, 1)
    p = noisy(y)
    known = torch.tensor([[1.0, 0.0], [1.0, 0.0]])

    def loss(p: torch.Tensor, known: torch.Tensor) -> float:
        if name == "squared_dice":
            return objective.squared_dice(p, y, known).item()
        more = {"pool": 4, "norm": "mean"} if name == "spatial_similarity" else {}
        return getattr(objective, name)(p, s, y, x, known, **more).item()

    wrong = p.clone()
    wrong[:, 1] = 1 - wrong[:, 1]
    assert loss(wrong, known) == loss(p, known) > 0
    assert loss(wrong, torch.ones(2, 2)) != loss(p, torch.ones(2, 2))
    assert loss(p, torch.zeros(2, 2)) == 0


def test_ignored_voxels_are_neither_prediction_nor_target():
    label = torch.tensor([0, 1, 2, IGNORE], dtype=torch.uint8).reshape(1, 1, 2, 2)
    logits = torch.zeros(1, 3, 1, 2, 2)
    p, y, known = objective.foreground(logits, label, torch.tensor([[1.0, 0.0]]), ORGANS)
    torch.testing.assert_close(p.flatten(2)[0, :, :3], torch.full((2, 3), 1 / 3))
    assert p.flatten(2)[0, :, 3].tolist() == [0, 0]
    assert y.flatten(2)[0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert known.tolist() == [[1, 0]]


def test_labels_of_several_tumor_parts_are_one_region():
    """As in BraTS: 1, 2 and 4 are the whole tumor; a case without is zeros, not NaN."""
    whole = Classes(names=("whole",), values=((1, 2, 4),), regions=True, paint=(1,))
    label = torch.tensor([0, 1, 2, 4], dtype=torch.uint8).reshape(1, 1, 2, 2)
    _, y, _ = objective.foreground(torch.zeros(1, 1, 1, 2, 2), label, ONE[:1], whole)
    assert y.flatten().tolist() == [0, 1, 1, 1]
    p, y, known = objective.foreground(torch.zeros(1, 1, 1, 2, 2), 0 * label, ONE[:1], whole)
    assert y.sum() == 0 and torch.isfinite(objective.squared_dice(p, y, known))


@pytest.mark.parametrize(
    "config",
    [
        {"lowpass": True, "stem": "pixel-unshuffle", "residual": True},
        {"lowpass": True, "scale": (1, 2, 2)},
        {"guidance": "none"},
        {"tail_width": 8, "scale": "fitted"},
        *PRESETS.values(),
    ],
    ids=str,
)
def test_options_that_change_something_and_presets_are_taken(config):
    again = PfsegConfig(**config).model_dump()
    assert PfsegConfig(**again).model_dump() == again  # as a saved model has them


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"crops": 2}, "one central crop"),
        ({"guidance": "none", "crops": 2}, "guidance none"),
        ({"guidance": "none", "inject": "scatter"}, "guidance none"),
        ({"guidance": "none", "guided_weight": 0.7}, "leave guided_weight out"),
        ({"lowpass": True, "stem": "pixel-unshuffle"}, "leave lowpass out"),
        ({"lowpass": True, "scale": 1}, "leave lowpass out"),
        ({"tail_width": 8, "scale": (1, 1, 1)}, "leave tail_width out"),
        ({"width": 7}, "multiple of 2"),
        ({"similarity": "sum"}, "paper"),
        ({"shift": 0.5}, "less than 0.5"),
        ({"typo": 1}, "Extra inputs"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else None,
)
def test_options_that_do_not_fit_are_refused(config, problem):
    with pytest.raises(ValueError, match=problem):
        PfsegConfig(**config)
