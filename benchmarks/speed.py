"""Speed beside the peer, both measured in one run: `python benchmarks/speed.py [JOB ...]`.

Each job prepares its input and returns two functions, ours and the peer's, that do the same work on it. Both
run in one thread, alternately, after one warm-up; the best time of each counts (CPU time for the sliding
window, PFSeg, the few-shot volume and the lattice, wall time for the others). Peak memory is what a fresh
process needs beyond its input. Results go to benchmarks/speed.json; rows of jobs not run stay as they were.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from seguro.core.files import write_json
from seguro.core.memory import peak, reset_peak
from seguro.core.stage import machine

OUT = Path(__file__).parent / "speed.json"


@dataclass(frozen=True)
class Pair:
    """Ours and the peer's way to do one piece of work; `peer` None where there is nothing to compare with."""

    size: str
    ours: Callable[[], object]
    peer_name: str | None = None
    peer: Callable[[], object] | None = None


@dataclass(frozen=True)
class Job:
    """A row of the table: how to make the pair, and the limit that the work must keep."""

    make: Callable[[], Pair]
    repeats: int = 3
    clock: Callable[[], float] = time.perf_counter
    limit_s: float | None = None
    least_ratio: float | None = None
    """The peer must take at least so many times longer."""


@dataclass(frozen=True)
class Row:
    job: str
    size: str
    ours_s: float
    peer: str | None
    peer_s: float | None
    ratio: float | None
    limit_s: float | None
    peak_mb: float
    peer_peak_mb: float | None


SPACING = (2.5, 0.8, 0.8)


def organ(seed: int) -> np.ndarray:
    """A wavy ellipsoid of 1.7 million voxels in 200 x 512 x 512; another seed segments it plausibly."""
    z, y, x = np.ogrid[:200, :512, :512]
    center = (100 + 2 * seed, 250 + 4 * seed, 200 + 5 * seed)
    distance = sum(((v - c) / r) ** 2 for v, c, r in zip((z, y, x), center, (40, 90, 110), strict=True))
    return distance + 0.15 * np.sin(z / 5 + seed) * np.cos(y / 9) * np.sin(x / 11) < 1


def ours_surface(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, ...]:
    from seguro.evaluation.surface import surface_distances

    distances = surface_distances(truth, prediction, SPACING)
    return distances.hd, distances.hd95, distances.assd, distances.nsd(2.0)


def surface_hd95() -> Pair:
    """All four of our surface metrics against MONAI's HD95 alone: the hardest comparison."""
    import monai.metrics
    import torch

    torch.set_num_threads(1)
    truth, prediction = organ(0), organ(1)
    tensors = [torch.from_numpy(m[None, None]) for m in (prediction, truth)]

    def peer() -> float:
        return monai.metrics.compute_hausdorff_distance(
            *tensors, include_background=True, percentile=95, spacing=SPACING
        ).item()

    _same(ours_surface(truth, prediction)[1:2], (peer(),))
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "MONAI HD95", peer)


def surface_all() -> Pair:
    """HD, HD95, ASSD and NSD against MONAI's four functions."""
    import monai.metrics as m
    import torch

    torch.set_num_threads(1)
    truth, prediction = organ(0), organ(1)
    tensors = [torch.from_numpy(a[None, None]) for a in (prediction, truth)]
    options = {"include_background": True, "spacing": SPACING}

    def peer() -> tuple[float, ...]:
        return (
            m.compute_hausdorff_distance(*tensors, **options).item(),
            m.compute_hausdorff_distance(*tensors, percentile=95, **options).item(),
            m.compute_average_surface_distance(*tensors, symmetric=True, **options).item(),
            m.compute_surface_dice(*tensors, [2.0], **options).item(),
        )

    _same(ours_surface(truth, prediction), peer())
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "MONAI, 4 metrics", peer)


def surface_transform() -> Pair:
    """Our k-d tree against scipy's distance transform of the cropped box, both for all four metrics."""
    truth, prediction = organ(0), organ(1)

    def peer() -> tuple[float, ...]:
        from scipy.ndimage import distance_transform_edt

        from seguro.evaluation.surface import SurfaceDistances, border, joint_box

        box = joint_box(truth, prediction)
        a, b = border(truth[box]), border(prediction[box])
        distances = SurfaceDistances(
            distance_transform_edt(~b, sampling=SPACING)[a], distance_transform_edt(~a, sampling=SPACING)[b]
        )
        return distances.hd, distances.hd95, distances.assd, distances.nsd(2.0)

    _same(ours_surface(truth, prediction), peer(), tolerance=1e-6)
    return Pair("1 organ in 200x512x512", lambda: ours_surface(truth, prediction), "scipy EDT, cropped", peer)


def _same(ours: tuple[float, ...], theirs: tuple[float, ...], tolerance: float = 1e-3) -> None:
    """Stop when the two sides do not do the same work (MONAI returns float32)."""
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


WINDOW = (48, 48, 48)


