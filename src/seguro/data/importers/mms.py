"""M&Ms (Campello et al. 2021): cardiac MR of several vendors at end diastole and end systole.

A case is one frame, a site one vendor; the two frames of a patient share the patient. Grids stay those of
the files.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seguro.core.errors import DataError
from seguro.core.files import read_checked, write_json, write_text
from seguro.core.types import Volume
from seguro.data.formats import read_facts, read_image, split_name, write_label, write_scores
from seguro.data.formats.nifti import source_of
from seguro.data.importers import Imported
from seguro.data.importers.building import NIFTI, files_below, says, whole

CLASSES = {0: "background", 1: "LV", 2: "MYO", 3: "RV"}
"""As the challenge labels them."""
FRAMES = ("ED", "ES")
CODE, VENDOR = "External code", "Vendor"
_LABEL = re.compile(r"_(sa_)?gt$", re.I)
_IMAGE = re.compile(r"_sa$", re.I)


@dataclass(frozen=True)
class _Patient:
    code: str
    vendor: str
    frames: Mapping[str, int]
    """ED and ES: number of the frame, from 0."""


def bring(source: Path, out: Path | None = None) -> Imported:
    """Return the data set in `source`, written as an MSD folder with a site per vendor.

    Args:
        source: folder as handed out: a CSV file with the columns External code, Vendor, ED and ES, and
            CODE_sa.nii.gz with CODE_sa_gt.nii.gz where labelled. Those in a folder whose name begins with
            "test" are the test cases, labelled or not; others without label, or with an empty one, are
            unlabelled training cases.
        out: folder to write; ./MnMs by default.

    Raises:
        DataError: no table, images that it does not name, frames that the files do not have, other labels.
    """
    target = out or Path("MnMs")
    patients = _table(source)
    images, labels = _files(source)
    unknown = sorted(set(images) - set(patients))
    if unknown or not images:
        raise DataError(
            f"{source}: {len(unknown)} of {len(images)} images are not in the table, first "
            f"{unknown[0] if unknown else 'none'}; expected CODE_sa.nii.gz with CODE in the column {CODE!r}"
        )
    rows, train = ["id,patient,site,split"], []
    with whole(target, source) as folder:
        for code, path in sorted(images.items()):
            test = says(path, source, r"(^|/)test")
            for frame in FRAMES:
                labelled = _write(folder, patients[code], frame, path, labels.get(code), test=test)
                split = "test" if test else "train" if labelled else "unlabelled"
                name = f"{code}_{frame.lower()}"
                rows.append(f"{name},{code},{patients[code].vendor},{split}")
                train += [name] if split == "train" else []
        write_text(folder / "patients.csv", "\n".join(rows) + "\n")
        _describe(folder, train)
    vendors = sorted({patients[c].vendor for c in images})
    notes = (f"a site per vendor: {', '.join(vendors)}",)
    return Imported(target, len(train), notes, options=("--dims", "2", "--slices", "axial"))


def _table(source: Path) -> dict[str, _Patient]:
    """Return the patients by code, of the one CSV file with the columns that are needed."""
    columns = {CODE, VENDOR, *FRAMES}
    for path in sorted(source.rglob("*.csv")):
        text = read_checked(path).data.decode("utf-8-sig", errors="replace")
        reader = csv.DictReader(io.StringIO(text))
        if not columns <= set(reader.fieldnames or ()):
            continue
        return {row[CODE].strip(): _patient(path, row) for row in reader}
    raise DataError(f"{source}: no CSV file with the columns {', '.join(sorted(columns))}")


def _patient(path: Path, row: Mapping[str, str]) -> _Patient:
    try:
        frames = {f: int(row[f]) for f in FRAMES}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {row[CODE]} has the frames {[row[f] for f in FRAMES]}, expected numbers"
        ) from error
    return _Patient(row[CODE].strip(), f"vendor{row[VENDOR].strip()}", frames)


def _files(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and labels by code."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in files_below(source, NIFTI):
        stem = split_name(path)[0]
        kind, known = (_LABEL, labels) if _LABEL.search(stem) else (_IMAGE, images)
        code = kind.sub("", stem)
        if code in known:
            raise DataError(f"{path} and {known[code]}: two files of {code}; give one copy of the data set")
        known[code] = path
    return images, labels


def _write(
    folder: Path, patient: _Patient, frame: str, image: Path, label: Path | None, *, test: bool
) -> bool:
    """Write one frame; returns whether it has a label."""
    name, number = f"{patient.code}_{frame.lower()}.nii.gz", patient.frames[frame]
    volume = _frame(image, number)
    source = source_of(volume.grid)
    truth = None if label is None else _frame(label, number).array[0]
    if truth is not None and not truth.any():
        truth = None
    if truth is not None and not set(np.unique(truth).tolist()) <= set(CLASSES):
        raise DataError(
            f"{label}: values {np.unique(truth).tolist()}, expected {sorted(CLASSES)} ({CLASSES})"
        )
    end = "Ts" if test else "Un" if truth is None else "Tr"
    write_scores(folder / f"images{end}" / name, volume.array[0], source)
    if truth is not None:
        write_label(folder / f"labels{end}" / name, truth.astype(np.uint8), source)
    return truth is not None


def _frame(path: Path, number: int) -> Volume:
    """Return frame `number` of a file with time as its fourth axis, (1, Z, Y, X)."""
    n = read_facts(path).frames
    if not 0 <= number < n:
        raise DataError(f"{path}: {n} frames, the table asks for number {number} (from 0)")
    volume = read_image([path], channels=n)
    return replace(volume, array=volume.array[number : number + 1])


def _describe(folder: Path, train: list[str]) -> None:
    write_json(
        folder / "dataset.json",
        {
            "name": "MnMs",
            "description": "M&Ms: end diastole and end systole, a site per vendor",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {str(v): n for v, n in CLASSES.items()},
            "numTraining": len(train),
            "training": [
                {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train
            ],
        },
    )
