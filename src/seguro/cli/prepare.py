"""Write the preprocessed cases that training reads; says their size first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish


def prepare(
    data: Annotated[Path, typer.Argument(help="Data folder, or a workspace (NAME.seguro).")],
    out: Annotated[Optional[Path], typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cases prepared at a time.")] = 2,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fill the store; finished cases are kept, a killed command goes on where it stopped."""
    import shlex
    import shutil

    from rich.markup import escape

    from seguro import api
    from seguro.cli.progress import counting
    from seguro.core.errors import RunError
    from seguro.core.stage import locked
    from seguro.data import store

    out_console = console(as_json)
    workspace, manifest, plan = api.plan(data, out=out, jobs=jobs, say=lambda s: out_console.print(escape(s)))
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    size = store.predicted_bytes(cases, plan)
    out_console.print(f"{len(cases)} cases, about {size / 2**20:.0f} MiB")
    if not dry_run:
        free = shutil.disk_usage(workspace).free
        if size > free:
            raise RunError(f"{workspace}: the store needs {size} bytes, {free} are free; use another --out")
        with locked(workspace), counting(out_console, "preparing") as count:
            store.prepare(workspace, manifest, plan, jobs=jobs, progress=count)
    finish(
        out_console,
        result={"store": str(workspace / "store" / plan.preprocessing_hash), "bytes": size, "cases": len(cases)},
        as_json=as_json,
        then=f"seguro train {shlex.quote(str(workspace))}",
    )
