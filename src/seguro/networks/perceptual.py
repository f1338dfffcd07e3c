"""How unlike two images look to a trained network (LPIPS, Zhang et al., CVPR 2018), from a local file.

The network is the convolutional part of AlexNet. Nothing is downloaded: whoever has its weights gives them as
a .safetensors file, with the names that torchvision has for them and, where the calibration of LPIPS is
wanted, those that LPIPS has for its own (`lin0.model.1.weight` to `lin4.model.1.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.networks.weights import tensors_from

PLACES = (0, 3, 6, 8, 10)
"""Of the convolutions among torchvision's `features`; the distance is taken after each one's ReLU."""
POOLED = (3, 6)
"""Those before which maps are halved."""
SHAPES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
"""Outputs, inputs and width of each convolution."""
STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that the network was trained on, in [0, 1]."""
LEAST = 31
"""Pixels across, below which the last maps have none."""
TINY = 1e-10


class Perceptual(nn.Module):
    """A frozen distance of images.

    Args:
        weights: by name, see above; other names are not looked at.

    Raises:
        DataError: names that are missing, or tensors of other shapes.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        wanted: dict[str, tuple[int, ...]] = {}
        for at, shape in zip(PLACES, SHAPES, strict=True):
            wanted |= {f"features.{at}.weight": (*shape, shape[2]), f"features.{at}.bias": shape[:1]}
        own = {f"lin{i}.model.1.weight": (1, s[0], 1, 1) for i, s in enumerate(SHAPES)}
        if any(name in weights for name in own):
            wanted |= own
        wrong = sorted(n for n, s in wanted.items() if n not in weights or weights[n].shape != s)
        if wrong:
            raise DataError(
                f"weights of a perceptual distance: {len(wrong)} of {len(wanted)} tensors are missing or of "
                f"another shape, such as {wrong[0]} {wanted[wrong[0]]}; give those of AlexNet"
            )
        for name in wanted:
            self.register_buffer(name.replace(".", "_"), weights[name].float().clone(), persistent=False)
        self.calibrated = "lin0.model.1.weight" in wanted
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(SD).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of images (N, C, Y, X) in [-1, 1], averaged over them and channels, a scalar.

        Raises:
            ConfigError: images of fewer than LEAST pixels.
        """
        if min(a.shape[2:]) < LEAST:
            raise ConfigError(
                f"images of {tuple(a.shape[2:])} pixels: a perceptual distance needs {LEAST} at least; leave "
                "it out, or take a larger size"
            )
        total = torch.zeros((), device=a.device)
        for level, (x, y) in enumerate(zip(self._maps(a), self._maps(b), strict=True)):
            apart = (_unit(x) - _unit(y)).square()
            if self.calibrated:
                apart = apart * self.get_buffer(f"lin{level}_model_1_weight")
            total = total + apart.sum(1).mean()
        return total

    def _maps(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of every channel, which is shown as gray."""
        x = image.reshape(-1, 1, *image.shape[2:]).expand(-1, 3, -1, -1)
        x = ((x + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("sd")
        out = []
        for at, stride, padding in zip(PLACES, STRIDES, PADDINGS, strict=True):
            if at in POOLED:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (self.get_buffer(f"features_{at}_{kind}") for kind in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            out.append(x)
        return out


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + TINY).sqrt()


def perceptual_from(path: Path) -> Perceptual:
    """Return the distance whose weights lie in a file.

    Raises:
        ConfigError: another kind of file.
        DataError: no such file, or it has other tensors.
    """
    return Perceptual(tensors_from(path, "perceptual"))
