"""Train over sites on this machine: the same server and sites as over a network, in one process."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish
from seguro.federated.keeper import EVERY_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from seguro.api.federation import FederateOptions

STRATEGY = (
    "One field of the strategy: aggregate=trimmed (or uniform), trim=0.2, norm_bound=2, prox=0.01, "
    "personal=norm, fraction=0.5, quorum=3, timeout_s=600, best=worst, evaluate_every=5, coding=int8, "
    "down=int8, optimiser=reset, server_average=0.9, privacy.clip=1, privacy.noise=1, ...; repeatable."
)


def simulate(
    data: Annotated[
        list[Path], typer.Argument(help="A folder of data per site; or one folder, divided by --sites.")
    ],
    sites: Annotated[
        str | None, typer.Option(help="Of one folder: deal its patients to so many; else the sites it names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Workspace of one folder; folder for the run of several.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How to learn; supervised by default.")] = None,
    network: Annotated[str | None, typer.Option(help="unet, or monai:Name.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset of the method; by default small without a GPU.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One field of the method: a.b=c; repeatable.")
    ] = None,
    strategy: Annotated[list[str] | None, typer.Option(help=STRATEGY)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file as `federate server` takes it; options given here come before it."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; 20 by default.")] = None,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Local updates of a site in a round; 50 by default.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per update; the plan's by default.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.01, help="GiB of one training step; decides the patch.")
    ] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Each site in a process of its own, at the same time.")
    ] = False,
    save_every: Annotated[
        float,
        typer.Option(min=0, help="Seconds from one saved state to the next; 0 saves every round."),
    ] = EVERY_S,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N.")] = "cpu",
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train; with --dry-run check every site's data and say what would leave it, how much and how long."""
    from rich.markup import escape

    from seguro.api import federation as api
    from seguro.api import segments
    from seguro.core.settings import merge, settings_from

    screen = console(as_json)

    def say(line: str) -> None:
        screen.print(escape(line))

    options = api.options_in(config)[0] if config else api.FederateOptions()
    given = {
        "method": method,
        "preset": preset,
        "network": network,
        "rounds": rounds,
        "updates": updates,
        "batch": batch,
        "seed": seed,
        "name": name,
    }
    options = replace(
        options,
        **{k: v for k, v in given.items() if v is not None},  # type: ignore[arg-type]
        settings=merge(options.settings or {}, settings_from(set_ or [])),
        strategy=merge(options.strategy, settings_from(strategy or [])),
        plan=merge(options.plan, {} if memory is None else {"memory_gib": memory}),
        device=device,
        processes=processes,
        save_every_s=save_every,
    )
    if dry_run:
        result = describe(data, options, out, sites, say)
        finish(screen, result=result, as_json=as_json)
        return
    run = api.simulate(data, options, out=out, sites=sites, say=say)
    then = f"seguro predict {shlex.quote(str(run))} IMAGES"
    if not segments(options.method):
        then = f"seguro adapt DATA --from {shlex.quote(str(run))} --source SITE --target SITE"
    finish(
        screen,
        result={"run": str(run)},
        as_json=as_json,
        then=then,
    )


def describe(
    data: list[Path],
    options: FederateOptions,
    out: Path | None,
    sites: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say what a run would take and what would leave each site; returns it as JSON values."""
    from seguro.api import federation as api

    found = api.foretell(data, options, out=out, sites=sites, say=say)
    for line in found.lines():
        say(line)
    return found.values()
