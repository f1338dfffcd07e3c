"""Bring DICOM series, or a published data set as downloaded, into a layout that check and train read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.core.errors import ConfigError
from seguro.data.importers import OPTIONS, TABLE, importer

_TAKES = "; ".join(f"{name}: {what}" for name, (_, what) in TABLE.items()) + "."
_FOR = {name: ", ".join(known) for name, known in OPTIONS.items()}


def imports(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(TABLE)}.")],
    source: Annotated[Path, typer.Argument(help=f"What was downloaded or exported. {_TAKES}")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the data set into.")] = None,
    min_max: Annotated[
        bool, typer.Option("--min-max", help=f"Images to [0, 1] by their own range: {_FOR['min_max']}.")
    ] = False,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help=f"Interpolate uneven gaps and gantry tilt away, where refused else: {_FOR['resample']}.",
        ),
    ] = False,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine", help=f"Leave out damaged files and refused series: {_FOR['quarantine']}."
        ),
    ] = False,
    keep_names: Annotated[
        bool,
        typer.Option(
            "--keep-names",
            help=f"Name cases after their folders (which may name patients): {_FOR['keep_names']}.",
        ),
    ] = False,
    as_scanned: Annotated[
        bool,
        typer.Option(
            "--as-scanned",
            help=f"Keep the scanner's grid and values, not those of the paper: {_FOR['as_scanned']}.",
        ),
    ] = False,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions", help=f"All modalities, overlapping regions; not one of each: {_FOR['regions']}."
        ),
    ] = False,
    split: Annotated[
        str | None, typer.Option(help=f"8/2 (default), 6/2/2 or 5-fold: {_FOR['split']}.")
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option(help=f"Order of the split; sorted when not given: {_FOR['split_seed']}.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the command; nothing is written into the source."""
    import shlex

    text = console(as_json)
    bring = importer(name)
    given = {
        "min_max": min_max,
        "resample": resample,
        "quarantine": quarantine,
        "keep_names": keep_names,
        "as_scanned": as_scanned,
        "regions": regions,
        "split": split,
        "split_seed": split_seed,
    }
    chosen = {option: value for option, value in given.items() if value is not None and value is not False}
    for option in chosen:
        if name not in OPTIONS[option]:
            raise ConfigError(f"--{option.replace('_', '-')}: not for {name}; it is for {_FOR[option]}")
    if dry_run:
        text.print(f"would import {source} as {name}: {TABLE[name][1]}", markup=False)
        finish(text, result={"name": name, "source": str(source)}, as_json=as_json)
        return
    found = bring(source, out, **chosen)
    what = "images" if found.next == "check" else "training cases"
    text.print(f"{found.n_cases} {what} in {found.folder}", markup=False)
    finish(
        text,
        result={"folder": str(found.folder), "n_cases": found.n_cases, "options": list(found.options)},
        as_json=as_json,
        warnings=list(found.notes),
        then=shlex.join(["seguro", found.next, str(found.folder), *found.options]),
    )
