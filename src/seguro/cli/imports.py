"""Bring a published data set, as downloaded, into a layout that check and train read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.core.errors import ConfigError
from seguro.data.importers import MIN_MAX, TABLE, importer


def imports(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(TABLE)}.")],
    source: Annotated[Path, typer.Argument(help="What was downloaded: an archive or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the data set into.")] = None,
    min_max: Annotated[
        bool, typer.Option("--min-max", help=f"Images to [0, 1] by their own range: {', '.join(MIN_MAX)}.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the command; nothing is written into the source."""
    import shlex

    text = console(as_json)
    bring = importer(name)
    if min_max and name not in MIN_MAX:
        raise ConfigError(f"--min-max: {name} keeps its images; it is for {', '.join(MIN_MAX)}")
    if dry_run:
        text.print(f"would import {source} as {name}: {TABLE[name][1]}", markup=False)
        finish(text, result={"name": name, "source": str(source)}, as_json=as_json)
        return
    found = bring(source, out, **({"min_max": True} if min_max else {}))
    text.print(f"{found.n_cases} training cases in {found.folder}", markup=False)
    finish(
        text,
        result={"folder": str(found.folder), "n_cases": found.n_cases, "options": list(found.options)},
        as_json=as_json,
        warnings=list(found.notes),
        then=" ".join(["seguro train", shlex.quote(str(found.folder)), *found.options]),
    )
