"""A simulation that is not saved after every round: killed or stopped, it ends as if it was not."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace

import numpy as np
import pytest

from seguro.core.errors import RunError
from seguro.engine import checkpoint as checkpoints
from seguro.engine.model import load_model
from seguro.engine.signals import Stopped
from seguro.federated import admission, message, record
from seguro.federated import simulate as simulated
from seguro.federated.keeper import Keeper
from seguro.federated.message import Task
from seguro.federated.rounds import Server
from seguro.federated.simulate import simulate


class Killed(BaseException):
    """What nobody catches, as nobody catches kill -9."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(admission, "POLL_S", 0.001)


@pytest.fixture
def every_second_round(monkeypatch):
    """A clock that goes on by one at every look: with `save_every_s=2`, rounds 2, 4, ... are saved."""

    def made(every_s, sites):
        return Keeper(every_s, sites, clock=itertools.count().__next__)

    monkeypatch.setattr(simulated, "Keeper", made)


class Deadly:
    """A gate at which the whole process ends when one task comes in."""

    def __init__(self, round_: int) -> None:
        self.round = round_

    def admit(self, task: Task, data: bytes) -> None:
        if task.action == "train" and task.round == self.round:
            raise Killed

    def lets(self, update):
        return update

    def release(self, update, data):
        pass


def hashes(folder) -> list[str]:
    return [e["sha256"] for e in record.lines(folder)]


def test_states_are_due_when_the_time_is_over_and_the_sites_come_first():
    order: list[str] = []

    class Settles:
        def settle(self) -> None:
            order.append("site")

    now = [0.0]
    keeper = Keeper(30.0, [Settles(), Settles()], clock=lambda: now[0])
    now[0] = 29.0
    assert not keeper.due() and keeper.behind
    now[0] = 30.0
    assert keeper.due()
    with keeper.keeping():
        order.append("server")
    assert order == ["site", "site", "server"] and not keeper.behind
    now[0] = 59.0
    assert not keeper.due()
    assert Keeper().due()


STRATEGIES = {
    "int8": {"coding": "int8"},
    "fedbn": {"personal": "norm"},
    "fraction": {"fraction": 0.5, "coding": "fp16"},
}


