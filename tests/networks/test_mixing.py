"""Laws of mixing inside a network: identities, linear ends, what comes before and after, skips, masks."""

from __future__ import annotations

import pytest
import torch

from seguro.core.errors import ConfigError
from seguro.networks.classic import ClassicUNet
from seguro.networks.lattice import Lattice
from seguro.networks.mixing import MixPlan, forward, forward_mixed, points_of
from seguro.networks.resunet import Decomposed, LowResolution, ResUNet
from seguro.networks.superres import SuperRes
from seguro.networks.unet import UNet

SWAP = torch.tensor([2, 0, 1])
CLOSE = 1e-6
"""Times the largest logit: float32 sums of two terms."""


def networks():
    two, three = [(2, 2)] * 4, [(2, 2, 2)] * 2
    unet = {"in_channels": 1, "classes": 3, "width": 4}
    yield "classic-2d", lambda: ClassicUNet(classes=3, strides=two, width=4), (32, 32)
    yield "classic-3d", lambda: ClassicUNet(classes=3, strides=three, width=4), (8, 8, 8)
    yield "unet-2d", lambda: UNet(strides=two, kernels=[(3, 3)] * 5, **unet), (32, 32)
    yield "unet-3d", lambda: UNet(strides=three, kernels=[(3, 3, 3)] * 3, **unet), (8, 8, 8)
    yield "lattice-3d", lambda: Lattice(strides=[(1, 1, 1), (1, 1, 1), (2, 2, 2)], **unet), (16, 16, 16)
    res = {"classes": 3, "strides": three, "width": 4}
    yield "resunet-3d", lambda: ResUNet(in_channels=1, **res), (8, 8, 8)
    yield "resunet-low", lambda: LowResolution(ResUNet(in_channels=1, **res), (1, 2, 2)), (8, 16, 16)
    many = {**res, "classes": 12}
    yield "resunet-decomposed", lambda: Decomposed(ResUNet(in_channels=4, **many), (1, 2, 2)), (8, 16, 16)
    yield "superres", lambda: SuperRes(in_channels=1, classes=3, width=4), (32, 32, 32)
    yield "monai-basic", lambda: _monai("BasicUNet", features=(4, 4, 4, 8, 8, 4)), (32, 32)
    yield "monai-unet", lambda: _monai("UNet", channels=(4, 8, 8), strides=(2, 2)), (16, 16)
    yield "monai-segres", lambda: _monai("SegResNet", init_filters=8), (16, 16)


def _monai(name, **options):
    nets = pytest.importorskip("monai.networks.nets")
    return getattr(nets, name)(spatial_dims=2, in_channels=1, out_channels=3, **options)


@pytest.fixture(scope="module", params=list(networks()), ids=lambda row: row[0])
def made(request):
    """(network in evaluation mode, its mix points, three images)."""
    _, build, size = request.param
    torch.manual_seed(0)
    net = build().eval()
    return net, points_of(net, in_channels=1, size=size), torch.randn(3, 1, *size)


def mixed(made, layer, lam, permutation=SWAP, **more):
    net, points, x = made
    with torch.no_grad():
        plan = MixPlan(points.resolve(layer), torch.as_tensor(lam), permutation, **more)
        return forward_mixed(net, x, points, plan)


def plain(made, x=None):
    with torch.no_grad():
        return made[0](made[2] if x is None else x)


def test_the_whole_of_itself_is_the_plain_pass_bit_for_bit(made):
    for layer in made[1].names:
        assert torch.equal(mixed(made, layer, 1.0), plain(made)), layer


def test_mixing_with_itself_is_the_plain_pass(made):
    wanted = plain(made)
    for layer in made[1].names:
        got = mixed(made, layer, 0.7, torch.arange(3))
        assert (got - wanted).abs().max() <= 10 * CLOSE * wanted.abs().max(), layer


def test_only_at_the_last_layer_mixing_is_that_of_the_logits(made):
    z = plain(made)
    wanted = 0.7 * z + (1 - 0.7) * z[SWAP]
    assert (mixed(made, "L", 0.7) - wanted).abs().max() <= CLOSE * z.abs().max()
    n = len(made[1].stages) // (2 if made[1].modules else 1)  # a foreign network's last parts may be its head
    for layer in ("I", *range(1, n + 1)):
        difference = (mixed(made, layer, 0.7) - wanted).abs().max() / z.abs().max()
        assert difference > 1e-3, layer  # a non-linearity was crossed


