"""The printed commands are those that make the recorded stages again."""

from __future__ import annotations

import json
import shlex

import pytest
import typer
from click import Context

from seguro.cli.main import app, main
from seguro.core.files import read_json, write_json
from seguro.core.settings import settings_from
from seguro.data import phantom
from seguro.report.commands import commands


def printed(run, scored="test", **more) -> dict[str, list[str]]:
    """Return the words after "seguro COMMAND" of each printed line, by command."""
    lines = commands(run.parent.parent, run, scored, {}, lambda *a: {}, **more)
    return {words[1]: words[2:] for words in map(shlex.split, lines)}


def parsed(*words: str) -> dict[str, object]:
    """Return the values of a command's parameters as the command line reads them."""
    found = typer.main.get_command(app)
    left = list(words)
    while hasattr(found, "get_command"):
        found = found.get_command(Context(found), left.pop(0))
    return found.make_context(str(found.name), left).params


@pytest.mark.parametrize(
    "told",
    [
        [],
        ["--spacing", "10,2,2", "--classes", "1=liver,2=left kidney", "--repair", "nan=min", "--quarantine"],
        ["--patients", "table.csv"],
    ],
    ids=["nothing", "much", "patients"],
)
def test_the_check_is_made_again(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    data = phantom.write_msd(tmp_path / "data", n_labelled=2, n_test=0)
    (tmp_path / "table.csv").write_text("id,patient\ncase_000,a\ncase_001,b\n")
    if "--classes" in told:  # a folder without a description
        (data / "dataset.json").unlink()
        for old, new in (("imagesTr", "images"), ("labelsTr", "labels")):
            (data / old).rename(data / new)
    assert main(["check", str(data), "--out", "a.seguro", *told]) == 0
    words = printed(tmp_path / "a.seguro" / "runs" / "r")["check"]
    assert str(tmp_path) not in " ".join(words)
    words = [
        {"DATA": str(data), "a.seguro": "b.seguro", "PATIENTS.csv": "table.csv"}.get(w, w) for w in words
    ]
    assert main(["check", *words]) == 0
    first, second = (read_json(tmp_path / f"{n}.seguro" / "check" / "stage.json") for n in "ab")
    assert first["key"] == second["key"] and first["outputs"] == second["outputs"]


def test_every_recorded_option_is_printed_and_understood(tmp_path):
    run = tmp_path / "w.seguro" / "runs" / "r"
    options = {"flips": True, "overlap": 0.25, "probabilities": True, "batch": 3, "device": "cpu"}
    predicted = {
        "reads": {"model/0": "x", "model/1": "elsewhere", "case/a": "y"},
        "config": options | {"precision": "bf16-mixed"},
        "recorded": {"spacing": [3.0, 1.0, 0.5], "repair": "nan=min"},
    }
    scored = {
        "config": {"tolerance_mm": 1.5, "metrics": ["dice", "hd95"], "resample": True, "seed": 4},
        "recorded": {"split": "test", "truth": True},
    }
    write_json(run / "predictions" / "mine" / "stage.json", predicted)
    write_json(run / "predictions" / "mine" / "scores" / "stage.json", scored)
    planned = {"config": {"memory_gib": 2.5, "dims": 2, "full_resolution": True, "seed": 3}}
    write_json(tmp_path / "w.seguro" / "plan" / "stage.json", planned)
    lines = printed(
        run,
        "mine",
        scores=run / "predictions" / "mine" / "scores",
        metrics=["dice"],
        caveats=["made; of air"],
    )
    found = {name: parsed(name, *words) for name, words in lines.items()}
    predict, where = found["predict"], "w.seguro/runs/r"
    assert {k: predict[k] for k in options} == options
    assert [str(p) for p in predict["paths"]] == [where, "IMAGES"]
    assert [str(p) for p in predict["also"]] == ["MODEL"]
    assert (predict["spacing"], predict["repair"], predict["precision"]) == (
        "3,1,0.5",
        "nan=min",
        "bf16-mixed",
    )
    assert str(predict["out"]) == str(found["evaluate"]["predictions"]) == f"{where}/predictions/mine"
    wanted = {"tolerance": 1.5, "metrics": "dice,hd95", "resample": True, "seed": 4, "split": "test"}
    assert {k: found["evaluate"][k] for k in wanted} == wanted and str(found["evaluate"]["truth"]) == "LABELS"
    wanted = {"memory": 2.5, "dims": 2, "full_resolution": True, "seed": 3}
    assert {k: found["plan"][k] for k in wanted} == wanted
    assert list(found["report"]["caveat"]) == ["made; of air"]


def test_what_is_usual_is_not_printed(tmp_path):
    run = tmp_path / "w.seguro" / "runs" / "r"
    usual = {"flips": False, "overlap": None, "probabilities": False, "batch": None, "precision": "32"}
    write_json(
        run / "predictions" / "test" / "stage.json",
        {"reads": {"model/0": "x"}, "config": usual, "recorded": {"spacing": None, "repair": None}},
    )
    scored = {"config": {"tolerance_mm": 2.0, "metrics": ["dice"], "resample": False, "seed": 0}}
    write_json(run / "scores" / "test" / "stage.json", scored | {"recorded": {"split": None, "truth": False}})
    lines = printed(run, scores=run / "scores" / "test", metrics=["dice"])
    assert lines["predict"] == ["w.seguro/runs/r", "--cases", "test"]
    assert lines["evaluate"] == ["w.seguro/runs/r/predictions/test"]
    assert lines["report"] == ["w.seguro/runs/r"]
    assert json.dumps(lines["check"]) == '["DATA", "--out", "w.seguro"]'


@pytest.mark.parametrize("own", ["folders", "named sites", "dealt"])
def test_a_federated_run_is_made_again_over_its_sites(tmp_path, own):
    home, run = tmp_path / "all.seguro", tmp_path / "all.seguro" / "runs" / "r"
    if own == "folders":
        run = tmp_path / "out" / "r"
    else:
        sites = ["a", "b"] if own == "named sites" else ["x", "x"]
        write_json(home / "check" / "manifest.json", {"name": "all", "cases": [{"site": s} for s in sites]})
    strategy = {
        "aggregate": "trimmed",
        "trim": 0.25,
        "norm_bound": None,
        "privacy": {"clip": 1.0, "delta": 1e-5},
    }
    made = {
        "run": "r", "method": "supervised", "preset": "tiny", "config": {"network": "unet", "clip": 3.0},
        "rounds": 7, "updates": 5, "batch": None, "seed": 2, "sites": ["b", "a"], "plan": {"memory_gib": 0.5},
        "strategy": strategy,
    }  # fmt: skip
    write_json(run / "federation.json", made)
    workspace = run.parent.parent if own != "folders" else run.parent
    lines = commands(workspace, run, "", {}, lambda *a: {"network": "unet", "clip": 1.0})
    words = shlex.split(lines[0])
    assert words[:3] == ["seguro", "federate", "simulate"] and not any(" check " in line for line in lines)
    params = parsed(*words[1:])
    data, out, told = {
        "folders": (["DATA_OF_a", "DATA_OF_b"], "out", None),
        "named sites": (["DATA"], "all.seguro", None),
        "dealt": (["DATA"], "all.seguro", "2"),
    }[own]
    assert ([str(d) for d in params["data"]], str(params["out"]), params["sites"]) == (data, out, told)
    for key in ("method", "preset", "rounds", "updates", "batch", "seed"):
        assert params[key] == made[key]
    assert params["memory"] == 0.5 and params["name"] == "r" and list(params["set_"]) == ["clip=3.0"]
    fields = settings_from(list(params["strategy"]))
    assert fields == {k: v for k, v in strategy.items() if v is not None}
    assert lines[-1] == f"seguro report {'out' if own == 'folders' else 'all.seguro/runs'}/r"
