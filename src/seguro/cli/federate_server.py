"""Run a federation as its server, from its start-up folder: HAProxy, Flower's SuperLink and the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish


def server(
    folder: Annotated[Path, typer.Argument(help="The server's start-up folder, made by provision.")],
    federation: Annotated[
        Path, typer.Argument(help="YAML file with name, method, preset, rounds, updates, strategy, ...")
    ],
    out: Annotated[Path, typer.Option(help="The run goes to OUT/<run>.")] = Path("runs"),
    facts: Annotated[
        list[str] | None,
        typer.Option(
            help="With --dry-run: SITE=FILE, the federated/facts.json that a site's own dry run wrote in its "
            "workspace; bytes are foretold by them; repeatable."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run it to its end; the same command goes on where it stopped."""
    from rich.markup import escape

    from seguro.api import federation as api
    from seguro.core.errors import ConfigError, RunError
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
        result: dict[str, Any] = {"run": str(out / settled.run)}
        if facts:
            found = api.foretell_from(settled, files_of(facts))
            for line in found.lines():
                say(line)
            result |= found.values()
        else:
            say("bytes and hours: not known before sites tell of their cases; --facts SITE=FILE foretells")
        say(f"SuperLink: {shlex.join(startup.superlink_command(folder))}")
        say(f"HAProxy: {shlex.join(startup.proxy_command(folder))}")
        finish(screen, result=result, as_json=as_json)
        return
    if facts:
        raise ConfigError("--facts foretells bytes and goes with --dry-run only")
    try:
        run = deployment.serve(folder, settled, out, say=say)
    except KeyboardInterrupt as stop:
        raise RunError("stopped; the same command goes on after the last finished round") from stop
    quoted = shlex.quote(str(run))
    finish(screen, result={"run": str(run)}, as_json=as_json, then=f"seguro report {quoted}")


def files_of(facts: list[str]) -> dict[str, Path]:
    """Return the files by site of words SITE=FILE; ConfigError where one has no such form."""
    from seguro.core.errors import ConfigError

    pairs = [word.partition("=") for word in facts]
    if odd := [word for word, (site, _, file) in zip(facts, pairs, strict=True) if not (site and file)]:
        raise ConfigError(f"--facts {odd[0]}: expected SITE=FILE")
    return {site: Path(file) for site, _, file in pairs}
