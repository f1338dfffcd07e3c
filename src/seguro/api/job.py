"""One training, resolved: every option settled, and refused where it does not fit what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seguro.api.cases import cases_of_fold
from seguro.api.configuration import TrainOptions, configure, default_network
from seguro.api.labelled import MORE, hidden_cases, labelled_patients
from seguro.api.workspace import named
from seguro.core.errors import ConfigError
from seguro.core.files import sha256_file
from seguro.core.settings import read_yaml, seconds
from seguro.core.stage import Stage
from seguro.core.types import Case, Manifest

if TYPE_CHECKING:
    from seguro.data.plan import Plan

DEFAULT_BUDGET = "1h"
TRAIN_SCHEMA = 1
FILES = ("perceptual", "pretrained", "embedding")
"""Options of methods that may name a file of a network from elsewhere, which the run then depends on."""


@dataclass(frozen=True)
class Job:
    """One training, resolved: what it reads, where it writes, and under which key."""

    options: TrainOptions
    config: Any
    plan: Plan
    store: Path
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    stage: Stage
    hidden: frozenset[str] = frozenset()
    """Training cases whose labels are kept from the run."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.stage.folder


def resolve(
    workspace: Path, manifest: Manifest, plan: Plan, options: TrainOptions, *, gpu: bool, precision: str
) -> Job:
    """Settle every option that was left to the machine or to the plan.

    A run goes on with what it began with, on whatever machine.

    Args:
        workspace: where the runs lie.
        manifest: of the checked data.
        plan: of the same data.
        options: as given.
        gpu: whether a preset is chosen for a GPU.
        precision: what "auto" stands for on this machine.
    """
    from seguro.methods import get

    needs = get(options.method).needs
    train, validation = cases_of_fold(manifest, plan, options.fold, needs.labels)
    patients = _labelled(options, needs.labels, train, validation)
    hidden = frozenset[str]() if patients is None else hidden_cases(train, patients)
    own = f"-{options.network or default_network(options.method)}".replace(":", "-").rstrip("-")
    own += f"-fold{options.fold}" + ("" if patients is None else f"-labelled{len(patients)}")
    folder = workspace / "runs" / named(options.name or f"{options.method}{own}")
    begun = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    if options.preset == "auto" and "preset" in begun:
        options = replace(options, preset=begun["preset"])
    if options.precision == "auto":
        # an older config.yaml may say "auto" itself; it stays in the key, and the machine decides
        options = replace(options, precision=begun.get("precision", precision))
    preset, config = configure(options, gpu=gpu, sites=[c.site for c in (*train, *validation)])
    if options.init and options.method in ("adapt", "repaint"):
        from seguro.api.adaptation import fits

        fits(options.init, options.method, config, manifest)
    if plan.dims not in needs.dims:
        raise ConfigError(
            f"method {options.method} works in {' or '.join(map(str, needs.dims))} dimensions, the plan has "
            f"{plan.dims}; plan again: seguro plan DATA --dims {needs.dims[0]}"
        )
    if needs.unlabelled == "needed" and not any(c.label is None or c.id in hidden for c in train):
        raise ConfigError(
            f"method {options.method} learns from unlabelled cases beside labelled ones, and all "
            f"{len(train)} training cases have labels; {MORE}, or use --method supervised"
        )
    if needs.labels == "all":
        train, hidden = tuple(c for c in train if c.id not in hidden), frozenset()
    reads = {f"case/{c.id}": c.hash for c in (*train, *validation)}
    reads["plan.json"] = sha256_file(workspace / "plan" / "plan.json")
    reads |= _beginning(options, getattr(config, "weights", None))
    files = {name: getattr(config, name, None) for name in FILES}
    reads |= {name: sha256_file(Path(f)) for name, f in files.items() if f and Path(f).is_file()}
    resolved = {
        "method": options.method,
        "preset": preset,
        "config": config.model_dump(mode="json"),
        "fold": options.fold,
        "updates": options.updates,
        "budget_s": None if options.updates else seconds(options.budget or DEFAULT_BUDGET),
        "batch": options.batch or needs.batch(plan.batch),
        "seed": options.seed,
        "precision": options.precision,
        "validations": options.validations,
        "patience": options.patience,
        # only where it was given: runs from before there was this option keep their key
        **({} if patients is None else {"labelled": list(patients)}),
    }
    stage = Stage(folder, "train", reads=reads, config=resolved, schema=TRAIN_SCHEMA)
    store = workspace / "store" / plan.preprocessing_hash
    return Job(options, config, plan, store, train, validation, stage, hidden)


def _beginning(options: TrainOptions, public: str | None) -> dict[str, str]:
    """Return the hash of the weights that training starts from: of another run, or a method's public file."""
    from seguro.engine.model import model_folder

    if options.init and public:
        raise ConfigError(
            f"--init {options.init} and weights={public} both say what training starts from; give one of them"
        )
    if options.init:
        return {"init": sha256_file(model_folder(options.init) / "weights.safetensors")}
    return {"weights": sha256_file(Path(public))} if public and Path(public).is_file() else {}


def _labelled(
    options: TrainOptions,
    needs: Literal["none", "some", "all"],
    train: Sequence[Case],
    validation: Sequence[Case],
) -> tuple[str, ...] | None:
    """Return the patients that keep their labels, None when all do."""
    if options.labelled is None:
        return None
    if needs == "none":
        raise ConfigError(f"--labelled {options.labelled}: method {options.method} sees no labels at all")
    return labelled_patients(options.labelled, train, validation, seed=options.seed)


def same_or_refuse(folder: Path, stage: Stage) -> None:
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
