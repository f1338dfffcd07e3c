"""Slices in order along their normal: even gaps and no tilt, or a refusal in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import GeometryError
from seguro.data import geometry
from seguro.data.formats.dicom.frames import Frame

SAME_PLACE_MM = 0.01
"""Slices closer than this lie at one position."""
EVEN_MM, EVEN_PART = 0.02, 0.01
"""A gap may differ from the usual one by this much, or by this part of it: headers round."""
LARGEST_HOLE = 3.0
"""A gap of more than so many steps is never interpolated: what lies in it is not known."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Stack:
    """Slices in order, and the regular grid they lie on or are to be interpolated to."""

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    """(4, 4), from (column, row, slice) to RAS+ in mm."""
    along: tuple[float, ...]
    """Place of each slice along the normal, in mm from the first."""
    drift: NDArray[np.float64]
    """(slices, 2): how far each slice lies off the first one's normal, in mm along its columns and rows."""
    step: float
    """Between the slices of the grid, in mm."""
    n_slices: int
    """Of the grid."""
    regular: bool
    """Whether the slices are those of the grid, so that nothing need be interpolated."""
    notes: tuple[str, ...] = ()


def normal(frame: Frame) -> NDArray[np.float64]:
    """Return the unit vector across a slice (LPS), along which slices are put in order."""
    cross = np.cross(frame.right, frame.down)
    length = float(np.linalg.norm(cross))
    if not length > 0.5:
        raise GeometryError(
            f"{frame.path}: the directions of rows and columns are {frame.right} and {frame.down}, which "
            "span no plane; the header is damaged"
        )
    return np.asarray(cross / length)


def stacked(frames: Sequence[Frame], where: str, *, resample: bool = False) -> Stack:
    """Return the slices in order.

    Args:
        frames: at least one; all of one orientation, size and pixel spacing.
        where: what messages call them.
        resample: accept tilt and uneven gaps, to be interpolated away.

    Raises:
        GeometryError: two slices at one position; or, unless `resample`, a gantry tilt or uneven gaps, in
            mm; or a hole too large to be interpolated; or axes that are not at right angles.
    """
    n = normal(frames[0])
    positions = np.array([f.position for f in frames])
    order = np.argsort(positions @ n, kind="stable")
    frames, positions = [frames[i] for i in order], positions[order]
    offset = positions - positions[0]
    along = offset @ n
    drift = offset @ np.array([frames[0].right, frames[0].down]).T
    notes: list[str] = []
    gaps = np.diff(along)
    step = float(np.median(gaps)) if len(gaps) else frames[0].thickness or 1.0
    _refuse_repeats(frames, gaps, where)
    tilted = _tilt(along, drift, where, notes, resample=resample)
    uneven = _uneven(gaps, step, where, notes, resample=resample)
    if len(gaps) and not uneven:
        step = float(along[-1] / len(gaps))
        _compare_thickness(frames[0], step, notes)
    return Stack(
        frames=tuple(frames),
        affine=_affine(frames[0], n * step, where),
        along=tuple(float(a) for a in along),
        drift=drift,
        step=step,
        n_slices=int(np.floor(along[-1] / step + 0.5)) + 1 if uneven else len(frames),
        regular=not (tilted or uneven),
        notes=tuple(notes),
    )


def _affine(frame: Frame, across: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(frame.right, frame.spacing[1])
    affine[:3, 1] = np.multiply(frame.down, frame.spacing[0])
    affine[:3, 2] = across
    affine[:3, 3] = frame.position
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return geometry.rigid(affine, where)[0]


def _refuse_repeats(frames: Sequence[Frame], gaps: NDArray[np.float64], where: str) -> None:
    same = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(same):
        first, second = frames[same[0]], frames[same[0] + 1]
        raise GeometryError(
            f"{where}: {len(same)} slices lie at the position of another ({gaps[same[0]]:.3f} mm apart), "
            f"first {first.path.name} and {second.path.name}; these are several images of one place, not one "
            "volume: keep one image for each position"
        )


def _tilt(
    along: NDArray[np.float64], drift: NDArray[np.float64], where: str, notes: list[str], *, resample: bool
) -> bool:
    """Return whether the slices lie off their normal."""
    off = np.linalg.norm(drift, axis=1)
    if off.max() <= max(EVEN_MM, np.tan(np.radians(geometry.MAX_SHEAR_DEG)) * along[-1]):
        return False
    angle = float(np.degrees(np.arctan2(off[-1], along[-1])))
    what = (
        f"slices lie up to {off.max():.2f} mm off the normal of the first one (gantry tilt, "
        f"{angle:.1f} degrees)"
    )
    if not resample:
        raise GeometryError(
            f"{where}: {what}, limit {geometry.MAX_SHEAR_DEG} degrees; straighten them with --resample"
        )
    notes.append(f"{what}: straightened by linear interpolation")
    return True


def _uneven(gaps: NDArray[np.float64], step: float, where: str, notes: list[str], *, resample: bool) -> bool:
    """Return whether the gaps between the slices differ."""
    off = np.abs(gaps - step)
    bad = np.flatnonzero(off > max(EVEN_MM, EVEN_PART * step))
    if not len(bad):
        return False
    worst = int(np.argmax(off))
    missing = round(float(gaps[worst]) / step) - 1
    what = (
        f"{len(bad)} of {len(gaps)} gaps differ from the usual {step:.3f} mm: {gaps[worst]:.3f} mm between "
        f"slices {worst + 1} and {worst + 2} along the normal"
        + (f", where {missing} slice{'s are' if missing > 1 else ' is'} missing" if missing > 0 else "")
    )
    if gaps[worst] > LARGEST_HOLE * step * (1 + EVEN_PART):
        raise GeometryError(
            f"{where}: {what}; more than {LARGEST_HOLE:g} steps are never interpolated: copy the missing "
            "files"
        )
    if not resample:
        raise GeometryError(f"{where}: {what}; copy the missing files, or interpolate with --resample")
    notes.append(f"{what}: interpolated to even gaps")
    return True


def _compare_thickness(frame: Frame, step: float, notes: list[str]) -> None:
    if frame.thickness is not None and abs(frame.thickness - step) > max(0.1, 0.05 * step):
        notes.append(
            f"slices are {step:g} mm apart by their positions, which hold; the header says "
            f"{frame.thickness:g} mm"
        )
