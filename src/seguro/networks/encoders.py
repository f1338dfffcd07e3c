"""Encoders for few-shot segmentation: image slices to dense features.

Each has `stride` (pixels per feature cell) and `features` (channels out); any size is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.networks.blocks import initialize


class Encoder(nn.Module):
    """Base of encoders: (N, C, H, W) -> (N, features, ceil(H / stride), ceil(W / stride))."""

    stride: int
    features: int


class Residual(Encoder):
    """Small residual network with group normalization, to be trained from scratch on few images.

    A strided 5 x 5 convolution, then residual blocks of `width`, twice `width` (strided, then not) and four
    times `width` (dilations 2, 4 and 8); about 1 M parameters at width 32. Stride 4.
    """

    def __init__(self, in_channels: int, *, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.stride = 4
        self.features = features
        plan = [(1, 1, 1), (2, 2, 1), (2, 1, 1), (4, 1, 2), (4, 1, 4), (4, 1, 8)]
        widths = [width, *(w * width for w, _, _ in plan)]
        blocks = [
            ResidualBlock(before, after, stride=s, dilation=d)
            for before, after, (_, s, d) in zip(widths, widths[1:], plan, strict=False)
        ]
        self.network = nn.Sequential(
            nn.Conv2d(in_channels, width, 5, stride=2, padding=2, bias=False),
            nn.GroupNorm(_groups(width), width),
            nn.ReLU(inplace=True),
            *blocks,
            nn.Conv2d(4 * width, features, 1, bias=False),
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of images."""
        return cast(Tensor, self.network(x))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalization beside a shortcut; the first may be strided."""

    def __init__(self, cin: int, cout: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
            nn.GroupNorm(_groups(cout), cout),
            nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=dilation, dilation=dilation, bias=False),
            nn.GroupNorm(_groups(cout), cout),
        )
        self.shortcut = nn.Identity() if cin == cout and stride == 1 else nn.Conv2d(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified."""
        return F.relu(self.body(x) + self.shortcut(x))


def _groups(width: int) -> int:
    return next(g for g in (8, 4, 2, 1) if width % g == 0)


class Bottleneck(nn.Module):
    """Bottleneck of a residual network (He et al. 2016), names as in the public weight files."""

    def __init__(self, cin: int, width: int, *, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(cin, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Encoder):
    """Residual network of bottlenecks at stride 8, the last two stages dilated, and a 1 x 1 convolution.

    The published encoder (ECCV 2020, section 4): ResNet-101 without the segmentation head, 2048 -> 256
    channels. One image channel is repeated to the three of the stem. Parts are named as in torchvision, so
    that its weights fit.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        depths: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        features: int = 256,
    ) -> None:
        super().__init__()
        self.stride = 8
        self.features = features
        stem = 3 if in_channels == 1 else in_channels
        self.repeat = stem // in_channels
        self.conv1 = nn.Conv2d(stem, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        cin = width
        for i, depth in enumerate(depths):
            stride, dilation = 2 if i == 1 else 1, max(1, 1 << i >> 1)
            stage = []
            for j in range(depth):
                # as in the published dilation: the first block of a stage still has the one before it
                d = max(1, dilation // 2) if j == 0 else dilation
                stage.append(
                    Bottleneck(cin, width << i, stride=stride if j == 0 else 1, dilation=d, project=j == 0)
                )
                cin = 4 * (width << i)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.n_stages = len(depths)
        self.reduce = nn.Conv2d(cin, features, 1, bias=False)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of images."""
        x = x.repeat(1, self.repeat, 1, 1) if self.repeat > 1 else x
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(self.n_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return cast(Tensor, self.reduce(x))


DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def build_encoder(name: str, *, in_channels: int, width: int, features: int) -> Encoder:
    """Return the encoder `name`: residual, resnet50 or resnet101; its weights are random.

    Raises:
        ConfigError: unknown name.
    """
    if name == "residual":
        return Residual(in_channels, width=width, features=features)
    if name not in DEPTHS:
        raise ConfigError(f"no encoder {name!r}; known are residual, {', '.join(DEPTHS)}")
    return ResNet(in_channels, depths=DEPTHS[name], width=width, features=features)
