"""One large volume by PFSeg and by sliding window: `benchmarks/large_volume.py [Z Y X] [--windows N]`.

PFSeg (published width, random weights, float32) runs once in a fresh process on one thread, its tail by
planes. Of the sliding window (64 x 96 x 96, half overlapping, residual U-Net of the same width) all windows
are run, or with --windows the first N, whose mean is multiplied by their number and marked as such. Results
go to benchmarks/large_volume.json.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import math
import multiprocessing
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from seguro.core.files import write_json
from seguro.core.memory import GIB, peak
from seguro.core.stage import machine

OUT = Path(__file__).parent / "large_volume.json"
WINDOW = (64, 96, 96)
WIDTH = 32


def peak_gib() -> float:
    """Return the largest resident size of this process so far."""
    return round((peak() or math.nan) / GIB, 2)


def whole(size: tuple[int, int, int], width: int) -> dict[str, Any]:
    import torch

    from seguro.core.types import Classes
    from seguro.inference.tiling import planned_slabs
    from seguro.methods.pfseg.config import PfsegConfig
    from seguro.methods.pfseg.predictor import WholePredictor
    from seguro.networks.superres import SuperRes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    classes = Classes(names=("background", "organ"), values=((0,), (1,)))
    network = SuperRes(in_channels=1, classes=2, width=width)
    predictor = WholePredictor(network, classes, PfsegConfig(width=width)).eval()
    x = torch.randn(1, *size)
    start, cpu = time.perf_counter(), time.process_time()
    voxels = 0
    with torch.inference_mode():
        for _, _, logits in planned_slabs(predictor, x):
            voxels += int((logits[1] > logits[0]).numel())
    if voxels != x.numel():
        raise SystemExit(f"{voxels} voxels segmented of {x.numel()}")
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_gib": peak_gib(),
    }


def windows(size: tuple[int, int, int], width: int, most: int | None) -> dict[str, Any]:
    import torch

    from seguro.inference.sliding import window_starts
    from seguro.networks.resunet import ResUNet
    from seguro.networks.superres import HALVES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ResUNet(in_channels=1, classes=2, strides=HALVES, width=width).eval()
    x = torch.randn(1, 1, *size)
    starts = [window_starts(n, w, 0.5) for n, w in zip(size, WINDOW, strict=True)]
    corners = list(product(*starts))
    run = corners[:most]
    start, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for z, y, w in run:
            network(x[:, :, z : z + WINDOW[0], y : y + WINDOW[1], w : w + WINDOW[2]])
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    share = len(corners) / len(run)
    return {
        "windows": len(corners),
        "windows_run": len(run),
        "seconds": round(seconds * share, 1),
        "cpu_s": round(cpu_s * share, 1),
        "measured_whole": len(run) == len(corners),
        "peak_gib": peak_gib(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="*", type=int, default=[400, 512, 512])
    parser.add_argument("--windows", type=int, help="run only so many windows")
    parser.add_argument("--width", type=int, default=WIDTH)
    options = parser.parse_args()
    if len(options.size) != 3:
        parser.error(f"size {options.size}: expected Z Y X")
    size = tuple(options.size)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        ours = pool.apply(whole, (size, options.width))
    print(f"pfseg   {ours}")
    with context.Pool(1) as pool:
        peer = pool.apply(windows, (size, options.width, options.windows))
    print(f"windows {peer}")
    ratio = round(peer["cpu_s"] / ours["cpu_s"], 2)
    print(f"ratio   {ratio}")
    facts = {"machine": machine(), "threads": 1, "size": size, "width": options.width}
    write_json(OUT, {**facts, "pfseg": ours, "windows": peer, "ratio_cpu": ratio})
    return 0


if __name__ == "__main__":
    sys.exit(main())
