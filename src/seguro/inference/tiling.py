"""Driving any predictor slab by slab, whatever its tiling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.core.types import Three
from seguro.inference import slices, sliding, whole
from seguro.inference.forward import Autocast
from seguro.inference.sliding import Slab
from seguro.methods.contract import Predictor, Slices, Tiling, Whole, Windows

BATCH_SLICES = 4
"""Slices per call unless told otherwise; windows go one by one, which is as fast on a CPU."""


def planned_slabs(
    predictor: Predictor,
    x: Tensor | NDArray[np.float32],
    *,
    axis: int = 0,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    flips: Sequence[int] = (),
    overlap: float | None = None,
    autocast: Autocast | None = None,
) -> Iterator[Slab]:
    """Yield (start, stop, logits (classes, Z, Y, X)) of x along `axis`, as the predictor's tiling says.

    Args:
        predictor: in evaluation mode, on `device`.
        x: (C, Z, Y, X) float32 in the planned grid.
        axis: canonical slab axis; must be the slice axis of a slice-wise predictor.
        device: where the network runs and the slabs lie.
        batch: windows or slices per call; None for the default.
        flips: canonical axes mirrored at test time.
        overlap: instead of the tiling's own.
        autocast: context of the calls.

    Raises:
        ConfigError: slabs along another axis than the slices.
    """
    tiling = with_overlap(predictor.tiling, overlap)
    if isinstance(tiling, Windows):
        return sliding.slabs(
            predictor, x, tiling, axis=axis, batch=batch or 1, flips=flips, device=device, autocast=autocast
        )
    if isinstance(tiling, Whole):
        return whole.slabs(predictor, x, tiling, axis=axis, flips=flips, device=device, autocast=autocast)
    if tiling.axis != axis:
        raise ConfigError(
            f"slabs along axis {axis} were asked of a network that works in slices along {tiling.axis}"
        )
    return slices.slabs(
        predictor, x, tiling, batch=batch or BATCH_SLICES, flips=flips, device=device, autocast=autocast
    )


def with_overlap(tiling: Tiling, overlap: float | None) -> Tiling:
    """Return the tiling with another overlap; Whole has none and stays.

    Raises:
        ConfigError: overlap outside [0, 1).
    """
    if overlap is None or isinstance(tiling, Whole):
        return tiling
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap {overlap}: expected a fraction from 0 up to but not including 1")
    return replace(tiling, overlap=overlap)


def slab_axis(tilings: Sequence[Tiling], shape: Three) -> int:
    """Return the axis along which all of `tilings` can be driven together over a volume of `shape` (Z, Y, X).

    The slice axis where there is one; the first where all see the whole volume, since these hand on their
    planes along it; otherwise the axis whose buffer, one window deep, is smallest.

    Raises:
        ConfigError: slices along different axes.
    """
    fixed = sorted({t.axis for t in tilings if isinstance(t, Slices)})
    if len(fixed) > 1:
        raise ConfigError(
            f"the models slice along different axes ({' and '.join('zyx'[a] for a in fixed)}) and cannot "
            "be averaged in one pass; predict with each alone"
        )
    if fixed:
        return fixed[0]
    if all(isinstance(t, Whole) for t in tilings):
        return 0
    depth = [max((t.size[a] for t in tilings if isinstance(t, Windows)), default=1) for a in range(3)]
    return min(range(3), key=lambda a: min(depth[a] / shape[a], 1.0))
