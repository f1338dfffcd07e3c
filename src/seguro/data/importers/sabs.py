"""The 30 labelled CT scans of BTCV, the abdomen of the 2015 multi-atlas challenge, called SABS in papers.

Written as SSL-ALPNet prepares them, or as scanned.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from seguro.core.errors import DataError
from seguro.data.formats import nifti, read_image, read_label, split_name, write_label
from seguro.data.importers import Imported, abdomen
from seguro.data.importers.building import NIFTI, POOLED, describe, files_below, says, whole
from seguro.data.importers.dicom import compact
from seguro.data.layouts.listing import some

LABELS = {
    0: "background",
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "portal and splenic vein",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}
N_SCANS = 30
_NUMBER = re.compile(r"(\d+)\D*$")


def bring(source: Path, out: Path | None = None, *, as_scanned: bool = False) -> Imported:
    """Return the labelled scans below `source`, written as an MSD folder, numbered from 00 in file order.

    Args:
        source: folder with img/img0001.nii.gz and label/label0001.nii.gz, or any folders where the numbers at
            the end of the names pair images with files that have label in their name or folder.
        out: folder to write; ./SABS by default.
        as_scanned: keep grid and Hounsfield units of the scanner.

    Raises:
        DataError: a label without image or the reverse, unknown values, no kidney in any scan (another
            package of the challenge), or other sizes than 512 x 512.
    """
    target = out or Path("SABS")
    pairs = _pairs(source)
    names, absent = [], {2: 0, 3: 0}
    with whole(target, source) as folder:
        for i, (scan, truth) in enumerate(pairs):
            image = read_image([scan])
            label = read_label(truth, like=image.grid)
            values = np.unique(label.array)
            if not np.isin(values, list(LABELS)).all():
                raise DataError(f"{truth}: values {values.tolist()[:16]}, expected 0 to {max(LABELS)}")
            for kidney in absent:
                absent[kidney] += kidney not in values
            voxels, classes, grid = image.array[0], label.array.astype(np.uint8), image.grid
            if not as_scanned:
                voxels, classes, grid = abdomen.ct(voxels, classes, grid, str(scan))
            names.append(f"sabs_{i:02d}")
            header = nifti.source_of(grid)
            nifti.write(folder / "imagesTr" / f"{names[-1]}.nii.gz", compact(voxels), header)
            write_label(folder / "labelsTr" / f"{names[-1]}.nii.gz", classes, header)
        _refuse_other_package(absent, len(pairs), source)
        describe(
            folder,
            name="SABS",
            description="BTCV abdominal CT " + ("as scanned" if as_scanned else "as SSL-ALPNet prepares it"),
            modality="CT" if as_scanned else POOLED,
            labels=LABELS,
            train=names,
        )
    notes = [f"{n} scans without {LABELS[k]}" for k, n in absent.items() if n]
    if len(names) != N_SCANS:
        notes.append(f"{len(names)} scans, the challenge has {N_SCANS}: the published folds need them all")
    return Imported(target, len(names), tuple(notes), options=("--dims", "2"))


def _pairs(source: Path) -> list[tuple[Path, Path]]:
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in files_below(source, NIFTI):
        match = _NUMBER.search(split_name(path)[0])
        if match is None:
            raise DataError(f"{path}: no number in its name, which pairs image and label")
        known = labels if says(path, source, "label") else images
        if match[1] in known:
            raise DataError(f"{path} and {known[match[1]]}: two files of number {match[1]}")
        known[match[1]] = path
    if alone := sorted(set(images) ^ set(labels)):
        raise DataError(
            f"{source}: {len(alone)} numbers have an image or a label alone: {some(alone)}; expected img/ "
            "and label/ of the training set (RawData/Training), without the test set"
        )
    return [(images[n], labels[n]) for n in sorted(images)]


def _refuse_other_package(absent: dict[int, int], n: int, source: Path) -> None:
    empty = [LABELS[k] for k, count in absent.items() if count == n]
    if empty:
        raise DataError(
            f"{source}: no scan has a {' or a '.join(empty)}; this is another package of the challenge (the "
            '"averaged" ones lack them): take RawData of the abdomen, img and label'
        )
