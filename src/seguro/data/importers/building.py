"""What importers that write a new folder share: MSD folders, whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.files import write_json
from seguro.data.formats import split_name

NIFTI = (".nii", ".nii.gz")
AS_STORED = "nonorm"
"""Name of a channel whose intensities the planner leaves as they are."""
POOLED = "pooled"
"""Name of a channel that the planner scales by one mean and standard deviation of all voxels of all cases."""


@contextmanager
def whole(target: Path, source: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `target` at the end; after an error nothing is left.

    Raises:
        DataError: `target` is there already, or lies in the source.
    """
    if target.exists():
        raise DataError(f"{target}: is there already; remove it, or choose another --out")
    if target.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{target}: lies in {source}, which is never written to; choose another --out")
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe(
    folder: Path, *, name: str, description: str, modality: str, labels: Mapping[int, str], train: list[str]
) -> None:
    """Write `dataset.json` for cases whose files are `imagesTr/<id>.nii.gz` and `labelsTr/<id>.nii.gz`."""
    facts: dict[str, Any] = {
        "name": name,
        "description": description,
        "tensorImageSize": "3D",
        "modality": {"0": modality},
        "labels": {str(v): n for v, n in sorted(labels.items())},
        "numTraining": len(train),
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in sorted(train)
        ],
    }
    write_json(folder / "dataset.json", facts)


def files_below(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of these types in `source` and its folders, hidden ones left out, sorted.

    Raises:
        DataError: no such folder, or no such file.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; unpack what was downloaded and give its folder")
    found = [
        p
        for p in sorted(source.rglob("*"))
        if p.name.lower().endswith(suffixes)
        and not any(q.startswith(".") for q in p.relative_to(source).parts)
    ]
    if not found:
        raise DataError(f"{source}: no {', '.join(suffixes)} files in it; expected images and labels")
    return found


def images_and_labels(
    source: Path, *, folder: str, suffix: re.Pattern[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the NIfTI images and the labels in `source` by the name that they have in common.

    Args:
        source: searched with its folders.
        folder: regular expression that is found in the path of labels alone.
        suffix: of the names of labels, if they have one; the images' names are without it.

    Raises:
        DataError: no such folder or file, or two images, or labels, of one name.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in files_below(source, NIFTI):
        stem = split_name(path)[0]
        is_label = says(path, source, folder) or suffix.search(stem) is not None
        name = suffix.sub("", stem) if is_label else stem
        known = labels if is_label else images
        if name in known:
            raise DataError(f"{path} and {known[name]}: two {'labels' if is_label else 'images'} of {name}")
        known[name] = path
    return images, labels


def says(path: Path, source: Path, words: str) -> bool:
    """Return whether the name of a file, or of a folder it lies in, has one of `words` (a|b) as its part."""
    return re.search(words, path.relative_to(source).as_posix(), re.I) is not None


def unit_range(image: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Return the image scaled to [0, 1] by its own smallest and largest value.

    Raises:
        DataError: NaN or infinite voxels, or one value everywhere.
    """
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)) or high <= low:
        raise DataError(f"{what}: values from {low:g} to {high:g} cannot be brought to [0, 1]")
    return np.asarray((image - np.float32(low)) / np.float32(high - low), np.float32)
