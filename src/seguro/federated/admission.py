"""Who is let in: every node is asked which site it is, and every site to take the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from seguro.core.errors import ConfigError, DataError, RunError, SeguroError
from seguro.data.plan import Plan
from seguro.federated import intake, message
from seguro.federated.facts import checked
from seguro.federated.fleet import Answer, Fleet
from seguro.federated.intake import Question
from seguro.federated.message import Action, Task
from seguro.federated.plan import plan_hash
from seguro.federated.record import Round
from seguro.federated.roster import Roster, lonely
from seguro.federated.spec import Spec
from seguro.federated.strategies import Federation

POLL_S = 3.0
"""Between two looks for sites that have not come yet."""
GRACE_S = 60.0
"""How long a run that goes on waits for all its sites before the quorum is enough: they need some seconds to
find a server that is back, and the first of them is not to be the only one of the next round."""


class Admission:
    """Lets sites in.

    Args:
        federation: its run, sites, quorum and time-out.
        fleet: the nodes.
        say: takes lines for people.
    """

    def __init__(self, federation: Federation, fleet: Fleet, say: Callable[[str], None]) -> None:
        self.federation = federation
        self.strategy = federation.strategy
        self.fleet = fleet
        self.say = say
        self.roster = Roster(federation.sites)

    def gather(self, *, first: bool) -> None:
        """Wait until every site has said who it is; after a first round, not for ever for those in excess.

        Args:
            first: no round is done yet: all must come, and whoever does not fit stops the run.

        Raises:
            RunError: too few in time.
            ConfigError: before the first round, a stranger or two sites of one name.
            DataError: before the first round, facts of another form.
        """
        started, patience = time.monotonic(), self.strategy.timeout_s
        while True:
            record = Round(0, "join", 0)
            self.join(record, strict=first)
            found, waited = len(self.roster.node_of), time.monotonic() - started
            enough = not first and found >= self.strategy.needed
            if found == len(self.federation.sites) or (enough and waited > min(GRACE_S, patience)):
                for warning in lonely(self.roster.facts, self.federation.method):
                    self.say(warning)
                return
            if waited > patience:
                refused = "".join(f"\n  {who}: {why}" for who, why in sorted(record.rejected.items()))
                raise RunError(
                    f"run {self.federation.run}: no sign of {', '.join(self.roster.missing())} within "
                    f"{patience:g} s; start them, or leave them out of `sites`{refused}"
                )
            time.sleep(min(POLL_S, patience / 10))

    def join(self, record: Round, *, strict: bool) -> None:
        """Ask the nodes that are new who they are; one that does not fit stops the run, or stays out."""
        online = self.fleet.nodes()
        task = message.to_bytes(Task(self.federation.run, 0, "join"))
        asked = Question(self.federation.run, 0, "join")
        for answer in self.ask({n: task for n in self.roster.unknown(online)}, "join", 0):
            try:
                update = intake.read(answer, asked)
            except DataError as error:
                self._turn_away(answer.node, error, record)
                continue
            try:
                told = checked(update.site, update.facts)
                self.roster.enter(answer.node, update.site, told, online)
            except (ConfigError, DataError) as error:
                if strict:
                    raise
                self._turn_away(answer.node, error, record)

    def agree(self, plan: Plan, record: Round) -> None:
        """Have the sites that have not agreed take the plan."""
        online, roster = self.fleet.nodes(), self.roster
        site_of = {n: s for s, n in roster.node_of.items() if s not in roster.agreed and n in online}
        config = {
            "plan": plan.model_dump(mode="json"),
            "spec": Spec.settled(self.federation, plan).model_dump(mode="json"),
        }
        task = message.to_bytes(Task(self.federation.run, 0, "agree", config=config))
        for answer in self.ask({n: task for n in site_of}, "agree", 0):
            site = site_of[answer.node]
            try:
                update = intake.read(answer, Question(self.federation.run, 0, "agree", site))
            except DataError as error:
                record.rejected[site] = str(error)
                continue
            if update.facts.get("plan") == plan_hash(plan):
                roster.agreed.add(site)
            else:
                record.rejected[site] = "it took another plan"

    def ask(self, tasks: Mapping[int, bytes], action: Action, number: int) -> list[Answer]:
        """Return the answers to tasks of round `number`; nobody is asked where there are none."""
        if not tasks:
            return []
        return list(self.fleet.ask(tasks, action=action, round=number, timeout_s=self.strategy.timeout_s))

    def _turn_away(self, node: int, error: SeguroError, record: Round) -> None:
        record.rejected[f"node {node}"] = str(error)
        self.say(f"node {node} is turned away: {error}")
