"""What a site allows, in a file of its own, and the gate that holds every message to it.

The file is the hospital's: the server can read neither it nor the audit log, it only learns of a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from seguro.core.errors import ConfigError
from seguro.core.files import read_json, sha256_json, write_json
from seguro.core.settings import read_yaml
from seguro.core.types import Record
from seguro.federated.audit import Audit
from seguro.federated.message import METRICS, Refusal, Task, Update

Leaves = Literal["facts", "weights", "losses", "scores", "counts", "audits"]
KIND: Mapping[str, Leaves] = {"loss": "losses", "dice": "scores", "audit": "audits", "made": "audits"}
"""What a number counts as; those that are not here are counts (cases, updates, seconds, norms)."""
MB = 1_000_000


class Policy(Record):
    """A site's conditions; what is not written in the file is not limited."""

    methods: tuple[str, ...] | None = None
    """Methods that may train here; null for any."""
    classes: tuple[str, ...] | None = None
    """Foreground classes that a run may segment; null for any."""
    may_leave: tuple[Leaves, ...] = ("facts", "weights", "losses", "scores", "counts")
    """facts: counts and quantiles for the plan. weights: what was learned. losses, scores (Dice of the site's
    own validation cases), counts: numbers per round, which are left out of the messages where they may not
    leave. Without counts the site has the weight of one case in a weighted mean. audits, which must be
    listed: distances of made images to the site's own and their counts, without which a model that makes
    images has no curves of its quality and is not marked releasable."""
    largest_message_mb: float | None = Field(None, gt=0)
    """Largest message, in 10^6 bytes, that may leave from a run without differential privacy; noise without a
    budget, or with a larger `delta` than below, is none."""
    epsilon: float | None = Field(None, gt=0)
    """Only runs with differential privacy whose budget is at most this; null asks for none."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Largest probability with which that epsilon may fail; without a bound on it an epsilon says nothing."""
    rounds: int | None = Field(None, ge=1)
    """Most rounds of a run."""
    updates: int | None = Field(None, ge=1)
    """Most local updates in a round."""


class Asked(Record):
    """What a run is, as far as a policy looks at it; taken from the tasks of the run."""

    method: str | None = None
    classes: tuple[str, ...] | None = None
    """Foreground classes of the plan; None before there is one."""
    rounds: int | None = None
    updates: int | None = None
    private: bool = False
    """Whether changes are clipped and made noisy."""
    epsilon: float | None = None
    """Budget of the run; None has no end."""
    delta: float | None = None
    """Of the budget."""

    def protects(self, delta: float) -> bool:
        """Return whether the run has an epsilon that fails with a probability of `delta` at most."""
        return self.private and self.epsilon is not None and self.delta is not None and self.delta <= delta


def read_policy(path: Path) -> Policy:
    """Return the policy in a YAML file.

    Raises:
        ConfigError: unknown keys or values; what is misspelled must not count as allowed.
        DataError: no such file, or not YAML.
    """
    try:
        return Policy.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        known = ", ".join(Policy.model_fields)
        raise ConfigError(f"{path}: {where}: {first['msg']}; the keys of a policy are {known}") from error


def against(policy: Policy, asked: Asked, number: int) -> list[str]:
    """Return what of a run the policy forbids in its training round `number`, in words for the server."""
    out = []
    if policy.methods is not None and asked.method is not None and asked.method not in policy.methods:
        out.append(f"method {asked.method} is not allowed here, only {_list(policy.methods)}")
    further = sorted(set(asked.classes or ()) - set(policy.classes)) if policy.classes is not None else []
    if further:
        out.append(f"classes {_list(further)} are not allowed here, only {_list(policy.classes or ())}")
    rounds = max(number, asked.rounds or 0)
    if policy.rounds is not None and rounds > policy.rounds:
        out.append(f"{rounds} rounds, at most {policy.rounds} are allowed here")
    if policy.updates is not None and asked.updates is not None and asked.updates > policy.updates:
        out.append(f"{asked.updates} updates a round, at most {policy.updates} are allowed here")
    if policy.epsilon is not None and not (
        asked.protects(policy.delta) and (asked.epsilon or 0) <= policy.epsilon
    ):
        found = f"a budget of {asked.epsilon} at delta {asked.delta}" if asked.private else "none"
        out.append(
            f"differential privacy with epsilon up to {policy.epsilon:g} at delta {policy.delta:g} is asked "
            f"for here, found {found}"
        )
    return out


