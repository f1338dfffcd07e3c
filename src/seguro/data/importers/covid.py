"""The 100 axial CT slices of about 60 patients with COVID-19 that MedSeg gave out.

Each slice becomes a case. Which slices share a patient is not known, and neighbors often do: so folds are
blocks of the stack, and one block is the test set, never the one that a model is chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.files import read_checked, write_json, write_text
from seguro.data.folds import SPLITS
from seguro.data.formats import read_image, read_label
from seguro.data.importers import Imported
from seguro.data.importers.building import AS_STORED, NIFTI, describe, files_below, says, unit_range, whole
from seguro.data.phantom import write_nifti
from seguro.data.windows import HU_BELOW

LABELS = {0: "background", 1: "healthy lung", 2: "ground glass", 3: "consolidation", 4: "effusion"}
N_BLOCKS = 5
TEST_BLOCK = 1
"""The block of the stack that the published scripts validate and test on; here it is the test set alone."""
SIDE = 256
"""Pixels of a published slice along each axis."""
_ONE_HOT = (2, 3, 1, 0)
"""Value of each channel of the arrays: ground glass, consolidation, other lung, background."""
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def bring(source: Path, out: Path | None = None, *, min_max: bool = False) -> Imported:
    """Return the slices in `source`, written as an MSD folder of single slices.

    Args:
        source: folder with images and masks, as stacks (tr_im.nii.gz and tr_mask.nii.gz; images_medseg.npy
            and masks_medseg.npy) or as files of single slices. Files with "mask", "label" or "seg" in their
            name or folder are masks: 1 ground glass, 2 consolidation, 3 effusion, or one-hot arrays; with
            "lung" too, they are lungs. All are labelled: images without a label are put into imagesUn of
            `out` afterwards, or given split=unlabelled in its patients.csv.
        out: folder to write; ./COVID by default.
        min_max: scale each stack to [0, 1] by its own range, to be used as such.

    Raises:
        DataError: pictures (they hold no Hounsfield units), or images and masks that do not fit.
    """
    target = out or Path("COVID")
    images, masks, lungs = _stacks(source)
    label, present = _labels(masks, lungs, images.shape, source)
    n = len(images)
    if n < N_BLOCKS:
        raise DataError(f"{source}: {n} slices, expected at least {N_BLOCKS}")
    in_hu = float(images.min()) < HU_BELOW
    if min_max:
        images = unit_range(images, str(source))
    names = [f"slice_{i:03d}" for i in range(n)]
    blocks = [[names[i] for i in part] for part in np.array_split(np.arange(n), N_BLOCKS)]
    test = set(blocks.pop(TEST_BLOCK))
    with whole(target, source) as folder:
        for name, image, mask in zip(names, images, label, strict=True):
            end = "Ts" if name in test else "Tr"
            write_nifti(folder / f"images{end}" / f"{name}.nii.gz", image[None].astype(np.float32))
            write_nifti(folder / f"labels{end}" / f"{name}.nii.gz", mask[None])
        describe(
            folder,
            name="COVID",
            description="MedSeg COVID-19 CT slices of different patients; the spacing is nominal",
            modality=AS_STORED if min_max else "CT",
            labels={v: LABELS[v] for v in sorted({0, *present})},
            train=[n for block in blocks for n in block],
        )
        write_json(folder / SPLITS, _folds(blocks))
        lines = [f"{name},{name},{'test' if name in test else 'train'}\n" for name in names]
        write_text(folder / "patients.csv", "id,patient,split\n" + "".join(lines))
    notes = [
        f"which slices share a patient is not known: folds are {len(blocks)} blocks of neighbors, another "
        f"block of {len(test)} is the test set, and intervals take slices for patients",
        "spacing is not known: distances are nominal",
    ]
    notes += [f"no {name} in the masks: left out" for v, name in LABELS.items() if v not in present and v]
    if not in_hu:
        notes.append("values are no Hounsfield units: --window cannot be used")
    window = ("--window", "covid") if in_hu and not min_max else ()
    options = ("--dims", "2", *window, *_lowered(images.shape[1:]))
    return Imported(target, n - len(test), tuple(notes), options=options, next="plan")


def _lowered(shape: Sequence[int]) -> tuple[str, ...]:
    """Return options of `plan` that bring larger slices to the 256 x 256 pixels of the publication."""
    if max(shape) <= SIDE:
        return ()
    steps = ",".join(f"{n / SIDE:g}" for n in shape)
    return ("--spacing", f"1,{steps}", "--patch", f"{SIDE},{SIDE}")


def _folds(blocks: Sequence[Sequence[str]]) -> list[dict[str, list[str]]]:
    return [
        {"train": [n for b in blocks if b is not block for n in b], "val": list(block)} for block in blocks
    ]


def _stacks(
    source: Path,
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any] | None]:
    """Return images (N, Y, X), masks (N, Y, X) or (N, Y, X, 4), and lungs (N, Y, X) if there are any."""
    if source.is_dir() and any(p.suffix.lower() in _PICTURES for p in source.rglob("*")):
        raise DataError(
            f"{source}: holds pictures, whose gray values are no Hounsfield units and differ from figure to "
            "figure; train on them as a folder of their own, or remove them"
        )
    groups: dict[str, list[Path]] = {"image": [], "mask": [], "lung": []}
    for path in files_below(source, (*NIFTI, ".npy")):
        kind = "mask" if says(path, source, r"mask|label|(^|[/_-])seg") else "image"
        groups["lung" if kind == "mask" and says(path, source, "lung") else kind].append(path)
    for kind in ("image", "mask"):
        if not groups[kind]:
            raise DataError(
                f"{source}: no {kind} files; masks have mask, label or seg in their name or folder"
            )
    images, masks = (_joined(groups[kind], kind) for kind in ("image", "mask"))
    lungs = _joined(groups["lung"], "lung") if groups["lung"] else None
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    for what, array in (("masks", masks), ("lungs", lungs)):
        if array is not None and array.shape[:3] != images.shape:
            raise DataError(
                f"{source}: {what} have shape {array.shape}, images {images.shape}, (slice, y, x)"
            )
    if not np.isfinite(images).all():
        raise DataError(f"{source}: images hold NaN or infinite values")
    return images.astype(np.float32), masks, lungs


def _joined(paths: Sequence[Path], kind: str) -> NDArray[Any]:
    """Return the slices of all files, one after the other."""
    parts = [_read(p, kind) for p in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise DataError(
                f"{path}: slices of shape {part.shape[1:]}, those of {paths[0].name} {parts[0].shape[1:]}; "
                "they must be of one size"
            )
    return np.concatenate(parts)


def _read(path: Path, kind: str) -> NDArray[Any]:
    """Return the slices of a file, (N, Y, X) in canonical rows and columns, in the file's order."""
    if path.suffix == ".npy":
        array = _read_array(path)
        array = array[None] if array.ndim == 2 else array
        if array.ndim not in (3, 4):
            raise DataError(f"{path}: shape {array.shape}, expected (slice, y, x) or (slice, y, x, channel)")
        return array[
            :, ::-1, ::-1
        ]  # rows run down and columns to the patient's left: canonical is the reverse
    if kind == "image":
        volume = read_image([path])
        array = volume.array[0]
    else:
        volume = read_label(path)
        array = volume.array
    return array[::-1] if volume.source.flips[2] else array


