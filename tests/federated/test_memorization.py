"""The memorization audit of a federated generator: each site says numbers of its own slices, none leaves."""

from __future__ import annotations

import pytest

from seguro.core.files import read_json
from seguro.federated import memorization, message
from seguro.federated.audit import Audit
from seguro.federated.memorization import together
from seguro.federated.policy import Guarded, Policy, lets
from seguro.federated.simulate import simulate
from seguro.methods.factory.config import PRESETS, FactoryConfig

TINY = PRESETS["tiny"] | {"size": 8, "width": 4, "full": 4, "latent": 8}
TOLD = {
    "audit.made": 0.5, "audit.held_out": 0.4,
    "audit.n_made": 8.0, "audit.n_held_out": 4.0, "audit.n_train": 20.0,
}  # fmt: skip


def test_every_site_whose_updates_are_in_the_model_must_pass():
    facts = together({"a": TOLD, "b": {**TOLD, "audit.made": 0.38}}, ["a", "b"], {})
    assert facts["releasable"] and facts["domains"]["b"]["ratio"] == pytest.approx(0.95)
    near = together({"a": TOLD, "b": {**TOLD, "audit.made": 0.3}}, ["a", "b"], {})
    assert not near["releasable"] and near["domains"]["a"]["passed"] and not near["domains"]["b"]["passed"]
    silent = together({"a": TOLD}, ["a", "b"], {"b": "no answer within 1 s"})
    assert (
        not silent["releasable"] and silent["domains"]["b"]["reason"] == "not audited: no answer within 1 s"
    )
    kept = together({"a": TOLD, "b": {"audit.made": 9.0}}, ["a", "b"], {})
    assert "told no numbers" in kept["domains"]["b"]["reason"]
    empty = together({"a": {**TOLD, "audit.n_held_out": 0.0}}, ["a"], {})
    assert not empty["releasable"] and "no slice" in empty["domains"]["a"]["reason"]
    assert not together({}, [], {})["releasable"]


def test_the_numbers_leave_only_where_the_policy_lists_them():
    update = message.Update("r", "a", 1, "audit", metrics={**TOLD, "n_cases": 3.0})
    assert lets(Policy(), update).metrics == {"n_cases": 3.0}
    listed = Policy(may_leave=["facts", "weights", "counts", "audits"])
    assert lets(listed, update).metrics == update.metrics
    assert message.allowed(TOLD, ()) == TOLD


@pytest.fixture
def factories(sites, federation, tmp_path):
    """Runs one round of a tiny generator over sites a and b, whose gates may be set; returns audit.json."""

    def run(name: str, gates=None):
        config = FactoryConfig(**TINY, domains=("a", "b"), r1_every=2, path_every=3).model_dump(mode="json")
        told = federation(
            "ab", method="factory", run=name, config=config, rounds=1, updates=2, batch=2,
            plan={"memory_gib": 0.01, "batch": 2, "dims": 2}, strategy={"aggregate": "uniform"},
        )  # fmt: skip
        found = sites("ab")
        for site, gate in (gates or {}).items():
            found[site].gate = gate
        simulate(told, found, tmp_path / name)
        return found, read_json(tmp_path / name / "audit.json")

    return run


def test_a_factory_is_audited_at_its_sites_and_by_nobody_else(factories, tmp_path):
    gates = {"b": Guarded(Policy(), Audit(tmp_path / "audit.jsonl"))}  # which does not list audits
    found, facts = factories("guarded", gates)
    mine = facts["domains"]["a"]
    trained, held_out = found["a"].cases()[0], found["a"].held_out()
    depth = 12  # slices of each case along the plan's axis
    assert {c.patient for c in trained}.isdisjoint(c.patient for c in held_out)
    assert (mine["n_train"], mine["n_held_out"]) == (depth * len(trained), depth * len(held_out))
    assert mine["n_made"] == memorization.COMPARED and mine["made"] > 0 and mine["held_out"] > 0
    assert facts["domains"]["b"] == {"passed": False, "reason": "not audited: the site told no numbers"}
    assert not facts["releasable"]


@pytest.mark.slow
def test_an_untrained_factory_remembers_nothing_and_may_be_released(factories):
    """Noise is farther from every training slice than a new patient is."""
    _, facts = factories("open")
    assert facts["releasable"] and all(d["ratio"] > 1 for d in facts["domains"].values())
