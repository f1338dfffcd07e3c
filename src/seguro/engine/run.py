"""What the loop lends to a method (`methods.contract.Run`): devices, ranks, precision, steps, randomness."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from seguro.core.errors import ConfigError
from seguro.core.seeds import derive
from seguro.engine.runtime import Runtime, finite
from seguro.engine.schedule import PlateauState, factor
from seguro.methods.contract import Method, Optim

FIRST_SCALE = 2.0**14
SCALE_GROWTH_EVERY = 1000
"""Good steps after which the float16 loss scale is doubled; it is halved at every overflow."""


class LoopRun:
    """One training's state that is not the method's: see `methods.contract.Run` for what a method may use.

    Args:
        method: its modules are moved to the runtime's device, and its optimisers made, here.
        runtime: ranks, device and precision.
        seed: of the run.
        batch: samples per update over all ranks.
        updates: planned updates; may be changed later when a time budget is re-estimated.
    """

    def __init__(self, method: Method, runtime: Runtime, *, seed: int, batch: int, updates: int) -> None:
        if batch % runtime.world:
            raise ConfigError(
                f"batch {batch} is not divisible by {runtime.world} ranks; set --batch to a multiple"
            )
        self.update = 0
        self.updates = updates
        self.epoch = 0
        self.world = runtime.world
        per_rank = batch // runtime.world
        if per_rank % method.needs.group:
            raise ConfigError(
                f"batch {batch} on {runtime.world} rank(s) gives {per_rank} samples each; this method works "
                f"on groups of {method.needs.group}: "
                f"set --batch to a multiple of {runtime.world * method.needs.group}"
            )
        self.slots = range(runtime.rank * per_rank, (runtime.rank + 1) * per_rank)
        self.runtime = runtime
        self.seed = seed
        self._bad: dict[str, int] = {}
        self.modules = method.modules.to(runtime.device)
        runtime.broadcast(self.modules)
        self.optims: dict[str, Optim] = method.optimisers()
        self._base = {n: [g["lr"] for g in o.optimiser.param_groups] for n, o in self.optims.items()}
        self.plateaus = {name: PlateauState() for name in self.optims}
        names = {name for o in self.optims.values() for name in o.average}
        self.averaged = nn.ModuleDict(
            {n: copy.deepcopy(self.modules[n]).requires_grad_(False) for n in sorted(names)}
        ).eval()
        self.scale = FIRST_SCALE if runtime.precision == "16-mixed" else 1.0
        self._good = 0
        owned = [id(p) for o in self.optims.values() for g in o.optimiser.param_groups for p in g["params"]]
        if len(owned) != len(set(owned)):
            raise ConfigError("a parameter belongs to two optimisers of this method; give each its own")

    def rng(self, *key: int | str) -> torch.Generator:
        """Return a generator on the run's device keyed by (seed, update, *key)."""
        generator = torch.Generator(device=self.runtime.device)
        generator.manual_seed(derive(self.seed, self.update, "run", *key))
        return generator

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes."""
        return self.runtime.autocast()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss` times the scale."""
        (loss * self.scale).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def grad(self, y: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
        """Return d y.sum() / d x, computed at the scale and divided by it."""
        (g,) = torch.autograd.grad(y.sum() * self.scale, x, create_graph=create_graph)
        return g / self.scale

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of `x` over ranks, detached."""
        return self.runtime.mean(x)

    def train(self) -> None:
        """Put the modules that are trained into training mode; frozen ones stay in evaluation mode."""
        for module in self.modules.values():
            module.train(any(p.requires_grad for p in module.parameters()))

    @property
    def skipped(self) -> int:
        """Steps skipped in a row, of the optimiser where it is most."""
        return max(self._bad.values(), default=0)

    def step(self, *names: str) -> bool:
        """Step the named optimisers (none named: all) together, or skip them all; then zero all gradients."""
        chosen = names or tuple(self.optims)
        parameters = {
            n: [p for g in self.optims[n].optimiser.param_groups for p in g["params"]] for n in chosen
        }
        for name in chosen:
            self.runtime.mean_gradients(parameters[name])
        gradients = [p.grad for name in chosen for p in parameters[name] if p.grad is not None]
        if self.scale != 1:
            for g in gradients:
                g /= self.scale
        good = finite(gradients)
        if good:
            for name in chosen:
                self._step_one(name, parameters[name])
        self._rescale(good)
        self.modules.zero_grad(set_to_none=True)
        for name in chosen:
            self._bad[name] = 0 if good else self._bad.get(name, 0) + 1
        return good

    def _step_one(self, name: str, parameters: list[nn.Parameter]) -> None:
        optim = self.optims[name]
        if optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        rate = factor(optim.schedule, self.update, self.updates, self.plateaus[name])
        for group, base in zip(optim.optimiser.param_groups, self._base[name], strict=True):
            group["lr"] = base * rate
        optim.optimiser.step()
        for module, decay in optim.average.items():
            _average(self.averaged[module], self.modules[module], decay)

    def _rescale(self, good: bool) -> None:
        if self.runtime.precision != "16-mixed":
            return
        self._good = self._good + 1 if good else 0
        if not good:
            self.scale = max(self.scale / 2, 1.0)
        elif self._good % SCALE_GROWTH_EVERY == 0:
            self.scale *= 2

    def deployable(self) -> nn.ModuleDict:
        """Return the modules with their averages in place of the raw ones where there are averages."""
        averaged = dict(self.averaged.items())
        return nn.ModuleDict({n: averaged.get(n, m) for n, m in self.modules.items()})

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each optimiser as last used."""
        return {f"lr.{n}": float(o.optimiser.param_groups[0]["lr"]) for n, o in self.optims.items()}

    def scalars(self) -> dict[str, Any]:
        """Return the JSON part of this object's state."""
        return {
            "scale": self.scale,
            "good": self._good,
            "bad": self._bad,
            "plateaus": {n: vars(p) for n, p in self.plateaus.items()},
        }

    def load_scalars(self, facts: Mapping[str, Any]) -> None:
        """Restore what `scalars` returned."""
        self.scale, self._good, self._bad = float(facts["scale"]), int(facts["good"]), dict(facts["bad"])
        self.plateaus = {n: PlateauState(**p) for n, p in facts["plateaus"].items()}


@torch.no_grad()
def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move `average` towards `module`; buffers are copied."""
    for a, p in zip(average.parameters(), module.parameters(), strict=True):
        a.lerp_(p.detach(), 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
