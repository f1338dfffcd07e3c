"""Fields of single attacks set by hand: what they change, and what is refused."""

from __future__ import annotations

from dataclasses import fields

import pytest

from seguro.attacks.apgd import APGD
from seguro.attacks.fab import FAB
from seguro.attacks.pgd import PGD
from seguro.attacks.square import Square
from seguro.attacks.tuning import SHARED, check, told, tuned
from seguro.core.errors import ConfigError

VALUES = {
    APGD: {"radii": [2, 1.5, 1]},
    PGD: {"step": 0.5, "decay": "linear", "momentum": 1, "start": "clean"},
    FAB: {
        "warm_start": False, "margin": 0.9, "bias": 0.2, "overshoot": 1.1, "back": 0.9, "trust": 1.5,
        "largest": 4, "bisections": 2,
    },
    Square: {"p": 0.5, "oracle": "dice", "tiles": False, "horizon": None},
}  # fmt: skip
BAD = [
    (APGD, {"radii": [1, 2, 1]}, "fall to 1"),
    (APGD, {"radii": [2, -1, 1]}, "fall to 1"),
    (APGD, {"radii": [2, 1]}, "radii"),
    (PGD, {"step": 0}, "step above 0"),
    (PGD, {"momentum": -1}, "momentum of 0"),
    (PGD, {"start": "middle"}, "start=middle"),
    (PGD, {"step": float("inf")}, "finite"),
    (FAB, {"trust": 0}, "trust above 0"),
    (FAB, {"back": 1.5}, "back from 0 to 1"),
    (FAB, {"bisections": -1}, "bisections"),
    (Square, {"horizon": 0}, "horizon"),
    (Square, {"p": 0}, "p in"),
    (Square, {"tiles": "perhaps"}, "tiles=perhaps"),
    (Square, {"side": 3}, "unknown; square has p, oracle, tiles, horizon"),
    *((kind, {"restarts": 2}, "use --restarts") for kind in VALUES),
]


@pytest.mark.parametrize("kind", list(VALUES), ids=lambda k: k.__name__)
def test_every_field_of_every_attack_can_be_set(kind):
    own = {f.name for f in fields(kind)} - set(SHARED)
    assert own == set(VALUES[kind])
    for name, value in VALUES[kind].items():
        (made,) = tuned([kind()], {kind().name: {name: value}})
        found = getattr(made, name)
        assert found == (tuple(value) if isinstance(value, list) else value) != getattr(kind(), name)
        assert {f.name: getattr(made, f.name) for f in fields(kind) if f.name != name} == {
            f.name: getattr(kind(), f.name) for f in fields(kind) if f.name != name
        }


def test_other_attacks_stay_as_they_are():
    attacks = (APGD("ce"), APGD("dice"), Square())
    made = tuned(attacks, {"apgd-dice": {"radii": [2, 1.5, 1]}, "fab": {"trust": 1}})
    assert (made[0], made[2]) == (attacks[0], attacks[2])
    assert made[1] == APGD("dice", radii=(2.0, 1.5, 1.0))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    BAD,
    ids=[f"{k.__name__}-{'-'.join(v)}-{i}" for i, (k, v, _) in enumerate(BAD)],
)
def test_what_makes_no_sense_is_refused(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        tuned([kind()], {kind().name: values})


def test_attacks_that_are_not_there_are_refused_by_name():
    check([FAB(), Square()], {"fab": {"trust": 1}})
    with pytest.raises(ConfigError, match="it has fab, square"):
        check([FAB(), Square()], {"apgd-ce": {"radii": None}})
    with pytest.raises(ConfigError, match=r"ATTACK\.FIELD=VALUE"):
        check([FAB()], {"fab": 3})


def test_settings_are_told_in_one_order():
    assert (
        told({"square": {"p": 0.5}, "fab": {"trust": 1, "back": 0.5}})
        == "fab.back=0.5, fab.trust=1, square.p=0.5"
    )
