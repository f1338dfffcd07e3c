"""BCP: what is pasted into what, and what each part weighs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from seguro.core.types import IGNORE
from seguro.losses import cross_entropy
from seguro.methods.semi.bcp import BCPConfig, pairs_of

LABELLED = torch.tensor([True, False] * 4)


def rows(pairs):
    return [(p.outside.tolist(), p.inside.tolist(), p.weights) for p in pairs]


def test_half_of_the_pairs_have_the_labelled_patch_inside_and_half_outside():
    found = rows(pairs_of(LABELLED, BCPConfig(), pretraining=False))
    assert found == [([1, 5], [0, 4], (0.5, 1.0)), ([2, 6], [3, 7], (1.0, 0.5))]
    wide = rows(pairs_of(LABELLED, BCPConfig(group=8), pretraining=False))
    assert wide == [([1, 3], [0, 2], (0.5, 1.0)), ([4, 6], [5, 7], (1.0, 0.5))]


def test_both_directions_of_every_pair():
    found = rows(
        pairs_of(LABELLED, BCPConfig(directions="both", group=2, pseudo_weight=0.25), pretraining=False)
    )
    every, other = [0, 2, 4, 6], [1, 3, 5, 7]
    assert found == [(other, every, (0.25, 1.0)), (every, other, (1.0, 0.25))]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({}, ([0, 4], [2, 6])), ({"directions": "both"}, ([0, 2, 4, 6], [2, 0, 6, 4]))],
)
def test_pretraining_pastes_the_labelled_into_each_other(config, wanted):
    assert rows(pairs_of(LABELLED, BCPConfig(**config), pretraining=True)) == [(*wanted, (1.0, 1.0))]


def test_a_group_without_halves_is_refused():
    with pytest.raises(ValidationError, match="directions to both"):
        BCPConfig(group=2)


def test_pretraining_looks_at_no_unlabelled_patch(toy, batch):
    one, two, data = toy("bcp"), toy("bcp"), batch(4)
    other = replace(data, image=data.image.clone())
    other.image[1::2] = torch.nan
    for made, seen in ((one, data), (two, other)):
        made.run.update = 24  # of 100, a quarter is pretraining
        made.method.update(seen, made.run)
    assert torch.equal(one.weights, two.weights) and torch.isfinite(one.weights).all()
    one.run.update = 25
    before = one.weights
    one.method.update(other, one.run)
    assert one.run.skipped == 1 and torch.equal(one.weights, before)


def test_the_network_sees_the_pasted_image_and_each_part_has_its_own_label(toy, batch):
    made = toy("bcp", dice_weight=0.0, cross_entropy_weight=1.0, components="all", pretrain=0.0)
    data, method = batch(4), made.method
    network, classes = method.modules["network"], method.plan.classes
    told = made.run.averaged["network"](data.image).argmax(1).byte()
    (mask,) = method.masks(data.image, made.run)
    assert mask.float().mean() == pytest.approx(4 / 9)  # 8 of 12 along both axes
    seen = []
    handle = network.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()))
    out = method.update(data, made.run)
    handle.remove()
    image, label, ones = data.image, data.label, torch.ones(1, 2)
    inward, outward = image[1].clone(), image[2].clone()
    inward[:, mask], outward[:, mask] = image[0][:, mask], image[3][:, mask]
    assert torch.equal(seen[0], inward[None]) and torch.equal(seen[1], outward[None])
    fresh = toy("bcp").method.modules["network"]
    wanted = 0.0
    for shown, parts in (
        (seen[0], ((told[1], ~mask, 0.5), (label[0], mask, 1.0))),
        (seen[1], ((label[2], ~mask, 1.0), (told[3], mask, 0.5))),
    ):
        for part, where, weight in parts:
            target = torch.where(where, part, torch.full_like(part, IGNORE))[None]
            wanted = wanted + weight * cross_entropy(fresh(shown), target, ones, classes)
    torch.testing.assert_close(out["loss"], wanted.detach())


def test_only_the_largest_piece_of_a_pseudo_label_is_told(toy, batch):
    made, all_of_it, data = toy("bcp"), toy("bcp", components="all"), batch(4)
    kept = made.method.pseudo_labels(data.image[1::2], made.run)
    told = all_of_it.method.pseudo_labels(data.image[1::2], all_of_it.run)
    assert (kept != told).any() and (kept[kept != told] == 0).all()


def test_the_teacher_labels_and_is_deployed(toy, batch):
    made, data = toy("bcp", pretrain=0.0), batch(4)
    before = made.method.pseudo_labels(data.image[1::2], made.run)
    with torch.no_grad():
        for parameter in made.method.modules["network"].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, made.method.pseudo_labels(data.image[1::2], made.run))
    assert made.method.predictor(made.run.deployable()).network is made.run.averaged["network"]
