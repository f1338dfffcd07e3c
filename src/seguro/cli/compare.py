"""Compare runs on the same cases, by their scores or under attack: means with intervals, paired tests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, Seed, console, finish
from seguro.core.errors import ConfigError
from seguro.core.files import read_json, write_json
from seguro.core.types import ScoreRow
from seguro.evaluation import METRICS

if TYPE_CHECKING:
    from rich.console import Console

    from seguro.evaluation.statistics import PairedRow, SummaryRow


@dataclass(frozen=True)
class Run:
    """The scores of one run and what they are comparable by."""

    name: str
    folder: Path
    rows: list[ScoreRow]
    unit: str
    tolerance_mm: float | None
    conventions: int | None


@dataclass(frozen=True)
class Comparison:
    """Each run's means, and each later run against the first."""

    runs: list[Run]
    means: list[list[SummaryRow]]
    paired: list[list[PairedRow]]
    """One list per run after the first; `difference` is that run minus the first."""
    warnings: list[str]


def find_scores(path: Path) -> Path:
    """Return the folder with scores.csv: `path` itself or the only one below it.

    Raises:
        ConfigError: none, or several; the message lists them.
    """
    if path.is_file() and path.name == "scores.csv":
        return path.parent
    if (path / "scores.csv").is_file():
        return path
    found = sorted(p.parent for p in path.rglob("scores/scores.csv")) if path.is_dir() else []
    if not found:
        raise ConfigError(f"{path}: no scores/scores.csv in it; run first: seguro evaluate PREDICTIONS")
    if len(found) > 1:
        raise ConfigError(
            f"{path}: several scores below it ({', '.join(map(str, found[:5]))}); name one of them"
        )
    return found[0]


def load_run(path: Path) -> Run:
    """Return the scores below `path`; the name is the run's folder name where there is one."""
    from seguro.evaluation.scores import read_csv

    folder = find_scores(path)
    facts: dict[str, Any] = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    parents = folder.resolve().parents
    name = next((p.name for p in parents if p.parent.name == "runs"), folder.resolve().parent.name)
    return Run(
        name,
        folder,
        read_csv(folder / "scores.csv"),
        facts.get("unit", "mm"),
        facts.get("tolerance_mm"),
        facts.get("conventions"),
    )


def compare_runs(paths: list[Path], *, intersect: bool = False, seed: int = 0) -> Comparison:
    """Compare each run with the first, on the same cases.

    Args:
        paths: score folders or run folders, the reference first.
        intersect: use the cases and classes that all runs share instead of refusing runs that differ.
        seed: of bootstrap and permutation.

    Raises:
        ConfigError: fewer than two runs, scores not found, or units or conventions that differ.
        DataError: other cases, classes or patients.
    """
    from seguro.evaluation.statistics import paired, summarize

    if len(paths) < 2:
        raise ConfigError("compare needs at least two runs: seguro compare RUN_A RUN_B")
    runs = _named_apart([load_run(p) for p in paths])
    warnings = []
    for fact in ("unit", "conventions"):
        values = {str(getattr(r, fact)) for r in runs}
        if len(values) > 1:
            raise ConfigError(
                f"the runs were scored with different {fact} ({', '.join(sorted(values))}); "
                "evaluate them again with one version of seguro on one dataset"
            )
    rows = [r.rows for r in runs]
    if len({r.tolerance_mm for r in runs}) > 1:
        warnings.append("NSD left out: the runs were scored at different tolerances")
        rows = [[row for row in of_run if row.metric != "nsd"] for of_run in rows]
    if intersect:
        common = set.intersection(*({(r.case, r.cls) for r in of_run} for of_run in rows))
        dropped = len(set.union(*({(r.case, r.cls) for r in of_run} for of_run in rows)) - common)
        rows = [[r for r in of_run if (r.case, r.cls) in common] for of_run in rows]
        if dropped:
            warnings.append(f"{dropped} pairs of case and class are not in every run and were left out")
    return Comparison(
        runs,
        [summarize(of_run, seed=seed) for of_run in rows],
        [paired(rows[0], other, intersect=intersect, seed=seed) for other in rows[1:]],
        warnings,
    )


