"""Cross pseudo supervision: who learns from whom."""

from __future__ import annotations

import pytest
import torch

from seguro.losses import cross_entropy


def test_two_networks_start_differently(toy):
    made = toy("cps")
    one, two = (made.method.modules[n].head.weight for n in ("network", "peer"))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("crossed", ["all", "unlabelled"])
def test_each_network_learns_what_the_other_says(toy, batch, crossed):
    made, data = toy("cps", crossed=crossed), batch(4)
    classes = made.method.plan.classes
    rows = slice(1, None, 2) if crossed == "unlabelled" else slice(None)
    logits = {n: made.method.modules[n](data.image)[rows] for n in ("network", "peer")}
    known = torch.ones(len(logits["peer"]), 2)
    wanted = cross_entropy(logits["network"], logits["peer"].argmax(1).byte(), known, classes)
    wanted = wanted + cross_entropy(logits["peer"], logits["network"].argmax(1).byte(), known, classes)
    out = made.method.update(data, made.run)
    torch.testing.assert_close(out["crossed"], wanted.detach())
    torch.testing.assert_close(out["loss"], out["supervised"] + 1.5 * wanted.detach())
    agree = (logits["network"].argmax(1) == logits["peer"].argmax(1)).float().mean()
    if crossed == "unlabelled":
        assert out["agree"] == pytest.approx(float(agree))


def test_gradients_flow_into_the_side_that_predicts_only(toy, batch):
    """A network whose teacher's logits are scaled learns the same: only the labels of the other count."""
    grads = []
    for scale in (1.0, 3.0):
        made, data = toy("cps", crossed="unlabelled"), batch(4)
        made.method.config = made.method.config.model_copy(update={"cross_entropy_weight": 0.0})
        with torch.no_grad():
            for parameter in made.method.modules["peer"].head.parameters():
                parameter.mul_(scale)  # the same labels, surer
        made.run.step = lambda *names: True
        made.method.update(data, made.run)
        grads.append([p.grad.clone() for p in made.method.modules["network"].parameters()])
    assert any(g.abs().sum() > 0 for g in grads[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_first_network_is_deployed(toy):
    made = toy("cps")
    assert made.method.predictor(made.run.deployable()).network is made.method.modules["network"]
    averaged = toy("cps", average=0.9)
    assert set(averaged.run.averaged) == {"network"}
