"""How large a patch is, how often it is divided, and how fine its voxels are: what the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from seguro.core.errors import ConfigError
from seguro.core.types import Record, ThreeF

SMALLEST_MAP = 4
"""No axis is divided below this many voxels."""
MAX_DEPTH = {2: 6, 3: 5}
MAX_BATCH = {2: 12, 3: 4}
MAX_PLANE = 320
FEW_COVERED = 1 / 8
"""A 3-D patch that sees less than this share of the median case gets coarser voxels ..."""
ENOUGH_COVERED = 1 / 4
"""... until it sees this much."""
COARSER = 1.03

Bytes = Callable[[Sequence[int], int, Sequence[Sequence[int]]], int]
"""(patch, batch, strides) -> bytes of a training step; the network's own estimate, passed in."""


class PlanOptions(Record):
    """What a user may decide instead of the data; None leaves it to the data."""

    dims: int | None = None
    spacing: ThreeF | None = None
    patch: tuple[int, ...] | None = None
    batch: int | None = None
    memory_gib: float = 1.0
    """Memory of one training step; decides patch and batch."""
    full_resolution: bool = False
    """Keep the spacing of the data even where a patch then sees only a small part of a case."""
    folds: int = 5
    seed: int = 0
    recipe: Literal["seguro", "rog"] = "seguro"
    """Whose rules decide spacing, patch and strides: our own, or published ones (data/recipes.py)."""
    window: tuple[float, float] | None = None
    """(level, width) of a CT window in Hounsfield units, clipped to instead of the foreground's percentiles
    (data/windows.py)."""
    slices: Literal["axial", "coronal", "sagittal"] | None = None
    """Which way slices of a 2-D plan are cut."""


