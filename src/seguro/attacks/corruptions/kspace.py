"""What goes wrong while the k-space of an MR image is filled: motion, ghosts, spikes.

Every function maps a channel (Z, Y, X) in units of its range to one of the same shape; see `Corruption`.
Magnitude images are made of what lies above 0; the 0.5 % of the voxels below is added back untouched.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from seguro.attacks.corruptions.axes import Channel, from_centre, plane, slice_axis
from seguro.core.types import Three, ThreeF

POSES = 6
"""Segments of k-space away from its middle, each filled in another pose."""
STILL = 0.08
"""Share of k-space around the middle that is filled before the first movement: the anatomy stays in place."""
PERIODS = (3, 6)
"""Fewest and most ghost distances per field of view."""
SPIKE_MM = (4.0, 12.0)
"""Shortest and longest wavelength of a spike's stripes; never under 2.5 voxels."""


def motion(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel as acquired from a patient who moves by `strength` mm and degrees.

    The outer segments of k-space along the phase-encoding axis belong to other rigid poses in the plane
    (Shaw et al. 2019; TorchIO 2021). The middle of k-space, and with it where things are, is still.
    """
    shape = _shape(channel)
    phase, _ = plane(shape, spacing)
    if channel.shape[phase] < 2:
        return channel.copy()
    poses = strength * _poses(rng)
    slices = np.moveaxis(channel, slice_axis(shape, spacing), 0)
    inner = [axis for axis in range(3) if axis != slice_axis(shape, spacing)]
    steps = spacing[inner[0]], spacing[inner[1]]
    along = inner.index(phase)
    segments = _segments(2 * slices.shape[1 + along])
    out = np.empty_like(slices)
    for index, layer in enumerate(slices):
        signal = np.maximum(layer, 0)
        spline = ndimage.spline_filter(signal, order=3, output=np.float32, mode="nearest")
        total = np.where(_line(segments == 0, along), _spectrum(signal, along), 0)
        for number, pose in enumerate(poses, start=1):
            moved = _moved(spline, steps, pose)
            total += np.where(_line(segments == number, along), _spectrum(moved, along), 0)
        image = np.abs(fft.ifft(total, axis=along))
        out[index] = np.take(image, np.arange(layer.shape[along]), axis=along) + np.minimum(layer, 0)
    return np.moveaxis(out, 0, slice_axis(shape, spacing))


def _poses(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (POSES, 3) of mm, mm and degrees: movements of length 1 in random directions, turns of 1 or -1.

    The two sides of k-space at the same distance from its middle move in opposite ways. So the anatomy does
    not drift along, and chance decides the direction but not how much moves.
    """
    angle = rng.uniform(0, 2 * np.pi, POSES // 2)
    turn = rng.choice([-1.0, 1.0], POSES // 2)
    side = np.stack([np.cos(angle), np.sin(angle), turn], axis=1)
    return np.concatenate([side, -side])


def _segments(n: int) -> NDArray[np.intp]:
    """Return for each of n lines in FFT order the number of the pose it is filled in, 0 for the middle."""
    k = fft.fftfreq(n)  # -0.5 .. 0.5
    half = POSES // 2
    ring = np.ceil((2 * np.abs(k) - STILL) / (1 - STILL) * half * (1 - 1e-9)).clip(0, half).astype(np.intp)
    return np.where(ring == 0, 0, np.where(k > 0, ring, ring + half))


def _spectrum(layer: NDArray[np.float32], axis: int) -> NDArray[np.complex64]:
    """Return the spectrum along one axis of a layer mirrored at its end, lest the border leave a seam."""
    mirrored = np.concatenate([layer, np.flip(layer, axis)], axis=axis)
    out: NDArray[np.complex64] = fft.fft(mirrored, axis=axis)
    return out


def _line(values: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return values[:, None] if axis == 0 else values[None, :]


def _moved(
    spline: NDArray[np.float32], steps: tuple[float, float], pose: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return a layer, given by its cubic spline, moved by (mm, mm) and turned by degrees about its middle.

    Linear interpolation would blur, and for small movements that would be more than the motion does.
    """
    angle = np.deg2rad(pose[2])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag(steps)
    matrix = np.linalg.inv(scale) @ turn @ scale
    middle = (np.array(spline.shape) - 1) / 2
    offset = middle - matrix @ (middle + pose[:2] / np.array(steps))
    moved: NDArray[np.float32] = ndimage.affine_transform(
        spline, matrix, offset, order=3, mode="nearest", prefilter=False
    )
    return moved


def ghosting(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with two ghosts of amplitude `strength` / 2 along the phase-encoding axis.

    Pulsation or breathing modulates the k-space lines by 1 + `strength` * cos(...), and a cosine over the
    lines is two copies, a whole fraction of the field of view away on either side (Axel et al. 1986;
    TorchIO 2021). The ghosts' phase decides whether they add to the tissue or are taken from it.
    """
    phase, _ = plane(_shape(channel), spacing)
    distance = round(channel.shape[phase] / int(rng.integers(PERIODS[0], PERIODS[1] + 1)))
    turn = rng.uniform(-np.pi / 4, np.pi / 4) + np.pi * int(rng.integers(2))
    signal = np.maximum(channel, 0)
    ahead, behind = np.roll(signal, distance, phase), np.roll(signal, -distance, phase)
    real = signal + np.float32(strength / 2 * np.cos(turn)) * (ahead + behind)
    imaginary = np.float32(strength / 2 * np.sin(turn)) * (ahead - behind)
    return np.hypot(real, imaginary) + np.minimum(channel, 0)


def spike(channel: Channel, spacing: ThreeF, strength: float, rng: np.random.Generator) -> Channel:
    """Return the channel with the stripes of one wild point of k-space, of amplitude `strength`.

    A spark in the receive chain adds one plane wave to the complex image (herringbone; TorchIO 2021): stripes
    on tissue, an even veil on the dark background. In the imaging plane, the same for all slices.
    """
    first, second = plane(_shape(channel), spacing)
    shortest = max(SPIKE_MM[0], 2.5 * max(spacing[first], spacing[second]))
    wavelength = rng.uniform(shortest, max(SPIKE_MM[1], 2 * shortest))
    angle, start = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    rays = {first: np.cos(angle), second: np.sin(angle)}
    turns = np.zeros([1, 1, 1])
    for axis, share in rays.items():
        place = from_centre(channel.shape[axis], spacing[axis])
        turns = turns + np.expand_dims(place * share, [a for a in range(3) if a != axis])
    wave = 2 * np.pi * turns / wavelength + start
    signal = np.maximum(channel, 0)
    real, imaginary = (np.float32(strength) * part(wave).astype(np.float32) for part in (np.cos, np.sin))
    return np.asarray(np.hypot(signal + real, imaginary) + np.minimum(channel, 0), np.float32)


def _shape(channel: Channel) -> Three:
    z, y, x = channel.shape
    return z, y, x
