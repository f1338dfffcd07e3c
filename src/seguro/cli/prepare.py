"""Write the preprocessed cases that training reads; says their size first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish


def prepare(
    data: Annotated[Path, typer.Argument(help="Data folder, or a workspace (NAME.seguro).")],
    out: Annotated[Path | None, typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cases prepared at a time.")] = 2,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fill the store; finished cases are kept, a killed command goes on where it stopped."""
    import shlex

    from rich.markup import escape

    from seguro import api
    from seguro.cli.progress import counting

    out_console = console(as_json)

    def say(line: str) -> None:
        out_console.print(escape(line))

    workspace = api.workspace_of(data, out)
    result: dict[str, object] = {"workspace": str(workspace)}
    if dry_run:
        from seguro.data import store

        _, manifest, plan = api.plan(data, out=out, jobs=jobs, say=say)
        cases = (*manifest.of("train"), *manifest.of("unlabelled"))
        size = store.predicted_bytes(cases, plan)
        say(f"checked and planned; would write {len(cases)} cases, about {size / 2**20:.0f} MiB")
        result |= {"bytes": size, "cases": len(cases)}
    else:
        with counting(out_console, "preparing") as count:
            folder = api.prepare(data, out=out, jobs=jobs, progress=count, say=say)
        result |= {"store": str(folder)}
    finish(out_console, result=result, as_json=as_json, then=f"seguro train {shlex.quote(str(workspace))}")
