"""Brain tumors of BraTS (2015 to 2023) as handed out: a folder per case with one file per modality.

By default as PFSeg's paper has them: T2 alone, every tumor label as one class, 128 x 192 x 192 voxels. With
`regions`, this project's extension: four modalities and the three overlapping regions of the challenge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.files import write_json
from seguro.data.formats import read_image, read_label, split_name, write_label, write_scores
from seguro.data.importers import Imported
from seguro.data.importers.building import AS_STORED, NIFTI, files_below, whole
from seguro.data.importers.division import divide
from seguro.data.importers.pfseg_grid import NOTE, published, training
from seguro.data.phantom import write_nifti

TOKENS: dict[str, tuple[str, ...]] = {
    "t1": ("t1", "t1n"),
    "t1c": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
    "seg": ("seg", "otmulticlass"),
}
"""What the files of each kind have as a part of their name, over the years."""
MODALITIES = ("t1", "t1c", "t2", "flair")
LARGEST = 4
"""Label values: 1 necrosis, 2 edema, 3 solid tumor (until 2016), 4 (from 2023 on: 3) enhancing tumor."""


@dataclass(frozen=True)
class _Found:
    """The files of one case by kind."""

    id: str
    files: Mapping[str, Path]


def bring(
    source: Path,
    out: Path | None = None,
    *,
    regions: bool = False,
    as_scanned: bool = False,
    split: str = "8/2",
    split_seed: int | None = None,
) -> Imported:
    """Return the data set in `source`, written as an nnU-Net folder.

    Args:
        source: folder with a folder per case, at any depth; cases without `seg` are unlabelled.
        out: folder to write; ./BraTS by default.
        regions: four modalities, and whole tumor, tumor core and enhancing tumor as overlapping regions;
            else T2 and the whole tumor.
        as_scanned: keep grid and intensities; else the published ones (`pfseg_grid`).
        split: 8/2, 6/2/2 or 5-fold, of the labelled cases.
        split_seed: of the split's order; None: sorted, as published.

    Returns:
        The data set; the options of the published training go with the published grid only.

    Raises:
        DataError: cases that lack a modality, label values of something else, or a grid that cannot be
            cropped as published.
        ConfigError: an unknown split.
    """
    target = out or Path("BraTS")
    kinds = MODALITIES if regions else ("t2",)
    cases = _cases(source, kinds)
    labelled = [c.id for c in cases if "seg" in c.files]
    sides = divide(labelled, split, seed=split_seed)
    enhancing = 0
    with whole(target, source) as folder:
        for case in cases:
            end = "Un" if case.id not in labelled else "Ts" if case.id in sides.test else "Tr"
            enhancing = max(enhancing, _write(folder, case, kinds, end, regions, as_scanned))
        _describe(folder, kinds, regions, enhancing, as_scanned, len(sides.train))
        sides.write(folder)
    order = "sorted" if split_seed is None else f"seed {split_seed}"
    notes = [f"split {split} ({order}): {len(sides.train)} cases to train on, {len(sides.test)} to test"]
    if len(labelled) < len(cases):
        notes.append(f"{len(cases) - len(labelled)} cases without seg are unlabelled")
    if as_scanned:
        return Imported(target, len(sides.train), tuple(notes))
    return Imported(target, len(sides.train), (*notes, NOTE), options=training(len(sides.train)))


def _cases(source: Path, kinds: Sequence[str]) -> list[_Found]:
    groups: dict[Path, dict[str, Path]] = {}
    for path in files_below(source, NIFTI):
        kind = kind_of(split_name(path)[0])
        if kind is None:
            continue
        files = groups.setdefault(path.parent, {})
        if kind in files:
            raise DataError(f"{path} and {files[kind].name}: two files of {kind} in one case's folder")
        files[kind] = path
    found = [_Found(f.name, files) for f, files in sorted(groups.items()) if set(files) & set(MODALITIES)]
    names = [c.id for c in found]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{source}: two folders are called {name}; the folder's name is the case's id")
    for kind in kinds:
        lacking = [c.id for c in found if kind not in c.files]
        if lacking or not found:
            raise DataError(
                f"{source}: {len(lacking) or 'all'} of {len(found)} cases have no {kind} file"
                + (f", first {lacking[0]}" if lacking else "")
                + f"; expected a folder per case with files named as {', '.join(TOKENS[kind])}"
            )
    return found


def kind_of(stem: str) -> str | None:
    """Return which kind of file a name without its ending is of, None for none.

    Example:
        >>> kind_of("BraTS20_Training_001_t1ce"), kind_of("BraTS-GLI-00000-000-t2w"), kind_of("brainmask")
        ('t1c', 't2', None)
    """
    parts = re.split(r"[_-]", stem.lower())
    for part in (parts[-1], *parts):
        for kind, tokens in TOKENS.items():
            if part in tokens:
                return kind
    return None


def _write(
    folder: Path, case: _Found, kinds: Sequence[str], end: str, regions: bool, as_scanned: bool
) -> int:
    """Write one case and return its largest label value."""
    volume = read_image([case.files[k] for k in kinds])
    label: NDArray[Any] | None = None
    largest = 0
    if "seg" in case.files:
        label = read_label(case.files["seg"], like=volume.grid).array
        largest = _refuse_other_labels(label, case.files["seg"])
        label = label if regions else (label > 0).astype(np.uint8)
    images = [folder / f"images{end}" / f"{case.id}_{i:04d}.nii.gz" for i in range(len(kinds))]
    target = folder / f"labels{end}" / f"{case.id}.nii.gz"
    if as_scanned:
        for path, channel in zip(images, volume.array, strict=True):
            write_scores(path, channel, volume.source)
        if label is not None:
            write_label(target, label, volume.source)
        return largest
    image, label, spacing = published(volume.array, label, volume.grid, case.id)
    for path, channel in zip(images, image, strict=True):
        write_nifti(path, channel, spacing=spacing)
    if label is not None:
        write_nifti(target, label.astype(np.uint8), spacing=spacing)
    return largest


def _refuse_other_labels(label: NDArray[Any], path: Path) -> int:
    low, high = int(label.min()), int(label.max())
    if low < 0 or high > LARGEST:
        raise DataError(f"{path}: label values from {low} to {high}; BraTS has 0 to {LARGEST}")
    return high


def _describe(
    folder: Path, kinds: Sequence[str], regions: bool, largest: int, as_scanned: bool, n_train: int
) -> None:
    """Write `dataset.json`; the enhancing part is the largest value that occurs."""
    labels: dict[str, Any] = {"background": 0, "whole tumor": 1}
    more: dict[str, Any] = {}
    if regions:
        if largest < 3:
            raise DataError(f"no case has a label above {largest}: none with enhancing tumor, so no regions")
        core = sorted({1, 3, largest} - {0, 2})
        labels = {
            "background": 0,
            "whole tumor": sorted({*core, 2}),
            "tumor core": core,
            "enhancing tumor": [largest],
        }
        more = {"regions_class_order": [2, 1, largest]}
    channels = {str(i): (k.upper() if as_scanned else AS_STORED) for i, k in enumerate(kinds)}
    facts = {
        "name": "BraTS",
        "channel_names": channels,
        "labels": labels,
        **more,
        "numTraining": n_train,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", facts)
