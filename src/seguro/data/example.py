"""A dozen made subjects for the demo: one real anatomy, the ICBM152 template, in twelve disguises.

The template (T1, grey and white matter maps, 1 mm) travels inside the nilearn package; nothing is downloaded.
Twelve versions of one brain prove the path from scans to report, not a score.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from seguro.core.errors import ExtraMissing
from seguro.core.files import read_checked, write_text
from seguro.core.seeds import generator
from seguro.core.types import Three, ThreeF
from seguro.data import phantom

CLASSES = ("background", "grey matter", "white matter")
MAPS = ("t1", "gm", "wm")
EXTENT_MM: ThreeF = (168.0, 198.0, 162.0)
"""Field of view (z, y, x): the brain with a small margin."""
CENTRE_MM: ThreeF = (78.0, 117.0, 98.0)
"""Middle of the brain in the template's 1 mm voxels (z, y, x)."""
NODES: Three = (6, 7, 6)
"""Control points of the displacement and of the bias field, about 30 mm apart."""


@dataclass(frozen=True)
class Site:
    """How one made hospital scans."""

    name: str
    spacing: ThreeF
    codes: str
    oblique_deg: float
    gamma: float
    noise: float
    """Standard deviation as a fraction of the brightest tissue."""
    scale: float
    """Stored intensity of the brightest tissue."""


SITES = (
    Site("north", (3.0, 3.0, 3.0), "RAS", 0.0, gamma=1.0, noise=0.02, scale=900.0),
    Site("east", (3.0, 3.0, 3.0), "LPS", 6.0, gamma=0.75, noise=0.035, scale=4000.0),
    Site("south", (4.0, 2.7, 2.7), "RAS", 0.0, gamma=1.3, noise=0.03, scale=250.0),
)


@dataclass(frozen=True)
class Template:
    """The three maps, float32 in [0, 1], canonical (Z, Y, X) at 1 mm."""

    t1: NDArray[np.float32]
    grey: NDArray[np.float32]
    white: NDArray[np.float32]


@dataclass(frozen=True)
class Disguise:
    """Everything that makes one subject of the template, drawn once and applied as often as wanted."""

    matrix: NDArray[np.float64]
    """(3, 3): rotation and scale about the middle, (z, y, x)."""
    shift_mm: NDArray[np.float64]
    displacement_mm: NDArray[np.float64]
    """(3, *NODES): displacement along z, y, x at the control points."""
    bias: NDArray[np.float64]
    """NODES: log of the multiplicative field at the control points."""
    noise_seed: int
    site: Site


