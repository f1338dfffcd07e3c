"""The whole volume in one pass, padded to what the network divides by.

A network whose last layers work at a higher resolution than the rest may offer them as its tail; where they
would need much memory they are run a few planes at a time, with the same result (`networks/tail.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.core.memory import GIB, main_memory
from seguro.core.types import ThreeF
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.inference.forward import Autocast, Forward
from seguro.inference.sliding import Slab, as_tensor, padded
from seguro.methods.contract import Predictor, Support, Whole
from seguro.networks.superres import Tail
from seguro.networks.tail import by_planes, scale_of, tail_bytes

TAIL_BYTES = 2 << 30
"""A tail that would hold more than this at once is run by planes."""

SAME = 0.01
"""Relative difference of spacings that are taken for equal."""


@runtime_checkable
class Tailed(Protocol):
    """A predictor whose forward pass is `tail(trunk(x))` for images whose size is its tiling's multiple."""

    @property
    def tail(self) -> Tail:
        """The last layers, from low to high resolution."""

    def trunk(self, x: Tensor) -> Tensor:
        """Return what the tail takes of images (N, C, Z, Y, X)."""


@runtime_checkable
class Weighed(Protocol):
    """A predictor that knows what memory it needs."""

    def forward_bytes(self, shape: Sequence[int]) -> int:
        """Return about how many bytes an image (C, Z, Y, X) takes at its peak, in float32."""


@runtime_checkable
class Restricted(Protocol):
    """A predictor that does not take volumes of every size."""

    def refuse_size(self, size: Sequence[int]) -> None:
        """Raise a DataError if it cannot segment a volume of `size` (Z, Y, X) in the planned grid."""


def refuse_sizes(predictor: Predictor, cases: Cases) -> None:
    """Refuse labelled cases of a size that the predictor would refuse, before it is trained.

    Raises:
        DataError: such a case, by name.
    """
    if not isinstance(predictor, Restricted):
        return
    for index in cases.labelled:
        case = cases[index]
        try:
            predictor.refuse_size(case.shape)
        except DataError as error:
            raise DataError(f"validation case {case.id}: {error}") from error


