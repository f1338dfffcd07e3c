"""The Python API: the stages of the arrow as functions. The command line calls these and nothing else."""

from __future__ import annotations

from seguro.api.cases import ALL, cases_of_fold
from seguro.api.configuration import (
    TrainOptions,
    configure,
    default_network,
    needs_support,
    planned_for,
    segments,
)
from seguro.api.job import DEFAULT_BUDGET, TRAIN_SCHEMA
from seguro.api.stages import WAIT_S, plan, prepare
from seguro.api.training import train
from seguro.api.workspace import Count, Say, is_workspace, manifest_of, workspace_of

__all__ = [
    "ALL", "DEFAULT_BUDGET", "TRAIN_SCHEMA", "WAIT_S", "Count", "Say", "TrainOptions", "cases_of_fold",
    "configure", "default_network", "is_workspace", "manifest_of", "needs_support", "plan", "planned_for",
    "prepare", "segments", "train", "workspace_of",
]  # fmt: skip
