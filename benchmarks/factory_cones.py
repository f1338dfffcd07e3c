"""Does a data factory make the site and position asked for? `python benchmarks/factory_cones.py --work W`

Twenty-four volumes of three sites hold a cone whose cross section shrinks from slice to slice: bright, dark
(inverted), and bright under blur and noise. A factory of preset `tiny`, 16 pixels, is trained on images.
Of slices it makes for every site: the distance to real ones, how many a classifier of real ones takes for
that site, and the rank correlation of position and area, the pixels on the side of the cone of the threshold
that divides real ones.
Acceptance check 17 asks for 80 % and for more than .7. Written to benchmarks/factory_cones.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import ndimage, stats
from skimage.filters import threshold_otsu

from seguro import api
from seguro.core.files import read_json, write_json, write_text
from seguro.core.seeds import generator
from seguro.core.stage import machine
from seguro.data.phantom import write_nifti
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.evaluation.generated import Recognizer, descriptors, frechet
from seguro.inference import previews
from seguro.methods.factory.config import FactoryConfig
from seguro.methods.factory.method import Factory
from seguro.networks import build

OUT = Path(__file__).parent / "factory_cones.json"
SITES = ("bright", "dark", "noisy")
VOLUMES, SIDE, SLICES, SIZE = 8, 24, 16, 16
MADE = 256
"""Slices of each site that are looked at."""


def cone(site: str, number: int) -> NDArray[np.float32]:
    """Return a volume (SLICES, SIDE, SIDE) of a site."""
    rng = generator(17, site, number)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (SLICES, SIDE, SIDE)), indexing="ij")
    v, u = rng.uniform(-0.15, 0.15, 2)
    radius = rng.uniform(0.75, 0.9) * (0.6 - 0.4 * z)
    image = (np.hypot(y - v, x - u) < radius).astype(float)
    if site == "dark":
        image = 1 - image
    image = ndimage.gaussian_filter(image, (0, 1.2, 1.2) if site == "noisy" else (0, 0.5, 0.5))
    noise = 0.25 if site == "noisy" else 0.03
    return (100 * (image + rng.normal(0, noise, image.shape))).astype(np.float32)


def written(folder: Path) -> Path:
    """Write the volumes as unlabelled cases of three sites."""
    rows = ["id,patient,site"]
    for site in SITES:
        for i in range(VOLUMES):
            write_nifti(folder / "imagesUn" / f"{site}{i}_0000.nii.gz", cone(site, i))
            rows.append(f"{site}{i},{site}{i},{site}")
    write_text(folder / "patients.csv", "\n".join(rows) + "\n")
    facts = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cone": 1}, "numTraining": 0}
    write_json(folder / "dataset.json", {**facts, "file_ending": ".nii.gz"})
    return folder


def looked_at(run: Path, seed: int) -> dict[str, Any]:
    """Return, for every site, the part that is recognized and the rank correlation."""
    told = read_json(run / "model" / "model.json")
    plan = Plan.model_validate(told["plan"])
    method = Factory(FactoryConfig.model_validate(told["config"]), plan, build)
    weights = load_file(run / "model" / "weights.safetensors")
    method.modules.load_state_dict(weights, strict=False)
    method.modules.eval()
    real = []
    for site in SITES:
        volumes = [cone(site, 100 + i) for i in range(VOLUMES)]  # that the factory never saw
        real.append(np.stack([in_frame(v, method) for v in volumes]).reshape(-1, 1, SIZE, SIZE))
    recognizer = Recognizer.fitted([descriptors(slices) for slices in real])
    found = {}
    for number, site in enumerate(SITES):
        made = previews.made(method, method.modules, number, MADE, seed=seed)
        position = np.arange(MADE) * method.config.z_bins // MADE
        rows = descriptors(made)
        found[site] = {
            "distance": round(frechet(rows, descriptors(real[number])), 4),
            "recognized": round(float((recognizer.domains(rows) == number).mean()), 3),
            "rank_correlation": round(shrinking(site, made, position, real[number]), 3),
        }
    return found


def shrinking(
    site: str, slices: NDArray[np.float32], position: NDArray[np.int64], real: NDArray[np.float32]
) -> float:
    """Return the rank correlation of positions and of how little of each slice the site's cone takes."""
    bright = (slices > float(threshold_otsu(real))).mean((1, 2, 3))  # type: ignore[no-untyped-call]
    return float(stats.spearmanr(position, bright if site == "dark" else -bright).statistic)


def in_frame(volume: NDArray[np.float32], method: Factory) -> NDArray[np.float32]:
    """Return the slices of a volume (n, C, size, size) as the factory sees them."""
    import torch

    scaled = (volume - volume.mean()) / volume.std()
    shown: NDArray[np.float32] = method.frame.shown(torch.from_numpy(scaled[:, None])).numpy()
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspace lies")
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = api.TrainOptions(
        method="factory", preset="tiny", batch=8, updates=given.updates, validations=4, threads=1,
        seed=given.seed, name=f"factory-seed{given.seed}-{given.updates}",
        settings={"size": SIZE, "full": SIZE},
    )  # fmt: skip
    run = api.train(
        written(given.work / "cones"), options, out=given.work / "cones.seguro",
        plan_options=PlanOptions(dims=2, memory_gib=0.02, slices="axial"),
    )  # fmt: skip
    sites = looked_at(run, given.seed)
    cpu = read_json(run / "stage.json")["recorded"]["cpu_s"]
    facts = {"machine": machine(), "seed": given.seed, "updates": given.updates, "batch": 8, "cpu_s": cpu}
    write_json(OUT, {**facts, "made": MADE, "sites": sites})
    print(sites)
    return 0


if __name__ == "__main__":
    sys.exit(main())
