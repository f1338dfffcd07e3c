"""Noise: of the receiver, of the MR magnitude, of few photons.

Every function maps a channel (Z, Y, X) in units of its range to one of the same shape; see `Corruption`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from seguro.attacks.corruptions.axes import Channel
from seguro.attacks.corruptions.tomography import attenuation
from seguro.core.types import ThreeF

KERNEL_MM = 2.0
"""Of the soft reconstruction kernel whose noise is imitated: the noise peaks at 0.35 cycles per mm."""
STREAK_MM = 15.0
"""Length (standard deviation) of the streaks of photon starvation."""


def gaussian(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with white Gaussian noise of standard deviation `strength`.

    Thermal noise of electronics and body where the signal is high. Hendrycks & Dietterich 2019.
    """
    return channel + np.float32(strength) * rng.standard_normal(channel.shape, dtype=np.float32)


def rician(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the magnitude of the channel with complex Gaussian noise of `strength` in each part.

    The noise of MR magnitude images (Gudbjartsson & Patz 1995; ROOD-MRI 2022): dark regions brighten to
    `strength` * sqrt(pi / 2), bright ones see Gaussian noise.
    """
    real, imaginary = np.float32(strength) * rng.standard_normal((2, *channel.shape), dtype=np.float32)
    magnitude = np.hypot(np.maximum(channel, 0) + real, imaginary)
    return np.asarray(magnitude + np.minimum(channel, 0), np.float32)


def low_dose(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with CT quantum noise of standard deviation `strength` where the body is thickest.

    Fewer photons raise the noise as exp(path / 2); filtered back projection colors it: power grows with
    the frequency up to the kernel's limit (Riederer et al. 1978), here in mm within the (Y, X) plane.
    """
    white = rng.standard_normal(channel.shape, dtype=np.float32)
    fy, fx = fft.fftfreq(channel.shape[1], spacing[1])[:, None], fft.rfftfreq(channel.shape[2], spacing[2])
    f = np.hypot(fy, fx)
    weight = _unit_power((f * np.exp(-((f * KERNEL_MM) ** 2))).astype(np.float32), channel.shape[2])
    texture = np.empty_like(channel)
    for z, layer in enumerate(white):
        texture[z] = fft.irfft2(fft.rfft2(layer) * weight, s=layer.shape)
    sd = np.float32(strength) * np.exp(1.5 * (attenuation(channel, spacing) - 1))
    return np.asarray(channel + sd * texture, np.float32)


def _unit_power(weight: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return filter weights on the half plane of `rfft2`, scaled so that white noise keeps its power."""
    twice = np.full(weight.shape[1], 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    power = float((weight.astype(np.float64) ** 2 * twice).sum() / (weight.shape[0] * width))
    return weight / np.float32(np.sqrt(power)) if power > 0 else np.ones_like(weight)


def starvation(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with streaks along x, of standard deviation `strength` in the thickest row.

    Hardly a photon crosses shoulders or hips from side to side, and the logarithm of next to nothing is
    noise that back projection smears along the ray (Barrett & Keat 2004).
    """
    sd_vox = STREAK_MM / spacing[2]
    noise = rng.standard_normal(channel.shape, dtype=np.float32)
    streaks = ndimage.gaussian_filter1d(noise, sd_vox, axis=2, mode="wrap", truncate=3.0)
    response = np.zeros(channel.shape[2])
    response[0] = 1.0
    gain = np.sqrt((ndimage.gaussian_filter1d(response, sd_vox, mode="wrap", truncate=3.0) ** 2).sum())
    path = np.clip(channel, 0, 1).mean(axis=2, keepdims=True)
    weight = np.exp(3.0 * (path / max(float(path.max()), 1e-6) - 1))
    return np.asarray(channel + np.float32(strength / gain) * weight * streaks, np.float32)
