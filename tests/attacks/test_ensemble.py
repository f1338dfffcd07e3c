"""Suites: the worst of their members, whatever the order; and guards that say when not to believe them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from seguro.attacks import guards
from seguro.attacks.apgd import APGD, SEA_RADII
from seguro.attacks.ensemble import NOISE, Effort, run_suite, suite
from seguro.attacks.pgd import PGD, Noise
from seguro.attacks.record import one
from seguro.attacks.square import Square
from seguro.attacks.victim import Best, Truth, Victim
from seguro.core.errors import ConfigError
from seguro.core.types import Classes

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def outcome(nets, attacks, seed=0):
    return run_suite(
        attacks, nets.victim(), nets.x, nets.threat(16 / 255), seed=seed, cases=NAMES[: len(nets.x)]
    )


@pytest.mark.parametrize("name", ["flat3", "solid2"])
def test_the_worst_case_is_the_lowest_of_the_members_per_case_and_class(name, request):
    nets = request.getfixturevalue(name)
    attacks = (APGD("ce", steps=4), PGD("dice", steps=4), Square(queries=20))
    found = outcome(nets, attacks)
    assert set(found.found) == {NOISE, *(a.name for a in attacks)}
    scores = torch.stack([f.score for f in found.found.values()])
    assert torch.equal(found.score, scores.min(0).values)
    for i, by in enumerate(found.by):
        assert torch.equal(found.x[i], found.found[by].x[i])
    for f in found.found.values():
        assert (found.lowest <= f.dice + 1e-6).all() and (found.lowest <= f.lowest + 1e-6).all()
    again = nets.victim().score(nets.victim().logits(found.x))
    assert torch.allclose(again, found.score, atol=1e-5)


def test_the_order_of_the_attacks_and_the_batch_change_no_result(flat3):
    attacks = (APGD("ce", steps=3), Square(queries=10))
    one, other = outcome(flat3, attacks), outcome(flat3, attacks[::-1])
    for name in one.found:
        assert torch.equal(one.found[name].x, other.found[name].x)
    alone = run_suite(
        attacks,
        flat3.select([2]).victim(),
        flat3.x[2:3],
        flat3.select([2]).threat(16 / 255),
        seed=0,
        cases=["c"],
    )
    assert torch.allclose(alone.score, one.score[2:3], atol=1e-5)


def test_the_papers_suite_has_dlr_from_three_classes_on_and_attacks_are_named_in_lists():
    two = Classes(names=("b", "x"), values=((0,), (1,)))
    three = Classes(names=("b", "x", "y"), values=((0,), (1,), (2,)))
    effort = Effort(steps=2, queries=2)
    assert [a.name for a in suite("rog", three, effort, bar=0.4)] == ["apgd-ce", "apgd-dlr", "fab", "square"]
    assert [a.name for a in suite("rog", two, effort)] == ["apgd-ce", "fab", "square"]
    assert [a.name for a in suite("pgd-dice, apgd-js,fab", two, effort)] == ["pgd-dice", "apgd-js", "fab"]
    for bad in ("mighty", "apgd-", "apgd-nothing", ""):
        with pytest.raises(ConfigError, match="known"):
            suite(bad, two, effort)
    assert [a.name for a in suite("blackbox", two, effort)] == ["square"]
    strong = [a.name for a in suite("strong", two, effort, bar=0.4)]
    assert len(strong) == len(set(strong)) > 4 and {"apgd-ce", "fab", "square"} < set(strong)


def test_a_model_without_gradients_is_told_what_to_do(flat3):
    blind = Victim(lambda x: flat3.net(x.detach()), flat3.truth)
    with pytest.raises(ConfigError, match="no gradient"):
        PGD("ce", steps=1)(blind, flat3.x, flat3.threat(0.03), flat3.seeds)
    assert Square(queries=5)(blind, flat3.x, flat3.threat(0.03), flat3.seeds).forwards > 0


def test_a_model_that_returns_nan_is_refused_on_the_clean_image(flat3):
    broken = Victim(lambda x: flat3.net(x) * torch.nan, flat3.truth)
    with pytest.raises(ConfigError, match="NaN"):
        Best(broken, flat3.x, flat3.threat(0.03))


def test_an_empty_truth_is_attacked_by_false_alarms(flat3):
    empty = Truth(torch.zeros_like(flat3.label), torch.ones(len(flat3.x), 2), flat3.classes)
    with torch.no_grad():
        z = flat3.net(flat3.x)
    lift = torch.tensor([float((z[:, 1:].amax(1) - z[:, 0]).max()) + 0.1, 0, 0]).reshape(1, 3, 1, 1)
    quiet = Victim(lambda x: flat3.net(x) + lift, empty)
    start = quiet.score(quiet.logits(flat3.x))
    found = APGD("dice", steps=10)(quiet, flat3.x, flat3.threat(0.5), flat3.seeds)
    assert (start == 1).all() and found.score.min() < 1


def test_a_class_that_was_not_annotated_scores_nothing(flat3):
    partial = Truth(flat3.label, torch.tensor([[1.0, 0.0]] * len(flat3.x)), flat3.classes)
    victim = Victim(flat3.net, partial)
    found = APGD("dice", steps=3)(victim, flat3.x, flat3.threat(0.05), flat3.seeds)
    assert found.dice[:, 1].isnan().all() and not found.dice[:, 0].isnan().any()
    assert torch.equal(found.score, found.dice[:, 0])


def test_guards_pass_and_fail_where_they_should():
    ones, low = np.full(4, 0.9), np.full(4, 0.2)
    assert guards.noise(ones, ones - 0.01, low).passed and not guards.noise(ones, low, low - 0.05).passed
    assert guards.moved(ones, low).passed and not guards.moved(ones, ones).passed
    assert guards.order(low, ones).passed and not guards.order(ones, low).passed
    near = guards.converged(np.stack([ones, low]), np.stack([ones, low - 0.01]), ["8/255", "16/255"])
    far = guards.converged(np.stack([ones, low]), np.stack([ones - 0.05, low]), ["8/255", "16/255"])
    assert near.passed and "16/255" in near.detail
    assert not far.passed and "8/255" in far.detail  # what is gone at the largest has no further to fall
    assert guards.unbounded(np.zeros(4)).passed and not guards.unbounded(low).passed
    assert guards.repeatable(low, low).passed and not guards.repeatable(low, low + 0.01).passed
    assert guards.flags([[], [], []]).passed and not guards.flags([["x: nan"], []]).passed
    assert guards.climbing({"a": [True, True], "b": [None, True]}).passed
    stuck = guards.climbing({"a": [True] * 8 + [False] * 2, "b": [True] * 9 + [False], "noise": [None] * 10})
    assert stuck.passed is False and stuck.detail == "not that of a in 2 of 10 cases"
    assert guards.climbing({"noise": [None, None]}).passed is None


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("kind", [APGD, PGD])
def test_an_attack_that_only_tries_its_starting_points_is_told(flat3, kind, restarts):
    """A quantised input has no gradient: the objective stays, and restarts do not pass for a climb."""
    masked = Victim(lambda x: flat3.net((x * 4).round() / 4 + 0 * x), flat3.truth)
    threat = flat3.threat(8 / 255)
    found = kind("ce", steps=4, restarts=restarts)(masked, flat3.x, threat, flat3.seeds)
    assert not found.rose.any() and found.score.min() > 0
    assert not guards.climbing({"a": [one_of(found, i).climbed for i in range(len(flat3.x))]}).passed
    plain = kind("ce", steps=4, restarts=restarts)(flat3.victim(), flat3.x, threat, flat3.seeds)
    assert plain.rose.all()
    blind = Square(queries=60)(masked, flat3.x, threat, flat3.seeds)
    assert blind.rose.all()  # it needs no gradient


def test_a_random_search_that_accepts_nothing_is_told(flat3):
    deaf = Victim(lambda x: flat3.net(flat3.x + 0 * x), flat3.truth)
    found = Square(queries=10)(deaf, flat3.x, flat3.threat(8 / 255), flat3.seeds)
    assert not found.rose.any() and one_of(found, 0).climbed is False


def test_nothing_is_said_of_objectives_seen_once_or_not_at_all(flat3):
    threat = flat3.threat(8 / 255)
    for attack in (PGD("ce", steps=1), APGD("ce", steps=1), Square(queries=1), Noise()):
        assert attack(flat3.victim(), flat3.x, threat, flat3.seeds).rose is None
    nobody = Victim(flat3.net, Truth(flat3.label, torch.zeros(len(flat3.x), 2), flat3.classes))
    found = PGD("ce", steps=3)(nobody, flat3.x, threat, flat3.seeds)
    assert one_of(found, 0).climbed is None


def test_after_larger_balls_the_last_one_is_climbed_too(flat3):
    attack = APGD("ce", steps=9, radii=SEA_RADII)
    assert attack(flat3.victim(), flat3.x, flat3.threat(8 / 255), flat3.seeds).rose.all()


def one_of(found, i):
    """The record of one sample."""
    part = replace(
        found, x=found.x[i : i + 1], score=found.score[i : i + 1], dice=found.dice[i : i + 1],
        rose=None if found.rose is None else found.rose[i : i + 1], flags=found.flags[i : i + 1],
    )  # fmt: skip
    return one(part)
