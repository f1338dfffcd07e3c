"""The same slices as a volume, as a stack and one by one give the same labels, which read back as predicted.

Intensities are as stored here, since a case's own mean and deviation are those of its volume or of its slice.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from seguro.data import phantom
from seguro.data.formats import read_image
from seguro.data.preprocess import to_planned
from seguro.engine.model import load_model
from seguro.inference.predict import predict


@pytest.fixture(scope="module")
def setting(make_model, tmp_path_factory):
    """A 2-D model of slices along y, and a volume of 6 slices whose axes run another way."""
    folder = tmp_path_factory.mktemp("paths")
    data = phantom.write_msd(
        folder / "d", n_labelled=3, n_test=0, shape=(32, 6, 40), modality="nonorm", seed=2, noise=0.3
    )
    model = make_model(folder / "model", data, folder / "w", dims=2)
    array = np.random.default_rng(0).normal(0, 1, (32, 6, 40)).astype(np.float32)
    return folder, model, array


def predicted(model, path, out):
    report = predict([model], path, out)
    assert report.exit_code == 0
    return {c.id: nib.load(out / next(iter(c.files))) for c in report.cases}


def test_volume_stack_and_single_slices_agree(setting, tmp_path):
    _, model, array = setting
    plan = load_model(model).plan
    assert (plan.dims, plan.slice_axis, plan.channels[0].scheme) == (2, 1, "none")
    volume = phantom.write_nifti(tmp_path / "v" / "v.nii.gz", array, spacing=plan.spacing, codes="LAS")
    stack = phantom.write_nifti(tmp_path / "s" / "s.nii.gz", array, spacing=plan.spacing, codes="RSP")
    for i in range(6):
        name = tmp_path / "one" / f"slice_{i}.nii.gz"
        phantom.write_nifti(name, array[:, i : i + 1], spacing=plan.spacing, codes="RSA")
    whole = predicted(model, volume, tmp_path / "ov")["v"]
    as_stack = predicted(model, stack, tmp_path / "os")["s"]
    single = predicted(model, tmp_path / "one", tmp_path / "oo")
    reference = nib.as_closest_canonical(whole).get_fdata().T  # (z, y, x)
    assert len(np.unique(reference)) > 1  # the model says something, else all would agree on nothing
    assert np.array_equal(nib.as_closest_canonical(as_stack).get_fdata().T, reference)
    for i in range(6):
        one = nib.as_closest_canonical(single[f"slice_{i}"]).get_fdata().T
        assert np.array_equal(one[:, 0], reference[:, i])
    for path, label in ((volume, whole), (stack, as_stack)):
        image = nib.load(path)
        assert np.array_equal(image.affine, label.affine) and image.shape == label.shape


def test_the_saved_file_is_what_was_predicted(setting, tmp_path):
    """Not zeros: it equals the argmax of the network on each planned slice."""
    _, model, array = setting
    loaded = load_model(model)
    path = phantom.write_nifti(tmp_path / "v" / "v.nii.gz", array, spacing=loaded.plan.spacing, codes="LPS")
    label = predicted(model, path, tmp_path / "o")["v"]
    planned, grid = to_planned(read_image([path]), loaded.plan)
    assert grid.shape == array.shape
    size = loaded.predictor.tiling.size
    assert all(n <= s for n, s in zip((32, 40), size, strict=True))  # one window, nothing to blend
    pad = [(0, s - n) for n, s in zip((32, 40), size, strict=True)]
    expected = np.zeros(array.shape, int)
    for i in range(array.shape[1]):
        padded = np.pad(planned[0, :, i], pad)
        with torch.inference_mode():
            logits = loaded.predictor(torch.from_numpy(padded)[None, None, None])
        expected[:, i] = logits[0, :, 0, :32, :40].argmax(0).numpy()
    found = nib.as_closest_canonical(label).get_fdata().T
    assert np.array_equal(found, expected) and found.any()
    record = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert record["failed"] == {}