def slabs(
    predictor: Predictor,
    x: Tensor | NDArray[np.float32],
    tiling: Whole,
    *,
    axis: int = 0,
    flips: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: Autocast | None = None,
    tail_limit: int = TAIL_BYTES,
) -> Iterator[Slab]:
    """Yield the logits of all of x, padded with its edge to a multiple and cropped again: mostly one slab.

    Along axis 0, without gradients and flips, the blocks of a tail run by planes are handed on one by one.

    Args:
        predictor: called once on (1, C, *padded size).
        x: (C, Z, Y, X) float32 in the planned grid.
        tiling: what its size must be a multiple of.
        axis: canonical axis along which slabs are cut.
        flips: canonical axes mirrored at test time; the probabilities of all classes are then held at once.
        device: where the network runs and the slabs lie.
        autocast: context of the calls.
        tail_limit: bytes above which a tail is run by planes.

    Yields:
        (start, stop, logits (classes, Z, Y, X) float32, `stop - start` long along `axis`).

    Raises:
        ConfigError: the predictor does not keep the size of its input.
        DataError: a volume that this machine's free memory does not hold.
    """
    image = as_tensor(x)
    shape = image.shape[1:]
    size = [-(-n // m) * m for n, m in zip(shape, tiling.multiple, strict=True)]
    image, before = padded(image, size)
    box = tuple(slice(f, f + n) for f, n in zip(before, shape, strict=True))
    expected = (predictor.classes.n, *size)
    if isinstance(predictor, Weighed) and torch.device(device).type == "cpu":
        _refuse_too_large(predictor.forward_bytes((len(image), *size)), shape)
    if isinstance(predictor, Tailed) and not torch.is_grad_enabled():
        if axis == 0 and not flips:
            blocks = _tailed(predictor, image.to(device), autocast or nullcontext, tail_limit)
            yield from _cropped(blocks, expected, before[0], shape[0], box[1:])
            return
        predictor = _InParts(predictor, tail_limit)
    logits = Forward(predictor, device=device, flips=flips, autocast=autocast)(image[None])[0]
    _check(tuple(logits.shape), expected)
    yield 0, shape[axis], logits[(slice(None), *box)]


class _InParts(Predictor):
    """A predictor with a tail, which is run by planes where it would hold more than `limit` bytes at once."""

    def __init__(self, inner: Predictor, limit: int) -> None:
        super().__init__()
        self.inner = inner
        self.classes = inner.classes
        self.tiling = inner.tiling
        self._limit = limit

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return logits (1, n, Z, Y, X) of x (1, C, Z, Y, X), a multiple in size."""
        inner: Predictor = self.inner
        if not isinstance(inner, Tailed):
            raise TypeError(f"{type(inner).__name__} has no tail")
        return torch.cat(list(_tailed(inner, x[0], nullcontext, self._limit)), dim=1)[None]


def refuse_low_resolution(predictor: Predictor, spacing: ThreeF, plan: Plan) -> None:
    """Refuse an image that has no more detail than the network's own low resolution.

    Such a network lowers the resolution itself and takes its guidance from the full one. Thick slices alone
    are not refused, since what lies in them is finer; novelty flags say that they are unlike the training.

    Args:
        predictor: any; only those with a tail, alone or inside of another, are particular.
        spacing: (z, y, x) of the image, in the plan's unit.
        plan: of the model.

    Raises:
        DataError: along every lowered axis, voxels as large as those of the low resolution and larger than in
            any training case.
    """
    inner = next((m for m in predictor.modules() if isinstance(m, Predictor) and isinstance(m, Tailed)), None)
    if inner is None:
        return
    scale, seen = scale_of(inner.tail), plan.fingerprint.spacing
    lowered = [axis for axis in range(3) if scale[axis] > 1]
    low = [scale[axis] * plan.spacing[axis] for axis in lowered]
    coarse = [
        spacing[axis] >= size * (1 - SAME) and spacing[axis] > seen[axis].high * (1 + SAME)
        for axis, size in zip(lowered, low, strict=True)
    ]
    if coarse and all(coarse):
        raise DataError(
            f"the image has voxels of {_sizes(spacing[axis] for axis in lowered)} {plan.unit} along "
            f"{', '.join('zyx'[axis] for axis in lowered)}, no finer than the model's own low resolution of "
            f"{_sizes(low)} (it was trained at {_sizes(plan.spacing[axis] for axis in lowered)}): the "
            "full-resolution image is required, since guidance is cut from it; give that one, or use a "
            "model trained on such images"
        )


def _refuse_too_large(needed: int, shape: Sequence[int]) -> None:
    free = main_memory()
    if free is not None and needed > free.available:
        raise DataError(
            f"{' x '.join(map(str, shape))} voxels of the planned grid take about {needed / GIB:.1f} GiB at "
            f"once, of which {free.available / GIB:.1f} are free: free some, crop the image, or use a model "
            "that works in windows"
        )


def _sizes(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def _tailed(predictor: Tailed, image: Tensor, autocast: Autocast, limit: int) -> Iterator[Tensor]:
    """Yield the logits (classes, planes, Y, X) from the first plane to the last."""
    with autocast():
        features = predictor.trunk(image[None])
        large = tail_bytes(predictor.tail, features) > limit
        blocks = by_planes(predictor.tail, features) if large else iter((predictor.tail(features),))
    while True:
        with autocast():  # not kept while the caller works on a block
            block = next(blocks, None)
        if block is None:
            return
        yield block[0].float()


def _cropped(
    blocks: Iterator[Tensor], expected: tuple[int, ...], first: int, n: int, plane: tuple[slice, ...]
) -> Iterator[Slab]:
    """Yield blocks of planes without the padding."""
    at = 0
    for block in blocks:
        stop = at + block.shape[1]
        _check((block.shape[0], max(stop, expected[1]), *block.shape[2:]), expected)
        a, b = max(at, first), min(stop, first + n)
        if b > a:
            yield a - first, b - first, block[(slice(None), slice(a - at, b - at), *plane)]
        at = stop
    _check((expected[0], at, *expected[2:]), expected)


def _check(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ConfigError(
            f"the predictor returned {found} (classes, z, y, x), expected {expected}; a network must keep "
            "the size of its input"
        )
