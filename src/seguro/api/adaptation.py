"""What an adaptation needs, looked at before anything is planned, prepared or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seguro.api.cases import cases_of_fold
from seguro.api.configuration import TrainOptions, configure
from seguro.api.labelled import hidden_cases, labelled_patients
from seguro.api.workspace import manifest_of, workspace_of
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json
from seguro.core.types import Case, Manifest

if TYPE_CHECKING:
    from seguro.data.plan import Plan
    from seguro.methods.painter import PainterConfig

OTHER_SCALE = 1.1
"""Ratio of sides of the frame from which things are said to be shown at another scale."""


def foreseen(
    data: Path, options: TrainOptions, *, out: Path | None = None, gpu: bool = False, write: bool = True
) -> list[str]:
    """Return lines that say who is source and target and what the run starts from, or refuse it.

    Args:
        data: folder or workspace.
        options: of a training with method `adapt` or `repaint` and a run to start from.
        out: the workspace.
        gpu: whether a preset is chosen for a GPU.
        write: False leaves the disk alone; else the data may be checked into the workspace.

    Raises:
        ConfigError: a site that the generator or the data do not have, sizes or classes that the weights to
            start from do not fit, a batch that is no whole number of pairs.
        DataError: another number of channels, or the data cannot be used.
    """
    from seguro.data import planner
    from seguro.engine.model import model_folder
    from seguro.methods.painter import numbers, sides
    from seguro.methods.repaint.method import GROUP

    if options.init is None:
        raise ConfigError("an adaptation starts from a run: give the factory, or stage source, with --from")
    start = read_json(model_folder(options.init) / "model.json")
    workspace = workspace_of(data, out)
    manifest = manifest_of(data, workspace, write=write)
    file = workspace / "plan" / "plan.json"
    plan = planner.load(file) if file.exists() else None
    train = _training(manifest, plan, options.fold)
    _, config = configure(options, gpu=gpu, sites=[c.site for c in train])
    numbers(config)
    stage = "repaint" if options.method == "repaint" else config.stage
    fits(options.init, options.method, config, manifest)
    guesses = stage == "repaint" and config.guess_weight > 0
    together = 2 if stage != "repaint" else GROUP if guesses else 1
    if options.batch is not None and options.batch % together:
        raise ConfigError(
            f"--batch {options.batch}: source and target go in groups of {together}; give a multiple of it"
        )
    hidden = frozenset[str]()
    if options.labelled is not None:
        hidden = hidden_cases(train, labelled_patients(options.labelled, train, seed=options.seed))
    known = [i for i, c in enumerate(train) if c.label is not None and c.id not in hidden]
    source, target = sides([c.site for c in train], known, config, adapts=guesses or stage == "adapt")
    if options.batch == 2 and set(target) & set(known) and stage == "adapt":
        raise ConfigError(
            "--batch 2: its one slice of the target would always be one with a label; give 4 or more, or "
            "hide these labels (--labelled)"
        )
    return [
        f"start: {options.init} (method {start['method']}), {config.size} pixels, "
        f"domains {', '.join(config.domains)}",
        f"source: {_counted([train[i] for i in source])}, all with labels",
        *_target(config, stage, [train[i] for i in target], set(target) & set(known)),
        *_scale(start["plan"], plan, config),
    ]


def frame_as_begun(
    data: Path, init: Path, *, out: Path | None = None, write: bool = True, plans: bool = True
) -> dict[str, Any]:
    """Plan data that have no plan yet on the voxels of the run to start from; returns settings for its frame.

    So things are shown at the scale that the generator learned. No settings where an earlier plan has other
    voxels, or one of the two has no physical ones.

    Args:
        data: folder or workspace.
        init: a factory, or stage source of an adaptation.
        out: the workspace.
        write: False leaves the disk alone; else the data may be checked into the workspace.
        plans: False leaves planning to a later call.
    """
    from seguro.api.stages import plan as planned
    from seguro.data import planner
    from seguro.data.frame import frame_of
    from seguro.data.plan import Plan
    from seguro.data.planner import PlanOptions
    from seguro.engine.model import model_folder

    workspace = workspace_of(data, out)
    start = read_json(model_folder(init) / "model.json")
    began, config = Plan.model_validate(start["plan"]), start["config"]
    manifest = manifest_of(data, workspace, write=write)
    if {c.unit for c in manifest.cases} != {began.unit} or began.unit == "px":
        return {}
    file = workspace / "plan" / "plan.json"
    if file.exists():
        if planner.load(file).spacing != began.spacing:
            return {}
    elif write and plans:
        planned(data, out=out, options=PlanOptions(dims=2, spacing=began.spacing))
    return {"side": frame_of(began, config["size"], side=config["side"], limits=config["limits"]).side}


def _training(manifest: Manifest, plan: Plan | None, fold: str) -> Sequence[Case]:
    """Return the training cases of a fold; all that may be, where there is no plan yet."""
    if plan is not None:
        return cases_of_fold(manifest, plan, fold, "some")[0]
    return (*manifest.of("train"), *manifest.of("unlabelled"))


def fits(init: Path, method: str, config: Any, manifest: Manifest) -> None:
    """Refuse a run to start from that this data set and these options of `adapt` or `repaint` do not fit.

    Raises:
        ConfigError: a stage that does not lead here, other sites, sizes or classes.
        DataError: another number of channels.
    """
    from seguro.engine.model import model_folder
    from seguro.methods.adapt.config import BUILT, READ

    start = read_json(model_folder(init) / "model.json")
    stage = "repaint" if method == "repaint" else config.stage
    began, here = start["plan"]["channels"], manifest.channels
    if len(began) != len(here):
        raise DataError(
            f"the data have {len(here)} channels, {init} was trained on {len(began)} "
            f"({', '.join(c['name'] for c in began)}); adaptation needs the same ones"
        )
    began_as = start["method"]
    if stage == "repaint" and start["config"].get("stage") != "adapt":
        raise ConfigError(
            f"stage repaint starts from stage adapt, and {init} is none: run `seguro adapt` with "
            "--stage adapt first, then from that run"
        )
    if stage == "adapt" and began_as == "factory":
        raise ConfigError(
            f"stage adapt starts from stage source, and {init} is a factory: run `seguro adapt` with "
            "--stage source first, then from that run"
        )
    names = [*BUILT, *READ] if began_as == "adapt" else [*BUILT]
    names += ["target", "route"] if stage == "repaint" else []
    now = config.model_dump(mode="json")
    other = [n for n in names if n in now and start["config"].get(n) not in (now[n], None)]
    if other:
        lines = [f"{n}: {start['config'][n]!r} there, {now[n]!r} here" for n in other]
        raise ConfigError(f"{init} was trained with other options:\n  " + "\n  ".join(lines))
    classes = None if manifest.classes is None else manifest.classes.names
    wanted = tuple(start["plan"]["classes"]["names"])
    if began_as == "adapt" and classes is not None and tuple(classes) != wanted:
        raise ConfigError(
            f"the data have the classes {', '.join(classes)}, {init} segments {', '.join(wanted)}; write the "
            "labels with the same names and values"
        )


def _target(config: Any, stage: str, cases: Sequence[Case], labelled: set[int]) -> list[str]:
    few = f"labels of {len(labelled)}" if labelled else "no labels"
    slices = ", of their middle slices" if labelled and config.target_slices == "middle" else ""
    if stage == "source":
        return []
    if stage == "repaint" and not config.guess_weight:
        return [f"target: {config.target or 'all others'}, as it was painted; {few}{slices}"]
    last = "guesses elsewhere" if stage == "repaint" else f"the model is chosen by {config.select}"
    return [f"target: {_counted(cases)}, {few}{slices}; {last}"]


def _counted(cases: Sequence[Case]) -> str:
    sites, patients = sorted({c.site for c in cases}), {c.patient for c in cases}
    return f"{', '.join(sites)}, {len(cases)} cases of {len(patients)} patients"


def _scale(began: Mapping[str, Any], plan: Plan | None, config: PainterConfig) -> list[str]:
    """Say where the frame shows another extent than the one that the generator learned."""
    from seguro.data.frame import frame_of
    from seguro.data.plan import Plan

    if plan is None:
        return []
    first, second = (
        frame_of(p, config.size, side=config.side, limits=config.limits).side * p.spacing[p.plane_axes[0]]
        for p in (Plan.model_validate(began), plan)
    )
    if max(first / second, second / first) < OTHER_SCALE:
        return []
    return [
        f"warning: the frame is {second:.0f} {plan.unit} wide here and was {first:.0f} where the generator "
        "was trained, so things are shown at another scale; plan with the same spacing, or set side"
    ]
