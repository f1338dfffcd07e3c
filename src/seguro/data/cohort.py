"""What only all cases together can show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from seguro.core.types import Case, Classes
from seguro.data.classes import present
from seguro.data.inspection import Inspection
from seguro.data.layouts import Problem, some

SPACING_FACTOR = 3.0
"""A voxel size that differs from the median by more than this is pointed out."""


def across(
    good: Sequence[Inspection], cases: Sequence[Case], classes: Classes | None, mask_names: tuple[str, ...]
) -> list[Problem]:
    """Return warnings that only all cases together can give."""
    out = []
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[case.patient].add(case.split)
    both = sorted(p for p, s in splits.items() if {"train", "test"} <= s)
    if both:
        out.append(
            Problem("leak", "", f"{len(both)} patients have scans in both train and test: {some(both)}")
        )
    if classes is not None:
        out += _presence(good, cases, classes, mask_names)
    if cases:
        middle = np.median([c.spacing for c in cases], axis=0)
        for case in cases:
            ratio = np.asarray(case.spacing) / middle
            if max(ratio.max(), 1 / ratio.min()) > SPACING_FACTOR:
                mine, usual = (" x ".join(f"{v:.3g}" for v in s) for s in (case.spacing, middle))
                text = f"voxel size {mine} (z, y, x), the median is {usual}: is the header right?"
                out.append(Problem("spacing", case.id, text))
    return out


def _presence(
    good: Sequence[Inspection], cases: Sequence[Case], classes: Classes, mask_names: tuple[str, ...]
) -> list[Problem]:
    out = []
    train = [(i, c) for i, c in zip(good, cases, strict=True) if c.label is not None and c.split == "train"]
    empty = [c.id for i, c in train if not present(i, mask_names, classes)]
    if empty:
        out.append(Problem("label", "", f"{len(empty)} labels are empty (background only): {some(empty)}"))
    for name in classes.foreground:
        looked = [i for i, c in train if name in c.annotated]
        if len(looked) < len(train):
            text = (
                f"{name} is annotated in {len(looked)} of {len(train)} training cases; unknown in the others"
            )
            out.append(Problem("annotation", "", text))
        if train and not any(name in present(i, mask_names, classes) for i in looked):
            text = f"{name} occurs in no training case; label it or remove the class before training"
            out.append(Problem("label", "", text))
    return out


def all_empty(
    good: Sequence[Inspection], cases: Sequence[Case], classes: Classes, mask_names: tuple[str, ...]
) -> str | None:
    """Return a message when no training label holds any class."""
    train = [i for i, c in zip(good, cases, strict=True) if c.label is not None and c.split == "train"]
    if not train or any(present(i, mask_names, classes) for i in train):
        return None
    return f"all {len(train)} training labels are empty; there is nothing to learn: check the label files"


def group(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems with equal messages joined into one that counts and names the cases."""
    joined: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        joined[problem.kind, problem.message].append(problem)
    out = []
    for same in joined.values():
        first = same[0]
        if len(same) == 1:
            out.append(first)
        else:
            text = f"{first.message} ({len(same)} cases: {some([p.case for p in same], 3)})"
            out.append(Problem(first.kind, "", text))
    return out
