"""Speed beside the peer, both measured in one run: `python benchmarks/speed.py [JOB ...]`.

Each job prepares its input and returns two functions, ours and the peer's, that do the same work on it. Both
run in one thread, alternately, after one warm-up; the best time of each counts (CPU time for the sliding
window, PFSeg, few-shot jobs and the lattice, wall time for the others; of a deployed round what goes beyond
the slowest site's training, and apart from it the CPU time of all that carries it). Peak memory is what a
fresh process needs beyond its input. Results go to benchmarks/speed.json, each with the machine it was
measured on; rows of jobs not run stay as they were.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timed import Job
from timed.inference import few_shot, whole_volume, windows
from timed.steps import deployed, deployment, episodes, federated, lattice, patch, startup
from timed.surface import surface_all, surface_hd95, surface_transform

from seguro.core.files import write_json
from seguro.core.memory import peak, reset_peak
from seguro.core.stage import machine

OUT = Path(__file__).parent / "speed.json"


@dataclass(frozen=True)
class Row:
    job: str
    size: str
    ours_s: float
    peer: str | None
    peer_s: float | None
    ratio: float | None
    limit_s: float | None
    peak_mb: float | None
    peer_peak_mb: float | None
    gflop: float | None
    peer_gflop: float | None
    machine: dict[str, Any]


JOBS: dict[str, Job] = {
    "command line help": Job(startup, repeats=5, limit_s=0.5),
    "patches from the store": Job(patch, repeats=5, limit_s=8 * 0.002),
    "sliding window, 3 classes": Job(partial(windows, 3), clock=time.process_time, least_ratio=1 / 1.1),
    "sliding window, 20 classes": Job(partial(windows, 20), clock=time.process_time, least_ratio=1 / 1.1),
    **{
        f"pfseg vs {what}, {grid}": Job(
            partial(whole_volume, size, width=width, window=window and tuple(n // 2 for n in size), **more),
            clock=time.process_time,
            repeats=repeats,
            least_ratio=least if what == "27 windows" else None,
            most_memory=0.6 if what == "one pass" and grid == "paper's grid" else None,
        )
        for grid, size, width, repeats, least in (
            ("toy grid", (32, 64, 64), 8, 3, 4),
            ("paper's grid", (128, 192, 192), 32, 1, 8),
        )
        for what, window, more in (
            ("27 windows", True, {"overlap": 0.5}),
            ("8 windows", True, {"overlap": 0.0}),
            ("one pass", None, {}),
        )
    },
    "pfseg, noise of BraTS size": Job(
        partial(whole_volume, (155, 240, 240), width=32, window=None, channels=2, classes=5, alone=True),
        clock=time.process_time,
        repeats=1,
    ),
    "few-shot volume": Job(few_shot, clock=time.process_time, repeats=1, limit_s=3, least_ratio=5),
    "few-shot training step, 64 px": Job(
        partial(episodes, 64), clock=time.process_time, repeats=5, limit_s=0.3
    ),
    "few-shot training step, 128 px": Job(
        partial(episodes, 128), clock=time.process_time, repeats=5, limit_s=1
    ),
    "federated round without training": Job(federated, clock=time.process_time, repeats=5, limit_s=0.1),
    "federated round without training, saved": Job(
        partial(federated, 0.0), clock=time.process_time, repeats=5
    ),
    "deployed round without training": Job(
        deployed, clock=lambda: deployment().beyond_training(), repeats=5, limit_s=5, memory=False
    ),
    "deployed round without training, processor": Job(
        deployed, clock=lambda: deployment().processor_s(), repeats=5, memory=False
    ),
    "lattice training step": Job(lattice, clock=time.process_time, least_ratio=3),
    **{
        f"lattice training step without {trick}": Job(
            partial(lattice, frozenset((trick,))), clock=time.process_time
        )
        for trick in ("convolution gradients", "norm and swish", "pointwise products")
    },
    "surface metrics vs MONAI HD95": Job(surface_hd95, least_ratio=5),
    "surface metrics vs MONAI": Job(surface_all, least_ratio=5),
    "surface metrics vs distance transform": Job(surface_transform),
}


def measure(name: str) -> Row:
    """Return the row of one job: times here, peak memory in fresh processes."""
    job = JOBS[name]
    pair = job.make()
    sides = [pair.ours, *([pair.peer] if pair.peer else [])]
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(job.repeats):
        for side, of_side in zip(sides, times, strict=True):
            start = job.clock()
            side()
            of_side.append(job.clock() - start)
    ours_s, peer_s = min(times[0]), min(times[1]) if pair.peer else None
    return Row(
        name,
        pair.size,
        round(ours_s, 4),
        pair.peer_name,
        None if peer_s is None else round(peer_s, 4),
        None if peer_s is None else round(peer_s / ours_s, 2),
        job.limit_s,
        peak_mb(name, peer=False) if job.memory else None,
        peak_mb(name, peer=True) if pair.peer else None,
        pair.gflop,
        pair.peer_gflop,
        machine(),
    )


def peak_mb(name: str, *, peer: bool) -> float:
    """Return by how much one call raises the largest resident size of a fresh process, in MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, peer))


def _peak(name: str, peer: bool) -> float:
    """Free what preparation left, then read the high-water mark before and after one call."""
    pair = JOBS[name].make()
    side = pair.peer if peer and pair.peer else pair.ours
    before = reset_peak()
    if before is None:
        raise SystemExit("this system does not tell the memory of a process: /proc/self/clear_refs")
    side()
    return round(((peak() or 0) - before) / (1 << 20), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", help=f"of: {'; '.join(JOBS)}")
    chosen = parser.parse_args().jobs or list(JOBS)
    unknown = [name for name in chosen if name not in JOBS]
    if unknown:
        parser.error(f"unknown jobs {unknown}; known are {list(JOBS)}")
    before = json.loads(OUT.read_text()) if OUT.exists() else {"versions": {}, "rows": []}
    rows = {r["job"]: {**r, "machine": r.get("machine", before.get("machine"))} for r in before["rows"]}
    print(f"{'job':40} {'ours':>9} {'peer':>9} {'ratio':>6} {'MB':>7} {'peer MB':>8}  peer")
    late = []
    for name in chosen:
        row = measure(name)
        rows[name] = asdict(row)
        job = JOBS[name]
        print(
            f"{name:40} {row.ours_s:8.3f}s {row.peer_s or float('nan'):8.3f}s "
            f"{row.ratio or float('nan'):6.1f} {row.peak_mb or float('nan'):7.0f} "
            f"{row.peer_peak_mb or float('nan'):8.0f}  {row.peer or '-'}"
        )
        if (job.limit_s and row.ours_s > job.limit_s) or (
            job.least_ratio and (row.ratio or 0) < job.least_ratio
        ):
            late.append(
                f"{name}: {row.ours_s} s, ratio {row.ratio}; asked {job.limit_s} s, ratio {job.least_ratio}"
            )
        if job.most_memory and (row.peak_mb or 0) > job.most_memory * (row.peer_peak_mb or 0):
            late.append(
                f"{name}: {row.peak_mb} MB, peer {row.peer_peak_mb} MB; asked {job.most_memory} of the peer's"
            )
    versions = before["versions"] | {
        m: sys.modules[m].__version__ for m in ("numpy", "scipy", "torch", "monai") if m in sys.modules
    }
    ordered = [rows[name] for name in sorted(rows, key=lambda n: [*JOBS, n].index(n))]
    write_json(OUT, {"machine": machine(), "threads": 1, "versions": versions, "rows": ordered})
    print(f"written: {OUT.name}", *late, sep="\n")
    return 1 if late else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(main())
