"""Whole tumor volumes at full size by the command line: `python benchmarks/brats2015.py --work W`.

Two cases of BraTS 2015 (FLAIR and T1c, 155 x 240 x 240 voxels of 1 mm) are checked and planned, PFSeg of the
published width does one update on a small piece of them (weights for a time, not for a score), and
`seguro predict` segments both with one thread. That every label has the scan's own grid is checked. CPU
time, time by the clock and peak memory of that process, files and resampling included, go to
benchmarks/brats2015.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "experiments"))

from arms import seguro  # noqa: E402

from seguro.core.files import write_json  # noqa: E402
from seguro.core.stage import machine  # noqa: E402
from seguro.data.formats import read_label  # noqa: E402

OUT = HERE / "brats2015.json"
CHANNELS = {"FLAIR": "Flair_subtrMeanDivStd", "T1c": "T1c_subtrMeanDivStd"}
CLASSES = {"background": 0, "necrosis": 1, "edema": 2, "non-enhancing": 3, "enhancing": 4}
TRAIN = ("--method", "pfseg", "--preset", "paper", "--updates", 1, "--validations", 1, "--folds", "none")


def written(source: Path, out: Path) -> Path:
    """Write the two cases as an nnU-Net folder; returns it."""
    for case in sorted(p for p in source.iterdir() if p.is_dir()):
        files = {
            **{f"imagesTr/{case.name}_{i:04d}": name for i, name in enumerate(CHANNELS.values())},
            f"labelsTr/{case.name}": "OTMultiClass",
        }
        for target, name in files.items():
            path = out / f"{target}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(case / f"{name}.nii.gz", path)
    channels = {str(i): name for i, name in enumerate(CHANNELS)}
    facts = {"channel_names": channels, "labels": CLASSES, "numTraining": 2, "file_ending": ".nii.gz"}
    write_json(out / "dataset.json", facts)
    return out


def measured(*arguments: object) -> dict[str, float]:
    """Run one command; returns its seconds, seconds of the CPU and peak memory in GiB."""
    start = time.perf_counter()
    child = os.posix_spawnp("seguro", ["seguro", *map(str, arguments)], os.environ)
    _, status, used = os.wait4(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"exit {code}: seguro {' '.join(map(str, arguments))}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(), help="where the workspace lies")
    given = parser.parse_args()
    data = written(given.data_root / "brats2015", given.work / "brats2015")
    workspace, run = given.work / "brats2015.seguro", given.work / "brats2015.seguro" / "runs" / "pfseg"
    seguro("check", data, "--out", workspace)
    seguro("plan", workspace, "--dims", 3, "--full-resolution")
    seguro("train", workspace, *TRAIN, "--set", "size=[32,64,64]", "--name", run.name, "--threads", 1)
    cases: dict[str, Any] = {}
    for label in sorted((data / "labelsTr").iterdir()):
        case = label.name.removesuffix(".nii.gz")
        one, out = given.work / "images" / case, given.work / "predicted" / case
        one.mkdir(parents=True, exist_ok=True)
        for image in (data / "imagesTr").glob(f"{case}_*"):
            shutil.copyfile(image, one / image.name)
        shutil.rmtree(out, ignore_errors=True)
        cases[case] = measured("predict", run, one, "--out", out, "--threads", 1)
        grid = read_label(label).grid
        read_label(out / label.name, like=grid)  # refuses another grid
        cases[case]["voxels"] = list(grid.shape)
    write_json(OUT, {"machine": machine(), "threads": 1, "width": 32, "channels": 2, "cases": cases})
    print(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
