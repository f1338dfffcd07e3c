"""What a file says of itself before its voxels are read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.types import Grid

INTEGER_TOLERANCE = 1e-3
"""Label values this close to a whole number are rounded to it."""

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom", ".dic")
DICOM_AT = 128
"""Where the signature DICM stands."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\x00", "a TIFF picture"),
    (0, b"MM\x00*", "a TIFF picture"),
    (DICOM_AT, b"DICM", "a DICOM file"),
    (0, b"\x89HDF", "an HDF5 file (MINC 2 or MATLAB 7.3 among others)"),
    (0, b"CDF\x01", "a NetCDF file (MINC 1 among others)"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"ObjectType", "a MetaImage file"),
    (0, b"NDims", "a MetaImage file"),
    (0, b"\x00\x00\x00\x01", "an MGH file (FreeSurfer)"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"%PDF", "a PDF"),
    (0, b"{", "a JSON text"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)


@dataclass(frozen=True)
class Facts:
    """Header of a file: its grid and how many channels or frames it holds; no voxels."""

    grid: Grid
    frames: int
    """Entries of the fourth axis, or colour channels."""
    dtype: str
    n_bytes: int
    """Decompressed size of the voxels."""
    notes: tuple[str, ...] = ()


def identify(head: bytes) -> str:
    """Return in words what a file is that begins with `head` (decompressed)."""
    start = head[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (a failed download?)" if b"html" in start else "an XML text"
    for position, magic, name in _SIGNATURES:
        if head[position : position + len(magic)] == magic:
            return name
    if head and not head.strip(b"\x00"):
        return "nothing but zero bytes"
    if len(head) >= 348 and 348 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
        return "an Analyze or NIfTI header without its own voxels (.hdr/.img pair)"
    return f"of unknown type (first bytes {head[:8]!r})"


def peek(path: Path, size: int) -> bytes:
    """Return up to `size` first decompressed bytes of `path`; nothing is verified, `read_checked` does that.

    Raises:
        DataError: missing, unreadable, empty or not decompressible from the start.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(size)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    if not raw:
        raise DataError(f"{path}: the file is empty (0 bytes); copy it again from its source")
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, size)
    except zlib.error as error:
        raise DataError(
            f"{path}: corrupt gzip stream within the first {len(raw)} bytes ({error}); "
            "copy it again from its source"
        ) from error


def whole_numbers(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return label values as the smallest of uint8, int16 and int32.

    Args:
        values: integers, or floats within INTEGER_TOLERANCE of integers.
        where: name of the file, for messages.

    Raises:
        DataError: not finite, not whole, or beyond int32; examples and counts are given.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).sum())
            raise DataError(f"{where}: {n} label voxels are NaN or infinite; labels are whole numbers")
        rounded = np.rint(values)
        off = np.abs(values - rounded) > INTEGER_TOLERANCE
        if off.any():
            examples = ", ".join(f"{v:.4g}" for v in np.unique(values[off])[:5])
            raise DataError(
                f"{where}: {int(off.sum())} label voxels are not whole numbers (e.g. {examples}), the limit "
                "is 0.001 away; was the label resampled with interpolation, or is this the image?"
            )
        values = rounded
    elif values.dtype.kind == "b":
        values = values.astype(np.uint8)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype, copy=False)
    raise DataError(f"{where}: label values from {low:g} to {high:g}; labels must fit 32-bit integers")
