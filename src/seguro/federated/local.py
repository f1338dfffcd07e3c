"""Local training of one run at one site: rounds of updates by any method, from the server's weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as parse
from safetensors.numpy import save as pack
from torch import Tensor

from seguro.core.files import read_checked, write_bytes
from seguro.core.seeds import derive
from seguro.core.types import Case
from seguro.data import superpixels
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.engine import checkpoint as checkpoints
from seguro.engine.checkpoint import Checkpoint
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.model import save_model
from seguro.engine.runtime import Precision, Runtime
from seguro.federated import aggregate, compression, exchange, likeness, memorization, privacy
from seguro.federated.downlink import Held
from seguro.federated.message import Arrays, Refusal, Task, Update, allowed
from seguro.federated.spec import Spec
from seguro.inference.validate import dice_validation
from seguro.methods.contract import Maker, Method, to_deploy

WEIGHTS = ("modules", "averaged")
"""How the names of weights in a checkpoint begin; other names are of optimisers and of the method's state."""


@dataclass
class Training:
    """The state of one run at one site; everything is on disk once it has settled.

    Args:
        run: name of the run.
        site: name of the site.
        folder: state of this run here.
        store: prepared cases.
        plan: with this site's label values.
        plan_sha256: of the plan all sites agreed on.
        spec: what the server said of the run.
        train: training cases.
        validation: held-out cases, labelled.
        held_out: all held-out cases, of patients that are not trained on.
        device: of the training.
        precision: of the training.
        say: takes lines for the people at the site.
        lazy: write the state when told to `settle`, not after every round.
    """

    run: str
    site: str
    folder: Path
    store: Path
    plan: Plan
    plan_sha256: str
    spec: Spec
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    held_out: tuple[Case, ...] = ()
    device: str = "cpu"
    precision: Precision = "32"
    say: Callable[[str], None] = lambda line: None
    lazy: bool = False
    _loop: Loop | None = field(default=None, init=False)
    _unsaved: int | None = field(default=None, init=False)
    """First update that is not on disk; None where everything is."""
    _left: tuple[int, Arrays] | None = field(default=None, init=False)
    """The last round and what a lossy code left out in it."""

    def __post_init__(self) -> None:
        self.runtime = Runtime(self.device, self.precision)
        self._held = Held(self.spec.down)

    def settle(self) -> None:
        """Write the state after the last round, where it is not on disk yet."""
        if self._unsaved is None or self._loop is None:
            return
        self._forget_after(self._loop)
        if self._left is not None:
            self._write_left(*self._left)
        self._loop.save(keep=self._stays(self._loop))
        self._unsaved = None

    def answer(self, task: Task) -> Update:
        """Return the update to a task "train", or the scores that a task "evaluate" asks for.

        Its arrays may be the weights themselves, which the next task changes.

        Raises:
            Refusal: another plan, nothing to train on, or arrays that do not fit.
        """
        if task.config.get("plan_sha256") != self.plan_sha256:
            raise Refusal(f"run {self.run} goes by another plan than the one agreed on")
        task = self._held.whole(task)
        started = time.monotonic()
        loop = self.loop((task.round - 1) * self.spec.updates)
        self._load(loop, task.arrays)
        metrics = {"n_cases": float(len(loop.cases)), "n_labelled": float(len(loop.cases.labelled))}
        if task.config.get("evaluate"):
            metrics |= self.scores(loop)
        update = Update(self.run, self.site, task.round, task.action)
        if task.action == "train":
            arrays, more = self._train(loop, task)
            metrics |= more
            weight, coding = float(len(loop.cases)), self.spec.coding
            update = replace(update, arrays=arrays, weight=weight, coding=coding)
        if task.action == "audit":
            metrics |= self._audit(loop)
        metrics["seconds"] = round(time.monotonic() - started, 3)
        if task.action == "evaluate" and self.spec.personal != "none":
            self._keep_model(loop)
        return replace(update, metrics=allowed(metrics, self.plan.classes.foreground))

    def _audit(self, loop: Loop) -> dict[str, float]:
        """Return this site's part of the memorization audit; nothing of a method that makes no images."""
        modules = loop.run.deployable()
        modules.eval()
        held_out = Cases(self.store, at(self.site, self.held_out), self.plan.classes, hide_labels=True)
        return memorization.measured(
            loop.method, modules, loop.cases, held_out, site=self.site, seed=self.spec.seed
        )

    def _keep_model(self, loop: Loop) -> None:
        """Write the site's own model, with its own normalization layers; it stays here."""
        modules = loop.run.deployable()
        save_model(
            self.folder / "model",
            method=self.spec.method,
            config=self.spec.config,
            plan=self.plan,
            predictor=to_deploy(loop.method, modules),
        )

    def loop(self, start: int) -> Loop:
        """Return the loop in the state before update `start`."""
        if self._loop is not None and self._loop.run.update <= start:
            return self._loop
        if self._unsaved is not None and start > self._unsaved:
            raise Refusal(
                "the state before this round was not saved; the run goes on from its last saved round"
            )
        method = self.spec.made(self.plan)
        loop = Loop(
            method,
            seen_by(method, self.store, at(self.site, self.train), self.plan),
            self.folder,
            self.runtime,
            Limits(updates=self.spec.rounds * self.spec.updates),
            self.spec.batch,
            derive(self.spec.seed, "site", self.site),
            say=self.say,
        )
        if last := [u for u in checkpoints.updates(loop.checkpoints) if u <= start]:
            loop.resume(_completed(checkpoints.load(loop.checkpoints, last[-1]), loop))
        self._loop, self._unsaved, self._left = loop, None, None
        return loop

    def scores(self, loop: Loop) -> dict[str, float]:
        """Return Dice on the held-out cases, over all and per class, where there are some.

        Of a method that makes images: how like the site's own they are.
        """
        needs = loop.method.needs
        if isinstance(loop.method, Maker):
            modules = loop.run.deployable()
            modules.eval()
            return likeness.measured(loop.method, modules, loop.cases, site=self.site, seed=self.spec.seed)
        if not (self.validation and needs.segments and needs.monitor):
            return {}
        modules = loop.run.deployable()
        modules.eval()
        validate = dice_validation(Cases(self.store, self.validation, self.plan.classes), self.runtime)
        found = validate(loop.method.predictor(modules).eval())
        known = {n for c in self.validation for n in c.annotated}
        kept = {k: v for k, v in found.items() if k == "dice" or k.removeprefix("dice.") in known}
        return {**kept, "n_validation": float(len(self.validation))}

    def _load(self, loop: Loop, arrays: Arrays) -> None:
        keep = exchange.norms(loop.method) if self.spec.personal == "norm" and loop.run.update else ()
        if not exchange.incoming(loop.method, loop.run.averaged, arrays, keep=keep):
            raise Refusal("the server's arrays are not those of this method here; use the same version")

    def _train(self, loop: Loop, task: Task) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
        """Do the round's updates; return what travels and the numbers that go with it."""
        self._refuse_without_cases(loop)
        losses: list[float] = []

        def collect(values: Mapping[str, Tensor]) -> None:
            if "loss" in values:
                losses.append(float(values["loss"]))

        start = (task.round - 1) * self.spec.updates
        if self.spec.optimiser == "reset":
            for optim in loop.run.optims.values():
                optim.optimiser.state.clear()
            loop.method.load_state(self.spec.made(self.plan).state())
        hooks = _proximal(loop, self.spec.prox) if self.spec.prox else []
        try:
            loop.run_updates(start, self.spec.updates, on_update=collect)
        finally:
            for hook in hooks:
                hook.remove()
        if losses and not np.isfinite(losses).any():
            raise Refusal("no update of the round had a finite loss")
        arrays = self._coded(exchange.views(loop.method, loop.run.averaged), task)
        self._unsaved = start if self._unsaved is None else self._unsaved
        if not self.lazy:
            self.settle()
        told = {"updates": float(self.spec.updates)}
        return arrays, {**told, "loss": float(np.nanmean(losses))} if losses else told

    def _stays(self, loop: Loop) -> Callable[[str], bool]:
        """Return which tensors must be on disk after a round: those that do not come with the next task."""
        coming = frozenset(loop.method.shared())
        if self.spec.personal == "norm":
            coming -= exchange.norms(loop.method)

        def stays(name: str) -> bool:
            kind, _, rest = name.partition(".")
            return rest not in coming if kind in WEIGHTS else self.spec.optimiser == "keep"

        return stays

    def _refuse_without_cases(self, loop: Loop) -> None:
        """Refuse to train without the cases that the method cannot do without."""
        method, needs = self.spec.method, loop.method.needs
        if not len(loop.cases):
            raise Refusal(f"no case here that method {method} can learn from")
        kinds = {"labelled": loop.cases.labelled, "unlabelled": loop.cases.unlabelled}
        lacking = [kind for kind, there in kinds.items() if not there]
        if lacking and needs.labels == "some" and needs.unlabelled == "needed":
            raise Refusal(
                f"site {self.site} has no {lacking[0]} training case, and method {method} learns from "
                "labelled and unlabelled ones together: add some there, leave the site out, or take "
                "--method roam, which learns from either kind"
            )

    def _coded(self, new: Arrays, task: Task) -> dict[str, NDArray[Any]]:
        """Return the arrays as they travel: clipped where the run is private, coded where it says so.

        What a lossy code left out is added to the next round's change.
        """
        if self.spec.coding == "none" and self.spec.clip is None:
            return dict(new)
        moved = aggregate.change(new, task.arrays)
        if self.spec.clip is not None:
            moved = privacy.clip(moved, self.spec.clip).arrays
        if self.spec.coding == "none":
            return aggregate.moved(task.arrays, moved)
        coded = compression.encode(moved, self.spec.coding, self._left_before(task.round))
        self._left = task.round, coded.residual
        return coded.arrays

    def _left_before(self, round_: int) -> Arrays:
        """Return what the code left out before a round, from memory or from disk."""
        if self._left is not None and self._left[0] < round_:
            return self._left[1]
        before = [p for p in self._left_files() if _round(p) < round_]
        return parse(read_checked(before[-1]).data) if before else {}

    def _write_left(self, round_: int, arrays: Arrays) -> None:
        """Write what the code left out in a round; what was before it stays, older ones go."""
        before = [p for p in self._left_files() if _round(p) < round_]
        write_bytes(self.folder / f"kept-{round_:08d}.safetensors", pack(dict(arrays)))
        for old in before[:-1]:
            old.unlink()

    def _left_files(self) -> list[Path]:
        return sorted(self.folder.glob("kept-*.safetensors"))

    def _forget_after(self, loop: Loop) -> None:
        """Remove what lies on disk of later rounds than the loop's: the server lost them, and asks again."""
        for update in checkpoints.updates(loop.checkpoints):
            if update > loop.run.update:
                checkpoints.remove(loop.checkpoints, update)
        for path in self._left_files():
            if _round(path) * self.spec.updates > loop.run.update:
                path.unlink()


