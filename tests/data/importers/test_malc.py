"""MALC: 27 of QuickNAT's 32 classes, odd parcels left, even right, geometry kept, whole or nothing."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.data import check, phantom
from seguro.data.formats import read_image, read_label
from seguro.data.importers import importer, malc

QUICKNAT_32 = (
    "45 211 52 50 41 39 60 37 58 56 4 11 35 48 32 46 30 62 44 210 51 49 40 38 59 36 57 55 47 31 23 61"
)
"""Its ids, with 211 and 210 for the left and right cortex."""
ONE = (
    (45, "left cerebral white matter"),
    (44, "right cerebral white matter"),
    (52, "left lateral ventricle"),
)


def test_27_classes_are_quicknats_32_without_five():
    assert len(malc.CLASSES) == 28 and len(set(malc.CLASSES)) == 28
    ids = np.arange(malc.LAST_PARCEL + 1)
    new = malc.remapped(ids, "ids")
    assert sorted(set(new.tolist())) == list(range(28))
    kept = {int(i) for i in ids[:100] if new[i]} | {211, 210}
    assert kept == set(map(int, QUICKNAT_32.split())) - set(malc.DROPPED.values())
    assert not new[sorted(malc.DROPPED.values())].any()
    assert all(malc.CLASSES[new[i]] == name for i, name in ONE)


def test_odd_parcels_are_left_even_ones_right():
    names = [malc.CLASSES[i] for i in malc.remapped(np.array([100, 101, 174, 207]), "ids")]
    assert names == [f"{side} cerebral cortex" for side in ("right", "left", "right", "left")]


@pytest.mark.parametrize("ids", [[0, 45, 60], [0, 208], [0, 1005], [-1, 150]])
def test_ids_of_another_protocol_are_refused(ids):
    with pytest.raises(DataError, match=r"brain\.nii: ids from"):
        malc.remapped(np.array(ids), "brain.nii")


@pytest.fixture
def source(tmp_path):
    """Three training and one test brain in the folders of the challenge, the first axis running backward."""
    root = tmp_path / "source"
    rng = np.random.default_rng(0)
    known = [i for i in range(malc.LAST_PARCEL + 1) if i < 70 or i >= 100]
    for case, part in (
        ("1000_3", "training"),
        ("1001_3", "training"),
        ("1002_3", "training"),
        ("1003_3", "testing"),
    ):
        image = rng.normal(100, 20, (24, 26, 22)).astype(np.float32)
        label = rng.choice(known, (24, 26, 22)).astype(np.int16)
        phantom.write_nifti(root / f"{part}-images" / f"{case}.nii.gz", image, codes="LPS", oblique_deg=5)
        phantom.write_nifti(root / f"{part}-labels" / f"{case}_glm.nii.gz", label, codes="LPS", oblique_deg=5)
    return root


def test_a_folder_of_pairs_becomes_a_data_set(source, tmp_path, capsys):
    out = tmp_path / "MALC"
    assert main(["import", "malc", str(source), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_cases"] == 3 and said["options"] == list(malc.PLAN)
    report = check.check(out, tmp_path / "w")
    assert not report.errors
    classes = report.manifest.classes
    assert classes.names == malc.CLASSES and len(classes.pairs) == 12
    assert [c.id for c in report.manifest.of("test")] == ["1003_3"]
    assert {c.patient for c in report.manifest.cases} == {"1000", "1001", "1002", "1003"}
    before = nib.load(source / "training-labels" / "1001_3_glm.nii.gz")
    after = nib.load(out / "labelsTr" / "1001_3.nii.gz")
    assert np.array_equal(before.affine, after.affine)
    ids, new = (np.asarray(i.dataobj).astype(int) for i in (before, after))
    assert np.array_equal(new, malc.remapped(ids, "ids")) and new.max() == 27
    image = (out / "imagesTr" / "1001_3.nii.gz").read_bytes()
    assert image == (source / "training-images" / "1001_3.nii.gz").read_bytes()


def test_images_to_0_1_are_used_as_such(source, tmp_path, capsys):
    out = tmp_path / "MALC"
    assert main(["import", "malc", str(source), "--out", str(out), "--min-max"]) == 0
    image = read_image([out / "imagesTr" / "1000_3.nii.gz"])
    whole = read_image([source / "training-images" / "1000_3.nii.gz"])
    assert (image.array.min(), image.array.max()) == (0, 1)
    assert np.array_equal(image.grid.affine, whole.grid.affine)
    expected = (whole.array - whole.array.min()) / np.ptp(whole.array)
    assert np.abs(image.array - expected).max() < 1e-6  # float32
    command = ["plan", str(out), "--out", str(tmp_path / "w"), "--memory", "0.01", "--json"]
    capsys.readouterr()
    assert main([*command, *malc.PLAN]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["channels"][0]["scheme"] == "none" and plan["slice_axis"] == 1
    assert (plan["spacing"], plan["patch"]) == ([1, 1, 1], [256, 256])
    assert main(["import", "msd", str(source), "--min-max"]) == 1


def test_side_by_side_and_without_test_folder(tmp_path):
    source = tmp_path / "flat"
    label = np.arange(4 * 6 * 8).reshape(4, 6, 8).astype(np.int16)
    phantom.write_nifti(source / "a.nii", label.astype(np.float32))
    phantom.write_nifti(source / "a_seg.nii", label)
    found = importer("malc")(source, tmp_path / "out")
    assert found.n_cases == 1 and "no test cases" in found.notes[0]
    assert np.array_equal(
        read_label(tmp_path / "out" / "labelsTr" / "a.nii.gz").array, malc.remapped(label, "a")
    )


def test_half_pairs_and_other_grids_leave_nothing(source, tmp_path):
    out = tmp_path / "out"
    label = source / "training-labels" / "1002_3_glm.nii.gz"
    phantom.write_nifti(label, np.full((3, 3, 3), 100, np.int16))
    with pytest.raises(DataError, match="1002_3_glm"):
        importer("malc")(source, out)
    label.unlink()
    with pytest.raises(DataError, match="1 cases without label, first 1002_3"):
        importer("malc")(source, out)
    assert not [p for p in tmp_path.iterdir() if p != source]
    (source / "training-images" / "1002_3.nii.gz").unlink()
    with pytest.raises(DataError, match="never written to"):
        importer("malc")(source, source / "out")
    out.mkdir()
    with pytest.raises(DataError, match="is there already"):
        importer("malc")(source, out)
    for empty in (tmp_path / "nowhere", out):
        with pytest.raises(DataError, match=r"expected images and labels|no such folder"):
            importer("malc")(empty, tmp_path / "new")
