"""Loss of detail: blur, thick slices, slices that lost their signal, truncated k-space.

Every function maps a channel (Z, Y, X) in units of its range to one of the same shape; see `Corruption`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from seguro.attacks.corruptions.axes import Channel, column, plane, stacked_axis
from seguro.core.types import Three, ThreeF

LOST = 0.75
"""Share of its signal that a slice hit by dropout loses; what is left can still be read."""


def blur(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel under a Gaussian point spread of standard deviation `strength` mm on every axis.

    Breathing, a large focal spot, a smooth kernel (defocus of Hendrycks & Dietterich 2019; TorchIO 2021):
    an axis of thick voxels is blurred by fewer of them.
    """
    sd_vox = [strength / d for d in spacing]
    out: Channel = ndimage.gaussian_filter(channel, sd_vox, mode="nearest", truncate=4.0)
    return out


def thick_slices(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel as if its slices were `strength` mm thicker, brought back to its own grid.

    Slices of that thickness average what lies inside them (partial volume), and linear interpolation
    between their centres fills the grid. The anisotropy of TorchIO 2021; along the coarsest axis.
    """
    axis = stacked_axis(_shape(channel), spacing)
    matrix = slice_profile(channel.shape[axis], 1.0 + strength / spacing[axis]).astype(np.float32)
    mixed = np.tensordot(matrix, channel, axes=(1, axis))
    return np.moveaxis(mixed, 0, axis)


def slice_profile(n: int, thickness: float) -> NDArray[np.float64]:
    """Return the (n, n) matrix that averages n slices into ones of `thickness` slices and interpolates back.

    The thick slices lie symmetrically about the middle; those at the ends average what they cover. Each
    stands at the mean place of what it averages: a ramp stays the same ramp between the outermost of them.
    """
    count = int(np.ceil(n / thickness - 1e-9))
    edges = np.clip((np.arange(count + 1) - count / 2) * thickness + n / 2, 0, n)
    inside = np.minimum(edges[1:, None], np.arange(1, n + 1)) - np.maximum(edges[:-1, None], np.arange(n))
    average = np.maximum(inside, 0) / np.diff(edges)[:, None]
    centres = average @ (np.arange(n) + 0.5)
    back = np.stack([np.interp(np.arange(n) + 0.5, centres, unit) for unit in np.eye(count)], axis=1)
    out: NDArray[np.float64] = back @ average
    return out


def dropout(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with a share `strength` of its slices at a quarter of their signal.

    Interleaved slices lose signal to crosstalk or motion (MR), or are patched after a lost transfer. One
    slice is hit in each stretch of equal length; where the share is no whole number, all lose a
    little less. In a picture the rows are hit.
    """
    axis = stacked_axis(_shape(channel), spacing)
    n = channel.shape[axis]
    wanted = strength * n
    hit = int(np.ceil(wanted))
    edges = np.linspace(0, n, hit + 1)
    where = np.floor(rng.uniform(edges[:-1], edges[1:])).astype(np.intp)
    kept = np.ones(n)
    kept[np.minimum(where, n - 1)] = 1 - LOST * wanted / hit
    return channel * column(kept, axis).astype(np.float32)


def ringing(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with the k-space of its plane cut to a share `strength` of the finer axis's limit.

    The sharp cut rings at every edge (Gibbs; TorchIO 2021 calls it k-space cropping). A coarse axis already
    lacks the high frequencies in mm, and loses a smaller share. Mirrored beyond the border (a cosine
    transform), so that the border of a crop does not ring.
    """
    axes = [axis for axis in plane(_shape(channel), spacing) if channel.shape[axis] > 1]
    if not axes:
        return channel.copy()
    limit = strength / min(spacing[axis] for axis in axes)
    out = channel
    for axis in axes:
        kept = _cut(channel.shape[axis], limit * spacing[axis]).astype(np.float32)
        out = fft.idct(fft.dct(out, axis=axis) * column(kept, axis), axis=axis)
    return out


def _cut(n: int, share: float) -> NDArray[np.float64]:
    """Return the weights of n cosine coefficients of which the first `share` is kept, in fractions."""
    return np.clip(share * n - np.arange(n), 0, 1)


def _shape(channel: Channel) -> Three:
    z, y, x = channel.shape
    return z, y, x
