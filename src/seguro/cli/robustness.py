"""Several models on one robustness table: Dice at each epsilon, areas, and paired differences of areas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json

if TYPE_CHECKING:
    from rich.console import Console

    from seguro.evaluation.robustness import AreaRow, CurveRow, PairedArea, RobustRow, WeightedRow

ROWS = "robustness.csv"
SAME = ("suite", "where", "iterations", "restarts", "queries", "box", "center", "unit", "set")
"""Settings that make an attack stronger or weaker, or give its numbers another meaning."""
TOLD = ("threshold", "seed")
"""Settings that may differ, with a warning."""


@dataclass(frozen=True)
class Attacked:
    """What one attack left of one model."""

    name: str
    folder: Path
    rows: list[RobustRow]
    setting: dict[str, Any]


@dataclass(frozen=True)
class RobustComparison:
    """Each model's curves and areas, and each later model against the first."""

    models: list[Attacked]
    curves: list[list[CurveRow]]
    areas: list[list[AreaRow]]
    weighted: list[list[WeightedRow]]
    """Empty lists unless the attacks are corruptions."""
    paired: list[list[PairedArea]]
    warnings: list[str]


def all_attacks(paths: Sequence[Path]) -> bool:
    """Return whether every path is the folder of an attack (or its robustness.csv).

    Raises:
        ConfigError: only some are.
    """
    there = [(path / ROWS).is_file() or (path.name == ROWS and path.is_file()) for path in paths]
    if any(there) and not all(there):
        other = paths[there.index(False)]
        raise ConfigError(f"{other}: no {ROWS} in it; compare attack folders with each other, or runs")
    return bool(there) and all(there)


def load_attack(path: Path) -> Attacked:
    """Return the rows and the setting of an attack; the name is its run's folder name where there is one.

    Raises:
        DataError: robustness.csv or summary.json is missing or damaged.
    """
    from seguro.evaluation.robustness import read_csv

    folder = path.parent if path.is_file() else path
    facts = read_json(folder / "summary.json")
    setting = facts.get("setting") if isinstance(facts, dict) else None
    if not isinstance(setting, dict):
        raise DataError(f"{folder / 'summary.json'}: no setting in it; run seguro attack again")
    name = next((p.name for p in folder.resolve().parents if p.parent.name == "runs"), folder.resolve().name)
    return Attacked(name, folder, read_csv(folder / ROWS), setting)


def is_corruption(setting: Mapping[str, Any]) -> bool:
    """Return whether the epsilons of an attack are severities of corruptions."""
    return setting.get("suite") == "corruptions" or str(setting.get("eps_unit", "")).startswith("severity")


def compare_attacks(paths: Sequence[Path], *, intersect: bool = False, seed: int = 0) -> RobustComparison:
    """Compare each attacked model with the first, on the same cases, classes, attacks and epsilons.

    Args:
        paths: attack folders, the reference first.
        intersect: use what all share, and only warn of other settings.
        seed: of bootstrap and permutation.

    Raises:
        ConfigError: fewer than two, or attacks of other settings.
        DataError: other epsilons, cases or classes; a file that is damaged.
    """
    from seguro.evaluation.robustness import areas, common, curves, paired_areas, pooled, weighted_score

    if len(paths) < 2:
        raise ConfigError("compare needs at least two attacks: seguro compare ATTACK_A ATTACK_B")
    models = _named_apart([load_attack(p) for p in paths])
    warnings = [w for m in models[1:] for w in _unlike(models[0], m, intersect)]
    corrupted = is_corruption(models[0].setting)
    first = models[0].rows
    for model in models[1:]:
        first, _ = common(first, model.rows, intersect=intersect)
    rows = [common(m.rows, first, intersect=intersect)[0] for m in models]
    dropped = sum(len(m.rows) for m in models) - sum(map(len, rows))
    if dropped:
        warnings.append(f"{dropped} rows are not in every attack and were left out")
    weighted = [weighted_score(r, seed) if corrupted else [] for r in rows]
    if corrupted:
        rows = [[*r, *pooled(r)] for r in rows]
    return RobustComparison(
        models,
        [curves(r, seed) for r in rows],
        [areas(r, seed) for r in rows],
        weighted,
        [paired_areas(rows[0], r, seed=seed) for r in rows[1:]],
        list(dict.fromkeys(warnings)),
    )