def windows(classes: int) -> Pair:
    """The sliding window against the same network on the same windows and nothing else."""
    from itertools import product

    import torch

    from seguro.core.types import Classes
    from seguro.inference.sliding import slabs, window_starts
    from seguro.methods.contract import Predictor, Windows
    from seguro.networks.unet import UNet

    class Small(Predictor):
        """A U-Net of the width that `preset small` trains on a CPU."""

        def __init__(self) -> None:
            super().__init__()
            names = tuple(f"class {i}" for i in range(classes))
            self.classes = Classes(names=names, values=tuple((i,) for i in range(classes)))
            self.tiling = Windows(WINDOW)
            strides, kernels = [(2,) * 3] * 3, [(3,) * 3] * 4
            self.network = UNet(in_channels=1, classes=classes, strides=strides, kernels=kernels, width=16)

        def forward(self, x: torch.Tensor, support: object = None) -> torch.Tensor:
            return self.network(x)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    predictor, x = Small().eval(), torch.randn(1, 64, 96, 96)
    starts = [window_starts(n, w, 0.5) for n, w in zip(x.shape[1:], WINDOW, strict=True)]
    parts = [tuple(slice(a, a + w) for a, w in zip(c, WINDOW, strict=True)) for c in product(*starts)]

    @torch.inference_mode()
    def ours() -> None:
        for _ in slabs(predictor, x, predictor.tiling):
            pass

    @torch.inference_mode()
    def alone() -> None:
        for where in parts:
            predictor(x[(slice(None), *where)][None])

    return Pair(f"{len(parts)} windows of 48^3, {classes} classes", ours, "the network alone", alone)


def whole_volume(
    size: tuple[int, int, int], *, width: int, window: tuple[int, int, int] | None, overlap: float = 0.5
) -> Pair:
    """One volume by PFSeg, deployed, against a residual U-Net of its width in windows, or whole (None)."""
    import torch

    from seguro.core.types import Classes
    from seguro.inference.sliding import window_starts
    from seguro.inference.tiling import planned_slabs
    from seguro.methods.contract import Predictor, Whole, Windows
    from seguro.methods.pfseg.config import PfsegConfig
    from seguro.methods.pfseg.predictor import WholePredictor
    from seguro.networks.resunet import ResUNet
    from seguro.networks.superres import HALVES, SuperRes

    classes = Classes(names=("background", "tumor"), values=((0,), (1,)))

    class Plain(Predictor):
        def __init__(self) -> None:
            super().__init__()
            self.classes = classes
            self.tiling = Windows(window, overlap) if window else Whole((16, 16, 16))
            self.network = ResUNet(in_channels=1, classes=2, strides=HALVES, width=width)

        def forward(self, x: torch.Tensor, support: object = None) -> torch.Tensor:
            return self.network(x)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, *size)
    network = SuperRes(in_channels=1, classes=2, width=width)
    ours, peer = WholePredictor(network, classes, PfsegConfig(width=width)).eval(), Plain().eval()

    @torch.inference_mode()
    def run(predictor: Predictor) -> None:
        for _ in planned_slabs(predictor, x):
            pass

    by = "x".join(map(str, size))
    name = "full resolution in one pass"
    if window:
        counts = [len(window_starts(n, w, overlap)) for n, w in zip(size, window, strict=True)]
        name = f"{np.prod(counts)} windows of {'x'.join(map(str, window))}"
    return Pair(f"{by}, width {width}", partial(run, ours), name, partial(run, peer))


def few_shot(size: tuple[int, int, int] = (40, 256, 256), organs: int = 4) -> Pair:
    """One volume by a bound few-shot model against the published loop: organ by organ, slice by slice.

    The loop compares each slice with one of the support's and encodes both every time. Ours finds all organs
    at once by the three nearest slices, and has encoded its support when the first volume came.
    """
    from types import SimpleNamespace

    import torch

    from seguro.core.types import Classes
    from seguro.methods.alpnet.config import AlpnetConfig
    from seguro.methods.alpnet.predictor import FewShot
    from seguro.methods.contract import Bound, Support
    from seguro.networks.encoders import build_encoder

    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = ("background", *(f"organ {k}" for k in range(1, organs + 1)))
    classes = Classes(names=names, values=tuple((k,) for k in range(organs + 1)))
    plan = SimpleNamespace(
        slice_axis=0, spacing=(8.0, 1.0, 1.0), classes=classes, fingerprint=SimpleNamespace(shape=size)
    )
    config = AlpnetConfig()
    encoder = build_encoder("residual", in_channels=1, width=config.width, features=config.features)
    predictor = FewShot(encoder, plan, config).eval().requires_grad_(False)
    image, label = torch.randn(1, *size), torch.zeros(size, dtype=torch.int64)
    for k in range(1, organs + 1):
        label[5:35, 50 * k - 40 : 50 * k, 60:190] = k
    query = torch.randn(1, 1, *size)
    bound = Bound(predictor, Support((image,), (label,), classes)).eval()
    one = Classes(names=("background", "organ"), values=((0,), (1,)))

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return bound(query)[0].argmax(0)

    @torch.inference_mode()
    def loop() -> None:
        for k in range(1, organs + 1):
            for z in range(size[0]):
                at = slice(min(max(z, 5), 34), min(max(z, 5), 34) + 1)
                shown = Support((image[:, at],), ((label[at] == k).long(),), one)
                predictor(query[:, :, z : z + 1], shown)[0].argmax(0)

    by = "x".join(map(str, size))
    return Pair(f"{by}, {organs} organs, 128 px", ours, "organ by organ, slice by slice", loop)


