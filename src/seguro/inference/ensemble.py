"""One or several models as one: probabilities of an image on its own grid, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Grid, Three, Volume
from seguro.data.preprocess import to_planned
from seguro.engine.model import Model
from seguro.inference.decision import file_values, probabilities
from seguro.inference.forward import Autocast
from seguro.inference.restore import block_depth, native
from seguro.inference.sliding import Slab
from seguro.inference.tiling import planned_slabs, slab_axis, with_overlap
from seguro.inference.whole import refuse_low_resolution


class Ensemble:
    """Models of the same task; their probabilities are averaged on the image's own grid.

    Each model works on its own planned grid. They advance together over equal blocks of native planes,
    so that an ensemble needs no more memory than its models.

    Args:
        models: with equal classes and channels.
        device: where the models are.
        flips: whether to average over the mirrored axes that each model's plan allows.
        overlap: of windows, instead of each model's own.
        batch: windows or slices per call; None for the default.
        autocast: context of the calls.

    Raises:
        ConfigError: none, other classes or channels, slices along different axes, an impossible overlap.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        device: torch.device | str = "cpu",
        flips: bool = False,
        overlap: float | None = None,
        batch: int | None = None,
        autocast: Autocast | None = None,
    ) -> None:
        if not models:
            raise ConfigError("no model given; name at least one run or model folder")
        for other in models[1:]:
            _same_task(models[0], other)
        self.models = tuple(models)
        self.classes = models[0].plan.classes
        self.channels = tuple(c.name for c in models[0].plan.channels)
        self._device = torch.device(device)
        self._flips = flips
        self._overlap = overlap
        self._batch = batch
        self._autocast = autocast
        self._tilings = [with_overlap(m.predictor.tiling, overlap) for m in models]
        slab_axis(self._tilings, (1, 1, 1))  # refuses slice axes that differ, before any file is read

    def probabilities(self, volume: Volume) -> tuple[int, Iterator[Slab]]:
        """Return the slab axis and an iterator of (start, stop, p), p (classes, Z, Y, X) on the native grid.

        Blocks touch and cover the grid along the axis; run it under `torch.inference_mode()` unless gradients
        are wanted.

        Raises:
            DataError: another number of channels than planned, or voxels that cannot be used.
        """
        found = volume.array.shape[0]
        if found != len(self.channels):
            raise DataError(
                f"the image has {found} channel(s) where the model expects {len(self.channels)} "
                f"({', '.join(self.channels)}); give all channels of a case, in this order"
            )
        axis = slab_axis(self._tilings, volume.grid.shape)
        planned: dict[str, tuple[NDArray[np.float32], Grid]] = {}
        for model in self.models:
            refuse_low_resolution(model.predictor, volume.grid.spacing, model.plan)
            if model.plan.preprocessing_hash not in planned:
                planned[model.plan.preprocessing_hash] = to_planned(volume, model.plan)
        depth = block_depth(self.classes.n, volume.grid.shape, axis)
        parts = [
            self._one(m, *planned[m.plan.preprocessing_hash], volume.grid.shape, axis, depth)
            for m in self.models
        ]
        return axis, _mean(parts)

    def label(self, volume: Volume) -> NDArray[np.unsignedinteger]:
        """Return the label (Z, Y, X) of file values on the image's own canonical grid."""
        out = empty_label(self, volume.grid.shape)
        with torch.inference_mode():
            axis, blocks = self.probabilities(volume)
            for start, stop, p in blocks:
                out[along(axis, start, stop)] = file_values(p, self.classes)
        return out

    def _one(
        self, model: Model, image: NDArray[np.float32], grid: Grid, own: Three, axis: int, depth: int
    ) -> Iterator[Slab]:
        slabs = planned_slabs(
            model.predictor,
            image,
            axis=axis,
            device=self._device,
            batch=self._batch,
            flips=model.plan.mirror if self._flips else (),
            overlap=self._overlap,
            autocast=self._autocast,
        )
        p = ((a, b, probabilities(logits, self.classes)) for a, b, logits in slabs)
        return native(p, grid.shape, own, axis=axis, depth=depth)


def empty_label(ensemble: Ensemble, shape: Three) -> NDArray[np.unsignedinteger]:
    """Return zeros (Z, Y, X) of the smallest unsigned type that holds every file value."""
    classes = ensemble.classes
    values = classes.paint if classes.regions else [v[0] for v in classes.values]
    return np.zeros(shape, dtype=np.min_scalar_type(max(values)))


def along(axis: int, start: int, stop: int) -> tuple[slice, slice, slice]:
    """Return the index of planes start..stop of a (Z, Y, X) array."""
    box = [slice(None)] * 3
    box[axis] = slice(start, stop)
    return box[0], box[1], box[2]


def _mean(parts: Sequence[Iterator[Slab]]) -> Iterator[Slab]:
    """Yield the mean of equal blocks."""
    for blocks in zip(*parts, strict=True):
        start, stop, first = blocks[0]
        total: Tensor = first
        for _, _, p in blocks[1:]:
            total = total + p
        yield start, stop, total / len(blocks) if len(blocks) > 1 else total


def _same_task(first: Model, other: Model) -> None:
    for what, a, b in (
        ("classes", first.plan.classes.names, other.plan.classes.names),
        ("label values", first.plan.classes.values, other.plan.classes.values),
        ("regions", (first.plan.classes.regions, first.plan.classes.paint),
         (other.plan.classes.regions, other.plan.classes.paint)),
        ("channels", tuple(c.name for c in first.plan.channels), tuple(c.name for c in other.plan.channels)),
    ):  # fmt: skip
        if a != b:
            raise ConfigError(
                f"{other.folder} and {first.folder} cannot be averaged: their {what} are {b} and {a}; "
                "an ensemble needs models of one task"
            )
