"""Augmentation of training patches, 2-D and 3-D: parameters are drawn in one function and applied in another.

Spatial transforms are read straight from the stored volume around the patch, so that no border enters where
there is image to read. Rotations are in physical space: an anisotropic voxel is not sheared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from seguro.core.types import IGNORE, Classes, Record, Three, ThreeF
from seguro.data.sampling import crop
from seguro.data.store import Stored

ELASTIC_GRID = 4
"""Control points per axis of the elastic displacement."""
CURVE_PIECES = 4
"""Straight pieces of a random curve of intensities."""


class Augment(Record):
    """How strongly and how often; every `p_` is a probability, all ranges are inclusive."""

    p_spatial: float = 0.5
    rotate_deg: float = 15.0
    """Largest rotation about each axis (only about the slice axis where the data are anisotropic or 2-D)."""
    scale: tuple[float, float] = (0.8, 1.25)
    elastic_vox: float = 2.0
    """Standard deviation of the control points' displacement, in voxels."""
    mirror: bool = True
    """Mirror along the plan's axes, each with probability 0.5."""
    p_noise: float = 0.15
    noise_sd: float = 0.15
    """Largest standard deviation of Gaussian noise, in standard deviations of the image."""
    p_blur: float = 0.15
    blur_vox: tuple[float, float] = (0.5, 1.0)
    p_intensity: float = 0.3
    """Of brightness, contrast and gamma, each."""
    brightness: float = 0.2
    contrast: tuple[float, float] = (0.75, 1.33)
    gamma: tuple[float, float] = (0.7, 1.5)
    p_curve: float = 0.0
    """Of a random curve of intensities, rising or falling (Zhou et al., CVPR 2022), in straight pieces."""
    falling: float = 0.5
    """Probability that a curve falls, which exchanges dark and bright."""

    @property
    def shades(self) -> bool:
        """Whether intensities are ever changed."""
        return max(self.p_noise, self.p_blur, self.p_intensity, self.p_curve) > 0


@dataclass(frozen=True)
class Spatial:
    """A drawn spatial transform: output voxel offset -> input voxel offset, both from the patch centre."""

    matrix: NDArray[np.float64]
    """(3, 3) in voxels, (z, y, x)."""
    control: NDArray[np.float32] | None
    """(3, g, g, g) displacement of control points in voxels, None for none."""


@dataclass(frozen=True)
class Drawn:
    """All parameters of one augmentation."""

    spatial: Spatial | None = None
    mirror: tuple[int, ...] = ()
    noise: tuple[float, int] | None = None
    """Standard deviation and the seed of the noise field."""
    blur_vox: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    gamma: float | None = None
    curve: tuple[float, ...] | None = None
    """Where the curve leads, of 0 to 1, at equal distances from the darkest to the brightest."""
    lateral: tuple[tuple[int, int], ...] = field(default=())
    """Stored labels to swap when mirrored along x."""


def draw(
    rng: np.random.Generator,
    how: Augment,
    *,
    spacing: ThreeF,
    patch: Three,
    mirror: tuple[int, ...] = (),
    classes: Classes | None = None,
) -> Drawn:
    """Return the parameters of one augmentation.

    Args:
        rng: the only source of randomness.
        how: ranges and probabilities.
        spacing: of the planned grid (z, y, x), so that rotations are rigid in millimetres.
        patch: (Z, Y, X); an axis of one voxel is neither rotated into nor displaced.
        mirror: canonical axes along which mirroring is allowed.
        classes: for lateral pairs.
    """
    spatial = None
    if rng.random() < how.p_spatial:
        spatial = _draw_spatial(rng, how, spacing, patch)
    flips = tuple(a for a in mirror if rng.random() < 0.5) if how.mirror else ()
    intensity: dict[str, Any] = {}
    for name, low, high in (
        ("brightness", -how.brightness, how.brightness),
        ("contrast", *how.contrast),
        ("gamma", *how.gamma),
    ):
        intensity[name] = float(rng.uniform(low, high)) if rng.random() < how.p_intensity else None
    drawn = Drawn(
        spatial=spatial,
        mirror=flips,
        noise=(float(rng.uniform(0, how.noise_sd)), int(rng.integers(1 << 31)))
        if rng.random() < how.p_noise
        else None,
        blur_vox=float(rng.uniform(*how.blur_vox)) if rng.random() < how.p_blur else None,
        lateral=lateral_values(classes) if classes and 2 in flips else (),
        **intensity,
    )
    if how.p_curve and rng.random() < how.p_curve:  # without curves no number is drawn, as it always was
        return replace(drawn, curve=_draw_curve(rng, how))
    return drawn


def _draw_curve(rng: np.random.Generator, how: Augment) -> tuple[float, ...]:
    heights = np.sort(rng.random(CURVE_PIECES + 1))
    heights = (heights - heights[0]) / max(heights[-1] - heights[0], 1e-6)
    return tuple((heights[::-1] if rng.random() < how.falling else heights).tolist())


def unshaded(drawn: Drawn) -> Drawn:
    """Return the augmentation with its geometry alone."""
    return replace(drawn, noise=None, blur_vox=None, brightness=None, contrast=None, gamma=None, curve=None)


def lateral_values(classes: Classes) -> tuple[tuple[int, int], ...]:
    """Return the pairs of stored labels that a left-right mirror swaps."""
    stored = {name: (classes.values[i] if classes.regions else (i,)) for i, name in enumerate(classes.names)}
    return tuple(
        (a, b) for left, right in classes.pairs for a, b in zip(stored[left], stored[right], strict=True)
    )


