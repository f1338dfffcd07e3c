"""Every method that segments can be attacked: patch and volume, inside the ball, the model unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seguro.attacks.pgd import PGD
from seguro.attacks.subject import patch_subject, volume_subject
from seguro.attacks.threat import Epsilon, threat_of
from seguro.attacks.victim import Victim, frozen
from seguro.data.store import Cases
from seguro.methods import get


@pytest.mark.parametrize("subject_of", [patch_subject, volume_subject])
def test_a_model_is_attacked_inside_the_ball_and_left_as_it_was(row, subject_of, with_support):
    name, setting = row
    if not get(name).needs.segments:
        pytest.skip(f"{name} does not segment")
    method = setting.method(name)
    method.modules.train()
    predictor = with_support(method.predictor(method.modules), name, setting.plan)
    before = {k: v.clone() for k, v in predictor.state_dict().items()}
    trained = [p.requires_grad for p in method.modules.parameters()]
    case = Cases(setting.store, setting.manifest.of("train")[:1], setting.plan.classes)[0]
    image = case.patch((slice(None),) * 3)[:, :24, :24, :24]
    label = np.array(case.label)[:24, :24, :24]
    state = torch.get_rng_state()
    with frozen(predictor):
        assert not any(m.training for m in predictor.modules())
        subject = subject_of(predictor, image, label, case.annotated)
        threat = threat_of(subject.x, Epsilon(16 / 255, "range"), setting.plan)
        victim = Victim(subject.logits, subject.truth)
        found = PGD("ce", steps=3)(victim, subject.x, threat, [0])
    assert torch.equal(torch.get_rng_state(), state)
    assert method.modules.training
    assert [p.requires_grad for p in method.modules.parameters()] == trained
    assert all(torch.equal(v, before[k]) for k, v in predictor.state_dict().items())
    assert float(found.score[0]) <= float(victim.score(victim.logits(subject.x))[0])
    assert found.trace[-1] > found.trace[0]  # the attack climbs
    threat.verify(found.x, subject.x)
