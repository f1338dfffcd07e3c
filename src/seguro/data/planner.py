"""Makes the plan from the training cases: spacing, 2-D or 3-D, patch, strides, batch, intensities, folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, sha256_file, write_json
from seguro.core.stage import STAGE_FILE, Stage
from seguro.core.types import UNKNOWN, Classes, Manifest, ThreeF
from seguro.data.fingerprint import Measured, fingerprint, measure_all
from seguro.data.folds import SPLITS, by_patient, by_site, from_file
from seguro.data.layouts.naming import has_side
from seguro.data.patch import Bytes, PlanOptions, batch_within, by, coarsened, fitted, sizes_of
from seguro.data.plan import Fingerprint, Fold, Intensity, Plan
from seguro.data.recipes import plan_strides, rog_of
from seguro.data.windows import HU_BELOW, channel_of, windowed

SCHEMA = 2
"""Raised whenever the same cases and options give another plan."""
ANISOTROPIC = 3.0
"""Largest over smallest spacing from which the coarse axis is treated apart (nnU-Net's rule)."""
AXES = ("axial", "coronal", "sagittal")
"""What slices across canonical axis 0, 1 and 2 are called."""
ENOUGH_CASES, SAME_SIDE, OFF_MIDDLE = 3, 0.9, 0.1
"""From so many cases on, a class that lies on the same side in this share of them, by this fraction of the
foreground's width on average, has a side: its mirror image is another anatomy."""
FEW_SLICES = 20
"""With fewer slices than this a 3-D network has no depth to learn from."""


def make(
    manifest: Manifest, measured: Sequence[Measured], options: PlanOptions, *, step_bytes: Bytes
) -> Plan:
    """Return the plan for the training cases of `manifest`.

    Args:
        manifest: its "train" and "unlabelled" cases are `measured`, in that order.
        measured: their measurements.
        options: what the user decided.
        step_bytes: the network's memory estimate.

    Raises:
        DataError: a class that no case contains.
        ConfigError: options that do not fit together.
    """
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    reasons: list[str] = []
    classes = manifest.classes or UNKNOWN
    if manifest.classes is None:
        reasons.append("no case has a label: only methods that learn from images alone can be trained")
    spacings = np.array([m.grid.spacing for m in measured])
    shapes = np.array([m.grid.shape for m in measured])
    published = options.recipe == "rog"
    if published and (options.dims == 2 or options.patch is not None):
        raise ConfigError("--recipe rog decides the patch, in 3-D: leave --dims 2 and --patch out")
    spacing = options.spacing or (_medians(spacings) if published else _spacing(spacings, reasons))
    slice_axis = AXES.index(options.slices) if options.slices else _slice_axis(spacing, shapes)
    dims = 3 if published else options.dims or _dims(spacing, shapes, slice_axis, reasons)
    if dims not in (2, 3):
        raise ConfigError(f"--dims {dims}: 2 or 3")
    if options.slices is not None and dims == 3:
        raise ConfigError(f"--slices {options.slices}: a 3-D plan cuts none; give --dims 2 too")
    extent = [float(v) for v in np.median(shapes * spacings, axis=0)]
    if dims == 3 and not published and options.spacing is None and options.patch is None:
        spacing = coarsened(spacing, extent, options, step_bytes, reasons)
    median = sizes_of(extent, spacing)
    axes = [a for a in range(3) if dims == 3 or a != slice_axis]
    sizes, mm = [median[a] for a in axes], [spacing[a] for a in axes]
    if published:
        recipe = rog_of([m.components for m in measured], sizes, spacing, reasons)
        patch, strides = recipe.train, plan_strides(recipe)
        kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3),) * (len(strides) + 1)
        batch = batch_within(patch, strides, options, step_bytes)
    else:
        patch, strides, kernels, batch = fitted(sizes, mm, options, step_bytes)
    reasons.append(
        f"patch {by(patch)}, batch {batch}: one training step is predicted to take "
        f"{step_bytes(patch, batch, strides) / 2**30:.2f} of {options.memory_gib:g} GiB "
        f"(median case {by(sizes)})"
    )
    channels = _channels(manifest, measured, options, reasons)
    draft = Plan(
        name=manifest.name,
        dims=dims,
        slice_axis=slice_axis,
        spacing=spacing,
        unit=cases[0].unit,
        channels=channels,
        classes=classes,
        patch=patch,
        strides=strides,
        kernels=kernels,
        batch=batch,
        mirror=_mirror(classes, axes, measured, reasons),
        fingerprint=_blank(manifest),
        folds=_folds(manifest, options, reasons),
        reasons=tuple(reasons),
    )
    found = fingerprint(measured, sum(c.label is not None for c in cases), draft)
    _refuse_absent(found, manifest)
    return draft.model_copy(update={"fingerprint": found})


