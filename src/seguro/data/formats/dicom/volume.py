"""The voxels of a series: decoded, rescaled slice by slice, and interpolated only when asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError, ExtraMissing
from seguro.core.files import MAX_FILE_BYTES
from seguro.core.types import Volume
from seguro.data import geometry
from seguro.data.formats import nifti
from seguro.data.formats.dicom.frames import Frame
from seguro.data.formats.dicom.reading import broken, open_whole, quiet, transfer_syntax
from seguro.data.formats.dicom.scan import Series
from seguro.data.formats.dicom.stack import Stack, stacked

PHYSICAL = ("CT", "PT")
"""Modalities whose numbers mean something by themselves: how they are shown does not change them."""


def read_series(series: Series, *, resample: bool = False, limit: int = MAX_FILE_BYTES) -> Volume:
    """Return a series as float32 (1, Z, Y, X) in canonical order, to be written as NIfTI.

    Args:
        series: of `list_series`.
        resample: interpolate uneven gaps and tilt away instead of refusing them.
        limit: largest size in bytes of a file, and of the volume.

    Raises:
        DataError: damaged or missing pixels.
        GeometryError: slices that form no regular grid (`stacked`).
        ExtraMissing: the compression needs a codec that is not installed.
    """
    stack = stacked(series.frames, series.where, resample=resample)
    volume = read_stack(stack, limit=limit)
    notes = (series.note,) if series.note else ()
    return Volume(volume.array, volume.grid, volume.source, volume.sha256, (*notes, *volume.notes))


def read_stack(stack: Stack, *, limit: int = MAX_FILE_BYTES) -> Volume:
    """Return the voxels of a stack, as `read_series`."""
    rows, columns = stack.frames[0].shape
    size = max(len(stack.frames), stack.n_slices) * rows * columns * 4
    if size > limit:
        raise DataError(
            f"{stack.frames[0].path.parent}: {len(stack.frames)} slices of {rows} x {columns} take {size} "
            f"bytes, more than the limit of {limit}"
        )
    slices = np.empty((len(stack.frames), rows, columns), np.float32)
    notes = list(stack.notes)
    hashes: list[str] = []
    by_path: dict[Path, list[int]] = {}
    for k, frame in enumerate(stack.frames):
        by_path.setdefault(frame.path, []).append(k)
    turned = False
    for path, places in by_path.items():
        decoded = _decoded(path, limit)
        hashes.append(decoded.sha256)
        turned |= decoded.mirror is not None
        for k in places:
            slices[k] = _physical(stack.frames[k], decoded)
    if turned:
        notes.append("MONOCHROME1: turned, so that large values are bright")
    if len({(f.slope, f.intercept) for f in stack.frames}) > 1:
        notes.append("slices have slopes and intercepts of their own, each was applied")
    if not stack.regular:
        slices = interpolated(slices, stack)
    array, grid, _, _ = geometry.to_canonical(slices.transpose(2, 1, 0), stack.affine)
    image = np.ascontiguousarray(array)[None]
    return Volume(image, grid, nifti.source_of(grid), tuple(hashes), tuple(notes))


@dataclass(frozen=True)
class _Decoded:
    """The stored values of a file."""

    pixels: NDArray[Any]
    """(frames, rows, columns)."""
    sha256: str
    mirror: float | None
    """Smallest plus largest value that can be stored, where small ones are bright: x becomes mirror - x."""


def _decoded(path: Path, limit: int) -> _Decoded:
    found, sha256 = open_whole(path, limit=limit)
    with quiet():
        syntax = transfer_syntax(found)
        _require_codec(path, syntax)
        try:
            n = int(found.get("NumberOfFrames") or 1)
            size = n * int(found.Rows) * int(found.Columns) * 8
            if size > limit:
                raise DataError(f"{path}: {size} bytes decoded, more than the limit of {limit}")
            if getattr(found, "file_meta", None) is None or "TransferSyntaxUID" not in found.file_meta:
                found.ensure_file_meta()
                found.file_meta.TransferSyntaxUID = syntax
            pixels = np.asarray(found.pixel_array)
            if not syntax.is_compressed:
                pixels = _stored_bits(pixels, found)
            return _Decoded(pixels.reshape((n, *pixels.shape[-2:])), sha256, _mirror(found))
        except broken() as error:
            raise DataError(
                f"{path}: the pixels cannot be decoded ({_first_line(error)}); truncated or damaged: copy "
                "the file again from its source"
            ) from error


def _stored_bits(pixels: NDArray[Any], found: Any) -> NDArray[Any]:
    """Return raw integers with their sign, and without what older files keep in the bits above (overlays)."""
    stored, allocated = int(found.get("BitsStored") or 0), int(found.get("BitsAllocated") or 0)
    if pixels.dtype.kind not in "iu" or not 1 < stored < allocated or allocated != 8 * pixels.dtype.itemsize:
        return pixels
    if int(found.get("HighBit") or 0) != stored - 1:
        return pixels
    return np.asarray((pixels << (allocated - stored)) >> (allocated - stored))


def _mirror(found: Any) -> float | None:
    if found.get("PhotometricInterpretation") != "MONOCHROME1" or found.get("Modality") in PHYSICAL:
        return None
    bits = int(found.get("BitsStored") or found.BitsAllocated)
    signed = int(found.get("PixelRepresentation") or 0) == 1
    return -1.0 if signed else 2.0**bits - 1


def _physical(frame: Frame, decoded: _Decoded) -> NDArray[np.float64]:
    """Return the values (rows, columns) of a slice by its own slope and intercept."""
    stored = decoded.pixels[frame.index or 0]
    if stored.shape != frame.shape:
        raise DataError(f"{frame.path}: pixels of shape {stored.shape}, the header says {frame.shape}")
    values = stored if decoded.mirror is None else decoded.mirror - stored.astype(np.float64)
    return np.asarray(values * np.float64(frame.slope) + frame.intercept)


def _require_codec(path: Path, syntax: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if not syntax.is_transfer_syntax:
        raise DataError(f"{path}: the transfer syntax {str(syntax)!r} is none; the header is damaged")
    if not syntax.is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(f"{path}: compressed as {syntax.name}, which is not known; convert it") from error
    if not decoder.is_available:
        raise ExtraMissing("python-gdcm", "dicom", f"{path}: compressed as {syntax.name}, which")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def interpolated(slices: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Return slices (n, rows, columns) on the stack's regular grid: shifted back in plane, then along z.

    Linear; outside of a slice lies the smallest value of all.
    """
    from scipy import ndimage

    first = stack.frames[0]
    low = float(slices.min())
    straight = np.empty_like(slices)
    for k, (right, down) in enumerate(stack.drift):
        shift = (down / first.spacing[0], right / first.spacing[1])
        moved = max(abs(s) for s in shift) > 1e-6
        straight[k] = (
            ndimage.shift(slices[k], shift, order=1, mode="constant", cval=low) if moved else slices[k]
        )
    places = np.arange(stack.n_slices) * stack.step
    upper = np.clip(np.searchsorted(stack.along, places), 1, len(stack.along) - 1)
    start, end = np.take(stack.along, upper - 1), np.take(stack.along, upper)
    t = np.clip((places - start) / (end - start), 0.0, 1.0).astype(np.float32)[:, None, None]
    return np.asarray(straight[upper - 1] * (1 - t) + straight[upper] * t, np.float32)
