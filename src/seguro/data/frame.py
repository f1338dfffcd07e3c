"""Slices in a square frame of fixed size and fixed intensity limits: what generative networks see.

The frame is a square of `side` planned voxels, whole anatomy at the usual size; it is made `size` pixels
wide by averaging, so every case is shown at one scale. Intensities of the plan between `low` and `high`
become -1 ... 1; what lies beyond is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.errors import ConfigError
from seguro.core.types import Three, ThreeF
from seguro.data.plan import Plan
from seguro.data.sampling import centre, crop, patch_size
from seguro.data.store import Cases, Stored

LIMITS: Mapping[str, tuple[float, float]] = {
    "zscore": (-2.5, 4.5),
    "ct": (-2.5, 4.5),
    "unit": (0.0, 1.0),
}
"""Lowest and highest planned intensity that is shown, by the plan's scheme of a channel."""


@dataclass(frozen=True)
class Frame:
    """How slices of a planned grid become images of a generative network, and back.

    Shape: planned (N, C, side, side) <-> image (N, C, size, size) in [-1, 1].
    """

    axis: int
    """Canonical axis that the slices run along."""
    side: int
    """In voxels of the planned grid."""
    size: int
    """In pixels of the image."""
    low: tuple[float, ...]
    """Planned intensity of each channel that becomes -1."""
    high: tuple[float, ...]
    """Planned intensity of each channel that becomes 1."""

    @property
    def window(self) -> Three:
        """(Z, Y, X) of the frame in the planned grid, one voxel thick."""
        return patch_size((self.side, self.side), self.axis)

    def cut(
        self, case: Stored, rng: np.random.Generator, *, p_foreground: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, int]:
        """Return image (C, size, size), stored label (size, size) or None, and the slice's index.

        Args:
            case: prepared.
            rng: chooses the slice, and the place where the slice is larger than the frame.
            p_foreground: probability of a slice (and place) that shows a foreground class.
        """
        return self._at(case, centre(case, self.window, rng, p_foreground=p_foreground))

    def middle(self, case: Stored, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, int]:
        """Return image, label and index as `cut` does, of slice `index`, in the middle of the plane."""
        where = [(n - 1) / 2 for n in case.shape]
        where[self.axis] = float(index)
        return self._at(case, (where[0], where[1], where[2]))

    def places(self, shape: Sequence[int], index: int) -> list[ThreeF]:
        """Return the middles of frames that together show all of slice `index` of a case of `shape`.

        One where the slice is no larger than the frame; else they overlap by half at least.
        """
        along = []
        for axis, n in enumerate(shape):
            wide = self.window[axis]
            if axis == self.axis:
                along.append([float(index)])
            elif n <= wide:
                along.append([(n - 1) / 2])
            else:
                count = math.ceil(2 * (n - wide) / wide) + 1
                along.append([float(m) for m in np.linspace((wide - 1) / 2, n - 1 - (wide - 1) / 2, count)])
        return [(z, y, x) for z in along[0] for y in along[1] for x in along[2]]

    def at(self, case: Stored, where: ThreeF) -> NDArray[np.float32]:
        """Return the image (C, size, size) of the frame whose middle is `where`."""
        return self._at(case, where)[0]

    def some(self, cases: Cases, which: Sequence[int], most: int) -> NDArray[np.float32]:
        """Return up to `most` images (n, C, size, size) of the cases of these numbers, evenly over them all.

        Of a slice larger than the frame there are several, as training may show any part of it.
        """
        shapes = {i: cases[i].shape for i in which}
        places = [
            (i, at) for i in which for k in range(shapes[i][self.axis]) for at in self.places(shapes[i], k)
        ]
        chosen = evenly(len(places), most)
        out = np.zeros((len(chosen), len(self.low), self.size, self.size), np.float32)
        for row, j in enumerate(chosen):
            i, at = places[j]
            out[row] = self.at(cases[i], at)
        return out

    def _at(self, case: Stored, where: ThreeF) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, int]:
        image, label = crop(case, where, self.window)
        shown = self.shown(torch.from_numpy(image.reshape(1, -1, self.side, self.side)))[0].numpy()
        index = round(where[self.axis])
        return shown, None if label is None else self.labels(label), index

    def shown(self, planned: Tensor) -> Tensor:
        """Return images (N, C, size, size) of planned slices (N, C, side, side)."""
        low, high = self._limits(planned)
        image = ((planned - low) / (high - low) * 2 - 1).clamp(-1, 1)
        return self._resized(image, self.size)

    def labels(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the label (size, size) of a planned slice, of as many values in any shape; the nearest."""
        plane = torch.from_numpy(np.array(label).reshape(1, 1, self.side, self.side))
        small: NDArray[np.uint8] = F.interpolate(plane, (self.size,) * 2, mode="nearest-exact")[0, 0].numpy()
        return small

    def planned(self, image: Tensor) -> Tensor:
        """Return planned slices (N, C, side, side) of images (N, C, size, size)."""
        low, high = self._limits(image)
        return self._resized((image + 1) / 2 * (high - low) + low, self.side)

    def enlarged(self, scores: Tensor) -> Tensor:
        """Return scores (N, n, size, size) on the planned voxels of the frame, (N, n, side, side)."""
        return self._resized(scores, self.side)

    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low).view(-1, 1, 1), like.new_tensor(self.high).view(-1, 1, 1)

    def _resized(self, x: Tensor, size: int) -> Tensor:
        if x.shape[-1] == size:
            return x
        return F.interpolate(x, (size, size), mode="bilinear", antialias=size < x.shape[-1])


def frame_of(
    plan: Plan, size: int, *, side: int | None = None, limits: tuple[float, float] | None = None
) -> Frame:
    """Return the frame of a 2-D plan.

    Args:
        plan: gives axis, usual field of view and scheme of the channels.
        size: of the image in pixels.
        side: of the frame in planned voxels; None for the longer side of the median case.
        limits: planned intensities that become -1 and 1; None for those of each channel's scheme.

    Raises:
        ConfigError: a channel of scheme "none" without limits.
    """
    unknown = [c.name for c in plan.channels if c.scheme not in LIMITS]
    if limits is None and unknown:
        raise ConfigError(
            f"channels {', '.join(unknown)} are used as stored, so their range is not known: say which "
            "intensities are black and white with --set limits=[LOW,HIGH]"
        )
    bounds = [limits or LIMITS[c.scheme] for c in plan.channels]
    wide = max(plan.fingerprint.shape[a] for a in plan.plane_axes)
    low, high = tuple(b[0] for b in bounds), tuple(b[1] for b in bounds)
    return Frame(plan.slice_axis, side or wide, size, low, high)


def z_bin(index: int, depth: int, bins: int) -> int:
    """Return the bin 0 ... bins - 1 of slice `index` among `depth`."""
    return min(index * bins // depth, bins - 1)


def evenly(n: int, most: int) -> list[int]:
    """Return up to `most` of n indices, evenly over all of them."""
    found: list[int] = np.linspace(0, n - 1, min(most, n)).round().astype(int).tolist()
    return found
