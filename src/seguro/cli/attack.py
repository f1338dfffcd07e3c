"""Attack a trained model, or corrupt its input, and measure what is left of its Dice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click import Context

from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish
from seguro.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from seguro.api.attack import AttackReport


OF_ATTACKS = (
    "suite", "eps", "iters", "restarts", "queries", "set_", "whole_volume", "memory", "center", "box",
    "threshold", "save", "check",
)  # fmt: skip
"""Options that natural corruptions have not."""


def attack(
    given: Context,
    run: Annotated[Path, typer.Argument(help="A run or model folder.")],
    suite: Annotated[
        str,
        typer.Option(
            help="strong: ours. rog: the paper's four. quick: the strongest alone. blackbox: no gradients. "
            "Or a list of attacks, such as apgd-ce,square. Default strong."
        ),
    ] = "strong",
    eps: Annotated[
        str,
        typer.Option(
            help="Largest changes: 255ths of each channel's range, or with unit: 3%, 20HU, 0.1sd. "
            "Default 0,5,8,16."
        ),
    ] = "0,5,8,16",
    iters: Annotated[int, typer.Option(min=1, help="Gradient steps of each attack, default 20.")] = 20,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts of each attack, default 1.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Of the square attack, default 500.")] = 500,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field of one attack: fab.trust=0.1, pgd-dice.momentum=1, apgd-ce.radii=[2,1.5,1]; "
            "repeatable. An unknown field lists those there are.",
        ),
    ] = None,
    whole_volume: Annotated[
        bool, typer.Option("--whole-volume", help="Through the blended windows, instead of one patch a case.")
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(help="GiB that --whole-volume may take; refused beyond. What is free, if not given."),
    ] = None,
    center: Annotated[
        str, typer.Option(help="Of the patch: foreground (as published; uses the truth) or middle.")
    ] = "foreground",
    box: Annotated[
        str, typer.Option(help="Valid values: own (range of each image) or window (of CT, the plan's).")
    ] = "own",
    threshold: Annotated[
        float | None, typer.Option(help="Dice below which a case is broken; half the mean clean Dice.")
    ] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save",
            help="Also write attacked volumes as NIfTI, on the planned grid; with --whole-volume.",
        ),
    ] = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Twelve natural corruptions at five severities instead.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Workspace or data set of the cases.")] = None,
    cases: Annotated[str, typer.Option(help="validation, test, train.")] = "validation",
    limit: Annotated[int | None, typer.Option(min=1, help="So many cases, spread evenly.")] = None,
    check: Annotated[
        int,
        typer.Option(min=0, help="Cases to check convergence and an unbounded epsilon on, default 3."),
    ] = 3,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data set lies now, if it was moved.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the result: RUN/attacks/NAME.")] = None,
    support: Annotated[
        list[str] | None,
        typer.Option(help="Annotated scan of the same classes, for a few-shot model; repeatable. Or a hash."),
    ] = None,
    support_label: Annotated[
        list[Path] | None, typer.Option(help="Mask of the --support in the same place; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the command; what was done before, also by a killed one, is not done again."""
    from seguro.api.attack_options import AttackOptions
    from seguro.api.corrupt import CorruptOptions
    from seguro.core.settings import settings_from

    options = AttackOptions(
        suite=suite, eps=eps, steps=iters, restarts=restarts, queries=queries,
        settings=settings_from(set_ or []),
        whole_volume=whole_volume, center=center, box=box, threshold=threshold,  # type: ignore[arg-type]
        cases=cases, limit=limit, check=check, save=save, seed=seed, memory_gib=memory,
    )  # fmt: skip
    if corruptions:
        _takes_corruptions(given)
    text = console(as_json)
    if dry_run:
        from seguro.api.attack import look
        from seguro.engine.model import load_model

        _, found, strengths = look(run, load_model(run).plan, options, data=data, data_root=data_root)
        told = "corruptions" if corruptions else f"{suite} at {', '.join(map(str, strengths))}"
        text.print(f"would attack {run} on {len(found)} {cases} cases: {told}", markup=False)
        plain = {"run": str(run), "cases": len(found), "eps": [e.number for e in strengths]}
        finish(text, result=plain, as_json=as_json)
        return
    if support_label and not support:
        raise ConfigError("--support-label: it is the mask of a --support; give that too")
    from seguro.api.support import support_of

    bank = support_of(run, run, support, support_label or ()) if support else None
    place = {"data": data, "data_root": data_root, "name": name, "support": bank}
    chosen = _machine(device, threads)
    with _bar(text) as progress:
        if corruptions:
            from seguro.api.corrupt import corrupt

            bad = CorruptOptions(cases=cases, limit=limit, seed=seed, device=chosen)
            report = corrupt(run, bad, progress=progress, **place)  # type: ignore[arg-type]
        else:
            from seguro.api.attack import attack as start

            report = start(run, replace(options, device=chosen), progress=progress, **place)  # type: ignore[arg-type]
    _show(text, report)
    finish(
        text,
        result={"folder": str(report.folder), "skipped": report.skipped, **report.summary},
        as_json=as_json,
        warnings=[
            f"not reliable: {g['name']} ({g['detail']})"
            for g in report.summary["guards"]
            if g["passed"] is False
        ],
        then=f"seguro report {run}",
    )