def _read_array(path: Path) -> NDArray[Any]:
    import io

    try:
        array: NDArray[Any] = np.load(io.BytesIO(read_checked(path).data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a NumPy array ({error}); download it again") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: an array of {array.dtype}, expected numbers")
    return array


def _labels(
    masks: NDArray[Any], lungs: NDArray[Any] | None, shape: tuple[int, ...], source: Path
) -> tuple[NDArray[np.uint8], set[int]]:
    """Return the classes (N, Y, X) and those that occur."""
    label = np.zeros(shape, np.uint8)
    if lungs is not None:
        label[lungs > 0] = 1
    if masks.ndim == 4:
        if masks.shape[-1] != len(_ONE_HOT) or not np.isin(masks, (0, 1)).all():
            raise DataError(
                f"{source}: masks of shape {masks.shape}, expected 4 channels of 0 and 1: ground glass, "
                "consolidation, other lung, background"
            )
        for channel, value in enumerate(_ONE_HOT[:3]):
            label[masks[..., channel] > 0] = value
    else:
        found = np.unique(masks)
        if not np.isin(found, (0, 1, 2, 3)).all():
            raise DataError(
                f"{source}: mask values {found[:8].tolist()}, expected 1 ground glass, 2 consolidation, "
                "3 effusion"
            )
        for value in (1, 2, 3):
            label[masks == value] = value + 1
    return label, {int(v) for v in np.unique(label)} - {0}
