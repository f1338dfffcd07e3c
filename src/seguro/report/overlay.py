"""Pictures of a case.

The image with the contours of truth and prediction, in the slices that show most of the error.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from seguro.core.types import ThreeF

TRUTH = (86, 180, 233)
PREDICTION = (230, 159, 0)
"""Sky blue and orange of the Okabe-Ito palette.

Told apart with any color vision, and by solid against dashed.
"""
AXIS_NAMES = ("axial", "coronal", "sagittal")
_LONG_SIDE = 420
_MOST_ANISOTROPY = 3.0
_FEWEST_SLICES = 12
_DASH = 18


@dataclass(frozen=True)
class View:
    """One picture of a slice."""

    axis: int
    """Canonical axis (0=z, 1=y, 2=x) that the slice is cut across."""
    index: int
    n: int
    """Number of slices along the axis."""
    width: int
    height: int
    data: bytes
    mime: str
    """"image/webp", or "image/png" where this Pillow has no WebP."""


def views(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    prediction: NDArray[Any] | None,
    spacing: ThreeF,
    groups: Sequence[Sequence[int]],
    *,
    oriented: bool = True,
) -> tuple[View, ...]:
    """Return the pictures of one case: the worst slice across each axis, or what the grid allows.

    Thick slices (one axis more than 3 times coarser) give the up to three worst slices across that axis; a
    grid with one slice gives that slice.

    Args:
        image: (Z, Y, X) one channel, any numbers.
        truth: (Z, Y, X) label values, or None.
        prediction: (Z, Y, X) label values, or None.
        spacing: (z, y, x), any unit.
        groups: the label values of each class that is outlined.
        oriented: canonical axes mean superior, anterior, right; False for photographs, which are shown as
        stored.
    """
    wrong = disagreement(truth, prediction, groups, image.shape)
    values = [v for group in groups for v in group]
    agreed = np.zeros(image.shape, bool) if truth is None else np.isin(truth, values) & ~wrong
    axis = slice_axis(image.shape, spacing)
    if axis is not None:
        places = [(axis, i) for i in worst_slices(wrong, agreed, axis)]
    else:
        places = [(axis, worst_slices(wrong, agreed, axis, 1)[0]) for axis in range(3)]
    low, high = (float(v) for v in np.percentile(finite(image), (1, 99)))
    out = []
    for axis, index in places:
        gray = np.take(image, index, axis)
        cut = [None if a is None else np.take(a, index, axis) for a in (truth, prediction)]
        picture = overlay(
            gray,
            cut[0],
            cut[1],
            in_plane(spacing, axis),
            groups,
            window=(low, high),
            axis=axis,
            oriented=oriented,
        )
        data, mime = encode(picture)
        out.append(View(axis, index, image.shape[axis], picture.shape[1], picture.shape[0], data, mime))
    return tuple(out)


def slice_axis(shape: tuple[int, ...], spacing: ThreeF) -> int | None:
    """Return the canonical axis of thick or few slices; None where a volume looks alike across all three."""
    if max(spacing) / min(spacing) > _MOST_ANISOTROPY:
        return int(np.argmax(spacing))
    return int(np.argmin(shape)) if min(shape) < _FEWEST_SLICES else None


def disagreement(
    truth: NDArray[Any] | None,
    prediction: NDArray[Any] | None,
    groups: Sequence[Sequence[int]],
    shape: tuple[int, ...],
) -> NDArray[np.bool_]:
    """Return where truth and prediction differ in any class; where they nowhere do, where either has a class.

    Shape (Z, Y, X) as the inputs. With only one of the two given, where that one has a class.
    """
    wrong = np.zeros(shape, bool)
    found = np.zeros(shape, bool)
    for values in groups:
        masks = [np.isin(a, list(values)) for a in (truth, prediction) if a is not None]
        for mask in masks:
            found |= mask
        if len(masks) == 2:
            wrong |= masks[0] ^ masks[1]
    return wrong if wrong.any() else found


def worst_slices(wrong: NDArray[np.bool_], agreed: NDArray[np.bool_], axis: int, most: int = 3) -> list[int]:
    """Return up to `most` slice numbers along `axis` that show most of the error, in rising order.

    A slice counts its wrong voxels, fourfold as far as there are agreed ones too: a slice that only
    grazes one of the two says little. Ties go to the lower slice; with nothing wrong, the middle.

    Args:
        wrong: (Z, Y, X) from `disagreement`.
        agreed: (Z, Y, X) where truth and prediction have the same class.
        axis: canonical axis.
        most: how many at most.
    """
    others = tuple(a for a in range(3) if a != axis)
    n_wrong = wrong.sum(axis=others)
    if not n_wrong.any():
        return [wrong.shape[axis] // 2]
    counts = n_wrong + 3 * np.minimum(n_wrong, agreed.sum(axis=others))
    order = np.argsort(-counts, kind="stable")[:most]
    return sorted(int(i) for i in order if counts[i])


def overlay(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    prediction: NDArray[Any] | None,
    spacing: tuple[float, float],
    groups: Sequence[Sequence[int]],
    *,
    window: tuple[float, float],
    axis: int = 0,
    oriented: bool = True,
    whole: bool = False,
) -> NDArray[np.uint8]:
    """Return one slice as (height, width, 3) 8-bit color with contours, in true proportions.

    It is cropped to the classes with room around them, unless the `whole` slice is wanted.

    Truth is a solid blue line, prediction a dashed orange one; voxels that only one of them has are faintly
    tinted. Oriented slices are shown as a radiologist sees them: anterior or superior up, the patient's right
    on the left.

    Args:
        image: (A, B) one slice, rows first.
        truth: (A, B) label values or None.
        prediction: (A, B) label values or None.
        spacing: of rows and columns.
        groups: the label values of each class that is outlined.
        window: intensities drawn black and white.
        axis: canonical axis the slice was cut across; decides what is flipped.
        oriented: False shows rows and columns as stored.
        whole: not cropped.
    """
    labels = [truth, prediction]
    if (
        oriented
    ):  # canonical rows rise to superior/anterior: up; columns rise to the right (x) or to anterior (y)
        flip = (slice(None, None, -1), slice(None, None, -1) if axis != 2 else slice(None))
        image, labels = image[flip], [None if a is None else a[flip] for a in labels]
    region: tuple[slice, ...] = (slice(None), slice(None))
    if not whole:
        region = crop([a for a in labels if a is not None], groups, image.shape, spacing)
    gray, labels = image[region], [None if a is None else a[region] for a in labels]
    high, wide = gray.shape[0] * spacing[0], gray.shape[1] * spacing[1]
    scale = _LONG_SIDE / max(high, wide)
    size = max(round(wide * scale), 1), max(round(high * scale), 1)
    span = max(window[1] - window[0], 1e-12)
    gray = np.clip(np.nan_to_num(gray.astype(np.float32), posinf=window[1], neginf=window[0]), *window)
    shades = (gray - window[0]) / span * 255
    canvas = np.asarray(resize(shades, size, Image.Resampling.BICUBIC))[..., None].repeat(3, axis=2)
    canvas = np.clip(canvas, 0, 255)
    for values in groups:
        masks = [None if a is None else resize(np.isin(a, list(values)), size) > 0.5 for a in labels]
        canvas = draw(canvas, masks[0], masks[1])
    return canvas.round().astype(np.uint8)


def encode(picture: NDArray[np.uint8]) -> tuple[bytes, str]:
    """Return the picture as WebP (or PNG where Pillow lacks WebP) and its media type.

    The same bytes each time.
    """
    stream = io.BytesIO()
    if features.check("webp"):
        Image.fromarray(picture).save(stream, "WEBP", quality=88, method=4)
        return stream.getvalue(), "image/webp"
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue(), "image/png"


def draw(
    canvas: NDArray[np.float32], truth: NDArray[np.bool_] | None, prediction: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Return the canvas with one class drawn: tints first, then prediction, then truth below its dashes."""
    if truth is not None and prediction is not None:
        canvas = tint(canvas, (truth & ~prediction) * 0.22, TRUTH)
        canvas = tint(canvas, (prediction & ~truth) * 0.22, PREDICTION)
    if truth is not None:
        canvas = tint(canvas, edge(truth), TRUTH)
    if prediction is not None:
        canvas = tint(canvas, dashed(prediction), PREDICTION)
    return canvas


