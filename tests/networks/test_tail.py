"""The tail by planes equals the tail at once, whatever the blocks, and holds less."""

from __future__ import annotations

import pytest
import torch

from seguro.networks.cost import flops
from seguro.networks.superres import Tail
from seguro.networks.tail import Moments, by_planes, tail_bytes

ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


@pytest.mark.parametrize("depth", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "stages", [[(2, 2, 2)], [(1, 2, 2)], [(2, 2, 2), (2, 2, 2)], [(1, 2, 2), (2, 2, 2)]], ids=str
)
@torch.inference_mode()
def test_equal_to_the_tail_at_once(stages, depth):
    tail = Tail(6, 4, 3, stages)
    x = torch.randn(2, 6, 5, 4, 3) * 3 + 1
    whole = tail(x)
    parts = list(by_planes(tail, x, depth=depth))
    assert all(p.shape[2] <= depth for p in parts)
    joined = torch.cat(parts, dim=2)
    assert joined.shape == whole.shape
    assert torch.allclose(joined, whole, rtol=0, atol=ROUNDING)


@torch.inference_mode()
def test_a_plane_more_or_less_is_seen(monkeypatch):
    """The blocks' borders matter: without the neighbors' planes the result is another."""
    from seguro.networks import tail as module

    tail = Tail(6, 4, 3, [(2, 2, 2)])
    x = torch.randn(1, 6, 5, 4, 3)
    right = torch.cat(list(by_planes(tail, x, depth=4)), dim=2)
    plain = module._convolved
    monkeypatch.setattr(
        module,
        "_convolved",
        lambda conv, x, *, before, behind: torch.nn.functional.pad(
            plain(conv, x[:, :, 0 if before else 1 : None if behind else -1], before=True, behind=True),
            (0, 0),
        ),
    )
    wrong = torch.cat(list(by_planes(tail, x, depth=4)), dim=2)
    assert float((wrong - right).abs().max()) > 100 * ROUNDING


@pytest.mark.parametrize(("depth", "ratio"), [(8, 1.558), (16, 1.420), (1000, 1.295)])
def test_what_blocks_compute_again(depth, ratio):
    """At the published widths, of 160 planes; even in one block the enlarged map is made twice."""
    tail = Tail(32, 16, 5, [(2, 2, 2)]).to("meta")
    x = torch.empty(1, 32, 80, 16, 16, device="meta")
    with torch.no_grad():
        once, parts = flops(lambda: tail(x)), flops(lambda: list(by_planes(tail, x, depth=depth)))
    assert parts / once == pytest.approx(ratio, abs=1e-3)


def test_moments_of_parts_are_those_of_the_whole():
    x = torch.randn(2, 3, 7, 4, 5) * 5 + 1000  # a mean far above the deviation
    moments = Moments()
    for part in x.split([1, 4, 2], dim=2):
        moments.add(part)
    wanted = torch.nn.functional.instance_norm(x.double()).float()
    assert torch.allclose(moments.normalize(x), wanted, atol=1e-3)  # float32 at 1000
    assert torch.allclose(moments.mean, x.double().mean((2, 3, 4)))


def test_the_bytes_held_at_once():
    tail = Tail(32, 16, 1, [(2, 2, 2)])
    features = torch.empty(1, 32, 64, 96, 96, device="meta")
    assert tail_bytes(tail, features) == 128 * 192 * 192 * 4 * (32 + 3 * 16)
