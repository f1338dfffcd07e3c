"""The manifest: which cases there are, kept as JSON, and how their files are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from seguro.core.errors import DataError
from seguro.core.files import read_json, sha256_json, write_json
from seguro.core.types import Case, Classes, FileFact, Grid, Manifest, ThreeF, Volume
from seguro.data.formats import read_image, read_label

FILE = "manifest.json"
MAX_MASKS = 7
"""Overlapping mask files per case: their combinations must fit the values up to 254."""


def save(manifest: Manifest, path: Path) -> Path:
    """Write the manifest as JSON and return its path."""
    write_json(path, manifest.model_dump(mode="json"))
    return path


def content_hash(manifest: Manifest) -> str:
    """Return the hash of what the manifest says, the folder it lies in and the files' dates excepted."""

    def undated(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: undated(v) for k, v in value.items() if k not in ("root", "mtime_ns")}
        return [undated(v) for v in value] if isinstance(value, list) else value

    return sha256_json(undated(manifest.model_dump(mode="json")))


def load(path: Path, *, data_root: Path | None = None) -> Manifest:
    """Return the manifest in `path`.

    Args:
        path: manifest.json, or the workspace that holds check/manifest.json.
        data_root: where the data lie now, if they were moved.

    Raises:
        DataError: not a manifest of this version, or one that names files outside its root.
    """
    path = path / "check" / FILE if path.is_dir() else path
    content = read_json(path)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise DataError(
            f"{path}: not a manifest of this version ({_brief(error)}); run `seguro check`"
        ) from error
    for case in manifest.cases:
        for fact in facts(case):
            clean = os.path.normpath(fact.path)
            if Path(clean).is_absolute() or clean.startswith(".."):
                raise DataError(f"{path}: case {case.id} names {fact.path!r}, outside its root; refused")
    return manifest if data_root is None else manifest.model_copy(update={"root": str(data_root.resolve())})


def _brief(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"


def facts(case: Case) -> tuple[FileFact, ...]:
    """Return all files of a case, images first."""
    labels = tuple(m for m in case.masks if m) or ((case.label,) if case.label else ())
    return (*case.images, *labels)


def paths(case: Case, manifest: Manifest) -> tuple[list[Path], Path | None]:
    """Return the image files and the (first) label file of a case; `read_case_label` knows mask files."""
    root = Path(manifest.root)
    return [root / f.path for f in case.images], root / case.label.path if case.label else None


def read_case(case: Case, manifest: Manifest) -> Volume:
    """Return the image of a case, (C, Z, Y, X) float32, repaired as the manifest says.

    Raises:
        DataError: a file is gone, damaged or not what it was.
    """
    spacing = None if case.unit == "px" else case.spacing
    volume = read_image(paths(case, manifest)[0], channels=len(manifest.channels), spacing=spacing)
    _unchanged(case, volume, case.images)
    array = repaired(volume.array) if manifest.repair == "nan=min" else volume.array
    return with_unit(Volume(array, volume.grid, volume.source, volume.sha256, volume.notes), case.unit)


def read_case_label(case: Case, manifest: Manifest, *, like: Grid) -> Volume | None:
    """Return the label of a case, (Z, Y, X) with the values of `manifest.classes`, or None when it has none.

    Mask files are combined: class index for exclusive classes, sum of 2^i over the masks i for regions.

    Raises:
        DataError: a file is gone, damaged, of other values, or on another grid than `like`.
    """
    if case.label is None:
        return None
    spacing = None if case.unit == "px" else case.spacing
    root = Path(manifest.root)
    if not case.masks:
        volume = read_label(root / case.label.path, like=like, spacing=spacing)
        _unchanged(case, volume, (case.label,))
        return volume
    parts = [read_label(root / m.path, like=like, spacing=spacing) if m else None for m in case.masks]
    for part, mask in zip(parts, case.masks, strict=True):
        if part is not None and mask is not None:
            _unchanged(case, part, (mask,))
    classes = manifest.classes
    first = next(p for p in parts if p is not None)
    array = combined(
        [None if p is None else p.array for p in parts], regions=classes is not None and classes.regions
    )
    return Volume(
        array, first.grid, first.source, tuple(h for p in parts if p for h in p.sha256), first.notes
    )


def _unchanged(case: Case, volume: Volume, known: Sequence[FileFact]) -> None:
    """Refuse a file whose content is not that of the check."""
    for found, fact in zip(volume.sha256, known, strict=True):
        if found != fact.sha256:
            raise DataError(
                f"{case.id}: {fact.path} changed since the check (SHA-256 {fact.sha256[:12]}, "
                f"now {found[:12]}); run seguro check on the data folder again"
            )


def combined(masks: Sequence[NDArray[Any] | None], *, regions: bool) -> NDArray[np.uint8]:
    """Return one label map (Z, Y, X) of binary masks: index + 1, or for regions bit i of mask i."""
    shape = next(m.shape for m in masks if m is not None)
    out = np.zeros(shape, np.uint8)
    for i, mask in enumerate(masks):
        if mask is None:
            continue
        if regions:
            out |= (mask > 0).astype(np.uint8) << i
        else:
            out[mask > 0] = i + 1
    return out


def regions_of_masks(names: tuple[str, ...], counts: dict[int, int]) -> Classes:
    """Return the region classes of overlapping masks.

    Region i consists of all combinations that contain mask i. On output larger regions are painted first,
    and each region with the combination that was most frequent for it among those without a smaller region.

    Args:
        names: of the masks; bit i of a combination stands for names[i].
        counts: voxels per combination.
    """
    n = len(names)
    size = [sum(c for v, c in counts.items() if v >> i & 1) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-size[i], i))
    values, paint = [], []
    for place, i in enumerate(order):
        later = sum(1 << j for j in order[place + 1 :])
        fitting = {v: c for v, c in counts.items() if v >> i & 1 and not v & later}
        paint.append(max(fitting, key=lambda v: (fitting[v], -v)) if fitting else 1 << i)
        values.append(tuple(v for v in range(1, 1 << n) if v >> i & 1))
    return Classes(
        names=tuple(names[i] for i in order), values=tuple(values), regions=True, paint=tuple(paint)
    )


def repaired(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image (C, Z, Y, X) with NaN and infinity set to the channel's smallest finite value."""
    out = image.copy()
    for channel in out:
        bad = ~np.isfinite(channel)
        if bad.any() and not bad.all():
            channel[bad] = channel[~bad].min()
    return out


def with_unit(volume: Volume, unit: str) -> Volume:
    """Return the volume with its grid in the case's unit (a file cannot say that its spacing is nominal)."""
    if volume.grid.unit == unit:
        return volume
    grid = Grid(volume.grid.shape, volume.grid.affine, unit)  # type: ignore[arg-type]
    return Volume(volume.array, grid, volume.source, volume.sha256, volume.notes)


def parse_spacing(text: str) -> ThreeF:
    """Return (z, y, x) of "z,y,x" in mm; one number counts for all three.

    Raises:
        DataError: not one or three positive numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(np.isfinite(v) and v > 0 for v in numbers):
        raise DataError(
            f"spacing {text!r}: expected one or three positive numbers in mm, as in --spacing 3,0.8,0.8"
        )
    return numbers[0], numbers[1], numbers[2]
