"""The quality of a federated generator, round by round, by numbers that each site measures itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seguro.core.errors import DataError
from seguro.engine import checkpoint as checkpoints
from seguro.federated import intake, likeness, memorization, message, record
from seguro.federated.audit import Audit
from seguro.federated.likeness import DISTANCE, RECOGNIZED, measured
from seguro.federated.message import METRICS
from seguro.federated.policy import Guarded, Policy
from seguro.federated.simulate import simulate
from seguro.methods.factory.config import PRESETS, FactoryConfig

TINY = PRESETS["tiny"] | {"size": 8, "width": 4, "full": 4, "latent": 8}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(likeness, "COMPARED", 8)
    monkeypatch.setattr(memorization, "COMPARED", 8)


class Painter:
    """Makes noise around a level per domain, and has seen noise around others."""

    def __init__(self, levels, seen) -> None:
        self.levels, self.known = levels, seen
        self.domains = tuple(levels)

    def made(self, modules, domain, n, rng):
        level = self.levels[self.domains[domain]]
        return level + 0.1 * torch.randn(n, 1, 16, 16, generator=rng)

    def seen(self, cases, domain, most):
        rng = np.random.default_rng(domain)
        return rng.normal(self.known, 0.1, (most, 1, 16, 16)).astype(np.float32)


def look(levels, seen, site="a"):
    modules = nn.ModuleDict({"generator": nn.Linear(1, 1)})
    return measured(Painter(levels, seen), modules, SimpleNamespace(), site=site, seed=0)


def test_a_domain_that_looks_like_its_site_is_near_and_recognized_there():
    right, swapped = look({"a": -0.5, "b": 0.5}, -0.5), look({"a": 0.5, "b": -0.5}, -0.5)
    assert right[RECOGNIZED] == 1 and swapped[RECOGNIZED] == 0
    assert right[DISTANCE] < swapped[DISTANCE] / 10
    same = look({"a": 0.0, "b": 0.0, "c": 0.0}, -0.5)
    assert 0 < same[RECOGNIZED] < 1
    assert set(look({"any": 0.0}, 0.0)) == {DISTANCE}  # nothing to tell it from


def test_every_scored_round_tells_both_numbers_and_a_gate_may_keep_them(sites, federation, tmp_path):
    config = FactoryConfig(**TINY, domains=("a", "b"), r1_every=2, path_every=3).model_dump(mode="json")
    told = federation(
        "ab", method="factory", run="looked", config=config, rounds=2, updates=2, batch=2,
        plan={"memory_gib": 0.01, "batch": 2, "dims": 2},
        strategy={"aggregate": "uniform", "server_average": 0.25},
    )  # fmt: skip
    found = sites("ab")
    found["b"].gate = Guarded(Policy(), Audit(tmp_path / "audit.jsonl"))  # which does not list audits
    simulate(told, found, tmp_path / "run", save_every_s=0.0)
    deployed = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    first, last = (checkpoints.load(tmp_path / "run" / "checkpoints", n).tensors for n in (1, 2))
    for name in (k for k in deployed if k.startswith("generator.")):  # the server's own average
        expected = 0.25 * first[name].double() + 0.75 * last[name].double()
        torch.testing.assert_close(deployed[name], expected.float())
    lines = [x for x in record.lines(tmp_path / "run") if x["of_round"] > 0]
    assert [x["of_round"] for x in lines] == [1, 2]
    for line in lines:
        mine, theirs = line["metrics"]["a"], line["metrics"]["b"]
        assert mine[DISTANCE] > 0 and 0 <= mine[RECOGNIZED] <= 1
        assert not {DISTANCE, RECOGNIZED} & set(theirs)


def test_the_names_may_travel_and_what_cannot_be_is_rejected():
    assert {DISTANCE, RECOGNIZED} <= set(METRICS)
    for name, value in ((RECOGNIZED, 1.5), (DISTANCE, -1.0)):
        update = message.Update("r", "a", 1, "evaluate", metrics={name: value})
        with pytest.raises(DataError, match=name):
            intake.numbers(update, classes=(), n_cases=3)
