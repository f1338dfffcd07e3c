"""ALP prototypes against a double-precision reference, their gates and fallbacks, shots and classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seguro.core.seeds import generator
from seguro.networks.prototype import COVERED, Bank, Pooling, prototypes, scores

FLOAT32 = 1e-5
"""Of scores up to 20, sums of some hundred terms."""
POOL = Pooling(window=4, gate=4)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "features").normal(size=shape)).float()


def masks(*boxes: tuple[slice, slice], size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """(1, 1 + boxes, h, w): the background, and one class per box."""
    out = torch.zeros(1, 1 + len(boxes), *size)
    for i, (rows, columns) in enumerate(boxes, start=1):
        out[0, i, rows, columns] = 1
    out[:, 0] = 1 - out[:, 1:].sum(1)
    return out


def own(bank: Bank, n: int = 1) -> list[torch.Tensor]:
    """Every query slice is compared with every slice of the bank."""
    return [torch.arange(len(v)).expand(n, -1) for v in bank.valid]


def reference(query: np.ndarray, shown: np.ndarray, mask: np.ndarray, window: int, gate: int) -> np.ndarray:
    """One slice, one support slice, in double precision and loops: (n, h, w)."""
    query, shown, mask = (a.astype(np.float64) for a in (query, shown, mask))
    h, w = shown.shape[1:]
    out = np.zeros((len(mask), h, w))
    for c, m in enumerate(mask):
        found = []

        def pooled(a: np.ndarray, side: int) -> list[np.ndarray]:
            blocks = [(i, j) for i in range(0, h, side) for j in range(0, w, side)]
            return [a[..., i : i + side, j : j + side].mean((-1, -2)) for i, j in blocks]

        local = [f for f, k in zip(pooled(shown, window), pooled(m, window), strict=True) if k > COVERED]
        mean = (shown * m).sum((1, 2)) / (m.sum() + 1e-5)
        if c == 0:
            found = local or [mean]
        else:
            found = [mean] + (local if max(pooled(m, gate)) >= COVERED else [])
        p = np.stack([f / max(np.linalg.norm(f), 1e-4) for f in found])
        q = query / np.maximum(np.linalg.norm(query, axis=0), 1e-4)
        s = 20 * np.einsum("pd,dhw->phw", p, q)
        e = np.exp(s - s.max(0))
        out[c] = (e / e.sum(0) * s).sum(0)
    return out


@pytest.mark.parametrize(
    "box", [(slice(4, 12), slice(0, 8)), (slice(1, 4), slice(1, 4))], ids=["open", "shut"]
)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_scores_equal_the_double_precision_reference(box, window):
    shown, query, mask = features(1, 8, 16, 16), features(1, 8, 16, 16, seed=1), masks(box)
    bank = prototypes(shown, mask, Pooling(window, 4))
    found = scores(query, bank, own(bank))[0]
    want = reference(query[0].numpy(), shown[0].numpy(), mask[0].numpy(), window, 4)
    np.testing.assert_allclose(found.numpy(), want, atol=FLOAT32 * 20)


def test_two_constant_regions_give_closed_form_scores():
    shown = torch.zeros(1, 2, 16, 16)
    shown[:, 0], mask = 3.0, masks((slice(0, 8), slice(0, 8)))
    shown[0, :, :8, :8] = torch.tensor([0.0, 2.0])[:, None, None]
    bank = prototypes(shown, mask, POOL)
    found = scores(shown, bank, own(bank))[0]
    inside, outside = found[:, 2, 2], found[:, 12, 12]
    torch.testing.assert_close(inside, torch.tensor([0.0, 20.0]))
    torch.testing.assert_close(outside, torch.tensor([20.0, 0.0]))


def test_global_prototypes_alone_give_twenty_cosines():
    shown, query, mask = (
        features(1, 8, 16, 16),
        features(1, 8, 16, 16, seed=1),
        masks((slice(2, 9), slice(3, 7))),
    )
    bank = prototypes(shown, mask, Pooling(4, 4, "global", "global"))
    assert [int(v.sum()) for v in bank.valid] == [1, 1]
    mean = torch.einsum("dhw,nhw->nd", shown[0], mask[0])
    want = 20 * F.cosine_similarity(mean[:, :, None, None], query, dim=1)
    torch.testing.assert_close(scores(query, bank, own(bank))[0], want, rtol=0, atol=FLOAT32 * 20)


@pytest.mark.parametrize(("side", "is_open"), [(32, True), (24, False)])
def test_the_gate_opens_for_an_aligned_square_of_32_pixels_of_256_only(side, is_open):
    mask = torch.zeros(1, 2, 256, 256)
    mask[0, 1, 64 : 64 + side, 96 : 96 + side] = 1
    mask[:, 0] = 1 - mask[:, 1]
    cells = F.interpolate(mask, (32, 32), mode="bilinear", align_corners=False)
    for window in (4, 2):
        bank = prototypes(features(1, 8, 32, 32), cells, Pooling(window, 4))
        n_local = int(bank.valid[1].sum()) - 1
        assert (n_local > 0) == is_open
        assert scores(features(1, 8, 32, 32), bank, own(bank)).isfinite().all()


def test_a_window_must_be_covered_by_more_than_the_threshold():
    mask = masks((slice(0, 16), slice(0, 16)))
    mask[0, 1, 0:4, 0:4] = COVERED
    mask[0, 0, 0:4, 0:4] = 1 - COVERED
    exact = prototypes(features(1, 4, 16, 16), mask.double().float(), POOL)
    assert int(exact.valid[1].sum()) == 1 + 15  # one global, all windows but the one at the threshold


DEGENERATE = {
    "empty": lambda m: m[:, 1].zero_(),
    "full": lambda m: m[:, 1].fill_(1.0),
    "one cell": lambda m: m[0, 1].zero_()[3].__setitem__(5, 1.0),
    "striped": lambda m: m[0, 1].zero_()[::2].fill_(1.0),
}


@pytest.mark.parametrize("size", [(16, 16), (7, 13), (3, 2), (1, 1)])
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("keep", [False, True])
def test_degenerate_masks_give_finite_scores_and_gradients(size, name, keep):
    mask = torch.zeros(1, 2, 16, 16)
    DEGENERATE[name](mask)
    mask[:, 0] = 1 - mask[:, 1]
    mask = F.interpolate(mask, size, mode="bilinear", align_corners=False)
    shown = features(1, 4, *size).requires_grad_()
    bank = prototypes(shown, mask, POOL, keep_empty=keep)
    found = scores(features(2, 4, *size, seed=1), bank, own(bank, 2))
    assert found.shape == (2, 2, *size) and found.isfinite().all()
    found.sum().backward()
    assert shown.grad.isfinite().all()


def test_a_class_that_is_not_shown_scores_least_and_a_bare_background_falls_back_to_its_mean():
    mask = torch.zeros(1, 2, 16, 16)
    mask[0, 0, ::2] = 1  # nowhere a window of background
    bank = prototypes(features(1, 4, 16, 16), mask, POOL)
    assert int(bank.valid[0].sum()) == 1 and int(bank.valid[1].sum()) == 0
    found = scores(features(1, 4, 16, 16, seed=1), bank, own(bank))
    assert (found[:, 1] == -20).all() and (found[:, 0] > -20).all()


BOXES = ((slice(0, 8), slice(0, 8)), (slice(9, 15), slice(2, 6)))


def test_copies_of_a_shot_change_nothing_and_order_does_not_matter():
    query = features(1, 8, 16, 16, seed=9)
    shown = torch.cat([features(1, 8, 16, 16, seed=i) for i in range(3)])
    mask = torch.cat([masks(BOXES[0]), masks((slice(2, 5), slice(3, 9))), masks(BOXES[1])])

    def by(order: list[int]) -> torch.Tensor:
        bank = prototypes(shown[order], mask[order], POOL)
        return scores(query, bank, own(bank))

    torch.testing.assert_close(by([0]), by([0, 0, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(by([0, 1, 2]), by([2, 0, 1]), rtol=0, atol=1e-4)
    assert not torch.allclose(by([0, 1, 2]), by([0]), atol=0.1)


def test_classes_in_another_order_permute_the_scores_and_equal_ones_tie():
    shown, query = features(1, 8, 16, 16), features(1, 8, 16, 16, seed=1)
    mask = masks(*BOXES)
    one = scores(query, *(lambda b: (b, own(b)))(prototypes(shown, mask, POOL)))
    two = scores(query, *(lambda b: (b, own(b)))(prototypes(shown, mask[:, [0, 2, 1]], POOL)))
    torch.testing.assert_close(one[:, [0, 2, 1]], two, rtol=0, atol=FLOAT32)
    twice = torch.cat([mask, mask[:, 1:2]], dim=1)
    bank = prototypes(shown, twice, POOL)
    found = scores(query, bank, own(bank))
    torch.testing.assert_close(found[:, 1], found[:, 3], rtol=0, atol=0)


def test_slices_that_are_not_chosen_do_not_count():
    shown = torch.cat([features(1, 8, 16, 16, seed=i) for i in range(2)])
    mask = masks(BOXES[0]).repeat(2, 1, 1, 1)
    query = features(1, 8, 16, 16, seed=5)
    both, first = prototypes(shown, mask, POOL), prototypes(shown[:1], mask[:1], POOL)
    only = [torch.tensor([[0, -1]])] * 2
    torch.testing.assert_close(
        scores(query, both, only), scores(query, first, own(first)), rtol=0, atol=FLOAT32
    )


def test_distance_counts_where_asked():
    shown, mask = torch.ones(1, 4, 16, 16), masks((slice(0, 8), slice(0, 16)))
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij"))[
        None
    ]
    bank = prototypes(shown, mask, POOL, coordinates=grid)
    plain = scores(shown, bank, own(bank), coordinates=grid)
    near = scores(shown, bank, own(bank), coordinates=grid, position_weight=5.0)
    assert torch.allclose(plain[:, 0], plain[:, 1], atol=FLOAT32 * 20)  # alike everywhere
    assert (near[0, 1, :6] > near[0, 0, :6]).all() and (near[0, 0, 10:] > near[0, 1, 10:]).all()
