"""Compare ways to segment the same cases: accuracy, time, peak memory and operations, in one table and plot.

Time and memory are those of a prediction from the read image to the label on its own grid; a second one of
each case counts the operations.

pfseg: a run on whole volumes against runs in windows (--with), each also at other overlaps, and against
itself with a second model (--second) or without the information of its guidance (--controls).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.predict import Task, tasks_of
from seguro.cli.references import LISTING
from seguro.cli.scoring import evaluate_folder
from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish
from seguro.core.errors import ConfigError
from seguro.core.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from seguro.inference.bench import CaseCost, System

BENCHES = ("pfseg",)
METRICS = ("dice", "hd95")
ALL_SITES = "all"


def bench(
    what: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    run: Annotated[Path, typer.Argument(help="The run that is compared.")],
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run on the same data; repeatable.")
    ] = None,
    overlaps: Annotated[
        str, typer.Option(help="Of runs in windows: further overlaps with commas, such as 0,0.25.")
    ] = "",
    second: Annotated[
        Path | None, typer.Option(help="Model in windows that does uncertain blocks of RUN again.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Of --second: how many, one or several with commas; 8.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also with guidance zeroed, and taken from another case.")
    ] = False,
    cases: Annotated[
        str,
        typer.Option(
            help="validation or test, of the run's workspace. Each model was chosen by its scores on the "
            "validation cases, which flatter it therefore."
        ),
    ] = "validation",
    out: Annotated[Path | None, typer.Option(help="Where to write; RUN/bench when not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N.")] = "cpu",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the workspace's files lie now, if they were moved.")
    ] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Predict, score and measure each system in turn; every system has a process of its own."""
    import shlex

    from rich.markup import escape

    from seguro.inference.bench import refuse_system

    if what not in BENCHES:
        raise ConfigError(f"no bench {what!r}; known are {', '.join(BENCHES)}")
    if blocks is not None and second is None:
        raise ConfigError(f"--blocks {blocks}: it says how much --second does again; give that too")
    counts, shares = counts_of(blocks), overlaps_of(overlaps)
    text = console(as_json)
    task = tasks_of([run], [], data=None, cases=cases, out=None, data_root=data_root)[0]
    target = out or run / "bench"
    ids = [item.id for item in task.inputs]
    for other in [run, *(others or []), *([second] if second else [])]:
        refuse_trained(other, ids)
    systems = list(systems_of(run, others or [], shares, second, counts, controls))
    refuse_alike([s.name for s in systems])
    for system in systems:
        refuse_system(system, len(ids))
    if dry_run:
        for system in systems:
            text.print(f"would measure {escape(system.name)} on {len(ids)} cases", markup=False)
        finish(text, result={"systems": [s.name for s in systems], "cases": ids}, as_json=as_json)
        return
    rows = []
    for system in systems:
        text.print(f"{escape(system.name)}: {len(ids)} cases")
        rows.append(row_of(system, task, target, threads=threads, device=device, seed=seed))
    facts = {"bench": what, "threads": threads, "device": device, "seed": seed, "cases": ids}
    write_json(target / "bench.json", result_json(rows, facts))
    clock = "cpu_s" if device == "cpu" else "seconds"
    write_text(target / "bench.svg", drawn(rows, clock=clock))
    text.print(table(rows, clock=clock))
    text.print(f"written: {escape(str(target))}/bench.json, bench.svg")
    finish(
        text,
        result={"out": str(target), "rows": rows},
        as_json=as_json,
        then=f"seguro report {shlex.quote(str(run))}",
    )


def systems_of(
    run: Path,
    others: Sequence[Path],
    overlaps: Sequence[float],
    second: Path | None,
    blocks: Sequence[int],
    controls: bool,
) -> Iterator[System]:
    """Yield what is measured, the run itself first."""
    from seguro.engine.model import load_model
    from seguro.inference.bench import System
    from seguro.methods.contract import Whole

    tilings = {path: load_model(path).predictor.tiling for path in (run, *others)}
    if overlaps and all(isinstance(tiling, Whole) for tiling in tilings.values()):
        raise ConfigError("--overlaps: no run works in windows; name one with --with")
    for path, tiling in tilings.items():
        yield System(path.name, path)
        if not isinstance(tiling, Whole):
            for overlap in overlaps:
                yield System(f"{path.name}, overlap {overlap:g}", path, overlap=overlap)
    if second is not None:
        for n in blocks:
            yield System(f"{run.name} + {n} blocks of {second.name}", run, second=second, blocks=n)
    if controls:
        yield System(f"{run.name}, guidance zeroed", run, guidance="zeroed")
        yield System(f"{run.name}, guidance of another case", run, guidance="exchanged")


def refuse_alike(names: Sequence[str]) -> None:
    """Refuse systems that share a name, since their labels would share a folder."""
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(
            f"two systems are called {twice[0]}: systems are named after the folders of their runs, so give "
            "each run, overlap and number of blocks once, and rename a run whose name another one has"
        )


