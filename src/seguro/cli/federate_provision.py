"""Make the start-up folders of a federation: certificates, keys, proxies, one folder per site."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish

SUFFIX = ".federation"


def provision(
    project: Annotated[
        Path, typer.Argument(help="YAML file with name, server, sites; optional port, bind, days, ...")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder; ./NAME.federation when not given.")] = None,
    renew: Annotated[
        list[str] | None,
        typer.Option(help="A site, or server, that gets new certificates and keys; repeatable."),
    ] = None,
    revoke: Annotated[
        list[str] | None, typer.Option(help="A site that may no longer connect; repeatable.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make what is missing; keys, certificates and policies that are there stay."""
    from rich.markup import escape

    from seguro.federated.provision import provision as make
    from seguro.federated.provision import read_project

    screen = console(as_json)
    wanted = read_project(project)
    folder = out or Path(f"{wanted.name}{SUFFIX}")
    result = {"folder": str(folder), "server": str(folder / "server")}
    result |= {f"site {name}": str(folder / "sites" / name) for name in wanted.sites}
    if dry_run:
        screen.print(
            escape(f"{wanted.name}: server {wanted.server}:{wanted.port}, sites {', '.join(wanted.sites)}")
        )
        finish(screen, result=result, as_json=as_json)
        return
    for line in make(wanted, folder, renew=renew or (), revoke=revoke or ()):
        screen.print(escape(line))
    screen.print(
        escape(f"{folder / 'sites'}: each site gets its own folder, on a way that others cannot read")
    )
    finish(
        screen,
        result=result,
        as_json=as_json,
        then=f"seguro federate server {shlex.quote(str(folder / 'server'))} FEDERATION.yaml",
    )
