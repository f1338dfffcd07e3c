"""The encoder and the label branch: published sizes, domains apart, content from coarse to fine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seguro.core.errors import ConfigError, DataError
from seguro.networks.translator import DomainNorm, Encoder, Gate, LabelBranch

WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for m in modules for p in m.parameters()) / 1e6


def small(norm="group", **more) -> Encoder:
    widths = {4: 8, 8: 8, 16: 8, 32: 4}
    torch.manual_seed(0)
    return Encoder(
        32, 1, 8, 16, widths, **{"blocks": (1, 1), "width": 4, "reduction": 2, "norm": norm, **more}
    )


def test_published_sizes():
    with torch.device("meta"):
        encoder = Encoder(512, 1, 16, 512, WIDTHS)
        maps = [512] * 10 + [256] * 2 + [128] * 2 + [64] * 2
        branch = LabelBranch(maps, 2, 512)
    backbone = millions(encoder.stem, encoder.stem_norm, encoder.stem_bend, encoder.stages)
    assert backbone == pytest.approx(30.8, abs=0.05)
    assert millions(encoder.heads) == pytest.approx(70.8, abs=0.05)
    assert millions(encoder.contents) == pytest.approx(12.0, abs=0.05)
    assert millions(branch) == pytest.approx(0.78, abs=0.005)
    assert encoder.resolutions == (128, 64, 32, 16) and encoder.seen == 256


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_each_domain_has_its_own_scale_and_shift(norm):
    layer = DomainNorm(4, 2, norm).eval()
    x, domain = torch.randn(2, 4, 5, 5), torch.tensor([0, 1])
    plain = layer(x, domain)
    with torch.no_grad():
        layer.own[1, 0], layer.own[1, 1] = 1.0, 3.0  # scale 2, shift 3
    changed = layer(x, domain)
    assert torch.equal(changed[0], plain[0])
    torch.testing.assert_close(changed[1], 2 * plain[1] + 3)


def test_running_statistics_are_each_domains_own():
    layer = DomainNorm(3, 2, "batch").train()
    x = torch.cat([torch.randn(8, 3, 4, 4) + 5, torch.randn(8, 3, 4, 4) - 5])
    for _ in range(50):
        layer(x, torch.arange(2).repeat_interleave(8))
    low, high = layer.plain[1].running_mean, layer.plain[0].running_mean
    assert (low < -4).all() and (high > 4).all()
    out = layer.eval()(x[:1], torch.tensor([0]))
    assert abs(float(out.detach().mean())) < 1  # its own mean is taken away, not the other's


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_an_image_is_encoded_the_same_alone_and_among_others(norm):
    encoder = small(norm).eval()
    x, domain = torch.randn(5, 1, 32, 32), torch.tensor([0, 1, 0, 1, 1])
    codes, content = encoder(x, domain, 1 - domain)
    alone, own = encoder(x[2:3], domain[2:3], 1 - domain[2:3])
    torch.testing.assert_close(codes[2:3], alone, rtol=1e-4, atol=1e-5)  # float32 in another order
    for r, (feature, mask) in content.items():
        torch.testing.assert_close(feature[2:3], own[r][0], rtol=1e-4, atol=1e-5)
        assert mask.shape == (5, 1, r, r) and feature.shape[2:] == (r, r)
    assert set(content) == {16, 8}


def test_codes_start_from_the_mean_of_the_domain_asked_for():
    encoder = small().eval()
    x, zero, one = torch.randn(1, 1, 32, 32), torch.tensor([0]), torch.tensor([1])
    before = encoder(x, zero, one)[0]
    encoder.mean[1] += 2.0
    torch.testing.assert_close(encoder(x, zero, one)[0], before + 2)
    other = encoder(x, zero, zero)[0]
    encoder.mean[1] += 2.0
    assert torch.equal(encoder(x, zero, zero)[0], other)


def test_a_closed_mask_lets_no_content_in_and_is_below_one():
    gate = Gate(4, 6)
    content, state = torch.randn(2, 6, 8, 8), torch.randn(2, 4, 4, 4)
    feature, mask, kept = gate(content, state)
    assert feature.shape == kept.shape == content.shape and (mask >= 0).all() and (mask < 1).all()
    with torch.no_grad():
        gate.mask.weight.zero_()
        gate.mask.bias.fill_(-1.0)
    feature, mask, _ = gate(content, state)
    assert not feature.any() and not mask.any()


def test_the_coarse_content_decides_at_the_finer_resolution_and_not_the_reverse():
    encoder = small().eval()
    x, zero = torch.randn(1, 1, 32, 32), torch.tensor([0])
    coarse = list(encoder.contents[1].parameters())[-1]  # of 8 x 8
    fine = list(encoder.contents[0].parameters())[-1]
    content = encoder(x, zero, zero)[1]
    up = torch.autograd.grad(content[16][0].sum(), coarse, retain_graph=True)[0]
    down = torch.autograd.grad(content[8][0].sum(), fine, allow_unused=True)[0]
    assert up.any() and down is None


def test_labels_follow_the_maps():
    torch.manual_seed(0)
    branch = LabelBranch([3, 2], 4, 16, hidden=8, norm="group")
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 2, 16, 16)]
    logits = branch(maps)
    assert logits.shape == (2, 4, 16, 16)
    swapped = branch([m.flip(0) for m in maps])
    torch.testing.assert_close(swapped, logits.flip(0), rtol=1e-4, atol=1e-5)


def test_logits_are_those_of_every_map_enlarged_and_summed():
    """As published: each map is brought to the full size by itself, corners on corners."""
    torch.manual_seed(0)
    branch = LabelBranch([3, 2, 4, 5], 4, 16, hidden=8, norm="none")
    maps = [torch.randn(2, c, r, r) for c, r in ((3, 4), (2, 4), (4, 8), (5, 16))]
    parts = [read(m) for read, m in zip(branch.maps, maps, strict=True)]
    large = [F.interpolate(p, (16, 16), mode="bilinear", align_corners=True) for p in parts]
    torch.testing.assert_close(branch(maps), branch.head(torch.stack(large).sum(0)))


def test_too_many_stages_are_refused():
    with pytest.raises(ConfigError, match="nothing below 4"):
        small(blocks=(1, 1, 1, 1))


class Block(nn.Module):
    """A block of an IResNet, with the names that insightface has for its parts."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (cin, cout, cout))
        self.conv1 = nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class Face(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(4), nn.PReLU(4)
        self.layer1 = nn.Sequential(Block(4, 4, 2), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer1(self.prelu(self.bn1(self.conv1(x))))
        return [x, self.layer2(x)]


def face(channels: int = 3) -> Face:
    """Return one whose statistics and slopes are not those of a new one."""
    torch.manual_seed(3)
    made = Face(channels).train()
    for _ in range(3):
        made(2 * torch.randn(8, channels, 16, 16) + 1)
    for module in made.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.PReLU)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return made.eval()


def test_the_backbone_of_another_network_is_taken_over_for_every_domain():
    theirs = face()
    encoder = Encoder(32, 3, 8, 16, {4: 8, 8: 8, 16: 8, 32: 4}, blocks=(2, 1), width=4, reduction=2).eval()
    encoder.start_from(theirs.state_dict())
    image, found = torch.randn(2, 3, 32, 32), []
    for stage in encoder.stages:
        stage[-1].register_forward_hook(lambda module, args, out: found.append(out))
    encoder(image, torch.tensor([0, 1]), torch.tensor([0, 1]))
    for ours, wanted in zip(found, theirs(image), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_of_other_channels_the_first_convolution_is_left_as_it_is():
    encoder = small(norm="batch", blocks=(2, 1))
    before = encoder.stem.weight.clone()
    loaded = encoder.start_from(face().state_dict())
    assert torch.equal(encoder.stem.weight, before) and "stem.weight" not in loaded
    assert torch.equal(encoder.stages[1][0].second.weight, face().layer2[0].conv2.weight)


@pytest.mark.parametrize(
    "lost", ["layer2.0.conv2.weight", "layer1.0.downsample.1.running_var", "conv1.weight"]
)
def test_a_backbone_that_does_not_fit_is_refused_whole(lost):
    encoder = small(norm="batch", blocks=(2, 1))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    weights = {k: v for k, v in face().state_dict().items() if k != lost}
    with pytest.raises(DataError, match="tensors are not there or of another shape"):
        encoder.start_from(weights)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
