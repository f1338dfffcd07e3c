"""The cases of a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Case, Manifest

if TYPE_CHECKING:
    from seguro.data.plan import Plan

ALL = "all"
"""Name of the pseudo-fold that trains on every labelled case and validates on none."""


def cases_of_fold(
    manifest: Manifest, plan: Plan, fold: str, labels: Literal["none", "some", "all"]
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return training and validation cases of a fold ("all": everything, and nothing to validate on).

    Methods that need labels get labelled cases only; the others also the unlabelled ones.

    Raises:
        ConfigError: the plan has no such fold.
        DataError: no labelled training case where one is needed.
    """
    by_id = {c.id: c for c in (*manifest.of("train"), *manifest.of("unlabelled"))}
    train: tuple[Case, ...] = tuple(by_id.values())
    validation: tuple[Case, ...] = ()
    if fold != ALL:
        try:
            chosen = plan.fold(fold)
        except KeyError as error:
            raise ConfigError(f"--fold {fold}: {error.args[0]} and {ALL!r}") from error
        train = tuple(by_id[i] for i in chosen.train)
        validation = tuple(by_id[i] for i in chosen.validation)
    if labels == "all":
        train = tuple(c for c in train if c.label is not None)
    if labels != "none" and not any(c.label is not None for c in train):
        raise DataError(f"fold {fold} has no labelled training case")
    return train, validation