def held_back(policy: Policy, asked: Asked, update: Update, size: int) -> list[str]:
    """Return why an update of `size` bytes may not leave; nothing where it may."""
    if update.refused:
        return []  # nothing but the reason
    out = []
    kinds = {_kind(name) for name in update.metrics}
    kinds |= {"weights"} if update.arrays else set()
    kinds |= {"facts"} if update.action == "join" and update.facts else set()
    unlisted = [n for n in update.metrics if n not in METRICS and not n.startswith("dice.")]
    if unlisted:
        out.append(f"{len(unlisted)} numbers that are not on the list of what may leave any site")
    if forbidden := sorted(kinds - set(policy.may_leave)):
        out.append(f"{_list(forbidden)} may not leave this site")
    most = policy.largest_message_mb
    if most is not None and not asked.protects(policy.delta) and size > most * MB:
        out.append(
            f"a message of {size / MB:.1f} MB without differential privacy, at most {most:g} MB may leave"
        )
    return out


def lets(policy: Policy, update: Update) -> Update:
    """Return the update without the numbers that may not leave."""
    metrics = {name: value for name, value in update.metrics.items() if _kind(name) in policy.may_leave}
    weight = update.weight if "counts" in policy.may_leave else min(update.weight, 1.0)
    return replace(update, metrics=metrics, weight=weight)


def _kind(name: str) -> Leaves:
    return KIND.get(name.split(".")[0], "counts")


def asked_by(task: Task) -> Asked | None:
    """Return what the run of a task "agree" is, None for a task that does not say."""
    spec, plan = task.config.get("spec"), task.config.get("plan")
    if not (isinstance(spec, Mapping) and isinstance(plan, Mapping)):
        return None
    found = plan.get("classes")
    classes = found if isinstance(found, Mapping) else {}
    names = tuple(classes.get("names", ()))
    try:
        return Asked(
            method=spec.get("method"),
            classes=names if classes.get("regions") else names[1:],
            rounds=spec.get("rounds"),
            updates=spec.get("updates"),
            private=bool(spec.get("clip")) and bool(spec.get("noise")),
            epsilon=spec.get("epsilon"),
            delta=spec.get("delta"),
        )
    except ValidationError as error:
        raise Refusal("the run is described in another way than this version of seguro does") from error


class Guarded:
    """The gate of a real site: its policy decides, its audit log records.

    What was asked when the plan was agreed on is kept beside the log, so that a policy that is changed later
    is held against every round that follows.
    """

    def __init__(self, policy: Policy, audit: Audit) -> None:
        self.policy = policy
        self.audit = audit
        self._asked = Asked()

    def admit(self, task: Task, data: bytes) -> None:
        """Record a task; Refusal where its run is not allowed here."""
        why = ""
        try:
            self._asked = self._known(task)
            if task.action != "join":  # nothing is known of the run yet
                # what follows the last round (its scores, an audit) is numbered as one more
                number = task.round - (task.action != "train")
                why = "; ".join(against(self.policy, self._asked, number))
        except Refusal as error:
            why = str(error)
        self.audit.add("in", task, data, refused=why)
        if why:
            raise Refusal(f"the policy of this site: {why}")

    def lets(self, update: Update) -> Update:
        """Return the update without the numbers that the policy keeps here."""
        return lets(self.policy, update)

    def release(self, update: Update, data: bytes) -> None:
        """Record an update about to leave; Refusal where it may not."""
        why = "; ".join(held_back(self.policy, self._asked, update, len(data)))
        self.audit.add("out", update, data, refused=why)
        if why:
            raise Refusal(f"the policy of this site: {why}")

    def _known(self, task: Task) -> Asked:
        path = self.audit.path.parent / ".asked" / f"{sha256_json(task.run)[:16]}.json"
        asked = asked_by(task)
        if asked is not None:
            write_json(path, asked.model_dump(mode="json"))
            return asked
        return Asked.model_validate(read_json(path)) if path.exists() else Asked()


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
