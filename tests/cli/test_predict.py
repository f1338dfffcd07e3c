"""`seguro predict`: which arguments are models, where it writes, what it says next."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch

from seguro import api
from seguro.cli.main import main
from seguro.cli.predict import default_out, split, three
from seguro.core.errors import ConfigError
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine.model import save_model
from seguro.methods import get
from seguro.networks import build


@pytest.fixture(scope="module")
def workspace(phantom_folder, tmp_path_factory):
    """A planned workspace with two untrained runs, of folds 0 and 1."""
    folder = tmp_path_factory.mktemp("cli") / "phantom.seguro"
    _, _, plan = api.plan(phantom_folder, out=folder, options=PlanOptions(memory_gib=0.01, batch=2))
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"])
    for fold in (0, 1):
        torch.manual_seed(fold)
        method = kind(config, plan, build)
        run = folder / "runs" / f"run{fold}"
        save_model(
            run / "model",
            method="supervised",
            config=config.model_dump(mode="json"),
            plan=plan,
            predictor=method.predictor(method.modules),
        )
        (run / "config.yaml").write_text(f"fold: '{fold}'\n")
        (run / "cases.json").write_text(json.dumps({"validation": plan.fold(str(fold)).validation}))
    return folder


@pytest.fixture
def run0(workspace):
    return workspace / "runs" / "run0"


@pytest.fixture
def run1(workspace):
    return workspace / "runs" / "run1"


def call(capsys, *arguments, code=0):
    assert main(["predict", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_run_may_be_named_from_the_folder_that_it_lies_in(capsys, monkeypatch, run0, tmp_path):
    monkeypatch.chdir(run0.parent)
    call(capsys, run0.name, "--cases", "validation", "--out", tmp_path / "out")
    wanted = json.loads((run0 / "cases.json").read_text())["validation"]
    assert {p.name.split(".")[0] for p in (tmp_path / "out").glob("*.nii.gz")} == set(wanted)


def test_a_run_may_be_a_link_to_another_disk(capsys, run0, tmp_path):
    away = tmp_path / "scratch"
    shutil.copytree(run0, away)
    link = run0.with_name("linked")
    link.symlink_to(away)
    try:
        call(capsys, link, "--cases", "validation", "--out", tmp_path / "out")
    finally:
        link.unlink()
    assert list((tmp_path / "out").glob("*.nii.gz"))


def test_the_first_argument_and_what_looks_like_a_model_are_models(run0, run1, tmp_path):
    a, b = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    assert split([run0, run1, a, b], [], from_manifest=False) == ([run0, run1], [a, b])
    assert split([run0, a], [run1], from_manifest=False) == ([run0, run1], [a])
    assert split([run0 / "model", a], [], from_manifest=False) == ([run0 / "model"], [a])
    with pytest.raises(ConfigError, match="no images"):
        split([run0, run1], [], from_manifest=False)
    with pytest.raises(ConfigError, match="not both"):
        split([run0, a], [], from_manifest=True)


def test_where_it_writes_by_default(run0, run1, tmp_path):
    bare = shutil.copytree(run0 / "model", tmp_path / "bare")
    assert default_out([run0], "imagesTs") == run0 / "predictions" / "imagesTs"
    assert default_out([run0 / "model"], "imagesTs") == run0 / "predictions" / "imagesTs"
    assert default_out([run0, run1], "imagesTs") == run0 / "predictions" / "imagesTs-ensemble2"
    assert str(default_out([bare], "imagesTs")) == "predictions"


def test_images_end_with_the_command_that_scores_them(run0, phantom_folder, capsys):
    result = call(capsys, run0, phantom_folder / "imagesTs")
    out = run0 / "predictions" / "imagesTs"
    assert result["predictions"][0]["predicted"] == ["case_006", "case_007"]
    assert result["next"] == f"seguro evaluate {out} --truth LABELS"
    assert (out / "case_006.nii.gz").exists()


def test_test_cases_of_the_runs_own_workspace(run0, capsys):
    result = call(capsys, run0, "--cases", "test")
    assert result["predictions"][0]["predicted"] == ["case_006", "case_007"]
    assert result["next"] == f"seguro evaluate {run0 / 'predictions' / 'test'}"


def test_validation_cases_are_predicted_by_the_run_that_did_not_see_them(workspace, run0, run1, capsys):
    result = call(capsys, run0, "--also", run1, "--data", workspace, "--cases", "validation")
    folds = json.loads((workspace / "plan" / "plan.json").read_text())["folds"]
    expected = {f["name"]: sorted(f["validation"]) for f in folds}
    assert [p["predicted"] for p in result["predictions"]] == [expected["0"], expected["1"]]
    assert [p["out"] for p in result["predictions"]] == [
        str(r / "predictions" / "validation") for r in (run0, run1)
    ]


def test_the_report_prints_the_command_that_predicts_the_same(workspace, run0, run1, monkeypatch, capsys):
    from seguro.report.commands import commands

    options = ["--flips", "--overlap", "0.3", "--batch", "2", "--cases", "test"]
    out = run0 / "predictions" / "test-ensemble2"
    first = call(capsys, run0, run1, *options)
    assert first["predictions"][0]["out"] == str(out)
    stage = (out / "stage.json").read_text()
    lines = commands(workspace, run0, out.name, {}, lambda *a: {})
    words = shlex.split(next(x for x in lines if x.startswith("seguro predict")))
    shutil.rmtree(out)
    monkeypatch.chdir(workspace.parent)
    call(capsys, *words[2:])
    again = json.loads((out / "stage.json").read_text())
    assert again["key"] == json.loads(stage)["key"] and again["outputs"] == json.loads(stage)["outputs"]
    shutil.rmtree(out)  # other tests count the sets


def test_dry_run_writes_nothing(run0, phantom_folder, tmp_path, capsys):
    result = call(capsys, run0, phantom_folder / "imagesTs", "--out", tmp_path / "out", "--dry-run")
    assert result["tasks"][0]["out"] == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--cases", "some"),
        ("--cases", "unlabelled", "--data", "/nowhere"),
        ("--overlap", "1.0", "--cases", "test"),
        ("--device", "abacus", "--cases", "test"),
        ("--precision", "8", "--cases", "test"),
        ("--spacing", "1,2", "--cases", "test"),
        ("--repair", "nan=min", "--cases", "test"),
    ],
)
def test_wrong_options_end_with_exit_code_1(run0, wrong, tmp_path):
    assert main(["predict", str(run0), *wrong, "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_no_model_is_a_data_error(tmp_path, phantom_folder):
    assert (
        main(["predict", str(tmp_path), str(phantom_folder / "imagesTs"), "--out", str(tmp_path / "out")])
        == 2
    )


def test_spacing_is_read_as_by_check():
    assert three("2.5,1,1") == (2.5, 1.0, 1.0)
    assert three("1") == (1.0, 1.0, 1.0)
    for text in ("1,2", "a,b,c", "1,0,1", "1,nan,1"):
        with pytest.raises(ConfigError, match="three positive numbers"):
            three(text)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another data set, checked into a workspace that lies elsewhere."""
    folder = tmp_path_factory.mktemp("other")
    data = phantom.write_msd(folder / "hospital2", n_labelled=2, n_test=2, seed=3)
    api.plan(data, out=folder / "hospital2.seguro", options=PlanOptions(memory_gib=0.01, batch=2))
    return folder / "hospital2.seguro"


