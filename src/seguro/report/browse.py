"""Pictures of a prediction to look through: the middle slices, or every n-th, with the truth if known."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seguro.core.types import ThreeF
from seguro.report.overlay import AXIS_NAMES, finite, in_plane, overlay, slice_axis


@dataclass(frozen=True)
class Sheet:
    """One slice as a PNG file."""

    name: str
    """"axial_012.png": the axis and the canonical slice number; "picture.png" where there is one slice."""
    data: bytes


def sheets(
    image: NDArray[Any],
    prediction: NDArray[Any],
    truth: NDArray[Any] | None,
    spacing: ThreeF,
    groups: Sequence[Sequence[int]],
    *,
    every: int | None = None,
    oriented: bool = True,
) -> Iterator[Sheet]:
    """Yield whole slices with the contours of the prediction, dashed, and of the truth, solid, if given.

    Args:
        image: (Z, Y, X) one channel.
        prediction: (Z, Y, X) label values.
        truth: (Z, Y, X) label values, or None.
        spacing: (z, y, x).
        groups: the label values of each class.
        every: every n-th slice instead of the middle ones.
        oriented: as for `overlay`.
    """
    low, high = (float(v) for v in np.percentile(finite(image), (1, 99)))
    found = np.isin(prediction, [v for group in groups for v in group])
    for axis, index in places(found, spacing, every):
        cut = [None if a is None else np.take(a, index, axis) for a in (image, truth, prediction)]
        picture = overlay(
            np.take(image, index, axis),
            cut[1],
            cut[2],
            in_plane(spacing, axis),
            groups,
            window=(low, high),
            axis=axis,
            oriented=oriented,
            whole=True,
        )
        alone = image.shape[axis] == 1
        yield Sheet("picture.png" if alone else f"{AXIS_NAMES[axis]}_{index:03d}.png", _png(picture))


def places(found: NDArray[np.bool_], spacing: ThreeF, every: int | None) -> list[tuple[int, int]]:
    """Return (axis, slice) of the pictures.

    The middle slice of what was found, across each axis; where slices are thick or few, across these alone.
    Every n-th slice is counted from the first, across the thick or few slices or else the axial ones.

    Args:
        found: (Z, Y, X) where the prediction has a class.
        spacing: (z, y, x).
        every: n, or None for the middle ones.
    """
    own = slice_axis(found.shape, spacing)
    if every is not None:
        axis = 0 if own is None else own
        return [(axis, i) for i in range(0, found.shape[axis], every)]
    return [(axis, _middle(found, axis)) for axis in (range(3) if own is None else (own,))]


def _middle(found: NDArray[np.bool_], axis: int) -> int:
    """Return the middle of the slices that hold something, of all where none does."""
    hits = np.flatnonzero(found.any(axis=tuple(a for a in range(3) if a != axis)))
    return int(hits[len(hits) // 2]) if len(hits) else found.shape[axis] // 2


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
