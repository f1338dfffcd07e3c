"""Semi-supervised training on data that are not made for it: refused by name, or said in a warning."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.cli.main import main
from seguro.core.files import read_json
from seguro.data import phantom
from seguro.data.formats import read_label

PEERS = ("mean-teacher", "cps", "unimatch", "bcp")
FEW = ("--preset", "tiny", "--updates", "2", "--validations", "1", "--memory", "0.02", "--threads", "1")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A data set in which every case has a label, and its workspace."""
    root = tmp_path_factory.mktemp("semi")
    return phantom.write_msd(root / "d", n_labelled=4, n_test=0, n_unlabelled=0), root / "w"


def train(data, out, method, *more):
    return main(["train", str(data), "--out", str(out), "--method", method, *FEW, *more])


def warned(run):
    return read_json(run / "stage.json")["recorded"]["warnings"]


@pytest.mark.parametrize("method", PEERS)
def test_a_method_that_needs_unlabelled_cases_is_refused_without_any(labelled, method, capsys):
    data, out = labelled
    assert train(data, out, method) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"method {method} learns from unlabelled cases" in said and "all 3 training cases" in said
    assert "imagesUn" in said and "--labelled 3" in said and "--method supervised" in said
    assert not list((out / "runs").glob(f"{method}*"))  # before anything of the run was written


def test_kept_labels_make_unlabelled_cases(labelled, capsys):
    data, out = labelled
    assert train(data, out, "cps", "--labelled", "2", "--batch", "4") == 0
    assert train(data, out, "cps", "--labelled", "3", "--name", "every") == 1  # three patients are all
    assert "all 3 training cases" in " ".join(capsys.readouterr().err.split())


def test_roam_without_unlabelled_cases_is_fully_supervised_and_says_so(labelled, capsys):
    """The paper has both; chosen by its preset it needs no warning."""
    data, out = labelled
    assert train(data, out, "roam", "--batch", "2", "--name", "roam") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: no unlabelled case: roam learns from the labelled ones alone" in said
    assert [w for w in warned(out / "runs" / "roam") if "imagesUn" in w and "--labelled 3" in w]
    assert train(data, out, "roam", "--batch", "2", "--name", "chosen", "--set", "share=1") == 0
    assert warned(out / "runs" / "chosen") == []


def test_a_layer_that_the_network_has_not_is_refused_by_name(labelled, capsys):
    data, out = labelled
    assert train(data, out, "roam", "--batch", "2", "--name", "layer", "--set", "layers=[I,bottom]") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no layer 'bottom' to mix at" in said and "known are I" in said
    assert not (out / "runs" / "layer").exists()


@pytest.mark.parametrize("method", ["roam", "bcp"])
def test_a_class_in_no_labelled_case_and_another_spacing_are_warned_of(tmp_path, method, capsys):
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_test=0, n_unlabelled=2)
    kept = sorted((data / "labelsTr").iterdir())[:2]
    for path in kept:
        label = read_label(path).array
        phantom.write_nifti(path, np.where(label == 2, 0, label).astype(np.uint8))
    for seed, path in enumerate((data / "imagesUn").iterdir()):
        image = np.random.default_rng(seed).normal(size=(12, 20, 24)).astype(np.float32)
        phantom.write_nifti(path, image, spacing=(2.0, 2.0, 2.0))
    few = ("--folds", "none", "--labelled", ",".join(p.name.split(".")[0] for p in kept))
    assert train(data, tmp_path / "w", method, "--batch", "4", "--name", "odd", *few) == 0
    lines = warned(tmp_path / "w" / "runs" / "odd")
    names = list(read_json(data / "dataset.json")["labels"].values())
    assert [x for x in lines if x.startswith(f"class {names[2]} is in none of the 2 labelled")]
    assert [x for x in lines if x.startswith("unlabelled cases have another spacing")]
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"warning: {x}" in said for x in lines)


def test_a_class_in_no_case_at_all_is_an_error_with_its_name(tmp_path, capsys):
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_test=0, n_unlabelled=1)
    for path in (data / "labelsTr").iterdir():
        label = read_label(path).array
        phantom.write_nifti(path, np.where(label == 2, 0, label).astype(np.uint8))
    assert train(data, tmp_path / "w", "roam") == 2
    name = list(read_json(data / "dataset.json")["labels"].values())[2]
    said = " ".join(capsys.readouterr().err.split())
    assert f"no training case contains {name}; remove the class" in said


@pytest.mark.parametrize("method", ["roam", "bcp"])
def test_unlabelled_images_with_other_channels_are_refused(tmp_path, method, capsys):
    data = phantom.write_msd(tmp_path / "d", n_labelled=3, n_test=0, n_unlabelled=1, channels=2)
    path = next((data / "imagesUn").iterdir())
    phantom.write_nifti(path, np.random.default_rng(0).normal(size=(12, 20, 24)).astype(np.float32))
    assert train(data, tmp_path / "w", method) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert path.name.split(".")[0] in said and "channel" in said
    assert not (tmp_path / "w" / "runs").exists()