def template_path(name: str) -> Path:
    """Return the path of one template map ("t1", "gm" or "wm") inside the nilearn package.

    Raises:
        ExtraMissing: nilearn is not installed, or this version of it has no such file.
    """
    spec = importlib.util.find_spec("nilearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if path.is_file():
            return path
    raise ExtraMissing("nilearn", "demo", "the demo (its ICBM152 template)")


def load_template() -> Template:
    """Return the template, smoothed so that sampling it every 3 mm does not alias.

    Raises:
        ExtraMissing: nilearn or its template is missing.
        DataError: a file of it is damaged.
    """
    maps = []
    for name in MAPS:
        image = nib.Nifti1Image.from_bytes(read_checked(template_path(name)).data)
        canonical = nib.as_closest_canonical(image)
        array = np.asarray(canonical.dataobj, np.float32).T / 255.0
        maps.append(ndimage.gaussian_filter(array, 0.8))
    return Template(*maps)


def draw(rng: np.random.Generator, site: Site) -> Disguise:
    """Return a random disguise: a few degrees, percent and millimetres, a smooth warp, a bias field."""
    angles = np.deg2rad(rng.uniform(-8, 8, 3))
    matrix = np.diag(rng.uniform(0.92, 1.08, 3))
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return Disguise(
        matrix=matrix,
        shift_mm=rng.uniform(-4, 4, 3),
        displacement_mm=rng.normal(0.0, 3.0, (3, *NODES)),
        bias=rng.normal(0.0, 0.12, NODES),
        noise_seed=int(rng.integers(2**31)),
        site=site,
    )


def apply(template: Template, disguise: Disguise) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return one subject: image (Z, Y, X) int16 and label (Z, Y, X) uint8, at the site's spacing.

    Image and label are taken from the template at the same points; the label is the largest of grey, white
    and neither. Bias, contrast and noise touch the image alone.
    """
    site = disguise.site
    shape = tuple(round(e / s) for e, s in zip(EXTENT_MM, site.spacing, strict=True))
    axes = [(np.arange(n) + 0.5) * s - n * s / 2 for n, s in zip(shape, site.spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))  # (3, Z, Y, X) mm from the middle
    points = np.tensordot(disguise.matrix, points, axes=1)
    points += (np.asarray(CENTRE_MM) + disguise.shift_mm).reshape(3, 1, 1, 1)
    points += np.stack([_smooth(nodes, shape) for nodes in disguise.displacement_mm])
    t1, grey, white = (
        ndimage.map_coordinates(m, points, order=1, mode="constant")
        for m in (template.t1, template.grey, template.white)
    )
    label = np.argmax([1.0 - grey - white, grey, white], axis=0).astype(np.uint8)
    clean = np.clip(t1, 0.0, 1.0) ** site.gamma * np.exp(_smooth(disguise.bias, shape))
    noise = np.random.default_rng(disguise.noise_seed).normal(0.0, site.noise, (2, *shape))
    magnitude = np.hypot(clean + noise[0], noise[1])  # Rician, as in magnitude images of MR
    return np.round(site.scale * magnitude).astype(np.int16), label


def _smooth(nodes: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the cubic spline through control points, at the voxel centres of `shape`."""
    at = [(np.arange(n) + 0.5) / n * (m - 1) for n, m in zip(shape, nodes.shape, strict=True)]
    return np.asarray(
        ndimage.map_coordinates(nodes, np.meshgrid(*at, indexing="ij"), order=3, mode="nearest")
    )


def write_subjects(folder: Path, *, n_train: int = 8, n_test: int = 4, seed: int = 0) -> Path:
    """Write the subjects as a Medical Segmentation Decathlon folder with three sites and return it.

    Test cases have labels too, in `labelsTs`; `patients.csv` gives patient and site. The same arguments give
    the same bytes.

    Raises:
        ExtraMissing: nilearn or its template is missing.
    """
    template = load_template()
    rows = ["id,patient,site"]
    listed: dict[str, list[Any]] = {"training": [], "test": []}
    for i in range(n_train + n_test):
        case, site, end = f"brain_{i + 1:02d}", SITES[i % len(SITES)], "Tr" if i < n_train else "Ts"
        image, label = apply(template, draw(generator(seed, "example", i), site))
        for kind, array in (("images", image), ("labels", label)):
            phantom.write_nifti(
                folder / f"{kind}{end}" / f"{case}.nii.gz",
                array,
                spacing=site.spacing,
                codes=site.codes,
                oblique_deg=site.oblique_deg,
            )
        rows.append(f"{case},subject_{i + 1:02d},{site.name}")
        names = f"./images{end}/{case}.nii.gz", f"./labels{end}/{case}.nii.gz"
        if end == "Tr":
            listed["training"].append({"image": names[0], "label": names[1]})
        else:
            listed["test"].append(names[0])
    write_text(folder / "patients.csv", "\n".join(rows) + "\n")
    facts = {
        "name": "Twelve disguises",
        "description": "One anatomy, the ICBM152 template, warped and scanned at three made sites",
        "reference": "ICBM 2009a Nonlinear Symmetric, McConnell Brain Imaging Centre; by way of nilearn",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(i): name for i, name in enumerate(CLASSES)},
        "numTraining": n_train,
        "numTest": n_test,
        **listed,
    }
    write_text(folder / "dataset.json", json.dumps(facts, indent=1) + "\n")
    return folder
