"""Run a federation as its server, from its start-up folder: HAProxy, Flower's SuperLink and the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish


def server(
    folder: Annotated[Path, typer.Argument(help="The server's start-up folder, made by provision.")],
    federation: Annotated[
        Path, typer.Argument(help="YAML file with name, method, preset, rounds, updates, strategy, ...")
    ],
    out: Annotated[Path, typer.Option(help="The run goes to OUT/<run>.")] = Path("runs"),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run it to its end; the same command goes on where it stopped."""
    from rich.markup import escape

    from seguro.api import federation as api
    from seguro.core.errors import RunError
    from seguro.federated import deployment, startup

    screen = console(as_json)

    def say(line: str) -> None:
        screen.print(escape(line))

    start = startup.server_start(folder)
    options, sites = api.options_in(federation)
    settled = api.federation(options, sites or start.sites)
    deployment.expected(settled, start)
    if dry_run:
        say(f"certificates are valid until {startup.check(folder):%Y-%m-%d}")
        say(f"{settled.method} ({settled.preset}), {settled.rounds} rounds of {settled.updates} updates")
        say(f"sites: {', '.join(settled.sites)}")
        say(f"SuperLink: {shlex.join(startup.superlink_command(folder))}")
        say(f"HAProxy: {shlex.join(startup.proxy_command(folder))}")
        finish(screen, result={"run": str(out / settled.run)}, as_json=as_json)
        return
    try:
        run = deployment.serve(folder, settled, out, say=say)
    except KeyboardInterrupt as stop:
        raise RunError("stopped; the same command goes on after the last finished round") from stop
    quoted = shlex.quote(str(run))
    finish(screen, result={"run": str(run)}, as_json=as_json, then=f"seguro report {quoted}")
