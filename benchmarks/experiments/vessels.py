"""Vessels of the eye in two modalities, as two sites of one data set: photographs and OCT angiography.

`python benchmarks/experiments/vessels.py DATA_ROOT OUT --target octa` reads vessels_chase (green channel,
every second pixel, first observer; vessels are dark) and vessels_octa_synthetic (vessels are bright) and
writes a Decathlon folder of volumes of one slice. Every third patient of each site is a test patient. Of the
first three training patients of the target only the first image is written: three labels are three slices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seguro.core.errors import DataError
from seguro.core.files import write_json, write_text
from seguro.core.types import Grid
from seguro.data.formats import write_label, write_scores
from seguro.data.formats.nifti import source_of
from seguro.data.importers.building import whole

SITES = ("chase", "octa")
TEST_EVERY = 3
ALONE = 3
"""Patients of the target's training of whom only the first image is written."""
CHASE, OCTA = "vessels_chase", "vessels_octa_synthetic"
Plane = NDArray[np.float32]
"""(Y, X)."""


def shrunk(plane: NDArray[np.generic], by: int) -> Plane:
    """Return the means of squares of `by` pixels; what is left over at the end is cut off."""
    height, width = (n // by * by for n in plane.shape)
    whole_squares = plane[:height, :width].astype(np.float32)
    out: Plane = whole_squares.reshape(height // by, by, width // by, by).mean((1, 3))
    return out


def chase(folder: Path) -> Iterator[tuple[str, str, Plane, Plane]]:
    """Yield (case, patient, image, share of vessel) of every photograph."""
    for path in sorted(folder.glob("Image_*.jpg")):
        label = folder / f"{path.stem}_1stHO.png"
        green = np.asarray(Image.open(path).convert("RGB"))[..., 1]
        yield path.stem, path.stem[:-1], shrunk(green, 2), shrunk(np.asarray(Image.open(label)) > 0, 2)


def octa(folder: Path) -> Iterator[tuple[str, str, Plane, Plane]]:
    """Yield (case, patient, image, share of vessel) of every angiography."""
    for path in sorted((folder / "images").glob("G_*.png")):
        name = path.stem.removeprefix("G_")
        label = np.asarray(Image.open(folder / "labels" / f"{name}.png")) > 0
        image = np.asarray(Image.open(path).convert("L"), np.float32)
        yield name, name, image, shrunk(label, len(label) // len(image))


def write(root: Path, out: Path, target: str) -> Path:
    """Write the data set and return its folder; one that is there already stays.

    Raises:
        DataError: a modality has no image under `root`.
    """
    if out.exists():
        return out
    found = {"chase": list(chase(root / CHASE)), "octa": list(octa(root / OCTA))}
    empty = [name for name, cases in found.items() if not cases]
    if empty:
        raise DataError(f"{root}: no image of {', '.join(empty)}; expected {CHASE}/ and {OCTA}/")
    rows, train = ["id,patient,site,split"], []
    with whole(out, root / CHASE) as folder:
        for site, cases in found.items():
            patients = sorted({patient for _, patient, _, _ in cases})
            tested = set(patients[::TEST_EVERY])
            alone = [p for p in patients if p not in tested][: ALONE if site == target else 0]
            written: set[str] = set()
            for name, patient, image, share in cases:
                if patient in alone and patient in written:
                    continue
                written.add(patient)
                test = patient in tested
                end, case = "Ts" if test else "Tr", f"{site}_{name}"
                source = source_of(Grid((1, *image.shape), np.eye(4)))
                write_scores(folder / f"images{end}" / f"{case}.nii.gz", image[None], source)
                write_label(folder / f"labels{end}" / f"{case}.nii.gz", share[None] >= 0.5, source)
                rows.append(f"{case},{site}_{patient},{site},{'test' if test else 'train'}")
                train += [] if test else [case]
        write_text(folder / "patients.csv", "\n".join(rows) + "\n")
        listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train]
        write_json(
            folder / "dataset.json",
            {
                "name": "Vessels",
                "description": "CHASE_DB1 photographs and synthetic OCT angiography, a site each",
                "modality": {"0": "other"},
                "labels": {"0": "background", "1": "vessel"},
                "numTraining": len(train),
                "training": listed,
            },
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with both data sets")
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", choices=SITES, default="octa", help="site that is adapted to")
    given = parser.parse_args()
    print(f"{write(given.root, given.out, given.target)}/: sites {', '.join(SITES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
