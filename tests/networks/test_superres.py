"""PFSeg's network: the published counts, exact sizes, what sees what, and where guidance goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seguro.core.errors import ConfigError, DataError
from seguro.networks import build
from seguro.networks.guidance import central, cut, placed, shared
from seguro.networks.resolution import lowered, raised, unshuffled
from seguro.networks.superres import ResConv, SuperRes, training_bytes


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.fixture(scope="module")
def published() -> SuperRes:
    with torch.device("meta"):
        return SuperRes(in_channels=1, classes=1)


def tiny(**options) -> SuperRes:
    torch.manual_seed(0)
    return SuperRes(**({"in_channels": 1, "classes": 2, "width": 4, "tail_width": 4} | options)).eval()


def test_the_parameters_of_every_part_are_the_published_ones(published):
    restorer = published.restorer(1)
    assert count(published.encoder) == 3_612_544
    assert count(published.guide) == 442_912
    assert count(published.segment) == count(restorer) == 5_299_793
    assert count(published) == 9_355_249
    assert count(published, restorer) == 14_655_042


@pytest.mark.parametrize(("scale", "expected"), [(2, 8_388_049), (1, 8_301_217)])
def test_the_parameters_without_guidance_and_of_the_plain_residual_net(scale, expected):
    with torch.device("meta"):
        assert count(SuperRes(in_channels=1, classes=1, guidance=False, scale=scale)) == expected


def test_the_published_grids(published):
    x = torch.empty(1, 1, 128, 192, 192, device="meta")
    corners = torch.tensor([[[48, 72, 72]]])
    maps = published.encode(x, corners)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (32, 64, 96, 96),
        (32, 32, 48, 48),
        (64, 16, 24, 24),
        (128, 8, 12, 12),
        (320, 4, 6, 6),
    ]
    assert published.crop_size((128, 192, 192)) == (32, 48, 48)
    assert published.segment(maps).shape == x.shape
    with torch.device("meta"):
        restorer = published.restorer(1)
    assert restorer(maps).shape == x.shape


@pytest.mark.parametrize("size", [(32, 32, 64), (64, 32, 32), (96, 32, 64)])
def test_the_output_has_the_size_of_the_input_for_every_multiple(size):
    assert tiny()(torch.rand(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("size", [(7, 13, 9), (33, 40, 41), (1, 5, 31)])
def test_odd_sizes_are_padded_with_their_edge_and_cut_back(size):
    network, x = tiny(), torch.rand(1, 1, *size)
    pads = [p for n in reversed(size) for p in (0, (-n) % 32)]
    whole = network(F.pad(x, pads, mode="replicate"))
    out = network(x)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, whole[:, :, : size[0], : size[1], : size[2]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scale", "stages"),
    [(1, []), (2, [(2, 2, 2)]), (4, [(2, 2, 2)] * 2), ((1, 2, 4), [(1, 1, 2), (1, 2, 2)])],
)
def test_every_doubling_is_one_stage_of_each_decoder(scale, stages):
    network = tiny(scale=scale)
    for decoder in (network.segment, network.restorer(1)):
        assert [s.up.conv.stride for s in decoder.tail.stages] == stages
    size = network.multiple
    assert network(torch.rand(1, 1, *size)).shape[2:] == size


def test_an_axis_that_is_never_halved_may_have_any_length():
    network = tiny(scale=(1, 2, 2), pools=((1, 2, 2),) * 4)
    assert network.multiple == (1, 32, 32)
    assert network(torch.rand(1, 1, 3, 32, 64)).shape == (1, 2, 3, 32, 64)


def test_one_volume_is_one_call_of_the_encoder_and_one_of_guidance():
    network, calls = tiny(), {"encoder": 0, "guide": 0}
    for name in calls:
        getattr(network, name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    network(torch.rand(1, 1, 40, 64, 64))
    assert calls == {"encoder": 1, "guide": 1}


def test_the_whole_volume_is_seen_at_every_voxel():
    network = tiny(guidance=False)
    x = torch.rand(1, 1, 32, 64, 64, requires_grad=True)
    network(x)[0, :, 0, 0, 0].sum().backward()
    assert x.grad[0, 0, -2:, -2:, -2:].abs().min() > 0


def test_the_biases_before_norms_change_nothing_and_are_not_trained():
    torch.manual_seed(0)
    block, x = ResConv(2, 4), torch.rand(1, 2, 6, 6, 6)
    before = block(x)
    with torch.no_grad():
        block.first.bias.fill_(3.0)
        block.second.bias.fill_(-2.0)
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-5)  # float32 of values near 3
    assert not block.first.bias.requires_grad and not block.second.bias.requires_grad


@pytest.mark.parametrize(
    ("options", "problem", "error"),
    [
        ({"crop": (8, 8, 8)}, "inject=scatter", DataError),
        ({"crop": (12, 8, 8), "inject": "scatter"}, "multiples", ConfigError),
        ({"crop": (64, 8, 8), "inject": "scatter"}, "larger than the volume", DataError),
        ({"width": 5}, "even", ConfigError),
        ({"scale": 3}, "powers of two", ConfigError),
        ({"scale": (2, 6, 2)}, "powers of two", ConfigError),
        ({"pools": ((2, 2, 2),) * 3}, "pools", ConfigError),
        ({"pools": ((2, 2, 3),) * 4}, "pools", ConfigError),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else None,
)
def test_what_does_not_fit_is_refused(options, problem, error):
    with pytest.raises(error, match=problem):
        tiny(**options)(torch.rand(1, 1, 32, 64, 64))


def test_a_flat_plan_is_refused(make_plan):
    flat = make_plan(dims=2, patch=(16, 16), strides=((2, 2),), kernels=((3, 3),) * 2)
    with pytest.raises(ConfigError, match="--dims 3"):
        build("superres", in_channels=1, classes=1, plan=flat)


def test_low_resolution_at_two_is_the_mean_of_eight_voxels():
    x = torch.rand(2, 3, 8, 6, 10)
    torch.testing.assert_close(lowered(x, (2, 2, 2)), F.avg_pool3d(x, 2))
    assert lowered(x, (1, 1, 1)) is x
    assert lowered(x, (1, 2, 2)).shape == (2, 3, 8, 3, 5)


def test_the_low_pass_removes_what_the_low_resolution_cannot_hold_and_keeps_the_rest():
    at = torch.arange(64.0)
    fine = torch.cos(torch.pi * at / 2 + 0.3).expand(1, 1, 8, 8, 64)  # a period of 4, aliased at scale 4
    slow = (at / 64).expand(1, 1, 8, 8, 64)
    plain, filtered = (lowered(fine, (1, 1, 4), lowpass=low)[..., 2:-2].abs().mean() for low in (False, True))
    assert plain > 0.5  # of its mean, 0
    assert filtered < 0.1
    inner = lowered(slow, (1, 1, 4), lowpass=True)[..., 2:-2]
    torch.testing.assert_close(inner, lowered(slow, (1, 1, 4))[..., 2:-2])


def test_enlarging_a_constant_and_a_ramp():
    ramp = torch.arange(8.0).expand(1, 1, 2, 2, 8)
    big = raised(ramp, (2, 1, 4))
    assert big.shape == (1, 1, 4, 2, 32)
    torch.testing.assert_close(big[0, 0, 0, 0, 2:-2], (torch.arange(2.0, 30.0) + 0.5) / 4 - 0.5)


def test_every_voxel_is_in_the_unshuffled_image_once():
    x = torch.arange(2 * 4 * 6 * 4, dtype=torch.float32).reshape(1, 2, 4, 6, 4)
    y = unshuffled(x, (2, 3, 1))
    assert y.shape == (1, 12, 2, 2, 4)
    torch.testing.assert_close(y.flatten().sort().values, x.flatten())
    assert y[0, :6, 0, 0, 0].tolist() == x[0, 0, :2, :3, 0].flatten().tolist()


def test_the_stem_of_all_voxels_sees_what_averaging_loses():
    torch.manual_seed(1)
    x = torch.rand(1, 1, 32, 32, 64)
    moved = x.clone()
    moved[..., 0, 0, 0], moved[..., 0, 0, 1] = x[..., 0, 0, 1], x[..., 0, 0, 0]  # same mean of the block
    for stem, same in (("interpolate", True), ("pixel-unshuffle", False)):
        network = tiny(stem=stem, guidance=False)
        assert torch.allclose(network(x), network(moved), atol=1e-6) is same


def test_the_central_crop_of_the_published_volume():
    assert central((128, 192, 192), (32, 48, 48), 2).tolist() == [[[48, 72, 72]]] * 2
    x = torch.rand(2, 1, 16, 16, 16)
    corners = torch.tensor([[[0, 1, 2], [8, 8, 8]], [[4, 0, 0], [1, 1, 1]]])
    crops = cut(x, corners, (4, 8, 8))
    torch.testing.assert_close(crops[2], x[1, :, 4:8, :8, :8])


def test_codes_go_to_the_cells_that_their_crop_covers():
    """Two of eight cells in a row are covered, the first by half: it holds the codes of that half."""
    codes = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 1, 1, 4)  # one crop of 1 x 1 x 4 codes
    where, crop, cell = torch.tensor([[[0, 0, 8]]]), (4, 4, 16), (4, 4, 8)
    out = placed(codes, where, crop, cell, (1, 1, 8))
    assert out.flatten().tolist() == [0, 1.5, 3.5, 0, 0, 0, 0, 0]
    shifted = placed(codes, torch.tensor([[[0, 0, 12]]]), crop, cell, (1, 1, 8))
    assert shifted.flatten().tolist() == [0, 1.0, 2.5, 4.0, 0, 0, 0, 0]


def test_the_parts_of_a_crop_add_up_to_its_length():
    parts = shared(5, 12, 6, 8, 4) * 8  # voxels
    assert parts.sum().item() == pytest.approx(12)
    torch.testing.assert_close(parts.sum(0), torch.full((6,), 2.0))


def test_scattered_guidance_reaches_first_what_lies_there():
    network = tiny(inject="scatter", crop=(8, 8, 8))
    x = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        plain = network.encode(x, torch.tensor([[[0, 0, 0]]]))[-1][0, 32:]
    assert plain[:, 0, 0, 0].abs().max() > 0
    rest = plain.clone()
    rest[:, 0, 0, 0] = 0
    assert rest.abs().max() == 0


def test_several_crops_joined_cell_by_cell_are_averaged():
    network, x = tiny(), torch.rand(1, 1, 32, 32, 64)
    one, two = torch.tensor([[[0, 0, 0]]]), torch.tensor([[[24, 8, 40]]])
    with torch.no_grad():
        codes = [network.encode(x, c)[-1][:, 32:] for c in (one, two, torch.cat([one, two], dim=1))]
    torch.testing.assert_close(codes[2], (codes[0] + codes[1]) / 2)


def test_the_memory_grows_with_volume_and_batch_and_without_the_second_decoder_falls(published):
    size = (128, 192, 192)
    full = training_bytes(size, 1, published)
    assert training_bytes(size, 2, published) == 2 * full
    assert training_bytes((128, 192, 96), 1, published) == full // 2
    assert training_bytes(size, 1, published, decoders=1) < 0.7 * full
    assert 6 < full / 2**30 < 11  # the published training takes one card of 11 GB