def _spacing(spacings: np.ndarray, reasons: list[str]) -> ThreeF:
    target = np.median(spacings, axis=0)
    coarse = int(np.argmax(target))
    others = np.delete(target, coarse)
    if target[coarse] >= ANISOTROPIC * others.max():
        target[coarse] = max(float(np.percentile(spacings[:, coarse], 10)), float(others.max()))
        reasons.append(
            f"spacing: median in plane, the 10th percentile ({target[coarse]:.3g}) across the thick slices"
        )
    else:
        reasons.append("spacing: the median of each axis")
    z, y, x = (round(float(t), 4) for t in target)
    return z, y, x


def _medians(spacings: np.ndarray) -> ThreeF:
    z, y, x = (round(float(t), 4) for t in np.median(spacings, axis=0))
    return z, y, x


def _slice_axis(spacing: ThreeF, shapes: np.ndarray) -> int:
    if max(spacing) >= ANISOTROPIC * min(spacing):
        return int(np.argmax(spacing))
    median = np.median(shapes, axis=0)
    return int(np.argmin(median)) if median.min() < FEW_SLICES else 0


def _dims(spacing: ThreeF, shapes: np.ndarray, slice_axis: int, reasons: list[str]) -> int:
    slices = float(np.median(shapes[:, slice_axis]))
    name = "zyx"[slice_axis]
    if slices < FEW_SLICES and np.median(shapes, axis=0).max() >= 2 * FEW_SLICES:
        reasons.append(f"2-D: {slices:g} slices along {name} (median) are fewer than {FEW_SLICES}")
        return 2
    ratio = max(spacing) / min(spacing)
    reasons.append(f"3-D: {slices:g} slices along {name} (median), spacing ratio {ratio:.1f}")
    return 3


def _channels(
    manifest: Manifest, measured: Sequence[Measured], options: PlanOptions, reasons: list[str]
) -> tuple[Intensity, ...]:
    """Return how each channel is scaled; one of them under the window, if there is one."""
    names = manifest.channels
    chosen = -1
    if options.window is not None:
        if manifest.layout == "raster":
            raise DataError(f"{manifest.name}: --window is for Hounsfield units; pictures hold none")
        chosen = channel_of(names, [_is_ct(name) for name in names])
    out = []
    for i, name in enumerate(names):
        if i != chosen or options.window is None:
            out.append(_channel(name, i, measured, reasons))
            continue
        samples = np.concatenate([m.foreground[i] for m in measured])
        how = windowed(name, options.window, max(m.lowest[i] for m in measured), samples)
        reasons.append(
            f"channel {name}: Hounsfield units clipped to {how.low:g} ... {how.high:g}, the window of level "
            f"{options.window[0]:g} and width {options.window[1]:g}"
        )
        out.append(how)
    return tuple(out)


def _is_ct(name: str) -> bool:
    return name.strip().upper() in ("CT", "CTA", "CECT", "NCCT") or name.upper().startswith("CT ")


def _channel(name: str, index: int, measured: Sequence[Measured], reasons: list[str]) -> Intensity:
    is_ct = _is_ct(name)
    in_hu = min(m.lowest[index] for m in measured) < HU_BELOW
    if name.lower() in ("nonorm", "none"):
        reasons.append(f"channel {name}: as stored")
        return Intensity(name=name, scheme="none")
    if name.lower() == "pooled":
        reasons.append(f"channel {name}: one mean and standard deviation, of all voxels of all cases")
        return _pooled(name, index, measured)
    samples = np.concatenate([m.foreground[index] for m in measured])
    if is_ct and in_hu and len(samples):
        low, high = (float(v) for v in np.percentile(samples, (0.5, 99.5)))
        clipped = np.clip(samples, low, high)
        reasons.append(
            f"channel {name}: Hounsfield units clipped to {low:.0f} ... {high:.0f} (foreground 0.5-99.5 %)"
        )
        return Intensity(
            name=name, scheme="ct", low=low, high=high, mean=float(clipped.mean()), sd=float(clipped.std())
        )
    why = "CT without Hounsfield units, " if is_ct else ""
    reasons.append(
        f"channel {name}: {why}each case by its own mean and standard deviation, clipped to 0.5-99.5 %"
    )
    return Intensity(name=name, scheme="zscore")


