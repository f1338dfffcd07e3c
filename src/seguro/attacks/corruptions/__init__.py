"""Natural corruptions of MR and CT: what scanners and patients do to images, at five severities.

Twelve apply to MR and twelve to CT. All leave the label valid: nothing is displaced, only harder to
see. A fixed table of corruptions and severities is the idea of Hendrycks & Dietterich (2019), for
MR of ROOD-MRI (2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seguro.attacks.corruptions import intensity, kspace, noise, resolution, tomography
from seguro.attacks.corruptions.axes import Channel
from seguro.core.errors import ConfigError, DataError
from seguro.core.seeds import generator
from seguro.core.types import ThreeF

SEVERITIES = 5
RANGE = (0.5, 99.5)
"""Percentiles of a channel that are its dark and bright end."""

Modality = Literal["any", "mr", "ct"]
Effect = Callable[[Channel, ThreeF, float, np.random.Generator], Channel]
"""(channel (Z, Y, X) in units of its range, spacing in mm, strength, rng) -> channel of the same shape."""


@dataclass(frozen=True)
class Corruption:
    """One corruption: how strong each severity is, and what it does to one channel."""

    name: str
    modality: Modality
    strengths: tuple[float, float, float, float, float]
    """Of severities 1 to 5, in `unit`."""
    unit: str
    effect: Effect

    def __call__(
        self, image: NDArray[np.float32], spacing: ThreeF, severity: int, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return the corrupted image; a pure function, each channel drawn on its own.

        A channel's range is that between its 0.5th and 99.5th percentile, so that native and normalized
        images are treated alike. A constant channel has no range and stays as it is.

        Args:
            image: (C, Z, Y, X) float32, finite; any intensities; any axis may have one voxel.
            spacing: (z, y, x) in mm.
            severity: 0 (the identity) to 5.
            rng: the only source of randomness.

        Returns:
            (C, Z, Y, X) float32, a new array.
        """
        out = np.array(image, np.float32)
        if severity == 0:
            return out
        for index, channel in enumerate(out):
            low, span = dark_and_range(channel)
            if span > 0:
                unit = (channel - np.float32(low)) / np.float32(span)
                changed = self.effect(unit, spacing, self.strengths[severity - 1], rng)
                out[index] += np.float32(span) * (changed - unit).astype(np.float32)
        return out


def dark_and_range(channel: NDArray[np.float32]) -> tuple[float, float]:
    """Return a channel's dark end and the distance to its bright end, its extremes if those coincide."""
    low, high = (float(v) for v in np.percentile(channel, RANGE))
    if low == high:
        low, high = float(channel.min()), float(channel.max())
    return low, high - low


_ALL = (
    Corruption("gaussian noise", "any", (0.02, 0.04, 0.07, 0.11, 0.15), "sd, share of range", noise.gaussian),
    Corruption("blur", "any", (0.5, 0.8, 1.1, 1.5, 2.0), "sd in mm", resolution.blur),
    Corruption("thick slices", "any", (0.8, 1.6, 2.6, 3.8, 5.5), "added mm", resolution.thick_slices),
    Corruption("slice dropout", "any", (0.05, 0.10, 0.18, 0.28, 0.40), "share of slices", resolution.dropout),
    Corruption("contrast", "any", (0.04, 0.08, 0.13, 0.18, 0.24), "shift of middle gray", intensity.contrast),
    Corruption("rescaling", "any", (0.06, 0.12, 0.18, 0.26, 0.36), "gain and offset", intensity.rescaling),
    Corruption("rician noise", "mr", (0.02, 0.04, 0.07, 0.11, 0.15), "sd, share of range", noise.rician),
    Corruption("motion", "mr", (0.3, 0.6, 1.0, 1.6, 2.4), "mm and degrees", kspace.motion),
    Corruption("ghosting", "mr", (0.08, 0.16, 0.28, 0.44, 0.64), "modulation of lines", kspace.ghosting),
    Corruption("spike", "mr", (0.05, 0.10, 0.15, 0.21, 0.28), "amplitude, share of range", kspace.spike),
    Corruption(
        "bias field", "mr", (0.08, 0.16, 0.26, 0.38, 0.52), "sd of the log field", intensity.bias_field
    ),
    Corruption("ringing", "mr", (0.72, 0.58, 0.46, 0.36, 0.27), "share of k-space kept", resolution.ringing),
    Corruption("low dose", "ct", (0.04, 0.08, 0.13, 0.19, 0.27), "sd, share of range", noise.low_dose),
    Corruption(
        "photon starvation", "ct", (0.03, 0.06, 0.10, 0.16, 0.24), "sd, share of range", noise.starvation
    ),
    Corruption("rings", "ct", (0.03, 0.06, 0.10, 0.16, 0.24), "rms, share of range", tomography.rings),
    Corruption("metal streaks", "ct", (0.06, 0.12, 0.20, 0.30, 0.42), "share of range", tomography.metal),
    Corruption(
        "sparse views", "ct", (240, 160, 110, 78, 55), "views in 180 degrees", tomography.sparse_views
    ),
    Corruption("cupping", "ct", (0.10, 0.20, 0.32, 0.46, 0.62), "darkening, share", intensity.cupping),
)
CORRUPTIONS: dict[str, Corruption] = {corruption.name: corruption for corruption in _ALL}


def names(modality: Modality) -> tuple[str, ...]:
    """Return the names of the corruptions that apply to "mr", "ct", or "any" image.

    Raises:
        ConfigError: no such modality.

    Example:
        >>> len(names("mr")), len(names("ct")), names("any")[0]
        (12, 12, 'gaussian noise')
    """
    if modality not in ("any", "mr", "ct"):
        raise ConfigError(f"modality {modality!r} is not known; choose one of any, mr, ct")
    return tuple(c.name for c in _ALL if c.modality in ("any", modality))


def corrupt(
    image: NDArray[Any], name: str, severity: int, *, spacing: ThreeF, seed: int, case: str
) -> NDArray[np.float32]:
    """Return an image under one corruption; the same arguments give the same image everywhere.

    Args:
        image: (C, Z, Y, X) real numbers; any intensities; any axis may have one voxel. Not changed.
        name: one of `CORRUPTIONS`.
        severity: 0 (the identity) to 5.
        spacing: (z, y, x) in mm.
        seed: of the whole experiment.
        case: id of the case; every case, corruption and severity draws from its own stream.

    Returns:
        (C, Z, Y, X) float32.

    Raises:
        ConfigError: unknown name, severity outside 0 to 5, spacing that is not three positive numbers.
        DataError: not four axes, empty, or values that are not finite.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"corruption {name!r} is not known; choose one of: {', '.join(CORRUPTIONS)}")
    if isinstance(severity, bool) or severity not in range(SEVERITIES + 1):
        raise ConfigError(f"severity {severity!r} of {name}: expected a whole number from 0 to {SEVERITIES}")
    if len(spacing) != 3 or not all(np.isfinite(d) and d > 0 for d in spacing):
        raise ConfigError(f"spacing {tuple(spacing)} of case {case}: expected three positive mm (z, y, x)")
    array = np.asarray(image, np.float32)
    if array.ndim != 4 or array.size == 0:
        raise DataError(f"case {case}: image of shape {array.shape}; expected (C, Z, Y, X), none of them 0")
    if not np.isfinite(array).all():
        n = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"case {case}: {n} of {array.size} values are not finite; replace them before {name} is applied"
        )
    return CORRUPTIONS[name](array, spacing, severity, generator(seed, case, name, severity))
