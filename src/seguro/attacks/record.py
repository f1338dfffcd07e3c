"""What is kept of one attacked case at one strength: numbers as JSON, and a slice to look at as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seguro.attacks.ensemble import Outcome
from seguro.attacks.subject import Subject
from seguro.attacks.victim import Found
from seguro.core.files import atomic
from seguro.core.types import Classes, Record


class OneAttack(Record):
    """One attack on one case."""

    score: float
    """Mean Dice it left."""
    dice: tuple[float | None, ...]
    """Per foreground class at the input it returned; None where not annotated."""
    flags: tuple[str, ...] = ()
    forwards: int
    backwards: int
    climbed: bool | None = None
    """Whether the steering objective rose from where it began, or nothing was left to lose; None where it was
    not followed."""


class CaseRecord(Record):
    """One case at one strength under one suite."""

    key: str
    case: str
    eps: float
    attacks: dict[str, OneAttack]
    score: float
    """Lowest mean Dice of all attacks."""
    lowest: tuple[float | None, ...]
    """Lowest Dice of each class over every input that any attack met."""
    by: str
    """The attack that found `score`."""
    again: float | None = None
    """Mean Dice of that input, predicted once more; None where nothing was attacked."""
    native: tuple[float, ...]
    """Epsilon per channel in the units of the file."""
    scaled: tuple[float, ...]
    """Epsilon per channel in the units of the image that the model sees."""
    minimum: float | None = None
    """Smallest strength at which FAB broke the case, in the unit of `eps`."""
    seconds: float
    predict_s: float
    """Of one clean prediction of the same input."""


def one(found: Found) -> OneAttack:
    """Return the record of the only sample of `found`."""
    climbed = None
    if found.rose is not None and not bool(found.dice[0].isnan().all()):
        climbed = bool(found.rose[0]) or float(found.score[0]) == 0
    return OneAttack(
        score=float(found.score[0]),
        dice=plain(found.dice[0]),
        flags=found.flags[0],
        forwards=found.forwards,
        backwards=found.backwards,
        climbed=climbed,
    )


def plain(dice: Tensor) -> tuple[float | None, ...]:
    """Return values (foreground,) as floats, None for NaN."""
    return tuple(None if v != v else v for v in dice.tolist())


def save_view(path: Path, subject: Subject, outcome: Outcome, classes: Classes) -> None:
    """Write the slice on which most voxels changed their class, as arrays (H, W) in an .npz file.

    image, adversarial and delta of the first channel (float32), truth, clean and attacked (uint8 classes; in
    region tasks the number of the last region painted).
    """
    with torch.no_grad():
        clean, attacked = (_labels(subject.logits(x), classes) for x in (subject.x, outcome.x))
    truth = subject.truth.label[0].cpu().numpy()
    changed = clean != attacked
    counts = [(changed.sum((1, 2)).max(), 0), (changed.sum((0, 2)).max(), 1), (changed.sum((0, 1)).max(), 2)]
    thin = [a for a in range(3) if changed.shape[a] == 1]
    axis = thin[0] if thin else max(counts)[1] if changed.any() else 0
    other = tuple(a for a in range(3) if a != axis)
    weight = changed.sum(other) if changed.any() else (truth > 0).sum(other)
    at = int(np.argmax(weight))
    image, adversarial = (x[0, 0].cpu().numpy().take(at, axis) for x in (subject.x, outcome.x))
    arrays: Mapping[str, NDArray[Any]] = {
        "image": image,
        "adversarial": adversarial,
        "delta": adversarial - image,
        "truth": np.asarray(truth.take(at, axis)),
        "clean": np.asarray(clean.take(at, axis)),
        "attacked": np.asarray(attacked.take(at, axis)),
        "axis": np.array([axis], np.int64),
    }
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy types the names as arrays


def _labels(logits: Tensor, classes: Classes) -> NDArray[np.uint8]:
    """Return class indices (Z, Y, X) of the only sample."""
    if not classes.regions:
        return logits[0].max(0).indices.cpu().numpy().astype(np.uint8)
    out = np.zeros(tuple(logits.shape[2:]), np.uint8)
    for i, mask in enumerate((logits[0] > 0).cpu().numpy()):
        out[mask] = i + 1
    return out
