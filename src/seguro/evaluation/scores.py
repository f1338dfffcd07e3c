"""The scores of one case under the written conventions (docs/conventions.md), and their file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE, Classes, ScoreRow
from seguro.evaluation import METRICS, SURFACE
from seguro.evaluation.calibration import expected_calibration_error, region
from seguro.evaluation.overlap import Mask, overlap
from seguro.evaluation.surface import diagonal, surface_distances
from seguro.evaluation.table import number, read_table, write_table

COLUMNS = ("case", "patient", "site", "class", "metric", "value", "note")


def score_case(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer] | None,
    *,
    classes: Classes,
    annotated: Collection[str],
    spacing: Sequence[float],
    case: str,
    patient: str,
    site: str,
    tolerance_mm: float = 2.0,
    metrics: Sequence[str] = tuple(METRICS),
    probabilities: NDArray[np.floating] | None = None,
) -> list[ScoreRow]:
    """Return one row per foreground class and metric.

    Args:
        truth: (Z, Y, X) stored labels; IGNORE voxels count in neither mask.
        prediction: (Z, Y, X) stored labels, or None when the case has no prediction.
        classes: the task's classes; regions may overlap.
        annotated: foreground classes that were looked for in the truth; the others get rows without a value.
        spacing: (z, y, x), in mm (or px).
        case: the case's id.
        patient: its patient.
        site: its site.
        tolerance_mm: tolerance of the NSD, in the unit of `spacing`.
        metrics: names out of METRICS; "ece" gives rows only with `probabilities`.
        probabilities: (C, Z, Y, X) in [0, 1], one channel per entry of `classes.names`.

    Raises:
        ConfigError: an unknown metric.
        DataError: shapes differ.
    """
    check_metrics(metrics)
    expected = (classes.n, *truth.shape)
    for what, shape, should in (
        ("prediction", None if prediction is None else prediction.shape, truth.shape),
        ("probabilities", None if probabilities is None else probabilities.shape, expected),
    ):
        if shape is not None and shape != should:
            raise DataError(
                f"case {case}: {what} has shape {shape}, expected {should}; predict on the case's own grid"
            )
    wanted = [m for m in metrics if m != "ece" or probabilities is not None]
    valid = None if not (truth == IGNORE).any() else truth != IGNORE
    rows = []
    for name in classes.foreground:
        if name not in annotated:
            rows += [ScoreRow(case, patient, site, name, m, None, "not annotated") for m in wanted]
            continue
        mask = _mask(truth, classes, name, valid)
        guess = None if prediction is None else _mask(prediction, classes, name, valid)
        p = None if probabilities is None else probabilities[classes.names.index(name)]
        values = _values(mask, guess, spacing, tolerance_mm, wanted, p, valid)
        note = "no prediction" if prediction is None else _note(mask, guess)
        rows += [ScoreRow(case, patient, site, name, m, values[m], note) for m in wanted]
    return rows


def check_metrics(metrics: Iterable[str]) -> None:
    """Refuse names that are not in METRICS.

    Raises:
        ConfigError: an unknown metric; the message lists the known ones.
    """
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise ConfigError(f"unknown metrics {', '.join(unknown)}; known are {', '.join(METRICS)}")


def _mask(label: NDArray[np.integer], classes: Classes, name: str, valid: Mask | None) -> Mask:
    """Return where `label` is of class `name`, without the voxels to ignore."""
    i = classes.names.index(name)
    stored = classes.values[i] if classes.regions else (i,)
    mask: Mask = label == stored[0] if len(stored) == 1 else np.isin(label, stored)
    return mask if valid is None else mask & valid


def _note(truth: Mask, prediction: Mask | None) -> str:
    has_truth, has_prediction = bool(truth.any()), prediction is not None and bool(prediction.any())
    if has_truth:
        return "" if has_prediction else "missed"
    return "false alarm" if has_prediction else "both empty"


def _values(
    truth: Mask,
    prediction: Mask | None,
    spacing: Sequence[float],
    tolerance: float,
    metrics: Sequence[str],
    probability: NDArray[np.floating] | None,
    valid: Mask | None,
) -> dict[str, float | None]:
    """Return the value of each metric; no prediction is an empty prediction."""
    prediction = np.zeros_like(truth) if prediction is None else prediction
    counts = overlap(truth, prediction)
    if counts.n_truth + counts.n_prediction == 0:
        return dict.fromkeys(metrics)
    values: dict[str, float | None] = {
        "dice": counts.dice,
        "iou": counts.iou,
        "precision": counts.precision,
        "recall": counts.recall,
        "volume_error_ml": counts.volume_error_ml(float(np.prod(spacing)) / 1000.0),
        "volume_error_rel": counts.volume_error_rel,
    }
    if set(metrics) & set(SURFACE):
        if counts.n_truth and counts.n_prediction:
            distances = surface_distances(truth, prediction, spacing)
            values |= {"hd": distances.hd, "hd95": distances.hd95, "assd": distances.assd}
            values["nsd"] = distances.nsd(tolerance)
        else:
            values |= dict.fromkeys(("hd", "hd95", "assd"), diagonal(truth.shape, spacing))
            values["nsd"] = 0.0
    if probability is not None and "ece" in metrics:
        box = region(truth, prediction, spacing)
        keep = np.ones(truth[box].shape, bool) if valid is None else valid[box]
        values["ece"] = expected_calibration_error(probability[box][keep], truth[box][keep])
    return {m: values[m] for m in metrics}


def to_stored(label: NDArray[np.integer], classes: Classes, *, what: str) -> NDArray[np.uint8]:
    """Return stored labels (class indices, or file values for regions; IGNORE) for a file's label.

    Args:
        label: any shape, integers as in the file.
        classes: how the file encodes classes.
        what: the file or case, for the message.

    Raises:
        DataError: a value that no class has; the message counts its voxels.
    """
    table = {0: 0} if classes.regions else {}
    for i, values in enumerate(classes.values):
        table |= {v: v if classes.regions else i for v in values}
    if classes.regions:
        table |= {v: v for v in classes.paint}
    if classes.ignore is not None:
        table[classes.ignore] = IGNORE
    found, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    unknown = {int(v): int(n) for v, n in zip(found, counts, strict=True) if int(v) not in table}
    if unknown:
        told = ", ".join(f"{v} ({n} voxels)" for v, n in list(unknown.items())[:8])
        raise DataError(f"{what}: label values {told} belong to no class; expected {sorted(table)}")
    return np.array([table[int(v)] for v in found], np.uint8)[inverse].reshape(label.shape)


def write_csv(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write scores sorted by case, class and metric; see `table.write_table`."""
    order = {name: i for i, name in enumerate(METRICS)}
    ordered = sorted(rows, key=lambda r: (r.case, r.cls, order.get(r.metric, len(order)), r.metric))
    write_table(path, COLUMNS, ordered)


def read_csv(path: Path) -> list[ScoreRow]:
    """Return the rows of a file written by `write_csv`.

    Raises:
        DataError: missing, not a score file, or a value that is no finite number; the message names the line.
    """
    rows = []
    for line, cells in read_table(path, COLUMNS, maker="scores.csv written by seguro evaluate"):
        case, patient, site, cls, metric, value, note = cells
        rows.append(ScoreRow(case, patient, site, cls, metric, number(path, line, "value", value), note))
    return rows
