"""What goes wrong between the X-ray tube and the CT image: rings, streaks of metal, too few views.

The tube turns in the (Y, X) plane. Every public corruption maps a channel (Z, Y, X) in units of its range to
one of the same shape; see `Corruption`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from seguro.attacks.corruptions.axes import Channel, column, from_centre
from seguro.core.types import ThreeF

METAL_MM = 2.5
"""Radius of each of the two implants; at most 4 % of the shorter side."""
BRIGHT = 4.0
"""Of the implants, over the size of their streaks: denser metal does both."""
METAL_VIEWS = 240
RING_MM = 40.0
"""Along z, over which a detector element keeps its error (standard deviation)."""
FAULTY = 0.3
"""Share of the detector elements that have an error."""


def attenuation(channel: Channel, spacing: ThreeF) -> Channel:
    """Return how much attenuates the rays through each voxel, in [0, 1], 1 at the largest.

    The mean over all directions, approximated by a wide blur in the plane (a sixth of its longer side).
    """
    sd = max(channel.shape[1] * spacing[1], channel.shape[2] * spacing[2]) / 6
    wide = ndimage.gaussian_filter(
        np.clip(channel, 0, 1), (0, sd / spacing[1], sd / spacing[2]), mode="nearest", truncate=2.5
    )
    return np.asarray(wide / np.float32(max(float(wide.max()), 1e-6)), np.float32)


def rings(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with concentric rings, of root mean square `strength` over the faulty radii.

    A detector element out of calibration sees the same distance from the axis of rotation in all views, and
    draws a ring (Sijbers & Postnov 2004). The axis lies near the middle of the image.
    """
    shift = rng.uniform(-0.1, 0.1, 2) * (channel.shape[1] * spacing[1], channel.shape[2] * spacing[2])
    y = from_centre(channel.shape[1], spacing[1])[:, None] - shift[0]
    x = from_centre(channel.shape[2], spacing[2])[None, :] - shift[1]
    pitch = max(min(spacing[1:]), 1e-6)
    radius = np.hypot(y, x) / pitch
    elements = int(np.ceil(radius.max())) + 2
    error = rng.normal(size=(channel.shape[0], elements)) * (rng.random(elements) < FAULTY)
    error = ndimage.gaussian_filter1d(error, RING_MM / spacing[0], axis=0, mode="nearest", truncate=2.0)
    size = np.sqrt((error**2).sum() / max(np.count_nonzero(error), 1))
    error *= strength / size if size > 0 else 0.0
    out = np.empty_like(channel)
    for z, layer in enumerate(channel):
        out[z] = layer + np.interp(radius, np.arange(elements), error[z]).astype(np.float32)
    return out