def test_at_the_input_it_is_a_pass_of_mixed_images(made):
    net, _, x = made
    with torch.no_grad():
        wanted = net(0.7 * x + (1 - 0.7) * x[SWAP])
    assert (mixed(made, "I", 0.7) - wanted).abs().max() <= CLOSE * wanted.abs().max()
    assert torch.equal(mixed(made, 0, 0.7), mixed(made, "input", 0.7))


def test_each_sample_may_have_its_own_share(made):
    own = torch.tensor([1.0, 0.6, 0.8])
    for layer in ("I", *made[1].stages[:1], "L"):  # superres names no stage
        got = mixed(made, layer, own)
        for i, lam in enumerate(own):
            alone = mixed(made, layer, lam)[i]
            assert torch.allclose(got[i], alone, atol=10 * CLOSE * float(alone.abs().max())), (layer, i)


def test_a_mask_of_ones_is_the_plain_pass_and_of_zeros_the_partners(made):
    _net, _points, x = made
    for layer in ("I", "L"):
        for value, wanted in ((1.0, plain(made)), (0.0, plain(made)[SWAP])):
            mask = torch.full((3, 1, *x.shape[2:]), value)
            got = mixed(made, layer, 0.7, mask=mask)
            assert torch.allclose(got, wanted, atol=10 * CLOSE * float(wanted.abs().max()))


