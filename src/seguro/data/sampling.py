"""Where to cut a training patch, and cutting it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import IGNORE, Three, ThreeF
from seguro.data.store import Stored


def patch_size(patch: tuple[int, ...], slice_axis: int) -> Three:
    """Return the patch as (Z, Y, X), one voxel thick along `slice_axis` when `patch` has two numbers."""
    if len(patch) == 3:
        return patch
    size = list(patch)
    size.insert(slice_axis, 1)
    return size[0], size[1], size[2]


def centre(case: Stored, patch: Three, rng: np.random.Generator, *, p_foreground: float) -> ThreeF:
    """Return a patch centre (z, y, x) in voxels: uniform, or with `p_foreground` on a random class's voxel.

    Uniform centres keep the patch inside the volume where it fits; foreground classes present are equally
    likely.
    """
    use_foreground = rng.random() < p_foreground and len(case.locations) > 0
    if use_foreground:
        present = np.unique(case.locations[:, 0])
        of_class = case.locations[case.locations[:, 0] == rng.choice(present)]
        wanted = of_class[rng.integers(len(of_class)), 1:].astype(float)
    else:
        wanted = np.array([rng.uniform(0, n) for n in case.shape])
    out = []
    for w, p, n in zip(wanted, patch, case.shape, strict=True):
        low, high = (p / 2 - 0.5, n - p / 2 - 0.5) if p < n else ((n - 1) / 2, (n - 1) / 2)
        out.append(float(np.clip(w, low, high)))
    return out[0], out[1], out[2]


def middle_slice(case: Stored, axis: int) -> int:
    """Return the slice in the middle of those that hold a foreground class; of all where none does."""
    found: Sequence[int] = np.unique(case.locations[:, 1 + axis]).tolist()
    return int(found[len(found) // 2]) if found else case.shape[axis] // 2


def at_slice(where: ThreeF, axis: int, index: int) -> ThreeF:
    """Return the same place (z, y, x) in slice `index` along `axis`."""
    moved = list(where)
    moved[axis] = float(index)
    return moved[0], moved[1], moved[2]


def crop(case: Stored, middle: ThreeF, patch: Three) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return image (C, *patch) and label (*patch) around `middle`, (z, y, x) in voxels.

    Beyond the volume the image repeats its edge and the label is IGNORE.
    """
    start = [round(m - (p - 1) / 2) for m, p in zip(middle, patch, strict=True)]
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(start, patch, case.shape, strict=True))
    pads = [(w.start - s, s + p - w.stop) for s, p, w in zip(start, patch, inside, strict=True)]
    image = case.patch((inside[0], inside[1], inside[2]))
    label = None if case.label is None else np.asarray(case.label[inside])
    if any(a or b for a, b in pads):
        image = np.pad(image, [(0, 0), *pads], mode="edge")
        label = None if label is None else np.pad(label, pads, constant_values=IGNORE)
    return image, label
