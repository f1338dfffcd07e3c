"""Layers of StyleGAN2 in plain torch: equalized learning rates, modulated convolutions, blurred resampling.

Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020; every layer can be
differentiated twice, which R1 and path length need.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (1.0, 3.0, 3.0, 1.0)
"""Of the low-pass filter before sampling down and after sampling up."""
SLOPE = 0.2
GAIN = sqrt(2)
"""Keeps the variance through a leaky ReLU of this slope, nearly."""
EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Return each row of x (N, C) divided by the root of its mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)


def leaky(x: Tensor) -> Tensor:
    """Return the leaky ReLU of x times the gain."""
    return F.leaky_relu(x, SLOPE) * GAIN


class EqualLinear(nn.Module):
    """A linear layer whose weights are standard normal and scaled when used, so that all learn equally fast.

    Args:
        cin: inputs.
        cout: outputs.
        bias: value that the bias starts from.
        rate: factor of the learning rate.

    Shape: (N, cin) -> (N, cout).
    """

    def __init__(self, cin: int, cout: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin) / rate)
        self.bias = nn.Parameter(torch.full((cout,), bias / rate))
        self.scale = rate / sqrt(cin)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the affine map of x."""
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """A convolution with equalized learning rate that keeps the size, or blurs and halves it.

    Shape: (N, cin, Y, X) -> (N, cout, Y, X), or (N, cout, Y/2, X/2) with `down`.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, down: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        self.scale = 1 / sqrt(cin * kernel * kernel)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x."""
        kernel = self.weight.shape[-1]
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=kernel // 2)
        pad = (kernel + 1) // 2  # so that blur and stride give exactly half the size
        return F.conv2d(blurred(x, before=pad, after=pad), weight, self.bias, stride=2)


class ModulatedConv(nn.Module):
    """A convolution that scales its input channels by a style and brings the output variance back to 1.

    Args:
        cin: input channels.
        cout: output channels.
        kernel: odd size.
        latent: length of a code.
        up: doubles the size.
        demodulate: divide by the norm of the modulated weights (not where an image is made).

    Shape: x (N, cin, Y, X), code (N, latent) -> (N, cout, Y, X), twice the size with `up`.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, latent: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel))
        self.style = EqualLinear(latent, cin, bias=1.0)
        self.scale = 1 / sqrt(cin * kernel * kernel)
        self.up = up
        self.demodulate = demodulate

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Return the convolution of x under `code`."""
        style = self.style(code)  # (N, cin)
        weight = self.weight * self.scale
        x = x * style[:, :, None, None]  # scaling the input is scaling the weights of each sample
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = blurred(x, before=1, after=1, gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return x
        power = style.square() @ weight.square().sum((2, 3)).t()  # (N, cout)
        return x * torch.rsqrt(power + EPS)[:, :, None, None]


Noise = Literal["random", "fixed", "none"]
"""Per-pixel noise of a generator: drawn anew, the stored maps, or none."""
Source = torch.Generator | Sequence[torch.Generator] | None
"""Where random noise comes from: one for all images, one for each of them, or torch's own state."""


class Styled(nn.Module):
    """A modulated convolution, noise of one learned strength, bias and leaky ReLU.

    Shape: as `ModulatedConv`.
    """

    def __init__(self, cin: int, cout: int, latent: int, resolution: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(cin, cout, 3, latent, up=up)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, code: Tensor, noise: Noise, rng: Source) -> Tensor:
        """Return the activation; `rng` is used by random noise only."""
        x = self.conv(x, code)
        if noise != "none":
            x = x + self.strength * self._noise(x, noise, rng)
        return leaky(x + self.bias[:, None, None])

    def _noise(self, x: Tensor, noise: Noise, rng: Source) -> Tensor:
        if noise == "fixed":
            return self.get_buffer("noise").to(x.dtype)
        n, _, height, width = x.shape
        one = (1, height, width)
        if isinstance(rng, Sequence):
            return torch.stack([torch.randn(one, generator=r, device=x.device) for r in rng]).to(x)
        return torch.randn((n, *one), generator=rng, device=x.device).to(x)


def blurred(x: Tensor, *, before: int, after: int, gain: float = 1.0) -> Tensor:
    """Return x (N, C, Y, X) padded by zeros and low-pass filtered, each axis `before + after - 3` longer."""
    taps, c = x.new_tensor(TAPS) / sum(TAPS), x.shape[1]
    kernel = gain * torch.outer(taps, taps)
    # one group per channel: as one channel of N C images it is 20 times slower on a CPU
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel.expand(c, 1, 4, 4), groups=c)


def enlarged(x: Tensor) -> Tensor:
    """Return x (N, C, Y, X) at twice its size, zeros between the pixels filled by the low-pass filter."""
    n, c, height, width = x.shape
    taps = x.new_tensor(TAPS) / sum(TAPS)
    kernel = 4 * torch.outer(taps, taps)
    flat = F.conv_transpose2d(x.reshape(n * c, 1, height, width), kernel[None, None], stride=2, padding=1)
    return flat.reshape(n, c, 2 * height, 2 * width)
