"""Slice by slice for 2-D networks: batches of slices along one axis, tiled where the plane is larger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.inference.forward import Autocast, Forward
from seguro.inference.sliding import Slab, as_tensor, padded, shares, window_starts
from seguro.methods.contract import Predictor, Slices


def slabs(
    predictor: Predictor,
    x: Tensor | NDArray[np.float32],
    tiling: Slices,
    *,
    batch: int = 4,
    flips: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: Autocast | None = None,
) -> Iterator[Slab]:
    """Yield logits of x in slabs of `batch` slices along the tiling's axis; slabs touch and cover x exactly.

    Args:
        predictor: called on (N, C, 1, A, B), A and B being the other two canonical axes in rising order.
        x: (C, Z, Y, X) float32 in the planned grid.
        tiling: slice axis, size in plane and overlap; a smaller plane is padded with its edge, then cropped.
        batch: slices per call.
        flips: canonical axes mirrored at test time; the slice axis has no effect on single slices.
        device: where the network runs and the slabs lie.
        autocast: context of the calls.

    Yields:
        (start, stop, logits (classes, Z, Y, X) float32, `stop - start` long along the slice axis).
    """
    image = as_tensor(x).movedim(tiling.axis + 1, 1)  # (C, n, A, B)
    shape = image.shape[2:]
    forward = _forward(predictor, tiling.axis, device, flips, autocast)
    image, (_, top, left) = padded(image, (0, *tiling.size))
    starts = [window_starts(n, p, tiling.overlap) for n, p in zip(image.shape[2:], tiling.size, strict=True)]
    part = [[w.to(forward.device) for w in shares(s, p)] for s, p in zip(starts, tiling.size, strict=True)]
    height, width = tiling.size
    for first in range(0, image.shape[1], batch):
        stack = image[:, first : first + batch].movedim(1, 0)  # (N, C, A, B)
        n = stack.shape[0]
        out = torch.zeros((n, predictor.classes.n, *image.shape[2:]), device=forward.device)
        for (i, a), (j, b) in product(enumerate(starts[0]), enumerate(starts[1])):
            logits = forward(stack[:, :, None, a : a + height, b : b + width])[:, :, 0]
            if logits.shape[1:] != (predictor.classes.n, height, width):
                raise ConfigError(
                    f"the predictor returned {tuple(logits.shape[1:])} (classes, a, b) for a slice where "
                    f"{(predictor.classes.n, height, width)} is expected; a network must keep the size"
                )
            out[:, :, a : a + height, b : b + width] += logits * (part[0][i][:, None] * part[1][j])
        cropped = out[:, :, top : top + shape[0], left : left + shape[1]]
        yield first, first + n, cropped.movedim(0, tiling.axis + 1)


def _forward(
    predictor: Predictor,
    axis: int,
    device: torch.device | str,
    flips: Sequence[int],
    autocast: Autocast | None,
) -> Forward:
    """Return the call on slices (N, C, 1, A, B) for flips given along canonical axes."""
    plane = [k for k in (0, 1, 2) if k != axis]
    return Forward(
        predictor,
        device=device,
        flips=[1 + plane.index(f) for f in flips if f != axis],
        autocast=autocast,
        lateral=1 + plane.index(2) if 2 in plane else None,
    )
