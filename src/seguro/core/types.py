"""The values that pass between parts: classes, grids, volumes, cases and scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

IGNORE = 255
"""Stored label of voxels that count neither in a loss nor in a score."""

Unit = Literal["mm", "nominal mm", "px"]
Split = Literal["train", "test", "unlabelled"]
Three = tuple[int, int, int]
ThreeF = tuple[float, float, float]


class Record(BaseModel):
    """Base of everything that is read from or written to JSON or YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Classes(Record):
    """The classes of a task and how label files encode them.

    Exclusive tasks (`regions=False`): `names[0]` is the background, a stored label is the index into
    `names`, and the file value of class i is `values[i][0]`. Overlapping regions (`regions=True`): no
    background entry, a stored label is the file value itself (at most 254), and region i consists of the
    file values `values[i]`; on output region i is painted with `paint[i]` in order, later over earlier.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    regions: bool = False
    paint: tuple[int, ...] = ()
    ignore: int | None = None
    """File value of voxels to ignore; stored as IGNORE."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Lateral pairs (left, right); mirroring left-right swaps them."""

    @model_validator(mode="after")
    def _consistent(self) -> Classes:
        if len(self.names) != len(self.values):
            raise ValueError(f"{len(self.names)} class names but {len(self.values)} sets of label values")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"class names repeat: {self.names}")
        if not self.names:
            raise ValueError("no classes at all; an exclusive task has at least its background")
        if not self.regions and any(len(v) != 1 for v in self.values):
            raise ValueError("an exclusive class has exactly one label value; for several use regions")
        if self.regions and len(self.paint) != len(self.names):
            raise ValueError("regions need one output value each (paint)")
        unknown = {n for pair in self.pairs for n in pair} - set(self.names)
        if unknown:
            raise ValueError(f"lateral pairs name unknown classes {sorted(unknown)}")
        return self

    @property
    def n(self) -> int:
        """Number of network outputs."""
        return len(self.names)

    @property
    def foreground(self) -> tuple[str, ...]:
        """Names that are scored: all but the background."""
        return self.names if self.regions else self.names[1:]


UNKNOWN = Classes(names=("background",), values=((0,),))
"""The classes of data that nobody labelled."""


class FileFact(Record):
    """One input file as it was when hashed; (size, mtime_ns) stand for the hash afterwards."""

    path: str
    """Relative to the manifest's root, with forward slashes."""
    size: int
    mtime_ns: int
    sha256: str


class Case(Record):
    """One image with what is known of it."""

    id: str
    patient: str
    site: str = "site1"
    split: Split = "train"
    images: tuple[FileFact, ...]
    """One file with all channels, or one file per channel in the manifest's channel order."""
    label: FileFact | None = None
    """The label map; with one mask file per class, the first of them."""
    masks: tuple[FileFact | None, ...] = ()
    """Files of binary masks, where the data set keeps classes apart; None: not annotated."""
    annotated: tuple[str, ...] = ()
    """Foreground classes that were looked for in this case; others are unknown, never background."""
    shape: Three
    """Canonical (Z, Y, X)."""
    spacing: ThreeF
    """Canonical (z, y, x), in `unit`."""
    unit: Unit = "mm"

    @property
    def hash(self) -> str:
        """Content hash over image and label files, in order."""
        from seguro.core.files import sha256_json

        masks = [f.sha256 if f else None for f in self.masks]
        label = self.label.sha256 if self.label else None
        return sha256_json(
            [[f.sha256 for f in self.images], label, masks, list(self.annotated), self.spacing]
        )


class Excluded(Record):
    """A file or case left out, and why."""

    id: str
    reason: str


class Manifest(Record):
    """What `check` found in a folder: the cases to use, and what was left out."""

    schema_version: int = 1
    name: str
    root: str
    """Absolute folder the paths are relative to; not keyed, replaced by --data-root after a move."""
    layout: Literal["msd", "nnunet", "folder", "raster"]
    channels: tuple[str, ...]
    """Modality of each channel as the dataset names it, e.g. ("MRI",) or ("CT",)."""
    classes: Classes | None
    """None when no case has a label."""
    cases: tuple[Case, ...]
    splits_sha256: str | None = None
    """Hash of the data set's own splits_final.json, None where it has none."""
    repair: Literal["nan=min"] | None = None
    """NaN and infinite voxels while reading: refused, or replaced by the smallest finite value."""
    excluded: tuple[Excluded, ...] = ()
    warnings: tuple[str, ...] = ()

    def of(self, split: Split) -> tuple[Case, ...]:
        """Cases of one split, sorted by id."""
        return tuple(sorted((c for c in self.cases if c.split == split), key=lambda c: c.id))


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: canonical (Z, Y, X) shape and the affine from voxel (x, y, z) to RAS+ in `unit`."""

    shape: Three
    affine: NDArray[np.float64]
    unit: Unit = "mm"

    @property
    def spacing(self) -> ThreeF:
        """Voxel size (z, y, x) in `unit`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres (meaningless when unit is "px")."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0


@dataclass(frozen=True)
class Source:
    """What is needed to write an array back in a file's own geometry and type."""

    kind: Literal["nifti", "raster"]
    suffix: str
    """".nii.gz", ".nii", ".png", ..."""
    shape: tuple[int, ...]
    """Spatial shape in the file's own axis order (x, y, z) or (rows, columns)."""
    axes: Three = (0, 1, 2)
    """Canonical axis k (x, y, z) comes from file axis axes[k]."""
    flips: tuple[bool, bool, bool] = (False, False, False)
    """Whether canonical axis k (x, y, z) runs against its file axis."""
    header: bytes = b""
    """The binary NIfTI header (first 348 or 540 bytes), empty for rasters."""
    affine: NDArray[np.float64] | None = None
    """The file's own affine."""


@dataclass(frozen=True)
class Volume:
    """An array in canonical order on its grid, and how to write on that grid again.

    `array`: images (C, Z, Y, X) float32; labels (Z, Y, X) integers as in the file.
    """

    array: NDArray[Any]
    grid: Grid
    source: Source
    sha256: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What had to be settled while reading, e.g. "4-D with one frame, squeezed"."""


class ScoreRow(NamedTuple):
    """One score: of one class in one case, by one metric.

    `value` None: not annotated, or undefined by convention.
    """

    case: str
    patient: str
    site: str
    cls: str
    metric: str
    value: float | None
    note: str = ""
    """"", "both empty", "missed", "not annotated", "no prediction", "false alarm"."""


@dataclass
class Warnings:
    """Warnings of one command, counted and without repeats; shown at its end and in the report."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, message: str) -> None:
        """Count `message` once more."""
        self.counts[message] = self.counts.get(message, 0) + 1

    def lines(self) -> list[str]:
        """Messages in order of first appearance, with a count where above one."""
        return [m if n == 1 else f"{m} (x{n})" for m, n in self.counts.items()]
