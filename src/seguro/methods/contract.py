"""What a method is, what it is lent, and what it hands over.

The only coupling between methods and everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from seguro.core.errors import DataError
from seguro.core.types import Classes, Three
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.data.superpixels import Superpixels

SHARE = "share."
"""An update may log `share.<class>`: how much of the unlabelled patches it finds the class on, over what the
class takes of the labelled ones. The loop notes where that is low: a class that guesses have lost."""

Build = Callable[..., nn.Module]
"""Builds a network by its table name: `build(name, in_channels=..., classes=..., plan=..., **options)`."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of the data and whether it segments."""

    dims: tuple[int, ...] = (2, 3)
    whole: bool = False
    """Whether it sees whole cases: a plan made for it keeps the data's voxels, however small a patch is, and
    an update has one case unless another batch is asked for."""
    labels: Literal["none", "some", "all"] = "all"
    """Which labels `draw` may see: none, those of labelled cases (others None), or only labelled cases are
    given."""
    unlabelled: Literal["unused", "helps", "needed"] = "unused"
    """What unlabelled cases are to it; where there are none, training says so or (needed) is refused."""
    segments: bool = True
    monitor: str | None = "max:dice"
    """Direction and name of the score that selects the model: one of the validation ("dice", "dice.<class>")
    or one that `update` returns ("min:loss", its mean since the last look); None keeps the last."""
    group: int = 1
    """Consecutive slots that are mixed with each other and therefore never split over ranks."""
    support: bool = False
    """Whether its predictor segments what annotated examples show (`Support`) and nothing without them."""
    regions: Superpixels | None = None
    """Superpixels that `draw` finds as `Stored.regions`; of an instance, as its config says."""
    scored: Callable[[str], bool] | None = None
    """Whether validation cases of a site may choose the model; None: those of all sites may."""
    begins: tuple[str, ...] = ()
    """Modules that are no use untrained: the run to start from (`--init`) must bring them whole."""

    def batch(self, planned: int) -> int:
        """Return the samples of an update by default: the plan's in whole groups, or one whole case."""
        return self.group if self.whole else -(-planned // self.group) * self.group


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over training; `progress` = updates done / updates planned.

    poly: (1 - progress)^power. cosine: half a cosine to zero. constant: 1. plateau: x `factor` after
    `patience` validations without improvement. step: x `factor` every `every` updates. The first `warmup` (a
    fraction of training) rises linearly in all of them.
    """

    kind: Literal["constant", "poly", "cosine", "step", "plateau"] = "constant"
    power: float = 0.9
    warmup: float = 0.0
    factor: float = 0.2
    patience: int = 30
    every: int = 1000


@dataclass(frozen=True)
class Optim:
    """One optimiser with what the loop does at its step."""

    optimiser: torch.optim.Optimizer
    schedule: Schedule = Schedule()
    average: Mapping[str, float] = field(default_factory=dict)
    """Module name -> decay of its exponential moving average, updated after this optimiser's step."""
    clip: float | None = None
    """Largest gradient norm over this optimiser's parameters."""


@dataclass(frozen=True)
class Windows:
    """Predict in overlapping windows of `size` (Z, Y, X) with Gaussian weights."""

    size: Three
    overlap: float = 0.5


@dataclass(frozen=True)
class Slices:
    """Predict slice by slice along canonical `axis`.

    The predictor sees (N, C, 1, A, B), windows of `size` in plane.
    """

    axis: int
    size: tuple[int, int]
    overlap: float = 0.5


@dataclass(frozen=True)
class Whole:
    """Predict the whole volume in one pass, padded to a multiple of `multiple` (Z, Y, X)."""

    multiple: Three


Tiling = Windows | Slices | Whole


@dataclass(frozen=True)
class Support:
    """Annotated examples for few-shot prediction, in the planned grid; shots may differ in size.

    images: one (C, Z, Y, X) float32 per shot. labels: one (Z, Y, X) integer class index per shot, IGNORE
    where nothing was annotated, such as the other slices of a scan of which few were. classes: exclusive,
    the background first.

    Raises:
        DataError: no shot, or an image and a label that do not fit together.
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    classes: Classes

    def __post_init__(self) -> None:
        sizes = [(tuple(i.shape[1:]), tuple(k.shape)) for i, k in zip(self.images, self.labels, strict=False)]
        if not sizes or len(self.images) != len(self.labels) or any(a != b or len(a) != 3 for a, b in sizes):
            raise DataError(
                f"support of {len(self.images)} image(s) and {len(self.labels)} label(s) of sizes {sizes}: "
                "expected at least one, and for each image one label (Z, Y, X) on the same grid"
            )


class Predictor(nn.Module):
    """What is deployed: `model/` is its state_dict and a JSON file, nothing else.

    Subclasses set `classes` and `tiling` and define `forward(x, support=None)`: x (N, C, Z, Y, X) float32 in
    the planned grid -> logits (N, classes.n, Z, Y, X), differentiable in x.
    """

    classes: Classes
    tiling: Tiling
    ways: tuple[str, ...] = ()
    """Names of the ways in which it can segment an image, where there are several."""
    way: str | None = None
    """One of `ways`; None for that of the run."""

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, classes.n, Z, Y, X) for images (N, C, Z, Y, X)."""
        raise NotImplementedError


class Bound(Predictor):
    """A few-shot predictor with its support: from then on a predictor like any other.

    Args:
        predictor: of a method with `needs.support`.
        support: what it is to find; its classes are those of the predictions.
    """

    def __init__(self, predictor: Predictor, support: Support) -> None:
        super().__init__()
        self.predictor = predictor
        self.classes = support.classes
        self.tiling = predictor.tiling
        for i, (image, label) in enumerate(zip(support.images, support.labels, strict=True)):
            self.register_buffer(f"image{i}", image, persistent=False)  # so that they move with the weights
            self.register_buffer(f"label{i}", label, persistent=False)
        self._shots = len(support.images)

    @property
    def support(self) -> Support:
        """The support, on the device of the predictor."""
        shots = range(self._shots)
        images = tuple(self.get_buffer(f"image{i}") for i in shots)
        return Support(images, tuple(self.get_buffer(f"label{i}") for i in shots), self.classes)

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (N, classes.n, Z, Y, X) of x (N, C, Z, Y, X), by `support` where one is given."""
        return self.predictor(x, support or self.support)  # type: ignore[no-any-return]


class Run(Protocol):
    """Lent by the loop to `update`: the only way to devices, ranks, precision and randomness."""

    update: int
    updates: int
    epoch: int
    world: int
    slots: range
    """Batch slots of this rank; slot numbers are global, so randomness keyed by slot does not depend on
    ranks."""
    averaged: nn.ModuleDict
    """Moving averages of the modules named in `Optim.average`."""

    def rng(self, *key: int | str) -> torch.Generator:
        """Return a generator, a function of (seed, update, *key), the same on every rank; never stored."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run at the run's precision."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of the (scaled) loss; any number of times before a step."""

    def grad(self, y: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
        """Return the unscaled gradient of y.sum() with respect to x."""

    def step(self, *names: str) -> bool:
        """Unscale, mean over ranks, clip, check, optimise, schedule, average, then zero ALL gradients.

        With no names every optimiser steps. Returns False when a gradient was not finite and the step was
        skipped.
        """

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of x over ranks, detached: for denominators and logs, not for losses."""


Sample = Any
"""A frozen dataclass of arrays or tensors without batch axis.

The loop stacks them field by field into a Batch."""
Batch = Any


@runtime_checkable
class Method(Protocol):
    """How a network learns. No inheritance between methods; one folder and one table row each."""

    Config: ClassVar[type[BaseModel]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Preset name -> config fields it sets; "paper" is always there, and empty when the defaults are the
    paper's."""
    needs: ClassVar[Needs]
    modules: nn.ModuleDict

    def __init__(self, config: Any, plan: Plan, build: Build) -> None: ...

    def optimisers(self) -> dict[str, Optim]:
        """Return the optimisers by name; called once, when the modules are on their device."""

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Sample:
        """Return one sample; pure: the same cases, slot and generator state give the same sample."""

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one update and return what to log; backward and step only through `run`."""

    def state(self) -> dict[str, Tensor]:
        """Return what is neither module nor optimiser, by name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, on the run's device; `{}` on a fresh method changes nothing."""

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """Return the deployable predictor made of `modules` (raw or averaged); only if `needs.segments`.

        Its submodules are named as in `modules`, so that another run can start from its weights (`--init`).
        """

    def shared(self) -> list[str]:
        """Return names in `modules.state_dict()`, buffers included, that may leave a site.

        They hold for the moving averages too: where a module is averaged, its average travels with it.
        """


@runtime_checkable
class Noting(Protocol):
    """What a method offers that has something to tell before it trains."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for whoever started the training; they stay with the run."""


@runtime_checkable
class Maker(Protocol):
    """What a method that makes images offers besides: training writes previews and audits what it makes."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of what it can be asked for."""

    def made(self, modules: nn.ModuleDict, domain: int, n: int, rng: torch.Generator) -> Tensor:
        """Return n slices (n, C, Y, X) in [-1, 1] of the domain of this number, made by `modules`."""

    def seen(self, cases: Cases, domain: int, most: int) -> NDArray[np.float32]:
        """Return real slices (n, C, Y, X) in [-1, 1] of a domain, up to `most`, evenly over its cases."""

    def deployed(self, modules: nn.ModuleDict) -> nn.ModuleDict:
        """Return the modules that make images; what only trained them stays in the checkpoints."""


def to_deploy(method: Method, modules: nn.ModuleDict) -> nn.Module:
    """Return what `model/` holds of trained modules: the predictor, or what makes images."""
    if method.needs.segments:
        return method.predictor(modules)
    return method.deployed(modules) if isinstance(method, Maker) else modules


def collate(samples: Sequence[Sample]) -> Batch:
    """Return a dataclass of the same type whose fields are stacked along a new first axis.

    Arrays become tensors; None fields stay None when they are None in every sample.
    """
    from dataclasses import fields

    kind = type(samples[0])
    stacked: dict[str, Any] = {}
    for f in fields(kind):
        parts = [getattr(s, f.name) for s in samples]
        if all(p is None for p in parts):
            stacked[f.name] = None
        elif isinstance(parts[0], Tensor):
            stacked[f.name] = torch.stack(parts)
        else:
            stacked[f.name] = torch.from_numpy(np.stack([np.asarray(p) for p in parts]))
    return kind(**stacked)
