"""benchmarks/factory_bytes.py: bytes are those of both ways, every arm is a federation that can be run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from seguro.api import federation
from seguro.core.files import write_json
from seguro.core.settings import settings_from


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("factory_bytes"), importlib.import_module("results")


def looked(number):
    return {s: {"distance": number, "recognized": 0.5, "rank_correlation": 1.0} for s in ("a", "b")}


def test_what_goes_up_and_down_is_counted(scripts, monkeypatch, tmp_path):
    script, results = scripts
    one = {"bytes_up": {"a": 1_000_000, "b": 2_000_000}, "bytes_down": {"a": 250_000}}
    monkeypatch.setattr(script, "lines", lambda run: [one, one])
    monkeypatch.setattr(script.cones, "looked_at", lambda run, seed: looked(seed))
    found = script.told(tmp_path, 3)
    assert found["megabytes"] == 6.5 and script.mean(found, "distance") == 3
    facts = {"rounds": 2, "updates": 5, "seeds": [3], "arms": {"whole": [found]}}
    write_json(tmp_path / "f.json", facts)
    assert any(line.startswith("| whole | 3 | 6.5") for line in results.messages(tmp_path / "f.json"))


def test_every_arm_is_a_federation(scripts):
    script, _ = scripts
    for arm, words in script.ARMS.items():
        pairs = list(zip(words[::2], words[1::2], strict=True))
        fields = {
            kind: settings_from([v for k, v in pairs if k == f"--{kind}"]) for kind in ("set", "strategy")
        }
        options = federation.FederateOptions(
            method="factory", preset="tiny", settings=fields["set"], strategy=fields["strategy"]
        )
        federation.federation(options, script.cones.SITES)
        assert ("int8" in arm) == (fields["strategy"].get("coding") == "int8")
