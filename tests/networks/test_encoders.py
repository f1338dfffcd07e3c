"""Encoders for few-shot segmentation: sizes, parameter counts, public weights, random by the seed."""

from __future__ import annotations

import socket
import sys
import types
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from seguro.core.errors import ConfigError, DataError
from seguro.networks.encoders import ResNet, build_encoder
from seguro.networks.pretrained import start_from

RESNET101 = 42_500_160
"""Parameters of the public ResNet-101 without its classifier (44,549,160 - 1000 x 2049)."""


@contextmanager
def skip_init():
    """Initialization of 40 M weights takes seconds, and none are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.init.kaiming_uniform_", lambda *a, **k: None)
        patch.setattr("torch.nn.init.kaiming_normal_", lambda *a, **k: None)
        yield


def little(**options) -> ResNet:
    return ResNet(1, depths=(1, 1, 2, 1), width=4, features=6, **options)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (5, 3)])
@pytest.mark.parametrize("encoder", [lambda: build_encoder("residual", in_channels=2, width=8, features=6),
                                     lambda: ResNet(2, depths=(1, 1, 2, 1), width=4, features=6)],
                         ids=["residual", "resnet"])  # fmt: skip
def test_features_have_the_stride_and_depend_on_every_channel(encoder, size):
    net = encoder().eval()
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = net(x)
    assert y.shape == (2, 6, *(-(-n // net.stride) for n in size))
    y.square().sum().backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()


def test_the_published_encoder_has_the_published_size_and_names():
    with torch.device("meta"), skip_init():
        net = build_encoder("resnet101", in_channels=1, width=64, features=256)
    trunk = {k: p for k, p in net.named_parameters() if not k.startswith("reduce.")}
    assert sum(p.numel() for p in trunk.values()) == RESNET101
    assert {"conv1.weight", "layer3.22.bn3.bias", "layer4.0.downsample.0.weight"} <= set(trunk)
    assert net.reduce.weight.shape == (256, 2048, 1, 1)
    dilations = [getattr(net, f"layer{i}")[1].conv2.dilation[0] for i in (1, 2, 3, 4)]
    firsts = [getattr(net, f"layer{i}")[0].conv2.dilation[0] for i in (1, 2, 3, 4)]
    assert (dilations, firsts) == ([1, 1, 2, 4], [1, 1, 1, 2])


def test_a_scratch_network_is_a_function_of_the_seed_alone():
    first = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        first.append(build_encoder("residual", in_channels=1, width=8, features=6).network[0].weight)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_default_has_a_million_parameters():
    net = build_encoder("residual", in_channels=1, width=32, features=64)
    assert 0.9e6 < sum(p.numel() for p in net.parameters()) < 1.1e6


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ConfigError, match="resnet101"):
        build_encoder("resnet18", in_channels=1, width=8, features=6)


@pytest.fixture
def weight_file(tmp_path):
    torch.manual_seed(5)
    trunk = {f"backbone.{k}": v for k, v in little().state_dict().items() if not k.startswith("reduce.")}
    path = tmp_path / "weights.safetensors"
    save_file({**trunk, "classifier.4.bias": torch.zeros(21)}, path)
    return path


def test_a_weight_file_starts_the_trunk_and_leaves_the_rest(weight_file):
    torch.manual_seed(6)
    net = little()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loaded = start_from(net, str(weight_file))
    torch.manual_seed(5)
    source = little().state_dict()
    assert set(loaded) == {k for k in source if not k.startswith("reduce.")}
    assert all(torch.equal(net.state_dict()[k], source[k]) for k in loaded)
    assert torch.equal(net.reduce.weight, before["reduce.weight"])


def test_weights_that_do_not_fit_are_never_loaded_in_part(weight_file):
    net = ResNet(1, depths=(1, 1, 3, 1), width=4, features=6)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(DataError, match=r"missing.*layer3\.2"):
        start_from(net, str(weight_file))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(DataError, match="another shape"):
        start_from(ResNet(1, depths=(1, 1, 2, 1), width=8, features=6), str(weight_file))


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pickled"):
        start_from(little(), str(tmp_path / "resnet101.pth"))
    with pytest.raises(DataError, match="cannot be read"):
        start_from(little(), str(tmp_path / "absent.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(DataError, match="not a safetensors file"):
        start_from(little(), str(tmp_path / "bad.safetensors"))


def test_weights_of_timm_are_loaded_by_name_and_say_what_is_missing(monkeypatch):
    source = ResNet(1, depths=(1, 1, 6, 1), width=2, features=4)
    head = {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}
    trunk = {k: v for k, v in source.state_dict().items() if not k.startswith("reduce.")}
    asked = []

    def create_model(name: str, pretrained: bool):
        asked.append((name, pretrained))
        return types.SimpleNamespace(state_dict=lambda: {**trunk, **head})

    net = ResNet(1, depths=(1, 1, 6, 1), width=2, features=4)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="'timm', which is not installed"):
        start_from(net, "timm")
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    assert set(start_from(net, "timm")) == set(trunk)
    assert asked == [("resnet50", True)]
    assert all(torch.equal(net.state_dict()[k], v) for k, v in trunk.items())

    def offline(name: str, pretrained: bool):
        raise OSError("no network here")

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=offline))
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(no network here\)"):
        start_from(net, "timm")


def test_online_weights_say_what_is_missing(monkeypatch):
    net = ResNet(1, depths=(1, 1, 23, 1), width=2, features=4)
    with pytest.raises(ConfigError, match="resnet101"):
        start_from(little(), "online")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match="torchvision"):
        start_from(net, "online")

    def download(progress: bool):
        with socket.create_connection(("192.0.2.1", 9), timeout=0.01):  # a documentation address
            raise AssertionError

    weights = types.SimpleNamespace(COCO_WITH_VOC_LABELS_V1=types.SimpleNamespace(get_state_dict=download))
    names = ["torchvision", "torchvision.models", "torchvision.models.segmentation"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].DeepLabV3_ResNet101_Weights = weights
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        start_from(net, "online")
