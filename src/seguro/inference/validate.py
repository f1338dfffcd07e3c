"""Scores a predictor on stored cases, on the planned grid: what selects a model while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from seguro.core.types import IGNORE, Classes
from seguro.data.store import Cases
from seguro.engine.runtime import Runtime
from seguro.inference.predict import planned_slabs
from seguro.methods.contract import Predictor

MAX_CASES = 16
"""Validation cases looked at while training, spread evenly over the list."""


def dice_validation(cases: Cases, runtime: Runtime) -> Callable[[Predictor], Mapping[str, float]]:
    """Return a function that gives the mean Dice over cases and classes, and per class as "dice.<class>".

    Cases are shared out over ranks. A class counts where it is annotated and present in truth or prediction.
    """
    chosen = _spread(len(cases.labelled), MAX_CASES)
    mine = [cases.labelled[i] for i in chosen][runtime.rank :: runtime.world]

    def validate(predictor: Predictor) -> Mapping[str, float]:
        names = predictor.classes.foreground
        sums = np.zeros((len(names), 2))
        for index in mine:
            case = cases[index]
            whole = (slice(None), slice(None), slice(None))
            label = decide(predictor, case.patch(whole), runtime)
            dice = class_dice(np.asarray(case.label), label, predictor.classes)
            use = (case.annotated > 0) & np.isfinite(dice)
            sums[use, 0] += dice[use]
            sums[use, 1] += 1
        total = runtime.total(torch.from_numpy(sums).to(runtime.device)).cpu().numpy()
        per_class = total[:, 0] / np.maximum(total[:, 1], 1)
        seen = total[:, 1] > 0
        mean = float(per_class[seen].mean()) if seen.any() else 0.0
        return {"dice": mean, **{f"dice.{n}": float(d) for n, d in zip(names, per_class, strict=True)}}

    return validate


@torch.inference_mode()
def decide(predictor: Predictor, image: NDArray[np.float32], runtime: Runtime) -> NDArray[np.bool_]:
    """Return foreground masks (foreground, Z, Y, X) of an image (C, Z, Y, X) in the planned grid."""
    classes = predictor.classes
    out = np.zeros((len(classes.foreground), *image.shape[1:]), dtype=bool)
    axis = getattr(predictor.tiling, "axis", 0)
    for start, stop, logits in planned_slabs(predictor, image, axis=axis, device=runtime.device):
        where = [slice(None)] * 4
        where[axis + 1] = slice(start, stop)
        if classes.regions:
            out[tuple(where)] = (logits > 0).cpu().numpy()
        else:
            best = logits.max(dim=0).indices.cpu().numpy()
            out[tuple(where)] = np.stack([best == i for i in range(1, classes.n)])
    return out


def class_dice(label: NDArray[np.uint8], masks: NDArray[np.bool_], classes: Classes) -> NDArray[np.float64]:
    """Return the Dice of each foreground class, NaN where truth and prediction are both empty."""
    valid = label != IGNORE
    out = np.full(len(masks), np.nan)
    for i, mask in enumerate(masks):
        values = classes.values[i] if classes.regions else (i + 1,)
        truth = np.isin(label, values) & valid
        predicted = mask & valid
        size = truth.sum() + predicted.sum()
        if size:
            out[i] = 2 * (truth & predicted).sum() / size
    return out


def _spread(n: int, most: int) -> Sequence[int]:
    if n <= most:
        return range(n)
    return [int(i) for i in np.linspace(0, n - 1, most).round()]
