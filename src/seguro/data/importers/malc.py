"""The brains of the 2012 multi-atlas labelling challenge (MALC), with the classes that QuickNAT and ROAM use.

Neuromorphometrics labels become 27 classes. Grids stay those of the files. No slice is dropped: dropping by
label content would show the truth of the test volumes.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.files import write_text
from seguro.data.formats import read_image, read_label, write_label, write_scores
from seguro.data.importers import Imported
from seguro.data.importers.building import AS_STORED, describe, images_and_labels, says, unit_range, whole

_BOTH = {
    "cerebral white matter": (45, 44),
    "cerebral cortex": (0, 0),
    "lateral ventricle": (52, 51),
    "cerebellum white matter": (41, 40),
    "cerebellum cortex": (39, 38),
    "thalamus proper": (60, 59),
    "caudate": (37, 36),
    "putamen": (58, 57),
    "pallidum": (56, 55),
    "hippocampus": (48, 47),
    "amygdala": (32, 31),
    "ventral DC": (62, 61),
}
"""Structure -> Neuromorphometrics ids (left, right); the cortex is made of the parcels."""
_MIDDLE = {"3rd ventricle": 4, "4th ventricle": 11, "brain stem": 35}
DROPPED = {
    "left inferior lateral ventricle": 50,
    "right inferior lateral ventricle": 49,
    "left accumbens": 30,
    "right accumbens": 23,
    "cerebrospinal fluid": 46,
}
"""The five of QuickNAT's 32 classes that ROAM leaves out; they become background, as everything unnamed."""
FIRST_PARCEL, LAST_PARCEL = 100, 207
"""Cortical parcels: odd ids left, even ids right."""
CLASSES = (
    "background",
    *(f"left {name}" for name in _BOTH),
    *_MIDDLE,
    *(f"right {name}" for name in _BOTH),
)
"""28 names; a value of the written labels is the place here."""
PLAN = ("--dims", "2", "--slices", "coronal", "--spacing", "1,1,1", "--patch", "256,256")
"""Of `seguro plan`: the published coronal slices."""
_SUFFIX = re.compile(r"[_-](glm|seg|segmentation|labels?|parc)$", re.I)
_LABEL_FOLDER = r"(^|[/_-])labels?(tr|ts)?[/_-]"


@dataclass(frozen=True)
class _Pair:
    id: str
    image: Path
    label: Path
    test: bool


def bring(source: Path, out: Path | None = None, *, min_max: bool = False) -> Imported:
    """Return the data set in `source`, written as an MSD folder.

    Args:
        source: folder with NIfTI images and labels: training-images, training-labels, testing-images and
            testing-labels as handed out, or any folders, where a label has its image's name and perhaps _glm,
            _seg or _label. Files in folders whose name begins with "test" are the test cases.
        out: folder to write; ./MALC by default.
        min_max: scale images to [0, 1], each by its own range, to be used as such.

    Raises:
        DataError: a label without image or the reverse, other ids than Neuromorphometrics', other grids.
    """
    target = out or Path("MALC")
    pairs = _pairs(source)
    with whole(target, source) as folder:
        for pair in pairs:
            _write(folder, pair, min_max=min_max)
        train = [p.id for p in pairs if not p.test]
        describe(
            folder,
            name="MALC",
            description="Neuromorphometrics labels of the 2012 multi-atlas challenge as 27 classes",
            modality=AS_STORED if min_max else "MRI",
            labels=dict(enumerate(CLASSES)),
            train=train,
        )
        lines = [f"{p.id},{p.id.split('_')[0]}\n" for p in pairs]  # 1000_3: the third session of 1000
        write_text(folder / "patients.csv", "id,patient\n" + "".join(lines))
    tests = len(pairs) - len(train)
    notes = (f"{tests} test cases",) if tests else ("no test cases: no folder's name begins with test",)
    return Imported(target, len(train), notes, options=PLAN, next="plan")


def _pairs(source: Path) -> list[_Pair]:
    images, labels = images_and_labels(source, folder=_LABEL_FOLDER, suffix=_SUFFIX)
    for what, lacking in (
        ("label", sorted(set(images) - set(labels))),
        ("image", sorted(set(labels) - set(images))),
    ):
        if lacking:
            raise DataError(
                f"{source}: {len(lacking)} cases without {what}, first {lacking[0]}; a label is named as its "
                "image, perhaps with _glm, and lies in a folder whose name has the word labels"
            )
    return [_Pair(n, p, labels[n], says(p, source, r"^test|/test")) for n, p in sorted(images.items())]


def _write(folder: Path, pair: _Pair, *, min_max: bool) -> None:
    end = "Ts" if pair.test else "Tr"
    image = read_image([pair.image])
    label = read_label(pair.label, like=image.grid)
    target = folder / f"images{end}" / f"{pair.id}.nii.gz"
    if min_max:
        write_scores(target, unit_range(image.array, str(pair.image))[0], image.source)
    elif pair.image.name.endswith(".gz"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pair.image, target)
    else:
        write_scores(target, image.array[0], image.source)
    write_label(
        folder / f"labels{end}" / f"{pair.id}.nii.gz", remapped(label.array, str(pair.label)), image.source
    )


def remapped(label: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return the indices in CLASSES of Neuromorphometrics ids; ids of no class become background.

    Raises:
        DataError: ids that Neuromorphometrics does not have, or no cortical parcels: another protocol.
    """
    largest = int(label.max(initial=0))
    if int(label.min(initial=0)) < 0 or not FIRST_PARCEL <= largest <= LAST_PARCEL:
        raise DataError(
            f"{what}: ids from {int(label.min())} to {largest}; Neuromorphometrics has 0 to {LAST_PARCEL}, "
            f"cortical parcels from {FIRST_PARCEL} on"
        )
    return np.asarray(_table()[label], np.uint8)


def _table() -> NDArray[np.uint8]:
    """Return the class index by id."""
    table = np.zeros(LAST_PARCEL + 1, np.uint8)
    for name, ids in _BOTH.items():
        for side, value in zip(("left", "right"), ids, strict=True):
            table[value] = CLASSES.index(f"{side} {name}")
    for name, value in _MIDDLE.items():
        table[value] = CLASSES.index(name)
    table[0] = 0
    parcels = np.arange(FIRST_PARCEL, LAST_PARCEL + 1)
    left, right = (CLASSES.index(f"{side} cerebral cortex") for side in ("left", "right"))
    table[parcels] = np.where(parcels % 2 == 1, left, right)
    return table
