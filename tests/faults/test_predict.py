"""FAULTS 1-4, 11, 12, 24, 46 in prediction: a bad file never predicts and is named; others go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from seguro import api
from seguro.cli.main import main
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine.model import save_model
from seguro.methods import get
from seguro.networks import build


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def web_page(path):
    path.write_text("<!DOCTYPE html><html><body>404 not found</body></html>")


def empty(path):
    path.write_bytes(b"")


def vanish(path):
    path.unlink()
    path.symlink_to(path.parent / "gone.nii.gz")


def loop(path):
    path.unlink()
    path.symlink_to(path)


def nan(path):
    image = np.ones((9, 9, 9), np.float32)
    image[4, 4, 4] = np.nan
    phantom.write_nifti(path, image)


def constant(path):
    phantom.write_nifti(path, np.ones((9, 9, 9), np.float32))


FAULTS = {
    flip_a_bit: "corrupt",
    truncate: "truncated",
    web_page: "web page",
    empty: "empty",
    vanish: "cannot be read",
    loop: "cannot be read",
    nan: "NaN",
    constant: "constant",
}


@pytest.fixture(scope="module")
def model(phantom_folder, tmp_path_factory):
    """An untrained tiny model of the phantom set."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "phantom.seguro"
    _, _, plan = api.plan(phantom_folder, out=folder, options=PlanOptions(memory_gib=0.01, batch=2))
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"])
    method = kind(config, plan, build)
    run = folder / "runs" / "run"
    save_model(
        run / "model",
        method="supervised",
        config=config.model_dump(mode="json"),
        plan=plan,
        predictor=method.predictor(method.modules),
    )
    return run


@pytest.fixture
def images(phantom_folder, tmp_path):
    return shutil.copytree(phantom_folder / "imagesTs", tmp_path / "images")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_bad_file_never_predicts(model, images, tmp_path, fault, capsys):
    fault(images / "case_006.nii.gz")
    code = main(["predict", str(model), str(images), "--out", str(tmp_path / "out"), "--json"])
    assert code == 2
    printed = json.loads(capsys.readouterr().out)["predictions"][0]
    listing = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for reasons in (printed["failed"], listing["failed"]):
        assert list(reasons) == ["case_006"]
        assert str(images / "case_006.nii.gz") in reasons["case_006"]
        assert FAULTS[fault] in reasons["case_006"]
    assert list(listing["cases"]) == ["case_007"]
    assert not (tmp_path / "out" / "case_006.nii.gz").exists()
    assert (tmp_path / "out" / "case_007.nii.gz").exists()


@pytest.mark.parametrize("fault", [flip_a_bit, truncate, web_page], ids=lambda f: f.__name__)
def test_a_real_file_that_was_damaged_never_predicts(model, real_data, tmp_path, fault):
    source = sorted((real_data / "msd_hippocampus" / "imagesTr").glob("hippocampus*.nii.gz"))[0]
    image = tmp_path / "in" / source.name
    image.parent.mkdir()
    shutil.copy(source, image)
    fault(image)
    assert main(["predict", str(model), str(image), "--out", str(tmp_path / "out")]) == 2
    listing = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert str(image) in next(iter(listing["failed"].values()))
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_file_that_went_bad_takes_its_old_prediction_along(model, images, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(model), str(images), "--out", str(out)]) == 0
    assert (out / "case_006.nii.gz").exists()
    truncate(images / "case_006.nii.gz")
    assert main(["predict", str(model), str(images), "--out", str(out)]) == 2
    assert not (out / "case_006.nii.gz").exists()


def test_all_files_bad_still_lists_every_one(model, images, tmp_path):
    for path in images.iterdir():
        empty(path)
    assert main(["predict", str(model), str(images), "--out", str(tmp_path / "out")]) == 2
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["failed"]) == 2


def test_odd_names_work(model, images, tmp_path):
    names = ["Scan 1", "größe", "a" * 200, "=cmd", "-x"]
    for name in names:
        shutil.copy(images / "case_007.nii.gz", images / f"{name}.nii.gz")
    assert main(["predict", str(model), str(images), "--out", str(tmp_path / "out")]) == 0
    listing = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(names) <= set(listing["cases"])
    table = (tmp_path / "out" / "volumes.csv").read_text()
    assert "\n'=cmd," in table
    assert "\n'-x," in table


@pytest.mark.parametrize("case", ["../outside", "a/b", ".hidden", "a\\b"])
def test_a_case_id_cannot_leave_the_output_folder(model, images, tmp_path, case):
    from seguro.data.formats import read_image
    from seguro.inference.inputs import Item
    from seguro.inference.predict import predict

    path = images / "case_006.nii.gz"
    item = Item(case, (path,), lambda: read_image([path]))
    report = predict([model], [item], tmp_path / "out" / "deep")
    assert "cannot name a file" in report.failed[case]
    assert not list(tmp_path.rglob("outside*"))


def test_two_files_of_one_case_are_refused(model, images, tmp_path):
    phantom.write_nifti(images / "case_006.nii", np.ones((9, 9, 9), np.float32))
    assert main(["predict", str(model), str(images), "--out", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize("which", [["--cases", "test"], []], ids=["cases", "files"])
def test_an_unfinished_run_is_named_as_such(images, tmp_path, capsys, which):
    run = tmp_path / "w.seguro" / "runs" / "r"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("method: supervised\n")
    assert main(["predict", str(run), *(which or [str(images), "--out", str(tmp_path / "out")])]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "has not finished" in told and "run its train command again" in told


def test_a_changed_weight_is_refused(model, images, tmp_path):
    own = shutil.copytree(model / "model", tmp_path / "model")
    flip_a_bit(own / "weights.safetensors")
    assert main(["predict", str(own), str(images), "--out", str(tmp_path / "out")]) == 2
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.slow
def test_killed_at_any_time_it_ends_the_same(model, phantom_folder, tmp_path):
    """kill -9 five times, each a little later, then once to the end."""
    images = phantom_folder / "imagesTr"
    command = [
        sys.executable,
        "-c",
        "from seguro.cli.main import run; run()",
        "predict",
        str(model),
        str(images),
    ]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    start = time.monotonic()
    for i in range(5):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "parts")], stdout=subprocess.DEVNULL)
        time.sleep(2.5 + 0.4 * i)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert time.monotonic() - start > 5
    subprocess.run([*command, "--out", str(tmp_path / "parts")], check=True, capture_output=True)
    outputs = [json.loads((tmp_path / n / "stage.json").read_text())["outputs"] for n in ("whole", "parts")]
    assert outputs[0] == outputs[1]
    assert not list((tmp_path / "parts").rglob("*.part"))
