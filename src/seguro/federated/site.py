"""A site: its own folder, manifest and training; it answers tasks and keeps its state on its own disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seguro.core.errors import SeguroError
from seguro.core.files import read_json, sha256_json, write_json
from seguro.core.stage import Stage
from seguro.core.types import Case, Manifest
from seguro.data import check, store
from seguro.data import manifest as manifests
from seguro.data.fingerprint import measure_all
from seguro.data.folds import by_patient
from seguro.data.plan import Plan
from seguro.engine.runtime import Precision
from seguro.federated import local, message
from seguro.federated.facts import facts_of
from seguro.federated.message import Gate, Open, Refusal, Task, Update
from seguro.federated.plan import at_site, plan_hash
from seguro.federated.spec import Spec

FOLDS = 5
"""One of so many parts of a site's patients is held out for the scores."""


@dataclass
class Site:
    """One site of a federation.

    Args:
        name: as the server knows it.
        data: its data folder, or a workspace that was checked.
        workspace: where it writes; its state of a run lies in `federated/<run>/`.
        gate: policy and audit log.
        device: of its training.
        precision: of its training.
        say: takes lines for the people at the site; nothing of them leaves.
        lazy: write the state of a training when told to `settle`, not after every round.
    """

    name: str
    data: Path
    workspace: Path
    gate: Gate = field(default_factory=Open)
    device: str = "cpu"
    precision: Precision = "32"
    say: Callable[[str], None] = lambda line: None
    lazy: bool = False
    _manifest: Manifest | None = field(default=None, init=False)
    _training: local.Training | None = field(default=None, init=False)

    def answer(self, data: bytes) -> bytes:
        """Return the answer to the task in `data`; what goes wrong is told in words that leak nothing."""
        task = message.task_from(data)
        blank = Update(task.run, self.name, task.round, task.action)
        try:
            self.gate.admit(task, data)
            update = self.gate.lets(self._do(task))
        except Refusal as error:
            update = _refused(blank, str(error))
        except SeguroError as error:
            self.say(f"{task.action} of round {task.round}: {error}")
            update = _refused(blank, f"{type(error).__name__}; the log at the site says more")
        out = message.to_bytes(update)
        try:
            self.gate.release(update, out)
        except Refusal as error:
            update = _refused(blank, str(error))
            out = message.to_bytes(update)
            self.gate.release(update, out)  # the refusal leaves, and is noted too
        return out

    def settle(self) -> None:
        """Write the state after the last round, where it is not on disk yet."""
        if self._training is not None:
            self._training.settle()

    def _do(self, task: Task) -> Update:
        if task.action == "join":
            return Update(task.run, self.name, task.round, "join", facts=self.facts())
        if task.action == "agree":
            return self._agree(task)
        return self._local(task).answer(task)

    def manifest(self) -> Manifest:
        """Return the manifest of the site's data, checked now where it was not."""
        if self._manifest is None:
            checked = self.data / "check" / manifests.FILE
            self._manifest = (
                manifests.load(checked)
                if checked.exists()
                else check.ensure(self.data, self.workspace, say=self.say)
            )
        return self._manifest

    def facts(self) -> dict[str, Any]:
        """Return what the server is told of the cases; measured once, kept in the workspace."""
        manifest = self.manifest()
        cases = (*manifest.of("train"), *manifest.of("unlabelled"))
        path = self.workspace / "federated" / "facts.json"
        stage = Stage(
            path.parent,
            "facts",
            reads={f"case/{c.id}": c.hash for c in cases},
            config={"classes": manifest.classes.model_dump() if manifest.classes else None},
        )
        if not stage.done():
            write_json(path, facts_of(manifest, measure_all(manifest, cases)))
            stage.finish([path])
        return dict(read_json(path))

    def cases(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Return training and validation cases: all scans of a patient are on one side.

        A site with one patient validates on the cases that it trains on.
        """
        manifest = self.manifest()
        everything = (*manifest.of("train"), *manifest.of("unlabelled"))
        fold = by_patient(everything, n=FOLDS, seed=0)[0]
        by_id = {c.id: c for c in everything}
        validation = tuple(by_id[i] for i in fold.validation if by_id[i].label is not None)
        return tuple(by_id[i] for i in fold.train), validation

    def held_out(self) -> tuple[Case, ...]:
        """Return the cases, labelled or not, of patients that are not trained on."""
        manifest, (train, _) = self.manifest(), self.cases()
        known = {c.patient for c in train}
        everything = (*manifest.of("train"), *manifest.of("unlabelled"))
        return tuple(c for c in everything if c.patient not in known)

    def _folder(self, run: str) -> Path:
        return self.workspace / "federated" / run

    def _agree(self, task: Task) -> Update:
        """Take the server's plan, prepare the cases by it, and say its hash."""
        try:
            plan = Plan.model_validate(task.config["plan"])
        except (ValidationError, KeyError) as error:
            raise Refusal("the plan is none of this version of seguro") from error
        here = at_site(plan, self.manifest())
        folder = self._folder(task.run)
        spec = Spec.of(task)
        spec.check(here)
        store.prepare(self.workspace, self.manifest(), here)
        self.settle()
        before = folder / "agreed.json"
        agreed = {"plan": plan.model_dump(mode="json"), "spec": spec.model_dump(mode="json")}
        if before.exists() and _differ(read_json(before), agreed):
            shutil.rmtree(folder)  # another run of this name: its state belongs to other weights
        write_json(before, agreed)
        self._training = None
        return Update(task.run, self.name, task.round, "agree", facts={"plan": plan_hash(plan)})

    def _local(self, task: Task) -> local.Training:
        """Return the training of the task's run, from memory or from disk."""
        if self._training is None or self._training.run != task.run:
            self.settle()
            folder = self._folder(task.run)
            if not (folder / "agreed.json").exists():
                raise Refusal(f"{message.UNKNOWN_RUN} {task.run}")
            agreed = read_json(folder / "agreed.json")
            plan = Plan.model_validate(agreed["plan"])
            train, validation = self.cases()
            self._training = local.Training(
                run=task.run,
                site=self.name,
                folder=folder,
                store=self.workspace / "store" / at_site(plan, self.manifest()).preprocessing_hash,
                plan=at_site(plan, self.manifest()),
                plan_sha256=plan_hash(plan),
                spec=Spec.model_validate(agreed["spec"]),
                train=train,
                validation=validation,
                held_out=self.held_out(),
                device=self.device,
                precision=self.precision,
                say=self.say,
                lazy=self.lazy,
            )
        return self._training


def _differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether runs of one name were agreed on differently; fields of later versions had defaults."""
    try:
        before = {**before, "spec": Spec.model_validate(before["spec"]).model_dump(mode="json")}
    except (ValidationError, KeyError):
        return True
    return sha256_json(before) != sha256_json(now)


def _refused(blank: Update, why: str) -> Update:
    return Update(blank.run, blank.site, blank.round, blank.action, refused=why)
