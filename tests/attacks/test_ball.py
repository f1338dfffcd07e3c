"""C1 and C9 over attacks and objectives: ball, box, and samples that are broken before they are attacked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seguro.attacks.apgd import APGD
from seguro.attacks.fab import FAB
from seguro.attacks.objectives import OBJECTIVES
from seguro.attacks.pgd import PGD, Noise
from seguro.attacks.square import Square, published
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Truth, Victim

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

EPS = 8 / 255
ROUNDING = 1e-6
"""Of float32 sums of values below 20."""


def keeps_to(threat: Threat, adversarial: Tensor, x: Tensor) -> None:
    """Check every channel against its own ball and box, independently of `Threat.verify`."""
    change = (adversarial - x).abs().flatten(2).amax(2)
    assert bool((change <= threat.eps + 16 * ROUNDING).all())
    assert bool((adversarial.flatten(2).amin(2) >= threat.low).all())
    assert bool((adversarial.flatten(2).amax(2) <= threat.high).all())


@pytest.mark.parametrize("toy", ["flat3", "solid2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", [APGD, PGD])
def test_every_objective_keeps_to_ball_and_box_and_lowers_dice(toy, objective, kind, request) -> None:
    if objective == "dlr" and toy == "solid2":
        pytest.skip("DLR needs three classes")
    nets = request.getfixturevalue(toy)
    threat = nets.threat(EPS)
    found = kind(objective, steps=4)(nets.victim(), nets.x, threat, nets.seeds)
    keeps_to(threat, found.x, nets.x)
    noise = Noise()(nets.victim(), nets.x, threat, nets.seeds).score.mean()
    assert float(found.score.mean()) < float(noise) - 0.01


ATTACKS = {
    "apgd": APGD("dice", steps=4),
    "pgd": PGD("ce", steps=4),
    "fab": FAB(steps=4, restarts=2),
    "square": Square(20),
    "published-square": published(20),
    "noise": Noise(),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_sample_that_is_broken_already_changes_no_other_one(flat3, attack) -> None:
    """Sample 1 has nothing left to lose: its truth lies where the network sees background."""
    here = flat3.select([0, 1, 2])
    label = here.label.clone()
    label[1] = 0
    label[1, :3, :3] = 1
    label[1, -3:, -3:] = 2
    assert not (flat3.net(here.x)[1].argmax(0) * label[1]).any()
    threat = here.threat(EPS)
    found = attack(Victim(here.net, Truth(label, torch.ones(3, 2), here.classes)), here.x, threat, here.seeds)
    keeps_to(threat, found.x, here.x)
    assert float(found.score[1]) == 0
    plain = attack(here.victim(), here.x, threat, here.seeds)
    torch.testing.assert_close(found.score[[0, 2]], plain.score[[0, 2]], rtol=0, atol=1e-5)
