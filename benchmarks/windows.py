"""What window bookkeeping costs beside the network: `python benchmarks/windows.py`.

Both sides run the same network on the same windows, alternately, in one thread; the least CPU time of each
counts, which a busy machine disturbs less than wall time (still by some percent: run it on an idle one).
Results go to benchmarks/windows.json, in the columns of speed.json: the peer is the network alone.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import resource
import time
from itertools import product
from pathlib import Path

import torch

from seguro.core.files import write_json
from seguro.core.stage import machine
from seguro.core.types import Classes
from seguro.inference.sliding import slabs, window_starts
from seguro.methods.contract import Predictor, Windows
from seguro.networks.unet import UNet

OUT = Path(__file__).parent / "windows.json"
LIMIT = 0.10
"""Bookkeeping may take this fraction of the network's time."""
SHAPE = (64, 96, 96)
WINDOW = (48, 48, 48)


class Small(Predictor):
    """A U-Net of the width that `preset small` trains on a CPU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        names = tuple(f"class {i}" for i in range(classes))
        self.classes = Classes(names=names, values=tuple((i,) for i in range(classes)))
        self.tiling = Windows(WINDOW)
        self.network = UNet(
            in_channels=1, classes=classes, strides=[(2,) * 3] * 3, kernels=[(3,) * 3] * 4, width=16
        )

    def forward(self, x: torch.Tensor, support: object = None) -> torch.Tensor:
        return self.network(x)


def measure(classes: int, repeats: int = 3) -> dict[str, object]:
    predictor, x = Small(classes).eval(), torch.randn(1, *SHAPE)
    corners = list(product(*(window_starts(n, p, 0.5) for n, p in zip(SHAPE, WINDOW, strict=True))))

    def ours() -> None:
        for _ in slabs(predictor, x, predictor.tiling):
            pass

    def alone() -> None:
        for z, y, c in corners:
            predictor(x[None, :, z : z + WINDOW[0], y : y + WINDOW[1], c : c + WINDOW[2]])

    best = {ours: float("inf"), alone: float("inf")}
    with torch.inference_mode():
        predictor(x[None, :, :48, :48, :48])
        for _ in range(repeats):
            for work in best:
                start = time.process_time()
                work()
                best[work] = min(best[work], time.process_time() - start)
    return {
        "job": "windows",
        "size": f"{len(corners)} windows of 48^3, {classes} classes",
        "ours_s": round(best[ours], 3),
        "peer": "network alone",
        "peer_s": round(best[alone], 3),
        "ratio": round(best[alone] / best[ours], 3),
        "limit_s": round((1 + LIMIT) * best[alone], 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peer_peak_mb": None,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [measure(classes) for classes in (3, 20)]
    for row in rows:
        over = row["ours_s"] / row["peer_s"] - 1
        print(f"{row['size']}: {row['ours_s']} s, network {row['peer_s']} s, bookkeeping {100 * over:.1f} %")
    write_json(OUT, {"machine": machine(), "torch": torch.__version__, "rows": rows})
