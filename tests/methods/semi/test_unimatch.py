"""UniMatch: what counts, what is cut, what is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from seguro.core.errors import ConfigError
from seguro.core.types import IGNORE
from seguro.losses import soft_dice
from seguro.methods.semi.unimatch import SMOOTH, dropped_at
from seguro.networks.mixing import MixPoints


def test_below_the_threshold_nothing_unlabelled_is_learned(toy, batch):
    data = batch(4)
    one, two = (toy("unimatch", confidence=0.9999) for _ in range(2))
    other = replace(data, image=data.image.clone(), views=data.views * 2)
    other.image[1::2] += 1
    out = one.method.update(data, one.run)
    two.method.update(other, two.run)
    assert out["sure"] == 0 and out["strong"] == 1 and out["feature"] == 1  # without gradient
    assert torch.equal(one.weights, two.weights)
    three = toy("unimatch", confidence=0.0)
    assert three.method.update(data, three.run)["strong"] < 1
    assert not torch.equal(three.weights, one.weights)


@pytest.mark.parametrize("kind", ["dice", "cross_entropy", "same"])
def test_unsure_voxels_take_no_part_in_the_loss(toy, kind):
    method = toy("unimatch", unlabelled_loss=kind).method
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1)).byte()
    label[:, :3] = IGNORE
    method.fit_told(logits, label).backward()
    assert not logits.grad[:, :, :3].any() and logits.grad[:, :, 3:].any()


def test_the_loss_is_weighed_as_published(toy, batch):
    made, data = toy("unimatch", confidence=0.0, cutmix=0.0, drop=0.0), batch(4)
    network, classes, ones = made.method.modules["network"], made.method.plan.classes, torch.ones(2, 2)
    told = network(data.image)[1::2].argmax(1).byte()
    strong = [soft_dice(network(data.views[1::2, v]), told, ones, classes, smooth=SMOOTH) for v in range(2)]
    feature = soft_dice(network(data.image[1::2]), told, ones, classes, smooth=SMOOTH)  # nothing dropped
    out = made.method.update(data, made.run)
    torch.testing.assert_close(out["feature"], feature.detach())
    torch.testing.assert_close(out["strong"], (strong[0] + strong[1]).detach() / 2)
    wanted = (out["supervised"] + 0.25 * strong[0] + 0.25 * strong[1] + 0.5 * feature) / 2
    torch.testing.assert_close(out["loss"], wanted.detach())


def test_boxes_come_from_the_partner_of_the_group_in_image_and_label_alike(toy):
    made = toy("unimatch", cutmix=1.0, batch=8)
    rows = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 12, 12).clone()
    slots = [1, 3, 5, 7]
    mask = made.method.boxes(rows, slots, 0, made.run)
    image, label = made.method.cut(rows, mask), made.method.cut(rows[:, 0].byte(), mask)
    assert torch.equal(image[:, 0].byte(), label)
    for row, partner in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert set(label[row].unique().tolist()) == {row, partner}
        assert (label[row] == partner).float().mean() <= 0.4
    assert not torch.equal(mask, made.method.boxes(rows, slots, 1, made.run))  # each view has its own box


def test_whole_channels_of_what_the_encoder_hands_over_are_dropped(toy):
    made = toy("unimatch", drop=0.5)
    method = made.method
    assert method.dropped == {"skip0", "enc1"}
    hook = method.dropping(1, [1, 3], made.run)
    x = torch.ones(3, 64, 4, 4)
    assert torch.equal(hook("enc0", x), x) and torch.equal(hook("dec0", x), x)
    first, found = hook("skip0", x).tensor_split([1])
    assert torch.equal(first, x[:1])
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    assert not torch.equal(found[0], found[1]) and 0.3 < (found == 0).float().mean() < 0.7
    assert torch.equal(found, method.dropping(0, [1, 3], made.run)("skip0", x[1:]))
    assert torch.equal(found[1:], method.dropping(0, [3], made.run)("skip0", x[2:]))  # by slot, not by rank


def test_where_to_drop_can_be_said_and_must_be_where_skips_have_no_names():
    points = MixPoints(("input", "one", "two", "last"), ("one", "two"), None)
    with pytest.raises(ConfigError, match="drop_at"):
        dropped_at(points, ())
    assert dropped_at(points, (1, "two")) == {"one", "two"}


def test_boxes_without_a_partner_are_refused(toy):
    with pytest.raises(ValidationError, match="cutmix to 0"):
        toy("unimatch", group=2)


def test_pseudo_labels_carry_no_gradient(toy, batch):
    """The weak view of unlabelled patches is judged; only its dropped features would train."""
    made, data = toy("unimatch", confidence=0.0, feature_weight=0.0), batch(4)
    image = data.image.clone().requires_grad_()
    made.method.update(replace(data, image=image), made.run)
    assert not image.grad[1::2].any() and image.grad[::2].any()


def test_a_class_that_is_nowhere_sure_is_not_unlearned(toy):
    method = toy("unimatch").method
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.zeros(2, 6, 6, dtype=torch.uint8)
    method.fit_told(logits, label).backward()
    assert not logits.grad.any()
