"""What a prediction costs: seconds, peak memory and operations of each case, in a process of its own.

The peak is what the process needs at most beyond what it holds before the case (the model, the image), so
that systems can be compared; on a GPU it is the device's memory. Operations are counted in a second
prediction, since counting them slows a prediction down.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seguro.core.errors import ConfigError
from seguro.core.memory import peak, reset_peak
from seguro.core.types import Grid, Three, Volume
from seguro.data.formats import write_label
from seguro.data.preprocess import to_planned
from seguro.engine.model import Model, load_model
from seguro.inference.ensemble import Ensemble
from seguro.inference.inputs import Item
from seguro.inference.refine import BLOCKS, refined
from seguro.inference.sliding import padded
from seguro.methods.contract import Whole
from seguro.networks.cost import GIGA
from seguro.networks.superres import SuperRes

Guidance = Literal["own", "zeroed", "exchanged"]
"""Of a pfseg model: its own crops; as if they held nothing; in their place those that the same rule takes of
another case. The last two are controls that show how much guidance contributes."""
WARM: Three = (8, 16, 16)
"""Least voxels of the first call, which is not measured."""


@dataclass(frozen=True)
class System:
    """One way to segment."""

    name: str
    model: Path
    second: Path | None = None
    """Model that does the most uncertain blocks again."""
    blocks: int = BLOCKS
    overlap: float | None = None
    """Of windows; None: the model's own."""
    guidance: Guidance = "own"


@runtime_checkable
class Guided(Protocol):
    """A predictor that is guided by crops."""

    network: SuperRes

    def crops(self, x: Tensor, crop: Three) -> Tensor:
        """Return the crops (N * K, C, *crop) that its rule takes of images (N, C, Z, Y, X)."""


@dataclass(frozen=True)
class CaseCost:
    """What one case took, reading and writing left out."""

    case: str
    seconds: float
    """By the clock."""
    cpu_s: float
    peak_mb: float | None
    """None where the system does not say."""
    gflop: float
    """Two operations per multiplication and addition, of convolutions and products."""


def measure_apart(
    system: System, items: Sequence[Item], out: Path, *, threads: int = 1, device: str = "cpu"
) -> list[CaseCost]:
    """Return `measure` of a fresh process, whose memory nothing else has used."""
    arguments = {"threads": threads, "device": device}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (system, list(items), out), arguments)


def measure(
    system: System, items: Sequence[Item], out: Path, *, threads: int = 1, device: str = "cpu"
) -> list[CaseCost]:
    """Predict the cases into `out/<id>` and return what each cost.

    Args:
        system: what predicts.
        items: the cases.
        out: folder of the label files.
        threads: of torch.
        device: cpu, cuda or cuda:N.

    Raises:
        ConfigError: models that do not go together, or a control of guidance where there is none, or no
            other case.
        DataError: a case that cannot be used.
    """
    torch.set_num_threads(threads)
    model = load_system(system, device)
    _refuse(system, model, len(items))
    ensemble = Ensemble([model], device=device, overlap=system.overlap)
    costs: list[CaseCost] = []
    for index, item in enumerate(items):
        volume = item.read()
        if not costs:
            _warm(ensemble, volume, model)
        with _guided(model, system.guidance, items[index - 1]):
            before = _reset(device)
            wall, cpu = time.perf_counter(), time.process_time()
            label = ensemble.label(volume)
            seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
            after = _peak(device)
            with FlopCounterMode(display=False) as counter:
                ensemble.label(volume)
        peak = None if before is None or after is None else round(after - before, 1)
        gflop = counter.get_total_flops() / GIGA
        costs.append(CaseCost(item.id, round(seconds, 4), round(cpu_s, 4), peak, round(gflop, 4)))
        write_label(out / f"{item.id}{volume.source.suffix}", label, volume.source)
    return costs


def _warm(ensemble: Ensemble, like: Volume, model: Model) -> None:
    """Segment some voxels of noise, so that what is loaded at the first call counts for no case.

    A whole volume must be more than one cell of the network: it is two along the last axis.
    """
    cells, spacing = WARM, zip(model.plan.spacing, like.grid.spacing, strict=True)
    if isinstance(model.predictor.tiling, Whole):
        z, y, x = model.predictor.tiling.multiple
        cells = (z, y, 2 * x)
    least = (ceil(n * planned / own) for n, (planned, own) in zip(cells, spacing, strict=True))
    z, y, x = (max(few, n) for few, n in zip(WARM, least, strict=True))
    noise = np.random.default_rng(0).normal(size=(len(like.array), z, y, x)).astype(np.float32)
    ensemble.label(Volume(noise, Grid((z, y, x), like.grid.affine, like.grid.unit), like.source))


def load_system(system: System, device: str = "cpu") -> Model:
    """Return the model of a system, with its second one where there is one."""
    model = load_model(system.model, device)
    if system.second is None:
        return model
    return refined(model, load_model(system.second, device), blocks=system.blocks)


def refuse_system(system: System, n_cases: int) -> None:
    """Refuse what could not be measured on `n_cases` cases, before anything is.

    Raises:
        ConfigError: models that do not go together, or a control of guidance where there is none, or no
            other case.
    """
    _refuse(system, load_system(system), n_cases)


def _refuse(system: System, model: Model, n_cases: int) -> None:
    if system.guidance == "own":
        return
    _guide(model, system.guidance)
    if system.guidance == "exchanged" and n_cases < 2:
        raise ConfigError(f"guidance of another case: there is only {n_cases} case; use more, or no controls")


def _guide(model: Model, guidance: Guidance) -> tuple[Guided, nn.Module]:
    """Return the predictor and its guidance encoder."""
    predictor: object = model.predictor
    if isinstance(predictor, Guided) and predictor.network.guide is not None:
        return predictor, predictor.network.guide
    raise ConfigError(f"{model.folder}: it has no guidance that could be {guidance}")


@contextmanager
def _guided(model: Model, guidance: Guidance, other: Item) -> Iterator[None]:
    """For a while, let the guidance encoder see something else."""
    if guidance == "own":
        yield
        return
    predictor, guide = _guide(model, guidance)
    if guidance == "zeroed":
        handle = guide.register_forward_hook(_zeroed)
    else:
        image = torch.from_numpy(to_planned(other.read(), model.plan)[0])
        handle = guide.register_forward_pre_hook(_exchanged(predictor, image))
    try:
        yield
    finally:
        handle.remove()


def _zeroed(module: nn.Module, inputs: Any, maps: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(m) for m in maps]


def _exchanged(predictor: Guided, image: Tensor) -> Any:
    """Return a hook that puts the crops of `image` (C, Z, Y, X), of the same rule, in place of the own ones.

    Where their code is joined stays as it was, so that nothing but their content changes.
    """
    multiple = predictor.network.multiple

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        z, y, x = inputs[0].shape[2:]
        least = (-(-n // m) * m for n, m in zip(image.shape[1:], multiple, strict=True))
        whole, _ = padded(image, [max(n, c) for n, c in zip(least, (z, y, x), strict=True)])
        return (predictor.crops(whole[None], (z, y, x)).to(inputs[0]),)

    return hook


def _reset(device: str) -> float | None:
    """Begin a new peak and return the MB in use now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    held = reset_peak()
    return None if held is None else held / 1e6


def _peak(device: str) -> float | None:
    """Return the largest MB in use since the reset."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    most = peak()
    return None if most is None else most / 1e6
