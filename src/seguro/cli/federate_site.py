"""Take part in a federation as a site, from its start-up folder: its sidecar and Flower's SuperNode."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish


def site(
    folder: Annotated[Path, typer.Argument(help="The site's start-up folder, made by provision.")],
    data: Annotated[Path, typer.Argument(help="The site's data folder; nothing is written into it.")],
    out: Annotated[Path | None, typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N.")] = "cpu",
    precision: Annotated[str, typer.Option(help="32, bf16-mixed, 16-mixed.")] = "32",
    federation: Annotated[
        Path | None,
        typer.Option(
            help="With --dry-run: the server's FEDERATION.yaml, whose bytes and hours are foretold."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take part until stopped; with --dry-run check data and connection, and print what would leave."""
    from rich.markup import escape

    from seguro import api
    from seguro.core.errors import ConfigError
    from seguro.federated import deployment, startup
    from seguro.federated.message import Task
    from seguro.federated.policy import against, asked_by, read_policy

    screen = console(as_json)

    def say(line: str) -> None:
        screen.print(escape(line))

    start = startup.site_start(folder)
    workspace = api.workspace_of(data, out)
    policy = read_policy(folder / "policy.yaml")
    if federation is not None and not dry_run:
        raise ConfigError("--federation foretells bytes and hours and goes with --dry-run only")
    if not dry_run:
        try:
            deployment.take_part(folder, data, workspace, device=device, precision=precision, say=say)
        except KeyboardInterrupt:
            say("stopped; the same command takes part again")
        finish(screen, result={"site": start.site, "workspace": str(workspace)}, as_json=as_json)
        return
    from seguro.api.federation import foretell_here
    from seguro.federated.site import Site

    here = Site(start.site, data, workspace, device=device, precision=precision, say=say)  # type: ignore[arg-type]
    kept = [name for name in ("losses", "scores", "counts") if name not in policy.may_leave]
    refused: list[str] = []
    result: dict[str, Any] = {"site": start.site, "facts": here.facts()}
    if federation is None:
        say(f"site {start.site} would tell the server of its cases, before round 1:")
        for key, value in result["facts"].items():
            say(f"    {key}: {json.dumps(value)}")
        say("then in every round the weights of the model, and losses, Dice, counts and seconds as numbers")
        say("bytes and hours: --federation FEDERATION.yaml, the server's file, foretells them")
    else:
        found = foretell_here(federation, here)
        for line in found.lines():
            say(line)
        say("the plan of all sites may differ from that of this one alone, and with it these numbers")
        result |= {k: v for k, v in found.values().items() if k != "sites"}
        asked = asked_by(Task("", 0, "agree", config=found.agreement))
        refused = [] if asked is None else against(policy, asked, 0)
    if kept:
        say(f"but no {', '.join(kept)}: the policy keeps them here")
    say(f"what this site tells lies in {workspace / 'federated' / 'facts.json'}")
    say(f"policy: {policy.model_dump_json(exclude_none=True)}")
    if refused:
        raise ConfigError(f"{folder / 'policy.yaml'} forbids this run: {'; '.join(refused)}")
    say(f"certificates are valid until {startup.check(folder):%Y-%m-%d}")
    startup.reach(folder)
    say(f"{start.host}:{start.port} lets this site in")
    then = f"seguro federate site {shlex.quote(str(folder))} {shlex.quote(str(data))}"
    finish(screen, result=result, as_json=as_json, then=then)
