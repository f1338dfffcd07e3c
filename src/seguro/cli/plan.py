"""Choose spacing, 2-D or 3-D, patch, network depth, intensities and folds from the training cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.cli.train import RECIPE, SLICES, WINDOW


def plan(
    data: Annotated[Path, typer.Argument(help="Data folder, or a workspace (NAME.seguro).")],
    out: Annotated[Path | None, typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    memory: Annotated[float | None, typer.Option(min=0.01, help="GiB of one training step.")] = None,
    dims: Annotated[
        int | None, typer.Option(min=2, max=3, help="2 or 3; the data decide by default.")
    ] = None,
    full_resolution: Annotated[
        bool, typer.Option("--full-resolution", help="Never coarser voxels than the data's.")
    ] = False,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel size z,y,x in the data's unit, e.g. 10,1.5,1.5; from the data.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(help="Voxels of a patch, y,x or z,y,x, e.g. 256,256; from --memory.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Patches of one step; from --memory.")] = None,
    recipe: Annotated[str | None, typer.Option(help=RECIPE)] = None,
    window: Annotated[str | None, typer.Option(help=WINDOW)] = None,
    slices: Annotated[str | None, typer.Option(help=SLICES)] = None,
    device: Annotated[
        str, typer.Option(help="Where it will be trained; decides the default of --memory.")
    ] = "auto",
    folds: Annotated[
        int | None, typer.Option(min=2, help="How many, by patient; 5 where nothing is said.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the folds.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write `plan/plan.json`; it may be edited by hand afterwards."""
    import shlex

    from rich.markup import escape

    from seguro import api
    from seguro.cli.progress import counting
    from seguro.cli.train import numbers, plan_options_for

    out_console = console(as_json)
    workspace = api.workspace_of(data, out)
    path = workspace / "plan" / "plan.json"
    if dry_run:
        finish(
            out_console,
            result={"would_write": str(path)},
            as_json=as_json,
            then=f"seguro plan {shlex.quote(str(data))}",
        )
        return
    options = plan_options_for(
        workspace,
        memory=memory,
        dims=dims,
        full_resolution=full_resolution,
        spacing=numbers(spacing, "--spacing", float, (3,)),
        patch=numbers(patch, "--patch", int, (2, 3)),
        batch=batch,
        recipe=recipe,
        window=window,
        slices=slices,
        folds=folds,
        device=device,
        seed=seed,
    )
    with counting(out_console, "reading cases") as count:
        _, _, made = api.plan(
            data, out=out, options=options, progress=count, say=lambda s: out_console.print(escape(s))
        )
    out_console.print(
        f"[bold]{escape(made.name)}[/]: {made.dims}-D, spacing {made.spacing} {made.unit}, {path}"
    )
    for reason in made.reasons:
        out_console.print(f"  {escape(reason)}")
    finish(
        out_console,
        result={"plan": str(path), **made.model_dump(mode="json", exclude={"folds"})},
        as_json=as_json,
        then=f"seguro train {shlex.quote(str(workspace))}",
    )
