"""Whole federations with real training, on cases that take milliseconds."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch

from seguro.core.errors import ConfigError, RunError
from seguro.data import manifest as manifests
from seguro.data import phantom
from seguro.engine.model import load_model
from seguro.federated import exchange, message, record
from seguro.federated.audit import Audit, verify
from seguro.federated.message import Task
from seguro.federated.policy import Guarded, Policy
from seguro.federated.simulate import simulate
from seguro.federated.site import Site
from seguro.federated.worker import Worker

BARE = {"label": None, "masks": (), "annotated": (), "split": "unlabelled"}
AGREE = 1e-6
"""Between the simulator and sites in processes of their own: the same sums in the same order."""


class Tapped:
    """A gate that keeps every message."""

    def __init__(self) -> None:
        self.tasks: list[tuple[Task, bytes]] = []
        self.updates: list[tuple[message.Update, bytes]] = []

    def admit(self, task, data):
        self.tasks.append((task, data))

    def lets(self, update):
        return update

    def release(self, update, data):
        self.updates.append((message.update_from(data), data))


def hashes(folder) -> list[str]:
    return [e["sha256"] for e in record.lines(folder)]


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_seed_twice_is_bit_equal_and_another_seed_is_not(n, sites, federation, tmp_path):
    names = "ab"[:n]
    for run, seed in (("same1", 0), ("same2", 0), ("other", 1)):
        told = federation(names, run=f"{run}-{n}", seed=seed, rounds=n, updates=n)
        simulate(told, sites(names), tmp_path / run)
    a, b, c = (hashes(tmp_path / run) for run in ("same1", "same2", "other"))
    assert a == b and a != c
    weights = [(tmp_path / r / "model" / "weights.safetensors").read_bytes() for r in ("same1", "same2")]
    assert weights[0] == weights[1]


def test_the_state_of_every_site_is_on_disk_before_the_server_goes_on(
    sites, federation, tmp_path, monkeypatch
):
    """A server that goes on at a round asks them for their state of it."""
    from seguro.engine import checkpoint as checkpoints

    save, seen = checkpoints.save, []

    def look(folder, checkpoint, **more):
        if folder == tmp_path / "run" / "checkpoints":
            seen.append({n: checkpoints.updates(s._folder("late") / "checkpoints") for n, s in found.items()})
        save(folder, checkpoint, **more)

    monkeypatch.setattr(checkpoints, "save", look)
    found = sites("ab")
    told = federation("ab", run="late", rounds=2, updates=1)
    simulate(told, found, tmp_path / "run", save_every_s=0.0)
    assert seen[:2] == [{"a": [1], "b": [1]}, {"a": [1, 2], "b": [1, 2]}]


def test_a_full_disk_at_a_site_stops_the_simulator(sites, federation, tmp_path, monkeypatch):
    from seguro.engine.loop import Loop

    def full(self, **more):
        raise RunError("disk full")

    monkeypatch.setattr(Loop, "save", full)
    with pytest.raises(RunError, match="disk full"):
        simulate(federation("a", run="full", rounds=1, updates=1), sites("a"), tmp_path / "run")


class Forgetful:
    """A gate at which its site forgets what it has in memory whenever a task comes in."""

    site: Site

    def admit(self, task, data):
        self.site._training = None

    def lets(self, update):
        return update

    def release(self, update, data):
        pass


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param({}, id="fedavg"),
        pytest.param({"personal": "norm"}, marks=pytest.mark.slow, id="fedbn"),
        pytest.param({"optimiser": "reset"}, marks=pytest.mark.slow, id="reset"),
    ],
)
def test_a_site_goes_on_from_its_disk_as_from_its_memory(strategy, sites, federation, tmp_path, request):
    """Only what no task brings is on its disk: the optimiser, what the method keeps, personal layers."""
    case = request.node.callspec.id
    for run in ("memory", "disk"):
        found = sites("a")
        if run == "disk":
            found["a"].gate = Forgetful()
            found["a"].gate.site = found["a"]
        told = federation("a", run=f"{run}-{case}", updates=1, strategy=strategy)
        simulate(told, found, tmp_path / run, save_every_s=0.0)
    assert hashes(tmp_path / "disk") == hashes(tmp_path / "memory")
    states = found["a"].workspace / "federated"
    size = {run: sum(p.stat().st_size for p in (states / f"{run}-{case}").rglob("update-*2.safetensors"))
            for run in ("memory", "disk")}  # fmt: skip
    assert size["disk"] == size["memory"]
    model = record.lines(tmp_path / "disk")[0]["bytes_down"]["a"]
    assert size["disk"] < (0.1 if "optimiser" in strategy else 1.2) * model


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_if_it_was_not(sites, federation, tmp_path, monkeypatch):
    """Server and sites start anew from their disks; a round that a site had done already is done again."""
    simulate(federation("ab", run="whole", rounds=3), sites(), tmp_path / "whole")
    from seguro.federated.rounds import Server

    save = Server._save

    def stop(self):
        if self.round == 2:
            raise KeyboardInterrupt
        save(self)

    broken = federation("ab", run="broken", rounds=3)
    monkeypatch.setattr(Server, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(broken, sites(), tmp_path / "broken", save_every_s=0.0)
    monkeypatch.setattr(Server, "_save", save)
    simulate(broken, sites(), tmp_path / "broken")
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


def test_nothing_leaves_but_weights_and_listed_numbers(sites, federation, tmp_path):
    """No 16 pixels in a row of any training image, no row of a label, no path or id in any uplink message."""
    taps = {n: Tapped() for n in "ab"}
    found = sites()
    for name, tap in taps.items():
        found[name].gate = tap
    simulate(federation("ab", run="leak"), found, tmp_path / "run")
    model = {k: v.shape for k, v in taps["a"].tasks[-1][0].arrays.items()}
    for name, tap in taps.items():
        sent = b"".join(data for _, data in tap.updates)
        rounds = [u for u, _ in tap.updates if u.action == "train"]
        assert all({k: v.shape for k, v in u.arrays.items()} == model for u in rounds)
        payload = sum(message.payload_bytes(u.arrays) for u in rounds)
        assert len(sent) < payload + 20_000
        site = found[name]
        for case in site.manifest().cases:
            assert case.id.encode() not in sent
            image = manifests.read_case(case, site.manifest()).array
            scaled = np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
            for array in (image, scaled):
                rows = array.reshape(-1, array.shape[-1])[:, :16]
                assert not [r for r in rows if len(set(r.tolist())) > 4 and r.tobytes() in sent]
            label = manifests.read_case_label(case, site.manifest(), like=_grid(case, site))
            if label is not None:
                rows = label.array.astype(np.uint8).reshape(-1, label.array.shape[-1])
                assert not [r for r in rows if len(set(r.tolist())) > 1 and r.tobytes() in sent]
        assert str(site.data).encode() not in sent and str(site.workspace).encode() not in sent
        numbers = {k for u, _ in tap.updates for k in u.metrics}
        assert numbers == set(message.allowed(dict.fromkeys(numbers, 1.0), ["organ1", "organ2"]))


def _grid(case, site):
    return manifests.read_case(case, site.manifest()).grid


def test_the_leak_test_finds_a_row_that_leaks(sites):
    site = sites()["a"]
    case = site.manifest().cases[0]
    image = manifests.read_case(case, site.manifest()).array
    leak = message.Update("r", "a", 1, "train", {"w": image[:, :1].copy()})
    sent = message.to_bytes(leak)
    rows = image.reshape(-1, image.shape[-1])[:, :16]
    assert [r for r in rows if len(set(r.tolist())) > 4 and r.tobytes() in sent]


def test_what_goes_wrong_at_a_site_is_told_without_paths_or_ids(folders, workspaces, tmp_path):
    said: list[str] = []
    site = Site("a", tmp_path / "nowhere", tmp_path / "w", say=said.append)
    answer = message.update_from(site.answer(message.to_bytes(Task("r", 0, "join"))))
    assert answer.refused and str(tmp_path) not in answer.refused
    assert any(str(tmp_path) in line for line in said)


def test_a_task_without_an_agreed_plan_is_refused(sites):
    site = sites()["a"]
    answer = message.update_from(site.answer(message.to_bytes(Task("unheard-of", 1, "train"))))
    assert "no plan was agreed on" in answer.refused


def test_a_site_that_keeps_its_numbers_still_takes_part(sites, federation, tmp_path):
    """Its weights travel, no loss, no score and no count with them."""
    found = sites()
    found["a"].gate = Guarded(Policy(may_leave=["facts", "weights"]), Audit(tmp_path / "audit.jsonl"))
    simulate(federation("ab", run="mute", rounds=1, updates=1), found, tmp_path / "run")
    line, scores = record.lines(tmp_path / "run")
    assert line["took_part"] == ["a", "b"] and line["metrics"]["a"] == scores["metrics"]["a"] == {}
    assert scores["metrics"]["b"]["dice"] == scores["score"]
    log = list(verify(tmp_path / "audit.jsonl"))
    assert not any(x["metrics"] or x["refused"] for x in log)


def test_a_policy_is_not_lost_on_the_way_into_a_process(sites, federation, tmp_path):
    found = sites()
    found["a"].gate = Guarded(Policy(), Audit(tmp_path / "audit.jsonl"))
    with pytest.raises(ConfigError, match="sites a have a policy"):
        simulate(federation("ab", run="lost"), found, tmp_path / "run", processes=True)


def test_personal_layers_of_a_network_without_any_are_refused(sites, federation, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "norms", lambda method: frozenset())
    run = federation("a", run="bare-bn", strategy={"personal": "norm"})
    with pytest.raises(ConfigError, match="no normalization layer"):
        simulate(run, sites("a"), tmp_path / "run")


def test_the_model_works_like_any_other(sites, federation, folders, tmp_path):
    simulate(federation("ab", run="usable", rounds=1), sites(), tmp_path / "run")
    model = load_model(tmp_path / "run")
    logits = model.predictor(torch.zeros(1, 1, 12, 12, 16))
    assert logits.shape == (1, 3, 12, 12, 16)
    assert model.plan.folds == ()


def changes(tap: Tapped) -> list[float]:
    from seguro.federated import aggregate

    before = [t.arrays for t, _ in tap.tasks if t.action == "train"]
    after = [u.arrays for u, _ in tap.updates if u.action == "train"]
    return [aggregate.length(aggregate.change(a, b)) for a, b in zip(after, before, strict=True)]


def test_fedprox_pulls_the_local_weights_back(sites, federation, tmp_path):
    lengths = {}
    for mu in (0.0, 1e3):
        found = sites("a")
        found["a"].gate = tap = Tapped()
        config = {"optimiser": "sgd", "learning_rate": 1e-3, "momentum": 0.0, "average": None}
        run = federation("a", run=f"prox{mu:g}", rounds=1, updates=4, strategy={"prox": mu})
        run = run.model_copy(update={"config": {**run.config, **config}})
        simulate(run, found, tmp_path / f"prox{mu:g}")
        lengths[mu] = changes(tap)[0]
    assert lengths[1e3] < 0.6 * lengths[0.0]


def test_fedbn_keeps_a_sites_normalization_and_shares_the_rest(sites, federation, tmp_path):
    found = sites()
    found["a"].gate = tap = Tapped()
    simulate(federation("ab", run="bn", rounds=2, strategy={"personal": "norm"}), found, tmp_path / "run")
    training = found["a"]._training
    own = exchange.outgoing(training._loop.method, training._loop.run.averaged)
    norms = exchange.norms(training._loop.method)
    assert norms
    last = [t for t, _ in tap.tasks if t.action == "evaluate"][-1].arrays
    sent = [u for u, _ in tap.updates if u.action == "train"][-1].arrays
    for name in own:
        bare = name.removeprefix(message.AVERAGED)
        if bare in norms:
            assert np.array_equal(own[name], sent[name])
        else:
            assert np.array_equal(own[name], last[name])
    assert any(not np.array_equal(own[n], last[n]) for n in norms)
    kept = load_model(found["a"].workspace / "federated" / "bn").predictor.state_dict()
    ours = load_model(tmp_path / "run").predictor.state_dict()
    assert {k for k in kept if not torch.equal(kept[k], ours[k])} == norms


@pytest.mark.parametrize("keep", ["keep", pytest.param("reset", marks=pytest.mark.slow)])
def test_a_sites_optimiser_goes_on_or_begins_anew(keep, sites, federation, tmp_path):
    found = sites("a")
    run = federation("a", run=f"optimiser-{keep}", strategy={"optimiser": keep})
    simulate(run, found, tmp_path / "run")
    (optim,) = found["a"]._training._loop.run.optims.values()
    steps = {int(s["step"]) for s in optim.optimiser.state.values()}
    assert steps == ({4} if keep == "keep" else {2})


@pytest.mark.parametrize("coding", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_coded_updates_are_smaller_and_give_nearly_the_same_weights(coding, sites, federation, tmp_path):
    for run, strategy in (("plain", {}), ("coded", {"coding": coding})):
        told = federation("a", run=f"{run}-{coding}", updates=1, strategy=strategy)
        simulate(told, sites("a"), tmp_path / run)
    plain, coded = (record.lines(tmp_path / f) for f in ("plain", "coded"))
    head = 8_000
    ratio = {"fp16": 0.5, "int8": 0.25}[coding]
    assert coded[0]["bytes_up"]["a"] - head < ratio * plain[0]["bytes_up"]["a"]
    weights = [dict(load_model(tmp_path / f).predictor.state_dict()) for f in ("plain", "coded")]
    gap = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    assert 0 < gap < 0.05


def test_an_unlabelled_site_and_one_with_other_classes_take_part(federation, tmp_path):
    """The unlabelled one only where the method learns from images; nobody divides by zero."""
    full = phantom.write_msd(tmp_path / "full", n_labelled=1, n_test=0, seed=1)
    bare = phantom.write_msd(tmp_path / "bare", n_labelled=1, n_unlabelled=1, n_test=0, seed=2)
    part = phantom.write_msd(tmp_path / "part", n_labelled=2, n_test=0, seed=3, n_classes=1)

    def made() -> dict[str, Site]:
        found = {
            name: Site(name, folder, tmp_path / f"w-{name}")
            for name, folder in (("full", full), ("bare", bare), ("part", part))
        }
        unlabelled = [c for c in found["bare"].manifest().cases if c.label is None]
        manifest = found["bare"].manifest().model_copy(update={"cases": tuple(unlabelled), "classes": None})
        found["bare"]._manifest = manifest
        return found

    names = ("full", "bare", "part")
    simulate(federation(names, run="sup", rounds=1), made(), tmp_path / "sup")
    for line in record.lines(tmp_path / "sup"):  # the bare one is not sent weights it has no use for
        assert line["took_part"] == (["full", "part"] if line["action"] == "train" else [])
        assert (
            set(line["bytes_down"]) == {"full", "part"} and "learns from no other" in line["missing"]["bare"]
        )
    simulate(federation(names, run="roam", method="roam", rounds=1), made(), tmp_path / "roam")
    line, scores = record.lines(tmp_path / "roam")
    assert line["took_part"] == ["bare", "full", "part"] and not line["rejected"]
    assert "dice" not in scores["metrics"]["bare"] and scores["score"] is not None
    assert set(scores["metrics"]["part"]) >= {"dice", "dice.organ1"}
    assert "dice.organ2" not in scores["metrics"]["part"]


def test_a_site_with_one_kind_of_cases_is_told_what_a_method_of_both_needs(
    sites, federation, folders, tmp_path
):
    """It sits out, with the reason in the log; the site with both kinds trains on."""
    found = sites("ab")
    found["bare"] = bare = Site("bare", folders["c"], tmp_path / "bare")
    stripped = [c.model_copy(update=BARE) for c in bare.manifest().cases]
    bare._manifest = bare.manifest().model_copy(update={"cases": tuple(stripped), "classes": None})
    run = federation(found, run="kinds", method="mean-teacher", rounds=1, updates=1)
    simulate(run, found, tmp_path / "run")
    line = record.lines(tmp_path / "run")[0]
    assert line["took_part"] == ["b"] and not line["rejected"]
    assert "site a has no unlabelled training case" in line["missing"]["a"]
    assert "site bare has no labelled training case" in line["missing"]["bare"]
    assert "--method roam" in line["missing"]["bare"]


@pytest.mark.slow
def test_sites_in_processes_give_the_weights_of_the_simulator(sites, federation, tmp_path):
    simulate(federation("ab", run="inside"), sites(), tmp_path / "inside")
    simulate(federation("ab", run="outside"), sites(), tmp_path / "outside", processes=True)
    states = [load_model(tmp_path / f).predictor.state_dict() for f in ("inside", "outside")]
    assert max(float((states[0][k] - states[1][k]).abs().max()) for k in states[0]) < AGREE


@pytest.mark.slow
def test_a_site_killed_in_a_round_is_missed_and_back_in_the_next(sites, federation, tmp_path, monkeypatch):
    killed = []
    honest = Worker.answer

    def answer(self, data):
        task = message.task_from(data)
        if (self.site.name, task.round, task.action) == ("c", 1, "train") and not killed:
            killed.append(self.pid)
            threading.Timer(0.05, os.kill, (self.pid, signal.SIGKILL)).start()
        return honest(self, data)

    monkeypatch.setattr(Worker, "answer", answer)
    found = sites("abc")
    run = federation("abc", run="killed", rounds=3, updates=20)
    simulate(run, found, tmp_path / "run", processes=True)
    told = [e["took_part"] for e in record.lines(tmp_path / "run") if e["action"] == "train"]
    assert killed and told == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
