"""Which series a folder holds, each one volume: split by UID, size, orientation, and what repeats."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seguro.core.errors import DataError
from seguro.data.formats.dicom.frames import MARKS, Frame, NotAnImage, read_frames
from seguro.data.formats.dicom.reading import looks_like_dicom
from seguro.data.formats.dicom.stack import SAME_PLACE_MM, normal

FEWEST = 3
"""Groups of fewer slices are single images and localizers."""
SAME_DIRECTION = 1e-3
"""Direction cosines closer than this are one orientation (0.06 degrees)."""
SAME_SPACING_MM = 1e-3


@dataclass(frozen=True)
class Series:
    """The slices of one volume, in no order."""

    id: str
    """Hash of its UID and of what sets it apart from others of that UID; tells nothing of the patient."""
    folder: Path
    """The folder that all its files lie in or below."""
    frames: tuple[Frame, ...]
    note: str = ""
    """What it was split by."""

    @property
    def modality(self) -> str:
        """As the scanner calls it: CT, MR, PT, ..."""
        return self.frames[0].modality

    @property
    def where(self) -> str:
        """Return what messages call it."""
        return f"{self.folder} (series {self.id}, {len(self.frames)} slices)"


@dataclass(frozen=True)
class Scan:
    """What was found in a folder."""

    series: tuple[Series, ...]
    skipped: tuple[str, ...]
    """What was passed over and why, counted, one line for each reason."""
    damaged: tuple[str, ...]
    """One line for each DICOM file that cannot be read."""


def list_series(folder: Path) -> Scan:
    """Return the series in `folder` and all below it, from their headers alone, in stable order.

    Raises:
        DataError: no such folder.
        ExtraMissing: pydicom is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that the DICOM files lie in")
    skipped: Counter[str] = Counter()
    damaged: list[str] = []
    frames: dict[tuple[object, ...], Frame] = {}
    for path in _files(folder):
        if not looks_like_dicom(path):
            skipped["files that are not DICOM"] += 1
            continue
        try:
            found = read_frames(path)
        except NotAnImage as reason:
            skipped[str(reason)] += 1
            continue
        except DataError as error:
            damaged.append(str(error))
            continue
        for frame in found:
            # the instance alone does not do: some exports blank it in every file
            key = (frame.instance, frame.series, frame.index, frame.position, frame.right, frame.marks)
            if key in frames:
                skipped["copies of slices that are there already"] += 1
            frames.setdefault(key, frame)
    series = []
    for group in _grouped(frames.values()):
        if len(group) < FEWEST:
            skipped[f"slices in groups of fewer than {FEWEST}"] += len(group)
        else:
            series += _split(folder, group)
    return Scan(tuple(series), tuple(f"{n} {reason}" for reason, n in skipped.items()), tuple(damaged))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.name.upper() != "DICOMDIR":
            yield path


def _grouped(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Return the slices that share UID, size, spacing and orientation, in order of first appearance."""
    by_uid: dict[tuple[str, tuple[int, int]], list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        groups = by_uid[frame.series, frame.shape]
        home = next((g for g in groups if _alike(g[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
    return [g for groups in by_uid.values() for g in groups]


def _alike(a: Frame, b: Frame) -> bool:
    turned = np.abs(np.subtract((a.right, a.down), (b.right, b.down))).max()
    return bool(turned < SAME_DIRECTION and np.abs(np.subtract(a.spacing, b.spacing)).max() < SAME_SPACING_MM)


def _split(folder: Path, frames: list[Frame]) -> list[Series]:
    """Return one series, or several where positions repeat and one element tells the volumes apart."""
    parts, by = _unrepeated(frames)
    return [
        _series(folder, part, f"one of {len(parts)} volumes of a series, by {by}" if by else "")
        for part in parts
    ]


def _unrepeated(frames: list[Frame]) -> tuple[list[list[Frame]], str]:
    """Return the volumes and the element that tells them apart; all in one where nothing does."""
    if not _repeats(frames):
        return [frames], ""
    for i, (name, _, _) in enumerate(MARKS):
        by_value: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            by_value[frame.marks[i]].append(frame)
        parts = list(by_value.values())
        if len(parts) > 1 and all(len(p) >= FEWEST and not _repeats(p) for p in parts):
            return parts, name
    return [frames], ""


def _repeats(frames: Sequence[Frame]) -> bool:
    along = np.sort(np.array([f.position for f in frames]) @ normal(frames[0]))
    return bool((np.diff(along) < SAME_PLACE_MM).any())


def _series(root: Path, frames: list[Frame], note: str) -> Series:
    instances = sorted(f"{f.instance}:{f.index}" for f in frames)
    digest = hashlib.sha256("\n".join([frames[0].series, *instances]).encode()).hexdigest()
    parents = {f.path.parent for f in frames}
    common = parents.pop() if len(parents) == 1 else root
    return Series(digest[:10], common, tuple(frames), note)
