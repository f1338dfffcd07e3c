"""What a site must know of a run to train."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from seguro.core.seeds import derive
from seguro.core.types import Record
from seguro.data.plan import Plan
from seguro.federated.message import Refusal, Task
from seguro.federated.strategies import Federation
from seguro.methods import TABLE, get
from seguro.methods.contract import Method
from seguro.networks import build


class Spec(Record):
    """What a run is; the server sends it to the sites with the plan."""

    method: str
    config: dict[str, Any]
    rounds: int = Field(ge=1)
    updates: int = Field(ge=1)
    batch: int = Field(ge=1)
    seed: int
    prox: float = Field(0.0, ge=0)
    personal: Literal["none", "norm"] = "none"
    optimiser: Literal["keep", "reset"] = "keep"
    coding: Literal["none", "fp16", "int8"] = "none"
    down: Literal["none", "fp16", "int8"] = "none"
    clip: float | None = None
    """Length that a site's change is cut to before it leaves."""
    noise: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    """What the server says of privacy; a site's policy may ask for it."""

    @classmethod
    def of(cls, task: Task) -> Spec:
        """Return the spec in a task.

        Raises:
            Refusal: fields that this version does not know.
        """
        try:
            return cls.model_validate(task.config["spec"])
        except (ValidationError, KeyError) as error:
            raise Refusal("the run has fields that this version of seguro does not know") from error

    @classmethod
    def settled(cls, federation: Federation, plan: Plan) -> Spec:
        """Return the spec of a federation under its plan."""
        f, s = federation, federation.strategy
        return cls(
            method=f.method,
            config=f.config,
            rounds=f.rounds,
            updates=f.updates,
            batch=f.batch or get(f.method).needs.batch(plan.batch),
            seed=f.seed,
            prox=s.prox,
            personal=s.personal,
            optimiser=s.optimiser,
            coding=s.coding,
            down=s.down,
            clip=s.privacy.clip if s.privacy else None,
            noise=s.privacy.noise if s.privacy else None,
            epsilon=s.privacy.budget if s.privacy else None,
            delta=s.privacy.delta if s.privacy else None,
        )

    def check(self, plan: Plan) -> None:
        """Refuse a method that is not here, its settings, or a plan of other dimensions than its own."""
        if self.method not in TABLE:
            raise Refusal(f"no method {self.method} here; known are {', '.join(TABLE)}")
        kind = get(self.method)
        if plan.dims not in kind.needs.dims:
            raise Refusal(f"method {self.method} does not work in {plan.dims} dimensions")
        try:
            kind.Config.model_validate(self.config)
        except ValidationError as error:
            raise Refusal(f"method {self.method} does not know its settings in this version") from error

    def made(self, plan: Plan) -> Method:
        """Return the method with the weights that every site and the server begin with."""
        kind = get(self.method)
        torch.manual_seed(derive(self.seed, "init"))
        return kind(kind.Config.model_validate(self.config), plan, build)
