"""Score predictions against reference labels: per case and class, then means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.scoring import Evaluation, Task, evaluate_folder, summary_json, task_of
from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish
from seguro.core.errors import ConfigError, DataError
from seguro.core.types import ScoreRow
from seguro.evaluation import METRICS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder written by predict, or any folder of labels.")],
    data: Annotated[
        Path | None, typer.Option(help="Workspace or dataset with the truth; default: that of PREDICTIONS.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder of reference labels with the same stems.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the scores.")] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the NSD in mm.")] = 2.0,
    metrics: Annotated[str, typer.Option(help="Comma-separated; default: all.")] = ",".join(METRICS),
    split: Annotated[str | None, typer.Option(help="train or test: expect all its labeled cases.")] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring predictions on another grid to the truth's.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the workspace's files lie now, if they were moved.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Threads over cases; -1: one per core.")] = -1,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the command."""
    if split not in (None, "train", "test"):
        raise ConfigError(f"--split {split}: expected train or test")
    options: dict[str, Any] = {
        "data": data,
        "data_root": data_root,
        "truth": truth,
        "out": out,
        "tolerance_mm": tolerance,
        "metrics": [m.strip() for m in metrics.split(",") if m.strip()],
        "split": split,
        "resample": resample,
        "seed": seed,
    }
    text = console(as_json)
    if dry_run:
        task = task_of(predictions, **options)
        finish(text, result=_planned(text, task), as_json=as_json)
        return
    result = evaluate_folder(predictions, n_jobs=jobs, **options)
    _print(text, result)
    run = next((p for p in result.folder.resolve().parents if p.parent.name == "runs"), None)
    finish(
        text,
        result={
            "folder": str(result.folder),
            "skipped": result.skipped,
            "unit": result.unit,
            "missing": result.missing,
            "faults": result.faults,
            "excluded": [e.model_dump() for e in result.excluded],
            "rows": [summary_json(r) for r in result.summary],
        },
        as_json=as_json,
        warnings=[*result.warnings, *result.faults],
        then=f"seguro report {_short(run)}" if run else f"seguro compare {result.folder} OTHER_SCORES",
    )
    if result.faults:
        raise typer.Exit(DataError.exit_code)


def _planned(text: Console, task: Task) -> dict[str, Any]:
    """Print what would be scored, and return it as JSON values."""
    missing = [j.id for j in task.jobs if j.prediction is None]
    done = task.stage.done()
    text.print(
        f"would score {len(task.jobs)} cases ({len(missing)} without a prediction) into {task.stage.folder}"
        + (": the same scores are there already" if done else ""),
        markup=False,
    )
    return {
        "folder": str(task.stage.folder),
        "cases": [j.id for j in task.jobs],
        "missing": missing,
        "skipped": done,
    }


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print(text: Console, result: Evaluation) -> None:
    """Print the means with intervals, class by class, and the worst cases."""
    from rich.markup import escape

    text.print(f"{'already scored' if result.skipped else 'scores'}: {escape(str(result.folder))}")
    text.print(_table(result))
    for line in _worst(result.rows):
        text.print(line)


def _table(result: Evaluation) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from seguro.evaluation.statistics import ALL, MEAN

    present = {r.metric for r in result.summary}
    shown: list[str] = [m for m in ("dice", "hd95", "nsd", "ece") if m in present] or sorted(present)
    table = Table(
        padding=(0, 1, 0, 0),
        box=box.SIMPLE_HEAD,
        caption="n: cases (patients); mean [95 % interval over patients], failures included",
    )
    sites = sorted({r.site for r in result.summary} - {ALL})
    several = len(sites) > 1
    for title in ("class", *(["site"] if several else []), "n"):
        table.add_column(title)
    for m in shown:
        unit = {"length": f" ({result.unit})", "ml": " (ml)", "": ""}[METRICS[m].unit]
        table.add_column(METRICS[m].title + unit, justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    by_key = {(r.cls, r.site, r.metric): r for r in result.summary}
    for site in [ALL, *(sites if several else [])]:
        for cls in (*result.classes.foreground, MEAN):
            rows = [by_key.get((cls, site, m)) for m in shown]
            first = next((r for r in rows if r), None)
            if first is None:
                continue
            cells = [interval_text(r.mean, r.low, r.high) if r else "-" for r in rows]
            count = f"{first.n_cases} ({first.n_patients})"
            named = [escape(cls), *([escape(site)] if several else []), count]
            table.add_row(*named, *cells, str(first.failures or "-"))
    return table


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """Return "0.861" and "[0.852, 0.869]" on a second line, with digits by the size of the number."""
    if value is None:
        return "-"
    digits = 3 if abs(value) < 2 else 2 if abs(value) < 20 else 1
    return f"{value:.{digits}f}" + (
        "" if low is None or high is None else f"\n[{low:.{digits}f}, {high:.{digits}f}]"
    )


def _worst(rows: Sequence[ScoreRow], n: int = 5) -> list[str]:
    """Return a line for each of the `n` cases with the lowest mean Dice, lowest first."""
    from rich.markup import escape

    dice: dict[str, list[float]] = {}
    notes: dict[str, list[str]] = {}
    for r in rows:
        if r.metric == "dice" and r.value is not None:
            dice.setdefault(r.case, []).append(r.value)
            notes.setdefault(r.case, []).extend([f"{r.cls} {r.note}"] if r.note else [])
    mean = {case: sum(v) / len(v) for case, v in dice.items()}
    worst = sorted(mean, key=lambda c: (mean[c], c))[:n]
    lines = [f"  {mean[c]:.3f}  {escape(c)}  {escape(', '.join(notes[c]))}".rstrip() for c in worst]
    return ["worst cases by mean Dice", *lines] if lines else []
