"""Train a model; runs check, plan and prepare first where they are missing, resumes what was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from seguro.cli.terminal import AsJson, DryRun, Seed, console, finish

Number = TypeVar("Number", int, float)
RECIPE = "Rules of patch and strides: seguro, or rog (3-D, as published)."
WINDOW = "CT window in Hounsfield units: LEVEL,WIDTH, or covid, lung, abdomen, brain, bone."
SLICES = "Of a 2-D plan: axial, coronal or sagittal; the data decide by default."
LABELLED = (
    "Patients that keep their labels, others are unlabelled: a number (3, drawn by --seed), a share (0.1), "
    "by site (A=all,B=3), ids with commas (a,b; one: a,) or a file with one id per line."
)
GPU_MEMORY_GIB = 8.0
"""Memory of a training step that a first plan is made for where there is a GPU."""


def train(
    data: Annotated[Path, typer.Argument(help="Data folder, or a workspace (NAME.seguro).")],
    out: Annotated[Path | None, typer.Option(help="Workspace; ./NAME.seguro when not given.")] = None,
    method: Annotated[str, typer.Option(help="How to learn.")] = "supervised",
    network: Annotated[str | None, typer.Option(help="unet, or monai:Name.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of the method; auto: small without a GPU.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="YAML file with fields of the method.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One field: a.b=c; repeatable.")] = None,
    folds: Annotated[
        str,
        typer.Option(
            help="A fold of the plan, several with commas, 'all' for each in turn, "
            "'none' to train on every case."
        ),
    ] = "0",
    updates: Annotated[int | None, typer.Option(min=1, help="Stop after this many updates.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop after this time: 45m, 2h. Default 1h.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per update; the plan's by default.")
    ] = None,
    patience: Annotated[int, typer.Option(min=0, help="Stop after so many validations without gain.")] = 0,
    validations: Annotated[int, typer.Option(min=1, help="Validations over the whole training.")] = 20,
    init: Annotated[Path | None, typer.Option(help="Start from this run's or model's weights.")] = None,
    labelled: Annotated[str | None, typer.Option(help=LABELLED)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, 32, bf16-mixed, 16-mixed.")] = "auto",
    memory: Annotated[
        float | None, typer.Option(min=0.01, help="GiB of one training step; decides the patch.")
    ] = None,
    dims: Annotated[
        int | None, typer.Option(min=2, max=3, help="2 or 3; the data decide by default.")
    ] = None,
    full_resolution: Annotated[
        bool, typer.Option("--full-resolution", help="Never coarser voxels than the data's.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help=RECIPE)] = None,
    window: Annotated[str | None, typer.Option(help=WINDOW)] = None,
    slices: Annotated[str | None, typer.Option(help=SLICES)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read samples ahead.")] = 1,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train; the first lines say where it works, what was chosen and why, and when it will end."""
    import shlex
    from dataclasses import replace
    from functools import partial

    from rich.markup import escape

    from seguro import api
    from seguro.cli.progress import counting, training
    from seguro.core.errors import ConfigError
    from seguro.core.settings import merge, read_yaml, settings_from

    out_console = console(as_json)

    def say(line: str) -> None:
        out_console.print(escape(line))

    if updates is not None and budget is not None:
        raise ConfigError("--updates and --budget exclude each other: give one")
    settings = merge(read_yaml(config) if config else {}, settings_from(set_ or []))
    options = api.TrainOptions(
        method=method, preset=preset, network=network, settings=settings, updates=updates, budget=budget,
        batch=batch, seed=seed, device=device, precision=precision, validations=validations,  # type: ignore[arg-type]
        patience=patience, init=init, labelled=labelled, name=name, workers=workers, threads=threads,
    )  # fmt: skip
    workspace = api.workspace_of(data, out)
    given = plan_options_for(
        workspace,
        memory=memory,
        dims=dims,
        full_resolution=full_resolution,
        recipe=recipe,
        device=device,
        window=window,
        slices=slices,
    )
    plan_options = api.planned_for(method, workspace, given)
    names = (
        ["all"]
        if dry_run and folds == "all"
        else fold_names(folds, partial(planned_folds, data, out, plan_options))
    )
    if dry_run:
        for line in describe(data, out, plan_options, options, names):
            say(line)
        finish(out_console, result={"workspace": str(workspace), "folds": names}, as_json=as_json)
        return
    runs = []
    for fold in names:
        this = replace(options, fold=fold, name=f"{name}-fold{fold}" if name and len(names) > 1 else name)
        with counting(out_console, "reading cases") as count, training(out_console) as progress:
            runs.append(
                api.train(
                    data, this, out=out, plan_options=plan_options, count=count, progress=progress, say=say
                )
            )
    model = " ".join(f"--also {shlex.quote(str(r))}" for r in runs[1:])
    target = f"--data {shlex.quote(str(workspace))} --cases validation" if names != [api.ALL] else "IMAGES"
    if api.needs_support(method):
        target = "IMAGES --support IMAGE --support-label MASK"
    then = f"seguro predict {shlex.quote(str(runs[0]))} {model} {target}"
    if not api.segments(method):
        run = shlex.quote(str(runs[0]))
        then = f"seguro adapt {shlex.quote(str(data))} --from {run} --source SITE --target SITE"
    finish(
        out_console,
        result={"workspace": str(workspace), "runs": [str(r) for r in runs]},
        as_json=as_json,
        then=" ".join(then.split()),
    )


