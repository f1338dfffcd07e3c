"""PNG, JPEG and TIFF pictures: one slice, grey or colour, spacing in pixels unless it is given."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seguro.core.errors import DataError
from seguro.core.files import MAX_FILE_BYTES, atomic, read_checked
from seguro.core.types import Grid, Source, ThreeF, Volume
from seguro.data import geometry
from seguro.data.formats.facts import Facts, identify, peek, whole_numbers

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "TIFF")
_GREY = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L"}
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)  # all that pillow raises
_ORIENTATION = 274  # EXIF tag


def read_facts(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Facts:
    """Return what the header of `path` says, without decoding the pixels; raises as `read_image` does."""
    with warnings.catch_warnings(), _open(path, path, limit) as picture:
        frames = 1 if picture.mode in _GREY else 3
        size = picture.width * picture.height * frames
        return Facts(_grid((picture.height, picture.width), spacing), frames, picture.mode, size)


def read_image(
    path: Path, *, channels: int | None = None, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES
) -> Volume:
    """Return the picture in `path` as float32 (C, 1, Y, X), as stored; C is 1 for grey, 3 for colour.

    Args:
        path: a PNG, JPEG or TIFF file of 8 or 16 bits.
        channels: expected number of channels; None takes what is there.
        spacing: (z, y, x) in mm; None gives pixels.
        limit: largest size in bytes, of the file and of the decoded picture.

    Raises:
        DataError: unreadable, damaged, of another type, several pages, or other channels than expected.
    """
    pixels, sha256, notes = _pixels(path, limit, colour=True)
    array = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]
    if channels is not None and array.shape[0] != channels:
        raise DataError(
            f"{path}: {array.shape[0]} channel(s) in the picture where {channels} are expected; "
            "convert all pictures of the data set to the same mode"
        )
    image = np.ascontiguousarray(array[:, None], np.float32)
    return Volume(image, _grid(pixels.shape, spacing), _source(pixels), (sha256,), notes)


def read_label(path: Path, *, spacing: ThreeF | None = None, limit: int = MAX_FILE_BYTES) -> Volume:
    """Return the label picture in `path` as integers (1, Y, X); palette pictures give their indices.

    Raises:
        DataError: as `read_image`; besides, colours (a label has one value per pixel) and fractions.
    """
    pixels, sha256, notes = _pixels(path, limit, colour=False)
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise DataError(
                f"{path}: a colour picture as label; save one class number per pixel (grey or palette)"
            )
        pixels = np.ascontiguousarray(pixels[..., 0])
    values = whole_numbers(pixels, str(path))
    return Volume(values[None], _grid(pixels.shape, spacing), _source(pixels), (sha256,), notes)


def write(path: Path, label: NDArray[Any], source: Source) -> Path:
    """Write a label (1, Y, X) with values up to 65535 as grey PNG and return the path."""
    stored = np.ascontiguousarray(geometry.to_file(label, source))
    with atomic(path) as temporary, temporary.open("wb") as stream:
        Image.fromarray(stored).save(stream, format="PNG")
    return path


def write_scores(path: Path, scores: NDArray[Any], source: Source) -> Path:
    """Write scores (C, 1, Y, X) as a .npy file of (rows, columns, C) and return its path."""
    stored = np.ascontiguousarray(geometry.to_file(scores, source))
    path = path.with_suffix(".npy")
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, stored, allow_pickle=False)
    return path


def _grid(shape: tuple[int, ...], spacing: ThreeF | None) -> Grid:
    z, y, x = spacing or (1.0, 1.0, 1.0)
    return Grid((1, shape[0], shape[1]), np.diag([x, y, z, 1.0]), "mm" if spacing else "px")


def _source(pixels: NDArray[Any]) -> Source:
    return Source("raster", ".png", tuple(pixels.shape[:2]))


def _open(path: Path, stream: Any, limit: int) -> Image.Image:
    """Return the opened, not yet decoded picture, its size within the limit."""
    warnings.simplefilter(
        "ignore", Image.DecompressionBombWarning
    )  # the limit below is ours; callers restore
    try:
        picture = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error}; the header is damaged, or the picture is too large to be read"
        ) from error
    except _BROKEN as error:
        head = peek(path, 1024)
        what = identify(head)
        if what.endswith("picture"):
            raise DataError(f"{path}: {what} with a damaged header; copy it again from its source") from error
        raise DataError(f"{path}: not a picture but {what}; give PNG, JPEG or TIFF") from error
    size = picture.width * picture.height * max(len(picture.getbands()), 1) * 4
    if size > limit:
        raise DataError(
            f"{path}: {picture.width} x {picture.height} pixels, {size} bytes decoded, "
            f"more than the limit of {limit}; the header is damaged, or the picture is too large to be read"
        )
    return picture


def _pixels(path: Path, limit: int, *, colour: bool) -> tuple[NDArray[Any], str, tuple[str, ...]]:
    """Return the pixels (rows, columns) or (rows, columns, 3), the file's hash and notes."""
    checked = read_checked(path, limit=limit)
    notes: list[str] = []
    with warnings.catch_warnings():
        with _open(path, io.BytesIO(checked.data), limit) as probe:
            try:
                probe.verify()  # the checksums of PNG chunks; decoding alone need not look at them
            except _BROKEN as error:
                raise DataError(
                    f"{path}: damaged picture ({error}); copy it again from its source"
                ) from error
        with _open(path, io.BytesIO(checked.data), limit) as picture:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise DataError(f"{path}: {pages} pages in one file; save each page as a file of its own")
            try:
                picture.load()
                if picture.getexif().get(_ORIENTATION, 1) != 1:
                    notes.append("EXIF asks viewers to turn this picture; pixels are used as stored")
            except _BROKEN as error:
                raise DataError(
                    f"{path}: truncated or damaged picture of {len(checked.data)} bytes ({error}); "
                    "copy it again from its source"
                ) from error
            return _as_array(path, picture, notes, colour=colour), checked.sha256, tuple(notes)


def _as_array(path: Path, picture: Image.Image, notes: list[str], *, colour: bool) -> NDArray[Any]:
    mode = picture.mode
    if mode in ("RGBA", "LA", "PA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            notes.append("transparency ignored")
        picture = picture.convert({"RGBA": "RGB", "LA": "L", "PA": "RGB" if colour else "P"}[mode])
    elif mode == "P" and colour:
        picture = picture.convert("RGB")
    elif mode not in _GREY | {"RGB", "P"}:
        raise DataError(f"{path}: colour mode {mode} is not supported; save it as grey or RGB")
    return np.asarray(picture)
