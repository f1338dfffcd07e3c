"""Changes of brightness and contrast, global or slowly varying over the image.

Every function maps a channel (Z, Y, X) in units of its range to one of the same shape; see `Corruption`.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from seguro.attacks.corruptions.axes import Channel, column, from_centre
from seguro.attacks.corruptions.tomography import attenuation
from seguro.core.types import ThreeF

BIAS_ORDER = 3
"""Largest total degree of the polynomial in the logarithm of the coil's sensitivity."""


def contrast(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel under a tone curve that moves middle gray up or down by `strength` of the range.

    Another sequence, window or display changes the contrast between tissues. The curve u + 4 d u (1 - u)
    with d = `strength` or -`strength` below 1/4 stands for the gamma of TorchIO 2021 (d = -1/4 is gamma 2):
    order is kept, brightening and darkening are equally strong, and noise of the dark background is
    amplified less than twofold. Outside the range nothing changes.
    """
    inside = np.clip(channel, 0, 1)
    return channel + np.float32(4 * strength * sign(rng)) * inside * (1 - inside)


def rescaling(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel times 1 + d plus d / 2 with d = `strength` or -`strength`.

    A receiver gain or HU calibration that differs from the training data's (brightness and contrast of
    Hendrycks & Dietterich 2019). Normalization by the image itself would undo it: it is meant for images
    that are normalized already, or by fixed numbers.
    """
    d = np.float32(strength * sign(rng))
    return channel + d * (channel + np.float32(0.5))


def bias_field(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel times a smooth field whose logarithm varies by `strength` (sd) over the tissue.

    Uneven coil sensitivity (Van Leemput et al. 1999; TorchIO 2021): the logarithm is a random polynomial
    of third degree in mm over the longest side, so that a thin slab varies little through its thickness.
    Its mean and sd are weighted by the squared signal, so that the effect does not depend on where the
    object lies in the field; far out in the background the factor is held at exp(2).
    """
    field = _polynomial(channel.shape, spacing, rng)
    weight = np.clip(channel, 0, 1) ** 2 + np.float32(1e-6)
    log = field - np.average(field, weights=weight)
    size = float(np.sqrt(np.average(log**2, weights=weight)))
    if size < 1e-6:
        return channel.copy()
    factor = np.exp(np.clip(log * (strength / size), -2, 2))
    return np.asarray(channel * factor, np.float32)


def _polynomial(shape: tuple[int, ...], spacing: ThreeF, rng: np.random.Generator) -> Channel:
    """Return a random polynomial (Z, Y, X) of third degree in the position over the longest side in mm."""
    extent = max(n * d for n, d in zip(shape, spacing, strict=True))
    places = [
        column(2 * from_centre(n, d) / extent, axis)
        for axis, (n, d) in enumerate(zip(shape, spacing, strict=True))
    ]
    field: Channel = np.zeros(shape, np.float32)
    for degrees in product(range(BIAS_ORDER + 1), repeat=3):
        if 0 < sum(degrees) <= BIAS_ORDER:
            z, y, x = (place**degree for place, degree in zip(places, degrees, strict=True))
            field += (rng.normal() * z * y * x).astype(np.float32)
    return field


def cupping(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel darkened inside the body, by a share `strength` where the rays are longest.

    Long paths harden the beam and receive more scatter; both are taken for less attenuation (Barrett &
    Keat 2004). Behind bone it darkens more.
    """
    return channel * (1 - np.float32(strength) * attenuation(channel, spacing) ** 2)


def sign(rng: np.random.Generator) -> float:
    """Return 1.0 or -1.0 with equal probability."""
    return 1.0 if rng.random() < 0.5 else -1.0
