"""Dice of subjects whose slices are cases of their own: the voxels of all slices count together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seguro.cli.references import find_predictions
from seguro.core.types import ScoreRow
from seguro.data import manifest as manifests
from seguro.data.formats import read_label
from seguro.evaluation.scores import score_case, to_stored


def subject_rows(workspace: Path, predictions: Path) -> list[ScoreRow]:
    """Return the Dice rows of every subject of whom cases are in `predictions`."""
    found = manifests.load(workspace)
    files = find_predictions(predictions).files
    voxels: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = defaultdict(list)
    for case in found.cases:
        if case.id not in files or found.classes is None:
            continue
        predicted = read_label(files[case.id], spacing=case.spacing)
        truth = manifests.read_case_label(case, found, like=predicted.grid)
        if truth is not None:
            pair = [to_stored(v.array, found.classes, what=case.id).ravel() for v in (truth, predicted)]
            voxels[case.patient].append((pair[0], pair[1]))
    rows = []
    for subject, slices in sorted(voxels.items()):
        truths, guesses = (np.concatenate(parts) for parts in zip(*slices, strict=True))
        rows += score_case(
            truths, guesses, classes=found.classes, annotated=found.classes.foreground, spacing=(1, 1, 1),
            case=subject, patient=subject, site="", metrics=("dice",),
        )  # fmt: skip
    return rows
