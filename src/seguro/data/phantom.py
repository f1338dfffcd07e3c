"""Small labelled volumes made from ellipsoids, in the folder layouts that are read: what tests run on.

Files are turned by nibabel's own orientation code, an independent witness for what reads them back.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seguro.core.errors import ConfigError
from seguro.core.files import write_bytes, write_text
from seguro.core.seeds import generator
from seguro.core.types import Three, ThreeF

Part = Literal["train", "test", "unlabelled"]


@dataclass(frozen=True)
class Spec:
    """What the made cases look like."""

    shape: Three = (12, 20, 24)
    """Canonical (Z, Y, X)."""
    dims: Literal[2, 3] = 3
    """2 makes volumes of one slice: Z becomes 1."""
    n_classes: int = 2
    """Foreground classes, labelled 1 ... n_classes."""
    channels: int = 1
    spacing: ThreeF = (1.0, 1.0, 1.0)
    """Canonical (z, y, x) in mm."""
    codes: str = "RAS"
    """Where the file's own axes point to, e.g. "LPS" or "PSR"."""
    oblique_deg: float = 0.0
    """Rotation of the grid about the x and then the z axis, below 45 so that the canonical order stays."""
    sites: int = 1
    """Case i comes from site i mod sites; sites differ in contrast and intensity scale."""
    scans_per_patient: int = 1
    jitter: int = 0
    """Each side may be up to so many voxels longer than `shape`, so that cases differ in size."""
    noise: float = 0.05
    bias: float = 0.2
    modality: str = "MRI"
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """One made case: image (C, Z, Y, X) float32 and label (Z, Y, X) uint8 in canonical order."""

    id: str
    patient: str
    site: str
    part: Part
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def volume(
    rng: np.random.Generator,
    shape: Three,
    n_classes: int,
    *,
    channels: int = 1,
    noise: float = 0.05,
    bias: float = 0.2,
    gamma: float = 1.0,
    scale: float = 100.0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image (C, Z, Y, X) float32 and its label (Z, Y, X) uint8 with values 0 ... n_classes.

    A dim body holds one bright ellipsoid per class, set around the middle of the (y, x) plane: each class has
    its own place and its own brightness, so that a tiny network learns them in about 100 updates.

    Args:
        rng: where position, size, bias field and noise come from.
        shape: canonical (Z, Y, X); sides of 1 are allowed.
        n_classes: foreground classes.
        channels: channels see the classes in other orders of brightness.
        noise: standard deviation, as a fraction of the brightest class.
        bias: amplitude of a smooth multiplicative field.
        gamma: contrast; 1 is linear.
        scale: intensity of the brightest class.
    """
    where = _coordinates(shape)
    label = _ellipsoids(rng, shape, where, n_classes)
    body = sum(((w / 0.46) ** 2 for w in where), start=np.zeros(shape)) <= 1.0
    slope = rng.uniform(-bias, bias, 3)
    field = 1.0 + 2.0 * sum((s * w for s, w in zip(slope, where, strict=True)), start=np.zeros(shape))
    image = np.empty((channels, *shape), np.float32)
    for channel in range(channels):
        bright = np.concatenate([[0.2], np.roll(np.linspace(1.0, 0.5, n_classes), channel)])[label]
        clean = (bright * np.maximum(body, label > 0)) ** gamma
        image[channel] = scale * (clean * field + rng.normal(0.0, noise, shape))
    return image, label


def _coordinates(shape: Three) -> tuple[NDArray[np.float64], ...]:
    """Return the (z, y, x) position of every voxel centre, from -0.5 to 0.5 of the field of view."""
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in shape]
    return tuple(np.broadcast_to(a, shape) for a in np.meshgrid(*axes, indexing="ij", sparse=True))


def _ellipsoids(
    rng: np.random.Generator, shape: Three, where: tuple[NDArray[np.float64], ...], n_classes: int
) -> NDArray[np.uint8]:
    label = np.zeros(shape, np.uint8)
    distance = 0.24 if n_classes > 1 else 0.0
    largest = min(0.2, 0.9 * distance * np.sin(np.pi / n_classes)) if n_classes > 1 else 0.25
    for k in range(n_classes):
        angle = 2 * np.pi * k / n_classes
        centre = np.array([0.0, distance * np.sin(angle), distance * np.cos(angle)]) + rng.uniform(
            -0.02, 0.02, 3
        )
        radius = rng.uniform(0.8, 1.0, 3) * largest
        radius[0] = 1.5 * radius[0] if shape[0] > 1 else np.inf
        # at least one voxel of each class, however coarse the grid
        radius = np.maximum(radius, 0.75 / np.asarray(shape))
        inside = sum(((w - c) / r) ** 2 for w, c, r in zip(where, centre, radius, strict=True))
        label[inside <= 1.0] = k + 1
    return label


def cases(n_train: int, n_test: int, n_unlabelled: int, spec: Spec) -> Iterator[Made]:
    """Yield the made cases in the order of their ids; a case depends on (spec, its number) alone."""
    counts: tuple[tuple[Part, int], ...] = (
        ("train", n_train),
        ("test", n_test),
        ("unlabelled", n_unlabelled),
    )
    parts = [part for part, n in counts for _ in range(n)]
    for i, part in enumerate(parts):
        rng = generator(spec.seed, "phantom", i)
        site = i % spec.sites
        z, y, x = (n + int(rng.integers(0, spec.jitter + 1)) for n in spec.shape)
        image, label = volume(
            rng,
            (1 if spec.dims == 2 else z, y, x),
            spec.n_classes,
            channels=spec.channels,
            noise=spec.noise,
            bias=spec.bias,
            gamma=1.0 + 0.3 * site,
            scale=100.0 * (1 + site),
        )
        yield Made(
            f"case_{i:03d}", f"p{i // spec.scans_per_patient:03d}", f"site{site + 1}", part, image, label
        )


def affine(spacing: ThreeF, *, oblique_deg: float = 0.0) -> NDArray[np.float64]:
    """Return a 4 x 4 affine from canonical voxel (x, y, z) to RAS+ mm, for spacing (z, y, x)."""
    if not abs(oblique_deg) < 45:
        raise ConfigError(f"oblique_deg is {oblique_deg}; below 45, or other axes would be the nearest")
    angle = np.deg2rad(oblique_deg / np.sqrt(2))
    c, s = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3] = about_z @ about_x @ np.diag(spacing[::-1])
    out[:3, 3] = (-7.0, 11.0, 3.0)
    return out


def write_nifti(
    path: Path,
    array: NDArray[Any],
    *,
    spacing: ThreeF = (1, 1, 1),
    codes: str = "RAS",
    oblique_deg: float = 0.0,
) -> Path:
    """Write a canonical (Z, Y, X) or (C, Z, Y, X) array as NIfTI whose own axes point along `codes`.

    Channels become the file's fourth axis when there are several. The bytes depend on the arguments alone.
    """
    xyz = array.T if array.ndim == 3 else array.transpose(3, 2, 1, 0)
    if xyz.ndim == 4 and xyz.shape[3] == 1:
        xyz = xyz[..., 0]
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = nib.orientations.apply_orientation(xyz, turn)
    matrix = affine(spacing, oblique_deg=oblique_deg) @ nib.orientations.inv_ornt_aff(turn, xyz.shape[:3])
    image = nib.Nifti1Image(turned, matrix)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    write_bytes(path, gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_msd(
    folder: Path,
    *,
    n_labelled: int = 4,
    n_test: int = 2,
    n_unlabelled: int = 0,
    test_labels: bool = True,
    **look: Any,
) -> Path:
    """Write a Medical Segmentation Decathlon folder and return it.

    `imagesTr`, `labelsTr`, `imagesTs`, `imagesUn` where there are such cases, `labelsTs` with `test_labels`,
    and `patients.csv` (id,patient,site) when there is more than one site or more than one scan per patient.

    Args:
        folder: made if missing.
        n_labelled: training cases.
        n_test: test cases.
        n_unlabelled: cases without label.
        test_labels: whether the test cases have labels in `labelsTs`.
        look: fields of `Spec`.
    """
    spec = replace(Spec(), **look)
    made = list(cases(n_labelled, n_test, n_unlabelled, spec))
    image_folder = {"train": "imagesTr", "test": "imagesTs", "unlabelled": "imagesUn"}
    for case in made:
        _write(folder / image_folder[case.part] / f"{case.id}.nii.gz", case.image, spec)
        if case.part == "train" or (case.part == "test" and test_labels):
            _write(
                folder / f"labels{'Tr' if case.part == 'train' else 'Ts'}" / f"{case.id}.nii.gz",
                case.label,
                spec,
            )
    train = [f"{c.id}.nii.gz" for c in made if c.part == "train"]
    _write_json(
        folder / "dataset.json",
        {
            "name": "Phantom",
            "tensorImageSize": "3D" if spec.channels == 1 else "4D",
            "modality": {str(i): spec.modality for i in range(spec.channels)},
            "labels": {"0": "background"} | {str(k): f"organ{k}" for k in range(1, spec.n_classes + 1)},
            "numTraining": len(train),
            "numTest": n_test,
            "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in train],
            "test": [f"./imagesTs/{c.id}.nii.gz" for c in made if c.part == "test"],
        },
    )
    if spec.sites > 1 or spec.scans_per_patient > 1:
        write_patients(folder, made)
    return folder


def write_nnunet(
    folder: Path, *, n_labelled: int = 4, n_test: int = 2, test_labels: bool = True, **look: Any
) -> Path:
    """Write an nnU-Net v2 raw folder (a file per channel: `_0000`, ...) and return it; see `write_msd`."""
    spec = replace(Spec(), **look)
    made = list(cases(n_labelled, n_test, 0, spec))
    for case in made:
        end = "Tr" if case.part == "train" else "Ts"
        for channel, array in enumerate(case.image):
            _write(folder / f"images{end}" / f"{case.id}_{channel:04d}.nii.gz", array, spec)
        if case.part == "train" or test_labels:
            _write(folder / f"labels{end}" / f"{case.id}.nii.gz", case.label, spec)
    _write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(i): spec.modality for i in range(spec.channels)},
            "labels": {"background": 0} | {f"organ{k}": k for k in range(1, spec.n_classes + 1)},
            "numTraining": n_labelled,
            "file_ending": ".nii.gz",
        },
    )
    if spec.sites > 1 or spec.scans_per_patient > 1:
        write_patients(folder, made)
    return folder


def write_folder(folder: Path, *, n_labelled: int = 4, n_unlabelled: int = 0, **look: Any) -> Path:
    """Write `images/` and `labels/` with equal NIfTI names and return the folder."""
    spec = replace(Spec(), **look)
    for case in cases(n_labelled, 0, n_unlabelled, spec):
        _write(folder / "images" / f"{case.id}.nii.gz", case.image, spec)
        if case.part == "train":
            _write(folder / "labels" / f"{case.id}.nii.gz", case.label, spec)
    return folder


def write_png(
    folder: Path, *, n_labelled: int = 4, n_unlabelled: int = 0, spread: bool = False, **look: Any
) -> Path:
    """Write 8-bit PNG slices as `images/` and `labels/` with equal names and return the folder.

    Args:
        folder: made if missing.
        n_labelled: slices with a label.
        n_unlabelled: slices without one.
        spread: masks hold 0 and 255 in place of 0 and 1 (for one class).
        look: fields of `Spec`; `channels` is 1 (grey) or 3 (RGB), rows are canonical y, columns x.
    """
    spec = replace(Spec(), **{"dims": 2, "shape": (1, 32, 40), **look})
    if spec.channels not in (1, 3):
        raise ConfigError(f"a PNG has 1 or 3 channels here, not {spec.channels}")
    for case in cases(n_labelled, 0, n_unlabelled, spec):
        grey = np.clip(case.image[:, 0] * (200.0 / 100.0), 0, 255).astype(np.uint8)
        _write_png(
            folder / "images" / f"{case.id}.png", grey[0] if spec.channels == 1 else np.moveaxis(grey, 0, -1)
        )
        if case.part == "train":
            _write_png(folder / "labels" / f"{case.id}.png", case.label[0] * np.uint8(255 if spread else 1))
    return folder


def write_patients(folder: Path, made: list[Made]) -> Path:
    """Write `patients.csv` (id,patient,site) for the made cases and return its path."""
    path = folder / "patients.csv"
    write_text(path, "id,patient,site\n" + "".join(f"{c.id},{c.patient},{c.site}\n" for c in made))
    return path


def _write(path: Path, array: NDArray[Any], spec: Spec) -> None:
    write_nifti(path, array, spacing=spec.spacing, codes=spec.codes, oblique_deg=spec.oblique_deg)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