def _smooth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean over 5 x 5 pixels of a mask, as float32 in [0, 1]."""
    padded = np.pad(mask.astype(np.float32), 2, mode="edge")
    rows, columns = mask.shape
    down = np.sum([padded[a : a + rows] for a in range(5)], axis=0)
    total = np.sum([down[:, b : b + columns] for b in range(5)], axis=0)
    return np.asarray(total / np.float32(25), np.float32)


def _line(mean: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.clip((1 - np.abs(2 * mean - 1)) * 2.2, 0, 1), np.float32)


def edge(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Soft line of about three pixels along a mask's border, in [0, 1]."""
    return _line(_smooth(mask))


def dashed(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The line of `edge` in dashes.

    Stripes along one of the two diagonals cut the line; at each pixel the diagonal that crosses the border
    more squarely is taken, so that dashes have about the same length in every direction.
    """
    mean = _smooth(mask)
    line = _line(mean)
    slopes = np.gradient(mean) if min(mask.shape) > 1 else (np.zeros(mask.shape), np.ones(mask.shape))
    y, x = np.nonzero(line)
    down, across = (np.asarray(slope)[y, x] for slope in slopes)
    phase = np.where(np.abs(across - down) >= np.abs(across + down), x + y, x - y)
    line[y, x] *= phase % _DASH < 0.62 * _DASH
    return line


def tint(
    canvas: NDArray[np.float32], share: NDArray[Any], color: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return `canvas` (height, width, 3) mixed with `color` by `share` (height, width) of 0 to 1."""
    tinted, at = canvas.copy(), share > 0
    weight = np.asarray(share[at], np.float32)[:, None]
    tinted[at] = canvas[at] * (1 - weight) + np.asarray(color, np.float32) * weight
    return tinted


def resize(
    array: NDArray[Any], size: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.float32]:
    """`array` (A, B) brought to (width, height) `size` as float32."""
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(array, dtype=np.float32)).resize(size, how), np.float32
    )


