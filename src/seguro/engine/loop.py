"""The training loop: draw, update, validate, checkpoint, resume. The same for every method."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seguro.core.errors import DataError, RunError
from seguro.core.seeds import derive, generator
from seguro.data.store import Cases
from seguro.engine import checkpoint as checkpoints
from seguro.engine.checkpoint import Checkpoint
from seguro.engine.limits import PROBE_UPDATES, Clock, Limits
from seguro.engine.log import RunLog
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.engine.signals import Stopped, stop_on_signals
from seguro.methods.contract import SHARE, Batch, Method, Predictor, collate

Validate = Callable[[Predictor], Mapping[str, float]]
Watch = Callable[[int, torch.nn.ModuleDict], Mapping[str, float]]
SCHEMA = 2  # of a checkpoint; raised by hand when what it keeps changes
MAX_SKIPPED = 20
"""Steps in a row with gradients that are not finite before training stops."""
LOW_SHARE, LOW_SHARE_FROM = 0.1, 0.1
"""A class found on less than this part of its labelled share is noted, after this part of training."""


@dataclass
class Progress:
    """What is shown while training."""

    update: int
    updates: int
    seconds: float
    seconds_left: float
    values: Mapping[str, float]
    best: float | None


@dataclass
class Loop:
    """One training of one method in one folder.

    Args:
        method: made with its network already initialized under the run's seed.
        cases: what `draw` sees.
        folder: the run; holds `checkpoints/` and `log.jsonl`.
        runtime: ranks, device, precision.
        limits: how long.
        batch: samples per update over all ranks.
        seed: of everything random.
        validate: scores a predictor; keys must contain the one `needs.monitor` names. None: never validated.
        watch: looks at the deployable modules after an update, on rank 0 at every validation; its scores are
            logged.
        progress: called after each update on rank 0.
        say: takes one line for people.
        workers: threads that draw samples ahead.
    """

    method: Method
    cases: Cases
    folder: Path
    runtime: Runtime
    limits: Limits
    batch: int
    seed: int
    validate: Validate | None = None
    watch: Watch | None = None
    progress: Callable[[Progress], None] | None = None
    say: Callable[[str], None] = lambda line: None
    workers: int = 1
    best: float | None = field(default=None, init=False)
    best_update: int | None = field(default=None, init=False)
    since_best: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.run = LoopRun(
            self.method, self.runtime, seed=self.seed, batch=self.batch, updates=self.limits.updates or 10**9
        )
        self.log = RunLog(self.folder)
        self.checkpoints = self.folder / "checkpoints"
        self.clock = Clock()
        self._stop = threading.Event()
        self._last: dict[str, float] = {}
        self._sums: dict[str, list[float]] = {}
        """Of each logged value since the last validation: sum, and how many updates logged it."""
        """Logged values added up since the last look, and "n", how many."""
        self._looked_at = 0

    @property
    def seconds(self) -> float:
        """Training seconds so far, over all resumes."""
        return self.clock.seconds

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of this rank so far, over all resumes and threads."""
        return self.clock.cpu_seconds

    def fit(self) -> Checkpoint:
        """Train to the end, resuming where a checkpoint lies, and return the checkpoint to deploy.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            RunError: too many steps were not finite, or a resume with another world or batch size.
        """
        found = checkpoints.latest(self.checkpoints, say=self.say)
        start = self.resume(found) if found else 0
        if int(self.runtime.from_first(float(start))) != start:
            raise RunError(
                f"{self.folder}: ranks see different checkpoints; all ranks must share this folder"
            )
        if self.runtime.rank == 0:
            self.log.cut(start if found else -1)  # without a checkpoint everything is done again
        with stop_on_signals(self._stop):
            if found is None and (self.validate or self.watch):
                self._validate()  # a validation that cannot work fails here, not after an hour
            if self.limits.budget_s is not None and start < PROBE_UPDATES:
                self.run_updates(start, PROBE_UPDATES - start, on_update=self._after_update)
                self._estimate(PROBE_UPDATES)
                start = PROBE_UPDATES
            elif start and start != self._looked_at and start % self._step() == 0:
                self._look(start)  # stopped by a signal between this update and its validation
            while start < self.run.updates and not self._patience_over():
                stop = min((start // self._step() + 1) * self._step(), self.run.updates)
                self.run_updates(start, stop - start, on_update=self._after_update)
                start = stop
                self._look(start)
            if self._looked_at != self.run.update:
                self._look(self.run.update)
        if self.runtime.rank == 0:
            self.log.write_csv()
        self.runtime.barrier()
        chosen = self.best_update if self.method.needs.monitor else self.run.update
        return checkpoints.load(self.checkpoints, self.run.update if chosen is None else chosen)

    def run_updates(
        self, start: int, n: int, *, on_update: Callable[[Mapping[str, Tensor]], None] | None = None
    ) -> None:
        """Do updates `start` ... `start + n - 1`; all that a site of a federation calls."""
        if n <= 0:
            return
        self.run.train()
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            ahead: deque[Future[tuple[Batch, list[str]]]] = deque()
            for update in range(start, start + n):
                while len(ahead) <= self.workers and update + len(ahead) < start + n:
                    ahead.append(pool.submit(self._batch, update + len(ahead)))
                batch, ids = ahead.popleft().result()
                self._begin(update)
                values = self.method.update(_to(batch, self.runtime.device), self.run)
                self.run.update = update + 1
                if self.run.skipped:
                    self._not_finite(update, ids)
                if on_update:
                    on_update(values)

    def _begin(self, update: int) -> None:
        self.run.update = update
        self.run.epoch = update * self.batch // max(len(self.cases), 1)
        root = derive(self.seed, update, "global", self.runtime.rank)
        torch.manual_seed(root)
        random.seed(root)
        np.random.seed(root % (1 << 32))  # noqa: NPY002 - third-party networks may draw from the global state

    def _batch(self, update: int) -> tuple[Batch, list[str]]:
        view = self.cases.view()
        samples = [
            self.method.draw(view, slot, generator(self.seed, update, "draw", slot))
            for slot in self.run.slots
        ]
        return collate(samples), view.touched

    def _after_update(self, values: Mapping[str, Tensor]) -> None:
        update = self.run.update
        numbers = {k: float(self.runtime.mean(v.float())) for k, v in sorted(values.items())}
        self._last = numbers
        for name, value in numbers.items():
            total, n = self._sums.get(name, [0.0, 0])
            self._sums[name] = [total + value, n + 1]
        if self.runtime.rank == 0:
            finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            self.log.add("train", update, seconds=round(self.seconds, 2), **finite, **self.run.rates())
            if self.progress:
                self.progress(self._progress())
        if self.runtime.any(self._stop.is_set()):
            self.save()
            raise Stopped(f"stopped at update {update}, saved; run the same command again to go on")

    def _progress(self) -> Progress:
        done, updates = self.run.update, self.run.updates
        left = self.limits.seconds_left(done, updates, self.clock)
        return Progress(done, updates, self.seconds, left, self._last, self.best)

    def _step(self) -> int:
        return self.limits.step(self.run.updates, self.clock)

    def _patience_over(self) -> bool:
        over = bool(self.limits.patience) and self.since_best >= self.limits.patience
        if over:
            self._note(f"stopped early: {self.since_best} validations without improvement")
        return over

    def _look(self, update: int) -> None:
        """Validate, re-estimate a time budget, save."""
        self._validate()
        if self.limits.budget_s is not None:
            self._estimate(update)
        self._looked_at = update
        self.save()

    def _validate(self) -> None:
        """Score the predictor, if there is one; the monitored value may also be one that `update` logs."""
        scores: dict[str, float] = {}
        if self.validate is not None:
            with self.clock.validation():
                torch.manual_seed(derive(self.seed, self.run.update, "validate"))
                modules = self.run.deployable()
                modules.eval()
                scores = dict(self.validate(self.method.predictor(modules).eval()))
                self.run.train()
        if self.watch is not None and self.runtime.rank == 0:
            with self.clock.validation():
                modules = self.run.deployable()
                modules.eval()
                scores |= self.watch(self.run.update, modules)
                self.run.train()
        if scores and self.runtime.rank == 0:
            self.log.add("validation", self.run.update, **{k: _number(v) for k, v in scores.items()})
        logged = {k: total / n for k, (total, n) in self._sums.items()}
        self._sums = {}
        self._note_lost(logged)
        self._select({**logged, **scores})

    def _note_lost(self, logged: Mapping[str, float]) -> None:
        """Note the classes that guesses on unlabelled patches have all but lost."""
        shares = {k.removeprefix(SHARE): v for k, v in logged.items() if k.startswith(SHARE)}
        low = [f"{name} ({v:.0%})" for name, v in sorted(shares.items()) if v < LOW_SHARE]
        if low and self.run.update >= LOW_SHARE_FROM * self.run.updates:
            self._note(
                f"update {self.run.update}: guessed on unlabelled patches on less than {LOW_SHARE:.0%} of "
                f"the labelled share: {', '.join(low)}"
            )

    def _select(self, scores: Mapping[str, float]) -> None:
        """Take the monitored score into account; the untrained network is looked at, never chosen."""
        monitor = self.method.needs.monitor
        if not monitor or self.run.update == 0:
            return
        direction, _, name = monitor.partition(":")
        score = scores.get(name, math.nan)
        if not math.isfinite(score):
            return
        higher = direction == "max"
        for key, optim in self.run.optims.items():
            self.run.plateaus[key].observe(score, higher_is_better=higher, schedule=optim.schedule)
        if self.best is None or (score > self.best if higher else score < self.best):
            self.best, self.best_update, self.since_best = score, self.run.update, 0
        else:
            self.since_best += 1

    def _estimate(self, update: int) -> None:
        """Turn what is left of the time budget into a number of updates, the same on every rank."""
        total, per_update = self.limits.estimate(update, self.clock)
        total = max(int(self.runtime.from_first(float(total))), update)
        if total != self.run.updates:
            minutes = (self.limits.budget_s or 0.0) / 60
            self._note(f"{per_update:.2f} s an update: {total} updates fit the budget of {minutes:.0f} min")
        self.run.updates = total

    def _note(self, message: str) -> None:
        if self.runtime.rank == 0:
            self.log.add("note", self.run.update, message=message)
            self.say(message)

    def _not_finite(self, update: int, ids: list[str]) -> None:
        self._note(f"update {update}: gradient not finite, step skipped ({', '.join(sorted(set(ids)))})")
        if self.run.skipped > MAX_SKIPPED:
            last = checkpoints.updates(self.checkpoints)
            good = f"last good checkpoint: update {last[-1]}" if last else "no checkpoint yet"
            raise RunError(
                f"{self.run.skipped} steps in a row were not finite, last batch {sorted(set(ids))}; {good}: "
                "lower the learning rate (--set learning_rate=...) or check these cases"
            )

    def save(self, *, keep: Callable[[str], bool] = lambda name: True) -> None:
        """Write a checkpoint of everything (rank 0), gathered over ranks where ranks differ.

        Args:
            keep: whether to write a tensor, by its name; whoever resumes must have the others.
        """
        tensors: dict[str, Tensor] = {f"modules.{k}": v for k, v in self.method.modules.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.run.averaged.state_dict().items()}
        for name, optim in self.run.optims.items():
            tensors |= checkpoints.optimiser_tensors(f"optimiser.{name}", optim.optimiser)
        for rank, state in enumerate(self.runtime.gather(self.method.state())):
            tensors |= {f"state.{rank}.{k}": v for k, v in state.items()}
        tensors = {k: v for k, v in tensors.items() if keep(k)}
        if self.runtime.rank == 0:
            facts = {
                "schema": SCHEMA,
                "world": self.run.world,
                "batch": self.batch,
                "seed": self.seed,
                "updates": self.run.updates,
                **self.clock.facts(),
                "best": self.best,
                "best_update": self.best_update,
                "since_best": self.since_best,
                "looked_at": self._looked_at,
                "sums": self._sums,
                "run": self.run.scalars(),
            }
            checkpoints.save(
                self.checkpoints, Checkpoint(self.run.update, tensors, facts), best=self.best_update
            )
        self.runtime.barrier()

    def resume(self, found: Checkpoint) -> int:
        """Take up the state of a checkpoint and return its update.

        Raises:
            RunError: trained with other ranks, batch or seed, or by a version that keeps another state.
            DataError: of another network.
        """
        facts = found.facts
        if facts.get("schema") != SCHEMA:
            raise RunError(
                f"{self.folder}: checkpoint of another version of seguro; finish it there or use a new --name"
            )
        for name, now in (("world", self.run.world), ("batch", self.batch), ("seed", self.seed)):
            if facts[name] != now:
                raise RunError(
                    f"{self.folder}: trained with {name} {facts[name]}, now {now}; "
                    "use the same or a new --name"
                )
        load_modules(self.method.modules, found, "modules.", self.checkpoints)
        load_modules(self.run.averaged, found, "averaged.", self.checkpoints)
        for name, optim in self.run.optims.items():
            checkpoints.restore_optimiser(f"optimiser.{name}", optim.optimiser, found.tensors)
        prefix = f"state.{self.runtime.rank}."
        self.method.load_state(
            {k[len(prefix) :]: v for k, v in found.tensors.items() if k.startswith(prefix)}
        )
        self.run.load_scalars(facts["run"])
        self.run.update = found.update
        self.run.updates = int(facts["updates"]) if self.limits.updates is None else self.limits.updates
        self.clock.resume(facts)
        self.best, self.best_update = facts["best"], facts["best_update"]
        self.since_best = int(facts["since_best"])
        self._looked_at, self._sums = int(facts["looked_at"]), dict(facts["sums"])
        self.say(f"resuming at update {found.update}")
        return found.update


def load_modules(modules: torch.nn.Module, found: Checkpoint, prefix: str, folder: Path) -> None:
    """Load what a checkpoint of `folder` holds under `prefix` into `modules`.

    Raises:
        DataError: a name or shape differs: a checkpoint of another network.
    """
    given = {k[len(prefix) :]: v for k, v in found.tensors.items() if k.startswith(prefix)}
    shapes = {k: v.shape for k, v in given.items()}
    own = {k: v.shape for k, v in modules.state_dict().items()}
    if shapes != own:
        odd = sorted(k for k in shapes.keys() | own.keys() if shapes.get(k) != own.get(k))
        there, here = (str(tuple(x[odd[0]])) if odd[0] in x else "nothing" for x in (shapes, own))
        raise DataError(
            f"{folder}: the checkpoint of update {found.update} is of another network than this run's: "
            f"{len(odd)} weights differ, first {prefix}{odd[0]} ({there}, expected {here}); "
            "copy the run again, or train with a new --name"
        )
    modules.load_state_dict(given)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _to(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on `device`."""
    from dataclasses import fields

    moved: dict[str, Any] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        moved[f.name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
    return replace(batch, **moved)
