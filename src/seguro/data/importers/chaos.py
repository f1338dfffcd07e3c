"""The 20 labelled T2-SPIR scans of the CHAOS challenge, as SSL-ALPNet prepares them or as scanned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.types import Grid
from seguro.data import geometry
from seguro.data.formats import dicom, nifti, raster, write_label
from seguro.data.importers import Imported, abdomen
from seguro.data.importers.building import describe, whole
from seguro.data.importers.dicom import compact
from seguro.data.layouts.listing import some

IDS = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)
"""In this order they make the published folds."""
LABELS = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
GRAYS = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
"""Class -> range of its gray values in the pictures (63, 126, 189, 252 as a rule)."""
RIGHT_OF = ((1, 4), (2, 3))
"""Pairs of classes of which the first lies farther to the patient's right."""
_FLIPS = tuple(axes for axes in product((False, True), repeat=3) if any(axes))
_DIGITS = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class _Scan:
    id: int
    images: Path
    pictures: Path


@dataclass(frozen=True)
class Orientation:
    """How well a label lies on its image."""

    flipped: NDArray[np.float64]
    """Log of how much more the intensities within the classes vary when the label is flipped, each way."""
    mirrored: bool
    """Whether an organ lies on the wrong side of the patient."""


def bring(source: Path, out: Path | None = None, *, as_scanned: bool = False) -> Imported:
    """Return the labelled scans below `source`, written as an MSD folder.

    Which picture belongs to which slice is taken from the numbers in their names, where it lies from the
    DICOM header. Then every label is compared with its image: flipped along any axes, it must fit worse.

    Args:
        source: folder of the challenge (CHAOS_Train_Sets, Train_Sets/MR, ...), with <id>/T2SPIR/DICOM_anon
            and <id>/T2SPIR/Ground.
        out: folder to write; ./CHAOS by default.
        as_scanned: keep grid and intensities of the scanner.

    Raises:
        DataError: no such scans, slices and pictures that do not match, unknown grays, or labels that lie on
            their images another way round.
    """
    target = out or Path("CHAOS")
    scans, notes = _scans(source)
    judged: dict[str, Orientation] = {}
    with whole(target, source) as folder:
        for scan in scans:
            name = f"chaos_{scan.id:02d}"
            image, label, grid = read_pair(scan.images, scan.pictures)
            judged[name] = orientation(image, label)
            if not as_scanned:
                image, label, grid = abdomen.mr(image, label, grid)
            header = nifti.source_of(grid)
            nifti.write(folder / "imagesTr" / f"{name}.nii.gz", compact(image), header)
            write_label(folder / "labelsTr" / f"{name}.nii.gz", label, header)
        notes += verified(judged)
        describe(
            folder,
            name="CHAOS-T2SPIR",
            description="CHAOS T2-SPIR " + ("as scanned" if as_scanned else "as SSL-ALPNet prepares it"),
            modality="MRI",
            labels=LABELS,
            train=list(judged),
        )
    return Imported(target, len(judged), tuple(notes), options=("--dims", "2"))


def _scans(source: Path) -> tuple[list[_Scan], list[str]]:
    found: dict[int, _Scan] = {}
    bare = 0
    for images in sorted(source.rglob("DICOM_anon")):
        if images.parent.name.upper() != "T2SPIR" or not images.is_dir():
            continue
        pictures = images.parent / "Ground"
        name = images.parent.parent.name
        if not pictures.is_dir():
            bare += 1
        elif not name.isdigit():
            raise DataError(f"{images.parent}: lies in a folder named {name!r}, expected the scan's number")
        elif int(name) in found:
            raise DataError(
                f"{images.parent} and {found[int(name)].images.parent}: two scans of number {name}"
            )
        else:
            found[int(name)] = _Scan(int(name), images, pictures)
    if not found:
        raise DataError(
            f"{source}: no labelled T2-SPIR scan; expected folders <number>/T2SPIR/DICOM_anon beside "
            "<number>/T2SPIR/Ground: unpack the training sets and give their folder"
        )
    notes = []
    if bare:
        notes.append(f"{bare} scans without Ground are left out")
    if missing := sorted(set(IDS) - set(found)):
        notes.append(f"of the 20 labelled scans these are missing: {some([str(i) for i in missing], 20)}")
    return [found[i] for i in sorted(found)], notes


