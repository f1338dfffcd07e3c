"""Time budgets: closed forms of how many updates and validations fit."""

from __future__ import annotations

import pytest

from seguro.engine import limits as module
from seguro.engine.limits import Clock, Limits


@pytest.fixture
def clock(monkeypatch):
    """A clock whose hands are moved by `clock.now[...]`; 100 s spent, 20 of them in 4 validations."""
    now = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(module.time, "process_time", lambda: now["cpu"])
    made = Clock()
    made.now = now
    for _ in range(4):
        with made.validation():
            now["wall"] += 5.0
    now["wall"], now["cpu"] = 100.0, 150.0
    return made


def test_the_clock_adds_up_over_resumes(clock):
    facts = clock.facts()
    assert facts == {"spent_s": 100.0, "spent_cpu_s": 150.0, "validating_s": 20.0, "validations": 4}
    clock.now["wall"], clock.now["cpu"] = 1000.0, 2000.0  # stopped in between
    again = Clock()
    again.resume(facts)
    clock.now["wall"], clock.now["cpu"] = 1007.0, 2003.0
    assert (again.seconds, again.cpu_seconds) == (107.0, 153.0)
    assert (again.validating, again.validations) == (20.0, 4)


def test_a_validation_that_fails_is_not_counted(clock):
    with pytest.raises(KeyError), clock.validation():
        raise KeyError
    assert clock.validations == 4


def test_updates_that_fit_a_budget(clock):
    # 80 s for 40 updates is 2 s each; of 500 s are left 400, less 7 validations of 5 s: 365 s, 182 updates
    assert Limits(budget_s=500.0, validations=10).estimate(40, clock) == (40 + 182, 2.0)
    assert Limits(budget_s=90.0, validations=10).estimate(40, clock) == (40, 2.0)  # over already


def test_only_validations_that_will_be_made_are_set_aside(clock):
    # of 200 s a tenth pays for 4 validations of 5 s, all done: only the last one is to come, 95 s are left
    assert Limits(budget_s=200.0, validations=20).estimate(40, clock) == (40 + 47, 2.0)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(updates=1000, validations=20), 20),
        (Limits(budget_s=500.0, validations=20), 10),  # a tenth of 500 s in validations of 5 s
        (Limits(budget_s=5.0, validations=20), 4),  # but never fewer
        (Limits(budget_s=5.0, validations=2), 2),  # than asked for
    ],
    ids=["updates", "share", "least", "asked"],
)
def test_validations_take_a_tenth_of_a_budget_at_most(clock, limits, expected):
    assert limits.planned_validations(clock) == expected
    assert limits.step(1000, clock) == 1000 // expected


def test_time_left(clock):
    assert Limits(budget_s=130.0).seconds_left(40, 10**9, clock) == 30.0
    assert Limits(updates=100).seconds_left(40, 100, clock) == 150.0