def _bounded(sizes: Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(min(s, MAX_PLANE) if dims == 2 else s for s in sizes)


def shape_for(
    sizes: Sequence[int], mm: Sequence[float], dims: int, *, exact: bool = False
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return patch, strides and kernels for about `sizes` voxels of `mm` size.

    An axis is halved while it keeps SMALLEST_MAP voxels and its spacing is within a factor two of the finest;
    its kernel is 1 while its spacing is more than twice the finest. The patch is `sizes` rounded up to the
    total stride (with `exact`: refused if that changes it).
    """
    size, step = [float(s) for s in sizes], list(mm)
    strides: list[tuple[int, ...]] = []
    kernels = [_kernel(step)]
    while len(strides) < MAX_DEPTH[dims]:
        finest = (
            min(s for s, n in zip(step, size, strict=True) if n >= 2 * SMALLEST_MAP)
            if max(size) >= 2 * SMALLEST_MAP
            else 0
        )
        factor = tuple(
            2 if n >= 2 * SMALLEST_MAP and s <= 2 * finest else 1 for n, s in zip(size, step, strict=True)
        )
        if all(f == 1 for f in factor):
            break
        strides.append(factor)
        size = [n / f for n, f in zip(size, factor, strict=True)]
        step = [s * f for s, f in zip(step, factor, strict=True)]
        kernels.append(_kernel(step))
    total = [int(np.prod([s[a] for s in strides])) if strides else 1 for a in range(dims)]
    patch = tuple(-(-int(n) // t) * t for n, t in zip(sizes, total, strict=True))
    if exact and patch != tuple(sizes):
        raise ConfigError(f"--patch {by(sizes)} is not divisible by the strides {by(total)}; {by(patch)} is")
    return patch, tuple(strides), tuple(kernels)


def _kernel(step: Sequence[float]) -> tuple[int, ...]:
    return tuple(1 if s > 2 * min(step) else 3 for s in step)


def _shrink(patch: Sequence[int], mm: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the patch with one stride less along the axis of largest physical extent that can still give."""
    total = [int(np.prod([s[a] for s in strides])) if strides else 1 for a in range(len(patch))]
    out = list(patch)
    for axis in sorted(range(len(patch)), key=lambda a: -patch[a] * mm[a]):
        if patch[axis] - total[axis] >= max(total[axis], SMALLEST_MAP):
            out[axis] -= total[axis]
            break
    return tuple(out)


def sizes_of(extent: Sequence[float], spacing: Sequence[float]) -> list[int]:
    """Return the voxels (z, y, x) that a field of view takes at `spacing`."""
    return [max(1, round(e / s)) for e, s in zip(extent, spacing, strict=True)]


def fitted(
    sizes: Sequence[int], mm: Sequence[float], options: PlanOptions, step_bytes: Bytes
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], int]:
    """Return patch, strides, kernels and batch of one training step within the memory.

    Args:
        sizes: of the median case on the planned grid, per patch axis.
        mm: their spacing.
        options: what the user decided.
        step_bytes: the network's memory estimate.

    Raises:
        ConfigError: a patch that does not fit the plan.
    """
    dims, budget = len(sizes), int(options.memory_gib * 2**30)
    if options.patch is not None and len(options.patch) != dims:
        raise ConfigError(f"--patch {options.patch}: a {dims}-D plan needs {dims} numbers")
    patch, strides, kernels = shape_for(
        options.patch or _bounded(sizes, dims), mm, dims, exact=options.patch is not None
    )
    smallest = options.batch or 2
    while options.patch is None and step_bytes(patch, smallest, strides) > budget:
        smaller = _shrink(patch, mm, strides)
        if smaller == patch:
            break
        patch, strides, kernels = shape_for(smaller, mm, dims)
    return patch, strides, kernels, batch_within(patch, strides, options, step_bytes)


def batch_within(
    patch: Sequence[int], strides: Sequence[Sequence[int]], options: PlanOptions, step_bytes: Bytes
) -> int:
    """Return the user's batch, or the largest one (at least 2) of `patch` that the memory allows."""
    if options.batch is not None:
        return options.batch
    batch, budget = 2, int(options.memory_gib * 2**30)
    while batch < MAX_BATCH[len(patch)] and step_bytes(patch, batch + 1, strides) <= budget:
        batch += 1
    return batch


def coarsened(
    spacing: ThreeF,
    extent: Sequence[float],
    options: PlanOptions,
    step_bytes: Bytes,
    reasons: list[str],
) -> ThreeF:
    """Return a 3-D spacing at which a patch sees enough of a case, as nnU-Net's low-resolution stage.

    Nothing changes while a patch covers FEW_COVERED of the median case. Otherwise the finer axes grow, all of
    them together once they are within a factor two of the coarsest, until it covers ENOUGH_COVERED.

    Args:
        spacing: (z, y, x) of the data.
        extent: field of view of the median case, (z, y, x).
        options: the memory, and whether to keep the full resolution.
        step_bytes: the network's memory estimate.
        reasons: takes a line when the spacing changes.
    """
    if options.full_resolution or _covered(spacing, extent, options, step_bytes) >= FEW_COVERED:
        return spacing
    first, now = _covered(spacing, extent, options, step_bytes), list(spacing)
    while (covered := _covered(now, extent, options, step_bytes)) < ENOUGH_COVERED:
        coarse = max(now)
        fine = [s < coarse / 2 for s in now]
        now = [s * COARSER if not any(fine) or f else s for s, f in zip(now, fine, strict=True)]
    z, y, x = (round(s, 4) for s in now)
    reasons.append(
        f"coarser voxels, {by((z, y, x))} instead of {by(spacing)}: a patch would see {100 * first:.0f} % of "
        f"a case and now sees {100 * covered:.0f} %; more --memory, or --full-resolution, keeps details"
    )
    return z, y, x


def _covered(
    spacing: Sequence[float], extent: Sequence[float], options: PlanOptions, step_bytes: Bytes
) -> float:
    """Return the share of the median case that a patch sees."""
    sizes = sizes_of(extent, spacing)
    patch = fitted(sizes, spacing, options, step_bytes)[0]
    return float(np.prod([min(p, n) / n for p, n in zip(patch, sizes, strict=True)]))


def by(numbers: Sequence[float]) -> str:
    """Return "20 x 96 x 96"."""
    return " x ".join(f"{n:g}" for n in numbers)