def read_pair(images: Path, pictures: Path) -> tuple[abdomen.Image, abdomen.Label, Grid]:
    """Return image and label (Z, Y, X) of one scan, canonical, and their grid.

    Raises:
        DataError: several series or none, or pictures that do not match the slices.
    """
    scan = dicom.list_series(images)
    if len(scan.series) != 1 or scan.damaged:
        found = f"{len(scan.series)} series, {len(scan.damaged)} damaged files"
        raise DataError(
            f"{images}: {found}; expected one series: " + "; ".join((*scan.damaged, *scan.skipped))
        )
    stack = dicom.stacked(scan.series[0].frames, str(images))
    volume = dicom.read_stack(stack)
    files = matched([f.path for f in stack.frames], pictures)
    shape = (1, *stack.frames[0].shape)
    slices = []
    for path in files:
        gray = raster.read_label(path).array
        if gray.shape != shape:
            raise DataError(f"{path}: {gray.shape[1:]} pixels, its slice has {shape[1:]}, (rows, columns)")
        slices.append(classes_of(gray[0], str(path)))
    label = geometry.to_canonical(np.stack(slices).transpose(2, 1, 0), stack.affine)[0]
    return volume.array[0], np.ascontiguousarray(label), volume.grid


def matched(slices: Sequence[Path], folder: Path) -> list[Path]:
    """Return the picture of each slice: by the number at the end of their names, else by its rank.

    Raises:
        DataError: another number of pictures than of slices.
    """
    pictures = _numbered(sorted(folder.glob("*.png")))
    numbers = _numbered(slices)
    if len(pictures) != len(slices) or len(numbers) != len(slices):
        raise DataError(
            f"{folder}: {len(pictures)} numbered pictures for {len(slices)} slices; one for each is expected"
        )
    if set(pictures) == set(numbers):
        return [pictures[_number(p)] for p in slices]
    rank = {n: i for i, n in enumerate(sorted(numbers))}
    in_order = [pictures[n] for n in sorted(pictures)]
    return [in_order[rank[_number(p)]] for p in slices]


def _numbered(paths: Sequence[Path]) -> dict[int, Path]:
    return {_number(p): p for p in paths}


def _number(path: Path) -> int:
    found = _DIGITS.search(path.stem)
    if found is None:
        raise DataError(f"{path}: no number at the end of its name, which says what slice it is")
    return int(found[1])


def classes_of(gray: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return the classes of gray values, by a fixed table, so that a scan may lack an organ.

    Raises:
        DataError: gray values of no class.
    """
    out = np.zeros(gray.shape, np.uint8)
    known = gray == 0
    for value, (low, high) in GRAYS.items():
        here = (gray >= low) & (gray <= high)
        out[here] = value
        known |= here
    if not known.all():
        listed = np.unique(gray[~known])[:8].tolist()
        raise DataError(
            f"{what}: gray values {listed} are of no class; known ranges are {list(GRAYS.values())}"
        )
    return out


def orientation(image: NDArray[np.float32], label: NDArray[np.uint8]) -> Orientation:
    """Return how well `label` lies on `image`, (Z, Y, X) both, x growing to the patient's right."""
    here = _within(image, label)
    axes = [tuple(a for a in range(3) if flips[a]) for flips in _FLIPS]
    flipped = np.array([np.log(_within(image, np.flip(label, a)) / here) if here > 0 else 0.0 for a in axes])
    across = [_middle(label == value) for value in range(len(LABELS))]
    mirrored = any(across[r] < across[left] for r, left in RIGHT_OF)  # a class that is absent is NaN: False
    return Orientation(flipped, mirrored)


def _within(image: NDArray[np.float32], label: NDArray[np.uint8]) -> float:
    """Return the mean squared distance of labelled voxels from the mean of their class."""
    parts = [image[label == value].astype(np.float64) for value in GRAYS]
    n = sum(len(p) for p in parts)
    return sum(float(((p - p.mean()) ** 2).sum()) for p in parts if len(p)) / max(n, 1)


def _middle(mask: NDArray[np.bool_]) -> float:
    x = np.flatnonzero(mask.any((0, 1)))
    return float(np.average(x, weights=mask.sum((0, 1))[x])) if len(x) else float("nan")


def verified(judged: dict[str, Orientation]) -> list[str]:
    """Return notes on single scans.

    Raises:
        DataError: on the whole, labels fit their images better when they are flipped, or organs lie on the
            wrong side in most scans.
    """
    mean = np.mean([o.flipped for o in judged.values()], axis=0)
    if mean.min() < 0:
        names = [axis for axis, flip in zip("zyx", _FLIPS[int(np.argmin(mean))], strict=True) if flip]
        raise DataError(
            f"labels fit the images better when flipped along {' and '.join(names)}: slices or rows of the "
            "pictures run another way than those of the images; unpack the original files again"
        )
    mirrored = [name for name, o in judged.items() if o.mirrored]
    if 2 * len(mirrored) > len(judged):
        raise DataError(
            f"{len(mirrored)} of {len(judged)} scans are mirrored, e.g. the spleen right of the liver: their "
            "headers or labels were changed; unpack the original files again"
        )
    notes = []
    if mirrored:
        notes.append(f"organs lie on the other side in {some(mirrored)}")
    if doubtful := [name for name, o in judged.items() if o.flipped.min() < 0]:
        notes.append(f"labels would fit better flipped in {some(doubtful)}: look at them")
    return notes
