"""Attacked volumes as files, in the units of the originals, with the bound checked on what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import RunError
from seguro.core.files import atomic
from seguro.core.types import Grid
from seguro.data.formats import read_image

ROUNDING = 1e-4
"""By how much float32 and the affine way back to file units may exceed the bound, as a fraction of it."""


def save_volumes(
    folder: Path,
    case: str,
    strength: str,
    clean: NDArray[np.float32],
    adversarial: NDArray[np.float32],
    scales: Sequence[tuple[float, float]],
    grid: Grid,
    bound: Sequence[float],
) -> list[Path]:
    """Write the clean and the attacked volume on the planned grid as float32 NIfTI, and check them.

    Args:
        folder: where `<case>_clean.nii.gz` and `<case>_<strength>.nii.gz` go.
        case: id.
        strength: name of the epsilon, for the file name.
        clean: (C, Z, Y, X) as the model sees it.
        adversarial: the same, attacked.
        scales: per channel, file units of one scaled unit, and the file value of zero.
        grid: planned.
        bound: per channel, epsilon in file units.

    Raises:
        RunError: a voxel read back lies further from its clean value than the bound; nothing is left.
    """
    paths = [folder / f"{case}_clean.nii.gz", folder / f"{case}_{strength}.nii.gz"]
    unit, zero = (np.array([s[i] for s in scales], np.float64).reshape(-1, 1, 1, 1) for i in (0, 1))
    for path, image in zip(paths, (clean, adversarial), strict=True):
        _write(path, (image * unit + zero).astype(np.float32), grid)
    back = [read_image([p], channels=len(scales)).array.astype(np.float64) for p in paths]
    for i, limit in enumerate(bound):
        value = max(float(np.abs(back[0][i]).max()), 1e-30)
        worst = float(np.abs(back[1][i] - back[0][i]).max())
        if worst > limit * (1 + ROUNDING) + value * 2 * float(np.finfo(np.float32).eps):
            paths[1].unlink()
            raise RunError(
                f"{paths[1]}: channel {i} differs by {worst:.6g} from the clean file, bound {limit:.6g}"
            )
    return paths


def _write(path: Path, image: NDArray[np.float32], grid: Grid) -> None:
    """Write (C, Z, Y, X) with channels last, in canonical order."""
    import nibabel

    array = image[0].transpose(2, 1, 0) if len(image) == 1 else image.transpose(3, 2, 1, 0)
    with atomic(path) as temporary:
        whole = nibabel.Nifti1Image(array, grid.affine)
        temporary.write_bytes(_packed(whole.to_bytes()))


def _packed(data: bytes) -> bytes:
    """Return the gzip stream of `data`, without a date."""
    import gzip

    return gzip.compress(data, compresslevel=3, mtime=0)