def crop(
    labels: Sequence[NDArray[Any]],
    groups: Sequence[Sequence[int]],
    shape: tuple[int, ...],
    spacing: tuple[float, float],
) -> tuple[slice, slice]:
    """The square-ish region around every class with room to see where it lies.

    The whole slice when it has none.
    """
    values = [v for group in groups for v in group]
    found = np.zeros(shape, bool)
    for label in labels:
        found |= np.isin(label, values)
    if not found.any():
        return slice(None), slice(None)
    bounds = [np.flatnonzero(found.any(axis=1 - a))[[0, -1]] for a in (0, 1)]
    extent = [(b[1] - b[0] + 1) * s for b, s in zip(bounds, spacing, strict=True)]
    whole = [n * s for n, s in zip(shape, spacing, strict=True)]
    side = max(max(extent) * 1.7, 0.4 * min(whole))
    return tuple(  # type: ignore[return-value]
        _span(b, n, side / s) for b, n, s in zip(bounds, shape, spacing, strict=True)
    )


def _span(bounds: NDArray[Any], n: int, wanted: float) -> slice:
    length = min(max(round(wanted), 1), n)
    start = round((int(bounds[0]) + int(bounds[1]) + 1 - length) / 2)
    start = min(max(start, 0), n - length)
    return slice(start, start + length)


def in_plane(spacing: ThreeF, axis: int) -> tuple[float, float]:
    """Return the spacing of rows and columns of a slice across `axis`."""
    first, second = (s for a, s in enumerate(spacing) if a != axis)
    return first, second


def finite(image: NDArray[Any]) -> NDArray[Any]:
    """Return the finite values of an array, flat; a single 0 where there are none."""
    kept = image[np.isfinite(image)]
    return kept if kept.size else np.zeros(1)
