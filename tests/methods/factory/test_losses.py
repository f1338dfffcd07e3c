"""The four losses against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from seguro.methods.factory import losses


def gradient(y, x):
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def test_without_any_opinion_the_game_costs_log_two():
    zero = torch.zeros(5)
    assert float(losses.tell_apart(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(losses.deceive(zero)) == pytest.approx(math.log(2))


def test_the_game_is_non_saturating():
    scores = torch.full((1,), -8.0, requires_grad=True)  # the discriminator is sure that it is made
    (slope,) = torch.autograd.grad(losses.deceive(scores), scores)
    assert float(slope) == pytest.approx(-1, abs=1e-3)


def test_the_angle_is_that_between_the_rows():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    assert float(losses.angle(a, b)) == pytest.approx((math.pi**2 / 4 + math.pi**2 / 16) / 2, rel=1e-4)
    x = a.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(losses.angle(x, a), x)
    assert slope.isfinite().all()


def test_r1_of_a_linear_discriminator_is_half_its_squared_weights():
    weight = torch.randn(1, 4, 4, requires_grad=True)
    x = torch.randn(3, 1, 4, 4, requires_grad=True)
    penalty = losses.r1((x * weight).sum((1, 2, 3)), x, gradient)
    assert float(penalty) == pytest.approx(float(weight.square().sum()) / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert torch.allclose(slope, weight)


def test_path_length_of_a_linear_generator():
    """The image repeats a scaled code of one layer: J^T n is the scale times n, over the image's size."""
    codes = torch.randn(3, 1, 16, requires_grad=True)
    images = 5 * codes.view(3, 1, 4, 4)
    noise = torch.randn(3, 1, 4, 4)
    found = losses.path_lengths(images, codes, noise, gradient)
    expected = 5 * noise.flatten(1).norm(dim=1) / 4
    assert torch.allclose(found, expected, rtol=1e-5)
    assert float(losses.path_penalty(found, found.mean())) == pytest.approx(
        float(expected.var(unbiased=False)), rel=1e-4
    )


def test_the_mean_path_length_follows():
    assert float(losses.followed(torch.tensor(2.0), torch.tensor([4.0, 8.0]), 0.25)) == 3.0
