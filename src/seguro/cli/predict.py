"""Segment scans with one or more trained models; several are an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.api.last import FOLDER as LAST
from seguro.api.last import last_model
from seguro.api.selection import CASES, cases_for, is_model, is_own, manifest_for, run_of
from seguro.cli.pictures import FOLDER, write_pictures
from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from seguro.core.types import Case, Manifest, ThreeF
    from seguro.inference.predict import CaseProgress, PredictionReport

SHOWN = 10
"""Failed and flagged cases listed on the terminal; all are in predictions.json."""


@dataclass(frozen=True)
class Task:
    """One call of `predict`: these models on these inputs into this folder."""

    models: tuple[Path, ...]
    inputs: Any
    """A path, paths, or items."""
    n: int | None
    """Number of cases where it is known before the files are listed."""
    out: Path
    workspace: Path | None = None
    """Whose cases they are; None for files."""
    manifest: Manifest | None = None
    """Of that workspace."""


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(help="MODEL [MODEL ...] IMAGES: runs or model folders, then files or a folder."),
    ],
    also: Annotated[
        list[Path] | None, typer.Option(help="A further model of the ensemble; repeatable.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Predict cases of this workspace or data set, instead of IMAGES.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option(help="Of --data, or of the run's own workspace: " + ", ".join(CASES) + ".")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data set of --data or --cases lies now, if it was moved.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; RUN/predictions/NAME when not given.")
    ] = None,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average over images mirrored along the plan's axes: 2, 4 or 8 passes for 1, 2 or 3.",
        ),
    ] = False,
    overlap: Annotated[float | None, typer.Option(help="Of neighboring windows, 0 to below 1.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write them, per class.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Also draw them, with the truth if known: the middle slices.")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="Of --pictures: every n-th slice instead of the middle ones.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows or slices per call.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="32, bf16-mixed, 16-mixed.")] = "32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Z,Y,X (or one number) in mm, for IMAGES that state none.")
    ] = None,
    repair: Annotated[
        str | None, typer.Option(help="nan=min: replace NaN and infinite voxels of IMAGES.")
    ] = None,
    support: Annotated[
        list[str] | None,
        typer.Option(help="Annotated scan whose structure is looked for; repeatable. Or the hash of one."),
    ] = None,
    support_label: Annotated[
        list[Path] | None, typer.Option(help="Mask of the --support in the same place; repeatable.")
    ] = None,
    support_class: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE in the masks; all values when none is given.")
    ] = None,
    support_slices: Annotated[
        str | None,
        typer.Option(help="Annotated slices: auto, labelled, all, or numbers from 0 as the file counts."),
    ] = None,
    snap: Annotated[
        float, typer.Option(min=0, max=1, help="Draw probabilities to the mean of their superpixel.")
    ] = 0.0,
    largest: Annotated[
        bool, typer.Option("--largest", help="Keep only the largest connected part of each class.")
    ] = False,
    way: Annotated[
        str | None,
        typer.Option(help="Of a model of adapt: intra, inter or ensemble, not its run's; NAME-WAY."),
    ] = None,
    doubt: Annotated[
        bool, typer.Option("--doubt", help="Also write where it may be wrong: doubt/ID and doubt.csv.")
    ] = False,
    second: Annotated[
        Path | None,
        typer.Option(help="A model in windows that does the most uncertain blocks of a pfseg model again."),
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Of --second: how many at most; 8.")] = None,
    last: Annotated[
        bool,
        typer.Option("--last", help="A run's last update, not the one validation chose; NAME-last."),
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Predict; ends with exit code 2 when a case could not be used, after all others are done."""
    from dataclasses import replace

    from rich.markup import escape

    from seguro.core.types import Warnings

    if precision not in ("32", "bf16-mixed", "16-mixed"):
        raise ConfigError(f"--precision {precision}: expected 32, bf16-mixed or 16-mixed")
    if every is not None and not pictures:
        raise ConfigError(f"--every {every}: it says which slices --pictures draws; give that too")
    if blocks is not None and second is None:
        raise ConfigError(f"--blocks {blocks}: it says how much --second does again; give that too")
    size = three(spacing)
    if not support and (support_label or support_class or support_slices):
        raise ConfigError(
            "--support-label, --support-class and --support-slices say more of a --support: give it"
        )
    _refuse_repair(repair, from_manifest=data is not None or cases is not None)
    text = console(as_json)
    models, images = split(paths, also or [], from_manifest=data is not None or cases is not None)
    tasks = tasks_of(models, images, data=data, cases=cases, out=out, data_root=data_root)
    if second is not None and out is None:  # beside what the model predicted alone
        tasks = [replace(t, out=t.out.with_name(f"{t.out.name}-second")) for t in tasks]
    if way is not None and out is None:
        tasks = [replace(t, out=t.out.with_name(f"{t.out.name}-{way}")) for t in tasks]
    if last and out is None:
        tasks = [replace(t, out=t.out.with_name(f"{t.out.name}-{LAST}")) for t in tasks]
    for task in tasks:
        names = " + ".join(str(m) for m in task.models)
        count = "" if task.n is None else f"{task.n} case{'s' * (task.n != 1)}, "
        text.print(f"{escape(names)}: {count}to {escape(str(task.out))}/")
    if dry_run:
        finish(
            text,
            result={"tasks": [{"models": t.models, "n": t.n, "out": t.out} for t in tasks]},
            as_json=as_json,
        )
        return
    from seguro.api.support import support_of
    from seguro.inference.predict import predict as run
    from seguro.inference.refine import BLOCKS

    if last:
        tasks = [replace(t, models=tuple(last_model(run_of(m) or m) for m in t.models)) for t in tasks]
    reports, warnings = [], Warnings()
    for task in tasks:
        bank = None
        if support:
            bank = support_of(
                task.models[0], task.out, support, support_label or (), classes=support_class or (),
                slices=support_slices or "auto", spacing=size,
            )  # fmt: skip
            text.print(f"support {bank.hash[:12]}: {escape(', '.join(bank.classes.foreground))}")
        with bar(text) as progress:
            report = run(
                task.models, task.inputs, task.out, device=device, precision=precision,  # type: ignore[arg-type]
                flips=flips, overlap=overlap, probabilities=probabilities, batch=batch, threads=threads,
                spacing=size, repair="nan=min" if repair else None, support=bank, snap=snap, largest=largest,
                way=way, doubt=doubt, second=second, blocks=blocks or BLOCKS, progress=progress,
                warnings=warnings,
            )  # fmt: skip
        show(text, report)
        reports.append(report)
        if pictures:
            drawn = write_pictures(report, task.manifest, every=every, warnings=warnings)
            text.print(f"{len(drawn)} pictures: {escape(str(report.out / FOLDER))}/")
    finish(
        text,
        result={"predictions": [summary(r) for r in reports]},
        as_json=as_json,
        warnings=warnings.lines(),
        then=refining(tasks[0], reports[0], images)
        if support and tasks[0].workspace is None
        else following(reports[0].out, tasks[0].workspace, data_root),
    )
    code = max(r.exit_code for r in reports)
    if code:
        raise typer.Exit(code)


