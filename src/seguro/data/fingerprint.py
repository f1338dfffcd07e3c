"""What the training cases look like: the measurements that the plan is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import SeguroError
from seguro.core.seeds import generator
from seguro.core.types import Case, Grid, Manifest
from seguro.data.manifest import read_case, read_case_label
from seguro.data.plan import Fingerprint, Plan, Spread
from seguro.data.preprocess import encode_label, grid_of

MAX_SAMPLES = 5000
"""Foreground voxels remembered per case and channel for the intensities of CT."""
LARGE_COMPONENT = 0.05
"""Share of the largest component's volume above which another one counts."""
QUANTITIES = ("mean", "sd", "p005", "p500", "p995")


@dataclass(frozen=True)
class Measured:
    """One case's measurements."""

    grid: Grid
    intensity: tuple[dict[str, float], ...]
    """Per channel: mean, sd and percentiles of the whole raw image."""
    lowest: tuple[float, ...]
    foreground: NDArray[np.float32]
    """(channels, samples) raw intensities inside any foreground class; empty without a label."""
    volume_ml: dict[str, float]
    """Per annotated class, zero when absent; empty without a label."""
    lateral: dict[str, float] = field(default_factory=dict)
    """Per annotated class that is there: how far right (below 0) or left of the middle of all foreground its
    centre lies, as a fraction of the foreground's width along x."""
    components: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Per annotated class, (n, 4): extents (z, y, x) and volume of its large connected components, in the
    unit of the spacing and its cube; empty unless asked for."""


def measure(case: Case, manifest: Manifest, *, components: bool = False) -> Measured:
    """Return the measurements of one case, with those of connected `components` if asked; errors name it."""
    try:
        volume = read_case(case, manifest)
        label = read_case_label(case, manifest, like=volume.grid)
        stored = (
            None if label is None or manifest.classes is None else encode_label(label.array, manifest.classes)
        )
    except SeguroError as error:
        raise type(error)(f"{case.id}: {error}") from error
    foreground = np.zeros((volume.array.shape[0], 0), np.float32)
    ml: dict[str, float] = {}
    parts: dict[str, NDArray[np.float64]] = {}
    across: dict[str, NDArray[np.int64]] = {}
    if stored is not None and manifest.classes is not None:
        classes = manifest.classes
        inside = np.flatnonzero(np.isin(stored, [v for vs in _values(manifest) for v in vs]))
        if len(inside) > MAX_SAMPLES:
            inside = generator(0, case.id, "foreground").choice(inside, MAX_SAMPLES, replace=False)
        foreground = volume.array.reshape(volume.array.shape[0], -1)[:, np.sort(inside)]
        for name, values in zip(classes.foreground, _values(manifest), strict=True):
            if name in case.annotated:
                mask = np.isin(stored, values)
                across[name] = mask.sum((0, 1))
                ml[name] = float(across[name].sum()) * volume.grid.voxel_ml
                if components:
                    parts[name] = large_components(mask, volume.grid.spacing)
    return Measured(
        grid=volume.grid,
        intensity=tuple(_intensity(c) for c in volume.array),
        lowest=tuple(float(c.min()) for c in volume.array),
        foreground=foreground,
        volume_ml=ml,
        lateral=_lateral(across),
        components=parts,
    )


def _lateral(across: dict[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return the offsets of `Measured.lateral` from each class's voxels per plane along x."""
    total = np.sum(list(across.values()), axis=0) if across else np.zeros(1, np.int64)
    planes = np.flatnonzero(total)
    if not len(planes):
        return {}
    x = np.arange(len(total))
    middle, width = (planes[0] + planes[-1]) / 2, planes[-1] - planes[0] + 1
    return {n: float((c @ x / c.sum() - middle) / width) for n, c in across.items() if c.any()}


def large_components(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return extents (z, y, x) and volume, (n, 4), of the 26-connected components of `mask`.

    Those of at most a twentieth of the largest one's volume are left out.
    """
    from scipy import ndimage

    labels, n = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    rows = [
        [*((s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True)), count * np.prod(spacing)]
        for box, count in zip(ndimage.find_objects(labels), voxels, strict=True)
        if count > LARGE_COMPONENT * voxels.max()
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _values(manifest: Manifest) -> Sequence[tuple[int, ...]]:
    """Stored labels of each foreground class."""
    if manifest.classes is None:
        return ()
    if manifest.classes.regions:
        return manifest.classes.values
    return [(i,) for i in range(1, manifest.classes.n)]


def _intensity(channel: NDArray[np.float32]) -> dict[str, float]:
    p = np.percentile(channel, (0.5, 50, 99.5))
    return dict(
        zip(
            QUANTITIES,
            (float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64)), *map(float, p)),
            strict=True,
        )
    )


def measure_all(
    manifest: Manifest,
    cases: Sequence[Case],
    *,
    jobs: int = 2,
    components: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measured]:
    """Return the measurements of `cases`, in their order; connected `components` take extra time."""
    import joblib

    out = []
    results = joblib.Parallel(n_jobs=jobs, return_as="generator", prefer="threads")(
        joblib.delayed(measure)(case, manifest, components=components) for case in cases
    )
    for measured in results:
        out.append(measured)
        if progress:
            progress(len(out), len(cases))
    return out


def spread(values: Sequence[float] | NDArray[np.floating]) -> Spread:
    """Return the low, median and high of `values`."""
    low, median, high = np.percentile(np.asarray(values, dtype=float), (0.5, 50, 99.5))
    return Spread(low=float(low), median=float(median), high=float(high))


def fingerprint(measured: Sequence[Measured], n_labelled: int, like: Plan) -> Fingerprint:
    """Return the fingerprint of the measured cases on the grid of `like`."""
    shapes = np.array([grid_of(m.grid, like).shape for m in measured])
    spacing = np.array([m.grid.spacing for m in measured])
    extent = spacing * np.array([m.grid.shape for m in measured])
    shape = np.median(shapes, axis=0).round().astype(int)
    names = like.classes.foreground
    found = {n: [m.volume_ml[n] for m in measured if m.volume_ml.get(n, 0) > 0] for n in names}
    return Fingerprint(
        n_cases=len(measured),
        n_labelled=n_labelled,
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=(spread(spacing[:, 0]), spread(spacing[:, 1]), spread(spacing[:, 2])),
        extent=(spread(extent[:, 0]), spread(extent[:, 1]), spread(extent[:, 2])),
        intensity=tuple(
            {q: spread([m.intensity[c][q] for m in measured]) for q in QUANTITIES}
            for c in range(len(like.channels))
        ),
        volume_ml={n: spread(v) for n, v in found.items() if v},
        present={n: len(v) for n, v in found.items()},
    )
