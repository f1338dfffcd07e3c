"""One case read to its end: what is in its files, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import GeometryError, SeguroError
from seguro.core.types import FileFact, Three, ThreeF, Unit, Volume
from seguro.data.formats import read_image, read_label
from seguro.data.layouts import Found, Kind, Listing, Problem
from seguro.data.manifest import combined, repaired

EXAMPLES = 10
"""Label values that are named in a message."""


@dataclass
class Inspection:
    """What reading a case has shown; `errors` is empty when the case can be used."""

    found: Found
    images: tuple[FileFact, ...] = ()
    labels: tuple[FileFact | None, ...] = ()
    shape: Three = (0, 0, 0)
    spacing: ThreeF = (0.0, 0.0, 0.0)
    unit: Unit = "mm"
    n_channels: int = 0
    content: str = ""
    """Hash of the voxels, whatever the file's compression and header."""
    label_content: str = ""
    """The same of the label voxels."""
    values: dict[int, int] = field(default_factory=dict)
    """Voxels per label value; for mask files per combination (bit i = mask i)."""
    mask_values: list[tuple[int, ...]] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, kind: Kind, message: str) -> None:
        """Add an error of this case."""
        self.errors.append(Problem(kind, self.found.id, message))

    def warn(self, kind: Kind, message: str) -> None:
        """Add a warning of this case."""
        self.warnings.append(Problem(kind, self.found.id, message))


def inspect(
    found: Found,
    listing: Listing,
    *,
    channels: int | None,
    spacing: ThreeF | None = None,
    repair: Literal["nan=min"] | None = None,
) -> Inspection:
    """Return what the files of a case hold; a problem of any kind is recorded, never raised.

    Args:
        found: the case.
        listing: it belongs to.
        channels: expected number of channels in a single file, None when only the files can tell.
        spacing: (z, y, x) in mm for files without one.
        repair: whether NaN and infinite voxels will be replaced.
    """
    out = Inspection(found)
    volume = _read_image(out, listing, channels=channels, spacing=spacing)
    if volume is None:
        return out
    _intensities(out, volume.array, repair)
    if any(found.labels):
        _read_labels(out, listing, volume, spacing=spacing)
    return out


def _stat(root: Path, path: Path) -> tuple[int, int]:
    status = (root / path).stat()
    return status.st_size, status.st_mtime_ns


def _fact(path: Path, status: tuple[int, int], sha256: str) -> FileFact:
    return FileFact(path=path.as_posix(), size=status[0], mtime_ns=status[1], sha256=sha256)


def _shorter(message: str, root: Path) -> str:
    """Return a message with paths relative to the data folder, as the reader sees them."""
    return message.replace(f"{root}/", "")


def _record(out: Inspection, error: Exception, root: Path) -> None:
    if isinstance(error, GeometryError):
        out.error("geometry", _shorter(str(error), root))
    elif isinstance(error, SeguroError):
        about_values = any(f"label {word}" in str(error) for word in ("voxels", "values", "with"))
        out.error("label" if about_values else "file", _shorter(str(error), root))
    elif isinstance(error, MemoryError):
        out.error("file", "not enough memory to read this case; close other programs or crop the image")
    else:
        out.error("file", _shorter(f"cannot be read ({error})", root))


def _read_image(
    out: Inspection, listing: Listing, *, channels: int | None, spacing: ThreeF | None
) -> Volume | None:
    found, root = out.found, listing.root
    try:
        before = [_stat(root, p) for p in found.images]
        volume = read_image([root / p for p in found.images], channels=channels, spacing=spacing)
    except (SeguroError, OSError, MemoryError, ValueError) as error:
        _record(out, error, root)
        return None
    out.images = tuple(_fact(p, s, h) for p, s, h in zip(found.images, before, volume.sha256, strict=True))
    out.shape, out.spacing = volume.grid.shape, volume.grid.spacing
    out.unit = "nominal mm" if listing.nominal and volume.grid.unit == "mm" else volume.grid.unit
    out.n_channels = volume.array.shape[0]
    for note in volume.notes:
        out.warn("geometry" if "form" in note or "affine" in note else "file", note)
    out.content = _content(volume.array)
    return volume


def _content(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(repr((array.shape, array.dtype.name)).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _intensities(out: Inspection, image: NDArray[np.float32], repair: str | None) -> None:
    """Record NaN, infinite and constant channels."""
    bad = int(image.size - np.isfinite(image).sum())
    if bad == image.size:
        out.error("intensity", "all voxels are NaN or infinite; there is no image in this file")
        return
    if bad and repair is None:
        out.error(
            "intensity",
            f"{bad} of {image.size} voxels are NaN or infinite; mend the file, or replace them by "
            "the smallest "
            "value with --repair nan=min",
        )
    elif bad:
        out.warn(
            "intensity", f"{bad} of {image.size} voxels are NaN or infinite, replaced by the smallest value"
        )
        image = repaired(image)
    for i, channel in enumerate(image):
        low, high = np.nanmin(channel), np.nanmax(channel)
        if low == high:
            name = f"channel {i} of the image" if len(image) > 1 else "the image"
            out.error("intensity", f"{name} is constant ({low:g} everywhere); there is nothing to learn from")


def _read_labels(out: Inspection, listing: Listing, image: Volume, *, spacing: ThreeF | None) -> None:
    root = listing.root
    facts: list[FileFact | None] = []
    maps: list[NDArray[Any] | None] = []
    for path in out.found.labels:
        if path is None:
            facts.append(None)
            maps.append(None)
            continue
        try:
            before = _stat(root, path)
            volume = read_label(root / path, like=image.grid, spacing=spacing)
        except (SeguroError, OSError, MemoryError, ValueError) as error:
            _record(out, error, root)
            continue
        facts.append(_fact(path, before, volume.sha256[0]))
        maps.append(volume.array)
        for note in volume.notes:
            if "orientation" not in note:
                out.warn("geometry" if "form" in note or "lies" in note else "label", f"label: {note}")
    if out.errors and len(facts) != len(out.found.labels):
        return
    out.labels = tuple(facts)
    out.label_content = "".join(_content(m) for m in maps if m is not None)
    if listing.masks:
        out.mask_values = [() if m is None else tuple(counted(m)) for m in maps]
        out.values = counted(combined(maps, regions=True))
    elif maps[0] is not None:
        out.values = counted(maps[0])


def counted(label: NDArray[Any]) -> dict[int, int]:
    """Return the voxels per value of an integer array."""
    if label.dtype == np.uint8:
        counts = np.bincount(label.ravel(), minlength=1)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, numbers = np.unique(label, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}


def unknown_values(values: dict[int, int], known: Sequence[int]) -> str | None:
    """Return a message on label values beside the known ones, or None."""
    other = {v: n for v, n in values.items() if v not in known}
    if not other:
        return None
    listed = ", ".join(f"{v} ({n} voxels)" for v, n in list(other.items())[:EXAMPLES])
    more = f" and {len(other) - EXAMPLES} more" if len(other) > EXAMPLES else ""
    return (
        f"label values {listed}{more} are not among the task's {sorted(known)}; "
        "correct the label, or name the values as classes"
    )
