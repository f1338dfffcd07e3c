"""CT windows: Hounsfield units clipped to level - width / 2 ... level + width / 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError
from seguro.data.plan import Intensity

WINDOWS: dict[str, tuple[float, float]] = {
    "covid": (-504.4, 2204.3),
    "lung": (-600.0, 1500.0),
    "abdomen": (40.0, 400.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
"""Name -> (level, width). "covid" is the published one of ROAM's volumes: -1606.55 ... 597.75."""
HU_BELOW = -100.0
"""Every scan in Hounsfield units has voxels below this: air is -1000."""


def parse_window(text: str) -> tuple[float, float]:
    """Return (level, width) of "LEVEL,WIDTH" or of a name out of WINDOWS.

    Raises:
        ConfigError: neither.
    """
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        level, width = (float(part) for part in text.split(","))
    except ValueError:
        level = width = math.nan
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        raise ConfigError(
            f"--window {text}: expected LEVEL,WIDTH in Hounsfield units (width above 0), as in 40,400, "
            f"or one of {', '.join(WINDOWS)}"
        )
    return level, width


def windowed(
    name: str, window: tuple[float, float], lowest: float, samples: NDArray[np.floating]
) -> Intensity:
    """Return the intensity scheme of one CT channel under a window.

    What is left of the foreground is brought to mean 0 and standard deviation 1; without a foreground, as if
    it were spread evenly over the window.

    Args:
        name: of the channel.
        window: (level, width).
        lowest: the largest of the cases' smallest voxels.
        samples: (n,) raw intensities inside the foreground; may be empty.

    Raises:
        DataError: the channel is not in Hounsfield units.
    """
    if lowest >= HU_BELOW:
        raise DataError(
            f"channel {name}: --window is for Hounsfield units, but a case holds nothing below {lowest:g} "
            "(air is -1000); pictures and figures hold none, and stored units need their slope and intercept"
        )
    low, high = (window[0] + side * window[1] / 2 for side in (-1, 1))
    clipped = np.clip(samples, low, high) if len(samples) else np.array([low, high])
    mean, sd = float(clipped.mean()), float(clipped.std())
    if not len(samples) or sd == 0:
        mean, sd = window[0], window[1] / math.sqrt(12)
    return Intensity(name=name, scheme="ct", low=low, high=high, mean=mean, sd=sd)


def channel_of(names: Sequence[str], is_ct: Sequence[bool]) -> int:
    """Return the number of the channel that a window is for: the only one, or the only CT among several.

    Raises:
        ConfigError: none or several could be meant.
    """
    if len(names) == 1:
        return 0
    chosen = [i for i, ct in enumerate(is_ct) if ct]
    if len(chosen) != 1:
        raise ConfigError(
            f"--window: {len(chosen)} of the channels {', '.join(names)} are named CT, expected one"
        )
    return chosen[0]