def _refuse_repair(repair: str | None, *, from_manifest: bool) -> None:
    if repair not in (None, "nan=min"):
        raise ConfigError(f"--repair {repair}: only nan=min is known")
    if repair and from_manifest:
        raise ConfigError(
            "--repair is for IMAGES; cases of a data set are repaired as it was checked: "
            "seguro check DATA --repair nan=min"
        )


def split(
    paths: Sequence[Path], also: Sequence[Path], *, from_manifest: bool
) -> tuple[list[Path], list[Path]]:
    """Return models and images of the arguments: the first is a model, and what follows if it looks like one.

    Raises:
        ConfigError: no images, or images beside --data or --cases.
    """
    n = 1
    while n < len(paths) and is_model(paths[n]):
        n += 1
    models, images = [*paths[:n], *also], list(paths[n:])
    if from_manifest and images:
        raise ConfigError(
            f"{images[0]}: give either IMAGES or --data/--cases, not both (and no model lies there)"
        )
    if not from_manifest and not images:
        raise ConfigError(
            "no images: seguro predict MODEL IMAGES, or MODEL --cases test for those of its workspace"
        )
    return models, images


def tasks_of(
    models: Sequence[Path],
    images: Sequence[Path],
    *,
    data: Path | None,
    cases: str | None,
    out: Path | None,
    data_root: Path | None = None,
) -> list[Task]:
    """Return what to do. For validation, each model alone predicts the cases of its own fold."""
    if not (data or cases):
        if data_root is not None:
            raise ConfigError(f"--data-root {data_root}: it says where cases of --data or --cases lie")
        name = images[0].resolve().name if images[0].is_dir() else _file_name(images)
        inputs = images[0] if len(images) == 1 else images
        return [Task(tuple(models), inputs, None, out or default_out(models, name))]
    from seguro.inference.inputs import from_manifest

    cases = cases or "test"
    workspace, manifest = manifest_for(models[0], data, data_root)
    own = is_own(workspace, models[0])
    if cases == "validation" and not own:
        raise ConfigError(
            f"--cases validation: those of a run are of its own data, not of {workspace}; use --cases test, "
            "train or unlabelled"
        )
    name = cases if own else f"{workspace.resolve().stem}-{cases}"
    groups: list[tuple[list[Path], Sequence[Case]]]
    if cases == "validation":
        groups = [([m], cases_for(m, manifest, cases)) for m in models]
    else:
        groups = [(list(models), cases_for(models[0], manifest, cases))]
    out_of: Callable[[Sequence[Path]], Path] = lambda m: default_out(m, name)  # noqa: E731
    if out is not None:
        out_of = lambda m: out if len(groups) == 1 else out / (run_of(m[0]) or m[0]).name  # noqa: E731
    return [
        Task(tuple(m), from_manifest(manifest, chosen), len(chosen), out_of(m), workspace, manifest)
        for m, chosen in groups
    ]