def test_a_mask_cuts_at_any_depth_in_the_size_of_the_activation(made):
    net, points, x = made
    mask = torch.ones(3, 1, *x.shape[2:])
    mask[:, :, : x.shape[2] // 2] = 0.0
    seen, kept = {}, {}
    with torch.no_grad():
        forward(net, x, points, lambda name, a: seen.setdefault(name, a))
        for layer in points.stages:
            plan = MixPlan(layer, torch.tensor(0.5), SWAP, mask=mask)
            kept[layer] = plan(seen[layer])
    for layer, after in kept.items():
        before = seen[layer]
        half = before.shape[2] // 2
        if before.shape[2] % 2:
            continue
        assert torch.equal(after[:, :, :half], before[SWAP][:, :, :half]), layer
        assert torch.equal(after[:, :, half:], before[:, :, half:]), layer


def activations(made, plan):
    """Return every activation as it arrives at the hook, before it is mixed."""
    from seguro.networks.mixing import mix_hook

    net, points, x = made
    arrived, mix = {}, mix_hook(points, plan)

    def note(name, a):
        arrived[name] = a
        return mix(name, a)

    with torch.no_grad():
        forward(net, x, points, note)
    return arrived


def test_what_comes_before_is_the_plain_pass_and_what_comes_after_is_not(made):
    _net, points, _x = made
    still = activations(made, MixPlan("last", torch.tensor(1.0), SWAP))
    for layer in points.names[:-1]:
        got = activations(made, MixPlan(layer, torch.tensor(0.7), SWAP))
        at = points.names.index(layer)
        past = {skip for skip, source in (points.skips or {}).items() if points.names.index(source) <= at}
        for i, name in enumerate(points.names):
            before = i <= at or name in past  # what crosses arrives as it left
            if before:
                assert torch.equal(got[name], still[name]), (layer, name)
            elif points.skips is not None or name == "last":  # of other networks some parts lie beside
                assert not torch.equal(got[name], still[name]), (layer, name)


@pytest.mark.parametrize(
    "row",
    [r for r in networks() if r[0] in ("classic-2d", "unet-3d", "resunet-3d", "resunet-low")],
    ids=lambda row: row[0],
)
def test_skips_official_leaves_shallower_ones_alone_and_all_mixes_each(row):
    _, build, size = row
    net = build().eval()
    points = points_of(net, in_channels=1, size=size)
    x = torch.randn(3, 1, *size)
    plain_pass = activations((net, points, x), MixPlan("last", torch.tensor(1.0), SWAP))
    for deep, layer in enumerate(points.stages):
        for skips in ("official", "all"):
            plan = MixPlan(layer, torch.tensor(0.7), SWAP, skips)
            crossing, seen = points.mixed_at(layer, skips) - {layer}, {}
            lowest = deep if skips == "official" else 0
            assert crossing == {f"skip{i}" for i in range(lowest, deep + 1) if f"skip{i}" in points.names}
            from seguro.networks.mixing import mix_hook

            mix = mix_hook(points, plan)
            with torch.no_grad():
                net(x, lambda n, a, mix=mix, seen=seen: seen.setdefault(n, mix(n, a)))
            for i in range(len(points.stages) - 1):
                before = plain_pass[f"skip{i}"]
                if i > deep:
                    assert not torch.equal(seen[f"skip{i}"], before)  # made from mixed activations
                elif f"skip{i}" in crossing:
                    wanted = 0.7 * before + (1 - 0.7) * before[SWAP]
                    assert torch.allclose(seen[f"skip{i}"], wanted, atol=1e-6)
                else:
                    assert torch.equal(seen[f"skip{i}"], before)


def test_a_decoder_layer_mixes_the_skips_that_are_still_to_come():
    net = ClassicUNet(classes=2, strides=[(2, 2)] * 3, width=4)
    points = points_of(net, in_channels=1, size=(16, 16))
    assert points.mixed_at("dec2", "all") == {"dec2", "skip1", "skip0"}
    assert points.mixed_at("dec2", "official") == {"dec2"}
    assert points.mixed_at("input", "all") == {"input"} and points.mixed_at("last", "all") == {"last"}


def test_our_networks_name_encoder_and_decoder_and_the_papers_number_the_encoder(made):
    net, points, _x = made
    if points.modules is not None:
        pytest.skip("a network without names has those of its parts")
    assert points.names == net.names and points.resolve(1) == points.stages[0] != "input"
    at = [points.names.index(n) for n in points.stages]
    assert at == sorted(at) and len(points.names) > len(points.stages) + 2  # a decoder follows


def test_unknown_layers_are_refused_with_the_known_ones(made):
    points = made[1]
    for wrong in ("bottom", len(points.stages) + 1, -1, "i"):
        with pytest.raises(ConfigError, match="input"):
            points.resolve(wrong)


def test_all_cuts_through_everything_that_goes_on_from_a_layer(made):
    points = made[1]
    if not points.tells:
        pytest.skip("a network that does not name its connections")
    for layer in points.names:
        if layer in (points.skips or {}):
            continue  # one of the branches that arrive at a layer
        got = mixed(made, layer, 0.0, skips="all")
        wanted = plain(made)[SWAP]
        assert torch.allclose(got, wanted, atol=10 * CLOSE * float(wanted.abs().max())), layer


def test_a_lattice_layer_mixes_the_edges_that_pass_it_once():
    net = Lattice(in_channels=1, classes=2, strides=[(1, 1), (1, 1), (2, 2)], width=4)
    points = points_of(net, in_channels=1, size=(8, 8))
    assert points.mixed_at("L1d1", "official") == {"L1d1"}
    assert points.mixed_at("L1d1", "all") == {"L1d1", "L0d0-L0d2", "stem1-head"}
    assert points.mixed_at("stem1", "all") == {"stem1"}  # before it leaves to the head
    assert points.mixed_at("last", "all") == {"last"}


def test_a_network_that_does_not_name_its_skips_says_so():
    net = _monai("BasicUNet", features=(4, 4, 4, 8, 8, 4))
    points = points_of(net, in_channels=1, size=(32, 32))
    with pytest.raises(ConfigError, match="skips=official"):
        points.mixed_at(points.stages[0], "all")
    assert points.mixed_at("input", "all") == {"input"}


def test_hooks_of_a_foreign_network_are_gone_afterwards():
    net = _monai("BasicUNet", features=(4, 4, 4, 8, 8, 4))
    points = points_of(net, in_channels=1, size=(32, 32))
    x = torch.randn(2, 1, 32, 32)
    with pytest.raises(ZeroDivisionError):
        forward(net, x, points, lambda name, a: a if name == "input" else a / (1 // 0))
    assert not any(m._forward_hooks for m in net.modules())
    assert points.names[1] == "conv_0" and points.names[-1] == "last"
