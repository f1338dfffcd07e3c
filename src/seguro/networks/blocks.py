"""Building blocks for 2-D and 3-D networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ConvBlock(nn.Sequential):
    """Convolution, instance normalization, leaky ReLU (slope 0.01), `n` times; the first may be strided.

    Shape: (N, cin, *size) -> (N, cout, *ceil(size / stride)).
    """

    def __init__(
        self, cin: int, cout: int, *, kernel: Sequence[int], stride: Sequence[int] | int = 1, n: int = 2
    ) -> None:
        dims = len(kernel)
        layers: list[nn.Module] = []
        for i in range(n):
            layers += [
                CONV[dims](
                    cin if i == 0 else cout,
                    cout,
                    kernel_size=tuple(kernel),
                    stride=tuple([stride] * dims if isinstance(stride, int) else stride) if i == 0 else 1,
                    padding=tuple(k // 2 for k in kernel),
                    bias=False,  # the normalization that follows removes it
                ),
                INSTANCE_NORM[dims](cout, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


def initialize(module: nn.Module) -> None:
    """Initialize every convolution in `module` as He et al. for leaky ReLU, biases to zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(part.weight, a=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Return `x` (N, C, *size) edge-padded at the far end to a multiple, and the slices that undo it."""
    import torch.nn.functional as F

    size = x.shape[2:]
    extra = [(-s) % m for s, m in zip(size, multiple, strict=True)]
    undo = (slice(None), slice(None), *(slice(0, s) for s in size))
    if not any(extra):
        return x, undo
    pads = [p for e in reversed(extra) for p in (0, e)]
    return F.pad(x, pads, mode="replicate"), undo
