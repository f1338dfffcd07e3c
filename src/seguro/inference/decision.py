"""From probabilities to labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.core.types import Classes

THRESHOLD = 0.5
"""A voxel belongs to a region where its probability is above this."""


def probabilities(logits: Tensor, classes: Classes) -> Tensor:
    """Return probabilities (classes, ...) of logits: softmax for exclusive classes, sigmoid for regions."""
    return torch.sigmoid(logits) if classes.regions else torch.softmax(logits, dim=0)


def file_values(p: Tensor, classes: Classes) -> NDArray[np.int64]:
    """Return the label (...) as written to files: the likeliest class, or regions painted in their order.

    Ties go to the class that is listed first.

    Args:
        p: (classes, ...) probabilities.
        classes: of the task.
    """
    if not classes.regions:
        table = np.array([v[0] for v in classes.values], dtype=np.int64)
        best = p.max(dim=0).indices  # the first of equals, as by argmax, in a tenth of the time
        return np.asarray(table[best.cpu().numpy()])
    out = np.zeros(tuple(p.shape[1:]), dtype=np.int64)
    inside = (p > THRESHOLD).cpu().numpy()
    for mask, value in zip(inside, classes.paint, strict=True):
        out[mask] = value
    return out


def voxels(label: NDArray[np.integer], classes: Classes) -> dict[str, int]:
    """Return the number of voxels of each foreground class in a label of file values."""
    values, counts = np.unique(label, return_counts=True)
    count = dict(zip(values.tolist(), counts.tolist(), strict=True))
    groups = classes.values if classes.regions else classes.values[1:]
    return {n: sum(count.get(v, 0) for v in g) for n, g in zip(classes.foreground, groups, strict=True)}
