"""seguro report: the same outputs each time, caveats that stay, an unfinished run that works."""

from __future__ import annotations

import json

import pytest

import seguro.cli.report as command
from seguro.cli.main import main
from seguro.core.types import ScoreRow
from seguro.report.cases import Readers


@pytest.fixture
def run(tmp_path, monkeypatch):
    folder = tmp_path / "made.seguro" / "runs" / "r"
    scores = folder / "scores" / "test"
    scores.mkdir(parents=True)
    (scores / "scores.csv").write_text("")
    row = {"class": "k", "site": "all", "metric": "dice", "n_cases": 2, "n_patients": 2, "mean": 0.75}
    (scores / "summary.json").write_text(json.dumps({"unit": "mm", "rows": [row]}))
    rows = [ScoreRow(f"c{i}", f"p{i}", "s", "k", "dice", 0.5 + i / 2) for i in range(2)]
    monkeypatch.setattr(command, "_readers", lambda: Readers(image=None, label=None, scores=lambda _: rows))
    return folder


def outputs(run):
    return json.loads((run / "report" / "stage.json").read_text())["outputs"]


def test_outputs_do_not_depend_on_durations(run):
    stage = {"stage": "train", "key": "k", "outputs": {}, "recorded": {"seconds": 1.0}}
    (run / "stage.json").write_text(json.dumps(stage))
    first = command.write(run)
    before, page = outputs(run), (run / "report" / "report.html").read_text()
    (run / "stage.json").write_text(json.dumps(stage | {"recorded": {"seconds": 99.0}}))
    command.write(run)
    assert outputs(run) == before
    assert (run / "report" / "report.html").read_text() != page  # the page itself names the duration
    assert first["dice"] == 0.75
    (run / "stage.json").write_text(json.dumps(stage | {"key": "other"}))
    command.write(run)
    assert outputs(run) != before


def test_caveats_stay_until_others_are_given(run):
    command.write(run, caveats=("twelve disguises",))
    assert "twelve disguises" in command.write(run)["caveats"]
    assert "twelve disguises" not in command.write(run, caveats=("other",))["caveats"]


def test_json_and_copy(run, tmp_path, capsys):
    out = tmp_path / "copy" / "page.html"
    assert main(["report", str(run), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] == str(out) and result["cases"] == 2
    assert out.read_text() == (run / "report" / "report.html").read_text()


def test_dry_run_writes_nothing(run):
    assert main(["report", str(run), "--dry-run"]) == 0
    assert not (run / "report").exists()


def test_missing_run_is_exit_2(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
