"""How well PFSeg restores volumes that it was not trained on: `benchmarks/restoration.py RUN...`.

The second decoder exists in training only, so its weights come from a run's last checkpoint. Every test case
(or those of `--split`) is brought to the planned grid, scaled to 0 ... 1 and lowered as in training; the peak
signal-to-noise ratio of what is restored from that, and of the lowered image enlarged linearly, is taken over
the volume, in decibels. Written to `--out`, one row a run, or the folds of one: means over cases, and the
difference with its 95 % interval.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seguro.core.files import read_json, write_json
from seguro.core.settings import read_yaml
from seguro.core.stage import machine
from seguro.core.types import Case, ScoreRow
from seguro.data import manifest as manifests
from seguro.data.manifest import read_case
from seguro.data.plan import Plan
from seguro.data.preprocess import to_planned
from seguro.engine import checkpoint
from seguro.engine.loop import load_modules
from seguro.evaluation.statistics import paired
from seguro.methods import get
from seguro.methods.pfseg.method import Pfseg
from seguro.methods.pfseg.predictor import corners_of, unit
from seguro.networks import build
from seguro.networks.blocks import pad_to_multiple
from seguro.networks.resolution import lowered, raised


def method_of(run: Path) -> Pfseg:
    """Return the method of a run with the weights of its last checkpoint, as they were trained."""
    told = read_yaml(run / "config.yaml")
    plan = Plan.model_validate(read_json(run.parents[1] / "plan" / "plan.json"))
    kind = get(told["method"])
    method = kind(kind.Config.model_validate(told["config"]), plan, build)
    if not isinstance(method, Pfseg) or "restorer" not in method.modules:
        sys.exit(f"{run}: method {told['method']} restores no image")
    folder = run / "checkpoints"
    load_modules(method.modules, checkpoint.load(folder, checkpoint.updates(folder)[-1]), "modules.", folder)
    method.modules.eval()
    return method


def decibels(found: Tensor, wanted: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images whose range is 1."""
    return float(-10 * torch.log10(F.mse_loss(found, wanted)))


@torch.no_grad()
def restored(method: Pfseg, image: Tensor) -> tuple[float, float]:
    """Return decibels of a volume (1, C, Z, Y, X) as restored, and as enlarged linearly."""
    network = method.network
    padded, undo = pad_to_multiple(image, network.multiple)
    x = unit(padded)
    maps = network.encode(x, corners_of(x, network, method.config))
    enlarged = raised(lowered(x, network.scale, lowpass=method.config.lowpass), network.scale)
    found, plain = (decibels(one[undo], x[undo]) for one in (method.restored(maps, x), enlarged))
    return found, plain


def scored(run: Path, split: str) -> Iterator[tuple[Case, float, float]]:
    """Yield the cases of a split, or those that the run validates on, with the decibels of `restored`."""
    method, manifest = method_of(run), manifests.load(run.parents[1] / "check" / manifests.FILE)
    held_out = read_json(run / "cases.json")["validation"]
    for case in manifest.cases:
        if case.id in held_out if split == "validation" else case.split == split:
            image = torch.from_numpy(to_planned(read_case(case, manifest), method.plan)[0])[None]
            yield case, *restored(method, image)


def row(name: str, runs: Sequence[Path], split: str) -> dict[str, Any]:
    """Return what is written of the runs of all folds of one arm."""
    rows: dict[str, list[ScoreRow]] = {"restored": [], "enlarged": []}
    for run in runs:
        for case, *values in scored(run, split):
            for kind, value in zip(rows, values, strict=True):
                rows[kind].append(ScoreRow(case.id, case.patient, case.site, "image", "psnr", value, ""))
    [difference] = [p for p in paired(rows["enlarged"], rows["restored"]) if p.cls == "image"]
    return {
        "run": name,
        "split": split,
        "n": len(rows["restored"]),
        **{kind: statistics.fmean(r.value for r in told) for kind, told in rows.items()},  # type: ignore[misc]
        **{k: getattr(difference, k) for k in ("difference", "low", "high")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of method pfseg")
    parser.add_argument("--split", default="test", help="test, or validation: the cases a run left out")
    parser.add_argument("--out", type=Path, default=Path("restoration.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    of_arm: dict[str, list[Path]] = {}
    for run in given.runs:
        of_arm.setdefault(re.sub(r"-fold\d+", "", run.name), []).append(run)
    rows = [row(name, runs, given.split) for name, runs in of_arm.items()]
    write_json(given.out, {"unit": "dB", "machine": machine(), "rows": rows})
    for one in rows:
        print(one)
    return 0


if __name__ == "__main__":
    sys.exit(main())
