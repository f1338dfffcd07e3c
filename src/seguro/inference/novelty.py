"""Says in which respects a case is unlike the training data; nothing here changes a prediction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import Volume
from seguro.data.plan import Intensity, Plan, Spread

MARGIN = 0.5
"""How far beyond the training range, as a fraction of its width, is still like the training data."""
FLOOR = 0.25
"""The same as a fraction of the training median: few training cases span too narrow a range."""
SHAPE_MARGIN = 0.15
"""The same for scale-free intensity statistics, which lie between 0 and 1."""
FACTOR = 1.5
"""For spacing and field of view: how many times beyond the training range."""
VOLUME_FACTOR = 2.0
"""For predicted class volumes: how many times beyond the training range."""
INTENSITIES = {
    "p005": "0.5 % intensity",
    "p500": "median intensity",
    "p995": "99.5 % intensity",
    "mean": "mean intensity",
    "sd": "standard deviation",
}
SHAPES = {
    "middle": "median relative to the intensity range",
    "spread": "standard deviation relative to the intensity range",
}


def flags(volume: Volume, plan: Plan) -> list[str]:
    """Return a sentence for each respect in which a raw image is unlike the training cases of `plan`.

    Compared are the number of channels, spacing, field of view and, per channel, intensity percentiles: as
    they are for CT and photographs, free of scale and offset where each case is normalized by itself.

    Args:
        volume: image (C, Z, Y, X) with raw intensities.
        plan: holds the fingerprint.
    """
    found, expected = volume.array.shape[0], len(plan.channels)
    if found != expected:
        return [f"{found} channel(s), the training cases have {expected}"]
    out = _geometry(volume, plan)
    for channel, how, seen in zip(volume.array, plan.channels, plan.fingerprint.intensity, strict=False):
        now = statistics(channel)
        out += _scale_free(now, how, seen) if how.scheme == "zscore" else _absolute(now, how, seen)
    return out


def volume_flags(ml: Mapping[str, float], plan: Plan) -> list[str]:
    """Return a sentence for each class whose predicted volume is unlike that in the training cases.

    Args:
        ml: predicted volume of each foreground class in millilitres.
        plan: holds the fingerprint.
    """
    out = []
    seen = plan.fingerprint.volume_ml
    for name, value in ml.items():
        if name not in seen:
            continue
        low, high = seen[name].low, seen[name].high
        n, labelled = plan.fingerprint.present.get(name, 0), plan.fingerprint.n_labelled
        if value == 0:
            if n == labelled:
                out.append(f"{name}: nothing found, present in all {n} labelled training cases")
        elif not low / VOLUME_FACTOR <= value <= high * VOLUME_FACTOR:
            out.append(f"{name}: {value:.4g} ml, {_range(low, high)} ml in the training cases")
    return out


def statistics(channel: NDArray[np.floating]) -> dict[str, float]:
    """Return mean, sd and the 0.5, 50 and 99.5 percentiles of the finite voxels of a channel."""
    x = np.asarray(channel)[np.isfinite(channel)]
    if not x.size:
        return {}
    low, middle, high = np.percentile(x, (0.5, 50, 99.5))
    mean, sd = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    return {
        "mean": float(mean),
        "sd": float(sd),
        "p005": float(low),
        "p500": float(middle),
        "p995": float(high),
    }


def _geometry(volume: Volume, plan: Plan) -> list[str]:
    unit = volume.grid.unit
    if (unit == "px") != (plan.unit == "px"):
        return [f"spacing is in {unit}, in the training cases in {plan.unit}"]
    out = []
    extent = [n * s for n, s in zip(volume.grid.shape, volume.grid.spacing, strict=True)]
    for what, now, seen in (
        ("spacing", volume.grid.spacing, plan.fingerprint.spacing),
        ("field of view", extent, plan.fingerprint.extent),
    ):
        for axis, value, spread in zip("zyx", now, seen, strict=True):
            if not spread.low / FACTOR <= value <= spread.high * FACTOR:
                between = _range(spread.low, spread.high)
                out.append(f"{what} along {axis}: {value:.4g} {unit}, {between} {unit} in the training cases")
    return out


def _absolute(now: Mapping[str, float], how: Intensity, seen: Mapping[str, Spread]) -> list[str]:
    """Compare intensities as they are."""
    out = []
    for key, words in INTENSITIES.items():
        if key in now and key in seen:
            spread = seen[key]
            margin = max(MARGIN * (spread.high - spread.low), FLOOR * abs(spread.median))
            if not spread.low - margin <= now[key] <= spread.high + margin:
                between = _range(spread.low, spread.high)
                out.append(f"{how.name}: {words} {now[key]:.4g}, {between} in the training cases")
    return out


def _scale_free(now: Mapping[str, float], how: Intensity, seen: Mapping[str, Spread]) -> list[str]:
    """Compare where median and standard deviation lie between the 0.5 and 99.5 percentiles.

    The fingerprint keeps no such ratio per case, so the range is what its low, median and high values give.
    """
    out = []
    mine = _shape(now)
    sets = [_shape({k: getattr(s, part) for k, s in seen.items()}) for part in ("low", "median", "high")]
    for key, words in SHAPES.items():
        known = [s[key] for s in sets if key in s]
        if key in mine and known:
            low, high = min(known), max(known)
            margin = max(MARGIN * (high - low), SHAPE_MARGIN)
            if not low - margin <= mine[key] <= high + margin:
                out.append(
                    f"{how.name}: {words} {mine[key]:.2f}, about {_range(low, high)} in the training cases"
                )
    return out


def _shape(stats: Mapping[str, float]) -> dict[str, float]:
    """Return the scale-free statistics; nothing for a constant image."""
    if not {"p005", "p500", "p995", "sd"} <= set(stats) or not stats["p995"] > stats["p005"]:
        return {}
    width = stats["p995"] - stats["p005"]
    return {"middle": (stats["p500"] - stats["p005"]) / width, "spread": stats["sd"] / width}


def _range(low: float, high: float) -> str:
    a, b = f"{low:.4g}", f"{high:.4g}"
    return a if a == b else f"{a} to {b}"
