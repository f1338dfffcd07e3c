"""One slice as its header describes it, whether it is a file of its own or a frame of an enhanced object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from seguro.core.errors import DataError
from seguro.core.types import ThreeF
from seguro.data.formats.dicom.reading import broken, open_header, quiet

ENHANCED = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
MARKS: tuple[tuple[str, str, str], ...] = (
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("StackID", "FrameContentSequence", "StackID"),
)
"""What tells several volumes of one series apart: element, and its place in enhanced objects."""
TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "PhotometricInterpretation"),
    *(mark[0] for mark in MARKS),
    *ENHANCED,
]
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
LARGEST = 1 << 15
"""Rows, columns and frames beyond this are a damaged header."""


class NotAnImage(Exception):
    """Why an intact DICOM file holds no slice of a volume; such files are counted by reason."""


@dataclass(frozen=True)
class Frame:
    """One slice: where it lies, in DICOM's own LPS coordinates and mm, and how its numbers are meant."""

    path: Path
    index: int | None
    """Number of the frame in a multi-frame object, from 0."""
    instance: str
    series: str
    study: str
    patient: str
    """For grouping alone; never written or shown."""
    modality: str
    shape: tuple[int, int]
    """(rows, columns)."""
    spacing: tuple[float, float]
    """(between rows, between columns)."""
    position: ThreeF
    """Of the center of the first pixel."""
    right: ThreeF
    """Direction in which the column index grows."""
    down: ThreeF
    """Direction in which the row index grows."""
    thickness: float | None
    slope: float
    intercept: float
    marks: tuple[str, ...]
    """Values of MARKS, in that order."""


def read_frames(path: Path) -> list[Frame]:
    """Return the slices in a DICOM file.

    Raises:
        NotAnImage: no slice of a volume: a report, a segmentation, a localizer, a color picture, ...
        DataError: damaged.
    """
    found = open_header(path, TAGS)
    with quiet():
        try:
            _refuse_others(found)
            return list(_frames(path, found))
        except broken() as error:
            raise DataError(
                f"{path}: the DICOM header is damaged ({type(error).__name__} in an element); "
                "copy it again from its source"
            ) from error


def _refuse_others(found: Any) -> None:
    if str(found.get("SOPClassUID", "")) in _SEGMENTATIONS:
        raise NotAnImage("segmentation objects, which are not read: export them as NIfTI")
    if "Rows" not in found or "Columns" not in found:
        raise NotAnImage(f"objects without pixels ({found.get('Modality') or 'of no modality'})")
    if (
        int(found.get("SamplesPerPixel") or 1) != 1
        or _text(found, "PhotometricInterpretation")[:5] == "PALET"
    ):
        raise NotAnImage("color pictures")
    kinds = [str(k).upper() for k in _many(found.get("ImageType"))]
    if "LOCALIZER" in kinds:
        raise NotAnImage("localizers")
    if "MOSAIC" in kinds:
        raise NotAnImage("mosaics of slices, which are not read: export them as enhanced or single slices")


def _frames(path: Path, found: Any) -> Iterator[Frame]:
    shared = (found.get(ENHANCED[0]) or [None])[0]
    groups = found.get(ENHANCED[1])
    n = int(found.get("NumberOfFrames") or 1)
    if max(n, int(found.Rows), int(found.Columns)) > LARGEST:
        raise DataError(
            f"{path}: {n} frames of {found.Rows} x {found.Columns}, the limit is {LARGEST}; the header is "
            "damaged"
        )
    if not groups:
        if n > 1:
            raise NotAnImage("multi-frame objects without a position for each frame")
        yield _frame(path, found, None, (found,))
        return
    if len(groups) != n:
        raise DataError(f"{path}: {n} frames, but positions of {len(groups)}; copy it again")
    for i, own in enumerate(groups):
        yield _frame(path, found, i, tuple(g for g in (own, shared, found) if g is not None))


def _frame(path: Path, found: Any, index: int | None, places: tuple[Any, ...]) -> Frame:
    position = _numbers(places, "PlanePositionSequence", "ImagePositionPatient", 3)
    axes = _numbers(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or axes is None or spacing is None:
        raise NotAnImage("images without position, orientation or pixel spacing")
    if min(spacing) <= 0:
        raise DataError(f"{path}: pixel spacing {spacing[0]:g} x {spacing[1]:g} mm, expected above 0")
    slope = _number(places, "PixelValueTransformationSequence", "RescaleSlope", 1.0)
    intercept = _number(places, "PixelValueTransformationSequence", "RescaleIntercept", 0.0)
    if not (isfinite(slope) and isfinite(intercept)) or slope == 0:
        raise DataError(
            f"{path}: rescale slope {slope:g}, intercept {intercept:g}; expected a slope other than 0"
        )
    thickness = _number(places, "PixelMeasuresSequence", "SpacingBetweenSlices", 0.0) or _number(
        places, "PixelMeasuresSequence", "SliceThickness", 0.0
    )
    return Frame(
        path=path,
        index=index,
        instance=_text(found, "SOPInstanceUID"),
        series=_text(found, "SeriesInstanceUID"),
        study=_text(found, "StudyInstanceUID"),
        patient=_text(found, "PatientID"),
        modality=_text(found, "Modality") or "image",
        shape=(int(found.Rows), int(found.Columns)),
        spacing=(spacing[0], spacing[1]),
        position=(position[0], position[1], position[2]),
        right=(axes[0], axes[1], axes[2]),
        down=(axes[3], axes[4], axes[5]),
        thickness=abs(thickness) if thickness and isfinite(thickness) else None,
        slope=slope,
        intercept=intercept,
        marks=tuple(_mark(places, *mark) for mark in MARKS),
    )


def _value(places: tuple[Any, ...], sequence: str, name: str) -> Any:
    """Return an element: of the frame's own group, else of the shared one, else of the object itself."""
    for place in places:
        inner = place.get(sequence)
        if inner and inner[0].get(name) is not None:
            return inner[0].get(name)
        if place.get(name) is not None:
            return place.get(name)
    return None


def _numbers(places: tuple[Any, ...], sequence: str, name: str, n: int) -> list[float] | None:
    values = [float(v) for v in _many(_value(places, sequence, name))]
    return values if len(values) == n and all(map(isfinite, values)) else None


def _number(places: tuple[Any, ...], sequence: str, name: str, default: float) -> float:
    value = _value(places, sequence, name)
    return default if value is None or value == "" else float(value)


def _mark(places: tuple[Any, ...], name: str, sequence: str, inner: str) -> str:
    value = _value(places, sequence, inner)
    if value is None:
        value = _value(places, sequence, name)
    return "\\".join(str(v) for v in _many(value))


def _many(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return (
        [value]
        if isinstance(value, (str, bytes, int, float)) or not hasattr(value, "__iter__")
        else list(value)
    )


def _text(found: Any, name: str) -> str:
    return str(found.get(name) or "").strip()
