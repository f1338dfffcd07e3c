"""What a run would take: bytes that travel, hours of local training, and what each site would tell."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seguro.core.errors import ConfigError
from seguro.core.seeds import derive
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.data.store import prepare_case
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.federated import compression, exchange, message
from seguro.federated.accountant import rounds_within
from seguro.federated.local import at, seen_by
from seguro.federated.message import Arrays
from seguro.federated.plan import at_site, merged
from seguro.federated.roster import lonely
from seguro.federated.site import Site
from seguro.federated.spec import Spec
from seguro.federated.strategies import Federation
from seguro.methods import get
from seguro.networks.unet import training_bytes

PROBED = 3
"""Updates that are timed, the first of them not counted."""


@dataclass(frozen=True)
class Foretold:
    """What a run would take."""

    method: str
    facts: Mapping[str, Mapping[str, Any]]
    """By site, everything about its cases that it would tell before round 1."""
    plan: Plan
    agreement: Mapping[str, Any]
    """What the sites would be asked to agree on, as a task has it."""
    arrays: tuple[str, ...]
    """Names of what would travel in every round."""
    bytes_up: int
    """From each site over the whole run, at most; where a part of the sites is drawn, on average."""
    bytes_down: int
    """To each site that misses no round, at most: to train on, and in rounds with scores also where it was
    not drawn."""
    rounds: int
    """Those asked for, or as many as the privacy budget allows."""
    hours: Mapping[str, float | None]
    """Local training of the sites that are here, at the speed of this machine; None where a site has nothing
    to learn from."""

    def lines(self) -> list[str]:
        """Return the whole of it in words, as every dry run says it."""
        up, down = self.bytes_up / 1e6, self.bytes_down / 1e6
        segments = get(self.method).needs.segments
        judged = "Dice" if segments else "distances of what is made to its own slices"
        out = [f"one plan for {len(self.facts)} sites:", *(f"  {reason}" for reason in self.plan.reasons)]
        out += lonely(self.facts, self.method)
        out += [
            f"each site sends at most {up:.1f} MB and receives {down:.1f} MB in {self.rounds} rounds:",
            f"  {len(self.arrays)} arrays of weights a round, and losses, {judged}, counts, seconds",
        ]
        for site, told in self.facts.items():
            out.append(f"site {site}: {self._training(site)}; before round 1 it tells of its cases")
            out += [f"    {key}: {json.dumps(value)}" for key, value in told.items()]
        return out

    def values(self) -> dict[str, Any]:
        """Return the whole of it as JSON values."""
        return {
            "sites": dict(self.facts),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "hours": {site: hours for site, hours in self.hours.items() if hours is not None},
            "arrays": list(self.arrays),
        }

    def _training(self, site: str) -> str:
        if site not in self.hours:
            return "its own dry run says how many hours it trains"
        hours = self.hours[site]
        return (
            "nothing here that the method can learn from" if hours is None else f"{hours:.2f} h of training"
        )


def foretold(
    federation: Federation, facts: Mapping[str, Mapping[str, Any]], sites: Mapping[str, Site], scratch: Path
) -> Foretold:
    """Return what `federation` would take.

    Args:
        federation: every choice.
        facts: by site, what it tells of its cases.
        sites: those that are here, whose training is timed.
        scratch: the store for the timing is written to it.
    """
    options = PlanOptions.model_validate(federation.plan)
    plan = merged(federation.run, facts, options, training_bytes)
    spec = Spec.settled(federation, plan)
    arrays = begun(spec, plan)
    size = message.payload_bytes(arrays)
    s = federation.strategy
    share = s.drawn(len(federation.sites)) / len(federation.sites)
    planned = federation.rounds
    if s.privacy is not None and s.privacy.budget is not None:
        planned = min(planned, rounds_within(s.privacy, 1.0))
    rounds = planned * share
    scored = (planned - 1) // s.evaluate_every
    return Foretold(
        method=federation.method,
        facts=facts,
        plan=plan,
        agreement={"plan": plan.model_dump(mode="json"), "spec": spec.model_dump(mode="json")},
        arrays=tuple(sorted(arrays)),
        bytes_up=int(compression.largest_bytes(arrays, s.coding) * rounds),
        bytes_down=int(
            size + compression.largest_bytes(arrays, s.down) * (scored + (planned - scored) * share)
        ),
        rounds=planned,
        hours={
            name: None
            if (seconds := update_seconds(spec, plan, site, scratch / name)) is None
            else seconds * spec.updates * rounds / 3600
            for name, site in sites.items()
        },
    )


def begun(spec: Spec, plan: Plan) -> Arrays:
    """Return the arrays that everyone begins with."""
    method = spec.made(plan)
    run = LoopRun(method, Runtime("cpu", "32"), seed=0, batch=spec.batch, updates=1)
    return exchange.outgoing(method, run.averaged)


def update_seconds(spec: Spec, plan: Plan, site: Site, scratch: Path) -> float | None:
    """Return the seconds of one local update at `site`, None where it has nothing to learn from."""
    labels = get(spec.method).needs.labels
    train, _ = site.cases()
    known = [c for c in train if c.label is not None][:1]
    bare = [c for c in train if c.label is None][:1]
    usable = known if labels == "all" else [*known, *bare]
    if not usable:
        return None
    here = at_site(plan, site.manifest())
    for case in usable:
        prepare_case(scratch, case, site.manifest(), here)
    method = spec.made(here)
    loop = Loop(
        method,
        seen_by(method, scratch, at(site.name, usable), here),
        scratch,
        Runtime(site.device, site.precision),
        Limits(updates=PROBED),
        spec.batch,
        derive(spec.seed, "cost"),
    )
    try:
        loop.run_updates(0, 1)
    except ConfigError:  # the method mixes labelled and unlabelled cases, and here is one kind only
        return None
    started = time.monotonic()
    loop.run_updates(1, PROBED - 1)
    return (time.monotonic() - started) / (PROBED - 1)
