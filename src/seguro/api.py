"""The Python API: the stages of the arrow as functions. The command line calls these and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ValidationError

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import sha256_file, write_json, write_text
from seguro.core.settings import merge, read_yaml, seconds
from seguro.core.stage import Stage, locked
from seguro.core.types import Case, Manifest

if TYPE_CHECKING:
    from seguro.data.plan import Plan
    from seguro.data.planner import PlanOptions
    from seguro.engine.checkpoint import Checkpoint
    from seguro.engine.loop import Loop, Progress
    from seguro.engine.runtime import Runtime

Say = Callable[[str], None]
Count = Callable[[int, int], None]
DEFAULT_BUDGET = "1h"
TRAIN_SCHEMA = 1
WAIT_S = 600.0
"""How long a second run waits while another one checks, plans or prepares in the same workspace."""
ALL = "all"
"""Name of the pseudo-fold that trains on every labelled case and validates on none."""


def _quiet(line: str) -> None:
    """Take a line for people and drop it."""


@dataclass(frozen=True)
class TrainOptions:
    """What a training run is made of, besides the data.

    Exactly one of `updates` and `budget` bounds it; with neither, `budget` is one hour.
    """

    method: str = "supervised"
    preset: str = "auto"
    """A preset of the method; "auto" is "small" without a GPU and "default" with one."""
    network: str | None = None
    settings: Mapping[str, Any] | None = None
    """Config fields over the preset, nested as in the config."""
    fold: str = "0"
    updates: int | None = None
    budget: str | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"] = "auto"
    validations: int = 20
    patience: int = 0
    init: Path | None = None
    name: str | None = None
    workers: int = 1
    threads: int | None = None


def workspace_of(data: Path, out: Path | None = None) -> Path:
    """Return the workspace for `data`: `data` itself if it is one, `out`, or `./<name>.seguro`.

    Raises:
        ConfigError: the workspace would lie inside the input folder.
    """
    data = Path(data)
    if out is None and is_workspace(data):
        return data
    workspace = Path(out) if out is not None else Path(f"{data.resolve().name}.seguro")
    if data.is_dir() and workspace.resolve().is_relative_to(data.resolve()) and not is_workspace(data):
        raise ConfigError(
            f"{workspace} lies inside the input folder {data}, which is never written to; "
            "choose another --out"
        )
    return workspace


def is_workspace(path: Path) -> bool:
    """Return whether `path` is a folder that `check` has written a manifest into."""
    return (path / "check" / "manifest.json").exists()


def manifest_of(data: Path, workspace: Path, *, progress: Count | None = None, **options: Any) -> Manifest:
    """Return the checked manifest of `data`, which may be the data folder or the workspace."""
    from seguro.data import check, manifest

    if is_workspace(data) and Path(data).resolve() == workspace.resolve():
        return manifest.load(workspace / "check" / "manifest.json")
    return check.ensure(data, workspace, progress=progress, **options)


def plan(
    data: Path,
    *,
    out: Path | None = None,
    options: PlanOptions | None = None,
    width: int = 32,
    jobs: int = 2,
    progress: Count | None = None,
    say: Say = _quiet,
) -> tuple[Path, Manifest, Plan]:
    """Check and plan; returns the workspace, the manifest and the plan.

    Args:
        data: a data folder or a workspace.
        out: the workspace; `./<name>.seguro` when not given.
        options: what to decide instead of the data; fields not set are those of the last plan.
        width: of the U-Net whose memory the patch is fitted to.
        jobs: cases read at a time.
        progress: called with (done, total) while cases are read.
        say: takes lines for people.
    """
    from functools import partial

    from seguro.data import planner
    from seguro.networks.unet import training_bytes

    workspace = workspace_of(data, out)
    manifest = manifest_of(data, workspace, progress=progress, say=say)
    made = planner.ensure(
        workspace,
        manifest,
        options,
        step_bytes=partial(training_bytes, width=width),
        jobs=jobs,
        progress=progress,
        say=say,
    )
    return workspace, manifest, made


def prepare(
    data: Path,
    *,
    out: Path | None = None,
    options: PlanOptions | None = None,
    jobs: int = 2,
    progress: Count | None = None,
    say: Say = _quiet,
) -> Path:
    """Check, plan and write the store; returns its folder. Arguments as in `plan`.

    Raises:
        DataError: a case cannot be prepared.
        RunError: the disk has too little room, or another process works in the workspace.
    """
    import shutil

    from seguro.core.errors import RunError
    from seguro.data import store

    with locked(workspace_of(data, out), wait_s=WAIT_S):
        workspace, manifest, made = plan(
            data, out=out, options=options, jobs=jobs, progress=progress, say=say
        )
        cases = (*manifest.of("train"), *manifest.of("unlabelled"))
        size, free = store.predicted_bytes(cases, made), shutil.disk_usage(workspace).free
        say(f"store {size / 2**20:.0f} MiB for {len(cases)} cases")
        if size > free:
            raise RunError(f"{workspace}: the store needs {size} bytes, {free} are free; use another --out")
        return store.prepare(workspace, manifest, made, jobs=jobs, progress=progress)


def train(
    data: Path,
    options: TrainOptions | None = None,
    *,
    out: Path | None = None,
    plan_options: PlanOptions | None = None,
    jobs: int = 2,
    count: Count | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Say = _quiet,
) -> Path:
    """Train one fold, running check, plan and prepare first where they are missing; returns the run's folder.

    Skips what is finished and resumes what was interrupted.

    Raises:
        ConfigError: options that do not fit, or a run folder made with others (the difference is shown).
        DataError: data that cannot be used.
        Stopped: a signal stopped it; saved.
    """
    import torch

    from seguro.engine.runtime import Runtime

    options = options or TrainOptions()
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime = Runtime(options.device, _precision(options))
    quiet = say if runtime.rank == 0 else _quiet
    try:
        workspace = workspace_of(data, out)
        quiet(f"workspace {workspace}/")
        if runtime.rank == 0:
            prepare(data, out=out, options=plan_options, jobs=jobs, progress=count, say=quiet)
        runtime.barrier()
        _, manifest, made = plan(data, out=out, options=plan_options, jobs=jobs)
        for reason in made.reasons:
            quiet(f"  {reason}")
        job = _resolve(workspace, manifest, made, options, gpu=runtime.device.type == "cuda")
        return _train(job, runtime, progress, quiet)
    finally:
        runtime.close()


@dataclass(frozen=True)
class _Job:
    """One training, resolved: what it reads, where it writes, and under which key."""

    options: TrainOptions
    config: Any
    plan: Plan
    store: Path
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    stage: Stage

    @property
    def folder(self) -> Path:
        return self.stage.folder


def _resolve(workspace: Path, manifest: Manifest, plan: Plan, options: TrainOptions, *, gpu: bool) -> _Job:
    """Settle every option that was left to the machine or to the plan."""
    from seguro.engine.model import model_folder
    from seguro.methods import get

    needs = get(options.method).needs
    own = f"-{options.network or default_network(options.method)}".replace(":", "-").rstrip("-")
    folder = workspace / "runs" / (options.name or f"{options.method}{own}-fold{options.fold}")
    begun = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    if options.preset == "auto" and "preset" in begun:
        options = replace(options, preset=begun["preset"])  # a run goes on as it began, on whatever machine
    preset, config = configure(options, gpu=gpu)
    if plan.dims not in needs.dims:
        raise ConfigError(
            f"method {options.method} works in {needs.dims} dimensions, the plan has {plan.dims}"
        )
    train, validation = cases_of_fold(manifest, plan, options.fold, needs.labels)
    reads = {f"case/{c.id}": c.hash for c in (*train, *validation)}
    reads["plan.json"] = sha256_file(workspace / "plan" / "plan.json")
    if options.init:
        reads["init"] = sha256_file(model_folder(options.init) / "weights.safetensors")
    resolved = {
        "method": options.method,
        "preset": preset,
        "config": config.model_dump(mode="json"),
        "fold": options.fold,
        "updates": options.updates,
        "budget_s": None if options.updates else seconds(options.budget or DEFAULT_BUDGET),
        "batch": options.batch or plan.batch,
        "seed": options.seed,
        "precision": options.precision,
        "validations": options.validations,
        "patience": options.patience,
    }
    stage = Stage(folder, "train", reads=reads, config=resolved, schema=TRAIN_SCHEMA)
    store = workspace / "store" / plan.preprocessing_hash
    return _Job(options, config, plan, store, train, validation, stage)


def _train(job: _Job, runtime: Runtime, progress: Callable[[Progress], None] | None, say: Say) -> Path:
    """Run a resolved job on this rank, unless it is finished already."""
    folder, chosen = job.folder, job.stage.config
    if job.stage.done():
        say(f"{folder}/ is finished already, nothing to do")
        return folder
    _same_or_refuse(folder, job.stage)
    minutes = round((chosen["budget_s"] or 0) / 60)
    say(
        f"{chosen['method']} ({chosen['preset']}) on {runtime.device}, "
        f"{runtime.world} rank{'s' * (runtime.world > 1)}: "
        f"{len(job.train)} training and {len(job.validation)} validation cases, "
        f"ends {f'in about {minutes} min' if minutes else 'after ' + str(chosen['updates']) + ' updates'}"
    )
    loop = _loop(job, runtime, progress, say)
    if runtime.rank == 0:
        with locked(folder):
            text = yaml.safe_dump({"key": job.stage.key, **chosen}, sort_keys=False)
            write_text(folder / "config.yaml", text)
            sides = {"train": [c.id for c in job.train], "validation": [c.id for c in job.validation]}
            write_json(folder / "cases.json", sides)
            _deploy(job, loop, loop.fit())
    else:
        loop.fit()
    runtime.barrier()
    return folder


def _loop(job: _Job, runtime: Runtime, progress: Callable[[Progress], None] | None, say: Say) -> Loop:
    """Make the method, initialized under the run's seed or from another run, and the loop around it."""
    import torch

    from seguro.core.seeds import derive
    from seguro.data.store import Cases
    from seguro.engine.loop import Limits, Loop
    from seguro.engine.model import load_weights
    from seguro.inference.validate import dice_validation
    from seguro.methods import get
    from seguro.networks import build

    options, chosen = job.options, job.stage.config
    torch.manual_seed(derive(options.seed, "init"))
    method = get(options.method)(job.config, job.plan, build)
    if options.init:
        loaded, missing = load_weights(method.modules, options.init)
        say(f"--init: {len(loaded)} weights loaded, {len(missing)} not: {', '.join(missing[:5]) or 'none'}")
    needs, classes = method.needs, job.plan.classes
    validate = None
    if needs.segments and needs.monitor and job.validation:
        validate = dice_validation(Cases(job.store, job.validation, classes), runtime)
    return Loop(
        method,
        Cases(job.store, job.train, classes, hide_labels=needs.labels == "none"),
        job.folder,
        runtime,
        Limits(options.updates, chosen["budget_s"], options.validations, options.patience),
        batch=chosen["batch"],
        seed=options.seed,
        validate=validate,
        progress=progress,
        say=say,
        workers=options.workers,
    )


