"""FAULTS 16, 17, 30, 32, 33, 45: odd data train or are refused at plan; bad numbers or files stop plainly."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from seguro import api
from seguro.api import training
from seguro.api.job import resolve
from seguro.cli.main import main
from seguro.core.errors import ConfigError, RunError
from seguro.core.files import read_json, write_json
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine import loop as loops
from seguro.engine.runtime import Runtime
from seguro.engine.signals import Stopped

TINY = {"preset": "tiny", "updates": 2, "batch": 2, "validations": 1, "threads": 1}


def train(data: Path, out: Path, memory: float = 0.02, **options) -> Path:
    return api.train(
        data, api.TrainOptions(**{**TINY, **options}), out=out, plan_options=PlanOptions(memory_gib=memory)
    )


def command(data: Path, out: Path, *more: str) -> int:
    return main(
        ["train", str(data), "--out", str(out), "--preset", "tiny", "--updates", "2", "--memory", "0.02",
         "--validations", "1", "--threads", "1", *more]
    )  # fmt: skip


@pytest.mark.parametrize(
    "look",
    [
        {"n_labelled": 1},
        {"n_labelled": 2, "n_classes": 1},
        {"n_labelled": 3, "shape": (7, 13, 9)},
        {"n_labelled": 3, "shape": (1, 33, 27)},
        {"n_labelled": 2, "channels": 2},
        {"n_labelled": 3, "shape": (5, 40, 40), "spacing": (6.0, 1.0, 1.0)},
        {"n_labelled": 2, "codes": "PIR", "oblique_deg": 12.0},
    ],
    ids=str,
)
def test_odd_data_sets_train_and_predict(tmp_path, look):
    data = phantom.write_msd(tmp_path / "data", n_test=1, **look)
    run = train(data, tmp_path / "w")
    assert (
        main(["predict", str(run), str(data / "imagesTs"), "--out", str(tmp_path / "p"), "--threads", "1"])
        == 0
    )
    table = read_json(tmp_path / "p" / "predictions.json")
    assert len(table["cases"]) == 1 and not table["failed"]


def test_a_patch_larger_than_every_image_trains(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=2, n_test=1, shape=(12, 12, 12))
    api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.02))
    path = tmp_path / "w" / "plan" / "plan.json"
    factor = np.prod(read_json(path)["strides"], axis=0)
    write_json(path, read_json(path) | {"patch": [int(2 * 12 // f * f) for f in factor]})
    run = train(data, tmp_path / "w")
    assert (
        main(["predict", str(run), str(data / "imagesTs"), "--out", str(tmp_path / "p"), "--threads", "1"])
        == 0
    )


def test_a_one_voxel_object_trains(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=2, n_test=0, n_classes=1, jitter=0)
    for path in (data / "labelsTr").iterdir():
        label = np.zeros((12, 20, 24), np.uint8)
        label[6, 10, 12] = 1
        phantom.write_nifti(path, label)
    assert (train(data, tmp_path / "w") / "model" / "model.json").exists()


def test_cases_with_some_classes_annotated_train(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=4, n_test=0)
    ids = sorted(p.name.removesuffix(".nii.gz") for p in (data / "imagesTr").iterdir())
    names = [v for k, v in json.loads((data / "dataset.json").read_text())["labels"].items() if k != "0"]
    write_json(data / "annotated.json", {ids[0]: names[:1], ids[1]: names[1:]})
    run = train(data, tmp_path / "w")
    lines = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(e["loss"]) for e in lines if e["kind"] == "train")


def test_gradients_that_are_not_finite_are_skipped_then_training_stops_with_the_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "MAX_SKIPPED", 3)
    from seguro.methods.supervised import method

    monkeypatch.setattr(method, "cross_entropy", lambda *a: a[0].sum() * torch.nan)
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    with pytest.raises(RunError, match=r"4 steps in a row.*lower the learning rate") as caught:
        train(data, tmp_path / "w", updates=10)
    assert "phantom" in str(caught.value) or "case" in str(caught.value)


def test_one_bad_step_changes_nothing_and_training_goes_on(tmp_path, monkeypatch):
    from seguro.methods.supervised import method

    real, calls = method.cross_entropy, []

    def sometimes(*a):
        calls.append(1)
        return real(*a) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(method, "cross_entropy", sometimes)
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    run = train(data, tmp_path / "w", updates=4)
    lines = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
    notes = [e["message"] for e in lines if e["kind"] == "note"]
    assert len(notes) == 1 and "not finite" in notes[0]
    assert [e["loss"] is None for e in lines if e["kind"] == "train"] == [False, True, False, False]


def test_another_config_in_the_same_run_is_refused_with_the_difference(tmp_path, capsys):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    assert command(data, tmp_path / "w", "--name", "r") == 0
    capsys.readouterr()
    assert command(data, tmp_path / "w", "--name", "r", "--seed", "5", "--set", "learning_rate=0.5") == 1
    text = capsys.readouterr().err
    assert "learning_rate" in text and "0.5" in text and "--name" in text


def interrupted(loop, after: int):
    """Stop a loop as a signal would, after so many updates of this call."""
    step = loop._after_update

    def stepped(values):
        if loop.run.update >= after:
            loop._stop.set()
        step(values)

    loop._after_update = stepped
    return loop


@pytest.mark.parametrize("began", ["bf16-mixed", "32"])
def test_a_resumed_run_goes_on_at_the_precision_it_began_with(tmp_path, monkeypatch, began):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    make = training._loop
    with monkeypatch.context() as machine:  # "auto" stands for `began` on this one, and a signal comes
        machine.setattr(Runtime, "usual_precision", lambda self: began)
        machine.setattr(training, "_loop", lambda *a: interrupted(make(*a), after=2))
        with pytest.raises(Stopped):
            train(data, tmp_path / "w", name="r", updates=4)
    with monkeypatch.context() as machine:  # and for the other one on this
        machine.setattr(
            Runtime, "usual_precision", lambda self: "32" if began == "bf16-mixed" else "bf16-mixed"
        )
        run = train(data, tmp_path / "w", name="r", updates=4)
    found = read_json(run / "stage.json")
    assert found["config"]["precision"] == found["recorded"]["precision"] == began
    assert found["recorded"]["updates"] == 4


def test_a_run_recorded_before_precisions_were_resolved_keeps_its_key(tmp_path):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0)
    workspace, manifest, made = api.plan(data, out=tmp_path / "w", options=PlanOptions(memory_gib=0.02))
    options = api.TrainOptions(**TINY, name="r")
    (workspace / "runs" / "r").mkdir(parents=True)
    (workspace / "runs" / "r" / "config.yaml").write_text("precision: auto\n")
    found = resolve(workspace, manifest, made, options, gpu=False, precision="32").stage.config
    assert found["precision"] == "auto"


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch):
    runtime = Runtime("cpu")
    runtime.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    assert runtime.usual_precision() == "32"
    with pytest.raises(ConfigError, match="bf16-mixed: Old GPU has no bfloat16"):
        runtime.use("bf16-mixed")
    assert runtime.precision == "32"


def test_a_changed_training_case_is_refused_in_an_old_run(tmp_path, capsys):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=0, seed=1)
    assert command(data, tmp_path / "w", "--name", "r") == 0
    other = phantom.write_msd(tmp_path / "other", n_labelled=3, n_test=0, seed=2)
    name = sorted((data / "imagesTr").iterdir())[0].name
    for folder in ("imagesTr", "labelsTr"):
        (data / folder / name).write_bytes((other / folder / name).read_bytes())
    capsys.readouterr()
    assert command(data, tmp_path / "w", "--name", "r") == 1
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--set", "learning_rate=-1"], "learning_rate"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--set", "nonsense"], "key=value"),
        (["--method", "magic"], "supervised"),
        (["--network", "magic"], "unet"),
        (["--network", "monai:Magic"], "SegResNet"),
        (["--preset", "magic"], "tiny"),
        (["--folds", "77"], "77"),
        (["--device", "cuda"], "cpu"),
        (["--precision", "8"], "16-mixed"),
        (["--init", "nowhere"], "nowhere"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else v,
)
def test_wrong_options_are_named(tmp_path, capsys, phantom_folder, more, word):
    if more[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    expected = 2 if more[0] == "--init" else 1
    assert command(phantom_folder, tmp_path / "w", *more) == expected
    assert word in capsys.readouterr().err


def test_a_pickled_checkpoint_is_refused_and_never_opened(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    (tmp_path / "model.pth").write_bytes(pickle.dumps(Bomb()))
    assert main(["predict", str(tmp_path / "model.pth"), str(tmp_path)]) == 2
    assert "safetensors" in capsys.readouterr().err and not (tmp_path / "opened").exists()


def test_changed_weights_are_refused(tmp_path, capsys):
    data = phantom.write_msd(tmp_path / "data", n_labelled=3, n_test=1)
    run = train(data, tmp_path / "w")
    file = run / "model" / "weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert main(["predict", str(run), str(data / "imagesTs"), "--out", str(tmp_path / "p")]) == 2
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "/tmp/x"])
def test_a_run_name_that_leads_elsewhere_is_refused(phantom_folder, tmp_path, capsys, name):
    arguments = ["train", str(phantom_folder), "--out", str(tmp_path / "w"), "--updates", "1", "--name", name]
    assert main(arguments) == 1
    assert "plain folder name" in capsys.readouterr().err
    assert not list(tmp_path.glob("x")) and not list((tmp_path / "w").glob("runs/*"))