def patch() -> Pair:
    """Eight 96-cubed patches from the store against reading the compressed scan and cropping it each time."""
    import tempfile

    import nibabel

    from seguro.core.types import Grid
    from seguro.data.store import Stored

    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    volume = rng.normal(size=(1, 160, 256, 256)).astype(np.float32)
    np.save(folder / "case.npy", volume)
    nibabel.save(nibabel.Nifti1Image(volume[0].astype(np.int16), np.eye(4)), folder / "case.nii.gz")
    stored = np.load(folder / "case.npy", mmap_mode="r")
    nothing = np.zeros((0, 4), np.int32)
    case = Stored(
        "case", stored, None, None, np.ones(1, np.float32), nothing, Grid(volume.shape[1:], np.eye(4))
    )
    corners = iter(rng.integers(0, 64, (1000, 3)))

    def where() -> tuple[slice, slice, slice]:
        z, y, x = next(corners)
        return slice(z, z + 96), slice(y, y + 96), slice(x, x + 96)

    def peer() -> object:
        return np.asarray(nibabel.load(folder / "case.nii.gz").dataobj, dtype=np.float32)[where()]

    return Pair(
        "8 x 96^3 of 160x256x256",
        lambda: [case.patch(where()).shape for _ in range(8)],
        "nibabel .nii.gz, cropped",
        lambda: [np.asarray(peer()).shape for _ in range(8)],
    )


def lattice(tricks: frozenset[str] | None = None) -> Pair:
    """One update of the full-width lattice (forward, loss, backward) against the plain formulation."""
    import torch
    from lattice_plain import plain, without

    from seguro.networks.lattice import Lattice

    torch.set_num_threads(1)
    torch.manual_seed(0)
    strides = [(1, 1, 1), (1, 1, 1), (2, 2, 2)]
    fast = Lattice(in_channels=1, classes=3, strides=strides)
    slow = plain(fast)
    x, truth = torch.randn(1, 1, 32, 48, 32), torch.randint(0, 3, (1, 32, 48, 32))

    def step(network: Lattice) -> torch.Tensor:
        network.zero_grad()
        logits = network(x)
        torch.nn.functional.cross_entropy(logits, truth).backward()
        return logits.detach()

    np.testing.assert_allclose(step(fast), step(slow), atol=1e-4)
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, atol=1e-4)

    def ours() -> None:
        with without(tricks or frozenset()):
            step(fast)

    return Pair("1 patch 32x48x32, width 64", ours, "plain layers", lambda: step(slow).shape)


def federated() -> Pair:
    """One round of the simulator at four sites, all of it but the local training."""
    from federated_round import rounds

    one_round, n = rounds()
    return Pair(f"4 sites, {n / 1e6:.1f} M parameters", one_round)


def startup() -> Pair:
    """The whole process of `seguro --help`."""
    import subprocess

    command = [sys.executable, "-m", "seguro.cli.main", "--help"]
    return Pair("seguro --help", lambda: subprocess.run(command, check=True, capture_output=True))


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
    "few-shot volume": Job(few_shot, clock=time.process_time, repeats=1, limit_s=3, least_ratio=5),
    "federated round without training": Job(federated, clock=time.process_time, repeats=5, limit_s=0.1),
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
        peak_mb(name, peer=False),
        peak_mb(name, peer=True) if pair.peer else None,
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
    rows = {r["job"]: r for r in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}
    print(f"{'job':40} {'ours':>9} {'peer':>9} {'ratio':>6} {'MB':>7} {'peer MB':>8}  peer")
    late = []
    for name in chosen:
        row = measure(name)
        rows[name] = asdict(row)
        job = JOBS[name]
        print(
            f"{name:40} {row.ours_s:8.3f}s {row.peer_s or float('nan'):8.3f}s "
            f"{row.ratio or float('nan'):6.1f} {row.peak_mb:7.0f} {row.peer_peak_mb or float('nan'):8.0f}  "
            f"{row.peer or '-'}"
        )
        if (job.limit_s and row.ours_s > job.limit_s) or (
            job.least_ratio and (row.ratio or 0) < job.least_ratio
        ):
            late.append(
                f"{name}: {row.ours_s} s, ratio {row.ratio}; asked {job.limit_s} s, ratio {job.least_ratio}"
            )
    versions = {
        m: sys.modules[m].__version__ for m in ("numpy", "scipy", "torch", "monai") if m in sys.modules
    }
    ordered = [rows[name] for name in sorted(rows, key=lambda n: [*JOBS, n].index(n))]
    write_json(OUT, {"machine": machine(), "threads": 1, "versions": versions, "rows": ordered})
    print(f"written: {OUT.name}", *late, sep="\n")
    return 1 if late else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(main())
