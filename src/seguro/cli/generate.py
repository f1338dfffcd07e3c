"""Make synthetic labelled volumes of a site from a data factory and its label branch.

The data set may take the place of the site's own where another site adapts; it is marked releasable only
where its slices are audited against the site's own and found to be no copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish

DRAWN = 3
"""Volumes that are drawn."""


def generate(
    run: Annotated[Path, typer.Argument(help="Run of method adapt that segments the domain.")],
    domain: Annotated[str, typer.Option(help="Site whose slices are made, as the factory names it.")],
    volumes: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    steps: Annotated[
        int, typer.Option(min=1, help="Slices from one of the generator's positions to the next.")
    ] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; ./synthetic-DOMAIN when not given.")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="Data folder whose cases of other sites are copied in: those to adapt to."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write a Medical Segmentation Decathlon folder with images, labels, pictures and synthetic.json."""
    import shlex

    from rich.markup import escape

    text = console(as_json)
    folder = out or Path(f"synthetic-{domain}")
    from seguro.api.generate import PREFIX, foreseen
    from seguro.api.generate import generate as work
    from seguro.cli.pictures import FOLDER, write_made

    if dry_run:
        text.print(f"would write {escape(str(folder))}/")
        for line in foreseen(run, domain, volumes, folder, steps=steps, beside=beside):
            text.print(escape(line))
        finish(text, result={"folder": folder, "volumes": volumes}, as_json=as_json)
        return

    made = work(
        run, domain, volumes, folder, steps=steps, seed=seed, beside=beside, device=device,
        say=lambda line: text.print(escape(line)),
    )  # fmt: skip
    drawn = write_made(made.folder, PREFIX, most=DRAWN)
    text.print(
        f"{made.n_volumes} volumes of {made.n_slices} slices in {escape(str(made.folder))}/, "
        f"{'releasable' if made.releasable else 'not releasable'}"
    )
    text.print(f"{len(drawn)} pictures: {escape(str(made.folder / FOLDER))}/")
    finish(
        text,
        result={
            "folder": made.folder,
            "volumes": made.n_volumes,
            "slices": made.n_slices,
            "releasable": made.releasable,
            "reason": made.reason,
        },
        as_json=as_json,
        then=shlex.join(["seguro", "adapt", str(made.folder), "--from", str(run), "--source", domain])
        if beside
        else shlex.join(["seguro", "generate", str(run), "--domain", domain, "--beside"])
        + " TARGET_DATA --out BOTH",
    )
