"""Simulated scanners: a data set dealt to sites, each of which sees its patients through another scanner.

`python benchmarks/experiments/scanners.py DATA OUT --scanners inverted,blurred` reads a Decathlon folder and
writes another one: every fourth patient is a test patient, the others are dealt in turn to site "plain",
which keeps its images, and to the scanners. A test patient is seen by every scanner and at "plain". Of the
first three patients of each scanner only the first scan is written, so that three labels may be three slices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from seguro.attacks.corruptions import dark_and_range
from seguro.attacks.corruptions.intensity import bias_field
from seguro.core.files import read_json, write_json, write_text
from seguro.core.seeds import generator
from seguro.core.types import Case, Grid, Manifest, ThreeF, Volume
from seguro.data import check
from seguro.data.formats import write_label, write_scores
from seguro.data.formats.nifti import source_of
from seguro.data.importers.building import whole
from seguro.data.manifest import read_case, read_case_label

PLAIN = "plain"
TEST_EVERY = 4
ALONE = 3
"""Patients of each scanner's training of whom only the first scan is written."""
BIAS = 0.3
"""Standard deviation of the logarithm of the inverted scanner's field over the tissue."""
BLUR_MM, SPECKLE, GAMMA = 2.0, 0.15, 1.8

Channel = NDArray[np.float32]
Scanner = Callable[[Channel, ThreeF, np.random.Generator], Channel]
"""(channel (Z, Y, X) in units of its range, spacing in mm, rng) -> channel."""


def inverted(channel: Channel, spacing: ThreeF, rng: np.random.Generator) -> Channel:
    """Return the channel with dark and bright exchanged, under a bias field."""
    return bias_field(1 - np.clip(channel, 0, 1), spacing, BIAS, rng)


def blurred(channel: Channel, spacing: ThreeF, rng: np.random.Generator) -> Channel:
    """Return the channel darkened by a gamma, blurred in plane, and with speckle."""
    sigma = (0.0, BLUR_MM / spacing[1], BLUR_MM / spacing[2])
    soft = ndimage.gaussian_filter(np.clip(channel, 0, 1) ** GAMMA, sigma)
    return np.asarray(soft * (1 + SPECKLE * rng.normal(size=channel.shape)), np.float32)


SCANNERS: dict[str, Scanner] = {"inverted": inverted, "blurred": blurred}


def seen(image: NDArray[np.float32], spacing: ThreeF, name: str, rng: np.random.Generator) -> Channel:
    """Return the image (C, Z, Y, X) as a scanner sees it, in its own range of intensities."""
    if name == PLAIN:
        return image
    out = np.empty_like(image)
    for index, channel in enumerate(image):
        low, span = dark_and_range(channel)
        unit = (channel - np.float32(low)) / np.float32(max(span, 1e-6))
        out[index] = np.float32(low) + np.float32(span) * SCANNERS[name](unit, spacing, rng)
    return out


def dealt(cases: Sequence[Case], scanners: Sequence[str]) -> list[tuple[Case, str, str]]:
    """Return (case, site, split) of every case to write; patients in the order of their names."""
    patients = sorted({c.patient for c in cases})
    sites, out = [PLAIN, *scanners], []
    training = [p for i, p in enumerate(patients) if i % TEST_EVERY]
    alone = {p for k in range(1, len(sites)) for p in training[k :: len(sites)][:ALONE]}
    written: set[str] = set()
    for case in sorted(cases, key=lambda c: c.id):
        if case.patient not in training:
            out += [(case, name, "test") for name in sites]
        elif case.patient not in alone or case.patient not in written:
            out.append((case, sites[training.index(case.patient) % len(sites)], "train"))
            written.add(case.patient)
    return out


def cropped(volume: Volume, label: NDArray[np.generic], size: int | None) -> tuple[Volume, Any]:
    """Return image and label (Z, Y, X) of the central `size` x `size` voxels of each slice; all with None."""
    if size is None:
        return volume, label
    starts = [max((n - size) // 2, 0) for n in volume.grid.shape[1:]]
    rows, columns = (slice(a, a + size) for a in starts)
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, 1] * starts[0] + affine[:3, 0] * starts[1]
    array = volume.array[..., rows, columns]
    grid = Grid(array.shape[1:], affine)
    return Volume(array, grid, source_of(grid)), label[:, rows, columns]


def write(
    manifest: Manifest,
    out: Path,
    scanners: Sequence[str],
    *,
    seed: int = 0,
    one: str | None = None,
    crop: int | None = None,
) -> Path:
    """Write the data set of the sites and return its folder; one that is there already stays.

    With `one` all classes become the one of this name, with `crop` slices are cut to so many central voxels.
    """
    if out.exists():
        return out
    labelled = [c for c in manifest.cases if c.label is not None]
    rows, train = ["id,patient,site,split"], []
    with whole(out, Path(manifest.root)) as folder:
        for case, site, split in dealt(labelled, scanners):
            whole_volume = read_case(case, manifest)
            label = read_case_label(case, manifest, like=whole_volume.grid)
            if label is None:  # it never is: only labelled cases are dealt
                continue
            volume, values = cropped(whole_volume, label.array, crop)
            image = seen(volume.array, volume.grid.spacing, site, generator(seed, "scanner", case.id, site))
            name = f"{case.id}_{site}"
            end = "Ts" if split == "test" else "Tr"
            source = volume.source
            write_scores(
                folder / f"images{end}" / f"{name}.nii.gz", image if len(image) > 1 else image[0], source
            )
            shown = values if one is None else values > 0
            write_label(folder / f"labels{end}" / f"{name}.nii.gz", shown, source)
            rows.append(f"{name},{case.patient},{site},{split}")
            train += [name] if split == "train" else []
        write_text(folder / "patients.csv", "\n".join(rows) + "\n")
        described = read_json(Path(manifest.root) / "dataset.json")
        if one is not None:
            described["labels"] = {"0": "background", "1": one}
        training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train]
        write_json(
            folder / "dataset.json",
            {**described, "training": training, "test": [], "numTraining": len(training), "numTest": 0},
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scanners", default="inverted,blurred")
    parser.add_argument("--crop", type=int, help="central voxels of every slice that are kept")
    parser.add_argument("--work", type=Path, help="where the check of DATA lies; beside OUT by default")
    given = parser.parse_args()
    names = given.scanners.split(",")
    unknown = sorted(set(names) - set(SCANNERS))
    if unknown:
        sys.exit(f"no scanner {unknown[0]!r}; there are {', '.join(SCANNERS)}")
    work = given.work or given.out.with_name(f"{given.data.name}.seguro")
    manifest = check.ensure(given.data, work, options=check.Options(quarantine=True))
    print(f"{write(manifest, given.out, names, crop=given.crop)}/: sites {PLAIN}, {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
