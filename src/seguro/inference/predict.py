"""Prediction of files."""

from __future__ import annotations

from seguro.inference.tiling import planned_slabs

__all__ = ["planned_slabs"]
