"""Training of one fold, with the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from seguro.api.configuration import TrainOptions, planned_for
from seguro.api.job import Job, resolve, same_or_refuse
from seguro.api.labelled import doubts
from seguro.api.stages import plan, prepare
from seguro.api.workspace import Count, Say, quiet, workspace_of
from seguro.core.errors import ConfigError
from seguro.core.files import write_json, write_text
from seguro.core.stage import locked

if TYPE_CHECKING:
    from torch import nn

    from seguro.data.planner import PlanOptions
    from seguro.data.store import Cases
    from seguro.engine.checkpoint import Checkpoint
    from seguro.engine.loop import Loop, Progress
    from seguro.engine.runtime import Runtime
    from seguro.methods.contract import Method, Predictor


def train(
    data: Path,
    options: TrainOptions | None = None,
    *,
    out: Path | None = None,
    plan_options: PlanOptions | None = None,
    jobs: int = 2,
    count: Count | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Say = quiet,
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
    runtime = Runtime(options.device, "32" if options.precision == "auto" else options.precision)
    tell = say if runtime.rank == 0 else quiet
    with runtime:
        workspace = workspace_of(data, out)
        tell(f"workspace {workspace}/")
        plan_options = planned_for(options.method, workspace, plan_options)
        if runtime.rank == 0:
            prepare(data, out=out, options=plan_options, jobs=jobs, progress=count, say=tell)
        runtime.barrier()
        _, manifest, made = plan(data, out=out, options=plan_options, jobs=jobs)
        for reason in made.reasons:
            tell(f"  {reason}")
        gpu = runtime.device.type == "cuda"
        usual = runtime.usual_precision()
        job = resolve(workspace, manifest, made, options, gpu=gpu, precision=usual)
        return _train(job, runtime, progress, tell, jobs=jobs, count=count)


def _train(
    job: Job,
    runtime: Runtime,
    progress: Callable[[Progress], None] | None,
    say: Say,
    *,
    jobs: int,
    count: Count | None,
) -> Path:
    """Run a resolved job on this rank, unless it is finished already."""
    from seguro.methods.contract import Noting

    folder, chosen = job.folder, job.stage.config
    if job.stage.done():
        say(f"{folder}/ is finished already, nothing to do")
        return folder
    same_or_refuse(folder, job.stage)
    runtime.use(runtime.usual_precision() if chosen["precision"] == "auto" else chosen["precision"])
    minutes = round((chosen["budget_s"] or 0) / 60)
    say(
        f"{chosen['method']} ({chosen['preset']}) on {runtime.device} at {runtime.precision}, "
        f"{runtime.world} rank{'s' * (runtime.world > 1)}: "
        f"{len(job.train)} training and {len(job.validation)} validation cases{_told(job)}, "
        f"ends {f'in about {minutes} min' if minutes else 'after ' + str(chosen['updates']) + ' updates'}"
    )
    loop = _loop(job, runtime, progress, say)
    _superpixels(loop, job, jobs, count, say)
    if runtime.rank == 0:
        with locked(folder):
            text = yaml.safe_dump({"key": job.stage.key, **chosen}, sort_keys=False)
            write_text(folder / "config.yaml", text)
            sides = {"train": [c.id for c in job.train], "validation": [c.id for c in job.validation]}
            if job.hidden:
                sides["labels_hidden"] = sorted(job.hidden)
            write_json(folder / "cases.json", sides)
            helped = chosen["method"] if loop.method.needs.unlabelled == "helps" else ""
            warnings = doubts(loop.cases, helped=helped)
            if loop.method.needs.begins and not job.options.init:
                warnings.append(f"no --init, starting untrained: {', '.join(loop.method.needs.begins)}")
            if isinstance(loop.method, Noting):
                warnings += loop.method.notes
            for line in warnings:
                say(f"warning: {line}")
            _watch(loop, job)
            _deploy(job, loop, loop.fit(), warnings)
    else:
        loop.fit()
    runtime.barrier()
    return folder


def _told(job: Job) -> str:
    """Return who keeps their labels, where not all do."""
    patients = job.stage.config.get("labelled")
    if patients is None:
        return ""
    n = sum(c.label is not None and c.id not in job.hidden for c in job.train)
    return f", labels of {n} ({len(patients)} patient{'s' * (len(patients) != 1)})"


def _loop(job: Job, runtime: Runtime, progress: Callable[[Progress], None] | None, say: Say) -> Loop:
    """Make the method, initialized under the run's seed or from another run, and the loop around it."""
    import torch

    from seguro.core.seeds import derive
    from seguro.data.store import Cases
    from seguro.engine.limits import Limits
    from seguro.engine.loop import Loop
    from seguro.engine.model import load_weights
    from seguro.inference.validate import dice_validation
    from seguro.inference.whole import refuse_sizes
    from seguro.methods import get
    from seguro.networks import build

    options, chosen = job.options, job.stage.config
    torch.manual_seed(derive(options.seed, "init"))
    method = get(options.method)(job.config, job.plan, build)
    if options.init:
        loaded, missing = load_weights(method.modules, options.init)
        say(f"--init: {len(loaded)} weights loaded, {len(missing)} not: {', '.join(missing[:5]) or 'none'}")
        _whole(method, missing, options.init)
    needs, classes = method.needs, job.plan.classes
    validate = None
    scored = [c for c in job.validation if needs.scored is None or needs.scored(c.site)]
    if needs.segments and needs.monitor and scored:
        kept = Cases(job.store, scored, classes)
        refuse_sizes(method.predictor(method.modules), kept)
        validate = dice_validation(kept, runtime)
        if needs.monitor == "max:robust":
            validate = _also_robust(validate, kept, job, runtime)
    return Loop(
        method,
        Cases(
            job.store,
            job.train,
            classes,
            hide_labels=needs.labels == "none",
            hidden=job.hidden,
            regions=needs.regions,
        ),
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


def _whole(method: Method, missing: Sequence[str], init: Path) -> None:
    """Refuse a start that lacks part of a module that is no use untrained."""
    lacking = [k for k in missing if k.split(".")[0] in method.needs.begins]
    if lacking:
        names = ", ".join(sorted({k.split(".")[0] for k in lacking}))
        raise ConfigError(
            f"--init {init}: {len(lacking)} weights of {names} are not there or of another shape, first "
            f"{lacking[0]}; start from a run that has trained them, on as many channels and with the same "
            "sizes and classes"
        )


def _watch(loop: Loop, job: Job) -> None:
    """Have what a generating method makes looked at during training."""
    from seguro.api.made import watching
    from seguro.methods.contract import Maker

    if isinstance(loop.method, Maker):
        loop.watch = watching(loop.method, loop.cases, job.folder, seed=job.options.seed)


def _audited(job: Job, loop: Loop, modules: nn.ModuleDict) -> list[Path]:
    """Write the audit of what a generating method makes, or keep that of the start; return its file."""
    from seguro.api.made import audited, keep_audit, write_audit
    from seguro.data.store import Cases
    from seguro.methods.contract import Maker

    method = loop.method
    if not isinstance(method, Maker):
        return [] if job.options.init is None else keep_audit(job.options.init, job.folder)
    held_out = Cases(job.store, job.validation, job.plan.classes, hide_labels=True)
    facts = audited(method, modules.eval(), loop.cases, held_out, seed=job.options.seed)
    loop.say(f"memorization audit: {'passed' if facts['releasable'] else 'NOT passed, do not release this'}")
    return [write_audit(job.folder, facts)]


def _superpixels(loop: Loop, job: Job, jobs: int, count: Count | None, say: Say) -> None:
    """Compute what the method reads of superpixels, on rank 0 while the others wait."""
    from seguro.data import superpixels

    how = loop.method.needs.regions
    if how is None:
        return
    if loop.runtime.rank == 0:
        say(f"superpixels ({how.kind}) of {len(job.train)} training cases")
        superpixels.compute(loop.cases, how, axis=job.plan.slice_axis, jobs=jobs, progress=count)
    loop.runtime.barrier()


def _also_robust(
    clean: Callable[[Predictor], Mapping[str, float]], cases: Cases, job: Job, runtime: Runtime
) -> Callable[[Predictor], Mapping[str, float]]:
    """Return a validation that gives the clean scores and "robust", at the method's own epsilon."""
    from seguro.attacks.validate import robust_validation

    robust = robust_validation(cases, job.plan, runtime, epsilon=job.config.epsilon, seed=job.options.seed)
    return lambda predictor: {**clean(predictor), **robust(predictor)}


def _deploy(job: Job, loop: Loop, best: Checkpoint, warnings: Sequence[str]) -> None:
    """Write the model of the chosen checkpoint and finish the stage."""
    import torch

    from seguro.engine.loop import load_modules
    from seguro.engine.model import save_model
    from seguro.methods.contract import to_deploy

    load_modules(loop.method.modules, best, "modules.", loop.checkpoints)
    load_modules(loop.run.averaged, best, "averaged.", loop.checkpoints)
    modules = loop.run.deployable()
    files = save_model(
        job.folder / "model",
        method=job.options.method,
        config=job.stage.config["config"],
        plan=job.plan,
        predictor=to_deploy(loop.method, modules),
    )
    job.stage.finish(
        [job.folder / "config.yaml", job.folder / "cases.json", *files, *_audited(job, loop, modules)],
        warnings=list(warnings),
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
