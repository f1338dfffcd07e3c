"""Mean Teacher: its loss, its ramp, and what the teacher is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch


def test_without_noise_student_and_first_teacher_agree(toy, batch):
    made, data = toy("mean-teacher"), batch(4)
    same = replace(data, views=data.image[:, None])
    out = made.method.update(same, made.run)
    assert out["consistency"] < 1e-12  # the average starts as a copy
    again = toy("mean-teacher")
    assert again.method.update(data, again.run)["consistency"] > 1e-6


def test_the_loss_is_the_labels_plus_the_ramped_mean_square(toy, batch):
    made, data = toy("mean-teacher", consistency_weight=3.0, ramp=0.5), batch(4)
    made.run.update = 25
    student = made.method.modules["network"](data.views[1::2, 0]).softmax(1)
    teacher = made.run.averaged["network"](data.image[1::2]).softmax(1)
    wanted = (student - teacher).square().mean()
    out = made.method.update(data, made.run)
    torch.testing.assert_close(out["consistency"], wanted.detach())
    assert out["weight"] == pytest.approx(3 * math.exp(-1.25))
    torch.testing.assert_close(out["loss"], out["supervised"] + out["weight"] * wanted.detach())


def test_labelled_patches_are_learned_in_the_weak_view(toy, batch):
    made, other, data = toy("mean-teacher"), toy("mean-teacher"), batch(4)
    views = data.views.clone()
    views[::2] = torch.nan
    made.method.update(data, made.run)
    other.method.update(replace(data, views=views), other.run)
    assert torch.equal(made.weights, other.weights)


def test_the_teacher_is_the_moving_average_and_is_never_trained(toy, batch):
    made, data = toy("mean-teacher", average=0.9), batch(4)
    teacher = made.run.averaged["network"].head.weight
    before, start = teacher.clone(), made.method.modules["network"].head.weight.detach().clone()
    assert torch.equal(before, start)
    made.method.update(data, made.run)
    after = made.method.modules["network"].head.weight.detach()
    assert not torch.equal(after, start)
    torch.testing.assert_close(teacher, 0.9 * before + 0.1 * after)
    assert teacher.grad is None and not teacher.requires_grad
    deployed = made.method.predictor(made.run.deployable())
    assert deployed.network is made.run.averaged["network"]


def test_no_weight_is_training_on_the_labels_alone(toy, batch):
    one, two, data = (
        toy("mean-teacher", consistency_weight=0),
        toy("mean-teacher", consistency_weight=0),
        batch(4),
    )
    image, views = data.image.clone(), data.views.clone()
    image[1::2], views[1::2] = 0, 5
    one.method.update(data, one.run)
    two.method.update(replace(data, image=image, views=views), two.run)
    assert torch.equal(one.weights, two.weights)
