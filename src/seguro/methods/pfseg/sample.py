"""One training sample: a whole volume, freshly augmented from the stored one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import Three, ThreeF
from seguro.data.augment import draw as draw_augmentation
from seguro.data.augment import patch_of
from seguro.data.plan import Plan
from seguro.data.sampling import centre
from seguro.data.store import Stored
from seguro.methods.pfseg.config import PfsegConfig

THICK = 10.0
"""Ratio of spacings that keeps rotations within the slices."""


@dataclass(frozen=True)
class WholeVolume:
    """One volume with its label; stacked along a first axis it is the batch."""

    image: NDArray[np.float32]
    """(C, *size)."""
    label: NDArray[np.uint8]
    """(*size) stored labels, IGNORE beyond the volume."""
    annotated: NDArray[np.float32]
    """(foreground,) 1 where the class was looked for."""
    places: NDArray[np.float32]
    """(crops, 3) in [0, 1): where the crops lie if their rule is random."""


def whole_volume(
    case: Stored, size: Three, plan: Plan, config: PfsegConfig, rng: np.random.Generator
) -> WholeVolume:
    """Return one augmented volume of a labelled case; what is stored stays as it is.

    A case larger than `size` is cut anywhere, a smaller one lies in the middle of repeated edges.

    Args:
        case: has a label.
        size: (Z, Y, X).
        plan: gives mirroring, the slice axis and classes.
        config: how strongly it is changed.
        rng: the only source of randomness.
    """
    middle = centre(case, size, rng, p_foreground=0.0)
    middle = shifted(middle, size, plan.slice_axis, config, rng)
    drawn = draw_augmentation(
        rng,
        config.augment,
        spacing=_rotation_spacing(case.grid.spacing, plan.slice_axis, config),
        patch=size,
        mirror=plan.mirror,
        classes=plan.classes,
    )
    image, label = patch_of(case, middle, size, drawn)
    places = rng.random((config.crops, 3), dtype=np.float32)
    return WholeVolume(image, cast(NDArray[np.uint8], label), case.annotated, places)


def shifted(
    middle: ThreeF, size: Three, slice_axis: int, config: PfsegConfig, rng: np.random.Generator
) -> ThreeF:
    """Return the middle moved by whole voxels within the slices."""
    out = list(middle)
    if rng.random() < config.p_shift:
        for axis in range(3):
            far = int(size[axis] * config.shift)
            if axis != slice_axis and far:
                out[axis] += int(rng.integers(-far, far))
    return out[0], out[1], out[2]


def _rotation_spacing(spacing: ThreeF, slice_axis: int, config: PfsegConfig) -> ThreeF:
    """Return the spacing by which rotations are drawn: as thick slices, nothing turns out of the plane."""
    if config.rotate == "all":
        return spacing
    out = list(spacing)
    out[slice_axis] = THICK * max(spacing)
    return out[0], out[1], out[2]
