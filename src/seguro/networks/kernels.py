"""Convolutions and instance norm with swish for training separable networks several times faster on a CPU.

torch's own depthwise 3-D gradients and its instance norm are slow on CPUs. There this module keeps maps with
their channels last, writes the input gradient of a 3-D convolution as a forward one, its weight gradient as
three 2-D ones, and norm with swish as one function that does not keep the map between the two. Elsewhere
(GPU, meta tensors, under autocast) the layers run as torch has them. Same results, up to rounding; the fast
ones have first derivatives only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
FEW_CHANNELS = 64
"""Below, a matrix product is slower than a 2-D convolution of the planes."""
CHUNK = 2**18
"""Elements that norm and swish work on at a time; a megabyte of float32 stays in the cache between passes."""


def lean(x: Tensor) -> bool:
    """Return whether the fast CPU formulation applies to `x`."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def channels_last(x: Tensor) -> Tensor:
    """Return `x` (N, C, *size) stored with the channels last where that is fast, else as it is."""
    return x.contiguous(memory_format=LAST[x.ndim]) if lean(x) else x


def convolve(x: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Return the `conv` of `x`: kernel 3, padding 1, no bias, depthwise or over all channels."""
    if not lean(x) or x.ndim == 4:  # 2-D gradients are fast as they are
        return cast(Tensor, conv(x))
    return cast(Tensor, Convolve3d.apply(x, conv.weight, conv.stride, conv.groups))  # type: ignore[no-untyped-call]


def pointwise(x: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Return the 1^n `conv` (no bias, no stride) of `x`."""
    if not lean(x):
        return cast(Tensor, conv(x))
    if x.ndim == 5 and x.shape[1] < FEW_CHANNELS:
        planes = x.movedim(2, 1).flatten(0, 1)  # (N Z, C, Y, X)
        out = F.conv2d(planes, conv.weight.flatten(3))
        return out.reshape(x.shape[0], x.shape[2], *out.shape[1:]).movedim(1, 2)
    return F.linear(x.movedim(1, -1), conv.weight.flatten(1)).movedim(-1, 1)


def every(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the positions of `x` (N, C, *size) that a strided 1^n convolution reads."""
    return x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]


def norm(x: Tensor, layer: nn.Module, *, swish: bool = False) -> Tensor:
    """Return the instance norm `layer` (affine, no running statistics) of `x`, then swish if asked.

    A map of one voxel has no spread and becomes the layer's bias.
    """
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    if lean(x):
        return cast(Tensor, NormSwish.apply(x, weight, bias, layer.eps, swish))  # type: ignore[no-untyped-call]
    if x.shape[2:].numel() == 1:
        out = x * 0 + (weight * 0 + bias).reshape(1, -1, *[1] * (x.ndim - 2))
    else:
        out = cast(Tensor, layer(x))
    return F.silu(out) if swish else out


class Convolve3d(torch.autograd.Function):
    """Convolution of kernel 3, padding 1: x (N, C, Z, Y, X), weight (K, C / groups, 3, 3, 3), groups 1, C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int, int], groups: int) -> Tensor:
        """Return the convolved map (N, K, ...)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        return _convolved(x, weight, stride, groups)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of input and weight."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _to_input(grad, x, weight, ctx.stride, ctx.groups)
        if ctx.needs_input_grad[1]:
            to_weight = _to_weight(grad, x, weight, ctx.stride, ctx.groups)
        return to_x, to_weight, None, None


def _convolved(x: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> Tensor:
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # conv3d itself leaves small inputs to a formulation that is ten times slower
        return cast(
            Tensor, torch.ops.aten.mkldnn_convolution(x, weight, None, [1] * 3, stride, [1] * 3, groups)
        )
    return F.conv3d(x, weight, padding=1, stride=tuple(stride), groups=groups)


def _to_input(grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> Tensor:
    """Convolve the gradient, zeros between its voxels where there was a stride, with the mirrored kernel."""
    if any(s > 1 for s in stride):
        spaced = torch.zeros(
            (len(x), grad.shape[1], *x.shape[2:]), dtype=x.dtype, device=x.device
        ).contiguous(memory_format=torch.channels_last_3d)
        every(spaced, stride).copy_(grad)
        grad = spaced
    mirrored = weight.flip(2, 3, 4)
    return _convolved(grad, mirrored if groups > 1 else mirrored.transpose(0, 1), (1, 1, 1), groups)


def _to_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> Tensor:
    """Return each kernel plane's gradient: that of a 2-D convolution of the slices of x that it met."""
    out = torch.zeros_like(weight)
    depth, step = x.shape[2], stride[0]
    for plane in range(3):
        first = 1 if plane == 0 else 0  # output slice o reads input slice o * step + plane - 1
        last = min(grad.shape[2] - 1, (depth - plane) // step)
        if last < first:
            continue
        start = first * step + plane - 1
        for xs, gs in zip(x, grad, strict=True):
            slices = xs[:, start : last * step + plane : step].movedim(1, 0)  # (Z', C, Y, X)
            to_plane = torch.ops.aten.convolution_backward(
                gs[:, first : last + 1].movedim(1, 0), slices, weight[:, :, plane], None,
                stride[1:], [1, 1], [1, 1], False, [0, 0], groups, [False, True, False],
            )  # fmt: skip
            out[:, :, plane] += to_plane[1]
    return out


class NormSwish(torch.autograd.Function):
    """Instance norm, then swish if asked; keeps its input and the statistics, and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, swish: bool) -> Tensor:
        """Return the normalized map."""
        x = x.contiguous(memory_format=LAST[x.ndim])
        out = torch.empty_like(x)
        moments = []
        for x_one, rows, rows_out in zip(_samples(x), _rows(x), _rows(out), strict=True):
            mean, variance = torch.batch_norm_update_stats(x_one, None, None, 0.0)
            inverse = (variance + eps).rsqrt()
            moments += [mean, inverse]
            scale = weight * inverse
            shift = bias - mean * scale
            for part, to in zip(_chunks(rows), _chunks(rows_out), strict=True):
                torch.addcmul(shift, part, scale, out=to)
                if swish:
                    torch.ops.aten.silu_(to)
        ctx.save_for_backward(x, weight, bias, *moments)
        ctx.swish, ctx.eps = swish, eps
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of input, weight and bias."""
        x, weight, bias, *moments = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST[x.ndim])
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        parts: list[Tensor] = []
        for i, (x_one, g_one, rows) in enumerate(zip(_samples(x), _samples(grad), _rows(x), strict=True)):
            mean, inverse = moments[2 * i : 2 * i + 2]
            scale = weight * inverse
            shift = bias - mean * scale
            onward = g_one
            if ctx.swish:
                onward = torch.empty_like(g_one)
                for part, g, to in zip(
                    _chunks(rows), _chunks(_rows(g_one)[0]), _chunks(_rows(onward)[0]), strict=True
                ):
                    torch.ops.aten.silu_backward.grad_input(
                        g, torch.addcmul(shift, part, scale), grad_input=to
                    )
            found = torch.ops.aten.native_batch_norm_backward(
                onward, x_one, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
            )
            parts.append(found[0])
            to_weight += found[1]
            to_bias += found[2]
        to_x = parts[0] if len(parts) == 1 else torch.cat(parts)
        return to_x, to_weight, to_bias, None, None


def _samples(x: Tensor) -> list[Tensor]:
    """Return each sample of `x`, (1, C, *size)."""
    return [one[None] for one in x]


def _rows(x: Tensor) -> list[Tensor]:
    """Return for each sample of `x`, stored channels last, its view (voxels, C)."""
    return [one.movedim(0, -1).view(-1, x.shape[1]) for one in x]


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(1, CHUNK // rows.shape[1]))