def test_cases_of_another_workspace_keep_apart_and_are_scored_against_it(run0, other, capsys):
    own = call(capsys, run0, "--cases", "test")["predictions"][0]["out"]
    before = (run0 / "predictions" / "test" / "predictions.json").read_bytes()
    result = call(capsys, run0, "--data", other, "--cases", "train")
    out = run0 / "predictions" / "hospital2-train"
    assert result["predictions"][0]["out"] == str(out) != own
    assert result["next"] == f"seguro evaluate {out} --data {other}"
    assert (run0 / "predictions" / "test" / "predictions.json").read_bytes() == before
    assert main(result["next"].split()[1:]) == 0


def test_data_that_moved_are_found_by_data_root_or_their_folder(run0, tmp_path, capsys, monkeypatch):
    data = phantom.write_msd(tmp_path / "before", n_labelled=2, n_test=1, seed=4)
    monkeypatch.chdir(tmp_path)
    workspace = tmp_path / "after.seguro"
    api.plan(data, out=workspace, options=PlanOptions(memory_gib=0.01, batch=2))
    moved = data.rename(tmp_path / "after")
    lost = call(capsys, run0, "--data", workspace, "--out", tmp_path / "a", code=2)
    assert len(lost["predictions"][0]["failed"]) == 1
    root = call(capsys, run0, "--data", workspace, "--data-root", moved, "--out", tmp_path / "b")
    assert root["next"].endswith(f"--data {workspace} --data-root {moved}")
    folder = call(capsys, run0, "--data", moved, "--out", tmp_path / "c")
    assert root["predictions"][0]["predicted"] == folder["predictions"][0]["predicted"] != []


def test_folders_of_one_name_do_not_share_predictions(run0, phantom_folder, tmp_path, capsys):
    for name in ("h1", "h2"):
        shutil.copytree(phantom_folder / "imagesTs", tmp_path / name / "images")
    call(capsys, run0, tmp_path / "h1" / "images")
    before = (run0 / "predictions" / "images" / "predictions.json").read_bytes()
    assert main(["predict", str(run0), str(tmp_path / "h2" / "images")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--out" in said and "h1/images" in said and "h2/images" in said
    assert (run0 / "predictions" / "images" / "predictions.json").read_bytes() == before


def test_nor_do_bare_models(run0, run1, phantom_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = [shutil.copytree(r / "model", tmp_path / r.name) for r in (run0, run1)]
    call(capsys, bare[0], phantom_folder / "imagesTs")
    assert main(["predict", str(bare[1]), str(phantom_folder / "imagesTs")]) == 1
    assert "other models" in " ".join(capsys.readouterr().err.split())


def test_images_with_nan_are_repaired_on_request(run0, tmp_path, capsys):
    image = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    image[4, 4, 4] = np.nan
    path = phantom.write_nifti(tmp_path / "in" / "case.nii.gz", image)
    image[4, 4, 4] = np.nanmin(image)
    phantom.write_nifti(tmp_path / "repaired" / "case.nii.gz", image)
    refused = call(capsys, run0, path, "--out", tmp_path / "out", code=2)["predictions"][0]["failed"]["case"]
    assert "--repair nan=min" in refused and "seguro check" not in refused
    call(capsys, run0, path, "--out", tmp_path / "out", "--repair", "nan=min")
    call(capsys, run0, tmp_path / "repaired" / "case.nii.gz", "--out", tmp_path / "same")
    labels = [(tmp_path / n / "case.nii.gz").read_bytes() for n in ("out", "same")]
    assert labels[0] == labels[1]


def test_the_folder_of_several_sets_names_them(run0, capsys):
    assert main(["predict", str(run0), "--cases", "test"]) == 0
    assert main(["predict", str(run0), "--cases", "validation"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run0 / "predictions")]) == 1
    said = "".join(capsys.readouterr().err.split())
    assert "nameoneofthem" in said and "predictions/validation" in said
