"""The whole volume in one pass, padded to what the network divides by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.inference.forward import Autocast, Forward
from seguro.inference.sliding import Slab, as_tensor, padded
from seguro.methods.contract import Predictor, Whole


def slabs(
    predictor: Predictor,
    x: Tensor | NDArray[np.float32],
    tiling: Whole,
    *,
    axis: int = 0,
    flips: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: Autocast | None = None,
) -> Iterator[Slab]:
    """Yield one slab: the logits of all of x, padded with its edge to a multiple and cropped again.

    Yields:
        (0, size along `axis`, logits (classes, Z, Y, X) float32).
    """
    forward = Forward(predictor, device=device, flips=flips, autocast=autocast)
    image = as_tensor(x)
    shape = image.shape[1:]
    size = [-(-n // m) * m for n, m in zip(shape, tiling.multiple, strict=True)]
    image, before = padded(image, size)
    logits = forward(image[None])[0]
    if tuple(logits.shape) != (predictor.classes.n, *size):
        raise ConfigError(
            f"the predictor returned {tuple(logits.shape)} (classes, z, y, x) expected "
            f"{(predictor.classes.n, *size)}; a network must keep the size of its input"
        )
    box = tuple(slice(f, f + n) for f, n in zip(before, shape, strict=True))
    yield 0, shape[axis], logits[(slice(None), *box)]
