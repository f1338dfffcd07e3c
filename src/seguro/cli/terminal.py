"""What every command prints with: lines for people, JSON for machines, the next command at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output; text goes to standard error."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and stop.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def console(as_json: bool = False) -> Console:
    """Return the console for text: standard output, or standard error when JSON was asked for."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False, soft_wrap=True)


def finish(
    out: Console,
    *,
    result: Mapping[str, Any],
    as_json: bool = False,
    warnings: Sequence[str] = (),
    then: str | None = None,
) -> None:
    """End a command: warnings, the next command to run, and the JSON result when asked for."""
    from rich.markup import escape

    if warnings:
        out.print(f"[yellow]{len(warnings)} warning{'s' if len(warnings) > 1 else ''}[/]")
        for line in warnings:
            out.print(f"  [yellow]-[/] {escape(line)}")
    if then:
        out.print(f"[dim]next:[/] {escape(then)}")
    if as_json:
        sys.stdout.write(json.dumps({**result, "warnings": list(warnings), "next": then}, default=str) + "\n")