def _machine(device: str, threads: int | None) -> str:
    """Set the threads and return the device."""
    import torch

    from seguro.engine.runtime import Runtime

    if threads:
        torch.set_num_threads(threads)
    return str(Runtime(device).device)


def _takes_corruptions(given: Context) -> None:
    """Refuse options of attacks beside --corruptions, which would have no effect."""
    from click.core import ParameterSource

    for name in OF_ATTACKS:
        if given.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.strip("_").replace("_", "-")
            raise ConfigError(f"{option} has no effect on --corruptions; leave one of them away")


@contextmanager
def _bar(text: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that moves a bar with the time left; without a terminal, lines now and then."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("attacking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    last = [time.monotonic()]
    with Progress(*columns, console=text, disable=not text.is_terminal, transient=True) as bars:
        task = bars.add_task("", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bars.update(task, completed=done, total=total, description=what)
            if not text.is_terminal and time.monotonic() - last[0] > 30:
                last[0] = time.monotonic()
                text.print(f"  {done}/{total}  {what}", markup=False)

        yield tell


def _show(text: Console, report: AttackReport) -> None:
    """Print Dice by strength, class by class, the cost, and the guards."""
    from rich.markup import escape

    text.print(f"{'already done' if report.skipped else 'written'}: {escape(str(report.folder))}")
    text.print(_table(report))
    cost = report.summary["cost"]
    if "predict_s_per_case" in cost:
        ratio = cost["attack_s_per_case"] / max(cost["predict_s_per_case"], 1e-9)
        text.print(
            f"{cost['attack_s_per_case']:.3g} s a case and strength, {ratio:.0f} times its plain prediction "
            f"({cost['forwards']} forward, {cost['backwards']} backward passes)"
        )
    for guard in report.summary["guards"]:
        mark = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "-"}[guard["passed"]]
        text.print(f"  {mark} {escape(guard['name'])}: {escape(guard['detail'])}")


def _table(report: AttackReport) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from seguro.cli.evaluate import interval_text
    from seguro.core.files import read_json

    found: dict[str, list[dict[str, Any]]] = read_json(report.folder / "curves.json")
    strengths = report.summary["eps"]
    unit = report.summary["setting"]["eps_unit"]
    table = Table(
        padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD,
        caption=f"Dice [95 % interval over patients] by {unit}, n = {report.summary['cases']} cases",
    )  # fmt: skip
    for title in ("attack", "class", *[f"{e:g}" for e in strengths], "area"):
        table.add_column(title)
    points = {(c["attack"], c["class"], c["eps"]): c for c in found["curves"]}
    for area in found["areas"]:
        if area["attack"] != "worst" and area["class"] != "mean":
            continue
        cells = [points[area["attack"], area["class"], e] for e in strengths]
        texts = [interval_text(c["mean"], c["low"], c["high"]) for c in cells]
        table.add_row(
            escape(area["attack"]), escape(area["class"]), *texts,
            interval_text(area["mean"], area["low"], area["high"]),
        )  # fmt: skip
    return table