def _pooled(name: str, index: int, measured: Sequence[Measured]) -> Intensity:
    """Return the scheme of SSL-ALPNet's CT: nothing is clipped, all cases share mean and deviation."""
    n = np.array([np.prod(m.grid.shape) for m in measured], float)
    mean = np.array([m.intensity[index]["mean"] for m in measured])
    sd = np.array([m.intensity[index]["sd"] for m in measured])
    middle = float(np.average(mean, weights=n))
    variance = float(np.average(sd**2 + (mean - middle) ** 2, weights=n))
    return Intensity(name=name, scheme="ct", mean=middle, sd=variance**0.5)


def _mirror(
    classes: Classes, axes: Sequence[int], measured: Sequence[Measured], reasons: list[str]
) -> tuple[int, ...]:
    """Return (2,) where a mirrored case could be a case: left and right look alike, or have their twins."""
    paired = {name for pair in classes.pairs for name in pair}
    single = [name for name in classes.foreground if name not in paired]
    named = [name for name in single if has_side(name)]
    lying = [name for name in single if _one_sided([m.lateral[name] for m in measured if name in m.lateral])]
    if 2 not in axes:
        reasons.append("no mirroring: the slices run along x, left and right are not in the plane")
        return ()
    if named:
        reasons.append(f"no mirroring: {', '.join(named)} has a side but no mirror twin here")
        return ()
    if lying:
        reasons.append(f"no mirroring: {', '.join(lying)} on the same side in nearly every case")
        return ()
    twins = ", ".join(f"{a} / {b}" for a, b in classes.pairs)
    reasons.append("mirroring left-right" + (f", exchanging {twins}" if twins else ""))
    return (2,)


def _one_sided(offsets: Sequence[float]) -> bool:
    """Return whether a class lies to one side of the foreground, the same one in nearly every case."""
    o = np.asarray(offsets, np.float64)
    if len(o) < ENOUGH_CASES:
        return False
    same = max(float((o > 0).mean()), float((o < 0).mean()))
    return same >= SAME_SIDE and abs(float(o.mean())) > OFF_MIDDLE


def _folds(manifest: Manifest, options: PlanOptions, reasons: list[str]) -> tuple[Fold, ...]:
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    if manifest.splits_sha256 is not None:
        reasons.append(f"folds: as {SPLITS} of the data set says")
        folds = from_file(_own_splits(manifest), cases)
    else:
        folds = by_patient(cases, n=options.folds, seed=options.seed)
        patients = len({c.patient for c in cases if c.label is not None})
        reasons.append(f"folds: {len(folds)} by patient ({patients} patients)")
        if patients < 2:
            reasons.append("one labelled patient only: the fold validates on its own training cases")
    sites, skipped = by_site(cases)
    if sites:
        reasons.append(f"folds: {len(sites)} more, each leaving one site out")
    for site, patient in skipped.items():
        reasons.append(f"no fold leaves site {site} out: patient {patient} has scans at another site too")
    return (*folds, *sites)


def _own_splits(manifest: Manifest) -> Path:
    """Return the data set's own splits file, as it was at the check."""
    path = Path(manifest.root) / SPLITS
    if not path.exists() or sha256_file(path) != manifest.splits_sha256:
        what = "changed since the check" if path.exists() else "is not there any more"
        raise DataError(f"{path}: {what}; run seguro check on the data folder again")
    return path


def _blank(manifest: Manifest) -> Fingerprint:
    from seguro.data.plan import Spread

    zero = Spread(low=0, median=0, high=0)
    return Fingerprint(
        n_cases=0, n_labelled=0, shape=(1, 1, 1), spacing=(zero,) * 3, extent=(zero,) * 3,
        intensity=(), volume_ml={}, present={},
    )  # fmt: skip


