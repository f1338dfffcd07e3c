"""seguro report: the same outputs each time, caveats that stay, an unfinished run that works."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import yaml
from PIL import Image

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
    monkeypatch.setattr(
        command, "_readers", lambda: Readers(None, None, None, lambda _: rows, command._settings)
    )
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
    (run / "stage.json").write_text(json.dumps(stage | {"outputs": {"model/model.json": "other"}}))
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


def test_dry_run_prints_json(run, capsys):
    assert main(["report", str(run), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_write"] == [str(run / "report" / "report.html")]


def test_the_next_command_names_the_run(run, capsys):
    main(["report", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["next"] == f"seguro predict {run}"


def mask_folders(folder):
    """Pictures of 20 x 30 pixels with two mask folders, 0 and 255; left and right never overlap."""
    rng = np.random.default_rng(0)
    for i in range(3):
        left, right = np.zeros((2, 20, 30), np.uint8)
        left[5:15, 3 : 10 + i], right[5:15, 16:26] = 255, 255
        gray = (rng.integers(0, 50, (20, 30)) + left // 2 + right // 3).astype(np.uint8)
        for name, array in (("images", gray), ("liver", left), ("spleen", right)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / f"c{i}.png")
    return folder


@pytest.mark.parametrize("spacing", [None, "10,2,2"])
def test_masks_are_combined_and_volumes_are_only_in_millilitres(tmp_path, spacing):
    from seguro.data import manifest as manifests
    from seguro.report.cases import show

    data, space = mask_folders(tmp_path / "scans"), tmp_path / "w.seguro"
    options = ["--spacing", spacing] if spacing else []
    assert main(["check", str(data), "--out", str(space), *options]) == 0
    manifest = manifests.load(space)
    assert set(manifest.classes.foreground) == {"liver", "spleen"}
    scores = [ScoreRow(c.id, c.id, "s", n, "dice", 0.5) for c in manifest.cases for n in ("liver", "spleen")]
    shown = show(scores, manifest, {}, command._readers())
    volumes = {(s.case, r.cls): r.truth_ml for s in shown for r in s.results}
    assert all(s.views for s in shown)
    for i in range(3):
        # 10 rows of 7 + i or 10 pixels, each 10 x 2 x 2 mm = 0.04 ml
        wanted = {"liver": 0.4 * (7 + i), "spleen": 4.0}
        for name, ml in wanted.items():
            assert volumes[f"c{i}", name] == (pytest.approx(ml, rel=1e-6) if spacing else None)


def test_the_commands_rebuild_the_very_settings(run):
    from seguro import api
    from seguro.core.settings import seconds, settings_from
    from seguro.report.commands import commands

    settings = {"learning_rate": 1e-5, "network_options": {"width": 8}}
    options = api.TrainOptions(preset="tiny", settings=settings)
    preset, config = api.configure(options, gpu=False)
    written = {
        "method": "supervised", "preset": preset, "config": config.model_dump(mode="json"), "fold": "2",
        "updates": None, "budget_s": 90.5, "batch": 3, "seed": 7, "precision": "auto", "validations": 5,
        "patience": 0,
    }  # fmt: skip
    lines = commands(
        run.parent.parent, run, "test", yaml.safe_load(yaml.safe_dump(written)), command._settings
    )
    train = next(x for x in lines if x.startswith("seguro train")).split()
    given = dict(zip(train[3::2], train[4::2], strict=True))
    pairs = [b for a, b in pairwise(train) if a == "--set"]
    again = api.configure(
        api.TrainOptions(preset=given["--preset"], settings=settings_from(pairs)), gpu=False
    )
    assert again == (preset, config) and len(pairs) == 2  # and nothing that the preset says already
    assert seconds(given["--budget"]) == 90.5
    names = ("--out", "--name", "--folds", "--batch", "--seed", "--validations")
    assert [given[n] for n in names] == ["made.seguro", "r", "2", "3", "7", "5"]
    assert "seguro predict made.seguro/runs/r --cases test" in lines