def _file_name(images: Sequence[Path]) -> str:
    from seguro.data.formats import split_name

    return split_name(images[0])[0] if len(images) == 1 else images[0].resolve().parent.name


def default_out(models: Sequence[Path], name: str) -> Path:
    """Return RUN/predictions/NAME for runs, ./predictions for bare models; an ensemble has its own name."""
    run = run_of(models[0])
    if run is None:
        return Path("predictions")
    return run / "predictions" / (name if len(models) == 1 else f"{name}-ensemble{len(models)}")


def three(text: str | None) -> ThreeF | None:
    """Return --spacing as (z, y, x)."""
    from seguro.data.manifest import parse_spacing

    if text is None:
        return None
    try:
        return parse_spacing(text)
    except DataError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def bar(out: Console) -> Iterator[Callable[[CaseProgress], None]]:
    """Yield a function that moves a bar with the time left; nothing is shown without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bars:
        task = bars.add_task("predicting", total=None)
        yield lambda p: bars.update(task, completed=p.done + p.fraction, total=p.total)


def show(text: Console, report: PredictionReport) -> None:
    """Print counts, failures and flagged cases."""
    from rich.markup import escape

    n, reused = len(report.cases), len(report.reused)
    text.print(
        f"{n} predicted" + (f" ({reused} of them were there already)" if reused else "")
        + f", {len(report.failed)} failed: {escape(str(report.out))}/"
    )  # fmt: skip
    for case, reason in list(report.failed.items())[:SHOWN]:
        text.print(f"  [red]failed[/] {escape(case)}: {escape(reason)}")
    flagged = [c for c in report.cases if c.flags]
    if flagged:
        text.print(f"{len(flagged)} to be looked at:")
    for predicted in flagged[:SHOWN]:
        text.print(f"  [yellow]{escape(predicted.id)}[/]: {escape('; '.join(predicted.flags))}")
    if max(len(flagged), len(report.failed)) > SHOWN:
        text.print(f"  all are listed in {escape(str(report.out / 'predictions.json'))}")


def summary(report: PredictionReport) -> dict[str, Any]:
    """Return a report as JSON values."""
    return {
        "out": str(report.out),
        "predicted": [c.id for c in report.cases],
        "reused": list(report.reused),
        "failed": dict(report.failed),
        "flags": {c.id: list(c.flags) for c in report.cases if c.flags},
        "outputs": dict(report.outputs),
    }


def refining(task: Task, report: PredictionReport, images: Sequence[Path]) -> str:
    """Return the command that takes a corrected slice of one of the images over."""
    import shlex

    one = len(report.cases) == 1 and all(i.is_file() for i in images)
    query = [str(i) for i in images] if one else ["IMAGE"]
    also = [word for model in task.models[1:] for word in ("--also", str(model))]
    command = ["seguro", "refine", str(task.models[0]), *query, "--predictions", str(report.out), *also]
    return f"{shlex.join(command)} --corrected LABEL.nii.gz"


def following(out: Path, workspace: Path | None, data_root: Path | None) -> str:
    """Return the command that scores the predictions against the workspace, if any, or labels."""
    import shlex

    command = ["seguro", "evaluate", str(out)]
    if workspace is None:
        return f"{shlex.join(command)} --truth LABELS"
    around = next((p for p in out.resolve().parents if (p / "check" / "manifest.json").exists()), None)
    if around != workspace.resolve():
        command += ["--data", str(workspace)]
    if data_root is not None:
        command += ["--data-root", str(data_root)]
    return shlex.join(command)
