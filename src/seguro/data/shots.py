"""Support files as a user gives them: which classes a mask holds, which slices of it were annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE, Classes, ThreeF, Volume
from seguro.data.formats import read_image, read_label
from seguro.data.geometry import file_index
from seguro.data.support import Shot

MAX_VALUES = 64
"""A mask with more values than this is taken for an image."""
FEW_VALUES = 16
"""An image of whole numbers with at most so many values is taken for a mask."""
RUN = 3
"""Fewest adjacent labelled slices that are taken for a volume annotated throughout."""

SliceChoice = str | Sequence[int]
"""Which slices of a mask were annotated: "auto" (all where the labelled ones are RUN or more in a row,
otherwise those), "labelled", "all", or numbers as the file counts them, from 0."""


def read_shots(
    pairs: Sequence[tuple[Sequence[Path], Path]],
    *,
    channels: int,
    axis: int,
    known: Classes | None = None,
    named: Mapping[str, int] | None = None,
    slices: SliceChoice = "auto",
    spacing: ThreeF | None = None,
) -> tuple[Classes, list[tuple[Shot, Volume]]]:
    """Return the classes of one or several support masks and the examples, each with its image as read.

    Args:
        pairs: image files (one, or one per channel) and mask of each example.
        channels: of the model.
        axis: canonical slice axis.
        known: classes whose names are taken where the mask has their values.
        named: class name -> value in the masks; other values are background then.
        slices: which slices were annotated.
        spacing: (z, y, x) for files that state none.

    Raises:
        DataError: an empty or full mask, a mask that is an image or the reverse, a value that is missing.
        GeometryError: image and mask on different grids.
    """
    if not pairs:
        raise ConfigError("no support example; give --support IMAGE and --support-label MASK")
    read = []
    for files, mask in pairs:
        volume = read_image(list(files), channels=channels, spacing=spacing)
        _refuse_mask(volume, files[0])
        label = read_label(mask, like=volume.grid, spacing=spacing)
        _refuse_unusable(label.array, mask)
        read.append((volume, label, mask))
    values = sorted({int(v) for _, label, _ in read for v in np.unique(label.array)} - {0})
    if missing := {n: v for n, v in (named or {}).items() if v not in values}:
        raise DataError(
            f"{pairs[0][1]}: no voxel of {', '.join(f'{n}={v}' for n, v in missing.items())}; the support "
            f"mask holds {', '.join(map(str, values))}"
        )
    classes = classes_of(values, known, named)
    shots = []
    for volume, label, mask in read:
        stored = _stored(label.array, classes)
        stored = _only(stored, chosen_slices(stored, axis, slices, volume, mask), axis)
        shots.append((Shot(volume.array, stored, volume.grid, (*volume.sha256, *label.sha256)), volume))
    return classes, shots


def classes_of(
    values: Sequence[int], known: Classes | None = None, named: Mapping[str, int] | None = None
) -> Classes:
    """Return the classes of mask values: as named by the user, by the data set, or "class_<value>".

    Example:
        >>> classes_of([1, 3]).names, classes_of([1, 3], named={"spleen": 3}).values
        (('background', 'class_1', 'class_3'), ((0,), (3,)))
    """
    if named:
        if 0 in named.values() or len(set(named.values())) < len(named):
            raise ConfigError(f"support classes {dict(named)}: each needs a value of its own, above 0")
        return Classes(names=("background", *named), values=((0,), *((v,) for v in named.values())))
    of_data: dict[int, str] = {}
    if known is not None and not known.regions:
        of_data = {v[0]: n for n, v in zip(known.names[1:], known.values[1:], strict=True)}
    names = [of_data.get(v, f"class_{v}") for v in values]
    pairs = known.pairs if known is not None else ()
    return Classes(
        names=("background", *names),
        values=((0,), *((v,) for v in values)),
        pairs=tuple(p for p in pairs if set(p) <= set(names)),
    )


def chosen_slices(
    label: NDArray[np.uint8], axis: int, choice: SliceChoice, volume: Volume, path: Path
) -> list[int]:
    """Return the annotated slices, canonical, of a label (Z, Y, X) of class indices."""
    n = label.shape[axis]
    plane = tuple(a for a in range(3) if a != axis)
    labelled = [int(z) for z in np.flatnonzero((label > 0).any(axis=plane))]
    if choice == "labelled":
        return labelled
    if choice == "all":
        return list(range(n))
    if choice == "auto":
        adjacent = len(labelled) >= RUN and labelled[-1] - labelled[0] == len(labelled) - 1
        return list(range(n)) if adjacent or n < RUN else labelled
    if isinstance(choice, str):
        raise ConfigError(f"support slices {choice!r}: expected auto, labelled, all, or slice numbers")
    if outside := [z for z in choice if not 0 <= z < n]:
        raise ConfigError(f"{path}: slice {outside[0]} is not among its {n} (0 to {n - 1})")
    chosen = sorted({file_index(volume.source, axis, z) for z in choice})
    if not set(chosen) & set(labelled):
        raise DataError(f"{path}: none of the slices {list(choice)} shows a class; name the annotated ones")
    return chosen


def _stored(label: NDArray[np.integer], classes: Classes) -> NDArray[np.uint8]:
    """Return class indices of file values; values without a class are background."""
    out = np.zeros(label.shape, np.uint8)
    for index, (value,) in enumerate(classes.values):
        out[label == value] = index
    return out


def _only(label: NDArray[np.uint8], slices: Sequence[int], axis: int) -> NDArray[np.uint8]:
    out = np.full_like(label, IGNORE)
    where: list[Any] = [slice(None)] * 3
    where[axis] = list(slices)
    out[tuple(where)] = label[tuple(where)]
    return out


def _refuse_mask(volume: Volume, path: Path) -> None:
    """Refuse a mask in the place of an image."""
    values = np.unique(volume.array)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: the support image has NaN or infinite voxels; export it again")
    if len(values) <= FEW_VALUES and (values == np.rint(values)).all():
        raise DataError(
            f"{path}: the support image holds only {len(values)} whole number{'s' * (len(values) > 1)}, like "
            "a mask; were --support and --support-label swapped?"
        )


def _refuse_unusable(label: NDArray[np.integer], path: Path) -> None:
    values, counts = np.unique(label, return_counts=True)
    if int(values[0]) < 0 or len(values) > MAX_VALUES:
        raise DataError(
            f"{path}: the support mask has {len(values)} values, {values[0]} to {values[-1]}, like "
            f"an image; expected 0 and at most {MAX_VALUES - 1} class values: were --support and "
            "--support-label swapped?"
        )
    if not (values > 0).any():
        raise DataError(f"{path}: the support mask is empty; expected at least one voxel of a class above 0")
    if values[0] != 0:
        raise DataError(
            f"{path}: no voxel of the support mask is background (0), {counts.sum()} voxels are of a class; "
            "mark only the structure that is looked for"
        )
