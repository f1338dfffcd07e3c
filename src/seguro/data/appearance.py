"""Giving an image the look of another one, without moving anything: what adaptation is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError

Image = NDArray[np.float32]
"""(C, *size), any intensities."""


def histogram_matched(image: Image, reference: Image) -> Image:
    """Return `image` with the intensities of `reference`, rank for rank; its order of intensities is kept.

    Args:
        image: (C, *size).
        reference: (C, *any other size).

    Raises:
        DataError: another number of channels.
    """
    _same_channels(image, reference)
    return np.stack([_matched(a, b) for a, b in zip(image, reference, strict=True)]).astype(np.float32)


def _matched(image: Image, reference: Image) -> NDArray[np.float64]:
    _, where, counts = np.unique(image, return_inverse=True, return_counts=True)
    wanted, times = np.unique(reference, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / image.size  # the middle of ties, so that a match is its own
    known = (np.cumsum(times) - times / 2) / reference.size
    out: NDArray[np.float64] = np.interp(rank, known, wanted)[where].reshape(image.shape)
    return out


def fourier_adapted(image: Image, reference: Image, share: float) -> Image:
    """Return `image` with the low-frequency amplitudes of `reference` and its own phases.

    Fourier domain adaptation (Yang and Soatto, CVPR 2020, equation 3): the amplitudes in a box around zero
    frequency are replaced, which reaches `share` of the spectrum's width to either side on every axis.

    Args:
        image: (C, *size).
        reference: of the same shape.
        share: 0 (nothing changes) to 0.5 (all amplitudes); the box has the half width floor(share * n), and
            zero frequency is in it from share > 0 on.

    Raises:
        DataError: another shape, or a share out of range.
    """
    if image.shape != reference.shape:
        raise DataError(
            f"images of shape {image.shape} and {reference.shape}: amplitudes can be exchanged between equal "
            "shapes only; cut the reference to the image's size"
        )
    if not 0 <= share <= 0.5:
        raise DataError(f"a share of {share} of the spectrum; expected 0 to 0.5")
    if share == 0:
        return np.array(image, np.float32)
    axes = tuple(range(1, image.ndim))
    own, other = np.fft.fftn(image, axes=axes), np.fft.fftn(reference, axes=axes)
    inside = np.ones(image.shape[1:], bool)
    for axis, n in enumerate(image.shape[1:]):
        near = np.abs(np.fft.fftfreq(n) * n) <= np.floor(share * n)
        inside &= near.reshape([-1 if a == axis else 1 for a in range(image.ndim - 1)])
    amplitude = np.where(inside, np.abs(other), np.abs(own))
    return np.fft.ifftn(amplitude * np.exp(1j * np.angle(own)), axes=axes).real.astype(np.float32)


def _same_channels(image: Image, reference: Image) -> None:
    if len(image) != len(reference):
        raise DataError(
            f"images of {len(image)} and {len(reference)} channels: expected the same ones in both"
        )
