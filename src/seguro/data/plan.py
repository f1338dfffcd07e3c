"""The plan: every choice that the data decide, in one file that may be edited by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from seguro.core.files import sha256_json
from seguro.core.types import Classes, Record, Three, ThreeF, Unit

SCHEMA = 1


class Intensity(Record):
    """How one channel is scaled. All schemes clip to [low, high] first where these are given.

    zscore: each case by its own mean and standard deviation, after clipping to its own 0.5 and 99.5
        percentiles.
    ct: clip to the training set's foreground percentiles, then its foreground mean and standard deviation;
        a channel named "pooled" is not clipped, and mean and standard deviation are those of all voxels.
    unit: divide by 255 (8-bit photographs).
    none: as stored.
    """

    name: str
    scheme: Literal["zscore", "ct", "unit", "none"]
    low: float | None = None
    high: float | None = None
    mean: float = 0.0
    sd: float = 1.0


class Spread(Record):
    """Low (0.5 %), median and high (99.5 %) of a quantity over the training cases."""

    low: float
    median: float
    high: float


class Fingerprint(Record):
    """What the training cases look like; also what a new case is compared with."""

    n_cases: int
    n_labelled: int
    shape: Three
    """Median canonical shape in the planned grid."""
    spacing: tuple[Spread, Spread, Spread]
    extent: tuple[Spread, Spread, Spread]
    """Field of view per axis (z, y, x), in the plan's unit."""
    intensity: tuple[dict[str, Spread], ...]
    """Per channel, of the raw image: mean, sd, p005, p500, p995 of each case."""
    volume_ml: dict[str, Spread]
    """Per foreground class, over the cases where it is annotated and present."""
    present: dict[str, int]
    """Per foreground class, number of cases that contain it."""


class Fold(Record):
    """One split of the training cases into training and validation, by patient (or site)."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]


class Plan(Record):
    """Everything about a data set that a network, a method and a prediction need to know."""

    schema_version: int = SCHEMA
    name: str
    dims: Literal[2, 3]
    slice_axis: Literal[0, 1, 2] = 0
    """Canonical axis (0=z, 1=y, 2=x) that slice-wise work runs along."""
    spacing: ThreeF
    """Target (z, y, x). In 2-D plans the slice axis keeps each case's own spacing."""
    unit: Unit
    channels: tuple[Intensity, ...]
    classes: Classes
    patch: tuple[int, ...]
    """(Z, Y, X), or the two in-plane sizes in rising axis order for 2-D."""
    strides: tuple[tuple[int, ...], ...]
    """One tuple of `dims` factors for each downsampling."""
    kernels: tuple[tuple[int, ...], ...]
    """Kernel of each resolution level, len(strides) + 1."""
    batch: int
    mirror: tuple[int, ...] = ()
    """Canonical axes along which mirroring is allowed in training and at test."""
    fingerprint: Fingerprint
    folds: tuple[Fold, ...]
    reasons: tuple[str, ...] = ()
    """What was chosen and why, one sentence each."""

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        for name, entries in (("patch", (self.patch,)), ("strides", self.strides), ("kernels", self.kernels)):
            if any(len(e) != self.dims for e in entries):
                raise ValueError(f"{name} must have {self.dims} numbers per entry in a {self.dims}-D plan")
        if len(self.kernels) != len(self.strides) + 1:
            raise ValueError(
                f"{len(self.strides)} strides need {len(self.strides) + 1} kernels, found {len(self.kernels)}"
            )
        for axis, factor in enumerate(self.multiple):
            if self.patch[axis] % factor:
                raise ValueError(f"patch {self.patch} is not divisible by the total stride {self.multiple}")
        return self

    @property
    def multiple(self) -> tuple[int, ...]:
        """Total downsampling per patch axis; every network input is a multiple of it."""
        out = [1] * self.dims
        for stride in self.strides:
            out = [a * b for a, b in zip(out, stride, strict=True)]
        return tuple(out)

    @property
    def plane_axes(self) -> tuple[int, ...]:
        """Canonical axes of the patch, in order: all three, or all but the slice axis."""
        return (0, 1, 2) if self.dims == 3 else tuple(a for a in (0, 1, 2) if a != self.slice_axis)

    def preprocessing(self) -> dict[str, Any]:
        """The part that decides what is stored per case; its hash names the store folder."""
        return {
            "dims": self.dims,
            "slice_axis": self.slice_axis,
            "spacing": self.spacing,
            "channels": [c.model_dump() for c in self.channels],
            "classes": self.classes.model_dump(),
            "schema": SCHEMA,
        }

    @property
    def preprocessing_hash(self) -> str:
        """First 16 hexadecimal digits of the hash of `preprocessing()`."""
        return sha256_json(self.preprocessing())[:16]

    def fold(self, name: str) -> Fold:
        """Return the fold called `name`; KeyError lists the known ones."""
        known = {f.name: f for f in self.folds}
        if name not in known:
            raise KeyError(f"no fold {name!r}; the plan has {sorted(known)}")
        return known[name]
