"""The 100 COVID slices: classes, blocks as folds, a test block of its own, never pictures as CT."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from seguro import api
from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.data import check, phantom
from seguro.data.formats import read_image, read_label
from seguro.data.importers import importer
from seguro.data.importers.covid import _lowered
from seguro.data.planner import PlanOptions

N = 15


def arrays(seed=0):
    """Images (N, 32, 40) in Hounsfield units, lesions 0 to 3 and lungs, rows running down."""
    rng = np.random.default_rng(seed)
    images = rng.normal(-600, 200, (N, 32, 40)).clip(-1024, 300).astype(np.float32)
    lungs = np.zeros(images.shape, np.uint8)
    lungs[:, 4:28, 4:36] = 1
    lesions = np.zeros(images.shape, np.uint8)
    lesions[:, 6:12, 6:12], lesions[:, 14:18, 6:12], lesions[:, 20:26, 20:30] = 1, 2, 3
    return images, lesions, lungs


@pytest.fixture
def stacks(tmp_path):
    """NIfTI stacks as handed out; slices run along z, backward."""
    folder = tmp_path / "nifti"
    for name, array in zip(("tr_im", "tr_mask", "tr_lungmasks_updated"), arrays(), strict=True):
        canonical = array[::-1, ::-1, ::-1]
        phantom.write_nifti(folder / f"{name}.nii.gz", canonical, codes="LPI")
    return folder


@pytest.fixture
def numpy_files(tmp_path):
    """Arrays with masks as one-hot channels."""
    folder = tmp_path / "numpy"
    folder.mkdir()
    images, lesions, lungs = arrays()
    lesions = np.where(lesions == 3, 0, lesions)  # these masks have no channel for effusion
    hot = np.stack([lesions == 1, lesions == 2, (lesions == 0) & (lungs > 0), lungs == 0], -1)
    np.save(folder / "images_medseg.npy", images[..., None])
    np.save(folder / "masks_medseg.npy", hot.astype(np.float32))
    return folder


def expected():
    _, lesions, lungs = arrays()
    return np.where(lesions > 0, lesions + 1, lungs)


def upright(array):
    """A canonical slice as it is looked at: rows down, columns to the patient's left."""
    return array[0, ::-1, ::-1]


def test_stacks_become_slices_with_five_classes(stacks, tmp_path, capsys):
    out = tmp_path / "COVID"
    assert main(["import", "covid", str(stacks), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_cases"] == 12 and any("share a patient" in w for w in said["warnings"])
    assert said["options"] == ["--dims", "2", "--window", "covid"]
    for i, end in ((0, "Tr"), (4, "Ts"), (14, "Tr")):
        image = read_image([out / f"images{end}" / f"slice_{i:03d}.nii.gz"])
        label = read_label(out / f"labels{end}" / f"slice_{i:03d}.nii.gz")
        assert np.array_equal(upright(image.array[0]), arrays()[0][i])
        assert np.array_equal(upright(label.array), expected()[i])
    report = check.check(out, tmp_path / "w")
    assert not report.errors
    assert report.manifest.classes.foreground == ("healthy lung", "ground glass", "consolidation", "effusion")
    assert {c.unit for c in report.manifest.cases} == {"nominal mm"}


def test_validation_is_never_the_test_block_and_blocks_are_neighbors(stacks, tmp_path):
    importer("covid")(stacks, tmp_path / "COVID")
    options = PlanOptions(memory_gib=0.01, dims=2, window=(-504.4, 2204.3))
    _, manifest, plan = api.plan(tmp_path / "COVID", out=tmp_path / "w", options=options)
    test = {c.id for c in manifest.of("test")}
    assert test == {f"slice_{i:03d}" for i in (3, 4, 5)}  # the second block of five
    assert len(plan.folds) == 4
    seen = [set(f.validation) for f in plan.folds]
    assert set.union(*seen) == {c.id for c in manifest.of("train")} and sum(map(len, seen)) == 12
    for fold in plan.folds:
        numbers = sorted(int(i[-3:]) for i in fold.validation)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert not set(fold.validation) & set(fold.train) and not test & {*fold.train, *fold.validation}
    assert (plan.channels[0].scheme, round(plan.channels[0].low, 2)) == ("ct", -1606.55)


def test_one_hot_arrays_leave_effusion_out(numpy_files, tmp_path):
    found = importer("covid")(numpy_files, tmp_path / "COVID", min_max=True)
    assert any("no effusion" in note for note in found.notes)
    facts = json.loads((tmp_path / "COVID" / "dataset.json").read_text())
    assert facts["labels"] == {
        "0": "background",
        "1": "healthy lung",
        "2": "ground glass",
        "3": "consolidation",
    }
    label = read_label(tmp_path / "COVID" / "labelsTr" / "slice_000.nii.gz").array
    wanted = expected()[0]
    assert np.array_equal(upright(label), np.where(wanted == 4, 1, wanted))
    image = read_image([tmp_path / "COVID" / "imagesTr" / "slice_000.nii.gz"]).array
    stack = arrays()[0]
    assert np.abs(upright(image[0]) - (stack[0] - stack.min()) / np.ptp(stack)).max() < 1e-6  # float32
    assert facts["modality"] == {"0": "nonorm"} and found.options == ("--dims", "2")


def test_the_suggested_options_plan_slices_in_the_published_window(stacks, tmp_path, capsys):
    found = importer("covid")(stacks, tmp_path / "COVID")
    words = ["plan", str(found.folder), "--out", str(tmp_path / "w"), "--memory", "0.01", "--json"]
    assert main([*words, *found.options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dims"] == 2
    assert [round(plan["channels"][0][k], 2) for k in ("low", "high")] == [-1606.55, 597.75]


def test_the_published_window_is_not_suggested_for_values_that_are_no_hounsfield_units(numpy_files, tmp_path):
    np.save(numpy_files / "images_medseg.npy", np.abs(arrays()[0]))
    assert importer("covid")(numpy_files, tmp_path / "COVID").options == ("--dims", "2")


def test_pictures_are_refused(stacks, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stacks / "figure.png")
    with pytest.raises(DataError, match="no Hounsfield units"):
        importer("covid")(stacks, tmp_path / "out")


def test_what_does_not_fit_is_named(numpy_files, tmp_path):
    images, lesions, _ = arrays()

    def refused(message, masks, name="masks_medseg.npy", stack=images):
        np.save(numpy_files / "images_medseg.npy", stack)
        np.save(numpy_files / name, masks)
        with pytest.raises(DataError, match=message):
            importer("covid")(numpy_files, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("masks have shape", lesions[:-1])
    refused("mask values", lesions + 3)
    refused("expected 4 channels", np.zeros((*lesions.shape, 3)))
    refused("at least 5", lesions[:3], stack=images[:3])
    refused("NaN", lesions, stack=np.where(images < -900, np.nan, images))
    refused("expected numbers", np.array(["a"]))
    (numpy_files / "masks_medseg.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="not a NumPy array"):
        importer("covid")(numpy_files, tmp_path / "out")
    (numpy_files / "masks_medseg.npy").unlink()
    with pytest.raises(DataError, match="no mask files"):
        importer("covid")(numpy_files, tmp_path / "out")


def test_slices_larger_than_the_published_ones_are_lowered():
    assert _lowered((256, 200)) == ()
    assert _lowered((512, 512)) == ("--spacing", "1,2,2", "--patch", "256,256")
    assert _lowered((630, 256)) == ("--spacing", "1,2.46094,1", "--patch", "256,256")
