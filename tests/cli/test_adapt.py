"""`seguro adapt` is `seguro train --method adapt` with the sites as options."""

from __future__ import annotations

import pytest

from seguro.cli import adapt as command
from seguro.core.errors import ConfigError
from seguro.core.files import write_json


def start(folder, method):
    write_json(folder / "model" / "model.json", {"method": method, "config": {}})
    return folder


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr("seguro.cli.train.train", lambda data, **given: calls.append((data, given)))
    monkeypatch.setattr("seguro.api.adaptation.foreseen", lambda data, options, **given: [])
    return calls


def test_sites_become_settings_and_the_start_decides_the_stage(called, tmp_path):
    factory, source = start(tmp_path / "f", "factory"), start(tmp_path / "s", "adapt")
    command.adapt(tmp_path / "data", factory, source="3")
    command.adapt(tmp_path / "data", source, source="3", target="B", set_=["cycle=false"], updates=7)
    first, second = (given for _, given in called)
    assert first["set_"] == ["stage=source", 'source="3"'] and first["name"] == "adapt-source-3"
    assert second["set_"] == ["stage=adapt", 'source="3"', 'target="B"', "cycle=false"]
    assert (second["method"], second["init"], second["dims"], second["updates"]) == ("adapt", source, 2, 7)
    assert second["name"] == "adapt-adapt-B"


def test_a_stage_may_be_named(called, tmp_path):
    command.adapt(tmp_path / "data", start(tmp_path / "f", "factory"), stage="adapt")
    assert called[0][1]["set_"] == ["stage=adapt"] and called[0][1]["name"] == "adapt-adapt"


@pytest.mark.parametrize(("stage", "method"), [("other", "adapt"), ("auto", "supervised")])
def test_other_stages_and_starts_are_refused(stage, method, tmp_path):
    with pytest.raises(ConfigError, match=r"expected source, adapt or auto|made by method supervised"):
        command.stage_of(stage, start(tmp_path / "r", method))
