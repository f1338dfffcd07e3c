"""Go the whole way on a dozen made subjects in a few minutes."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish

if TYPE_CHECKING:
    from rich.console import Console

CAVEAT = "One anatomy in twelve disguises proves the path, not a score."
DATA, RUN = "brains", "demo"
UPDATES = 150
RECIPE = ["--preset", "tiny", "--set", "network_options.width=8", "--set", "learning_rate=0.004"]
RECIPE += ["--batch", "1", "--validations", "5"]
"""A narrow network and a steep start: what a few minutes on two cores allow."""
SCHEMA = 1
"""Raised whenever the made subjects would change for the same seed."""


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the subjects and all that follows.")] = Path(
        "demo"
    ),
    updates: Annotated[int, typer.Option("--updates", min=1, help="Training updates.")] = UPDATES,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make twelve subjects of a brain template; check, plan, prepare, train, predict, evaluate, report.

    Every step is the command that a user would type. Finished steps are skipped when it is run again.
    """
    screen = console(as_json)
    arrow = steps(out, updates, seed)
    if dry_run:
        for arguments in arrow:
            screen.print(f"$ seguro {shlex.join(arguments)}", markup=False)
        finish(screen, result={"commands": [["seguro", *a] for a in arrow]}, as_json=as_json)
        return
    start = time.monotonic()
    make_subjects(screen, out, seed)
    seconds = {}
    for arguments in arrow:
        begin = time.monotonic()
        run_step(screen, arguments, quiet=as_json)
        seconds[arguments[0]] = round(time.monotonic() - begin, 1)
    report = out / f"{DATA}.seguro" / "runs" / RUN / "report" / "report.html"
    minutes, rest = divmod(round(time.monotonic() - start), 60)
    screen.print(f"\n[bold]done in {minutes} min {rest} s[/]: {CAVEAT}")
    screen.print(f"report: {report}", markup=False)
    screen.print("now your own scans (Decathlon, nnU-Net, or folders of images and labels):")
    finish(
        screen,
        result={"report": str(report), "seconds": seconds},
        as_json=as_json,
        then="seguro train FOLDER",
    )


def steps(out: Path, updates: int, seed: int) -> list[list[str]]:
    """Return the commands of the arrow, in order, as a user would type them after `seguro`."""
    data, workspace = out / DATA, out / f"{DATA}.seguro"
    run = workspace / "runs" / RUN
    place = ["--out", str(workspace)]
    predictions = run / "predictions" / "test"
    return [
        ["check", str(data), *place],
        ["plan", str(data), *place],
        ["prepare", str(data), *place],
        ["train", str(data), *place, "--name", RUN, *RECIPE, "--updates", str(updates), "--seed", str(seed)],
        ["predict", str(run), "--data", str(workspace), "--cases", "test"],
        ["evaluate", str(predictions)],
        ["report", str(run), "--caveat", CAVEAT],
    ]


def make_subjects(screen: Console, out: Path, seed: int) -> None:
    """Write the made subjects below `out` unless they are there already.

    Raises:
        ExtraMissing: the extra "demo" is not installed.
    """
    from seguro.core.files import sha256_file
    from seguro.core.stage import Stage, locked
    from seguro.data import example

    folder = out / DATA
    reads = {name: sha256_file(example.template_path(name)) for name in example.MAPS}
    stage = Stage(out, "subjects", reads=reads, config={"seed": seed}, schema=SCHEMA)
    if stage.done():
        screen.print(f"subjects: already in {folder}", markup=False)
        return
    screen.print(
        f"subjects: one brain template, warped and scanned at three made sites, into {folder}", markup=False
    )
    with locked(out):
        example.write_subjects(folder, seed=seed)
        stage.finish(sorted(p for p in folder.rglob("*") if p.is_file()))


def run_step(screen: Console, arguments: list[str], *, quiet: bool = False) -> None:
    """Print one command and run it in this process; with `quiet` all its text goes to standard error.

    Raises:
        typer.Exit: the command failed; its own message and exit code stand.
    """
    from seguro.cli import main

    screen.print(f"\n[bold cyan]$ seguro[/] {_escaped(arguments)}")
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        code = main.main(arguments)
    if code:
        raise typer.Exit(code)


def _escaped(arguments: list[str]) -> Any:
    from rich.markup import escape

    return escape(shlex.join(arguments))