def refuse_trained(run: Path, ids: Sequence[str]) -> None:
    """Refuse a run that was trained on a case that it would be scored on.

    Raises:
        ConfigError: such a case; a run that does not say what it was trained on is believed.
    """
    path = run / "cases.json"
    trained = set(read_json(path)["train"]) & set(ids) if path.is_file() else set()
    if trained:
        raise ConfigError(
            f"{run}: trained on {len(trained)} of the cases to be scored, first {min(trained)}; compare runs "
            "of one fold, or use --cases test"
        )


def row_of(
    system: System, task: Task, target: Path, *, threads: int, device: str, seed: int
) -> dict[str, Any]:
    """Measure and score one system; its labels and scores stay in `target`."""
    from seguro.inference.bench import measure_apart

    folder = folder_of(target, system.name)
    labels = folder / "labels"
    costs = measure_apart(system, task.inputs, labels, threads=threads, device=device)
    write_json(labels / LISTING, listing(labels, task, [c.case for c in costs]))
    found = evaluate_folder(labels, data=task.workspace, out=folder / "scores", metrics=METRICS, seed=seed)
    scores = [
        {"class": r.cls, "metric": r.metric, "mean": r.mean, "low": r.low, "high": r.high, "n": r.n_cases}
        for r in found.summary
        if r.site == ALL_SITES
    ]
    return {"system": system.name, **averages(costs), "unit": found.unit, "scores": scores}


def folder_of(target: Path, system: str) -> Path:
    """Return where the labels and scores of a system lie below the bench's own folder."""
    from seguro.api.workspace import named

    return target / named(system.replace(" ", "-").replace(",", ""))


def listing(labels: Path, task: Task, ids: Sequence[str]) -> dict[str, Any]:
    """Return the list of predictions, so that only these cases are expected to be there."""
    from seguro.data.formats import split_name

    files = {split_name(p)[0]: p.name for p in sorted(labels.iterdir())}
    classes = task.manifest.classes if task.manifest else None
    return {
        "cases": {i: {"file": files[i]} for i in ids},
        "failed": {},
        "classes": classes.model_dump(mode="json") if classes else None,
    }


def averages(costs: Sequence[CaseCost]) -> dict[str, float | None]:
    """Return mean seconds and operations per case and the largest peak."""
    peaks = [c.peak_mb for c in costs if c.peak_mb is not None]
    return {
        "seconds": fmean(c.seconds for c in costs),
        "cpu_s": fmean(c.cpu_s for c in costs),
        "peak_mb": max(peaks) if peaks else None,
        "gflop": fmean(c.gflop for c in costs),
    }


def mean_of(row: dict[str, Any], metric: str) -> float | None:
    """Return the mean over classes of a metric, None where no class has one."""
    found = [s["mean"] for s in row["scores"] if s["metric"] == metric and s["mean"] is not None]
    return fmean(found) if found else None


def result_json(rows: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what bench.json holds: how it was measured, and a row per system."""
    from seguro.core.stage import machine

    return {**facts, "machine": machine(), "rows": list(rows)}


CLOCKS = {"cpu_s": "CPU s", "seconds": "s"}
"""On a CPU its own seconds count, which other processes do not lengthen; on a GPU those of the clock."""


def drawn(rows: Sequence[dict[str, Any]], *, clock: str) -> str:
    """Return Dice over time, memory and operations, one dot per system, as a stand-alone SVG."""
    from seguro.report.tradeoff import Dot, tradeoff

    panels = {f"{CLOCKS[clock]} per case": clock, "peak memory in MB": "peak_mb", "GFLOP per case": "gflop"}
    dots = {
        title: [
            Dot(r["system"], r[key], dice)
            for r in rows
            if r[key] is not None and (dice := mean_of(r, "dice")) is not None
        ]
        for title, key in panels.items()
    }
    return tradeoff(dots, y_axis="mean Dice")


def table(rows: Sequence[dict[str, Any]], *, clock: str) -> Table:
    """Return the table of all systems."""
    from rich.table import Table

    out = Table("system", "Dice", f"HD95 ({rows[0]['unit']})", f"{CLOCKS[clock]}/case", "peak MB", "GFLOP")
    for row in rows:
        cells = [mean_of(row, "dice"), mean_of(row, "hd95"), row[clock], row["peak_mb"], row["gflop"]]
        digits = (4, 2, 2, 0, 1)
        shown = ["-" if c is None else f"{c:.{d}f}" for c, d in zip(cells, digits, strict=True)]
        out.add_row(row["system"], *shown)
    return out


def counts_of(text: str | None) -> list[int]:
    """Return --blocks as whole numbers from 1; the default number when not given."""
    from seguro.inference.refine import BLOCKS

    if text is None:
        return [BLOCKS]
    words = _words(text)
    if not words or not all(w.isdecimal() and int(w) for w in words):
        raise ConfigError(f"--blocks {text}: expected whole numbers from 1 with commas, such as 4,8")
    return [int(w) for w in words]


def overlaps_of(text: str) -> list[float]:
    """Return --overlaps as numbers from 0 to below 1."""
    try:
        found = [float(w) for w in _words(text)]
    except ValueError:
        found = [-1.0]
    if not all(0 <= f < 1 for f in found):
        raise ConfigError(
            f"--overlaps {text}: expected numbers from 0 to below 1 with commas, such as 0,0.25"
        )
    return found


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]
