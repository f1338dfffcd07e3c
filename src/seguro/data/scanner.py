"""Made DICOM files of every kind that scanners write, for tests and for trying out an import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import ThreeF
from seguro.data.formats.dicom.reading import import_pydicom

PATIENT = {"PatientName": "Muster^Erika", "PatientID": "4711-0815", "PatientBirthDate": "19640812"}
"""Of the made files; nothing of it may be found in anything that seguro writes."""
CT, MR, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "4.1"))
_ROOT = "1.2.826.0.1.3680043.8.498"
_EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass(frozen=True)
class Scanner:
    """How slices are taken and written."""

    spacing: ThreeF = (5.0, 0.8, 0.7)
    """(between slices, between rows, between columns) in mm."""
    right: ThreeF = (1.0, 0.0, 0.0)
    """Direction in which columns grow, LPS."""
    down: ThreeF = (0.0, 1.0, 0.0)
    """Direction in which rows grow, LPS."""
    origin: ThreeF = (-20.0, -30.0, 40.0)
    """Center of the first pixel of the first slice, LPS."""
    drift: ThreeF = (0.0, 0.0, 0.0)
    """What the position of each slice is off its normal, in mm from slice to slice: a gantry tilt."""
    scale: tuple[tuple[float, float], ...] = ()
    """Slope and intercept of each slice; none are written when empty."""
    bits: int = 16
    """Stored of the 16 that are allocated."""
    series: int = 1
    """The number that the series UID ends in."""
    stack: int = 0
    """The number of the volume within the series."""
    elements: dict[str, Any] = field(default_factory=dict)
    """Set on every file at the end; None removes an element."""

    def position(self, place: float) -> list[float]:
        """Return where the slice at `place` (0 is the first one, fractions are allowed) lies."""
        across = np.cross(self.right, self.down) * self.spacing[0] + np.asarray(self.drift)
        return [float(v) for v in np.asarray(self.origin) + place * across]

    def write(
        self,
        folder: Path,
        slices: NDArray[Any],
        *,
        places: Sequence[float] | None = None,
        syntax: str = _EXPLICIT,
    ) -> list[Path]:
        """Return the files written for stored values (slices, rows, columns) of int16 or uint16.

        Args:
            folder: is made; files are named in no order.
            slices: one for each file.
            places: of each slice along the series, 0, 1, 2, ... by default.
            syntax: UID of the transfer syntax: uncompressed ones, or RLE.
        """
        folder.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(len(slices)).permutation(len(slices))
        paths = []
        for k, (name, pixels) in enumerate(zip(order, slices, strict=True)):
            found = self._common(pixels, MR, f"{self.series}.{self.stack}.{k + 1}")
            found.ImagePositionPatient = self.position(float(places[k] if places is not None else k))
            found.ImageOrientationPatient = [*self.right, *self.down]
            found.PixelSpacing = list(self.spacing[1:])
            found.SliceThickness = self.spacing[0]
            if self.scale:
                found.RescaleSlope, found.RescaleIntercept = self.scale[k]
            paths.append(self._save(found, folder / f"IM{name:04d}.dcm", syntax))
        return paths

    def write_enhanced(self, path: Path, slices: NDArray[Any]) -> Path:
        """Return `path`, written as one enhanced object with `slices` (n, rows, columns) as its frames."""
        from pydicom.dataset import Dataset

        def inside(**elements: Any) -> list[Any]:
            item = Dataset()
            for name, value in elements.items():
                setattr(item, name, value)
            return [item]

        path.parent.mkdir(parents=True, exist_ok=True)
        found = self._common(slices, ENHANCED_MR, f"{self.series}.{self.stack}.1")
        found.NumberOfFrames = len(slices)
        shared = inside(
            PlaneOrientationSequence=inside(ImageOrientationPatient=[*self.right, *self.down]),
            PixelMeasuresSequence=inside(PixelSpacing=list(self.spacing[1:]), SliceThickness=self.spacing[0]),
        )
        frames = []
        for k in range(len(slices)):
            frames += inside(
                PlanePositionSequence=inside(ImagePositionPatient=self.position(k)),
                FrameContentSequence=inside(StackID="1", InStackPositionNumber=k + 1),
            )
            if self.scale:
                slope, intercept = self.scale[k]
                frames[-1].PixelValueTransformationSequence = inside(
                    RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US"
                )
        found.SharedFunctionalGroupsSequence, found.PerFrameFunctionalGroupsSequence = shared, frames
        return self._save(found, path, _EXPLICIT)

    def _common(self, pixels: NDArray[Any], kind: str, number: str) -> Any:
        """Return a data set with what all objects have."""
        from pydicom.dataset import Dataset

        found = Dataset()
        for name, value in PATIENT.items():
            setattr(found, name, value)
        found.SOPClassUID, found.SOPInstanceUID = kind, f"{_ROOT}.{number}"
        found.SeriesInstanceUID = f"{_ROOT}.{self.series}"
        found.StudyInstanceUID = f"{_ROOT}.0"
        found.Modality, found.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
        found.StudyDate, found.InstitutionName = "20260102", "Klinik Beispiel"
        found.Rows, found.Columns = pixels.shape[-2:]
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit = 16, self.bits, self.bits - 1
        found.PixelRepresentation = int(pixels.dtype.kind == "i")
        found.add_new("PixelData", "OW", np.ascontiguousarray(pixels).tobytes())
        return found

    def _save(self, found: Any, path: Path, syntax: str) -> Path:
        pydicom = import_pydicom()
        for name, value in self.elements.items():
            if value is None:
                found.pop(name, None)
            else:
                setattr(found, name, value)
        found.file_meta = pydicom.dataset.FileMetaDataset()
        found.file_meta.TransferSyntaxUID = pydicom.uid.UID(_EXPLICIT)
        found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
        found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
        if syntax != _EXPLICIT:
            if pydicom.uid.UID(syntax).is_compressed:
                found.compress(syntax, generate_instance_uid=False)
            elif syntax == "1.2.840.10008.1.2.2":  # big endian: the pixels too
                found.PixelData = np.frombuffer(found.PixelData, "<u2").astype(">u2").tobytes()
            found.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        pydicom.dcmwrite(path, found, enforce_file_format=True)
        return path
