"""The grid that PFSeg's paper trains and scores on: 128 x 192 x 192 voxels, intensities in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.types import Grid, Three, ThreeF
from seguro.data.geometry import resample
from seguro.data.importers.building import unit_range

PLANES, PLANE = 128, 192
SIZE: Three = (PLANES, PLANE, PLANE)
EPOCHS = 100
NOTE = (
    "preset paper is as published and asks for a GPU with 11 GB; without --preset, a machine without a GPU "
    "takes preset small"
)


def training(n: int) -> tuple[str, ...]:
    """Return the options of `seguro train` for what was published, of `n` training cases: 100 epochs."""
    size = ",".join(map(str, SIZE))
    length = ("--updates", str(EPOCHS * n), "--validations", str(EPOCHS))
    return ("--method", "pfseg", "--preset", "paper", "--batch", "1", "--set", f"size=[{size}]", *length)


def published(
    image: NDArray[np.float32],
    label: NDArray[Any] | None,
    grid: Grid,
    what: str,
    *,
    isotropic: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any] | None, ThreeF]:
    """Return image, label and spacing on the published grid.

    Resampled to isotropic voxels where asked for, cropped to 192 x 192 around the middle of the plane, the
    slices interpolated to 128 (whatever their number: the spacing says what became of it), each channel
    scaled to [0, 1]. Linear for images, the nearest voxel for labels; the edges of the field of view
    coincide, where the official code lets the outermost voxel centers do.

    Args:
        image: (C, Z, Y, X).
        label: (Z, Y, X) or None.
        grid: of both.
        what: the case, for messages.
        isotropic: voxel size in mm before the crop; cubic interpolation as in the official liver script.

    Raises:
        DataError: a plane smaller than 192 x 192, or a channel of one value.
    """
    spacing = grid.spacing
    if isotropic is not None:
        z, y, x = (
            max(1, round(n * s / isotropic)) for n, s in zip(image.shape[1:], grid.spacing, strict=True)
        )
        size = (z, y, x)
        image = resample(image, size, order=3)
        label = None if label is None else resample(label, size, order=0)
        spacing = isotropic, isotropic, isotropic
    n, height, width = image.shape[1:]
    if min(height, width) < PLANE:
        raise DataError(
            f"{what}: {height} x {width} voxels in plane, the published crop takes {PLANE} x {PLANE}; import "
            "it as scanned instead"
        )
    top, left = (height - PLANE) // 2, (width - PLANE) // 2
    box = (slice(None), slice(top, top + PLANE), slice(left, left + PLANE))
    image = resample(image[(slice(None), *box)], SIZE, order=1)
    scaled = np.stack([unit_range(c, f"{what}, channel {i}") for i, c in enumerate(image)])
    return (
        scaled,
        None if label is None else resample(label[box], SIZE, order=0),
        (spacing[0] * n / PLANES, spacing[1], spacing[2]),
    )