def _named_apart(runs: list[Run]) -> list[Run]:
    """Return runs whose names differ, by their folder where two are called alike."""
    from dataclasses import replace

    names = [r.name for r in runs]
    return [r if names.count(r.name) == 1 else replace(r, name=str(r.folder)) for r in runs]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return what comparison.json holds."""
    from seguro.cli.scoring import summary_json

    return {
        "reference": comparison.runs[0].name,
        "unit": comparison.runs[0].unit,
        "runs": [
            {"name": run.name, "rows": [summary_json(r) for r in means]}
            for run, means in zip(comparison.runs, comparison.means, strict=True)
        ],
        "paired": [
            {
                "name": run.name,
                "rows": [{("class" if k == "cls" else k): v for k, v in r._asdict().items()} for r in rows],
            }
            for run, rows in zip(comparison.runs[1:], comparison.paired, strict=True)
        ],
        "warnings": comparison.warnings,
    }


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Score, run or attack folders; the first is the reference.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write comparison.json (attacks: robustness.json) into.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Metrics to print, comma-separated.")] = "dice,hd95",
    intersect: Annotated[
        bool, typer.Option("--intersect", help="Compare on the cases that all runs share.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run the command."""
    from seguro.cli.robustness import all_attacks
    from seguro.evaluation.scores import check_metrics

    if all_attacks(runs):
        _compare_attacks(runs, out, intersect, seed, as_json)
        return

    shown = [m.strip() for m in metrics.split(",") if m.strip()]
    check_metrics(shown)
    comparison = compare_runs(runs, intersect=intersect, seed=seed)
    result = comparison_json(comparison)
    text = console(as_json)
    _print(text, comparison, shown)
    if out is not None:
        write_json(out / "comparison.json", result)
        text.print(f"written: {out / 'comparison.json'}")
    run = next((p for p in comparison.runs[-1].folder.resolve().parents if p.parent.name == "runs"), None)
    finish(
        text,
        result=result,
        as_json=as_json,
        warnings=comparison.warnings,
        then=f"seguro report {run}" if run else None,
    )


def _compare_attacks(
    folders: list[Path], out: Path | None, intersect: bool, seed: int, as_json: bool
) -> None:
    from seguro.cli import robustness

    comparison = robustness.compare_attacks(folders, intersect=intersect, seed=seed)
    result = robustness.comparison_json(comparison)
    text = console(as_json)
    robustness.print_comparison(text, comparison)
    if out is not None:
        write_json(out / "robustness.json", result)
        text.print(f"written: {out / 'robustness.json'}")
    finish(text, result=result, as_json=as_json, warnings=comparison.warnings)


def _print(text: Console, comparison: Comparison, metrics: list[str]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from seguro.cli.evaluate import interval_text
    from seguro.evaluation.statistics import ALL

    by_run = [{(r.cls, r.metric): r for r in means if r.site == ALL} for means in comparison.means]
    tests = [{(r.cls, r.metric): r for r in rows} for rows in comparison.paired]
    keys = [key for key in by_run[0] if key[1] in metrics]
    for metric, group in groupby(keys, key=lambda k: k[1]):
        unit = f" ({comparison.runs[0].unit})" if METRICS[metric].unit == "length" else ""
        table = Table(
            padding=(0, 1, 0, 0),
            box=box.SIMPLE_HEAD,
            title=METRICS[metric].title + unit,
            title_justify="left",
            caption="n: cases (patients); difference to the first run; p: sign-flip by patient, Holm",
        )
        for title in ("class", "run", "n"):
            table.add_column(title)
        for title in ("mean", "difference", "p", "Wilcoxon"):
            table.add_column(title, justify="right", no_wrap=True)
        for key in group:
            for i, run in enumerate(comparison.runs):
                mean = by_run[i].get(key)
                test = tests[i - 1].get(key) if i else None
                cells = ["-"] * 3
                if test is not None:
                    cells = [
                        interval_text(test.difference, test.low, test.high),
                        f"{test.p_holm:.3g}",
                        f"{test.p_wilcoxon:.3g}",
                    ]
                n = f"{mean.n_cases} ({mean.n_patients})" if mean else "-"
                value = interval_text(mean.mean, mean.low, mean.high) if mean else "-"
                table.add_row(escape(key[0]) if i == 0 else "", escape(run.name), n, value, *cells)
        text.print(table)