def _draw_spatial(rng: np.random.Generator, how: Augment, spacing: ThreeF, patch: Three) -> Spatial:
    thick = [a for a in range(3) if patch[a] > 1]
    anisotropic = max(spacing[a] for a in thick) > 3 * min(spacing[a] for a in thick)
    coarse = int(np.argmax(spacing))
    matrix = np.eye(3)
    for axis in range(3):
        plane = [a for a in range(3) if a != axis]
        angle = np.deg2rad(rng.uniform(-how.rotate_deg, how.rotate_deg))
        if any(a not in thick for a in plane) or (anisotropic and axis != coarse):
            continue
        turn = np.eye(3)
        i, j = plane
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    to_mm = np.diag(spacing)
    matrix = np.linalg.inv(to_mm) @ matrix @ to_mm
    low, high = np.log(how.scale)
    zoom = np.exp(rng.uniform(low, high))
    matrix = matrix @ np.diag(
        [zoom if a in thick and not (anisotropic and a == coarse) else 1.0 for a in range(3)]
    )
    control = None
    if how.elastic_vox > 0:
        control = rng.normal(0, how.elastic_vox, (3, *[ELASTIC_GRID] * 3)).astype(np.float32)
        for a in range(3):
            if a not in thick or (anisotropic and a == coarse):
                control[a] = 0
    return Spatial(matrix, control)


def patch_of(
    case: Stored, middle: ThreeF, patch: Three, drawn: Drawn
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return augmented image (C, *patch) and label (*patch) around `middle` (z, y, x) of a stored case."""
    if drawn.spatial is None:
        image, label = crop(case, middle, patch)
    else:
        image, label = _warp(case, middle, patch, drawn.spatial)
    for axis in drawn.mirror:
        image = np.flip(image, axis=axis + 1)
        label = None if label is None else np.flip(label, axis=axis)
    image = np.ascontiguousarray(image)
    if label is not None:
        label = swap(np.ascontiguousarray(label), drawn.lateral)
    return intensities(image, drawn), label


def swap(label: NDArray[np.uint8], pairs: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    """Return `label` with each pair of values exchanged."""
    if not pairs:
        return label
    table = np.arange(256, dtype=np.uint8)
    for a, b in pairs:
        table[a], table[b] = b, a
    return np.asarray(table[label])


def _warp(
    case: Stored, middle: ThreeF, patch: Three, spatial: Spatial
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return the patch read through the transform: linear for the image, nearest for the label."""
    offsets = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch), indexing="ij"
    )
    matrix = torch.from_numpy(spatial.matrix.astype(np.float32))
    where = torch.tensordot(matrix, torch.stack(offsets), dims=1)
    if spatial.control is not None:
        field_ = F.interpolate(
            torch.from_numpy(spatial.control)[None], size=patch, mode="trilinear", align_corners=True
        )
        where = where + field_[0]
    where = where + torch.tensor(middle, dtype=torch.float32).reshape(3, 1, 1, 1)
    lows = [max(int(np.floor(float(where[a].min()))), 0) for a in range(3)]
    highs = [min(int(np.ceil(float(where[a].max()))) + 1, case.shape[a]) for a in range(3)]
    lows = [min(low, n - 1) for low, n in zip(lows, case.shape, strict=True)]
    highs = [max(high, low + 1) for high, low in zip(highs, lows, strict=True)]
    box = (slice(lows[0], highs[0]), slice(lows[1], highs[1]), slice(lows[2], highs[2]))
    size = [h - low for low, h in zip(lows, highs, strict=True)]
    unit = [
        (2 * (where[a] - lows[a]) + 1) / size[a] - 1 for a in (2, 1, 0)
    ]  # grid_sample wants (x, y, z) in [-1, 1]
    grid = torch.stack(unit, dim=-1)[None]
    source = torch.from_numpy(case.patch(box))[None]
    image = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)[
        0
    ].numpy()
    if case.label is None:
        return image, None
    coded = torch.from_numpy(np.asarray(case.label[box]).astype(np.float32) - IGNORE)[None, None]
    nearest = F.grid_sample(coded, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    return image, (nearest + IGNORE).round().to(
        torch.uint8
    ).numpy()  # zero padding means IGNORE after the shift


def intensities(image: NDArray[np.float32], drawn: Drawn) -> NDArray[np.float32]:
    """Return the image (C, *size) after curve, blur, noise, brightness, contrast and gamma, in that order."""
    if drawn.curve is not None:
        image = np.stack([_bent(c, drawn.curve) for c in image])
    if drawn.blur_vox is not None:
        image = np.stack([ndimage.gaussian_filter(c, drawn.blur_vox, truncate=2.0) for c in image])
    if drawn.noise is not None:
        sd, seed = drawn.noise
        image = image + np.random.default_rng(seed).normal(0, sd, image.shape).astype(np.float32)
    if drawn.brightness is not None:
        image = image + np.float32(drawn.brightness)
    if drawn.contrast is not None:
        mean = image.mean(axis=tuple(range(1, image.ndim)), keepdims=True)
        image = (image - mean) * np.float32(drawn.contrast) + mean
    if drawn.gamma is not None:
        axes = tuple(range(1, image.ndim))
        low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)
        span = np.maximum(high - low, np.float32(1e-6))
        image = ((image - low) / span) ** np.float32(drawn.gamma) * span + low
    return np.ascontiguousarray(image, dtype=np.float32)


def _bent(channel: NDArray[np.float32], curve: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the channel along the curve, with its own mean and deviation, as a plan standardizes images."""
    low, high = float(channel.min()), float(channel.max())
    bent = np.interp(channel, np.linspace(low, high, len(curve)), curve)
    scale = float(channel.std()) / max(float(bent.std()), 1e-6)
    return np.asarray((bent - bent.mean()) * scale + channel.mean(), np.float32)