def _deploy(job: _Job, loop: Loop, best: Checkpoint) -> None:
    """Write the model of the chosen checkpoint and finish the stage."""
    import torch

    from seguro.engine.loop import load_modules
    from seguro.engine.model import save_model

    load_modules(loop.method.modules, best.tensors, "modules.")
    load_modules(loop.run.averaged, best.tensors, "averaged.")
    modules = loop.run.deployable()
    files = save_model(
        job.folder / "model",
        method=job.options.method,
        config=job.stage.config["config"],
        plan=job.plan,
        predictor=loop.method.predictor(modules) if loop.method.needs.segments else modules,
    )
    job.stage.finish(
        [job.folder / "config.yaml", job.folder / "cases.json", *files],
        seed=job.options.seed,
        updates=loop.run.update,
        chosen_update=best.update,
        best=loop.best,
        minutes=round(loop.seconds / 60, 2),
        cpu_s=round(loop.cpu_seconds),
        torch=torch.__version__,
        device=str(loop.runtime.device),
        precision=loop.runtime.precision,
        world=loop.runtime.world,
        threads=torch.get_num_threads(),
    )


def _same_or_refuse(folder: Path, stage: Stage) -> None:
    """Refuse to go on with a run that was started with other options or data, and show the difference."""
    path = folder / "config.yaml"
    before = read_yaml(path) if path.exists() else None
    if before is None or before.get("key") == stage.key:
        return
    changed = [
        f"{k}: was {before.get(k)!r}, is {stage.config.get(k)!r}"
        for k in sorted(set(before) - {"key"} | set(stage.config))
        if before.get(k) != stage.config.get(k)
    ]
    changed = changed or stage.difference() or ["the training cases or the plan"]
    raise ConfigError(
        f"{folder} was made with other settings:\n  "
        + "\n  ".join(changed)
        + "\nuse --name for a new run, or remove the folder"
    )


