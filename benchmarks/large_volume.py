"""One large volume by PFSeg and by sliding window: `benchmarks/large_volume.py [Z Y X] [--windows N]`.

PFSeg (published width, random weights, float32) runs once in a fresh process on one thread, its tail by
planes. Of the sliding window (64 x 96 x 96, half overlapping, residual U-Net of the same width) all windows
are run, or with --windows the first N: the time of a window is then multiplied by their number, which is
marked, and the others are blended as zeros. Both fill a label of the volume's size, block by block as
`seguro predict` does, so the peak is that of image, network, blending and label. Left out are reading and
writing files, resampling between a file's grid and the model's, and softmax. Results go to
benchmarks/large_volume.json.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import math
import multiprocessing
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.files import write_json
from seguro.core.memory import GIB, peak
from seguro.core.stage import machine
from seguro.core.types import Classes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seguro.methods.contract import Predictor

OUT = Path(__file__).parent / "large_volume.json"
WINDOW = (64, 96, 96)
WIDTH = 32
UNSET = 255
"""Of a voxel that no block has reached."""


def peak_gib() -> float:
    """Return the largest resident size of this process so far."""
    return round((peak() or math.nan) / GIB, 2)


def labelled(predictor: Predictor, x: Tensor) -> NDArray[np.uint8]:
    """Return the label (Z, Y, X) of an image (C, Z, Y, X) by the predictor's own tiling."""
    import torch

    from seguro.inference.tiling import planned_slabs

    out = np.full(x.shape[1:], UNSET, dtype=np.uint8)
    with torch.inference_mode():
        for start, stop, logits in planned_slabs(predictor, x):
            out[start:stop] = logits.argmax(dim=0).numpy()
    return out


def measured(predictor: Predictor, size: tuple[int, int, int]) -> tuple[float, float]:
    """Segment noise of `size` and return seconds by the clock and of the CPU.

    Raises:
        SystemExit: a voxel that got no label.
    """
    import torch

    x = torch.randn(1, *size)
    start, cpu = time.perf_counter(), time.process_time()
    label = labelled(predictor, x)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    if left := int((label == UNSET).sum()):
        raise SystemExit(f"{left} voxels of {label.size} were not segmented")
    return seconds, cpu_s


def whole(size: tuple[int, int, int], width: int) -> dict[str, Any]:
    import torch

    from seguro.methods.pfseg.config import PfsegConfig
    from seguro.methods.pfseg.predictor import WholePredictor
    from seguro.networks.superres import SuperRes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = SuperRes(in_channels=1, classes=2, width=width)
    predictor = WholePredictor(network, two_classes(), PfsegConfig(width=width)).eval()
    seconds, cpu_s = measured(predictor, size)
    return {"seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1), "peak_gib": peak_gib()}


def windows(size: tuple[int, int, int], width: int, most: int | None) -> dict[str, Any]:
    import torch

    from seguro.networks.resunet import ResUNet
    from seguro.networks.superres import HALVES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ResUNet(in_channels=1, classes=2, strides=HALVES, width=width)
    predictor = windowed(network, most).eval()
    seconds, cpu_s = measured(predictor, size)
    run, calls = predictor.run, predictor.calls
    more = calls / run - 1  # of the time of those that were run
    return {
        "windows": calls,
        "windows_run": run,
        "seconds": round(seconds + more * predictor.seconds, 1),
        "cpu_s": round(cpu_s + more * predictor.cpu_s, 1),
        "measured_whole": run == calls,
        "peak_gib": peak_gib(),
    }


def windowed(network: nn.Module, most: int | None) -> Any:
    """Return a predictor in windows that runs the network on the first `most` and measures that."""
    import torch

    from seguro.methods.contract import Predictor, Windows

    class Some(Predictor):
        calls, run, seconds, cpu_s = 0, 0, 0.0, 0.0

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.classes = two_classes()
            self.tiling = Windows(WINDOW, 0.5)

        def forward(self, x: Tensor, support: object = None) -> Tensor:
            self.calls += 1
            if most is not None and self.run >= most:
                return torch.zeros(1, self.classes.n, *x.shape[2:])
            self.run += 1
            start, cpu = time.perf_counter(), time.process_time()
            out: Tensor = self.network(x)
            self.seconds += time.perf_counter() - start
            self.cpu_s += time.process_time() - cpu
            return out

    return Some()


def two_classes() -> Classes:
    return Classes(names=("background", "organ"), values=((0,), (1,)))


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
