"""The server's side of a federation: join, agree, rounds, checkpoints, the best round; knows no transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from seguro import __version__
from seguro.core.errors import ConfigError, DataError, RunError
from seguro.core.files import read_json, write_json
from seguro.core.seeds import generator
from seguro.data.plan import Plan
from seguro.data.planner import PlanOptions
from seguro.engine import checkpoint as checkpoints
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.engine.signals import Stopped
from seguro.federated import admission, combine, exchange, intake, memorization, message
from seguro.federated.accountant import Accountant
from seguro.federated.admission import Admission
from seguro.federated.combine import combined
from seguro.federated.downlink import Downlink
from seguro.federated.fleet import Answer, Fleet
from seguro.federated.intake import NoAnswer, Question
from seguro.federated.keeper import Keeper
from seguro.federated.message import Action, Arrays, Task
from seguro.federated.plan import merged, plan_hash
from seguro.federated.preview import preview
from seguro.federated.record import FINISHED, Round, append, cut, lines, same_or_refuse
from seguro.federated.saved import Saved
from seguro.federated.scores import Scores
from seguro.federated.spec import Spec
from seguro.federated.strategies import Federation
from seguro.federated.suspicion import Suspicion
from seguro.methods.contract import Maker, to_deploy
from seguro.networks.unet import training_bytes


class Server:
    """Runs a federation in its folder; the same call goes on after the last finished round.

    Args:
        federation: every choice.
        folder: of the run on the server; `checkpoints/`, `rounds.jsonl`, `plan/plan.json`, `model/`.
        fleet: the sites.
        say: takes lines for people.
        keeper: says when checkpoints are written; after every round by default.
    """

    def __init__(
        self,
        federation: Federation,
        folder: Path,
        fleet: Fleet,
        say: Callable[[str], None] = lambda line: None,
        keeper: Keeper | None = None,
    ) -> None:
        self.federation = federation
        self.strategy = federation.strategy
        self.folder = folder
        self.fleet = fleet
        self.say = say
        self.keeper = keeper or Keeper()
        self.saved = Saved(folder / "checkpoints")
        self.admission = Admission(federation, fleet, say)
        self.roster = self.admission.roster
        self.round = 0
        self.arrays: Arrays = {}
        self._best: Arrays = {}
        """Weights of the best round, where they are not on disk yet."""
        self.scores = Scores(federation.strategy.best)
        self.epsilon: float | None = None
        self.suspicion = Suspicion(federation.seed)
        self.downlink = Downlink(federation.strategy.down)

    def run(self) -> Path:
        """Run what is left of the federation and write its model; returns the run's folder.

        Raises:
            RunError: sites that do not come, or rounds without quorum.
            ConfigError: a folder of another federation, two sites of one name.
            DataError: sites that do not fit together.
            Stopped: the keeper was asked for an end; everything is saved.
        """
        same_or_refuse(self.folder, self.federation)
        if (self.folder / FINISHED).exists():
            self.say(f"{self.folder}/ is finished already, nothing to do")
            return self.folder
        self.admission.gather(first=not checkpoints.updates(self.folder / "checkpoints"))
        plan = self.plan()
        self.agree(plan)
        self.begin(plan)
        while self.round < self.federation.rounds and not self._spent():
            self.one_round()
            if self.keeper.stopping:
                if self.keeper.behind:
                    self._save()
                raise Stopped(f"stopped after round {self.round}, saved; the same command goes on")
        self._last_look()
        self._deploy(plan)
        return self.folder

    def plan(self) -> Plan:
        """Return the plan of all sites, merged now from their facts or as it was.

        A plan of an attempt that never began is of whoever was there then, and of the settings of then.
        """
        if self._begun and self._plan_path.exists():
            return Plan.model_validate(read_json(self._plan_path))
        options = PlanOptions.model_validate(self.federation.plan)
        plan = merged(self.federation.run, self.roster.facts, options, training_bytes)
        write_json(self._plan_path, plan.model_dump(mode="json"))
        for reason in plan.reasons:
            self.say(f"  {reason}")
        return plan

    def agree(self, plan: Plan) -> None:
        """Have every site that is here take the plan; before round 1 all must.

        Raises:
            RunError: a site refuses, or does not answer.
        """
        record = Round(0, "agree", 0)
        self.admission.agree(plan, record)
        wrong = {**record.missing, **record.rejected}
        if wrong and not checkpoints.updates(self.folder / "checkpoints"):
            text = "\n  ".join(f"{site}: {why}" for site, why in sorted(wrong.items()))
            raise RunError(f"run {self.federation.run}: not agreed on by\n  {text}")
        for site, why in sorted(wrong.items()):
            self.say(f"site {site} does not take part for now: {why}")

    def begin(self, plan: Plan) -> None:
        """Take up the last checkpoint, or the weights that everyone begins with."""
        self._plan = plan
        self.spec = Spec.settled(self.federation, plan)
        self.method = self.spec.made(plan)
        if self.strategy.personal == "norm" and not exchange.norms(self.method):
            raise ConfigError(
                f"method {self.federation.method} has no normalization layer with weights here, so none can "
                "be personal: leave personal=norm out, or take a network that has some"
            )
        run = LoopRun(self.method, Runtime("cpu", "32"), seed=0, batch=self.spec.batch, updates=1)
        self.averaged = run.averaged
        self.arrays = exchange.outgoing(self.method, self.averaged)
        combine.check(self.federation, self.arrays)
        found = checkpoints.latest(self.folder / "checkpoints", say=self.say)
        if found is not None:
            self.round = found.update
            self.arrays = self.downlink.resume({k: v.numpy() for k, v in found.tensors.items()})
            self.scores.resume(found.facts)
            self.say(f"resuming at round {self.round + 1}")
        self.saved.forget_after(self.round)
        if self.scores.best_round not in (0, *self.saved.rounds()):
            self.say(
                f"the weights of round {self.scores.best_round}, the best so far, are not there any more"
            )
            self.scores.best, self.scores.best_round = None, 0
        # the look at the last round's weights belongs to them
        cut(self.folder, self.round + (self.round >= self.federation.rounds))
        self.suspicion.resume(lines(self.folder))
        write_json(
            self.folder / "federation.json",
            {
                **self.federation.model_dump(mode="json"),
                "seguro": __version__,
                "plan_sha256": plan_hash(plan),
                "arrays_bytes": message.payload_bytes(self.arrays),
            },
        )

    def one_round(self) -> Round:
        """Do the next round until it has its quorum, average, save, and return what happened.

        Raises:
            RunError: no quorum, asked as often as `retries` says.
        """
        number = self.round + 1
        # without its state of the round before on disk, no site can do a round again
        attempts = 1 if self.keeper.behind else self.strategy.retries + 1
        for attempt in range(attempts):
            record = Round(number, "train", number - 1)
            self._welcome(record)
            self._ask_for_updates(record)
            trained = record.trained
            if len(trained) >= self.strategy.needed:
                break
            of = f"{len(trained)} updates of a quorum of {self.strategy.needed}"
            self.say(f"round {number}, attempt {attempt + 1}: {of} ({record.why()})")
            time.sleep(min(admission.POLL_S, self.strategy.timeout_s / 10))
        else:
            raise RunError(
                f"run {self.federation.run}: round {number} had no quorum of {self.strategy.needed} in "
                f"{attempts} attempts ({record.why()}); the same command goes on"
            )
        self._score(record)
        self._suspect(record)
        self.arrays = self.downlink.rounded(
            self.arrays, combined(self.federation, self.arrays, trained, number)
        )
        self.round = number
        said = self._log(record)  # before the weights are on disk: `begin` cuts a line whose weights are not
        if self.keeper.due():
            self._save()
        self.say(said)
        preview(self.folder, number, self.method, self.averaged, self.arrays)
        return record

    @property
    def _begun(self) -> bool:
        """Whether every site has agreed once, and weights were made."""
        return (self.folder / "federation.json").exists()

    @property
    def _plan_path(self) -> Path:
        return self.folder / "plan" / "plan.json"

    def _welcome(self, record: Round) -> None:
        """Let in whoever came (back) since the last round; whoever does not fit stays out."""
        if self.roster.unknown(self.fleet.nodes()):
            self.admission.join(record, strict=False)
        self.admission.agree(self._plan, record)

    def _ask_for_updates(self, record: Round) -> None:
        """Ask the round's sites to train, and where scores are due the others to evaluate."""
        online = self.fleet.nodes()
        here = self.roster.here(online)
        record.missing |= {s: "not reachable" for s in self.federation.sites if s not in here}
        here = self._concerned(here, record)
        due = record.of_round > 0 and record.of_round % self.strategy.evaluate_every == 0
        chosen = self._chosen(here, record.number)
        actions: dict[str, Action] = {s: "train" for s in chosen}
        if due:
            actions |= {s: "evaluate" for s in here if s not in chosen}
        record.missing |= {s: "not drawn" for s in here if s not in actions}
        self._collect(actions, record, evaluate=due)

    def _concerned(self, here: Sequence[str], record: Round) -> list[str]:
        """Return the sites that the method can learn from or be scored at; the others are sent no weights."""
        if self.method.needs.labels != "all":
            return list(here)
        bare = {s for s in here if not self.roster.facts[s]["n_labelled"]}
        why = f"no labelled case there, and method {self.federation.method} learns from no other"
        for site in sorted(bare):
            record.missing[site] = why
            if record.number == 1:
                self.say(f"site {site}: {why}; it is asked for nothing")
        return [s for s in here if s not in bare]

    def _chosen(self, here: Sequence[str], number: int) -> list[str]:
        """Return the sites of a round, drawn where the strategy takes a fraction."""
        n = self.strategy.drawn(len(self.federation.sites))
        if n >= len(here):
            return list(here)
        drawn = generator(self.federation.seed, "round", number).permutation(len(here))[:n]
        return [here[i] for i in sorted(drawn)]

    def _collect(self, actions: Mapping[str, Action], record: Round, *, evaluate: bool) -> None:
        """Ask each site for its action; take what fits into the record, and say what does not."""
        config = {"plan_sha256": plan_hash(self._plan), "evaluate": evaluate}
        for action in sorted(set(actions.values())):
            site_of = {self.roster.node_of[s]: s for s, a in actions.items() if a == action}
            tasks = self.downlink.tasks(
                Task(self.federation.run, record.number, action, self.arrays, config), site_of.values()
            )
            record.bytes_down |= {s: len(data) for s, data in tasks.items()}
            limit = intake.HEAD_BYTES
            if action == "train":
                limit = intake.largest(self.arrays, self.strategy.coding)
            asked_of = {node: tasks[s] for node, s in site_of.items()}
            for answer in self.admission.ask(asked_of, action, record.number):
                site = site_of[answer.node]
                asked = Question(self.federation.run, record.number, action, site, limit)
                self._take(answer, asked, record)
        record.late += self._late()

    def _take(self, answer: Answer, asked: Question, record: Round) -> None:
        """Put the answer into the record: as an update, as missing, or as rejected."""
        site = str(asked.site)
        if answer.data:
            record.bytes_up[site] = len(answer.data)
        try:
            update = intake.read(answer, asked)
            n_cases = int(self.roster.facts[site]["n_cases"])
            update = intake.numbers(update, classes=self._plan.classes.foreground, n_cases=n_cases)
            if asked.action == "train":
                update, far = intake.values(update, self.arrays, coding=self.strategy.coding)
                record.norms[site] = far
        except NoAnswer as error:
            record.missing[site] = str(error)
            self.say(f"round {record.number}: site {site}: {error}")
            if message.UNKNOWN_RUN in str(error):
                self.roster.agreed.discard(site)
        except DataError as error:
            record.rejected[site] = str(error)
            self.say(f"round {record.number}: rejected: {error}")
        else:
            record.updates[site] = update
            self.downlink.answered(site)

    def _last_look(self) -> None:
        """Have the last round's weights scored, where that was not done."""
        done = lines(self.folder)
        if self.round == 0 or (done and done[-1]["action"] == "evaluate"):
            return
        record = Round(self.round + 1, "evaluate", self.round)
        self._welcome(record)
        here = self._concerned(self.roster.here(self.fleet.nodes()), record)
        self._collect({s: "evaluate" for s in here}, record, evaluate=True)
        self._score(record)
        said = self._log(record)
        self._save()
        self.say(said)

    def _score(self, record: Round) -> None:
        """Take in the scores of the weights that the round began with, and hold on to the best weights."""
        self.scores.take(record)
        if self.scores.best_round == self.round:
            self._best = self.arrays

    def _suspect(self, record: Round) -> None:
        """Note whose change goes against the others', and say it where it is new."""
        known = self.suspicion.suspects(record.trained)
        news = {s: u.arrays for s, u in record.trained.items()}
        record.agreement, record.suspects = self.suspicion.look(self.arrays, news, record.number)
        for site in sorted(set(record.suspects) - set(known)):
            self.say(f"warning: round {record.number}: site {site} {record.suspects[site]}; it still counts")

    def _spent(self) -> bool:
        """Return whether one more round would pass the privacy budget; notes what was spent."""
        p = self.strategy.privacy
        if p is None or not p.noise:
            return False
        # a fixed number of sites is drawn, not each independently: nothing is gained by the drawing
        spent = Accountant()
        spent.add(p.noise, 1.0, self.round)
        self.epsilon = spent.epsilon(p.delta)
        spent.add(p.noise, 1.0)
        nxt = spent.epsilon(p.delta)
        if p.budget is not None and nxt > p.budget:
            self.say(
                f"ends after round {self.round}: another one would spend epsilon {nxt:.3g} of {p.budget:g}"
            )
            return True
        return False

    def _save(self) -> None:
        """Write the weights of this round, and those of the best one where they are not there yet."""
        best = self.scores.best_round or None
        with self.keeper.keeping():
            arrays = {**self.arrays, **self.downlink.saved()}
            self.saved.save(self.round, arrays, self.scores.facts(), best=best, best_arrays=self._best)

    def _log(self, record: Round) -> str:
        """Write the round's line and return what people are told of it."""
        self._spent()
        line = record.line(
            best_round=self.scores.best_round, sha256=exchange.digest(self.arrays), epsilon=self.epsilon
        )
        append(self.folder, line)
        score = "" if record.score is None else f", Dice of round {record.of_round} {record.score:.3f}"
        return f"round {record.number}: {len(line['took_part'])} sites, {line['seconds']:.1f} s{score}"

    def _late(self) -> list[str]:
        """Return who answered an earlier question only now; what they sent is not used."""
        site_of = {n: s for s, n in self.roster.node_of.items()}
        late = sorted({site_of.get(a.node, f"node {a.node}") for a in self.fleet.late()})
        for site in late:
            self.say(f"an answer of site {site} came after its round and is ignored")
        return late

    def _audit(self) -> None:
        """Have the sites compare what the chosen weights make with their own images."""
        trained = {site for line in lines(self.folder) for site in line["took_part"]}
        record = Round(self.round + 1, "audit", self.round)
        here = [s for s in self.roster.here(self.fleet.nodes()) if s in trained]
        self._collect({s: "audit" for s in here}, record, evaluate=False)
        told = {s: u.metrics for s, u in record.updates.items()}
        facts = memorization.together(told, sorted(trained), {**record.missing, **record.rejected})
        write_json(self.folder / "audit.json", facts)
        passed = "passed" if facts["releasable"] else "NOT passed, do not release this"
        self.say(f"memorization audit at {len(told)} of {len(trained)} sites: {passed}")

    def _deploy(self, plan: Plan) -> None:
        """Write the model of the best round."""
        from seguro.engine.model import save_model

        chosen = self.scores.chosen(self.round)
        if chosen:
            self.arrays = self.saved.weights(chosen)
            exchange.incoming(self.method, self.averaged, self.arrays)
            if isinstance(self.method, Maker):
                self._audit()
        modules = exchange.deployable(self.method, self.averaged)
        predictor = to_deploy(self.method, modules)
        f, folder = self.federation, self.folder / "model"
        save_model(folder, method=f.method, config=self.spec.config, plan=plan, predictor=predictor)
        write_json(
            self.folder / FINISHED,
            {"round": chosen, "score": self.scores.best, "rounds": self.round, "epsilon": self.epsilon},
        )
        self.say(f"model of round {chosen} in {self.folder / 'model'}")
