"""What a forward or backward pass costs in floating-point operations, counted without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

GIGA = 1e9


def flops(call: Callable[[], Any]) -> int:
    """Return the operations of `call()`: two per multiplication and addition of convolutions and products.

    Biases, norms, activations and interpolations are left out, as in published counts.

    Example:
        >>> conv = nn.Conv3d(2, 3, 3, padding=1, device="meta")
        >>> flops(lambda: conv(torch.empty(1, 2, 4, 4, 4, device="meta")))
        20736
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def on_meta(network: nn.Module) -> nn.Module:
    """Return a copy of `network` whose weights have shapes and no values: running it costs nothing."""
    return deepcopy(network).to("meta")


def forward_flops(network: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Return the operations of one forward pass on inputs of `shapes`, without gradients."""
    copy = on_meta(network).eval()
    inputs: list[Tensor] = [torch.empty(shape, device="meta") for shape in shapes]
    with torch.no_grad():
        return flops(lambda: copy(*inputs))
