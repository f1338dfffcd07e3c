"""DICOM series from anywhere below a folder, as one NIfTI image each, under names that tell of no patient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.files import write_json, write_text
from seguro.core.types import Volume
from seguro.data.formats import dicom, nifti
from seguro.data.importers import Imported
from seguro.data.importers.building import whole
from seguro.data.layouts.listing import some

FACTS = "import.json"
"""What each image came from, without names, dates and identifiers."""
_LISTED = 10


def bring(
    source: Path,
    out: Path | None = None,
    *,
    resample: bool = False,
    quarantine: bool = False,
    keep_names: bool = False,
) -> Imported:
    """Return the series in `source`, written as a folder `images` to which `labels` can be added.

    Patients are numbered in `patients.csv`; cases are named by a hash of their series. With several
    modalities each gets a folder of its own.

    Args:
        source: folder with DICOM files, in any order and in any folders below it.
        out: folder to write; ./DICOM by default.
        resample: interpolate uneven gaps and gantry tilt away instead of refusing them.
        quarantine: leave out damaged files and refused series instead of stopping.
        keep_names: name cases after the folders they lie in; not where these name patients.

    Raises:
        DataError: no series, damaged files, or series that are no regular volume; all of them are listed.
        ExtraMissing: pydicom or a codec is not installed.
    """
    target = out or Path("DICOM")
    scan = dicom.list_series(source)
    good, bad = _sorted_out(scan, resample=resample)
    if bad and not quarantine:
        more = f"\n  and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
        raise DataError(
            f"{source}: {len(bad)} problems:\n  " + "\n  ".join(bad[:_LISTED]) + more + "\n"
            "mend them, or leave these out with --quarantine"
        )
    if not good:
        raise DataError(
            f"{source}: no DICOM series that forms a volume; found {'; '.join(scan.skipped) or 'no files'}"
        )
    names = _names(good, source, keep=keep_names)
    people, notes = _patients(good)
    by_modality: dict[str, list[dicom.Series]] = defaultdict(list)
    for series in good:
        by_modality[_word(series.modality)].append(series)
    with whole(target, source) as folder:
        for modality, group in by_modality.items():
            place = folder / modality if len(by_modality) > 1 else folder
            facts = {
                names[s.id]: _write(place / "images" / f"{names[s.id]}.nii.gz", s, resample=resample)
                for s in group
            }
            write_json(place / FACTS, {"modality": modality, "images": facts})
            lines = [f"{names[s.id]},{people[s.id]}\n" for s in group]
            write_text(place / "patients.csv", "id,patient\n" + "".join(lines))
            notes += _said(facts)
    first = max(by_modality, key=lambda m: len(by_modality[m]))
    if len(by_modality) > 1:
        counts = ", ".join(f"{m} ({len(g)})" for m, g in by_modality.items())
        notes.append(f"{len(by_modality)} modalities, each in a folder of its own: {counts}")
    notes += [f"passed over: {line}" for line in scan.skipped] + [f"left out: {line}" for line in bad]
    return Imported(
        target / first if len(by_modality) > 1 else target,
        len(good),
        tuple(notes),
        options=("--channels", first),
        next="check",
    )


def _sorted_out(scan: dicom.Scan, *, resample: bool) -> tuple[list[dicom.Series], list[str]]:
    """Return the series that form a volume, and what is wrong with the others and with damaged files."""
    good, bad = [], list(scan.damaged)
    for series in scan.series:
        try:
            dicom.stacked(series.frames, series.where, resample=resample)
        except DataError as error:
            bad.append(str(error))
        else:
            good.append(series)
    return good, bad


def _names(series: Sequence[dicom.Series], source: Path, *, keep: bool) -> dict[str, str]:
    """Return the case name of each series by its id."""
    if not keep:
        return {s.id: f"series_{s.id}" for s in series}
    plain = {s.id: _word("_".join(s.folder.relative_to(source).parts)) or "series" for s in series}
    taken = list(plain.values())
    return {i: name if taken.count(name) == 1 else f"{name}_{i}" for i, name in plain.items()}


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def _patients(series: Sequence[dicom.Series]) -> tuple[dict[str, str], list[str]]:
    """Return the number of the patient of each series by its id, and notes."""
    keys = {s.id: s.frames[0].patient or f"study {s.frames[0].study}" for s in series}
    numbers = {key: f"p{i:03d}" for i, key in enumerate(dict.fromkeys(keys.values()), start=1)}
    notes = []
    if unnamed := sum(not s.frames[0].patient for s in series):
        notes.append(f"{unnamed} series without a patient's id: each study counts as a patient")
    studies = {s.frames[0].study for s in series}
    if len(numbers) == 1 and len(studies) > 1:
        notes.append(
            f"all {len(studies)} studies have one patient's id; if it was blanked, correct patients.csv: "
            "folds keep the scans of a patient together"
        )
    return {i: numbers[key] for i, key in keys.items()}, notes


def _write(path: Path, series: dicom.Series, *, resample: bool) -> dict[str, Any]:
    """Write the image and return what is known of it, without the patient."""
    volume: Volume = dicom.read_series(series, resample=resample)
    nifti.write(path, compact(volume.array[0]), volume.source)
    return {
        "slices": len(series.frames),
        "shape": list(volume.grid.shape),
        "spacing": [round(v, 6) for v in volume.grid.spacing],
        "notes": list(volume.notes),
    }


def _said(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each note, with the cases it holds for."""
    cases: dict[str, list[str]] = defaultdict(list)
    for name, known in facts.items():
        for note in known["notes"]:
            cases[note].append(name)
    return [f"{some(names)}: {note}" for note, names in cases.items()]


def compact(image: NDArray[np.float32]) -> NDArray[Any]:
    """Return whole numbers as the smallest of int16 and int32 that holds them, others as they are."""
    if not np.array_equal(image, np.rint(image)):
        return image
    low, high = float(image.min()), float(image.max())
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return image.astype(kind)
    return image
