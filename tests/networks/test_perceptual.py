"""A perceptual distance with made weights: closed forms, and files that do not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from seguro.core.errors import ConfigError, DataError
from seguro.networks.perceptual import LEAST, PLACES, SHAPES, Perceptual, perceptual_from


def weights(*, lin: float | None = None) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    out = {}
    for at, (cout, cin, k) in zip(PLACES, SHAPES, strict=True):
        out[f"features.{at}.weight"] = torch.randn(cout, cin, k, k, generator=rng) / (cin * k * k) ** 0.5
        out[f"features.{at}.bias"] = torch.zeros(cout)
    if lin is not None:
        out |= {f"lin{i}.model.1.weight": torch.full((1, s[0], 1, 1), lin) for i, s in enumerate(SHAPES)}
    return out


def images() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 2, LEAST, LEAST, generator=rng) * 2 - 1 for _ in range(2))  # type: ignore[return-value]


def test_like_images_are_at_zero_and_the_calibration_is_a_weight_of_every_map():
    a, b = images()
    plain, halved = Perceptual(weights()), Perceptual(weights(lin=0.5))
    far = float(plain(a, b))
    assert float(plain(a, a)) == 0 and far > 0
    assert float(plain(b, a)) == pytest.approx(far, rel=1e-6)
    assert float(halved(a, b)) == pytest.approx(far / 2, rel=1e-6)
    alone = [plain(a[:, c : c + 1], b[:, c : c + 1]) for c in range(2)]
    assert float(sum(alone)) / 2 == pytest.approx(far, rel=1e-5)


def test_it_is_that_of_the_layers_of_the_network():
    """The sizes and places of torchvision's AlexNet, built from layers."""
    given, (a, b), layers = weights(), images(), []
    for at, (cout, cin, k), stride in zip(PLACES, SHAPES, (4, 1, 1, 1, 1), strict=True):
        if at in (3, 6):
            layers.append(torch.nn.MaxPool2d(3, 2))
        layers += [torch.nn.Conv2d(cin, cout, k, stride, padding=2 if k > 3 else 1), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers).requires_grad_(False)
    network.load_state_dict({k.removeprefix("features."): v for k, v in given.items()})  # the same numbers
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    total, (p, q) = 0.0, (((i[:, :1].expand(-1, 3, -1, -1) + 1) / 2 - mean) / sd for i in (a, b))
    for layer in network:
        p, q = layer(p), layer(q)
        if isinstance(layer, torch.nn.ReLU):
            d = torch.nn.functional.normalize(p, dim=1) - torch.nn.functional.normalize(q, dim=1)
            total += float(d.square().sum(1).mean())
    assert float(Perceptual(given)(a[:, :1], b[:, :1])) == pytest.approx(total, rel=1e-5)


def test_gradients_reach_the_image_and_nothing_of_it_is_saved_or_learned():
    a, b = images()
    distance = Perceptual(weights())
    distance(a.requires_grad_(True), b).backward()
    assert float(a.grad.abs().max()) > 0
    assert not list(distance.parameters()) and not distance.state_dict()


def test_what_does_not_fit_is_named(tmp_path):
    lacking = {k: v for k, v in weights().items() if k != "features.8.bias"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(DataError, match=r"1 of 10 tensors .* features\.8\.bias"):
        perceptual_from(tmp_path / "lacking.safetensors")
    with pytest.raises(DataError, match=r"of 15 tensors"):
        Perceptual({**weights(), "lin0.model.1.weight": torch.zeros(1, 3, 1, 1)})
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="not a safetensors file"):
        perceptual_from(tmp_path / "torn.safetensors")
    with pytest.raises(ConfigError, match="never loaded"):
        perceptual_from(tmp_path / "alex.pth")
    with pytest.raises(ConfigError, match="needs 31"):
        Perceptual(weights())(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