@pytest.mark.parametrize(
    ("name", "deaths"),
    [
        ("int8", (4,)),
        *(pytest.param(n, (4, 6), marks=pytest.mark.slow) for n in STRATEGIES),
    ],
)
@pytest.mark.usefixtures("every_second_round")
def test_a_simulation_killed_between_two_saved_rounds_ends_as_if_it_was_not(
    name, deaths, sites, federation, tmp_path
):
    """Killed in round 4 it has round 2 on disk; killed again in round 6, it has round 4."""
    told = {"rounds": deaths[-1], "updates": 1, "strategy": STRATEGIES[name]}
    case, names = f"{name}{deaths[-1]}", "a" if len(deaths) == 1 else "ab"
    simulate(federation(names, run=f"w-{case}", **told), sites(names), tmp_path / "whole", save_every_s=2.0)
    run, resumed = federation(names, run=f"k-{case}", **told), []
    for round_ in deaths:
        found = sites(names)
        for site in found.values():
            site.gate = Deadly(round_)
        if name != "fraction" and len(names) > 1:
            found["a"].gate = message.Open()  # it has done the round already
        with pytest.raises(Killed):
            simulate(run, found, tmp_path / "run", save_every_s=2.0, say=resumed.append)
        assert checkpoints.updates(tmp_path / "run" / "checkpoints")[-1] == round_ - 2
    simulate(run, sites(names), tmp_path / "run", save_every_s=2.0, say=resumed.append)
    wanted = [f"resuming at round {round_ - 1}" for round_ in deaths]
    assert [line for line in resumed if "resuming at round" in line] == wanted
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    scores = [[e["score"] for e in record.lines(tmp_path / f)] for f in ("run", "whole")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_simulation_that_was_never_saved_begins_again(sites, federation, tmp_path):
    told = {"rounds": 3, "updates": 1, "strategy": {"coding": "int8"}}
    simulate(federation("ab", run="w-never", **told), sites(), tmp_path / "whole")
    found = sites()
    found["b"].gate = Deadly(3)
    with pytest.raises(Killed):
        simulate(federation("ab", run="k-never", **told), found, tmp_path / "run")
    assert not checkpoints.updates(tmp_path / "run" / "checkpoints")
    simulate(federation("ab", run="k-never", **told), sites(), tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


@pytest.mark.usefixtures("every_second_round")
def test_asked_to_stop_it_ends_the_round_saves_it_and_goes_on_later(sites, federation, tmp_path):
    """Round 1 has ended and is not on disk when SIGTERM comes."""
    told = {"rounds": 2, "updates": 1}
    simulate(federation("a", run="w-stop", **told), sites("a"), tmp_path / "whole")
    said: list[str] = []

    def asked(line: str) -> None:
        said.append(line)
        if line.startswith("round 1:"):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run = federation("a", run="k-stop", **told)
    with pytest.raises(Stopped, match="after round 1, saved"):
        simulate(run, sites("a"), tmp_path / "run", save_every_s=1e9, say=asked)
    assert signal.getsignal(signal.SIGTERM) == before
    assert any("stops after this round" in line for line in said)
    assert checkpoints.updates(tmp_path / "run" / "checkpoints") == [1]
    simulate(run, sites("a"), tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_asked_to_stop_where_everything_is_on_disk_it_ends_at_once(sites, federation, tmp_path):
    def asked(line: str) -> None:
        if line.startswith("round 1:"):
            signal.raise_signal(signal.SIGINT)

    run = federation("a", run="at-once", rounds=2, updates=1)
    with pytest.raises(KeyboardInterrupt):
        simulate(run, sites("a"), tmp_path / "run", save_every_s=0.0, say=asked)


# the server alone ----------------------------------------------------------------------------------------


def server(federation, fleet, folder, keeper, names="ab", **more) -> Server:
    settings = {"strategy": {"timeout_s": 0.05, **more.pop("strategy", {})}, **more}
    return Server(federation(names, **settings), folder, fleet, keeper=keeper)


def never() -> Keeper:
    return Keeper(float("inf"))


BEST = {n: (lambda r: [0.0, 0.2, 0.9, 0.4, 0.3, 0.1][r]) for n in "ab"}


def test_the_weights_of_the_best_round_are_kept_though_no_round_was_saved(fake, federation, tmp_path):
    for folder, keeper in (("whole", Keeper()), ("run", never())):
        server(federation, fake("ab", dice=BEST), tmp_path / folder, keeper, rounds=5).run()
    best = checkpoints.load(tmp_path / "run" / "checkpoints" / "best", 2).tensors
    weights = [load_model(tmp_path / f).predictor.state_dict() for f in ("run", "whole")]
    assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])
    name = next(k for k in weights[0] if k.endswith("weight"))
    assert np.array_equal(weights[0][name], best[message.AVERAGED + name])
    assert checkpoints.updates(tmp_path / "run" / "checkpoints") == [5]


def test_the_best_round_of_a_future_that_was_lost_is_not_taken_for_saved(fake, federation, tmp_path):
    """Killed between its own file of the best round and the checkpoint that names it."""
    fleet = fake("ab", dice=BEST)

    def die(update):
        if update.round == 5:
            raise Killed
        return update

    fleet.train["a"] = die
    keeper = Keeper(2, clock=itertools.count().__next__)
    with pytest.raises(Killed):
        server(federation, fleet, tmp_path / "run", keeper, rounds=5).run()
    assert checkpoints.updates(tmp_path / "run" / "checkpoints") == [2, 4]
    for suffix in (".json", ".safetensors"):
        (tmp_path / "run/checkpoints" / f"update-00000004{suffix}").unlink()
    lost = checkpoints.Checkpoint(3, {}, {})
    checkpoints.save(tmp_path / "run/checkpoints/best", lost, best=None)
    server(federation, fake("ab", dice=BEST), tmp_path / "run", never(), rounds=5).run()
    server(federation, fake("ab", dice=BEST), tmp_path / "whole", Keeper(), rounds=5).run()
    assert checkpoints.updates(tmp_path / "run/checkpoints/best") == [1]
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    weights = [(tmp_path / f / "model" / "weights.safetensors").read_bytes() for f in ("run", "whole")]
    assert weights[0] == weights[1]


def test_best_weights_that_are_gone_are_chosen_anew(fake, federation, tmp_path):
    fleet, lines = fake("ab", dice=BEST, train={"a": lambda u: u}), []

    def die(update):
        if update.round == 5:
            raise Killed
        return update

    fleet.train["a"] = die
    with pytest.raises(Killed):
        server(federation, fleet, tmp_path / "run", Keeper(), rounds=5).run()
    checkpoints.remove(tmp_path / "run" / "checkpoints", 2)
    again = server(federation, fake("ab", dice=BEST), tmp_path / "run", Keeper(), rounds=5)
    again.say = lines.append
    again.run()
    assert any("weights of round 2, the best so far, are not there any more" in line for line in lines)
    assert again.scores.best_round == 4


def test_a_round_after_one_that_is_not_on_disk_is_asked_once(fake, federation, tmp_path):
    """No site could do it again: its optimizer has moved on."""
    fleet = fake("ab", train={"b": lambda u: None if u.round == 2 else u})
    strategy = {"quorum": 2, "retries": 5}
    with pytest.raises(RunError, match="round 2 had no quorum of 2 in 1 attempts"):
        server(federation, fleet, tmp_path / "run", never(), strategy=strategy).run()


def test_a_site_says_that_it_has_not_the_state_that_is_asked_for(sites, federation, tmp_path):
    site = replace(sites("a")["a"], lazy=True)
    run = federation("a", run="asked", rounds=4, updates=1)
    plan_sha = []

    class Notes(Deadly):
        def admit(self, task, data):
            super().admit(task, data)
            plan_sha.append((task, data))

    site.gate = Notes(3)
    with pytest.raises(Killed):
        simulate(run, {"a": site}, tmp_path / "run")
    site.gate = message.Open()
    trained = {t.round: data for t, data in plan_sha if t.action == "train"}
    again = message.update_from(site.answer(trained[2]))
    assert "was not saved" in again.refused
    first = message.update_from(site.answer(trained[1]))
    assert not first.refused and first.arrays
