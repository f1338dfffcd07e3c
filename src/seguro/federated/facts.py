"""What a site tells of its cases before round 1: counts and quantiles, never a voxel, name or path.

Every key of the message is listed here (KEYS); nothing else of the measurements leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from seguro.core.errors import DataError
from seguro.core.types import Classes, Manifest
from seguro.data.fingerprint import QUANTITIES, Measured

KEYS = (
    "n_cases",
    "n_labelled",
    "n_patients",
    "unit",
    "channels",
    "classes",
    "spacing",
    "extent",
    "intensity",
    "lowest",
    "foreground",
    "volume_ml",
    "present",
    "annotated",
    "lateral",
)
LEVELS = (0.0, 5.0, 25.0, 50.0, 75.0, 95.0, 100.0)
"""Percentiles over a site's cases."""
VOXEL_LEVELS = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
"""Percentiles over the voxels of all its cases' foreground together."""


def facts_of(manifest: Manifest, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the allow-listed facts of a site's training cases, as JSON values.

    Args:
        manifest: its "train" and "unlabelled" cases are `measured`, in that order.
        measured: their measurements.
    """
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    if not cases:
        raise DataError(f"{manifest.name}: no training case at all; a site needs one, labelled or not")
    spacing = np.array([m.grid.spacing for m in measured])
    extent = spacing * np.array([m.grid.shape for m in measured])
    channels = range(len(manifest.channels))
    names = manifest.classes.foreground if manifest.classes else ()
    volume = {n: [m.volume_ml[n] for m in measured if n in m.volume_ml] for n in names}
    lateral = {n: [m.lateral[n] for m in measured if n in m.lateral] for n in names}
    return {
        "n_cases": len(cases),
        "n_labelled": sum(c.label is not None for c in cases),
        "n_patients": len({c.patient for c in cases}),
        "unit": cases[0].unit,
        "channels": list(manifest.channels),
        "classes": manifest.classes.model_dump(mode="json") if manifest.classes else None,
        "spacing": [_levels(spacing[:, a]) for a in range(3)],
        "extent": [_levels(extent[:, a]) for a in range(3)],
        "intensity": [
            {q: _levels([m.intensity[c][q] for m in measured]) for q in QUANTITIES} for c in channels
        ],
        "lowest": [min(m.lowest[c] for m in measured) for c in channels],
        "foreground": [_voxels(measured, c) for c in channels],
        "volume_ml": {n: _levels([x for x in v if x > 0]) for n, v in volume.items()},
        "present": {n: sum(x > 0 for x in v) for n, v in volume.items()},
        "annotated": {n: len(v) for n, v in volume.items()},
        "lateral": {n: _levels(v) for n, v in lateral.items()},
    }


def checked(site: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of `site` if they have the form of `facts_of`.

    Raises:
        DataError: other keys, or values that cannot be.
    """
    try:
        return _checked(site, facts)
    except (TypeError, ValueError, KeyError) as error:  # numbers where lists should be, and the like
        raise DataError(f"site {site}: facts of another form than the agreed one") from error


def _checked(site: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    if set(facts) != set(KEYS):
        odd = sorted(set(facts) ^ set(KEYS))
        raise DataError(
            f"site {site}: facts differ from the agreed ones in {odd}; use the same seguro version"
        )
    n = len(facts["channels"])
    whole = all(isinstance(facts[k], int) and facts[k] >= 0 for k in ("n_cases", "n_labelled", "n_patients"))
    shaped = all(len(facts[k]) == 3 for k in ("spacing", "extent")) and all(
        len(facts[k]) == n for k in ("intensity", "lowest", "foreground")
    )
    classes_of(facts)
    numbers = [x for v in (*facts["spacing"], *facts["extent"]) for x in v]
    if not (whole and shaped and facts["n_cases"] and len(numbers) == 6 * len(LEVELS)):
        raise DataError(f"site {site}: facts of another form than the agreed one")
    if not all(np.isfinite(numbers)) or min(numbers) <= 0:
        raise DataError(f"site {site}: spacing or field of view is not a positive number")
    return facts


def at(levels: Sequence[float], n: int, *, of: Sequence[float] = LEVELS) -> list[float]:
    """Return `n` values whose percentiles are about `levels`: what stands for the site's cases."""
    if not levels:
        return []
    middle = 100 * (np.arange(n) + 0.5) / n
    if n == 1:
        middle = np.array([50.0])
    elif of is LEVELS:
        middle = np.linspace(0, 100, n)
    return [float(v) for v in np.interp(middle, of, levels)]


def classes_of(facts: Mapping[str, Any]) -> Classes | None:
    """Return the site's classes, None where nothing is labelled."""
    return None if facts["classes"] is None else Classes.model_validate(facts["classes"])


def _levels(values: ArrayLike) -> list[float]:
    x = np.asarray(values, dtype=np.float64)
    return [float(v) for v in np.percentile(x, LEVELS)] if x.size else []


def _voxels(measured: Sequence[Measured], channel: int) -> list[float]:
    x = np.concatenate([m.foreground[channel] for m in measured])
    return [float(v) for v in np.percentile(x, VOXEL_LEVELS)] if x.size else []