def metal(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with two small implants and their streaks, of size `strength` near them.

    Rays through metal are hardened (dark band between the two) and starved (fine bright and dark spokes);
    the error of the projections is computed from the implants and back projected (Barrett & Keat 2004). The
    size is the 99th percentile of the streaks' absolute value outside the implants.
    """
    plane = channel.shape[1:]
    side = min(n * d for n, d in zip(plane, spacing[1:], strict=True))
    radius = min(METAL_MM, 0.04 * side)
    places = _implants(rng, (plane[0] * spacing[1], plane[1] * spacing[2]))
    streaks, inside = _streaks(plane, spacing[1:], places, radius, rng)
    size = float(np.percentile(np.abs(streaks[~inside]), 99)) if not inside.all() else 0.0
    streaks = streaks * np.float32(strength / size if size > 0 else 0.0)
    streaks = np.where(inside, BRIGHT * strength, np.clip(streaks, -1.5 * strength, 1.5 * strength))
    z = from_centre(channel.shape[0], 1.0) / channel.shape[0]  # -0.5 .. 0.5
    length = np.exp(-0.5 * ((z - rng.uniform(-0.2, 0.2)) / 0.35) ** 2)
    return channel + column(length, 0).astype(np.float32) * streaks.astype(np.float32)


def _implants(rng: np.random.Generator, extent: tuple[float, float]) -> list[NDArray[np.float64]]:
    """Return the (y, x) in mm of two implants about a third of the shorter side apart, around the middle."""
    side = min(extent)
    middle = rng.uniform(-0.15, 0.15, 2) * extent
    angle = rng.uniform(0, np.pi)
    half = rng.uniform(0.15, 0.2) * side * np.array([np.sin(angle), np.cos(angle)])
    return [middle + half, middle - half]


def _streaks(
    shape: tuple[int, ...],
    steps: tuple[float, ...],
    places: list[NDArray[np.float64]],
    radius: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the back-projected error (Y, X) of the rays through disks at `places`, and the disks."""
    y, x = (from_centre(n, d) for n, d in zip(shape, steps, strict=True))
    inside = np.zeros(shape, bool)
    for place in places:
        inside |= np.hypot(y[:, None] - place[0], x[None, :] - place[1]) <= radius
    pitch = min(min(steps), radius / 2)
    reach = np.hypot(max(abs(y[0]), steps[0]), max(abs(x[0]), steps[1])) + 2 * radius
    s = np.arange(-reach, reach + pitch, pitch)
    image = np.zeros(shape)
    for angle in np.arange(METAL_VIEWS) * np.pi / METAL_VIEWS:
        chord = np.zeros_like(s)
        for place in places:
            offset = s - (place[0] * np.sin(angle) + place[1] * np.cos(angle))
            chord += 2 * np.sqrt(np.maximum(radius**2 - offset**2, 0)) / (2 * radius)
        error = -0.5 * chord**2 + 0.15 * chord * rng.normal()
        ray = y[:, None] * np.sin(angle) + x[None, :] * np.cos(angle)
        image += np.interp(ray, s, _ramp(error))
    return image, inside


def _ramp(projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a projection after the ramp filter of back projection, with room against wrapping around."""
    n = fft.next_fast_len(2 * len(projection))
    f = fft.rfftfreq(n)
    filtered: NDArray[np.float64] = fft.irfft(fft.rfft(projection, n) * f * np.cos(np.pi * f) ** 2, n)
    return filtered[: len(projection)]


def sparse_views(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel as back projected from `strength` views only: fine streaks from every edge.

    By the projection-slice theorem each view fills one line through the middle of the plane's spectrum
    (Kak & Slaney 1988); between the lines nothing is known. What that changes passes a Hann window, as
    in scanners, lest the highest frequencies cover all. Mirrored beyond the border.
    """
    before = [n // 2 for n in channel.shape[1:]]
    pad = [(b, n - b) for b, n in zip(before, channel.shape[1:], strict=True)]
    shape = [2 * n for n in channel.shape[1:]]
    change = _views(shape, spacing[1:], round(strength), rng.uniform(0, np.pi))
    out = np.empty_like(channel)
    for z, layer in enumerate(channel):
        streaks = fft.irfft2(fft.rfft2(np.pad(layer, pad, mode="symmetric")) * change, s=shape)
        here = (slice(before[0], before[0] + layer.shape[0]), slice(before[1], before[1] + layer.shape[1]))
        out[z] = layer + streaks[here]
    return out


def _views(shape: list[int], steps: tuple[float, ...], views: int, start: float) -> NDArray[np.float32]:
    """Return what to multiply the half plane of `rfft2` by, less 1: lines of mean 1 at every frequency."""
    fy, fx = fft.fftfreq(shape[0], steps[0])[:, None], fft.rfftfreq(shape[1], steps[1])[None, :]
    width = max(1 / (n * d) for n, d in zip(shape, steps, strict=True))
    total = np.zeros((shape[0], fx.shape[1]))
    for angle in start + np.arange(views) * np.pi / views:
        total += np.maximum(1 - np.abs(fy * np.cos(angle) - fx * np.sin(angle)) / width, 0)
    f = np.hypot(fy, fx)
    knots = np.linspace(0, float(f.max()), 512)
    turns = np.sin(np.linspace(0, np.pi, 4096, endpoint=False))
    mean = np.array([np.maximum(1 - k * turns / width, 0).mean() for k in knots])
    window = np.cos(np.pi / 2 * np.clip(2 * f * max(steps), 0, 1)) ** 2
    return np.asarray(window * (total / (views * np.interp(f, knots, mean)) - 1), np.float32)
