"""Learning-rate factors against their closed forms."""

from __future__ import annotations

import pytest

from seguro.engine.schedule import PlateauState, factor
from seguro.methods.contract import Schedule


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (Schedule("constant"), 0.7, 1.0),
        (Schedule("poly", power=0.9), 0.5, 0.5**0.9),
        (Schedule("poly", power=1.0), 1.0, 0.0),
        (Schedule("cosine"), 0.5, 0.5),
        (Schedule("cosine"), 0.0, 1.0),
        (Schedule("constant", warmup=0.2), 0.1, 0.5),
        (Schedule("poly", power=1.0, warmup=0.5), 0.25, 0.5 * 0.75),
        (Schedule("step", factor=0.95, every=100), 0.25, 0.95**2),
    ],
)
def test_closed_forms(schedule, progress, expected):
    assert factor(schedule, round(progress * 1000), 1000, PlateauState()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("higher", "scores"), [(True, [0.5, 0.6, 0.6, 0.6, 0.6]), (False, [2, 1, 1, 1, 1])])
def test_a_plateau_multiplies_after_patience_validations_without_gain(higher, scores):
    schedule, state = Schedule("plateau", factor=0.2, patience=2), PlateauState()
    seen = []
    for score in scores:
        state.observe(score, higher_is_better=higher, schedule=schedule)
        seen.append(factor(schedule, 500, 1000, state))
    assert seen == pytest.approx([1, 1, 1, 1, 0.2])
