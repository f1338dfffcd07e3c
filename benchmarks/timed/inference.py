"""Predictions: sliding window, whole volumes, few-shot."""

from __future__ import annotations

import math
from functools import partial

from timed import Pair

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
    size: tuple[int, int, int],
    *,
    width: int,
    window: tuple[int, int, int] | None,
    overlap: float = 0.5,
    channels: int = 1,
    classes: int = 2,
    alone: bool = False,
) -> Pair:
    """One volume by PFSeg, deployed, against a residual U-Net of its width in windows, or whole (None).

    Nothing depends on what the volume holds, so it is noise; `alone` leaves the other network out. Operations
    are those of the way each volume is gone through, so with a tail by planes what is computed again counts.
    """
    import torch

    from seguro.core.types import Classes
    from seguro.inference.sliding import window_starts
    from seguro.inference.tiling import planned_slabs
    from seguro.methods.contract import Predictor, Whole, Windows
    from seguro.methods.pfseg.config import PfsegConfig
    from seguro.methods.pfseg.predictor import WholePredictor
    from seguro.networks.cost import GIGA, flops, on_meta
    from seguro.networks.resunet import ResUNet
    from seguro.networks.superres import HALVES, SuperRes

    names = ("background", *(f"class {i}" for i in range(1, classes)))
    task = Classes(names=names, values=tuple((i,) for i in range(classes)))

    class Plain(Predictor):
        def __init__(self) -> None:
            super().__init__()
            self.classes = task
            self.tiling = Windows(window, overlap) if window else Whole((16, 16, 16))
            self.network = ResUNet(in_channels=channels, classes=classes, strides=HALVES, width=width)

        def forward(self, x: torch.Tensor, support: object = None) -> torch.Tensor:
            return self.network(x)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(channels, *size)
    network = SuperRes(in_channels=channels, classes=classes, width=width)
    ours, peer = WholePredictor(network, task, PfsegConfig(width=width)).eval(), Plain().eval()

    @torch.inference_mode()
    def run(predictor: Predictor) -> None:
        for _ in planned_slabs(predictor, x):
            pass

    @torch.no_grad()
    def gflop(predictor: Predictor) -> float:
        copy, like = on_meta(predictor), x.to("meta")
        return round(flops(lambda: list(planned_slabs(copy, like, device="meta"))) / GIGA, 1)

    by = "x".join(map(str, size))
    told = f"{by}, width {width}" + (f", {channels} channels, {classes} classes" if channels > 1 else "")
    if alone:
        return Pair(told, partial(run, ours), gflop=gflop(ours))
    name = "full resolution in one pass"
    if window:
        n = math.prod(len(window_starts(m, w, overlap)) for m, w in zip(size, window, strict=True))
        name = f"{n} windows of {'x'.join(map(str, window))}"
    return Pair(told, partial(run, ours), name, partial(run, peer), gflop(ours), gflop(peer))


def few_shot(size: tuple[int, int, int] = (40, 256, 256), organs: int = 4) -> Pair:
    """One volume by a bound few-shot model against the published loop: organ by organ, slice by slice.

    The loop compares each slice with one of the support's and encodes both every time. Ours finds all organs
    at once by the three nearest slices, and has encoded its support when the first volume came; every volume
    is a new one.
    """
    from types import SimpleNamespace

    import torch

    from seguro.core.types import Classes
    from seguro.methods.alpnet.config import AlpnetConfig
    from seguro.methods.alpnet.memory import Recent
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
    predictor, forgetful = (FewShot(encoder, plan, config).eval().requires_grad_(False) for _ in range(2))
    forgetful._seen = Recent(0)
    image, label = torch.randn(1, *size), torch.zeros(size, dtype=torch.int64)
    for k in range(1, organs + 1):
        label[5:35, 50 * k - 40 : 50 * k, 60:190] = k
    query = torch.randn(1, 1, *size)
    bound = Bound(predictor, Support((image,), (label,), classes)).eval()
    one = Classes(names=("background", "organ"), values=((0,), (1,)))

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return bound(query.add_(0.01))[0].max(0).indices

    @torch.inference_mode()
    def loop() -> None:
        for k in range(1, organs + 1):
            for z in range(size[0]):
                at = slice(min(max(z, 5), 34), min(max(z, 5), 34) + 1)
                shown = Support((image[:, at],), ((label[at] == k).long(),), one)
                forgetful(query[:, :, z : z + 1], shown)[0].max(0)

    by = "x".join(map(str, size))
    return Pair(f"{by}, {organs} organs, 128 px", ours, "organ by organ, slice by slice", loop)