def at(site: str, cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the cases as of `site`: methods that tell sites apart know it by its federated name."""
    return tuple(c.model_copy(update={"site": site}) for c in cases)


def seen_by(method: Method, folder: Path, cases: Sequence[Case], plan: Plan) -> Cases:
    """Return what `method` may see of prepared training cases, with superpixels where it asks for them."""
    needs = method.needs
    usable = cases if needs.labels != "all" else [c for c in cases if c.label is not None]
    out = Cases(folder, usable, plan.classes, hide_labels=needs.labels == "none", regions=needs.regions)
    if needs.regions is not None:
        superpixels.compute(out, needs.regions, axis=plan.slice_axis)
    return out


def _completed(found: Checkpoint, loop: Loop) -> Checkpoint:
    """Return the checkpoint with the weights as they are now where it has none: they come with the task."""
    states = (loop.method.modules.state_dict(), loop.run.averaged.state_dict())
    now = {f"{kind}.{k}": v for kind, state in zip(WEIGHTS, states, strict=True) for k, v in state.items()}
    return replace(found, tensors={**now, **found.tensors})


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("kept-"))


def _proximal(loop: Loop, mu: float) -> list[Any]:
    """Add mu (w - w_0) to every gradient, after clipping, w_0 being the weights now; returns the hooks."""
    first = {p: p.detach().clone() for p in loop.method.modules.parameters()}

    def pull(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimiser.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p.detach() - first[p], alpha=mu)

    return [o.optimiser.register_step_pre_hook(pull) for o in loop.run.optims.values()]
