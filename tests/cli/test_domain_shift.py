"""A model on another data set, without adaptation: predicted, scored and reported beside its own."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch

from seguro import api
from seguro.cli.main import main
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine.model import save_model
from seguro.methods import get
from seguro.networks import build


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    """A run with an untrained model and its predictions on its own test cases and on another data set's.

    Both data sets have a case_006; its truth is not the same.
    """
    folder = tmp_path_factory.mktemp("shift")
    other = phantom.write_msd(folder / "hospital2", n_labelled=7, n_test=0, noise=0.3, seed=8)
    options = PlanOptions(memory_gib=0.01, batch=2)
    _, _, plan = api.plan(phantom_folder, out=folder / "home.seguro", options=options)
    api.plan(other, out=folder / "hospital2.seguro", options=options)
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"])
    torch.manual_seed(0)
    method = kind(config, plan, build)
    run = folder / "home.seguro" / "runs" / "r"
    save_model(
        run / "model",
        method="supervised",
        config=config.model_dump(mode="json"),
        plan=plan,
        predictor=method.predictor(method.modules),
    )
    (run / "config.yaml").write_text("fold: '0'\n")
    (run / "cases.json").write_text(json.dumps({"validation": ["case_000"]}))
    assert main(["predict", str(run), "--cases", "test", "--probabilities"]) == 0
    assert main(["evaluate", str(run / "predictions" / "test")]) == 0
    elsewhere = ["--data", str(folder / "hospital2.seguro")]
    assert main(["predict", str(run), *elsewhere, "--cases", "train", "--probabilities"]) == 0
    assert main(["evaluate", str(run / "predictions" / "hospital2-train"), *elsewhere]) == 0
    return run


def summary(run, name):
    rows = json.loads((run / "predictions" / name / "scores" / "summary.json").read_text())["rows"]
    return {(r["class"], r["metric"]): r for r in rows if r["site"] == "all"}


def page(run, *options):
    assert main(["report", str(run), *options]) == 0
    return (run / "report" / "report.html").read_text()


def test_the_page_shows_both_sets_in_one_table(run):
    html = page(run)
    for title, metric in (("Dice", "dice"), ("Calibration error (ECE)", "ece")):
        table = html.split(f"<h3>{title} on every scored set</h3>")[1].split("</table>")[0]
        rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
        assert [name for name, _ in rows] == ["test", "hospital2-train (data set hospital2)"]
        for (_, cells), folder, n in zip(rows, ("test", "hospital2-train"), (2, 7), strict=True):
            for name, row in summary(run, folder).items():
                if name[1] == metric and row["mean"] is not None:
                    assert f">{row['mean']:.3f} (" in cells and f"n {n}<" in cells
    assert "another data set" not in html  # this page is of its own cases


def test_a_page_of_the_other_set_says_so_and_shows_no_case_of_its_own(run):
    html = page(run, "--scores", "hospital2-train")
    assert "These cases are of another data set (hospital2)" in html
    assert "the manifest does not list this case" in html and "data:image" not in html
    again = re.findall(r"seguro (?:predict|evaluate) .*", html)
    assert all("--data OTHER_WORKSPACE" in line for line in again) and len(again) == 2
    assert "--cases train" in again[0]


def test_one_set_alone_has_no_such_table(run, tmp_path):
    import shutil

    copy = shutil.copytree(run.parent.parent, tmp_path / "home.seguro") / "runs" / "r"
    shutil.rmtree(copy / "predictions" / "hospital2-train")
    html = page(copy)
    assert "on every scored set" not in html and "Calibration error (ECE)" in html


def test_the_truth_of_another_data_set_is_never_taken_by_case_id(run, capsys):
    assert main(["evaluate", str(run / "predictions" / "hospital2-train")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "predictions of data set hospital2" in said and "--data WORKSPACE" in said


def test_validation_cases_of_another_data_set_are_refused(run, capsys):
    other = str(run.parents[2] / "hospital2.seguro")
    assert main(["predict", str(run), "--data", other, "--cases", "validation"]) == 1
    assert "of its own data" in " ".join(capsys.readouterr().err.split())


def test_calibration_stands_in_the_terminal_table_only_where_probabilities_were_written(
    run, tmp_path, capsys
):
    capsys.readouterr()
    command = ["evaluate", str(run / "predictions" / "test")]
    assert main(command) == 0
    assert "ECE" in capsys.readouterr().out
    with_them = {m for _, m in summary(run, "test")}
    assert main(["predict", str(run), "--cases", "test", "--out", str(tmp_path / "p")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "p"), "--data", str(run.parents[1]), "--json"]) == 0
    out = capsys.readouterr()
    without = {r["metric"] for r in json.loads(out.out)["rows"]}
    assert with_them - without == {"ece"} and "ECE" not in out.err


def test_the_printed_command_scores_the_other_set(run, tmp_path, capsys):
    other = str(run.parents[2] / "hospital2.seguro")
    command = [
        "predict",
        str(run),
        "--data",
        other,
        "--cases",
        "train",
        "--out",
        str(tmp_path / "o"),
        "--json",
    ]
    capsys.readouterr()
    assert main(command) == 0
    following = shlex.split(json.loads(capsys.readouterr().out)["next"])
    assert main(following[1:]) == 0
    same = json.loads((tmp_path / "o" / "scores" / "summary.json").read_text())["rows"]
    ours = summary(run, "hospital2-train")
    assert {(r["class"], r["metric"]): r["mean"] for r in same if r["site"] == "all"} == {
        k: r["mean"] for k, r in ours.items() if k[1] != "ece"
    }
