"""What is attacked of a case: one patch, as published, or the whole volume through its blended windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seguro.attacks.victim import Logits, Truth
from seguro.core.types import IGNORE, Classes, Three
from seguro.inference.tiling import planned_slabs
from seguro.methods.contract import Predictor, Slices, Support, Whole

Center = Literal["foreground", "middle"]


@dataclass(frozen=True)
class Subject:
    """An input of the model with its truth, both with a first axis of one sample."""

    x: Tensor
    """(1, C, Z, Y, X); one voxel along the slice axis for a patch of a slice-wise model."""
    truth: Truth
    logits: Logits
    """Differentiable, for inputs of this size."""


def patch_subject(
    predictor: Predictor,
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    annotated: NDArray[np.float32],
    *,
    center: Center = "foreground",
    device: torch.device | str = "cpu",
) -> Subject:
    """Return one window of the predictor's own size (section 5.2).

    Args:
        predictor: in evaluation mode, on `device`.
        image: (C, Z, Y, X) in the planned grid.
        label: (Z, Y, X) stored labels.
        annotated: (foreground,) 1 where the class was looked for.
        center: "foreground": the centre of mass of the foreground, which needs the truth, as published.
            "middle": of the volume.
        device: where the model is.
    """
    size = window_of(predictor, image.shape[1:])
    at = [(n - 1) / 2 for n in label.shape]
    foreground = (label != 0) & (label != IGNORE)
    if center == "foreground" and foreground.any():
        legal = _legal(foreground, size)
        at = list(ndimage.center_of_mass(legal if legal.any() else foreground))
    start = [
        min(max(round(a - (p - 1) / 2), 0), max(n - p, 0))
        for a, p, n in zip(at, size, label.shape, strict=True)
    ]
    box = tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))
    x, y = image[(slice(None), *box)], label[box]
    behind = [(0, p - n) for p, n in zip(size, y.shape, strict=True)]
    x = np.pad(x, [(0, 0), *behind], mode="edge")
    y = np.pad(y, behind, constant_values=IGNORE)
    axis = predictor.tiling.axis if isinstance(predictor.tiling, Slices) else None

    def logits(x: Tensor) -> Tensor:
        if axis is None or axis == 0:
            return cast(Tensor, predictor(x))
        return cast(Tensor, predictor(x.movedim(axis + 2, 2)).movedim(2, axis + 2))

    return _subject(x, y, annotated, predictor.classes, logits, device)


def volume_subject(
    predictor: Predictor,
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    annotated: NDArray[np.float32],
    *,
    device: torch.device | str = "cpu",
) -> Subject:
    """Return the whole volume, seen through the windows or slices that prediction blends.

    A perturbation is shared where windows overlap. Each window is computed again in the backward pass, so
    that memory stays that of one window's activations, all windows' inputs (eight times the image at an
    overlap of one half) and the volume's logits. Arguments as in `patch_subject`.
    """
    again = Again(predictor)
    axis = predictor.tiling.axis if isinstance(predictor.tiling, Slices) else 0

    def logits(x: Tensor) -> Tensor:
        parts = []
        for sample in x:
            slabs = planned_slabs(again, sample, axis=axis, device=device)
            parts.append(torch.cat([values for _, _, values in slabs], dim=axis + 1))
        return torch.stack(parts)

    return _subject(image, label, annotated, predictor.classes, logits, device)


class Again(Predictor):
    """A predictor whose activations are not kept but computed again in the backward pass."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.classes, self.tiling = predictor.classes, predictor.tiling
        self._call: Callable[[Tensor], Tensor] = predictor  # not a submodule: it keeps its own mode

    def forward(self, x: Tensor, support: Support | None = None) -> Tensor:
        """Return the predictor's logits."""
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, checkpoint(self._call, x, use_reentrant=False))
        return self._call(x)


def window_of(predictor: Predictor, shape: tuple[int, ...]) -> Three:
    """Return the window (Z, Y, X) in which the predictor sees a volume of `shape`."""
    tiling = predictor.tiling
    if isinstance(tiling, Whole):
        z, y, x = (-(-n // m) * m for n, m in zip(shape, tiling.multiple, strict=True))
        return z, y, x
    size = list(tiling.size)
    if isinstance(tiling, Slices):
        size.insert(tiling.axis, 1)
    return size[0], size[1], size[2]


def _legal(foreground: NDArray[np.bool_], size: Three) -> NDArray[np.bool_]:
    """Return the foreground voxels around which a window lies inside the volume."""
    inside = np.zeros_like(foreground)
    box = tuple(
        slice(p // 2, max(n - (p - 1) // 2, p // 2 + 1)) for p, n in zip(size, foreground.shape, strict=True)
    )
    inside[box] = foreground[box]
    return inside


def _subject(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    annotated: NDArray[np.float32],
    classes: Classes,
    logits: Logits,
    device: torch.device | str,
) -> Subject:
    truth = Truth(
        torch.from_numpy(np.ascontiguousarray(label))[None].to(device),
        torch.from_numpy(np.array(annotated))[None].to(device),
        classes,
    )
    return Subject(torch.from_numpy(np.array(image, np.float32))[None].to(device), truth, logits)
