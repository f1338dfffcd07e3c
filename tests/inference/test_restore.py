"""Back to the native grid: equal to torch's trilinear of the full buffer, whatever the slabs and blocks."""

import pytest
import torch
import torch.nn.functional as F

from seguro.core.errors import GeometryError
from seguro.inference.restore import block_depth, native

FLOAT32 = 1e-5


def cut(x, axis, lengths):
    at = 0
    for n in lengths:
        n = min(n, x.shape[axis + 1] - at)
        if n > 0:
            yield at, at + n, x.narrow(axis + 1, at, n)
            at += n
    if at < x.shape[axis + 1]:
        yield at, x.shape[axis + 1], x.narrow(axis + 1, at, x.shape[axis + 1] - at)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("own", [(7, 9, 11), (3, 20, 4), (14, 5, 11), (1, 1, 1), (15, 19, 23)])
@pytest.mark.parametrize("lengths", [(1,) * 20, (3, 1, 4), (99,)])
@pytest.mark.parametrize("depth", [1, 4, None])
def test_equals_torch_trilinear_of_the_full_buffer(assemble, axis, own, lengths, depth):
    planned = (7, 10, 11)
    x = torch.randn(2, *planned, generator=torch.Generator().manual_seed(0))
    out = assemble(native(cut(x, axis, lengths), planned, own, axis=axis, depth=depth), axis, own[axis])
    expected = F.interpolate(x[None], size=own, mode="trilinear", align_corners=False)[0]
    assert torch.allclose(out, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equal_shapes_pass_unchanged(assemble, axis):
    x = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    out = native(cut(x, axis, (2, 2)), (5, 6, 7), (5, 6, 7), axis=axis, depth=3)
    assert torch.equal(assemble(out, axis, x.shape[axis + 1]), x)


def test_probabilities_stay_probabilities(assemble):
    p = torch.softmax(torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(2)), dim=0)
    out = assemble(native(cut(p, 0, (2, 2)), (5, 6, 7), (11, 13, 4), axis=0), 0, 11)
    assert torch.allclose(out.sum(0), torch.ones(11, 13, 4), atol=FLOAT32)
    assert float(out.min()) >= 0


def test_blocks_depend_on_the_native_grid_alone():
    boundaries = []
    for planned in ((5, 6, 7), (30, 6, 7)):
        x = torch.zeros(2, *planned)
        blocks = native(cut(x, 0, (2, 9)), planned, (13, 6, 7), axis=0, depth=4)
        boundaries.append([(a, b) for a, b, _ in blocks])
    assert boundaries[0] == boundaries[1] == [(0, 4), (4, 8), (8, 12), (12, 13)]


def test_only_the_needed_planes_are_held():
    """Upsampling twice, plane by plane: a block comes out before the next but one plane is asked for."""
    asked = []

    def slow():
        for i in range(10):
            asked.append(i)
            yield i, i + 1, torch.zeros(1, 1, 2, 2)

    for start, _, _ in native(slow(), (10, 2, 2), (20, 2, 2), axis=0, depth=2):
        assert len(asked) <= start // 2 + 2


def test_a_gap_or_an_early_end_is_refused():
    x = torch.zeros(1, 6, 2, 2)
    with pytest.raises(GeometryError, match="touch"):
        list(native(iter([(0, 2, x[:, :2]), (3, 6, x[:, 3:])]), (6, 2, 2), (6, 2, 2), axis=0))
    with pytest.raises(GeometryError, match="ended before"):
        list(native(iter([(0, 2, x[:, :2])]), (6, 2, 2), (6, 2, 2), axis=0))


def test_a_block_of_many_classes_keeps_to_its_size():
    depth = block_depth(20, (400, 512, 512), 0)
    assert 4 * 20 * 512 * 512 * depth <= 64 << 20
    assert depth == 3
