"""Files in and out: one function per task, the format chosen by the suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError, GeometryError
from seguro.core.files import MAX_FILE_BYTES
from seguro.core.types import Grid, Source, ThreeF, Volume
from seguro.data import geometry
from seguro.data.formats import nifti, raster
from seguro.data.formats.facts import DICOM_SUFFIXES, Facts

__all__ = [
    "SUFFIXES",
    "Facts",
    "read_facts",
    "read_image",
    "read_label",
    "split_name",
    "write_label",
    "write_scores",
]

_FORMATS: dict[str, ModuleType] = {s: m for m in (nifti, raster) for s in m.SUFFIXES}
SUFFIXES = tuple(_FORMATS)
"""Suffixes that can be read, longest first where one ends in another."""


def split_name(path: Path | str) -> tuple[str, str]:
    """Return the stem and the lower-case suffix of a readable file; the suffix is empty for any other.

    Example:
        >>> split_name("a/scan.1.NII.gz"), split_name("notes.txt")
        (('scan.1', '.nii.gz'), ('notes.txt', ''))
    """
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _format(path: Path) -> ModuleType:
    suffix = split_name(path)[1]
    if not suffix and path.suffix.lower() in DICOM_SUFFIXES:
        raise DataError(f"{path}: a DICOM file; convert its series first: seguro import dicom {path.parent}")
    if not suffix:
        raise DataError(
            f"{path}: cannot read this file type; known are {', '.join(SUFFIXES)}: convert it first"
        )
    return _FORMATS[suffix]


def read_facts(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Facts:
    """Return what the header of `path` says, without reading its voxels; raises as `read_image` does."""
    facts: Facts = _format(path).read_facts(path, spacing=spacing, limit=limit)
    return facts


def read_image(
    paths: Sequence[Path],
    *,
    channels: int | None = None,
    spacing: ThreeF | None = None,
    limit: int = MAX_FILE_BYTES,
) -> Volume:
    """Return one image as float32 (C, Z, Y, X) in canonical order, with the geometry of its first file.

    Args:
        paths: one file with all channels, or one file per channel in order.
        channels: how many channels are expected; None means one for NIfTI and whatever a picture has.
        spacing: (z, y, x) in mm; for NIfTI used only where the file states none, for pictures always.
        limit: largest decompressed size of each file in bytes.

    Raises:
        DataError: a file is missing, damaged, of another type or with other channels.
        GeometryError: unusable affine, or channels on different grids.
    """
    if not paths:
        raise DataError("an image of no files; name at least one")
    if len(paths) == 1:
        volume: Volume = _format(paths[0]).read_image(
            paths[0], channels=channels, spacing=spacing, limit=limit
        )
        return volume
    if channels is not None and channels != len(paths):
        raise DataError(f"{paths[0]} and others: {len(paths)} files where {channels} channels are expected")
    parts: list[Volume] = [_format(p).read_image(p, channels=1, spacing=spacing, limit=limit) for p in paths]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        _refuse_other_grid(paths[0], parts[0].grid, path, part.grid)
    notes = tuple(f"{p.name}: {note}" for p, part in zip(paths, parts, strict=True) for note in part.notes)
    array = np.concatenate([p.array for p in parts])
    return Volume(array, parts[0].grid, parts[0].source, tuple(h for p in parts for h in p.sha256), notes)


def _refuse_other_grid(first: Path, grid: Grid, path: Path, other: Grid) -> None:
    apart = geometry.same_grid(grid, other)
    if apart > geometry.SAME_MM:
        how = (
            f"are {apart:.2f} {grid.unit} apart"
            if np.isfinite(apart)
            else f"have shapes {grid.shape} and {other.shape}"
        )
        raise GeometryError(
            f"{path}: channels lie on different grids: this file and {first.name} {how}; "
            "resample them to one grid before use"
        )


def read_label(
    path: Path, *, like: Grid | None = None, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES
) -> Volume:
    """Return a label map as integers (Z, Y, X), values as in the file.

    Args:
        path: the file.
        like: grid of the image it belongs to; the label must lie on it.
        spacing: as for `read_image`.
        limit: largest decompressed size in bytes.

    Raises:
        DataError: unreadable, or values that are no whole numbers.
        GeometryError: another shape than `like`, or half a voxel or more away from it.
    """
    volume: Volume = _format(path).read_label(path, spacing=spacing, limit=limit)
    if like is None:
        return volume
    note = compare_grids(path, volume.grid, like)
    if note is None:
        return volume
    return Volume(volume.array, volume.grid, volume.source, volume.sha256, (*volume.notes, note))


def compare_grids(path: Path, label: Grid, image: Grid) -> str | None:
    """Return None where label and image share a grid, or a note where they are less than half a voxel apart.

    Raises:
        GeometryError: the shapes differ, or the grids are half a voxel or more apart; both are shown.
    """
    if label.shape != image.shape:
        factor = {a / b for a, b in zip(label.shape, image.shape, strict=True) if a != 1 or b != 1}
        times = f" ({factor.pop():g} times as large)" if len(factor) == 1 else ""
        raise GeometryError(
            f"{path}: label of shape {label.shape}{times} for an image of shape {image.shape}, (z, y, x); "
            "they must match voxel by voxel: export the label on the image's grid"
        )
    apart = geometry.same_grid(label, image)
    if apart < geometry.SAME_MM:
        return None
    if apart < 0.5 * min(image.spacing):
        return f"label lies {apart:.3f} {image.unit} from its image, less than half a voxel: taken as equal"
    raise GeometryError(
        f"{path}: label and image have the same shape but lie {apart:.2f} {image.unit} apart\nlabel:\n"
        f"{geometry.text(label.affine)}\nimage:\n{geometry.text(image.affine)}\n"
        "one of the two headers is wrong, or the label belongs to another image"
    )


def write_label(path: Path, label: NDArray[Any], source: Source) -> Path:
    """Write a canonical label (Z, Y, X) in the geometry and file type of `source`; returns the path.

    Args:
        path: target; its suffix should be `source.suffix`.
        label: whole numbers from 0 on, stored in the smallest unsigned type that holds them.
        source: of the image the label belongs to.

    Raises:
        DataError: negative values, or values that the file type cannot hold.
        GeometryError: the shape is not that of the source.
    """
    low, high = int(label.min()), int(label.max())
    largest = 65535 if source.kind == "raster" else 2**32 - 1
    if low < 0 or high > largest:
        raise DataError(f"{path}: label values from {low} to {high}; from 0 to {largest} can be written")
    small = label.astype(np.min_scalar_type(high))
    return raster.write(path, small, source) if source.kind == "raster" else nifti.write(path, small, source)


def write_scores(path: Path, scores: NDArray[Any], source: Source) -> Path:
    """Write canonical scores (C, Z, Y, X) as float32, return the path: NIfTI, or .npy for pictures."""
    array = scores.astype(np.float32)
    return (
        raster.write_scores(path, array, source)
        if source.kind == "raster"
        else nifti.write(path, array, source)
    )