def _refuse_absent(found: Fingerprint, manifest: Manifest) -> None:
    absent = [n for n, count in found.present.items() if count == 0]
    if absent and found.n_labelled:  # images alone are enough for some methods; the others refuse them later
        raise DataError(
            f"{manifest.name}: no training case contains {', '.join(absent)}; remove the class from the "
            "data set's labels or add a case that has it"
        )


def ensure(
    workspace: Path,
    manifest: Manifest,
    options: PlanOptions | None = None,
    *,
    step_bytes: Bytes,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Return the workspace's plan, made now unless the same cases and options made it before.

    Only the fields of `options` that were set count; the others are those of the last plan here, so that what
    `seguro plan` was told needs not be said again. A plan edited by hand is used as it is while cases and
    options stay the same.

    Raises:
        ConfigError: an edited plan would be overwritten, or is not valid.
    """
    folder = workspace / "plan"
    path = folder / "plan.json"
    options = remembered(workspace, options)
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    reads = {f"case/{c.id}": c.hash for c in cases}
    if manifest.splits_sha256 is not None:
        reads[SPLITS] = manifest.splits_sha256
    # our own rules are not written down: workspaces from before there were such options stay valid
    usual = {"recipe": "seguro", "window": None, "slices": None}
    own = {name for name, value in usual.items() if getattr(options, name) == value}
    config: dict[str, Any] = options.model_dump(exclude=own) | {
        "classes": manifest.classes.model_dump() if manifest.classes else None,
        "channels": list(manifest.channels),
        "unlabelled": [c.id for c in manifest.of("unlabelled")],
        **{f"case/{c.id}": [c.patient, c.site, c.unit] for c in cases},
    }
    stage = Stage(folder, "plan", reads=reads, config=config, schema=SCHEMA)
    before = stage.previous()
    edited = before is not None and path.exists() and sha256_file(path) != before["outputs"].get("plan.json")
    if stage.done():
        if edited:
            say(f"{path}: edited by hand, used as it is")
        return load(path)
    if edited:
        difference = "\n  ".join(stage.difference())
        raise ConfigError(
            f"{path}: edited by hand, but cases or options changed:\n  {difference}\n"
            "remove the file to plan anew, or use another --out"
        )
    changed = _other_choices(stage)
    runs = sorted(p.parent.name for p in (workspace / "runs").glob("*/config.yaml"))
    if before is not None and changed and runs:
        raise ConfigError(
            f"{workspace}: another plan was asked for:\n  "
            + "\n  ".join(changed)
            + f"\nbut {len(runs)} run(s) here "
            f"({', '.join(runs[:3])}) were made with the present one; plan anew in another workspace (--out)"
        )
    measured = measure_all(manifest, cases, jobs=jobs, components=options.recipe == "rog", progress=progress)
    plan = make(manifest, measured, options, step_bytes=step_bytes)
    write_json(path, plan.model_dump(mode="json"))
    stage.finish([path])
    return plan


def _other_choices(stage: Stage) -> list[str]:
    """Return what differs from the last plan beside the cases: further ones, fewer, or labels for some."""
    before = (stage.previous() or {}).get("config", {})
    cases = {name for name in set(before) ^ set(stage.config) if name.startswith("case/")} | {"unlabelled"}
    free = tuple(f"config.{name}:" for name in cases)
    guarded = ("config.", f"reads.{SPLITS}:")
    return [line for line in stage.difference() if line.startswith(guarded) and not line.startswith(free)]


def remembered(workspace: Path, options: PlanOptions | None = None) -> PlanOptions:
    """Return the options of the workspace's last plan, overridden by the fields that `options` has set."""
    path = workspace / "plan" / STAGE_FILE
    before = read_json(path)["config"] if path.exists() else {}
    last = PlanOptions.model_validate({k: before[k] for k in PlanOptions.model_fields if k in before})
    return last if options is None else last.model_copy(update=options.model_dump(exclude_unset=True))


def load(path: Path) -> Plan:
    """Return the plan in `path`.

    Raises:
        ConfigError: it does not have the form of a plan; the message says where.
    """
    try:
        return Plan.model_validate(read_json(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: not a valid plan: {error}") from error


__all__ = ["PlanOptions", "ensure", "load", "make", "remembered"]
