"""What an experiment keeps of its runs beside itself, so that it can be run and gathered in parts.

NAME/scores/SETTING-seedN.csv has the scores of every case, NAME/scores/runs.json what a run was made from and
what was told of it. Runs of another recipe than the experiment has now are left out, and said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seguro.core.files import read_json, sha256_json, write_json
from seguro.core.types import ScoreRow
from seguro.evaluation.scores import read_csv, write_csv

COMMON = ("data", "check", "plan", "edit", "train")
"""Fields of an experiment that every recipe holds."""


@dataclass(frozen=True)
class Kept:
    """One run of a setting: the scores of its cases, and what was told of it (minutes, machine, ...)."""

    rows: list[ScoreRow]
    told: dict[str, Any]


def recipe(plan: Mapping[str, Any], own: Mapping[str, Any], *more: str) -> str:
    """Return what identifies how a setting is made: the experiment's common fields, `more` and its own."""
    return sha256_json([{k: plan.get(k) for k in (*COMMON, *more)}, own])


def keep(
    folder: Path, setting: str, seed: int, made_by: str, rows: Sequence[ScoreRow], told: Mapping[str, Any]
) -> None:
    """Write the scores of one run into the experiment's folder, over those that were there of it."""
    name = _name(setting, seed)
    (folder / "scores").mkdir(exist_ok=True)
    write_csv(folder / "scores" / f"{name}.csv", rows)
    known = _runs(folder)
    known[name] = {"recipe": made_by, **told}
    write_json(folder / "scores" / "runs.json", dict(sorted(known.items())))


def kept(
    folder: Path, recipes: Mapping[str, str], seeds: Mapping[str, Collection[int]]
) -> dict[str, dict[int, Kept]]:
    """Return the kept runs of each setting by seed, those whose recipe is the one in `recipes`."""
    known = _runs(folder)
    out: dict[str, dict[int, Kept]] = {}
    for setting, made_by in recipes.items():
        for seed in seeds[setting]:
            name = _name(setting, seed)
            told = dict(known.get(name, {}))
            if not told:
                continue
            if told.pop("recipe") != made_by:
                print(f"scores/{name}.csv is of another recipe, left out: run {setting} again")
                continue
            found = read_csv(folder / "scores" / f"{name}.csv")
            out.setdefault(setting, {})[seed] = Kept(found, told)
    return out


def _name(setting: str, seed: int) -> str:
    return f"{setting.replace(', ', '-')}-seed{seed}"


def _runs(folder: Path) -> dict[str, Any]:
    path = folder / "scores" / "runs.json"
    return dict(read_json(path)) if path.exists() else {}