def plan_options_for(
    workspace: Path,
    *,
    memory: float | None,
    dims: int | None,
    full_resolution: bool,
    device: str,
    recipe: str | None = None,
    seed: int | None = None,
    window: str | None = None,
    slices: str | None = None,
    folds: int | None = None,
    spacing: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
) -> Any:
    """Return the plan's options that were given; a first plan for a GPU is given 8 GiB."""
    from seguro.core.errors import ConfigError
    from seguro.data.planner import AXES, PlanOptions
    from seguro.data.windows import parse_window

    if recipe not in (None, "seguro", "rog"):
        raise ConfigError(f"--recipe {recipe}: seguro or rog")
    if slices not in (None, *AXES):
        raise ConfigError(f"--slices {slices}: {', '.join(AXES)}")
    if memory is None and not (workspace / "plan" / "plan.json").exists() and gpu_for(device):
        memory = GPU_MEMORY_GIB
    given = {
        "memory_gib": memory,
        "dims": dims,
        "full_resolution": full_resolution or None,
        "seed": seed,
        "recipe": recipe,
        "window": None if window is None else parse_window(window),
        "slices": slices,
        "folds": folds,
        "spacing": spacing,
        "patch": patch,
        "batch": batch,
    }
    return PlanOptions.model_validate({k: v for k, v in given.items() if v is not None})


def numbers(
    text: str | None, option: str, kind: Callable[[str], Number], counts: Sequence[int]
) -> tuple[Number, ...] | None:
    """Return the numbers of an option like `--spacing 10,1.5,1.5`, one per axis.

    Raises:
        ConfigError: not as many positive numbers as one of `counts`.
    """
    from seguro.core.errors import ConfigError

    if text is None:
        return None
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts or not all(0 < n < float("inf") for n in found):
        many = " or ".join(map(str, counts))
        raise ConfigError(f"{option} {text}: expected {many} positive numbers with commas, one per axis")
    return found


def gpu_for(device: str) -> bool:
    """Return whether work on `device` is on a GPU, where "auto" takes one that is there."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


def planned_folds(data: Path, out: Path | None, plan_options: Any) -> list[str]:
    """Return the names of the plan's folds by patient or file (not the leave-one-site-out ones)."""
    from seguro import api

    _, _, made = api.plan(data, out=out, options=plan_options)
    return [f.name for f in made.folds if not f.name.startswith("site-")]


def fold_names(text: str, all_folds: Any) -> list[str]:
    """Return fold names of "--folds": one, several with commas, "all" planned ones, "none" for no fold."""
    from seguro import api

    if text == "all":
        return list(all_folds())
    return [api.ALL if part.strip() == "none" else part.strip() for part in text.split(",")]


def describe(data: Path, out: Path | None, plan_options: Any, options: Any, names: list[str]) -> list[str]:
    """Return the lines of a dry run: nothing is planned or trained, only what exists is read."""
    from seguro import api

    workspace = api.workspace_of(data, out)
    preset, config = api.configure(options, gpu=gpu_for(options.device))
    stages = [
        s
        for s, p in (("check", "check/manifest.json"), ("plan", "plan/plan.json"))
        if not (workspace / p).exists()
    ]
    return [
        f"workspace {workspace}/",
        f"would run: {', '.join([*stages, 'prepare', 'train'])} "
        f"for fold{'s' * (len(names) > 1)} {', '.join(names)}",
        f"method {options.method}, preset {preset}",
        *(f"  {k}: {v}" for k, v in config.model_dump().items()),
    ]
