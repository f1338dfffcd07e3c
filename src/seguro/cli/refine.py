"""Predict again after a slice was corrected by hand: it joins the support, nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.core.errors import ConfigError

SHOWN = 5
"""Slices to correct next that are printed; all are in doubt.csv."""


def refine(
    run: Annotated[Path, typer.Argument(help="Run or model folder that predicted the image.")],
    query: Annotated[list[Path], typer.Argument(help="The image: one file, or one per channel.")],
    corrected: Annotated[
        Path | None, typer.Option(help="Label on the image's grid, or of one of its slices alone.")
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            help="Corrected slices, from 0 as the file counts: 12,30. Those that differ by default."
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last correction back.")] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Folder of the prediction; found below RUN when not given.")
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="A further model of the ensemble that predicted it; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    spacing: Annotated[
        str | None, typer.Option(help="Z,Y,X (or one number) in mm, for an image that states none.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Refine; the first prediction stays, the refined one lies in its folder below refined/."""
    import shlex

    from rich.markup import escape

    from seguro.api.refine import refine as work
    from seguro.api.support import slice_choice
    from seguro.cli.predict import three
    from seguro.core.types import Warnings

    chosen = None if slices is None else slice_choice(slices)
    if isinstance(chosen, str) or (chosen is not None and undo):
        raise ConfigError(f"--slices {slices}: expected numbers, as in 12,30, of a --corrected file")
    text, warnings = console(as_json), Warnings()
    if dry_run:
        if undo == (corrected is not None):
            raise ConfigError("refine: give either --corrected SLICE or --undo")
        text.print(f"would {'take a correction of' if undo else 'correct'} {escape(str(query[0]))}"
                   f"{' back' if undo else ''} and predict it again")  # fmt: skip
        finish(text, result={"query": query, "undo": undo}, as_json=as_json)
        return
    done = work(
        [run, *(also or [])], query, corrected, predictions=predictions, slices=chosen, undo=undo,
        device=device, spacing=three(spacing), warnings=warnings,
    )  # fmt: skip
    case = done.report.cases[0]
    text.print(
        f"{escape(case.id)}: {done.steps} correction{'s' * (done.steps != 1)} in force, support "
        f"{done.support[:12]}: {escape(str(done.report.out))}/"
    )
    for line in case.flags:
        text.print(f"  [yellow]{escape(line)}[/]")
    best = [(z, wrong) for z, wrong in done.following[:SHOWN] if round(wrong) > 0]
    if best:
        text.print("look next at slice " + ", ".join(f"{z} ({wrong:.0f} voxels)" for z, wrong in best))
    finish(
        text,
        result={
            "out": done.report.out,
            "support": done.support,
            "corrections": done.steps,
            "corrected": list(done.corrected),
            "next_slices": [{"slice": z, "expected_wrong_voxels": v} for z, v in best],
            "cycle_dice": dict(case.cycle or {}),
        },
        as_json=as_json,
        warnings=warnings.lines(),
        then=shlex.join(["seguro", "refine", str(run), *map(str, query), "--corrected", "LABEL.nii.gz"]),
    )
