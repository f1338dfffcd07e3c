"""Livers on the grid of PFSeg's paper, whose own set is private: any folder of CT or MR with liver labels.

1.5 mm voxels, 192 x 192 of them around the middle of the plane, the slices interpolated to 128, intensities
in [0, 1]. Every positive label is liver, since tumors lie in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from seguro.core.errors import DataError
from seguro.data.formats import read_image, read_label, write_label, write_scores
from seguro.data.importers import Imported
from seguro.data.importers.building import AS_STORED, describe, images_and_labels, whole
from seguro.data.importers.division import divide
from seguro.data.importers.pfseg_grid import NOTE, published, training
from seguro.data.phantom import write_nifti

VOXEL_MM = 1.5
_SUFFIX = re.compile(r"_(liver|seg|label|mask)$", re.I)
_LABEL_FOLDER = r"(^|/)(labels?\w*|masks?|segmentations?)/"


def bring(
    source: Path,
    out: Path | None = None,
    *,
    as_scanned: bool = False,
    split: str = "8/2",
    split_seed: int | None = None,
) -> Imported:
    """Return the data set in `source`, written as an MSD folder.

    Args:
        source: folder with NIfTI images and labels; a label has its image's name, perhaps with _liver, _seg,
            _label or _mask, and may lie in a folder called labels or the like (as MSD's Task03_Liver).
        out: folder to write; ./Liver by default.
        as_scanned: keep grid and intensities; else the published ones.
        split: 8/2, 6/2/2 or 5-fold.
        split_seed: of the split's order; None: sorted.

    Returns:
        The data set; the options of the published training go with the published grid only.

    Raises:
        DataError: a label without image or the reverse, other grids, or a field of view below 288 mm.
        ConfigError: an unknown split.
    """
    target = out or Path("Liver")
    pairs = _pairs(source)
    sides = divide(list(pairs), split, seed=split_seed)
    with whole(target, source) as folder:
        for name, (image_path, label_path) in pairs.items():
            end = "Ts" if name in sides.test else "Tr"
            image = read_image([image_path])
            label = (read_label(label_path, like=image.grid).array > 0).astype(np.uint8)
            files = folder / f"images{end}" / f"{name}.nii.gz", folder / f"labels{end}" / f"{name}.nii.gz"
            if as_scanned:
                write_scores(files[0], image.array[0], image.source)
                write_label(files[1], label, image.source)
                continue
            array, mask, spacing = published(image.array, label, image.grid, name, isotropic=VOXEL_MM)
            write_nifti(files[0], array, spacing=spacing)
            write_nifti(files[1], np.asarray(mask), spacing=spacing)
        describe(
            folder,
            name="Liver",
            description="Liver against everything else",
            modality="CT" if as_scanned else AS_STORED,
            labels={0: "background", 1: "liver"},
            train=list(sides.train),
        )
        sides.write(folder)
    divided = f"split {split}: {len(sides.train)} cases to train on, {len(sides.test)} to test"
    if as_scanned:
        return Imported(target, len(sides.train), (divided,))
    return Imported(target, len(sides.train), (divided, NOTE), options=training(len(sides.train)))


def _pairs(source: Path) -> dict[str, tuple[Path, Path]]:
    """Return image and label of every case, sorted by id."""
    images, labels = images_and_labels(source, folder=_LABEL_FOLDER, suffix=_SUFFIX)
    lacking = sorted(set(images) ^ set(labels))
    if lacking:
        what = "label" if lacking[0] in images else "image"
        raise DataError(f"{source}: {len(lacking)} cases are not whole, first {lacking[0]}, without {what}")
    return {n: (images[n], labels[n]) for n in sorted(images)}
