"""Geometric and intensity transforms of a view: drawn in one function, applied in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from seguro.methods.alpnet.config import Transforms

PUBLISHED_SIZE = 256
"""Side of the slices that lengths of the transforms are given for."""
ELASTIC_TRUNCATE = 2.0
"""Standard deviations that the smoothing of the noise reaches: 21 pixels in all at sigma 5, as published."""
_EPSILON = 1e-5


@dataclass(frozen=True)
class Drawn:
    """All parameters of one view."""

    inverse: NDArray[np.float64]
    """(3, 3): pixel (row, column, 1) of the view to pixel of the slice."""
    displacement: NDArray[np.float64] | None
    """(2, H, W) in pixels, added to the view's pixels first."""
    gamma: float


def draw_transform(rng: np.random.Generator, how: Transforms, size: tuple[int, int]) -> Drawn:
    """Return the parameters of one view of (H, W) pixels (section 4 of the paper)."""
    unit = max(size) / PUBLISHED_SIZE
    angle, shear = np.deg2rad([rng.uniform(-d, d) for d in (how.rotate_deg, how.shear_deg)])
    shift = rng.uniform(-how.shift_px, how.shift_px, 2) * unit
    zoom = rng.uniform(*how.zoom)
    middle = (np.array(size) - 1) / 2
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
    skew = np.array([[1, 0, 0], [np.tan(shear), 1, 0], [0, 0, 1.0]])
    if how.shear_about == "middle":
        skew = _about(skew, middle)
    forward = _moved(shift) @ _about(turn, middle) @ skew @ _about(np.diag([zoom, zoom, 1.0]), middle)
    noise = None
    if how.elastic_px:
        noise = rng.uniform(-1, 1, (2, *size))
        sigma = (0, how.elastic_sigma_px * unit, how.elastic_sigma_px * unit)
        noise = how.elastic_px * unit * ndimage.gaussian_filter(noise, sigma, truncate=ELASTIC_TRUNCATE)
    return Drawn(np.linalg.inv(forward), noise, float(rng.uniform(*how.gamma)))


def apply(
    image: NDArray[np.float32], mask: NDArray[np.float32], drawn: Drawn, *, outside: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the view (C, H, W) of a slice and its mask (H, W) in [0, 1], both read linearly.

    Args:
        image: (C, H, W).
        mask: (H, W) in [0, 1].
        drawn: the transform.
        outside: value of the image beyond the slice; the mask's is 0.
    """
    at = np.indices(mask.shape, dtype=np.float64)
    if drawn.displacement is not None:
        at = at + drawn.displacement
    flat = at.reshape(2, -1)
    source = (drawn.inverse[:2, :2] @ flat + drawn.inverse[:2, 2:]).reshape(at.shape)
    seen = np.stack([ndimage.map_coordinates(c, source, order=1, cval=outside) for c in image])
    moved = ndimage.map_coordinates(mask, source, order=1, cval=0.0)
    return _shaded(seen, drawn.gamma), moved


def _shaded(image: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Return r ((x - min) / r)^gamma + min of each channel, r its range."""
    low = image.min(axis=(1, 2), keepdims=True)
    extent = image.max(axis=(1, 2), keepdims=True) - low + _EPSILON
    return np.asarray(extent * ((image - low + _EPSILON) / extent) ** gamma + low, np.float32)


def _moved(by: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.eye(3)
    out[:2, 2] = by
    return out


def _about(matrix: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the linear map about `middle` instead of the corner."""
    return np.asarray(_moved(middle) @ matrix @ _moved(-middle))