def comparison_json(comparison: RobustComparison) -> dict[str, Any]:
    """Return what robustness.json holds."""
    return {
        "reference": comparison.models[0].name,
        "setting": comparison.models[0].setting,
        "models": [
            {"name": model.name, "curves": _plain(c), "areas": _plain(a), "weighted": _plain(w)}
            for model, c, a, w in zip(
                comparison.models, comparison.curves, comparison.areas, comparison.weighted, strict=True
            )
        ],
        "paired": [
            {"name": model.name, "rows": _plain(rows)}
            for model, rows in zip(comparison.models[1:], comparison.paired, strict=True)
        ],
        "warnings": comparison.warnings,
    }


def print_comparison(text: Console, comparison: RobustComparison) -> None:
    """Print one table: per class a line per epsilon, the area and its difference; a column per model.

    Of the attacks it shows the worst case (of corruptions the mean over them); the others are in the JSON.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from seguro.cli.evaluate import interval_text

    shown = _shown(comparison)
    setting = comparison.models[0].setting
    corrupted = is_corruption(setting)
    title = "mean over corruptions" if corrupted else f"{shown}, {setting.get('suite', '')} suite"
    table = Table(
        padding=(0, 1, 0, 0),
        box=box.SIMPLE_HEAD,
        title=f"Dice under attack: {escape(title)}; eps in {escape(str(setting.get('eps_unit', '')))}",
        title_justify="left",
        caption="n: cases (patients); area: mean Dice over eps; p: sign-flip by patient, Holm",
    )
    table.add_column("class")
    table.add_column("severity" if corrupted else "eps", justify="right")
    points = [{(r.cls, r.eps): r for r in c if r.attack == shown} for c in comparison.curves]
    found = [{r.cls: r for r in a if r.attack == shown} for a in comparison.areas]
    weighted = [{r.cls: r for r in w if r.attack == shown} for w in comparison.weighted]
    paired = [{r.cls: r for r in p if r.attack == shown} for p in comparison.paired]
    for model, area in zip(comparison.models, found, strict=True):
        n = next(iter(area.values()))
        head = f"{escape(model.name)}\nn {n.n_cases} ({n.n_patients})"
        table.add_column(head, justify="right", no_wrap=True)
    for cls in found[0]:
        for i, eps in enumerate(sorted({e for c, e in points[0] if c == cls})):
            at = [p[cls, eps] for p in points]
            cells = [interval_text(r.mean, r.low, r.high) for r in at]
            table.add_row(escape(cls) if not i else "", f"{eps:g}", *cells)
        for name, part in (("area", found), ("weighted", weighted)):
            if any(cls in p for p in part):
                table.add_row("", name, *[interval_text(p[cls].mean, p[cls].low, p[cls].high) for p in part])
        tests = [p.get(cls) for p in paired]
        differences = [
            f"{interval_text(t.difference, t.low, t.high)}\np {t.p_holm:.3g}" if t else "-" for t in tests
        ]
        table.add_row("", "area - first", "", *differences, end_section=True)
    text.print(table)


def _shown(comparison: RobustComparison) -> str:
    attacks = list(dict.fromkeys(r.attack for r in comparison.areas[0]))
    return next((a for a in ("worst", "all") if a in attacks), attacks[0])


def _unlike(first: Attacked, other: Attacked, intersect: bool) -> list[str]:
    """Return warnings of settings that differ.

    Raises:
        ConfigError: one that changes what the numbers mean, unless `intersect`; another unit of eps always.
    """
    told = []
    for fact in ("eps_unit", *SAME, *TOLD):
        values = [m.setting.get(fact) for m in (first, other)]
        if values[0] == values[1]:
            continue
        what = f"{fact} is {values[0]} for {first.name} and {values[1]} for {other.name}"
        if fact == "eps_unit" or (fact in SAME and not intersect):
            raise ConfigError(
                f"the attacks were set differently: {what}; attack both models alike"
                + ("" if fact == "eps_unit" else ", or pass --intersect to compare them all the same")
            )
        told.append(f"the attacks were set differently: {what}")
    return told


def _named_apart(models: list[Attacked]) -> list[Attacked]:
    names = [m.name for m in models]
    return [m if names.count(m.name) == 1 else replace(m, name=str(m.folder)) for m in models]


def _plain(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [{("class" if k == "cls" else k): v for k, v in r._asdict().items()} for r in rows]
