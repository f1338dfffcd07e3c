"""Bring a published data set, as downloaded, into a layout that check and train read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.data.importers import TABLE, importer


def imports(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(TABLE)}.")],
    source: Annotated[Path, typer.Argument(help="What was downloaded: an archive or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the data set into.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the command; nothing is written into the source."""
    import shlex

    text = console(as_json)
    bring = importer(name)
    if dry_run:
        text.print(f"would import {source} as {name}: {TABLE[name][1]}", markup=False)
        finish(text, result={"name": name, "source": str(source)}, as_json=as_json)
        return
    found = bring(source, out)
    text.print(f"{found.n_cases} training cases in {found.folder}", markup=False)
    finish(
        text,
        result={"folder": str(found.folder), "n_cases": found.n_cases, "options": list(found.options)},
        as_json=as_json,
        warnings=list(found.notes),
        then=" ".join(["seguro train", shlex.quote(str(found.folder)), *found.options]),
    )
