"""Learn to segment a site without labels, from a data factory and a site that has them.

The same as `seguro train --method adapt --init FROM`, with the sites as options. From a factory it trains the
source's encoder and label branch (stage source); from such a run it adapts to the target (stage adapt); from
that one a plain network learns the source's labels on slices painted in the target's look, and its own
guesses on the target's images (stage repaint, which is `seguro train --method repaint`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seguro.cli.terminal import AsJson, DryRun, Seed
from seguro.cli.train import LABELLED

STAGES = ("source", "adapt", "repaint")


def adapt(
    data: Annotated[Path, typer.Argument(help="Data folder with source and target, or a workspace.")],
    start: Annotated[Path, typer.Option("--from", help="Run to start from: a factory, or the stage before.")],
    source: Annotated[
        str | None, typer.Option(help="Site with labels; all labelled cases when not given.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Site to adapt to; all other cases by default.")] = None,
    stage: Annotated[str, typer.Option(help="source, adapt, repaint, or auto: what follows FROM.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of the method; auto: small without a GPU.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="YAML file with fields of the method.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One field: a.b=c; repeatable.")] = None,
    folds: Annotated[str, typer.Option(help="As of train.")] = "0",
    updates: Annotated[int | None, typer.Option(min=1, help="Stop after this many updates.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop after this time: 45m, 2h. Default 1h.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, help="Samples per update, an even number; a multiple of 4 in stage repaint."),
    ] = None,
    validations: Annotated[int, typer.Option(min=1, help="Validations over the whole training.")] = 20,
    labelled: Annotated[str | None, typer.Option(help=LABELLED)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; adapt-STAGE-TARGET by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one stage; the first lines say where it works, what was chosen and why, and when it will end."""
    import json

    from rich.markup import escape

    from seguro import api
    from seguro.api.adaptation import foreseen, frame_as_begun
    from seguro.cli.terminal import console
    from seguro.cli.train import gpu_for, train
    from seguro.core.settings import merge, read_yaml, settings_from

    chosen = stage_of(stage, start)
    method = "repaint" if chosen == "repaint" else "adapt"
    sites = {"source": source, "target": target}
    named = [f"{k}={json.dumps(v)}" for k, v in sites.items() if v is not None]  # quoted: a site may be "3"
    frame = frame_as_begun(data, start, out=out, write=not dry_run, plans=False)
    told = [] if chosen == "repaint" else [f"stage={chosen}"]
    given = read_yaml(config) if config else {}
    framed = [f"{k}={v}" for k, v in frame.items() if k not in given]
    settings = [*told, *named, *framed, *(set_ or [])]
    text = console(as_json)
    for fold in ["0"] if folds == "all" else folds.split(","):
        options = api.TrainOptions(
            method=method, preset=preset, settings=merge(given, settings_from(settings)), batch=batch,
            init=start, fold=api.ALL if fold.strip() == "none" else fold.strip(), labelled=labelled,
            seed=seed,
        )  # fmt: skip
        for line in foreseen(data, options, out=out, gpu=gpu_for(device), write=not dry_run):
            text.print(escape(line))
    if not dry_run:
        frame_as_begun(data, start, out=out)  # plans, now that nothing was refused
    site = source if chosen == "source" else target
    train(
        data, out=out, method=method, preset=preset, config=config, set_=settings, folds=folds,
        updates=updates, budget=budget, batch=batch, validations=validations, init=start, labelled=labelled,
        name=name or "-".join(["adapt", chosen, *([site] if site else [])]),
        device=device, dims=2, threads=threads, seed=seed, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


def stage_of(stage: str, start: Path) -> str:
    """Return the stage to train; "auto" is what the run to start from leads to.

    Raises:
        ConfigError: an unknown stage, or a run of another method to start from.
    """
    from seguro.core.errors import ConfigError
    from seguro.core.files import read_json
    from seguro.engine.model import model_folder

    if stage not in ("auto", *STAGES):
        raise ConfigError(f"--stage {stage}: expected {', '.join(STAGES)} or auto")
    begun = read_json(model_folder(start) / "model.json")
    if begun["method"] not in ("factory", "adapt"):
        raise ConfigError(
            f"--from {start}: made by method {begun['method']}; expected a factory (seguro train --method "
            "factory), or stage source or adapt of an adaptation"
        )
    if stage != "auto":
        return stage
    if begun["method"] == "factory":
        return "source"
    return "repaint" if begun["config"].get("stage") == "adapt" else "adapt"
