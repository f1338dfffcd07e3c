"""Losses of an episode: weights, gradients, the alignment switch, empty guesses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seguro.methods.alpnet.objective import Objective, _cross_entropy
from seguro.networks.prototype import Pooling

POOL = Pooling(2, 2)


def batch(seed: int = 0, n: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    support, query = (torch.randn(n, 6, 8, 8, generator=g).requires_grad_() for _ in range(2))
    masks = [(torch.rand(n, 32, 32, generator=g) > 0.7).to(torch.uint8) for _ in range(2)]
    return support, masks[0], query, masks[1]


def test_the_segmentation_loss_weighs_background_and_superpixel_as_published():
    found, mask = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)), batch(n=1)[1]
    logits = F.interpolate(found, (32, 32), mode="bilinear", align_corners=False)
    nll = -logits.log_softmax(1)
    inside = mask[0] == 1
    want = (0.05 * nll[0, 0][~inside].sum() + nll[0, 1][inside].sum()) / (
        0.05 * (~inside).sum() + inside.sum()
    )
    torch.testing.assert_close(_cross_entropy(found, mask, torch.tensor([0.05, 1.0])), want)
    plain = F.cross_entropy(logits, mask.long())
    torch.testing.assert_close(_cross_entropy(found, mask, torch.ones(2)), plain)


def test_both_losses_reach_the_encoder_and_alignment_can_be_left_out():
    for name in ("segmentation", "alignment"):
        support, support_mask, query, query_mask = batch()
        losses = Objective(POOL)(support, support_mask, query, query_mask)
        losses[name].backward()
        assert support.grad.abs().sum() > 0 and query.grad.abs().sum() > 0
    plain = Objective(POOL, align=0.0)(*batch())
    assert list(plain) == ["segmentation"]
    half = Objective(POOL, align=0.5)(*batch())
    torch.testing.assert_close(half["alignment"], 0.5 * losses["alignment"])
    torch.testing.assert_close(plain["segmentation"], losses["segmentation"])


def test_the_segmentation_loss_alone_uses_the_background_weight():
    one, two = (Objective(POOL, background_weight=w)(*batch()) for w in (0.05, 1.0))
    assert not torch.isclose(one["segmentation"], two["segmentation"])
    torch.testing.assert_close(one["alignment"], two["alignment"])


def test_alignment_swaps_the_roles():
    """The query's own mask counts in the segmentation loss alone: alignment starts from what was guessed."""
    support, support_mask, query, query_mask = batch()
    one = Objective(POOL)(support, support_mask, query, query_mask)
    two = Objective(POOL)(support, support_mask, query, 1 - query_mask)
    torch.testing.assert_close(one["alignment"], two["alignment"])
    assert not torch.isclose(one["segmentation"], two["segmentation"])


def test_an_empty_guess_costs_something_and_is_not_skipped():
    support, support_mask, _, query_mask = batch()
    opposite = (-support).detach().requires_grad_()  # nothing of the query looks like the superpixel
    support_mask.zero_()
    support_mask[:, 4:8, 4:8] = 1
    losses = Objective(POOL)(support, support_mask, opposite, query_mask)
    assert all(v.isfinite() for v in losses.values()) and losses["alignment"] > 0
    sum(losses.values()).backward()
    assert support.grad.isfinite().all() and opposite.grad.isfinite().all()


@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_is_the_mean_of_its_episodes(n):
    together = Objective(POOL)(*batch(n=n))
    parts = [Objective(POOL)(*(t[i : i + 1] for t in batch(n=n))) for i in range(n)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([p[name] for p in parts]).mean())
