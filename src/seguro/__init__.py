"""Segments medical images when the textbook setting fails.

The names below are the Python API; each is imported when it is first used, so that `import seguro` costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from seguro.api import TrainOptions, plan, prepare, train
    from seguro.cli.scoring import evaluate_folder as evaluate
    from seguro.core.errors import ConfigError, DataError, GeometryError, RunError, SeguroError
    from seguro.core.types import Case, Classes, Grid, Manifest, Volume
    from seguro.data.check import check
    from seguro.data.formats import read_image, read_label
    from seguro.data.plan import Plan
    from seguro.data.planner import PlanOptions
    from seguro.inference.predict import predict
    from seguro.inference.segmenter import Segmenter, load

_WHERE = {
    "Segmenter": "seguro.inference.segmenter",
    "TrainOptions": "seguro.api",
    "load": "seguro.inference.segmenter",
    "plan": "seguro.api",
    "prepare": "seguro.api",
    "train": "seguro.api",
    "evaluate": "seguro.cli.scoring:evaluate_folder",
    "check": "seguro.data.check",
    "predict": "seguro.inference.predict",
    "read_image": "seguro.data.formats",
    "read_label": "seguro.data.formats",
    "Plan": "seguro.data.plan",
    "PlanOptions": "seguro.data.planner",
    **dict.fromkeys(("Case", "Classes", "Grid", "Manifest", "Volume"), "seguro.core.types"),
    **dict.fromkeys(
        ("ConfigError", "DataError", "GeometryError", "RunError", "SeguroError"), "seguro.core.errors"
    ),
}

__all__ = [
    "Case", "Classes", "ConfigError", "DataError", "GeometryError", "Grid", "Manifest", "Plan", "PlanOptions",
    "RunError", "Segmenter", "SeguroError", "TrainOptions", "Volume", "check", "evaluate", "load", "plan",
    "predict", "prepare", "read_image", "read_label", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'seguro' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)