def default_network(method: str) -> str:
    """Return the name of a method's default network, "" where it has networks of its own."""
    from seguro.methods import get

    field = get(method).Config.model_fields.get("network")
    return str(field.default) if field else ""


def configure(options: TrainOptions, *, gpu: bool) -> tuple[str, Any]:
    """Return the preset used and the method's resolved config: defaults < preset < network < settings.

    Raises:
        ConfigError: unknown preset or fields, or values out of range; the message lists each.
    """
    from seguro.methods import get

    kind = get(options.method)
    preset = options.preset
    if preset == "auto":
        preset = "small" if not gpu and "small" in kind.presets else "default"
    if preset != "default" and preset not in kind.presets:
        raise ConfigError(
            f"method {options.method} has no preset {preset!r}; it has default, {', '.join(kind.presets)}"
        )
    fields: dict[str, Any] = merge({}, {} if preset == "default" else kind.presets[preset])
    if options.network:
        if "network" not in kind.Config.model_fields:
            raise ConfigError(f"method {options.method} has networks of its own and takes no --network")
        same = fields.get("network", kind.Config.model_fields["network"].default) == options.network
        fields = merge(fields, {"network": options.network})
        if not same:
            fields.pop("network_options", None)
    fields = merge(fields, options.settings or {})
    try:
        return preset, kind.Config.model_validate(fields)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ConfigError(f"settings of method {options.method}:\n  " + "\n  ".join(lines)) from error


def _precision(options: TrainOptions) -> Any:
    if options.precision != "auto":
        return options.precision
    import torch

    gpu = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32"


def cases_of_fold(
    manifest: Manifest, plan: Plan, fold: str, labels: Literal["none", "some", "all"]
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return training and validation cases of a fold ("all": everything, and nothing to validate on).

    Methods that need labels get labelled cases only; the others also the unlabelled ones.

    Raises:
        ConfigError: the plan has no such fold.
        DataError: no labelled training case where one is needed.
    """
    by_id = {c.id: c for c in (*manifest.of("train"), *manifest.of("unlabelled"))}
    train: tuple[Case, ...] = tuple(by_id.values())
    validation: tuple[Case, ...] = ()
    if fold != ALL:
        try:
            chosen = plan.fold(fold)
        except KeyError as error:
            raise ConfigError(f"--fold {fold}: {error.args[0]} and {ALL!r}") from error
        train = tuple(by_id[i] for i in chosen.train)
        validation = tuple(by_id[i] for i in chosen.validation)
    if labels == "all":
        train = tuple(c for c in train if c.label is not None)
    if labels != "none" and not any(c.label is not None for c in train):
        raise DataError(f"fold {fold} has no labelled training case")
    return train, validation
