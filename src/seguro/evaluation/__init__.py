"""Scores of a segmentation and their statistics, by the conventions of docs/conventions.md.

Imports core only; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CONVENTIONS = 1
"""Version of docs/conventions.md; raised whenever a score changes for the same input."""


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its unit and which way is better."""

    title: str
    unit: Literal["", "length", "ml"]
    better: Literal["high", "low", "zero"]
    perfect: float


METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", "high", 1.0),
    "iou": Metric("IoU", "", "high", 1.0),
    "precision": Metric("Precision", "", "high", 1.0),
    "recall": Metric("Recall", "", "high", 1.0),
    "hd": Metric("HD", "length", "low", 0.0),
    "hd95": Metric("HD95", "length", "low", 0.0),
    "assd": Metric("ASSD", "length", "low", 0.0),
    "nsd": Metric("NSD", "", "high", 1.0),
    "volume_error_ml": Metric("Volume error", "ml", "zero", 0.0),
    "volume_error_rel": Metric("Relative volume error", "", "zero", 0.0),
    "ece": Metric("ECE", "", "low", 0.0),
}
SURFACE = ("hd", "hd95", "assd", "nsd")
"""Metrics that need the surfaces of both masks."""
